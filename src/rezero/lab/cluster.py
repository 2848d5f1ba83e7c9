"""Trials on other machines, by Ray or by Slurm: the workers send what they measured, and only the driver writes."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from rezero.errors import UsageError
from rezero.integrations.extras import needs
from rezero.lab.jobs import DEATHS
from rezero.lab.one import Silent, Watcher, Work, check_hope, missing_trials
from rezero.lab.own import LOGS
from rezero.lab.store import Store
from rezero.lab.study import Study, TrialResult
from rezero.lab.trial import Trial

__all__ = ["Cluster", "open_cluster", "run_on_cluster"]

_EVERY = 0.5  # seconds between two looks at what runs

Sent = tuple[TrialResult, dict[str, bytes]] | UsageError
"""A trial that ended, and what it printed, file name to bytes; or why it can't be run."""


class LostError(Exception):
    """The process of a trial is gone, and with it what it had measured."""

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split())[:200])


class Cluster(ABC):
    """Where trials are run."""

    @abstractmethod
    def submit(self, call: Callable[..., Sent], *args: Any) -> Any:
        """Start a call, and return what stands for it."""

    @abstractmethod
    def is_done(self, handle: Any) -> bool:
        """Say whether a call has ended, one way or the other."""

    @abstractmethod
    def result(self, handle: Any) -> Sent:
        """Return what a call that ended came to; raise `LostError` if its process died."""

    @abstractmethod
    def cancel(self, handle: Any) -> None:
        """Stop a call."""


def open_cluster(where: str, folder: Path) -> Cluster:
    """Find the machines to run on.

    Args:
        where: ``ray`` or ``slurm``, with options: ``"ray address=auto"`` takes those of ``ray.init`` and ``"slurm
            partition=gpu timeout_min=60"`` those of submitit; ``"slurm cluster=local"`` runs here, to try it out.
        folder: The study's folder, where submitit keeps its files.

    Returns:
        The cluster.

    Raises:
        UsageError: If it is neither, an option is none, or the library is not installed.
    """
    name, *words = where.split() or [""]
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UsageError(f"expected options of {name} as name=value, got {word!r} in {where!r}")
        options[key] = int(value) if value.lstrip("-").isdecimal() else value
    if name not in ("ray", "slurm"):
        raise UsageError(f"expected ray or slurm, with options, to run on: got {where!r}")
    try:
        return _Ray(options) if name == "ray" else _Slurm(options, folder)
    except ImportError as error:
        raise UsageError(str(error)) from error
    except (TypeError, ValueError, RuntimeError, ConnectionError, NameError) as error:
        raise UsageError(f"{where!r} can't be used: {' '.join(str(error).split())}") from error


def run_on_cluster(store: Store, work: Work, watcher: Watcher, cluster: Cluster, *, jobs: int) -> None:
    """Run every trial that the store does not hold yet on other machines.

    A trial runs from its beginning to its end in one process there, in a study of its own in a folder for a while, and
    is kept here when it has ended. One whose process died is begun again.

    Args:
        store: The study's records.
        work: Runs one trial; picklable.
        watcher: Is told which trials have ended, and which died.
        cluster: The machines.
        jobs: How many trials at once.

    Raises:
        UsageError: If a trial can't be run, or its process dies time and again.
    """
    deaths: Counter[Trial] = Counter()
    running: dict[Trial, Any] = {}
    try:
        missing = missing_trials(store)
        while missing:
            for trial in [each for each in missing if each not in running][: jobs - len(running)]:
                running[trial] = cluster.submit(_away, store.study, trial, work)
            watcher.several(len(running), float(len(store.done())))
            for trial in [each for each, handle in running.items() if cluster.is_done(handle)]:
                try:
                    _keep(store, cluster.result(running.pop(trial)))
                except LostError as error:
                    deaths[trial] += 1
                    watcher.died(trial, deaths[trial])
                    if deaths[trial] >= DEATHS:
                        raise UsageError(
                            f"the process of {trial.arm}, seed {trial.seed}, died {DEATHS} times: {error}; what is "
                            "done is kept"
                        ) from error
                else:
                    watcher.finish(store.result(trial))
                    check_hope(store)
                    missing = missing_trials(store)
            time.sleep(_EVERY)
    finally:
        for handle in running.values():
            cluster.cancel(handle)


def _away(study: Study, trial: Trial, work: Work) -> Sent:
    """Run a trial, away from the study's folder; return it with what it printed."""
    with TemporaryDirectory(prefix="rezero-") as folder, Store.open(Path(folder, "study"), study) as store:
        try:
            work(store, trial, Silent())
        except UsageError as error:
            return error
        printed = {path.name: path.read_bytes() for path in (store.folder / LOGS).glob("*.log")}
        return store.result(trial), printed


def _keep(store: Store, sent: Sent) -> None:
    if isinstance(sent, UsageError):
        raise sent
    result, printed = sent
    store.begin(result.trial, start=-1)
    for point in result.points:
        store.add(result.trial, point)
    if printed:
        (store.folder / LOGS).mkdir(exist_ok=True)
    for name, text in printed.items():
        (store.folder / LOGS / name).write_bytes(text)
    store.finish(result.trial, result.status, result.memory, result.note)


class _Ray(Cluster):
    """Tasks of Ray, each with a GPU where the cluster has any."""

    def __init__(self, options: dict[str, Any]) -> None:
        with needs("Ray", extra="ray"):
            import ray
        self._ray = ray
        if not ray.is_initialized():
            quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "warning"}
            ray.init(**{**quiet, **options})
        self._gpus = 1 if ray.cluster_resources().get("GPU") else 0  # type: ignore[no-untyped-call]

    def submit(self, call: Callable[..., Sent], *args: Any) -> Any:
        return self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0)(call).remote(*args)

    def is_done(self, handle: Any) -> bool:
        return bool(self._ray.wait([handle], timeout=0)[0])

    def result(self, handle: Any) -> Sent:
        errors = self._ray.exceptions
        try:
            sent: Sent = self._ray.get(handle)
        except errors.RayTaskError:  # an error of the call itself
            raise
        except errors.RayError as error:
            raise LostError(error) from error
        return sent

    def cancel(self, handle: Any) -> None:
        with suppress(self._ray.exceptions.RayError):
            self._ray.cancel(handle, force=True)


class _Slurm(Cluster):
    """Jobs of Slurm, through submitit."""

    def __init__(self, options: dict[str, Any], folder: Path) -> None:
        with needs("submitit", extra="slurm"):
            import submitit
        self._submitit = submitit
        self._executor = submitit.AutoExecutor(folder=folder.absolute() / "slurm", cluster=options.pop("cluster", None))
        self._executor.update_parameters(**{"name": "rezero", "timeout_min": 24 * 60, **options})

    def submit(self, call: Callable[..., Sent], *args: Any) -> Any:
        return self._executor.submit(call, *args)

    def is_done(self, handle: Any) -> bool:
        return bool(handle.done())

    def result(self, handle: Any) -> Sent:
        utils = self._submitit.core.utils
        try:
            sent: Sent = handle.result()
        except utils.FailedJobError:  # an error of the call itself
            raise
        except utils.UncompletedJobError as error:
            raise LostError(error) from error
        return sent

    def cancel(self, handle: Any) -> None:
        if self._executor.cluster != "local":
            handle.cancel()
            return
        with suppress(psutil.Error):  # its Ctrl-C is ignored where this command runs in the background of a shell
            controller = psutil.Process(int(handle.job_id))
            for process in (*controller.children(recursive=True), controller):
                process.kill()
