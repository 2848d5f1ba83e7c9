"""Run the trials of a study that are missing: here, in processes of their own, or along with a first process."""

from functools import partial
from pathlib import Path

from rezero.data.batches import Data
from rezero.lab.cluster import Cluster, run_on_cluster
from rezero.lab.jobs import run_jobs, work_on_task
from rezero.lab.memory import memory_named
from rezero.lab.one import Watcher, Work, check_hope, checkpoints_of, missing_trials, run_one
from rezero.lab.processes import agree, open_processes
from rezero.lab.run import run_trial
from rezero.lab.store import Store
from rezero.lab.study import Study
from rezero.lab.task import Task

__all__ = ["CHECKPOINT_SECONDS", "follow_study", "run_own", "run_study"]

CHECKPOINT_SECONDS = 30.0


def run_study(
    store: Store,
    task: Task,
    data: Data,
    watcher: Watcher,
    *,
    checkpoint_every: float = CHECKPOINT_SECONDS,
    jobs: int = 1,
    cluster: Cluster | None = None,
) -> None:
    """Run every trial that the store does not hold yet, each from its checkpoint if it has one.

    Where `torchrun` started several processes the first one calls this and the others `follow_study`.

    Args:
        store: The study's records.
        task: The study's task.
        data: The task's data.
        watcher: Is told of the progress.
        checkpoint_every: Seconds between two checkpoints of a trial.
        jobs: Trials that run at once, each in a process of its own.
        cluster: Where these processes are; None for this machine.

    Raises:
        UsageError: If a checkpoint cannot be read or written, or there is not enough memory.
    """
    settings = store.study.task_settings
    for trial in store.done():  # killed between its end and this
        checkpoints_of(store.folder, store.study, task, trial, data).clear()
    missing = missing_trials(store)
    if not missing and settings.processes == 1:
        return
    for trial in missing:
        checkpoints_of(store.folder, store.study, task, trial, data).check()
    if jobs > 1 or cluster is not None:
        _fan_out(store, partial(work_on_task, checkpoint_every=checkpoint_every), watcher, jobs, cluster)
        return
    with memory_named(settings), open_processes(settings) as accelerator:
        here = data.to(accelerator.device)
        while missing:
            for trial in missing:
                run_one(store, task, trial, here, watcher, accelerator, checkpoint_every)
            missing = missing_trials(store)
        agree(accelerator, None)


def run_own(store: Store, work: Work, watcher: Watcher, *, jobs: int = 1, cluster: Cluster | None = None) -> None:
    """Run every trial of one's own script or function that the store does not hold yet.

    Args:
        store: The study's records.
        work: Runs one trial; picklable if there are several jobs.
        watcher: Is told of the progress.
        jobs: Trials that run at once, each in a process of its own.
        cluster: Where these processes are; None for this machine.

    Raises:
        UsageError: If no arm measures anything.
    """
    if jobs > 1 or cluster is not None:
        _fan_out(store, work, watcher, jobs, cluster)
        return
    while missing := missing_trials(store):
        for trial in missing:
            work(store, trial, watcher)
            check_hope(store)


def _fan_out(store: Store, work: Work, watcher: Watcher, jobs: int, cluster: Cluster | None) -> None:
    if cluster is None:
        run_jobs(store, work, watcher, jobs=jobs)
    else:
        run_on_cluster(store, work, watcher, cluster, jobs=jobs)


def follow_study(folder: Path, study: Study, task: Task, data: Data) -> None:
    """Train along with the first process, which keeps the records and says what comes next.

    Args:
        folder: The study's folder, where the first process writes its checkpoints.
        study: The study.
        task: The study's task.
        data: The task's data.
    """
    settings = study.task_settings
    with memory_named(settings), open_processes(settings) as accelerator:
        here = data.to(accelerator.device)
        while (turn := agree(accelerator, None)) is not None:
            start, trial = turn
            checkpoints = checkpoints_of(folder, study, task, trial, data)
            points = run_trial(
                task,
                settings,
                trial,
                here,
                lambda _: None,
                accelerator=accelerator,
                checkpoints=checkpoints,
                start=start,
            )
            for _ in points:
                pass
