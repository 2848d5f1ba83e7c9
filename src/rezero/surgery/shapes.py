"""A pass on shapes alone, for models that have no numbers: what torch itself does not know then."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

__all__ = ["all_on_meta", "call_on_shapes"]


@contextmanager
def all_on_meta(model: nn.Module) -> Iterator[None]:
    """Put the rest of a model on the meta device, where a part of it lies there already.

    Some ways to build a model without its weights leave the buffers on the CPU.

    Args:
        model: The model; it has its own tensors back afterwards.

    Yields:
        Nothing.
    """
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    before = [dict(table) for table in tables]
    moved: dict[int, Tensor] = {}
    for table in tables:
        for name, tensor in table.items():
            if tensor is not None and not tensor.is_meta:
                table[name] = moved.setdefault(id(tensor), _on_meta(tensor))  # type: ignore[assignment]
    try:
        yield
    finally:
        for table, tensors in zip(tables, before, strict=True):
            table.clear()
            table.update(tensors)  # type: ignore[arg-type]


def _on_meta(tensor: Tensor) -> Tensor:
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def call_on_shapes(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a torch function on tensors without numbers.

    The grouped matrix product of mixtures of experts is known to torch's fake tensors in bfloat16 only.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        What it returns.
    """
    if "grouped_mm" not in getattr(func, "__name__", ""):
        return func(*args, **kwargs)
    dtype = args[0].dtype
    args, kwargs = tree_map_only(Tensor, _halved, (tuple(args), dict(kwargs)))
    return func(*args, **kwargs).to(dtype)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
