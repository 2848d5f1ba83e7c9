"""A pass on shapes alone, for models that have no numbers: what torch itself does not know then."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

__all__ = ["all_on_meta", "call_on_shapes"]

# Of these torch remembers the shapes of results, but not where parameters have numbers; none writes or returns a view.
_REMEMBERED = frozenset("linear conv1d conv2d conv3d addmm matmul layer_norm group_norm add mul".split())  # noqa: SIM905
_FAKE = torch._C._TorchDispatchModeKey.FAKE


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

    The grouped matrix product of mixtures of experts is known to torch's fake tensors in bfloat16 only. A batch norm is
    taken apart there into tens of operations.

    Args:
        func: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        What it returns.
    """
    name = getattr(func, "__name__", "")
    if func is F.batch_norm:
        return _batch_norm(*args, **kwargs)
    if name in _REMEMBERED and "out" not in kwargs and (mode := torch._C._get_dispatch_mode(_FAKE)) is not None:
        args, kwargs = tree_map_only(nn.Parameter, partial(_without_numbers, mode), (tuple(args), dict(kwargs)))
    if "grouped_mm" not in name:
        return func(*args, **kwargs)
    dtype = args[0].dtype
    args, kwargs = tree_map_only(Tensor, _halved, (tuple(args), dict(kwargs)))
    return func(*args, **kwargs).to(dtype)


def _without_numbers(mode: Any, parameter: nn.Parameter) -> Tensor:
    return parameter if isinstance(parameter, FakeTensor) else mode.from_tensor(parameter)


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if training or mean is None:
        return F.batch_norm(x, mean, variance, weight, bias, training, *args, **kwargs)
    weight, bias = (mean if each is None else each for each in (weight, bias))
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return (x * weight.view(shape) + bias.view(shape)).to(x.dtype)


def _halved(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
