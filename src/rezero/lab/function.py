"""Compare arms of a model and a training loop of one's own, from Python."""

import random
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from inspect import getclosurevars, getsource
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
from rezero.lab.jobs import free_device
from rezero.lab.journal import Journal
from rezero.lab.one import Watcher, slug
from rezero.lab.own import LOGS, OwnSettings, check_own_arms
from rezero.lab.peak import peak_memory
from rezero.lab.report import write_report
from rezero.lab.script import arm as apply_arm
from rezero.lab.script import running
from rezero.lab.sinks import Tracked, Tracker, check_tracker
from rezero.lab.store import Store, Study, TrialResult
from rezero.lab.sweep import run_own
from rezero.lab.trial import Trial
from rezero.lab.verdict import compare_arms, write_verdict

__all__ = ["Answer", "compare"]

_PLAIN = (int, float, str, bytes, bool, type(None))
Arms = Sequence[str] | Mapping[str, Callable[[nn.Module], nn.Module] | None]


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
    `rezero.lab.log`. A call with the same arguments and functions goes on with what its folder holds: the same are
    functions of the same text that name the same numbers, texts, functions and classes; data is not looked at.

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
        jobs: Trials that run at once, each in a process of its own, and on a GPU of its own where there are any.
        on: ``"ray"`` or ``"slurm"`` with options, in the place of this machine, as the command line takes it.
        log_with: ``"tensorboard"``, ``"wandb"`` or ``"trackio"``: a tracker that each trial is sent to, as a run of
            its own, once it has ended.
        output: Folder of the study; by default rezero-studies/NAME-KEY.

    Returns:
        The answer.

    Raises:
        UsageError: If an argument is out of range, the folder holds something else, the tracker is not installed, or no
            arm measures anything.

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

    if isinstance(arms, str):
        arms = split_arms(arms)
    functions = dict(arms) if isinstance(arms, Mapping) else dict.fromkeys(arms)
    check_own_arms(tuple(functions), known={"original", "rezero", *(name for name, each in functions.items() if each)})
    if (
        isinstance(example, tuple | Mapping)
        and not example
        and "rezero" in {read_arm(n).formula for n, f in functions.items() if not f}
    ):
        raise UsageError("expected example=, an input of the model, by which the arm rezero converts it: got none")
    if not isinstance(tune, int):
        raise UsageError(f"tune must be the number of rates that every arm tries out, 0 for none: got {tune!r}")
    settings = OwnSettings(
        arms=tuple(functions),
        lr=1.0,
        seeds=seeds,
        tune=tune,
        tune_seeds=tune_seeds,
        metric=metric,
        script=getattr(train, "__qualname__", type(train).__name__),
        digest=_digest(build, train, *(each for each in functions.values() if each)),
        goal=goal,
    )
    question = Question(baseline=baseline, target=target, resolve=resolve)
    question.held_against(settings, "original")
    if jobs < 1:
        raise UsageError(f"jobs must be 1 or more: got {jobs}")
    if log_with is not None:
        check_tracker(log_with)
    facts = provenance(f"rezero.lab.compare in {sys.argv[0] or 'Python'}")
    study = Study(settings.script, settings, facts, f"whatever {settings.script} reads", question)
    work = partial(_run_function, build=build, train=train, arms=functions, example=example, own_device=jobs > 1)
    with Store.open(Path(output) if output else settings.folder(), study) as store:
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
    arms: Mapping[str, Callable[[nn.Module], nn.Module] | None],
    example: Any,
    own_device: bool,
) -> None:
    settings, journal = store.study.settings, Journal()
    assert isinstance(settings, OwnSettings)  # noqa: S101 - compare makes it
    journal.add({"read": "seed"})  # which is done for it

    def keep(line: Mapping[str, Any]) -> None:
        if (point := journal.add(line)) is not None:
            store.add(trial, point)
            watcher.step(point.step)
            watcher.point(point)

    store.begin(trial, start=-1)
    watcher.begin(trial, store.length() or None, 0)
    named = dict(example) if isinstance(example, Mapping) else {}
    inputs = () if named else example if isinstance(example, tuple) else (example,)
    status, note = "", ""
    try:
        with (
            free_device(store.folder, wanted=own_device) as index,
            peak_memory(torch.device("cpu" if index is None else f"cuda:{index}")),  # from here on
            running(trial.arm.split()[0], trial.lr, trial.seed, keep),
        ):
            if index is not None:
                torch.cuda.set_device(index)
            _seed(trial.seed)
            model = apply_arm(build(), *inputs, arms={name: each for name, each in arms.items() if each}, **named)
            _seed(trial.seed)
            train(model)
    except Exception as error:  # whatever the user's code raises ends the trial, not the study
        status, note = "crashed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        (store.folder / LOGS).mkdir(exist_ok=True)
        (store.folder / LOGS / f"{slug(trial)}.log").write_text(traceback.format_exc(), encoding="utf-8")
    if journal.last is not None:
        store.add(trial, journal.last)
    journal.check(trial, settings)
    store.finish(trial, status or journal.status, journal.memory, note or journal.note)
    watcher.finish(store.result(trial))


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _digest(*functions: Callable[..., Any]) -> str:
    """Return the SHA-256 of the source of functions, and of what they name: numbers, texts, functions and classes."""
    total, seen = sha256(), set[int]()
    waiting: list[Any] = [*functions]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, partial):
            waiting += [each.func, *each.args, *each.keywords, *each.keywords.values()]
        elif isinstance(each, tuple):
            waiting += each
        elif isinstance(each, _PLAIN):
            total.update(repr(each).encode())
        elif callable(each):
            total.update(_source(each))
            waiting += _named(each)
    return total.hexdigest()


def _source(function: Callable[..., Any]) -> bytes:
    """Return the text of a function, and what its code holds: two lambdas can share a line."""
    code = getattr(function, "__code__", None)
    held = () if code is None else (code.co_names, [each for each in code.co_consts if isinstance(each, _PLAIN)])
    try:
        text = getsource(function)
    except (OSError, TypeError):
        text = repr(type(function) if code is None else code.co_code)
    return f"{text}{held}".encode()


def _named(function: Callable[..., Any]) -> list[Any]:
    """List what a function of one's own refers to by name; what a package brings is left out."""
    try:
        variables = getclosurevars(function)
    except TypeError:
        return []
    values = {**variables.globals, **variables.nonlocals}
    own = getattr(function, "__module__", None)
    return [
        value
        for _, value in sorted(values.items())
        if isinstance(value, (*_PLAIN, tuple)) or (callable(value) and getattr(value, "__module__", "") == own)
    ]
