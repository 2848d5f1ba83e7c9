"""Large buffers that are used again: the first touch of fresh memory can cost as much as the products that fill it."""

import math
import mmap
import weakref
from threading import Lock

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["empty"]

_LARGE = 2 << 20  # bytes: a huge page. What malloc gives back to the system it has to touch again
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)


class _Buffer:
    """Memory that one tensor after the other lives in."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size, flags=_PRIVATE)
        self._user: weakref.ref[memoryview] | None = None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    @property
    def is_free(self) -> bool:
        return self._user is None or self._user() is None

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        view = memoryview(self._memory)  # the tensor's storage, and nothing else, keeps it
        self._user = weakref.ref(view)
        return torch.frombuffer(view, dtype=dtype, count=math.prod(shape)).view(shape)


_buffers = WeakIdKeyDictionary()  # of each owner, so that they go with it
_lock = Lock()


def empty(shape: tuple[int, ...], owner: Tensor) -> Tensor:
    """Return an uninitialised tensor; a large one on the CPU lies in memory that earlier ones have left.

    Args:
        shape: Its shape.
        owner: Whose dtype and device it has. The memory is kept for the next request as long as this tensor lives.

    Returns:
        The tensor, contiguous.
    """
    size = math.prod(shape) * owner.element_size()
    if size < _LARGE or owner.device.type != "cpu" or not _PRIVATE:
        return owner.new_empty(shape)
    with _lock:
        buffers: list[_Buffer] = _buffers.setdefault(owner, [])
        free = [each for each in buffers if each.is_free and each.size >= size]
        if not free:  # what is free is too small
            buffers[:] = [each for each in buffers if not each.is_free] + [_Buffer(size)]
            free = buffers[-1:]
        return min(free, key=lambda each: each.size).lend(shape, owner.dtype)
