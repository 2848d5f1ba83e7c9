"""Which tensors share numbers: writing into one of them changes the others too."""

import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor

__all__ = ["Views"]


class Views:
    """The tensors that a forward pass has made, by the memory that they look into."""

    def __init__(self) -> None:
        self._views: dict[int, list[weakref.ref[Tensor]]] = {}

    def add(self, tensor: Tensor) -> None:
        """Remember a tensor."""
        self._views.setdefault(_memory(tensor), []).append(weakref.ref(tensor))

    def changed_with(self, tensor: Tensor) -> list[Tensor]:
        """List the other tensors that are not what they were once one was written into.

        Args:
            tensor: The one.

        Returns:
            Those that have numbers in common with it.
        """
        there = self._views.get(_memory(tensor), ())
        others = [view for ref in there if (view := ref()) is not None and view is not tensor]
        return [view for view in others if _memory(view) == _memory(tensor) and _overlap(view, tensor)]


def _memory(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or inside a vmap: it shares nothing that is seen here
        return id(tensor)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether two views have numbers in common; true where it can't be told from their strides."""
    strides = sorted({stride for view in (one, other) for stride in view.stride() if stride > 0}, reverse=True)
    first, second = _ranges(one, strides), _ranges(other, strides)
    if not (_is_grid(first) and _is_grid(second)):
        return True
    return all(max(first[s].start, second[s].start) < min(first[s].stop, second[s].stop) for s in strides)


def _ranges(view: Tensor, strides: Sequence[int]) -> dict[int, range]:
    """Return which multiples of each stride a view looks at."""
    sizes = {stride: size for size, stride in zip(view.shape, view.stride(), strict=True) if size > 1}
    ranges, rest = {}, int(view.storage_offset())
    for stride in strides:
        first, rest = divmod(rest, stride)
        ranges[stride] = range(first, first + sizes.get(stride, 1))
    return ranges


def _is_grid(ranges: Mapping[int, range]) -> bool:
    """Return whether no sum of the smaller steps reaches the next larger one."""
    reach = 0
    for stride, larger in pairwise(sorted(ranges)):
        reach += stride * (ranges[stride].stop - 1)
        if reach >= larger:
            return False
    return True
