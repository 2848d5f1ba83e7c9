"""What a study is about: one of the lab's tasks, or somebody's own script."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence

from rezero.lab.arm import read_arm
from rezero.lab.own import OwnSettings, choose_metric, own_quality
from rezero.lab.quality import Quality, loss_unit
from rezero.lab.settings import Settings
from rezero.lab.store import Study, TrialResult
from rezero.lab.tasks import find_task

__all__ = ["Subject", "subject_of"]


class Subject(ABC):
    """How a study's numbers are read and named."""

    @abstractmethod
    def quality(self, results: Sequence[TrialResult]) -> Quality | None:
        """Return the measure that decides; None while no result shows what there is."""

    @property
    @abstractmethod
    def standard(self) -> str:
        """Return the arm that most people would use."""

    @abstractmethod
    def train_loss(self) -> tuple[float, str]:
        """Return what a recorded training loss is multiplied by, and its unit."""

    @abstractmethod
    def formula(self, arm: str) -> str:
        """Return what an arm is, for the table."""

    @abstractmethod
    def described(self) -> str:
        """Return what is trained, as the verdict begins."""

    @abstractmethod
    def length(self, finals: Sequence[TrialResult]) -> int:
        """Return the optimizer steps of a whole trial, as far as the trials that ended tell."""

    @property
    @abstractmethod
    def axis(self) -> str:
        """What curves are drawn over: ``epoch`` or ``step``."""


class _OfTask(Subject):
    def __init__(self, study: Study, settings: Settings) -> None:
        self._task, self._settings, self._name = find_task(study.task), settings, study.task

    def quality(self, results: Sequence[TrialResult]) -> Quality | None:
        return self._task.decisive(self._settings)

    @property
    def standard(self) -> str:
        return self._task.standard

    def train_loss(self) -> tuple[float, str]:
        return loss_unit(self._task.quality)

    def formula(self, arm: str) -> str:
        return self._task.arms[read_arm(arm).formula]

    def described(self) -> str:
        settings = self._settings
        length = _count(settings.epochs, "epoch") if settings.epochs else _count(settings.steps or 0, "step")
        return (
            f"{self._name}: depth {settings.depth}, width {settings.width}, {length} of batches of "
            f"{settings.batch_size}, {_count(settings.seeds, 'seed')}."
        )

    def length(self, finals: Sequence[TrialResult]) -> int:
        return self._settings.steps or _longest(finals)

    @property
    def axis(self) -> str:
        return "step" if self._settings.epochs is None else "epoch"


class _OfScript(Subject):
    def __init__(self, settings: OwnSettings) -> None:
        self._settings = settings

    def quality(self, results: Sequence[TrialResult]) -> Quality | None:
        logged = Counter(name for result in results for name in (result.points[-1].metrics if result.points else ()))
        del logged["seconds"]
        if not logged:
            return None
        return own_quality(choose_metric(logged, self._settings.metric), self._settings.goal)

    @property
    def standard(self) -> str:
        return "original"

    def train_loss(self) -> tuple[float, str]:
        return 1.0, "as logged"

    def formula(self, arm: str) -> str:
        known = {"original": "the script's own model", "rezero": "x + alpha * f(x) at every residual addition"}
        return known.get(arm, "an arm of the script's own")

    def described(self) -> str:
        return f"{self._settings.script}: {_count(self._settings.seeds, 'seed')}."

    def length(self, finals: Sequence[TrialResult]) -> int:
        return _longest(finals)

    @property
    def axis(self) -> str:
        return "step"


def subject_of(study: Study) -> Subject:
    """Return what a study is about.

    Args:
        study: The study.

    Returns:
        How its numbers are read.
    """
    if isinstance(study.settings, OwnSettings):
        return _OfScript(study.settings)
    assert isinstance(study.settings, Settings)  # noqa: S101 - there are these two
    return _OfTask(study, study.settings)


def _longest(finals: Sequence[TrialResult]) -> int:
    return max((result.points[-1].step for result in finals if result.points), default=0)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
