"""What a script or function says of its run: what it logs, joined into points, and what it has read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rezero.errors import UsageError
from rezero.lab.own import OwnSettings
from rezero.lab.study import sound
from rezero.lab.trial import Point, Trial

__all__ = ["UNMOVED", "UNSEEDED", "Journal"]

_STEPS = 2**63  # that a database can tell apart
UNMOVED = "no gate moved: make the optimizer after rezero.lab.arm(), of all parameters"
UNSEEDED = "rezero.lab.seed() was never read"


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
        self._beyond = False
        self._read: set[str] = set()
        self._refused = ""
        self._start: tuple[float, ...] = ()

    @property
    def status(self) -> str:
        """How a run with these lines ended, if it ended well."""
        if self._beyond:
            return "crashed"
        if self.last is None:
            return "silent"
        return "finished" if all(map(math.isfinite, self._newest.values())) else "diverged"

    @property
    def note(self) -> str:
        """What is odd about the lines; empty if nothing is."""
        if self._beyond:
            return "a step was logged that is none: expected optimizer steps, below 2**63"
        if self.last is None:
            return "nothing was logged: call rezero.lab.log(step, ...)"
        odd = []
        if self._repeated:
            times = "once" if self._repeated == 1 else f"{self._repeated} times"
            odd.append(f"a step was logged again, or after a later one, {times}: the last value counts")
        if self._start and self.last.step and self.last.alphas == self._start:
            odd.append(UNMOVED)
        if "seed" not in self._read:
            odd.append(UNSEEDED)
        return "; ".join(odd)

    def check(self, trial: Trial, settings: OwnSettings) -> None:
        """Refuse a run that can't be what the lab would take it for.

        Args:
            trial: The trial that it was.
            settings: Those of the study.

        Raises:
            UsageError: If its arm could not be applied or never was, or its rate was given and not read.
        """
        if self._refused:
            raise UsageError(
                f"the arm {trial.arm} can't be applied: {self._refused}. Mend that, or leave the arm out; "
                "what is done is kept"
            )
        if self.last is None:
            return
        if "arm" not in self._read and len(settings.arms) > 1:
            raise UsageError(
                f"{settings.script} never called rezero.lab.arm(model, ...): every arm would be the same model"
            )
        if "lr" not in self._read and (settings.tune or trial.lr != 1):
            raise UsageError(
                f"{settings.script} never read rezero.lab.lr(...): it would train at its own rate, whatever rate is "
                "tried or given; let it read its rate there, or tune nothing"
            )

    def add(self, line: Mapping[str, Any]) -> Point | None:
        """Take a line in.

        Args:
            line: Its step, seconds, metrics, alphas and memory, where None stands for what is not finite; or what was
                read, or what was refused.

        Returns:
            The point of the step before, if the line begins another one.
        """
        if "step" not in line:
            self._hear(**line)
            return None
        if line["step"] >= _STEPS:
            self._beyond = True
            return None
        metrics = {name: sound(value) for name, value in line["metrics"].items()}
        alphas = tuple(map(sound, line["alphas"]))
        self._newest |= metrics
        if line["memory"] is not None:
            self.memory = max(self.memory or 0.0, float(line["memory"]))
        step, last = line["step"], self.last
        if last is None or step > last.step:
            self.last = Point(step, float(step), {**metrics, "seconds": line["seconds"]}, alphas)
            return last
        changed = any(repr(last.metrics.get(name, value)) != repr(value) for name, value in metrics.items())
        self._repeated += step < last.step or changed
        self.last = Point(last.step, last.epoch, {**last.metrics, **metrics, "seconds": line["seconds"]}, alphas)
        return None

    def _hear(self, *, read: str = "", refused: str = "", alphas: Sequence[float | None] = ()) -> None:
        self._read.add(read)
        self._refused = refused or self._refused
        self._start = tuple(map(sound, alphas)) or self._start
