"""Run the trials of a study that are missing."""

from pathlib import Path
from typing import Protocol

from rezero.data.batches import Data
from rezero.lab.checkpoint import Checkpoints
from rezero.lab.memory import memory_named
from rezero.lab.processes import agree, open_processes
from rezero.lab.settings import Settings, total_steps
from rezero.lab.store import Store, Study
from rezero.lab.task import Task
from rezero.lab.trial import Point, Trial, owner, run_trial

__all__ = ["CHECKPOINT_SECONDS", "Watcher", "follow_study", "plan", "run_study"]

CHECKPOINT_SECONDS = 30.0


class Watcher(Protocol):
    """Is told how a study goes; the command line shows it as progress bars."""

    def begin(self, trial: Trial, total_steps: int, start: int) -> None:
        """Note that a trial starts, at step ``start`` if it goes on from a checkpoint."""

    def step(self, step: int) -> None:
        """Note that the trial has done ``step`` steps."""

    def point(self, point: Point) -> None:
        """Note a measurement of the trial."""

    def finish(self, trial: Trial, point: Point) -> None:
        """Note that a trial has ended, with its last measurement."""


def plan(settings: Settings) -> list[Trial]:
    """List the trials of a study: seed by seed, so that a study that is stopped early can still be compared.

    Args:
        settings: The study's settings.

    Returns:
        One trial for each arm and seed.
    """
    return [Trial(arm, settings.lr, seed) for seed in range(settings.seeds) for arm in settings.arms]


def run_study(
    store: Store, task: Task, data: Data, watcher: Watcher, *, checkpoint_every: float = CHECKPOINT_SECONDS
) -> None:
    """Run every trial that the store does not hold yet, each from its checkpoint if it has one.

    Where `torchrun` started several processes the first one calls this and the others `follow_study`.

    Args:
        store: The study's records.
        task: The study's task.
        data: The task's data.
        watcher: Is told of the progress.
        checkpoint_every: Seconds between two checkpoints of a trial.

    Raises:
        UsageError: If a checkpoint cannot be read or written, or there is not enough memory.
    """
    settings = store.study.settings
    done = store.done()
    missing = [trial for trial in plan(settings) if trial not in done]
    for trial in done:  # killed between its end and this
        _checkpoints(store.folder, store.study, task, trial, data).clear()
    if not missing and settings.processes == 1:
        return
    for trial in missing:
        _checkpoints(store.folder, store.study, task, trial, data).check()
    with memory_named(settings), open_processes(settings) as accelerator:
        here = data.to(accelerator.device)
        for trial in missing:
            checkpoints = _checkpoints(store.folder, store.study, task, trial, data)
            start, _ = agree(accelerator, (checkpoints.latest(), trial))
            points = run_trial(
                task,
                settings,
                trial,
                here,
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
            store.finish(trial, "diverged" if point.diverged else "finished")
            checkpoints.clear()
            watcher.finish(trial, point)
        agree(accelerator, None)


def follow_study(folder: Path, study: Study, task: Task, data: Data) -> None:
    """Train along with the first process, which keeps the records and says what comes next.

    Args:
        folder: The study's folder, where the first process writes its checkpoints.
        study: The study.
        task: The study's task.
        data: The task's data.
    """
    with memory_named(study.settings), open_processes(study.settings) as accelerator:
        here = data.to(accelerator.device)
        while (turn := agree(accelerator, None)) is not None:
            start, trial = turn
            checkpoints = _checkpoints(folder, study, task, trial, data)
            points = run_trial(
                task,
                study.settings,
                trial,
                here,
                lambda _: None,
                accelerator=accelerator,
                checkpoints=checkpoints,
                start=start,
            )
            for _ in points:
                pass


def _checkpoints(folder: Path, study: Study, task: Task, trial: Trial, data: Data) -> Checkpoints:
    name = f"{trial.arm}-lr{trial.lr!r}-seed{trial.seed}"
    return Checkpoints(folder / "checkpoints" / name, owner(task, study.settings, trial, data))
