"""What a study asks of its data, and data sets of examples with classes, in memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = ["Data", "TensorData", "epoch_generator", "locate_batch"]

_SEED_STRIDE = 1_000_003  # a prime far above any number of epochs keeps (seed, epoch) pairs apart


class Data(Protocol):
    """Training batches that are a function of seed and step alone, and validation batches in a fixed order.

    Batch ``step`` under ``seed`` is the same in every process and whatever was drawn before, so a run that is resumed
    anywhere sees what it would have seen.
    """

    @property
    def name(self) -> str:
        """Name of the data set, as reports show it."""

    @property
    def classes(self) -> int:
        """Number of classes; 256 where the next byte is predicted."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches cover the training part once; the last one may be smaller."""

    def batch_len(self, step: int, batch_size: int) -> int:
        """Return the number of examples in the batch of a training step."""

    def batch(self, seed: int, step: int, batch_size: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one training step, or the rows of them that ``part`` selects."""

    def val_steps(self, batch_size: int) -> int:
        """Return how many batches cover the validation part; the last one may be smaller."""

    def val_batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one validation batch, from 0, in the order of the data."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same data on another device."""


@dataclass(frozen=True)
class TensorData:
    """Examples with labels, split into training and validation.

    Attributes:
        name: Name of the data set, as reports show it.
        inputs: Training inputs as they are kept, ``(N, ...)``.
        targets: Training classes, ``(N,)``, int64.
        val_inputs: Validation inputs as they are kept, ``(M, ...)``.
        val_targets: Validation classes, ``(M,)``, int64.
        classes: Number of classes.
        prepare: Makes a batch of kept inputs what a model takes, for instance uint8 pixels standardised float32.
        augment: Alters the kept inputs ``(B, ...)`` of a training batch, before ``prepare``. Its second argument has
            one random whole number in ``[0, 2**62)`` an example, ``(B,)``, drawn anew every epoch; what happens to an
            example must depend on its own number alone.

    Example:
        >>> pixels, labels = torch.arange(6).view(6, 1).byte(), torch.arange(6)
        >>> data = TensorData("six", pixels, labels, pixels[:2], labels[:2], classes=6, prepare=lambda x: x / 255)
        >>> inputs, targets = data.batch(seed=0, step=1, batch_size=4)
        >>> inputs.dtype, targets
        (torch.float32, tensor([1, 4]))
    """

    name: str
    inputs: Tensor
    targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    classes: int
    prepare: Callable[[Tensor], Tensor] | None = None
    augment: Callable[[Tensor, Tensor], Tensor] | None = None

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches cover the training set once; the last one may be smaller."""
        return -(-len(self.inputs) // batch_size)

    def batch_len(self, step: int, batch_size: int) -> int:
        """Return the number of examples in the batch of a training step."""
        _, rows = locate_batch(step, batch_size, len(self.inputs))
        return int(rows.stop - rows.start)

    def batch(self, seed: int, step: int, batch_size: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one training step.

        Args:
            seed: Seed of the shuffling and of the augmentation.
            step: Step since the start of training, from 0; each epoch is shuffled anew.
            batch_size: Number of examples; the last batch of an epoch may have fewer.
            part: Which rows of that batch to return; the others cost nothing.

        Returns:
            Inputs ``(B, ...)`` and targets ``(B,)``.
        """
        epoch, rows = locate_batch(step, batch_size, len(self.inputs))
        order, numbers = _epoch_draws(len(self.inputs), seed, epoch)
        device = self.inputs.device
        chosen = order[rows][part].to(device)
        inputs = self.inputs[chosen]
        if self.augment is not None:
            inputs = self.augment(inputs, numbers[rows][part].to(device, copy=True))  # the draws are kept
        return self._prepared(inputs), self.targets[chosen]

    def val_steps(self, batch_size: int) -> int:
        """Return how many batches cover the validation part; the last one may be smaller."""
        return -(-len(self.val_inputs) // batch_size)

    def val_batch(self, index: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return one validation batch, never augmented.

        Args:
            index: Number of the batch, from 0, in the order of the data.
            batch_size: Number of examples; the last batch may have fewer.

        Returns:
            Inputs ``(B, ...)`` and targets ``(B,)``.
        """
        rows = slice(index * batch_size, (index + 1) * batch_size)
        return self._prepared(self.val_inputs[rows]), self.val_targets[rows]

    def to(self, device: torch.device | str) -> Self:
        """Return the same data on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            val_inputs=self.val_inputs.to(device),
            val_targets=self.val_targets.to(device),
        )

    def _prepared(self, inputs: Tensor) -> Tensor:
        return inputs if self.prepare is None else self.prepare(inputs)


def locate_batch(step: int, batch_size: int, examples: int) -> tuple[int, slice]:
    """Find the batch of a training step.

    Args:
        step: Step since the start of training, from 0.
        batch_size: Number of examples a step.
        examples: Number of examples an epoch.

    Returns:
        The epoch, from 0, and which positions of its order the batch has.
    """
    epoch, position = divmod(step, -(-examples // batch_size))
    return epoch, slice(position * batch_size, min((position + 1) * batch_size, examples))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the generator that everything random in an epoch is drawn from, on the CPU whatever the data's device."""
    return torch.Generator().manual_seed(seed * _SEED_STRIDE + epoch)


@lru_cache(maxsize=4)
def _epoch_draws(examples: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw the order of an epoch, and after it one number for each of its positions."""
    generator = epoch_generator(seed, epoch)
    order = torch.randperm(examples, generator=generator)
    return order, torch.randint(2**62, (examples,), generator=generator)
