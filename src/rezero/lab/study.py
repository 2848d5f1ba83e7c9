"""What a study is, and what its trials came to."""

import math
from dataclasses import dataclass, field

from rezero.lab.design import Design, Question
from rezero.lab.settings import Settings
from rezero.lab.trial import Point, Trial

__all__ = ["Study", "TrialResult", "sound"]

LARGEST = 1e300  # beyond it a sum or a difference may be none


@dataclass(frozen=True)
class Study:
    """What a study is, apart from its results.

    Attributes:
        task: Name of the task; of a script or function of one's own its name.
        settings: Everything that decides its numbers.
        provenance: How it came about, as the report shows it: command, versions, machine, date.
        data: Name of the data; one that was given by path carries its checksum.
        question: What is asked of the results.
    """

    task: str
    settings: Design
    provenance: dict[str, str]
    data: str = ""
    question: Question = field(default_factory=Question)

    @property
    def task_settings(self) -> Settings:
        """The settings of a study of one of the lab's own tasks."""
        if not isinstance(self.settings, Settings):
            raise TypeError(f"{self.task} is no task of the lab")
        return self.settings


@dataclass(frozen=True)
class TrialResult:
    """A trial with all its points.

    Attributes:
        trial: Which one.
        status: ``finished``, ``diverged``, or, of a script, ``crashed``, ``timed out`` or ``silent``.
        points: What was measured, in the order of steps.
        memory: Bytes that its process, or its device, held at the peak; None if nobody looked.
        note: What is worth knowing of its end, in a line; empty if nothing is.
    """

    trial: Trial
    status: str
    points: tuple[Point, ...]
    memory: float | None = None
    note: str = ""

    @property
    def last(self) -> Point:
        """The last point; one of nothing for a trial that measured nothing."""
        return self.points[-1] if self.points else Point(0, 0.0, {"seconds": 0.0}, ())

    def final(self, metric: str) -> float:
        """Return the last value of a metric; nan for a trial that did not finish, whatever it had reached before."""
        if self.status != "finished":
            return math.nan
        return next((each.metrics[metric] for each in reversed(self.points) if metric in each.metrics), math.nan)


def sound(value: float | None) -> float:
    """Return a number that can be reckoned with, nan in the place of every other.

    Args:
        value: What was measured; None if it was not finite.

    Returns:
        The value, if it is finite and not beyond 1e300, from where a sum or a difference may be infinite.
    """
    return value if value is not None and abs(value) <= LARGEST else math.nan
