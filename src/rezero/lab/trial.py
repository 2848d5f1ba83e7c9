"""A trial: one arm, its settings and a seed; and what is measured on the way."""

import math
from dataclasses import dataclass, replace
from typing import Any

from rezero.lab.arms import read_arm
from rezero.lab.settings import Settings

__all__ = ["TUNING_SEEDS", "Point", "Trial", "settings_of"]

TUNING_SEEDS = 1_000_000  # seeds from here on serve the choice of rates and no comparison


@dataclass(frozen=True, order=True)
class Trial:
    """What tells one run of a study from another.

    Attributes:
        arm: Residual formula, and what else the arm has of its own.
        lr: Learning rate.
        seed: Seed of the initial weights and of the order of the data, shared by all arms.
        tuned: Further settings that were chosen for this trial, name and value.
    """

    arm: str
    lr: float
    seed: int
    tuned: tuple[tuple[str, float], ...] = ()

    @property
    def tuning(self) -> bool:
        """Whether this trial serves the choice of rates, on a seed that no comparison uses."""
        return self.seed >= TUNING_SEEDS


@dataclass(frozen=True)
class Point:
    """What was measured at one moment of a trial.

    Attributes:
        step: Optimizer steps done.
        epoch: The same in passes over the training set.
        metrics: ``train_loss`` (nats, mean over the steps since the last point), ``val_loss`` (nats), ``val_accuracy``
            (fraction) and ``seconds`` (spent in training steps since the start).
        alphas: Mean scale of every gate, in the order of depth; empty for an arm without gates.
        sample: A text that shows what the trained model does, at the end of a task that has one.
    """

    step: int
    epoch: float
    metrics: dict[str, float]
    alphas: tuple[float, ...]
    sample: str | None = None

    @property
    def diverged(self) -> bool:
        """Whether a loss has left the finite numbers."""
        return not (math.isfinite(self.metrics["train_loss"]) and math.isfinite(self.metrics["val_loss"]))


def settings_of(settings: Settings, trial: Trial) -> Settings:
    """Return the settings that a trial runs with.

    Args:
        settings: The study's settings.
        trial: One of its trials.

    Returns:
        The settings, with what the arm has of its own and what was chosen for the trial.
    """
    own: dict[str, Any] = {**read_arm(trial.arm).own, **dict(trial.tuned), "lr": trial.lr}
    if "warmup" in own:
        own["warmup"] = int(own["warmup"])
    return replace(settings, **own)
