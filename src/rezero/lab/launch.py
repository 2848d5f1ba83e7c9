"""Run somebody's script as a trial, and read what it logs while it runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from rezero.errors import UsageError
from rezero.lab.arms import read_arm
from rezero.lab.jobs import free_device
from rezero.lab.journal import Journal
from rezero.lab.one import Watcher, slug
from rezero.lab.own import LOGS, OwnSettings
from rezero.lab.script import ORDER
from rezero.lab.store import Store
from rezero.lab.subject import counted
from rezero.lab.trial import Point, Trial

__all__ = ["check_unchanged", "run_script", "thread_variables"]

_EVERY = 0.1  # seconds between two looks at the journal
_THREADS = (  # which joblib sets in its processes
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_TAIL = 4_000  # bytes of what was printed in which its last line is looked for


def run_script(
    store: Store,
    trial: Trial,
    watcher: Watcher,
    *,
    own_device: bool = False,
    threads: Mapping[str, str | None] | None = None,
) -> None:
    """Run a study's script from its beginning as one of its trials, and keep what it logs.

    Whatever the script does, the trial ends: as finished, diverged, crashed, timed out, or silent if it logs nothing.

    Args:
        store: The study's records.
        trial: The trial.
        watcher: Is told of the progress.
        own_device: Whether the script may only see one CUDA device, which no other trial of the study has.
        threads: Variables about threads as the command had them, in the place of those of a process of several jobs.

    Raises:
        UsageError: If the script has changed since the study began, or what it did is no trial (see `Journal.check`).
    """
    settings = store.study.settings
    assert isinstance(settings, OwnSettings)  # noqa: S101 - the caller knows
    check_unchanged(settings)
    store.begin(trial, start=-1)
    watcher.begin(trial, store.length() or None, 0)
    with free_device(store.folder, wanted=own_device) as device:
        visible = {} if device is None else {"CUDA_VISIBLE_DEVICES": str(device)}
        launch = _Launch(settings, trial, store.folder, {**(threads or {}), **visible})
        with closing(launch.points()) as points:
            for point in points:
                store.add(trial, point)
                watcher.step(point.step)
                watcher.point(point)
    launch.journal.check(trial, settings)
    store.finish(trial, launch.status, launch.journal.memory, launch.note)
    watcher.finish(store.result(trial))


def thread_variables() -> dict[str, str | None]:
    """Return the variables about threads of this process, which those of several jobs have otherwise.

    Returns:
        Name to value; None for one that is not set.
    """
    return {name: os.environ.get(name) for name in _THREADS}


def check_unchanged(settings: OwnSettings) -> None:
    """Refuse a script that is not the one that the study began with.

    Args:
        settings: Those of the study.

    Raises:
        UsageError: If it has changed, or is gone.
    """
    try:
        text = Path(settings.script).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {settings.script}: {error.strerror or error}") from error
    if sha256(text).hexdigest() != settings.digest:
        raise UsageError(
            f"{settings.script} has changed since the study began: undo that to go on, or give another --output"
        )


class _Launch:
    def __init__(
        self, settings: OwnSettings, trial: Trial, folder: Path, environment: Mapping[str, str | None]
    ) -> None:
        self.settings, self.trial, self.environment = settings, trial, environment
        self.status, self.note = "running", ""
        self.journal = Journal()
        self._lost = 0
        self._folder, self._name = folder.absolute() / LOGS, slug(trial)
        self._printed = self._folder / f"{self._name}.log"
        # Named for this launch, so that a script whose lab was killed finds no order and writes into no other's lines.
        self._order, self._lines = (self._folder / f"{self._name}.{uuid4().hex}.{end}" for end in ("json", "jsonl"))

    def points(self) -> Generator[Point]:
        """Run the script; yield a point a step, once the step is over."""
        self._prepare()
        command = [sys.executable, self.settings.script, *self.settings.arguments]
        limit = self.settings.time_limit or math.inf
        with self._printed.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - the user's own script
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
            deadline = time.monotonic() + limit
            try:
                for line in self._follow(process, deadline):
                    if (done := self.journal.add(line)) is not None:
                        yield done
                late = process.poll() is None
            finally:
                _end(process)
        if self.journal.last is not None:
            yield self.journal.last
        self._judge(process.returncode, late=late)
        self._order.unlink(missing_ok=True)
        self._lines.unlink(missing_ok=True)

    def _environment(self) -> dict[str, str]:
        changed = {**os.environ, **self.environment, ORDER: str(self._order)}
        return {name: value for name, value in changed.items() if value is not None}

    def _prepare(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.glob(f"{escape(self._name)}.*.json*"):  # of runs that were killed
            path.unlink(missing_ok=True)
        order = {
            "arm": read_arm(self.trial.arm).formula,
            "lr": self.trial.lr,
            "seed": self.trial.seed,
            "journal": str(self._lines),
            "lab": os.getpid(),
        }
        self._order.write_text(json.dumps(order), encoding="utf-8")

    def _follow(self, process: "subprocess.Popen[bytes]", deadline: float) -> Iterator[dict[str, Any]]:
        """Read the journal's whole lines, and count the lost ones, until the script has ended or its time is over."""
        read = 0
        while True:
            over = process.poll() is not None or time.monotonic() > deadline
            with suppress(FileNotFoundError), self._lines.open("rb") as file:
                file.seek(read)
                text = file.read()
                whole = text if over else text[: text.rfind(b"\n") + 1]
                read += len(whole)
                lines = [_read_line(line) for line in whole.split(b"\n") if line]
                self._lost += lines.count(None)
                yield from filter(None, lines)
            if over:
                return
            time.sleep(_EVERY)

    def _judge(self, code: int, *, late: bool) -> None:
        if late:
            self.status, self.note = "timed out", f"it was ended after {self.settings.time_limit:g} seconds"
        elif code != 0:
            how = f"killed by signal {_signal_name(-code)}; its last line" if code < 0 else f"exit code {code}"
            self.status, self.note = "crashed", f"{how}: {self._last_line()}"
        else:
            lost = f"{counted(self._lost, 'line')} of what was logged {'was' if self._lost == 1 else 'were'} lost"
            self.status = self.journal.status
            self.note = "; ".join(filter(None, [self.journal.note, lost if self._lost else ""]))

    def _last_line(self) -> str:
        try:
            printed = self._printed.read_bytes()
        except OSError:
            return "its log is gone"
        lines = map(_plain, printed[-_TAIL:].decode("utf-8", errors="replace").split("\n"))
        return next(filter(None, reversed([*lines])), "it printed nothing")


def _read_line(line: bytes) -> dict[str, Any] | None:
    """Return what a line of the journal says; None if a full disk has cut it off or joined it to another one."""
    with suppress(ValueError):
        if isinstance(read := json.loads(line), dict):
            return read
    return None


def _signal_name(number: int) -> str:
    """Return a signal's name, or the number of one that has none, such as most real-time signals."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


def _plain(line: str) -> str:
    """Return a line without what controls a terminal."""
    spaced = " ".join(line.split())  # also where a tab was
    return "".join(letter for letter in spaced if unicodedata.category(letter) != "Cc")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a script that still runs, and all that it has started; what it leaves at its own end may have work to do."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
