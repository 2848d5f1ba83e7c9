"""Run somebody's script as a trial, and read what it logs while it runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rezero.lab.own import OwnSettings
from rezero.lab.script import ORDER
from rezero.lab.trial import Point, Trial

__all__ = ["Launch"]

_EVERY = 0.1  # seconds between two looks at the journal
_TAIL = 2_000  # bytes of a log in which its last line is looked for


class Launch:
    """One run of a script.

    Args:
        settings: The study's settings.
        trial: Which arm, rate and seed.
        folder: The study's folder, which gets the journal and what the script prints.
        name: The trial's name for files.

    Attributes:
        status: How it ended, once it has: ``finished``, ``diverged``, ``crashed``, ``timed out`` or ``silent``.
        note: What is worth knowing about that, in a line; empty if nothing is.
    """

    def __init__(self, settings: OwnSettings, trial: Trial, folder: Path, name: str) -> None:
        self.settings, self.trial = settings, trial
        self.status, self.note = "running", ""
        self.printed = folder / "logs" / f"{name}.log"
        self._order, self._journal = (folder / "logs" / f"{name}.{ending}" for ending in ("json", "jsonl"))
        self._repeated = 0

    def points(self) -> Iterator[Point]:
        """Run the script from its beginning.

        Yields:
            What it logs: a point a step, once the step is over.
        """
        self.printed.parent.mkdir(exist_ok=True)
        self._journal.unlink(missing_ok=True)
        order = {
            "arm": self.trial.arm,
            "lr": self.trial.lr,
            "seed": self.trial.seed,
            "journal": str(self._journal.absolute()),
        }
        self._order.write_text(json.dumps(order), encoding="utf-8")
        command = [sys.executable, self.settings.script, *self.settings.arguments]
        limit = math.inf if self.settings.time_limit is None else self.settings.time_limit
        last: Point | None = None
        with self.printed.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - the user's own script
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, ORDER: str(self._order.absolute())},
                start_new_session=True,
            )
            began = time.monotonic()
            try:
                for line in self._lines(process, began + limit):
                    last, done = self._join(last, line)
                    if done is not None:
                        yield done
                if last is not None:
                    yield last
            finally:
                _kill(process)
        self._judge(process.returncode, last, limit <= time.monotonic() - began)
        self._order.unlink()
        self._journal.unlink(missing_ok=True)

    def _lines(self, process: "subprocess.Popen[bytes]", deadline: float) -> Iterator[dict[str, Any]]:
        """Follow the journal until the script has ended or its time is over."""
        read = 0
        while True:
            over = process.poll() is not None
            text = self._journal.read_bytes()[read:] if self._journal.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            read += len(whole)
            yield from map(json.loads, whole.splitlines())
            if over or time.monotonic() > deadline:
                return
            time.sleep(_EVERY)

    def _join(self, last: Point | None, line: dict[str, Any]) -> tuple[Point, Point | None]:
        """Add a line to the point of its step; return that, and the point before if it is over."""
        metrics = {name: math.nan if value is None else value for name, value in line["metrics"].items()}
        point = Point(line["step"], float(line["step"]), {**metrics, "seconds": line["seconds"]}, tuple(line["alphas"]))
        if last is None or point.step > last.step:
            return point, last
        self._repeated += point.step < last.step or bool(metrics.keys() & last.metrics.keys())
        return Point(last.step, last.epoch, {**last.metrics, **point.metrics}, point.alphas or last.alphas), None

    def _judge(self, code: int, last: Point | None, late: bool) -> None:
        if late and code == -signal.SIGKILL:
            self.status, self.note = "timed out", f"it was ended after {self.settings.time_limit:g} seconds"
        elif code != 0:
            self.status, self.note = "crashed", f"exit code {code}: {self._last_line()}"
        elif last is None:
            self.status, self.note = "silent", "it logged nothing: call rezero.lab.log(step, ...)"
        else:
            finite = all(math.isfinite(value) for value in last.metrics.values())
            self.status = "finished" if finite else "diverged"
            if self._repeated:
                self.note = f"{self._repeated} steps were logged twice, and the last value counts"

    def _last_line(self) -> str:
        lines = self.printed.read_bytes()[-_TAIL:].decode("utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a script and all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
