"""How zeros are made in place of what a module returns, and which modules do more than return something."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rezero.surgery.contribution import Batch
from rezero.surgery.recipe import SilentRecipe
from rezero.surgery.undisturbed import copied, switched, undisturbed, unfused

__all__ = ["Zeros", "observe_zeros"]

Zeros = Mapping[str, SilentRecipe | str]


def observe_zeros(model: nn.Module, batches: Sequence[Batch]) -> Zeros:
    """Run a model in evaluation and see what its modules return, and which remember something; it is left as it was.

    Args:
        model: The model.
        batches: Arguments and keyword arguments of its forward.

    Returns:
        The name of each module that was called to how zeros take the place of its output, or why they can't.
    """
    seen: dict[str, set[SilentRecipe | str]] = {}

    def look(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.setdefault(name, set()).add(_zeros(name, module, args, [*args, *kwargs.values()], output))

    modules = dict(model.named_modules())
    for args, kwargs in batches:
        with undisturbed(model), switched(model, training=False), unfused(), torch.no_grad():  # takes the hooks off too
            for name, module in modules.items():
                module.register_forward_hook(partial(look, name), with_kwargs=True)
            before = {name: _state(module) for name, module in modules.items()}
            copies, keywords = copied((args, kwargs))
            model(*copies, **keywords)
            for name, module in modules.items():
                if not _same(before[name], _state(module)):
                    _mark(name, seen)
    return {name: ways.pop() if len(ways) == 1 else _UNKNOWN for name, ways in seen.items()}


_UNKNOWN = "the shape of its output can't be told from that of its input"


def _mark(name: str, seen: Mapping[str, set[SilentRecipe | str]]) -> None:
    """Note that a module is not the same after a call, for itself and for those it is in."""
    for outer, ways in seen.items():
        if name == outer or name.startswith(f"{outer}.") or not outer:
            ways.clear()
            ways.add("it remembers something of what it is given")


def _zeros(name: str, module: nn.Module, args: Sequence[Any], given: Sequence[Any], output: Any) -> SilentRecipe | str:
    items = len(output) if type(output) is tuple else 0
    f = output[0] if items else output
    if not isinstance(f, Tensor):
        return _UNKNOWN
    tensors = list({id(each): each for each in given if isinstance(each, Tensor)}.values())
    ways = [_way(module, x, f) for x in tensors]
    if not ways or ways[0] is None:
        return _UNKNOWN
    query = isinstance(module, nn.MultiheadAttention) and len(args) > 0  # of its arguments the first gives the shape
    if not query and any(way is not None for way in ways[1:]):
        return "several of its arguments have the shape of its output"
    return SilentRecipe(name, *ways[0], items)


def _way(module: nn.Module, x: Tensor, f: Tensor) -> tuple[int | None, int] | None:
    """Return the axis along which an output differs from an input, and its size there; None if they are not alike."""
    if (x.dtype, x.ndim) != (f.dtype, f.ndim):
        return None
    if isinstance(module, nn.modules.conv._ConvNd) and any(stride != 1 for stride in module.stride):
        return None  # equal only if the image is as small as a step
    differ = [axis - x.ndim for axis in range(x.ndim) if x.shape[axis] != f.shape[axis]]
    if not differ:
        return None, 0
    return (differ[0], f.shape[differ[0]]) if differ == [_features(module)] else None


def _features(module: nn.Module) -> int | None:
    """Return the axis, counted from the end, whose size a layer sets by itself."""
    if isinstance(module, nn.Linear) or type(module).__name__.endswith("Conv1D"):  # the linear layer of transformers
        return -1
    kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((-number - 1 for number, kind in enumerate(kinds, 1) if isinstance(module, kind)), None)


def _state(module: nn.Module) -> list[tuple[Any, int]]:
    """List what a module has of its own, down to what its containers hold, with the version of each tensor."""
    things: list[Any] = []
    own = [(name, value) for name, value in vars(module).items() if not name.startswith("rezero_")]
    for name, value in own:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | set) else ()
        things += [name, value, *inside]
    versions = (each._version if isinstance(each, Tensor) and not each.is_inference() else 0 for each in things)
    return list(zip(things, versions, strict=True))


def _same(one: Sequence[tuple[Any, int]], other: Sequence[tuple[Any, int]]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a is b and v == w for (a, v), (b, w) in pairs)
