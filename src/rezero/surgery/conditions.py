"""What grafted blocks are given beside the hidden states: for a call, for a thread, or for good."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Condition", "Conditions"]


@dataclass(frozen=True, eq=False)
class Condition:
    """What grafted blocks are given.

    Attributes:
        context: What they attend to, ``(B, M, C)``; None if there is none.
        mask: What of it may be seen, ``(B, M)`` or ``(B, T, M)``; None for all.
        enabled: Whether the blocks run at all.
        kept: What a block has computed from the context, by block and number of rows: kept as long as this is used.
    """

    context: Tensor | None = None
    mask: Tensor | None = None
    enabled: bool = True
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def rows(self, batch: int) -> Self:
        """Return it for a batch of more rows: each is repeated as beam search repeats the rows of its input.

        Args:
            batch: Number of rows.

        Returns:
            The same for that batch, or itself where the rows do not divide it.
        """
        if self.context is None:
            return self
        have = self.context.shape[0]  # and not its len(), which torch.export takes for a constant
        if have == batch or not have or batch % have:
            return self
        if not torch.compiler.is_compiling() and ("rows", batch) in self.kept:
            again: Self = self.kept["rows", batch]
            return again
        times = batch // have
        mask = self.mask
        if mask is not None and mask.shape[0] == have:
            mask = mask.repeat_interleave(times, 0)
        wider = replace(self, context=self.context.repeat_interleave(times, 0), mask=mask, kept={})
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.kept["rows", batch] = wider
        return wider


_NOTHING = Condition()


class _Thread(threading.local):  # which torch.compile follows, and no ContextVar
    condition: Condition | None = None


class Conditions:
    """The condition of the blocks of one graft: that of this thread, or else that of all.

    A copy of the model shares it, so the graft conditions both.
    """

    def __init__(self) -> None:
        self.always = _NOTHING
        self.thread = _Thread()

    @property
    def now(self) -> Condition:
        """The condition that holds in this thread."""
        here = self.thread.condition
        return self.always if here is None else here

    @contextmanager
    def held(self, **changes: Any) -> Iterator[Condition]:
        """Change it in this thread.

        Args:
            **changes: Fields of `Condition`.

        Yields:
            The condition.
        """
        before = self.thread.condition
        self.thread.condition = replace(self.now, kept={}, **changes)
        try:
            yield self.thread.condition
        finally:
            self.thread.condition = before

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def __reduce__(self) -> Any:  # another process has a condition of its own
        return type(self), ()
