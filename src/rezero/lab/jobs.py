"""Several trials at once, each in a process of its own, which may die."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from rezero.data.batches import Data
from rezero.errors import UsageError
from rezero.lab.holder import LOCK
from rezero.lab.memory import memory_named
from rezero.lab.one import Silent, Watcher, Work, check_hope, missing_trials, run_one, slug
from rezero.lab.parent import end_with
from rezero.lab.processes import open_processes
from rezero.lab.settings import Settings
from rezero.lab.store import Store
from rezero.lab.tasks import find_task
from rezero.lab.trial import Trial

__all__ = ["DEATHS", "free_device", "run_jobs", "work_on_task"]

DEATHS = 10  # of the process of one trial, without a step forward between them
_EVERY = 0.5  # seconds between two looks at the store
_PATIENCE = 120.0  # seconds that a worker without a driver may take to end on a busy machine


def run_jobs(store: Store, work: Work, watcher: Watcher, *, jobs: int) -> None:
    """Run every trial that the store does not hold yet, several at once.

    Each runs in a process of a pool, which writes what it measures into the store. A process that dies takes the pool
    with it; a new one goes on with what the store shows unfinished. The processes end when this one is gone.

    Args:
        store: The study's records, open here.
        work: Runs one trial; has to be picklable.
        watcher: Is told of the progress.
        jobs: How many at once.

    Raises:
        UsageError: If a trial can't be run, or its process dies time and again.
    """
    deaths: Counter[Trial] = Counter()
    reached: dict[Trial, int] = {}
    try:
        while missing := missing_trials(store):
            try:
                with _looking(store.folder, watcher):
                    for trial in _pool(store.folder, missing, jobs, work):
                        watcher.finish(store.result(trial))
                        check_hope(store)
            except TerminatedWorkerError:
                _count_deaths(store, watcher, deaths, reached)
    finally:
        # By force: a worker that was killed while it read from the queue keeps the others from ever reading their end.
        get_reusable_executor(reuse=True, kill_workers=True).shutdown(wait=True, kill_workers=True)
    for path in store.folder.glob(f"{LOCK}-*"):  # of processes that died
        path.unlink(missing_ok=True)


def _count_deaths(store: Store, watcher: Watcher, deaths: Counter[Trial], reached: dict[Trial, int]) -> None:
    """Count the deaths of every trial that was running, anew where it had got on since the last one."""
    for trial, step in store.running().items():
        if step > reached.get(trial, -1):
            deaths[trial], reached[trial] = 0, step
        deaths[trial] += 1
        watcher.died(trial, deaths[trial])
        if deaths[trial] >= DEATHS:
            raise UsageError(
                f"the process of {trial.arm}, seed {trial.seed}, died {DEATHS} times at step {step}: is there memory "
                "for so many jobs? What is done is kept; give --jobs 1 to see what happens"
            )


def _pool(folder: Path, trials: list[Trial], jobs: int, work: Work) -> Iterator[Trial]:
    """Run trials in a pool of processes, and tell which one has ended."""
    workers = max(2, min(jobs, len(trials)))  # one would be this process, which outlives a trial that dies
    how = {"backend": "loky", "batch_size": 1, "return_as": "generator_unordered"}
    pool = Parallel(n_jobs=workers, **how, initializer=_follow, initargs=(os.getpid(),))
    with _alone_with_ctrl_c():
        ended: Iterator[Trial] = pool(delayed(_work)(folder, trial, work) for trial in trials)
    return ended


@contextmanager
def _alone_with_ctrl_c() -> Iterator[None]:
    """Let what is started meanwhile never hear of Ctrl-C, not even before it can ignore it; here it comes later."""
    resource_tracker.ensure_running()  # which would let them hear of it again, as it starts, up to Python 3.11
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _looking(folder: Path, watcher: Watcher) -> Iterator[None]:
    """Tell a watcher what the store shows, now and again, while the block runs."""
    over = threading.Event()

    def look() -> None:
        with Store.open(folder) as store:
            total = 0
            while not over.wait(_EVERY):
                steps, total = store.running(), total or store.length()
                shares = sum(min(1.0, step / total) for step in steps.values()) if total else 0.0
                watcher.several(len(steps), len(store.done()) + shares)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _work(folder: Path, trial: Trial, work: Work) -> Trial:
    """Run one trial in this process, which is the driver itself where joblib can start no other."""
    with Store.open(folder) as store, _alone(folder, trial):
        if trial not in store.done():
            work(store, trial, Silent())
    return trial


def work_on_task(store: Store, trial: Trial, watcher: Watcher, *, checkpoint_every: float) -> None:
    """Run one trial of a task, with all that it needs.

    Args:
        store: The study's records.
        trial: The trial.
        watcher: Is told of the progress.
        checkpoint_every: Seconds between two checkpoints.
    """
    settings, task = store.study.task_settings, find_task(store.study.task)
    with (
        free_device(store.folder, wanted=settings.device == "cuda") as index,
        memory_named(own := settings if index is None else replace(settings, device=f"cuda:{index}")),
        open_processes(own) as accelerator,
    ):
        data = _load(store.study.task, settings).to(accelerator.device)
        run_one(store, task, trial, data, watcher, accelerator, checkpoint_every)


@cache
def _load(task: str, settings: Settings) -> Data:
    return find_task(task).load(settings)


def _follow(driver: int) -> None:
    """End this process when the one that started it is gone, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(driver)


@contextmanager
def _alone(folder: Path, trial: Trial) -> Iterator[None]:
    """Wait for a process that still runs the same trial because nobody has told it yet that its driver is gone."""
    path = folder / f"{LOCK}-{slug(trial)}"
    with FileLock(path, timeout=_PATIENCE):
        yield
        path.unlink(missing_ok=True)


@contextmanager
def free_device(folder: Path, *, wanted: bool = True) -> Iterator[int | None]:
    """Take a CUDA device that no other trial of the study has.

    Args:
        folder: The study's folder.
        wanted: Whether any is.

    Yields:
        Its index; None if none is wanted, or there is none.
    """
    count = torch.cuda.device_count() if wanted else 0
    if not count:
        yield None
        return
    with ExitStack() as held:
        while (index := _lock_one(held, folder, count)) is None:
            time.sleep(_EVERY)
        yield index


def _lock_one(held: ExitStack, folder: Path, count: int) -> int | None:
    for index in range(count):
        with suppress(Timeout):
            held.enter_context(FileLock(folder / f"{LOCK}-cuda-{index}", timeout=0))
            return index
    return None
