"""What grafted blocks are given beside the hidden states: for a call, for a thread, or for good."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from rezero.errors import UsageError

__all__ = ["Condition", "Conditions"]


@dataclass(frozen=True, eq=False)
class Condition:
    """What grafted blocks are given.

    Attributes:
        context: What they attend to, ``(B, M, C)``; None if there is none.
        blank: Whether it is known that there is none, and not only that none was given.
        mask: What of it may be seen, ``(B, M)`` or ``(B, T, M)``; None for all.
        enabled: Whether the blocks run at all.
        kept: What was computed from the context, by what depends on it; None to keep nothing.
    """

    context: Tensor | None = None
    blank: bool = field(default=False, kw_only=True)
    mask: Tensor | None = None
    enabled: bool = True
    kept: dict[Any, Any] | None = field(default=None, repr=False)

    def rows(self, batch: int) -> Self:
        """Return it for a batch of more rows: each is repeated as beam search repeats the rows of its input.

        Args:
            batch: Number of rows.

        Returns:
            The same for that batch, or itself where the numbers agree.

        Raises:
            UsageError: If the batch is no multiple of the rows, or gradients are on, where repeated rows would be taken
                for those of other examples; a single row serves all.
        """
        if self.context is None:
            return self
        have = self.context.shape[0]  # and not its len(), which torch.export takes for a constant
        if have == batch:
            return self
        if not have or batch % have or (have > 1 and torch.is_grad_enabled()):
            raise UsageError(
                f"the context has {have} rows and the batch {batch}: give a row for each, or one row for all; only "
                "without gradients, as in generate(), rows are repeated"
            )

        def widen() -> Condition:
            times, context, mask = batch // have, self.context, self.mask
            assert context is not None  # noqa: S101 - asked above
            if mask is not None and mask.shape[0] == have:
                mask = mask.repeat_interleave(times, 0)
            return replace(self, context=context.repeat_interleave(times, 0), mask=mask, kept=self.kept and {})

        return self.keep(("rows", batch), widen)  # type: ignore[no-any-return]

    def keep(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """Return what depends on the context alone: made once where no gradient is asked for.

        Args:
            name: What it is, and what else it depends on.
            make: Makes it.

        Returns:
            What ``make`` returns, or returned before, as long as the context has not been changed in place.
        """
        context = self.context
        keeps = self.kept is not None and context is not None and not torch.compiler.is_compiling()
        if not keeps or torch.is_grad_enabled() or torch.is_inference_mode_enabled() != _is_inference(context):
            return make()
        key = name, None if _is_inference(context) else context._version  # type: ignore[union-attr]
        if key not in self.kept:  # type: ignore[operator]
            self.kept[key] = make()  # type: ignore[index]
        return self.kept[key]  # type: ignore[index]


def _is_inference(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_inference()


_NOTHING = Condition()


class _Thread(threading.local):  # which torch.compile follows, and no ContextVar
    held: tuple[Condition, ...] = ()


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
        held = self.thread.held
        return held[-1] if held else self.always

    @contextmanager
    def held(self, **changes: Any) -> Iterator[Condition]:
        """Change it in this thread.

        Args:
            **changes: Fields of `Condition`.

        Yields:
            The condition.
        """
        condition = replace(self.now, kept={}, **changes)
        self.thread.held = (*self.thread.held, condition)
        try:
            yield condition
        finally:  # in whatever order those of coroutines end
            self.thread.held = tuple(each for each in self.thread.held if each is not condition)

    def __deepcopy__(self, _: Any) -> Self:
        return self

    def __reduce__(self) -> Any:  # another process has a condition of its own
        return type(self), ()
