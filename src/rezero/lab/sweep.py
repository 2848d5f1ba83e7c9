"""Run the trials of a study that are missing."""

from typing import Protocol

import torch

from rezero.lab.store import Store
from rezero.lab.task import Settings, Task
from rezero.lab.trial import Point, Trial, run_trial

__all__ = ["Watcher", "plan", "run_study"]


class Watcher(Protocol):
    """Is told how a study goes; the command line shows it as progress bars."""

    def begin(self, trial: Trial, total_steps: int) -> None:
        """Note that a trial starts."""

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


def run_study(store: Store, task: Task, watcher: Watcher) -> None:
    """Run every trial that the store does not hold yet.

    Args:
        store: The study's records.
        task: The study's task.
        watcher: Is told of the progress.
    """
    settings = store.study.settings
    done = store.done()
    missing = [trial for trial in plan(settings) if trial not in done]
    if not missing:
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        data = task.load().to(settings.device)
        for trial in missing:
            store.begin(trial)
            watcher.begin(trial, settings.total_steps(data))
            for point in run_trial(task, settings, trial, data, watcher.step):
                store.add(trial, point)
                watcher.point(point)
            store.finish(trial, "diverged" if point.diverged else "finished")
            watcher.finish(trial, point)
    finally:
        torch.set_num_threads(threads)
