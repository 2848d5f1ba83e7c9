"""A data set in memory, whose batches are a function of seed and step alone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["TensorData"]

_SEED_STRIDE = 1_000_003  # a prime far above any number of epochs keeps (seed, epoch) pairs apart


@dataclass(frozen=True)
class TensorData:
    """Examples with labels, split into training and validation.

    Batch ``step`` under ``seed`` is the same in every process and whatever was drawn before, so a run that is resumed
    anywhere sees what it would have seen.

    Attributes:
        name: Name of the data set, as reports show it.
        inputs: Training inputs, ``(N, ...)``.
        targets: Training classes, ``(N,)``, int64.
        val_inputs: Validation inputs, ``(M, ...)``.
        val_targets: Validation classes, ``(M,)``, int64.
        classes: Number of classes.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    classes: int

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many batches cover the training set once; the last one may be smaller."""
        return -(-len(self.inputs) // batch_size)

    def batch(self, seed: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of one training step.

        Args:
            seed: Seed of the shuffling.
            step: Step since the start of training, from 0; each epoch is shuffled anew.
            batch_size: Number of examples; the last batch of an epoch may have fewer.

        Returns:
            Inputs ``(B, ...)`` and targets ``(B,)``.
        """
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        generator = torch.Generator().manual_seed(seed * _SEED_STRIDE + epoch)
        order = torch.randperm(len(self.inputs), generator=generator)
        chosen = order[position * batch_size : (position + 1) * batch_size].to(self.inputs.device)
        return self.inputs[chosen], self.targets[chosen]

    def to(self, device: torch.device | str) -> "TensorData":
        """Return the same data on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            val_inputs=self.val_inputs.to(device),
            val_targets=self.val_targets.to(device),
        )
