"""How soon a trial gets to a target."""

import math
from dataclasses import dataclass

from rezero.lab.quality import Quality
from rezero.lab.study import TrialResult

__all__ = ["Arrival", "arrival"]


@dataclass(frozen=True)
class Arrival:
    """When a trial got to a target.

    Attributes:
        step: Optimizer steps, interpolated between measurements; the length of the run if it never got there.
        seconds: Seconds of training, likewise; those of the run if it never got there.
        reached: Whether it got there.
        at_first: Whether it had got there when it was measured for the first time, so that it may have been earlier.
    """

    step: float
    seconds: float
    reached: bool
    at_first: bool = False


def arrival(result: TrialResult, quality: Quality, target: float, steps: int) -> Arrival:
    """Find when a trial got to a target for the first time.

    Args:
        result: The trial.
        quality: What is measured, and which way is up.
        target: Value of the metric, as it is recorded.
        steps: Optimizer steps of the whole run, which a trial that diverged has not done.

    Returns:
        Step and seconds. What reaches the target and diverges later has reached it.
    """
    sign = 1 if quality.lower_is_better else -1
    before: tuple[float, float, float] | None = None
    for point in result.points:
        if quality.metric not in point.metrics:
            continue  # a script measures what it likes when it likes
        value, seconds = sign * point.metrics[quality.metric], point.metrics["seconds"]
        if not math.isfinite(value):
            break
        if value <= sign * target:
            if before is None:
                return Arrival(max(1, point.step), seconds, reached=True, at_first=True)
            last, step, clock = before
            part = (last - sign * target) / (last - value)
            return Arrival(max(1.0, step + part * (point.step - step)), clock + part * (seconds - clock), reached=True)
        before = value, point.step, seconds
    pace = result.last.metrics["seconds"] / max(1, result.last.step)
    return Arrival(steps, pace * steps, reached=False)
