"""One trial of a study: what is missing, its checkpoint, its run."""

import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator

from rezero.data.batches import Data
from rezero.errors import UsageError
from rezero.lab.arms import OWN, read_arm
from rezero.lab.checkpoint import Checkpoints
from rezero.lab.costs import costs_of
from rezero.lab.own import LOGS
from rezero.lab.peak import peak_memory
from rezero.lab.processes import agree
from rezero.lab.run import owner, run_trial
from rezero.lab.settings import total_steps
from rezero.lab.store import Store
from rezero.lab.study import Study, TrialResult
from rezero.lab.task import Task
from rezero.lab.trial import Point, Trial
from rezero.lab.tune import plan

__all__ = ["Silent", "Watcher", "Work", "check_hope", "checkpoints_of", "missing_trials", "run_one", "slug"]


class Watcher(Protocol):
    """Is told how a study goes; the command line shows it as progress bars."""

    def begin(self, trial: Trial, total_steps: int | None, start: int) -> None:
        """Note that a trial starts, at step ``start`` if it goes on from a checkpoint; of so many steps, if known."""

    def step(self, step: int) -> None:
        """Note that the trial has done ``step`` steps."""

    def point(self, point: Point) -> None:
        """Note a measurement of the trial."""

    def finish(self, result: TrialResult) -> None:
        """Note that a trial has ended."""

    def several(self, running: int, done: float) -> None:
        """Note how many trials run at once, and how much is done, in whole trials."""

    def died(self, trial: Trial, times: int) -> None:
        """Note that the process of a trial has died, for the how manieth time since it got on, and is begun again."""


class Silent:
    """A watcher that tells nobody, where the driver looks into the store or trials are too short for bars."""

    def begin(self, trial: Trial, total_steps: int | None, start: int) -> None:
        """Do nothing."""

    def step(self, step: int) -> None:
        """Do nothing."""

    def point(self, point: Point) -> None:
        """Do nothing."""

    def finish(self, result: TrialResult) -> None:
        """Do nothing."""

    def several(self, running: int, done: float) -> None:
        """Do nothing."""

    def died(self, trial: Trial, times: int) -> None:
        """Do nothing."""


_LONG = 50  # bytes of an arm's name in that of a file, which may have 255
_TRIES = 2  # trials that say that there is no hope
Work = Callable[[Store, Trial, Watcher], None]
"""Runs one trial and keeps what it measures."""


def missing_trials(store: Store) -> list[Trial]:
    """List the trials that a study takes next, as far as its results so far tell.

    Args:
        store: The study's records.

    Returns:
        The trials, in the order in which they are run; none if the study is complete.
    """
    known = costs_of(store.study, store.results())
    return [trial for trial in plan(store.study.settings, known) if trial not in known]


def check_hope(store: Store) -> None:
    """Stop a study of which every arm has been tried, two trials at least, and none has measured anything.

    Args:
        store: The study's records.

    Raises:
        UsageError: If that is so.
    """
    if store.has_measured():
        return
    results, arms = store.results(), {*store.study.settings.arms}
    if {result.trial.arm for result in results} < arms or len(results) < _TRIES:
        return
    ends = "; ".join(f"{each.trial.arm} {each.status} ({each.note})" for each in results)
    store.forget()  # so that a mended script can take their place
    logs = f"; what they printed is in {store.folder / LOGS}" if (store.folder / LOGS).exists() else ""
    raise UsageError(f"no arm measured anything: {ends}{logs}. Mend that, then give the same command again")


def run_one(
    store: Store,
    task: Task,
    trial: Trial,
    data: Data,
    watcher: Watcher,
    accelerator: Accelerator,
    checkpoint_every: float,
) -> None:
    """Run one trial, from its checkpoint if it has one, and keep what is measured.

    Args:
        store: The study's records.
        task: The study's task.
        trial: The trial.
        data: The task's data, on the accelerator's device.
        watcher: Is told of the progress.
        accelerator: The processes and their device.
        checkpoint_every: Seconds between two checkpoints.
    """
    settings = store.study.task_settings
    checkpoints = checkpoints_of(store.folder, store.study, task, trial, data)
    start, _ = agree(accelerator, (checkpoints.latest(), trial))
    with peak_memory(accelerator.device) as memory:
        points = run_trial(
            task,
            settings,
            trial,
            data,
            watcher.step,
            accelerator=accelerator,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            start=start,
        )
        store.begin(trial, start)
        watcher.begin(trial, total_steps(settings, data), start)
        for point in points:
            store.add(trial, point)
            watcher.point(point)
        store.finish(trial, "diverged" if point.diverged else "finished", memory())
    checkpoints.clear()
    watcher.finish(store.result(trial))


def checkpoints_of(folder: Path, study: Study, task: Task, trial: Trial, data: Data) -> Checkpoints:
    """Return where a trial keeps its state.

    Args:
        folder: The study's folder.
        study: The study.
        task: Its task.
        trial: The trial.
        data: The task's data.

    Returns:
        The place.
    """
    return Checkpoints(folder / "checkpoints" / slug(trial), owner(task, study.task_settings, trial, data))


def slug(trial: Trial) -> str:
    """Return a trial's name for files.

    Args:
        trial: The trial.

    Returns:
        Letters, digits and few other characters.
    """
    tuned = "".join(f"-{name}{value!r}" for name, value in trial.tuned)
    name = trial.arm.encode("utf-8", "surrogatepass")  # as an argument that is not UTF-8 has
    arm = re.sub(r"[^\w.=+-]", "-", name[:_LONG].decode(errors="ignore"))
    formula = read_arm(trial.arm).formula
    alike = " " in formula or any(f"-{name}=" in formula for name in OWN)  # with another one, once spaces are dashes
    if alike or arm != trial.arm.replace(" ", "-"):  # so that no other arm has the same
        arm += f"-{sha256(name).hexdigest()[:8]}"
    return f"{arm}-lr{trial.lr!r}{tuned}-seed{trial.seed}"
