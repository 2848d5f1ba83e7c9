"""What a script or function logs, joined into points."""

import math
from collections.abc import Mapping
from typing import Any

from rezero.lab.trial import Point

__all__ = ["Journal"]


class Journal:
    """The lines of one run, joined into a point a step.

    Attributes:
        last: The point of the newest step, which may still get more; None before the first line.
        memory: Bytes held at the peak so far; None if that is not known.
    """

    def __init__(self) -> None:
        self.last: Point | None = None
        self.memory: float | None = None
        self._newest: dict[str, float] = {}
        self._repeated = 0

    @property
    def status(self) -> str:
        """How a run with these lines ended, if it ended well."""
        if self.last is None:
            return "silent"
        return "finished" if all(map(math.isfinite, self._newest.values())) else "diverged"

    @property
    def note(self) -> str:
        """What is odd about the lines; empty if nothing is."""
        if self.last is None:
            return "nothing was logged: call rezero.lab.log(step, ...)"
        if not self._repeated:
            return ""
        times = "once" if self._repeated == 1 else f"{self._repeated} times"
        return f"a step was logged again, or after a later one, {times}: the last value counts"

    def add(self, line: Mapping[str, Any]) -> Point | None:
        """Take a line in.

        Args:
            line: Its step, seconds, metrics, alphas and memory; None stands for what is not finite.

        Returns:
            The point of the step before, if the line begins another one.
        """
        metrics = {name: _number(value) for name, value in line["metrics"].items()}
        alphas = tuple(_number(value) for value in line["alphas"])
        self._newest |= metrics
        if line["memory"] is not None:
            self.memory = max(self.memory or 0.0, float(line["memory"]))
        step, last = line["step"], self.last
        if last is None or step > last.step:
            self.last = Point(step, float(step), {**metrics, "seconds": line["seconds"]}, alphas)
            return last
        self._repeated += step < last.step or not metrics.keys().isdisjoint(last.metrics)
        self.last = Point(last.step, last.epoch, {**last.metrics, **metrics, "seconds": line["seconds"]}, alphas)
        return None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
