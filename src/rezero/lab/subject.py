"""What a study is about: one of the lab's tasks, or somebody's own script."""

import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rezero.lab.arms import read_arm
from rezero.lab.design import Question
from rezero.lab.own import OwnSettings, choose_metric, own_quality
from rezero.lab.quality import Quality, loss_unit, show_value
from rezero.lab.settings import Settings
from rezero.lab.study import Study, TrialResult
from rezero.lab.tasks import find_task
from rezero.lab.trial import Point

__all__ = ["Subject", "chosen_by", "counted", "subject_of"]

_COLUMNS = 4  # of the metrics of a script


class Subject(ABC):
    """How a study's numbers are read and named."""

    @abstractmethod
    def quality(self, results: Sequence[TrialResult]) -> Quality | None:
        """Return the measure that decides; None while no result shows what there is."""

    @abstractmethod
    def recorded(self, shown: float) -> float:
        """Return the recorded value of the deciding metric that is given as it is shown."""

    def may_be(self, shown: float) -> bool:  # noqa: ARG002 - of what is not known, anything
        """Return whether the deciding metric can have a value, as it is shown."""
        return True

    @property
    @abstractmethod
    def standard(self) -> str:
        """Return the arm that most people would use."""

    @abstractmethod
    def columns(self, results: Sequence[TrialResult]) -> list[Quality]:
        """Return the measures that the table shows."""

    @abstractmethod
    def shown(self, result: TrialResult) -> str:
        """Return what a trial ended with, in a few words."""

    @abstractmethod
    def brief(self, point: Point) -> str:
        """Return what a point shows beside a progress bar."""

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

    @property
    @abstractmethod
    def pace(self) -> str:
        """What the time of a step includes."""


class _OfTask(Subject):
    def __init__(self, study: Study, settings: Settings) -> None:
        self._task, self._settings, self._name = find_task(study.task), settings, study.task
        self._asked = replace(settings, metric=study.question.metric or settings.metric)

    def quality(self, results: Sequence[TrialResult]) -> Quality:  # noqa: ARG002 - a task knows its own
        return self._task.decisive(self._asked)

    def recorded(self, shown: float) -> float:
        return self.quality(()).recorded(shown)

    def may_be(self, shown: float) -> bool:
        return not self.quality(()).percent or 0 <= shown <= 100

    @property
    def standard(self) -> str:
        return self._task.standard

    def columns(self, results: Sequence[TrialResult]) -> list[Quality]:
        factor, unit = loss_unit(self._task.quality)
        loss = Quality("training loss", unit, "train_loss", factor, lower_is_better=True, percent=False)
        decisive = self.quality(results)
        return [loss] if decisive.metric == "train_loss" else [loss, decisive]

    def shown(self, result: TrialResult) -> str:
        factor, unit = loss_unit(self._task.quality)
        quality, metrics = self._task.quality, result.last.metrics
        loss = f"{show_value(factor * metrics['train_loss'])} {unit}"
        reached = f"{quality.show(quality.factor * metrics[quality.metric])} {quality.unit}".rstrip()
        if result.status == "diverged":  # even where it is the other loss that left the numbers
            loss, reached = show_value(math.nan), quality.show(math.nan)
        return f"training loss {loss:>12}  {quality.name} {reached:>7}"

    def brief(self, point: Point) -> str:
        factor, unit = loss_unit(self._task.quality)
        return "loss diverged" if point.diverged else f"loss {show_value(factor * point.metrics['train_loss'])} {unit}"

    def formula(self, arm: str) -> str:
        return self._task.arms[read_arm(arm).formula]

    def described(self) -> str:
        settings = self._settings
        length = counted(settings.epochs, "epoch") if settings.epochs else counted(settings.steps or 0, "step")
        return (
            f"{self._name}: depth {settings.depth}, width {settings.width}, {length} of batches of "
            f"{settings.batch_size}, {counted(settings.seeds, 'seed')}."
        )

    def length(self, finals: Sequence[TrialResult]) -> int:
        return self._settings.steps or _longest(finals)

    @property
    def axis(self) -> str:
        return "step" if self._settings.epochs is None else "epoch"

    @property
    def pace(self) -> str:
        return "A step includes forward, backward and the optimizer"


class _OfScript(Subject):
    def __init__(self, study: Study, settings: OwnSettings) -> None:
        self._settings, self._question = settings, study.question

    def quality(self, results: Sequence[TrialResult]) -> Quality | None:
        logged = self._logged(results)
        if not logged:
            return None
        own = choose_metric(logged, self._settings.metric)
        if self._question.metric in (None, own):
            return own_quality(own, self._question.goal or self._settings.goal)
        return own_quality(choose_metric(logged, self._question.metric), self._question.goal)

    def _logged(self, results: Sequence[TrialResult]) -> set[str]:
        return {name for result in results for point in result.points for name in point.metrics} - {"seconds"}

    def recorded(self, shown: float) -> float:
        return shown

    @property
    def standard(self) -> str:
        return "original"

    def columns(self, results: Sequence[TrialResult]) -> list[Quality]:
        decisive = self.quality(results)
        if decisive is None:
            return []
        others = sorted(self._logged(results) - {decisive.metric})[: _COLUMNS - 1]
        return [decisive, *(own_quality(name, "min") for name in others)]

    def shown(self, result: TrialResult) -> str:
        names = [name for name in result.last.metrics if name != "seconds"]
        ends = "  ".join(f"{name} {show_value(result.last.metrics[name])}" for name in names[:4])
        return "  ".join(filter(None, (result.status if result.status != "finished" else "", ends, result.note)))

    def brief(self, point: Point) -> str:
        shown = [f"{name} {show_value(value)}" for name, value in point.metrics.items() if name != "seconds"]
        return "".join(shown[:1])

    def formula(self, arm: str) -> str:
        known = {"original": "the model as it is", "rezero": "x + alpha * f(x) at every residual addition"}
        return known.get(read_arm(arm).formula, "an arm of one's own")

    def described(self) -> str:
        given = f" {shlex.join(self._settings.arguments)}" if self._settings.arguments else ""
        return f"{Path(self._settings.script).name}{given}: {counted(self._settings.seeds, 'seed')}."

    def length(self, finals: Sequence[TrialResult]) -> int:
        return _longest(finals)

    @property
    def axis(self) -> str:
        return "step"

    @property
    def pace(self) -> str:
        return "A step includes all that is done from one to the next, such as data and evaluations"


def subject_of(study: Study) -> Subject:
    """Return what a study is about.

    Args:
        study: The study.

    Returns:
        How its numbers are read.
    """
    if isinstance(study.settings, OwnSettings):
        return _OfScript(study, study.settings)
    assert isinstance(study.settings, Settings)  # noqa: S101 - there are these two
    return _OfTask(study, study.settings)


def chosen_by(study: Study, results: Sequence[TrialResult]) -> Quality | None:
    """Return the measure that chose the rates, whatever is asked now; None while no result shows what there is.

    Args:
        study: The study.
        results: Its trials that ended.

    Returns:
        The measure.
    """
    return subject_of(replace(study, question=Question())).quality(results)


def _longest(finals: Sequence[TrialResult]) -> int:
    return max((result.points[-1].step for result in finals if result.points), default=0)


def counted(number: int, noun: str) -> str:
    """Write a number of things.

    Args:
        number: How many.
        noun: One of them.

    Returns:
        The text.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
