"""A text in memory, of whose bytes the next one is predicted."""

from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from typing import ClassVar, Self

import torch
from torch import Tensor

from rezero.data.batches import epoch_generator, locate_batch
from rezero.errors import UsageError

__all__ = ["TextData"]


@dataclass(frozen=True)
class TextData:
    """A text of bytes, cut into windows; an input's target is the window one byte later.

    Each epoch cuts the training part anew: the first window starts at a random byte below ``context``, the others
    follow back to back, and they are visited in a random order. The validation part is cut from its first byte.

    Attributes:
        name: Name of the text, as reports show it.
        train: Training part, ``(N,)``, uint8.
        val: Validation part, ``(M,)``, uint8.
        context: Length of a window (bytes).

    Raises:
        UsageError: If a part is shorter than one window and its last target.

    Example:
        >>> text = torch.arange(100, dtype=torch.uint8)
        >>> inputs, targets = TextData("count", text, text, context=8).batch(seed=0, step=0, batch_size=4)
        >>> inputs.shape, torch.equal(targets, inputs + 1)
        (torch.Size([4, 8]), True)
    """

    name: str
    train: Tensor
    val: Tensor
    context: int
    classes: ClassVar[int] = 256

    def digest(self) -> str:
        """Return what tells this text from others: a checksum of both parts, and the length of a window."""
        parts = (part.cpu().numpy().tobytes() for part in (self.train, self.val))
        return sha256(b" ".join((f"{self.context} {len(self.train)}".encode(), *parts))).hexdigest()

    def __post_init__(self) -> None:
        if self.context < 1:
            raise UsageError(f"context must be a whole number of bytes, 1 or more: got {self.context}")
        for part, content in (("training", self.train), ("validation", self.val)):
            if len(content) <= self.context:
                raise UsageError(
                    f"the {part} part of {self.name} has {len(content):,} bytes, one window of context {self.context} "
                    f"needs {self.context + 1:,}: take a longer text or a shorter context"
                )

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches an epoch's windows fill; the last one may be smaller."""
        return -(-self._windows // batch_size)

    def batch_len(self, step: int, batch_size: int) -> int:
        """Return the number of windows in the batch of a training step."""
        _, rows = locate_batch(step, batch_size, self._windows)
        return int(rows.stop - rows.start)

    def batch(self, seed: int, step: int, batch_size: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one training step.

        Args:
            seed: Seed of the windows' places and order.
            step: Step since the start of training, from 0.
            batch_size: Number of windows; the last batch of an epoch may have fewer.
            part: Which rows of that batch to return; the others cost nothing.

        Returns:
            Inputs and targets, both ``(B, context)``, int64.
        """
        epoch, rows = locate_batch(step, batch_size, self._windows)
        # Fewer places than `context` only in a text that is too short for two windows.
        places = min(self.context, len(self.train) - self._windows * self.context)
        offset, order = _epoch_draws(self._windows, places, seed, epoch)
        chosen = order[rows][part].to(self.train.device)
        return _inputs_and_targets(self._cut(self.train[offset:])[chosen])

    def val_steps(self, batch_size: int) -> int:
        """Return how many batches the validation windows fill; the last one may be smaller."""
        return -(-len(self._cut(self.val)) // batch_size)

    def val_batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return one batch of validation windows.

        Args:
            index: Number of the batch, from 0, in the order of the text.
            batch_size: Number of windows; the last batch may have fewer.

        Returns:
            Inputs and targets, both ``(B, context)``, int64.
        """
        return _inputs_and_targets(self._cut(self.val)[index * batch_size : (index + 1) * batch_size])

    def to(self, device: torch.device | str) -> Self:
        """Return the same text on another device."""
        return replace(self, train=self.train.to(device), val=self.val.to(device))

    @property
    def _windows(self) -> int:
        # As many as fit wherever an epoch starts, so that all epochs are of a length.
        return max(1, (len(self.train) - self.context) // self.context)

    def _cut(self, text: Tensor) -> Tensor:
        """View a text as windows back to back, each with the byte after it: ``(windows, context + 1)``."""
        return text.unfold(0, self.context + 1, self.context)


def _inputs_and_targets(windows: Tensor) -> tuple[Tensor, Tensor]:
    windows = windows.long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


@lru_cache(maxsize=4)
def _epoch_draws(windows: int, places: int, seed: int, epoch: int) -> tuple[int, Tensor]:
    """Draw where an epoch's first window starts, and the order of its windows."""
    generator = epoch_generator(seed, epoch)
    offset = int(torch.randint(places, (), generator=generator))
    return offset, torch.randperm(windows, generator=generator)
