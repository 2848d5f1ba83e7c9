"""The design of a study: which arms are compared, on how many seeds, and what is tuned before."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rezero.errors import UsageError

__all__ = ["LARGEST", "Design", "Question", "check_count"]

LARGEST = 1_000_000
TUNED = ("lr", "alpha-lr", "weight-decay", "warmup")
WIDEST = 20  # entries of a table of values


@dataclass(frozen=True, kw_only=True)
class Design:
    """Which trials a study takes.

    Attributes:
        arms: What is compared, each with what it has of its own, in the order of the report.
        lr: Learning rate of every arm; the middle of the table of rates where they are tuned. Of a script a multiple of
            its own.
        seeds: Number of paired seeds, from 0.
        tune: Trials that every arm gets to choose its rate; 0 runs all at ``lr``.
        tune_seeds: Seeds that each of these is run on; the comparison uses others.
        tune_over: What is chosen: lr, alpha-lr, weight-decay or warmup; several, separated by commas, by a search.
        metric: The metric that decides; None for the task's own.
    """

    arms: tuple[str, ...]
    lr: float
    seeds: int
    tune: int = 0
    tune_seeds: int = 1
    tune_over: str = "lr"
    metric: str | None = None

    def __post_init__(self) -> None:
        check_count("seeds", self.seeds)
        check_count("tune-seeds", self.tune_seeds)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be a finite number above 0: got {self.lr}")
        if not {*self.tuned} <= {*TUNED} or len({*self.tuned}) < len(self.tuned):
            raise UsageError(f"tune-over must be out of {', '.join(TUNED)}, each once: got {self.tune_over!r}")
        if self.tune == 1 or not 0 <= self.tune <= LARGEST:
            raise UsageError(
                f"tune must be off, or the number of trials that every arm gets, 2 or more: got {self.tune}"
            )
        if len(self.tuned) == 1 and self.tune > WIDEST:
            raise UsageError(
                f"tune must be at most {WIDEST} values, which span {WIDEST // 2} powers of ten: got {self.tune}"
            )

    def decides(self) -> dict[str, Any]:
        """Return what tells this study from another one, name to value."""
        return asdict(self)

    @property
    def tuned(self) -> tuple[str, ...]:
        """The names of what is chosen: lr, alpha-lr, weight-decay or warmup."""
        return tuple(name.strip() for name in self.tune_over.split(","))

    def middle(self, name: str) -> float:  # noqa: ARG002 - others than the rate are a task's
        """Return the value of a setting around which what is tried out lies."""
        return self.lr


def check_count(name: str, value: int | None) -> None:
    """Refuse what is no number of things.

    Args:
        name: What is counted.
        value: How many; None, which leaves the choice, passes.

    Raises:
        UsageError: If it is below 1 or above a million.
    """
    if value is not None and not 1 <= value <= LARGEST:
        bound = "1 or more" if value < 1 else f"at most {LARGEST:,}"
        raise UsageError(f"{name} must be a whole number, {bound}: got {value}")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a study's numbers, of which it changes none: the same study can be asked something else.

    Attributes:
        baseline: The arm that the others are held against; None for the task's standard, or the first without it.
        target: Value of the deciding metric that speed is measured by, as it is recorded; None for the worst final
            value of the two arms that are compared, which both reach on every seed.
        resolve: Difference of the final metric, as it is recorded, that the reader wants to be able to see; None for
            none in particular.
        metric: The metric that decides; None for the study's own, which rates were chosen by in any case.
        goal: ``min`` or ``max``, whether low or high values of ``metric`` are good; None to tell it by its name.
    """

    baseline: str | None = None
    target: float | None = None
    resolve: float | None = None
    metric: str | None = None
    goal: str | None = None

    def __post_init__(self) -> None:
        if self.goal not in (None, "min", "max"):
            raise UsageError(f"goal must be min or max: got {self.goal!r}")
        if self.target is not None and not math.isfinite(self.target):
            raise UsageError(f"target must be a finite number: got {self.target}")
        if self.resolve is not None and not (math.isfinite(self.resolve) and self.resolve > 0):
            raise UsageError(f"resolve must be a finite number above 0: got {self.resolve}")

    def held_against(self, design: Design, standard: str = "") -> str:
        """Return the arm that the others are held against.

        Args:
            design: The study's design.
            standard: What most people would use.

        Returns:
            The arm.

        Raises:
            UsageError: If the study has no such arm.
        """
        if self.baseline is not None and self.baseline not in design.arms:
            raise UsageError(f"baseline must be an arm of the study, {', '.join(design.arms)}: got {self.baseline!r}")
        return self.baseline or (standard if standard in design.arms else design.arms[0])
