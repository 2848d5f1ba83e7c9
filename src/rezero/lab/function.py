"""Compare arms of a model and a training loop of one's own, from Python."""

import os
import random
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rezero.errors import UsageError
from rezero.lab.arms import read_arm, split_arms
from rezero.lab.cluster import open_cluster
from rezero.lab.comparison import Comparison
from rezero.lab.design import Question
from rezero.lab.digest import digest
from rezero.lab.jobs import free_device
from rezero.lab.journal import Journal
from rezero.lab.one import Watcher, slug
from rezero.lab.own import LOGS, OwnSettings, check_own_arms
from rezero.lab.peak import peak_memory
from rezero.lab.report import write_report
from rezero.lab.script import arm as apply_arm
from rezero.lab.script import running
from rezero.lab.sinks import Tracked, Tracker, check_tracker
from rezero.lab.store import Store
from rezero.lab.study import Study, TrialResult
from rezero.lab.sweep import run_own
from rezero.lab.trial import Point, Trial
from rezero.lab.verdict import compare_arms, write_verdict

__all__ = ["Answer", "compare"]

Change = Callable[[nn.Module], nn.Module]
Arms = Sequence[str] | Mapping[str, Change | None]
_GLOBALS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(
        (partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name))
        for name in ("deterministic", "benchmark")
    ),
)
"""What of torch holds for a whole process: how it is read, and how it is set."""


@dataclass(frozen=True)
class Answer:
    """What a comparison came to.

    Attributes:
        verdict: In plain words.
        comparisons: Every arm against the baseline, with intervals.
        results: All trials, those of the tuning among them.
        report: The report, a page of HTML; the study lies in its folder.
    """

    verdict: str
    comparisons: tuple[Comparison, ...]
    results: tuple[TrialResult, ...]
    report: Path

    def __str__(self) -> str:
        """Return the verdict."""
        return self.verdict


def compare(
    *,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], object],
    arms: Arms = ("original", "rezero"),
    example: Any = (),
    seeds: int = 5,
    tune: int = 0,
    tune_seeds: int = 1,
    metric: str | None = None,
    goal: str | None = None,
    baseline: str | None = None,
    target: float | None = None,
    resolve: float | None = None,
    jobs: int = 1,
    on: str | None = None,
    log_with: Tracker | None = None,
    output: Path | str | None = None,
) -> Answer:
    """Compare arms of a model on paired seeds, each at its own best learning rate if it is tuned.

    For each trial the random numbers of Python, NumPy and torch are seeded, ``build`` is called, the arm is applied,
    they are seeded again, and ``train`` is called with the model. It reads `rezero.lab.lr` and logs with
    `rezero.lab.log`.

    A call with the same arguments and functions goes on with what its folder holds. The same are functions that have
    the same text and reach the same by name, in code of one's own, also in other modules: functions and classes of the
    same text; numbers, texts, and tuples, lists, dicts and sets of up to 10,000 of them, also as defaults, as
    attributes of classes, of objects of one's own and of what is called; of packages the same functions and classes.
    What counts is how they are when this is called: a list that ``train`` appends to makes the next call another study.
    Tensors, arrays, larger collections and other objects of packages are data, which is not looked at, nor are modules
    that a function imports when it runs.

    Each trial begins with torch's number of threads, default dtype and device, gradient mode and deterministic flags
    as they are here, whatever ``jobs`` is and other trials have set. What else a function changes outside of its trial
    stays as it leaves it: lists of one's own, the environment, the working folder.

    Args:
        build: Makes the model.
        train: Trains and measures it.
        arms: ``original``, the model as it is, and ``rezero``, the model converted; or name to function of the model
            that returns a model, None for these two.
        example: Example input for the conversion: a tensor, a tuple of the model's arguments, or a dict of them.
        seeds: Paired seeds, from 0.
        tune: Learning rates that every arm tries out, as multiples of the rate given to `rezero.lab.lr`; 0 for none.
        tune_seeds: Seeds that each of them is tried on.
        metric: The metric that decides; by default val_accuracy, val_loss and the like, whichever is logged.
        goal: ``min`` or ``max``; by default told by the metric's name.
        baseline: The arm that the others are held against; by default ``original``, or the first.
        target: Value of the metric that speed is measured by; by default the worst final value of the two arms.
        resolve: Difference that you want to be able to see: how many seeds would it take?
        jobs: Trials that run at once, each in a process of its own, and on a GPU of its own where there are any. Each
            takes as many threads as torch has here: give it fewer with ``torch.set_num_threads`` before.
        on: ``"ray"`` or ``"slurm"`` with options, in the place of this machine, as the command line takes it.
        log_with: ``"tensorboard"``, ``"wandb"`` or ``"trackio"``: a tracker that each trial is sent to, as a run of
            its own, once it has ended.
        output: Folder of the study; by default rezero-studies/NAME-KEY.

    Returns:
        The answer.

    Raises:
        UsageError: If an argument is of another kind or out of range, the folder holds something else, the tracker is
            not installed, or no arm measures anything.

    Example:
        >>> def build():
        ...     return nn.Linear(4, 1)
        >>> def train(model):
        ...     x = torch.randn(64, 4)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=lab.lr(0.1))
        ...     for step in range(1, 21):
        ...         loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         lab.log(step, train_loss=loss)
        >>> arms = {"original": None, "zeros": lambda model: nn.init.zeros_(model.weight) is None or model}
        >>> from rezero import lab
        >>> from tempfile import mkdtemp
        >>> print(lab.compare(build=build, train=train, arms=arms, seeds=2, output=mkdtemp()))  # doctest: +ELLIPSIS
        train: 2 seeds. Every arm ran at the learning rate of train: not tuned...
    """
    from rezero.progress import StudyProgress
    from rezero.provenance import provenance

    functions = _read_arms(arms)
    if (
        isinstance(example, tuple | Mapping)
        and not example
        and "rezero" in {read_arm(n).formula for n, f in functions.items() if not f}
    ):
        raise UsageError("expected example=, an input of the model, by which the arm rezero converts it: got none")
    for name, function in (("build", build), ("train", train)):
        if not callable(function):
            raise UsageError(f"{name} must be a function: got {function!r}")
    for name, text in (("metric", metric), ("goal", goal), ("baseline", baseline), ("on", on), ("log_with", log_with)):
        if text is not None and not (isinstance(text, str) and text):
            raise UsageError(f"{name} must be a text: got {text!r}")
    if output is not None and not (isinstance(output, str | os.PathLike) and os.fspath(output)):
        raise UsageError(f"output must be the path of a folder: got {output!r}")
    settings = OwnSettings(
        arms=tuple(functions),
        lr=1.0,
        seeds=_whole(seeds, "seeds must be a whole number, 1 or more"),
        tune=_whole(tune, "tune must be the number of rates that every arm tries out, 0 for none"),
        tune_seeds=_whole(tune_seeds, "tune_seeds must be a whole number, 1 or more"),
        metric=metric,
        script=getattr(train, "__qualname__", type(train).__name__),
        digest=digest(build, train, *filter(None, functions.values())),
        goal=goal,
    )
    question = Question(baseline=baseline, target=_real("target", target), resolve=_real("resolve", resolve))
    question.held_against(settings, "original")
    jobs = _whole(jobs, "jobs must be a whole number, 1 or more")
    if jobs < 1:
        raise UsageError(f"jobs must be a whole number, 1 or more: got {jobs}")
    if log_with is not None:
        check_tracker(log_with)
    facts = provenance(f"rezero.lab.compare in {sys.argv[0] or 'Python'}")
    study = Study(settings.script, settings, facts, f"whatever {settings.script} reads", question)
    work = partial(
        _run_function,
        build=build,
        train=train,
        arms={read_arm(name).formula: each for name, each in functions.items() if each},
        example=example,
        own_device=jobs > 1,
        state=_read_globals(),
    )
    folder = (Path(output) if output else settings.folder()).absolute()  # wherever a trial goes
    with Store.open(folder, study) as store:
        store.ask(question)
        cluster = None if on is None else open_cluster(on, store.folder)
        with StudyProgress(store) as progress:
            watcher: Watcher = progress
            if log_with is not None:
                watcher = Tracked(progress, log_with, store, partial(warnings.warn, stacklevel=2))
            run_own(store, work, watcher, jobs=jobs, cluster=cluster)
        results = store.results()
        page = write_report(store)
        told = write_verdict(store.study, results), tuple(compare_arms(store.study, results))
        return Answer(*told, tuple(results), page)


def _run_function(
    store: Store,
    trial: Trial,
    watcher: Watcher,
    *,
    build: Callable[[], nn.Module],
    train: Callable[[nn.Module], object],
    arms: Mapping[str, Change],
    example: Any,
    own_device: bool,
    state: Sequence[Any],
) -> None:
    settings, journal = store.study.settings, Journal()
    assert isinstance(settings, OwnSettings)  # noqa: S101 - compare makes it
    journal.add({"read": "seed"})  # which is done for it
    points = _Points(store, trial, watcher, journal)
    store.begin(trial, start=-1)
    watcher.begin(trial, store.length() or None, 0)
    named = dict(example) if isinstance(example, Mapping) else {}
    inputs = () if named else example if isinstance(example, tuple) else (example,)
    status, note = "", ""
    try:
        with (
            free_device(store.folder, wanted=own_device) as device,
            peak_memory(torch.device("cpu" if device is None else f"cuda:{device}")),  # from here on
            _globals(state),
            running(read_arm(trial.arm).formula, trial.lr, trial.seed, points.take),
        ):
            if device is not None:
                torch.cuda.set_device(device)
                if torch.get_default_device().type == "cuda":
                    torch.set_default_device("cuda")  # which is this one
            _seed(trial.seed)
            model = apply_arm(build(), *inputs, arms=arms, **named)
            _seed(trial.seed)
            train(model)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's code raises ends the trial, not the study
        status, note = "crashed", _told(error)
        (store.folder / LOGS).mkdir(exist_ok=True)
        log = store.folder / LOGS / f"{slug(trial)}.log"
        log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
    points.keep()
    if journal.last is not None:
        store.add(trial, journal.last)
    journal.check(trial, settings)
    store.finish(trial, status or journal.status, journal.memory, note or journal.note)
    watcher.finish(store.result(trial))


class _Points:
    """The points of a trial on their way into the store, which takes them only from where it was opened."""

    def __init__(self, store: Store, trial: Trial, watcher: Watcher, journal: Journal) -> None:
        self._store, self._trial, self._watcher, self._journal = store, trial, watcher, journal
        self._home = os.getpid(), threading.get_ident()
        self._lock = threading.Lock()
        self._waiting: deque[Point] = deque()

    def take(self, line: Mapping[str, Any]) -> None:
        """Take a line of whichever thread; a process that the training forked is no part of the trial."""
        process, thread = self._home
        if os.getpid() != process:
            return
        with self._lock:
            if (point := self._journal.add(line)) is not None:
                self._waiting.append(point)
        if threading.get_ident() == thread:
            with suppress(UsageError):  # of a full disk the end of the trial tells
                self.keep()

    def keep(self) -> None:
        """Write what waits."""
        while self._waiting:
            point = self._waiting[0]
            self._store.add(self._trial, point)
            self._waiting.popleft()
            self._watcher.step(point.step)
            self._watcher.point(point)


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _told(error: BaseException) -> str:
    """Return what is noted of an error, whatever its text is."""
    try:
        text = "0" if isinstance(error, SystemExit) and error.code is None else str(error)
    except Exception:  # of the user's code
        text = "an error without a text"
    return " ".join(f"{type(error).__name__}: {text}".split())


def _read_globals() -> list[Any]:
    return [read() for read, _ in _GLOBALS]


def _set_globals(state: Sequence[Any]) -> None:
    for (read, put), value in zip(_GLOBALS, state, strict=True):
        if read() != value:
            put(value)


@contextmanager
def _globals(state: Sequence[Any]) -> Iterator[None]:
    """Let torch be in a state within the block."""
    before = _read_globals()
    _set_globals(state)
    try:
        yield
    finally:
        _set_globals(before)


def _read_arms(arms: Arms) -> dict[str, Change | None]:
    """Return the function of each arm, None for those that every model has."""
    if isinstance(arms, str):
        arms = split_arms(arms)
    if not isinstance(arms, Iterable):
        raise UsageError(f"arms must be names, or names and their functions: got {arms!r}")
    names = list(arms)
    for name in names:
        if not isinstance(name, str) or not name or name != " ".join(name.split()):
            raise UsageError(f"an arm must be a name, with single spaces between its words: got {name!r}")
        if names.count(name) > 1:
            raise UsageError(f"arms must be different: got {name!r} {names.count(name)} times")
    functions = dict(arms) if isinstance(arms, Mapping) else dict.fromkeys(names)
    formulas: dict[str, str] = {}
    for name, each in functions.items():
        if each is not None and not callable(each):
            raise UsageError(f"the arm {name} must be a function of the model, or None: got {each!r}")
        first = formulas.setdefault(read_arm(name).formula, name)
        if functions[first] is not each:
            raise UsageError(f"the arm {name} must be the function of {first}: got another")
    check_own_arms(names, known={"original", "rezero", *(read_arm(n).formula for n, f in functions.items() if f)})
    return functions


def _whole(value: Any, must: str) -> int:
    """Return a whole number, of whichever type, or refuse what is none."""
    if not isinstance(value, bool):
        with suppress(TypeError):
            return index(value)
    raise UsageError(f"{must}: got {value!r}")


def _real(name: str, value: Any) -> float | None:
    """Return a number, of whichever type, or refuse what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} must be a finite number: got {value!r}")
    return float(value)
