"""See which parameters of a module are read by code other than its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rezero.surgery.outputs import MODES
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["read_elsewhere", "tensors_of"]


def tensors_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """Name the parameters and buffers of a module and of those inside it, under each of their names."""
    module = model.get_submodule(name)
    own = [*module.named_parameters(name, remove_duplicate=False), *module.named_buffers(name, remove_duplicate=False)]
    return tuple(each for each, _ in own)


def read_elsewhere(
    model: nn.Module, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """Run a model in training and evaluation, with gradients and without; it is left as it was.

    Args:
        model: The model, on the meta device too.
        names: Parameters and buffers that the code of their own modules no longer reads.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Those of them that some code reads, if only to see a dtype.
    """
    owners = {owner: model.get_submodule(owner) for owner in {name.rpartition(".")[0] for name in names}}
    read: set[str] = set()
    parameter = next(model.parameters(), None)
    given: Any = (args, kwargs)
    if parameter is not None and parameter.is_meta:
        given = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), given)
    for training, grad in MODES:
        with ExitStack() as stack:
            stack.enter_context(undisturbed(model))
            stack.enter_context(switched(model, training=training))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(_watching(owners, read))
            stack.enter_context(suppress(Exception))  # a mode in which the model fails reads no more than that
            copies, keywords = copied(given)
            model(*copies, **keywords)
    return frozenset(read.intersection(names))


class _Watched(dict[str, Any]):
    def __init__(self, content: Mapping[str, Any], owner: str, read: set[str]) -> None:
        super().__init__(content)
        self.owner, self.read = owner, read

    def __getitem__(self, name: str) -> Any:
        self.read.add(f"{self.owner}.{name}".lstrip("."))
        return super().__getitem__(name)


@contextmanager
def _watching(modules: Mapping[str, nn.Module], read: set[str]) -> Iterator[None]:
    stores = [(name, vars(module), key) for name, module in modules.items() for key in ("_parameters", "_buffers")]
    before = [attributes[key] for _, attributes, key in stores]
    try:
        for (name, attributes, key), content in zip(stores, before, strict=True):
            attributes[key] = _Watched(content, name, read)
        yield
    finally:
        for (_, attributes, key), content in zip(stores, before, strict=True):
            attributes[key] = content
