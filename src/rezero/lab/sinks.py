"""Trials in a tracker: each is sent as a run of its own once it has ended."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from importlib import import_module
from io import StringIO
from shutil import rmtree
from typing import Any, Literal

from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from rezero.errors import UsageError, near
from rezero.integrations.extras import needs
from rezero.integrations.logged import alpha_scalars
from rezero.lab.arms import read_arm
from rezero.lab.one import Watcher, slug
from rezero.lab.store import Store
from rezero.lab.study import Study, TrialResult
from rezero.lab.trial import Point, Trial

__all__ = ["Tracked", "Tracker", "check_tracker", "scalars_of"]

Tracker = Literal["tensorboard", "wandb", "trackio"]
_LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
_MAX_GATES = 32  # of a deeper model so many are sent one by one


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that cannot be used here.

    Args:
        tracker: Its name.

    Raises:
        UsageError: If there is no such tracker, or it cannot be imported.
    """
    if tracker not in _LIBRARIES:
        raise UsageError(f"log-with must be {', '.join(_LIBRARIES)}: got {tracker!r}{near(str(tracker), _LIBRARIES)}")
    try:
        with needs(tracker, extra=tracker):
            import_module(_LIBRARIES[tracker])
    except Exception as error:
        raise UsageError(f"log-with {tracker}: {error}") from error


class Tracked:
    """Passes on what a watcher is told, and sends each trial that has ended to a tracker.

    A tracker decides nothing: one that fails is given up with a warning, and the study goes on.

    Args:
        watcher: Is told everything first.
        tracker: The tracker's name.
        store: The study's records; TensorBoard's files go into its folder.
        warn: Shows a line.
    """

    def __init__(self, watcher: Watcher, tracker: Tracker, store: Store, warn: Callable[[str], None]) -> None:
        self._watcher, self._tracker, self._store, self._warn = watcher, tracker, store, warn
        self._given_up = False

    def begin(self, trial: Trial, total_steps: int | None, start: int) -> None:
        """Pass it on."""
        self._watcher.begin(trial, total_steps, start)

    def step(self, step: int) -> None:
        """Pass it on."""
        self._watcher.step(step)

    def point(self, point: Point) -> None:
        """Pass it on."""
        self._watcher.point(point)

    def several(self, running: int, done: float) -> None:
        """Pass it on."""
        self._watcher.several(running, done)

    def died(self, trial: Trial, times: int) -> None:
        """Pass it on."""
        self._watcher.died(trial, times)

    def finish(self, result: TrialResult) -> None:
        """Pass it on, and send the trial."""
        self._watcher.finish(result)
        if self._given_up:
            return
        try:
            with _accelerate(), redirect_stdout(StringIO()):  # the command's own output is the study's
                self._send(result)
        except Exception as error:  # whatever a tracker does
            self._given_up = True
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"{self._tracker} failed ({what}) and gets no more trials; the study goes on and keeps them all")

    def _send(self, result: TrialResult) -> None:
        run = self._run(result)
        try:
            run.start()
            if self._tracker == "tensorboard":
                run.store_init_configuration(_config(self._store.study, result))
            for point in result.points:
                run.log(scalars_of(point), step=point.step)
        except BaseException:
            with suppress(Exception):
                self._end(run)  # or it would take what belongs to the next one
            raise
        self._end(run)

    def _end(self, run: GeneralTracker) -> None:
        end: Callable[[], None] = run.finish
        if self._tracker == "trackio":
            end = import_module("trackio").finish  # which leaves no current run, to be ended again with the process
        end()

    def _run(self, result: TrialResult) -> GeneralTracker:
        name, folder = slug(result.trial), self._store.folder.absolute()
        if self._tracker == "tensorboard":
            rmtree(folder / "tensorboard" / name, ignore_errors=True)  # what a trial that is run again left
            run = TensorBoardTracker(name, folder / "tensorboard")
            run.main_process_only = False  # as this is the first process, and the others know of nothing
            return run
        project = re.sub(r"[^\w.-]", "-", folder.name) or "rezero"
        config = _config(self._store.study, result)
        if self._tracker == "trackio":
            quiet = {"auto_log_cpu": False, "auto_log_gpu": False, "embed": False}  # the trial has ended
            return TrackioTracker(project, name=name, group=result.trial.arm, config=config, **quiet)
        import wandb

        settings = wandb.Settings(console="off", x_disable_stats=True)  # here too
        kind = "tuning" if result.trial.tuning else "comparison"
        return WandBTracker(project, name=name, group=result.trial.arm, job_type=kind, config=config, settings=settings)


def scalars_of(point: Point) -> dict[str, float]:
    """Name what is sent of a point.

    Args:
        point: What was measured at one step.

    Returns:
        The metrics, and the gates under the names of `rezero.integrations`, numbered from 0 at the input.

    Example:
        >>> scalars_of(Point(1, 0.5, {"val_loss": 2.0}, (0.25, -0.5)))["rezero_alpha/1"]
        -0.5
    """
    alphas = {str(gate): value for gate, value in enumerate(point.alphas)}
    gates = alpha_scalars(alphas, max_gates=_MAX_GATES) if alphas else {}
    return {**point.metrics, "epoch": point.epoch, **gates}


def _config(study: Study, result: TrialResult) -> dict[str, bool | int | float | str]:
    """List the settings that the trial ran with, and what it was: only what every tracker takes."""
    trial = result.trial
    own = {**read_arm(trial.arm).own, **dict(trial.tuned)}
    trial_facts = {"arm": trial.arm, "lr": trial.lr, "seed": trial.seed, "tuning": trial.tuning}
    facts: dict[str, Any] = {
        "task": study.task,
        "data": study.data,
        **asdict(study.settings),
        **own,
        **trial_facts,
        "status": result.status,
        "note": result.note,
    }
    shown = {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in facts.items()}
    return {name: value for name, value in shown.items() if value is not None}


@contextmanager
def _accelerate() -> Iterator[None]:
    """Let Accelerate's trackers write their log, which takes a state; of a study's own processes it is theirs."""
    if PartialState._shared_state:
        yield
        return
    PartialState(cpu=True)
    try:
        yield
    finally:
        PartialState._reset_state()
