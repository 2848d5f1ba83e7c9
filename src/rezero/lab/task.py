"""Tasks: where the data come from, how a model is built from an arm, and the settings that are used unless told."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from rezero.data.batches import TensorData
from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab.arm import near
from rezero.layers import MLP
from rezero.layers.residuals import RESIDUALS

LARGEST = 1_000_000

__all__ = ["TASKS", "Settings", "Task", "find_task"]


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study's numbers; two studies with equal settings are the same study.

    Attributes:
        arms: Residual formulas that are compared, in the order of the report.
        depth: Number of residual blocks.
        width: Width of the blocks (features).
        epochs: Passes over the training set; None if ``steps`` counts.
        steps: Optimizer steps; None if ``epochs`` counts.
        batch_size: Examples a step.
        lr: Learning rate of every parameter of every arm, ``alpha`` included.
        seeds: Number of paired seeds, from 0.
        device: A torch device.
        threads: CPU threads that torch uses; a matrix product differs in its last bits between thread counts.
    """

    arms: tuple[str, ...]
    depth: int
    width: int
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    seeds: int
    device: str
    threads: int

    def __post_init__(self) -> None:
        for name in ("depth", "width", "batch_size", "seeds", "threads", "epochs", "steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST:
                bound = "1 or more" if value < 1 else f"at most {LARGEST:,}"
                raise UsageError(f"{name.replace('_', '-')} must be a whole number, {bound}: got {value}")
        if (self.epochs is None) == (self.steps is None):
            raise UsageError("give the length of training once, as epochs or as steps")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be a finite number above 0: got {self.lr}")

    def total_steps(self, data: TensorData) -> int:
        """Return the number of optimizer steps on this data set."""
        return self.steps or (self.epochs or 0) * data.steps_per_epoch(self.batch_size)


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or does not find.

    Args:
        name: A torch device such as ``cpu`` or ``cuda:0``.

    Raises:
        UsageError: If it is unknown or absent.
    """
    try:
        torch.zeros(1, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        available = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device must be one that torch finds here ({available}): got {name!r}") from error


@dataclass(frozen=True)
class Task:
    """A kind of study.

    Attributes:
        name: As on the command line.
        summary: What is trained on what, in a line.
        arms: The arms it defines, each with its formula.
        defaults: Settings that are used unless told.
        load: Loads the data.
        build: Builds the model of an arm from the data's shapes and the settings, drawing from torch's global RNG.
        optimizer: Builds the optimizer from parameter groups.
        recipe: What the settings leave unsaid, title to text; kept with a study and shown in its report.
    """

    name: str
    summary: str
    arms: Mapping[str, str]
    defaults: Settings
    load: Callable[[], TensorData]
    build: Callable[[TensorData, str, Settings], nn.Module]
    optimizer: Callable[[list[dict[str, object]]], torch.optim.Optimizer]
    recipe: Mapping[str, str]

    def settings(self, given: dict[str, Any]) -> Settings:
        """Join what a user gave to the defaults, for a study that will run on this machine.

        Args:
            given: Name of a setting to its value; ``steps`` takes the place of the default ``epochs``.

        Returns:
            Complete settings.

        Raises:
            UsageError: If a value is out of range, or this machine has not the device or the cores.
        """
        length = {"epochs": None} if "steps" in given else {}
        settings = replace(self.defaults, **{**length, **given})
        check_device(settings.device)
        if settings.threads > (cores := os.cpu_count() or 1):
            raise UsageError(f"threads must be at most the number of cores, {cores}: got {settings.threads}")
        return settings


def find_task(name: str) -> Task:
    """Look a task up.

    Args:
        name: Name of a task.

    Returns:
        The task.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in TASKS:
        raise UsageError(f"no task is called {name!r}{near(name, TASKS)}; choose from {', '.join(TASKS)}")
    return TASKS[name]


def _build_mlp(data: TensorData, arm: str, settings: Settings) -> nn.Module:
    return MLP(data.inputs.shape[1], settings.width, settings.depth, data.classes, residual=arm)


_FC_DIGITS = Task(
    name="fc-digits",
    summary="a fully connected network on 8 x 8 handwritten digits that come with scikit-learn, Adagrad",
    arms={name: formula for name, formula in RESIDUALS.items() if name != "fixup"},
    defaults=Settings(
        arms=("plain", "residual", "post-norm", "pre-norm", "rezero"),
        depth=64,
        width=64,
        epochs=10,
        steps=None,
        batch_size=128,
        lr=0.01,
        seeds=3,
        device="cpu",
        threads=1,
    ),
    load=load_digits,
    build=_build_mlp,
    optimizer=partial(torch.optim.Adagrad, foreach=True),  # the same numbers as without, in less time
    recipe={
        "optimizer": "Adagrad, no weight decay",
        "rate of alpha": "that of every other parameter, as in the authors' code",
    },
)

TASKS: dict[str, Task] = {task.name: task for task in (_FC_DIGITS,)}
"""Every task by name."""
