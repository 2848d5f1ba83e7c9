"""See which parameters of a module are read by code other than its own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rezero.surgery.outputs import MODES
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["parts_of", "read_elsewhere"]


def parts_of(model: nn.Module, name: str) -> tuple[str, ...]:
    """Name a module of a model and all modules inside it."""
    return tuple(f"{name}.{part}".strip(".") for part, _ in model.get_submodule(name).named_modules())


def read_elsewhere(
    model: nn.Module, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> frozenset[str]:
    """Run a model in training and evaluation, with gradients and without; it is left as it was.

    Args:
        model: The model, on the meta device too.
        names: Modules whose own code no longer reads their parameters and buffers.
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        Those of the modules of which some code reads a parameter or a buffer, if only to see its dtype.
    """
    read: set[str] = set()
    parameter = next(model.parameters(), None)
    given: Any = (args, kwargs)
    if parameter is not None and parameter.is_meta:
        given = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), given)
    for training, grad in MODES:
        with undisturbed(model), switched(model, training=training), torch.set_grad_enabled(grad):
            watching = _watching({name: model.get_submodule(name) for name in names}, read)
            with watching, suppress(Exception):  # a mode in which the model fails reads no more than that
                copies, keywords = copied(given)
                model(*copies, **keywords)
    return frozenset(read)


class _Watched(dict[str, Any]):
    def __init__(self, content: Mapping[str, Any], owner: str, read: set[str]) -> None:
        super().__init__(content)
        self.owner, self.read = owner, read

    def __getitem__(self, name: str) -> Any:
        self.read.add(self.owner)
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
