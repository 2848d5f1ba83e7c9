"""What the command line compares: a study from the options, run with progress, and told at its end."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from rezero.errors import UsageError
from rezero.lab import OwnSettings, Question, Store, Study, Watcher, find_task, parse_arms, sweep
from rezero.lab.arms import split_arms
from rezero.lab.cluster import Cluster, open_cluster
from rezero.lab.launch import run_script, thread_variables
from rezero.lab.own import FAILURES, check_own_arms
from rezero.lab.sinks import Tracked, Tracker
from rezero.lab.subject import subject_of
from rezero.progress import StudyProgress, print_table, print_text
from rezero.provenance import provenance
from rezero.waiting import busy

__all__ = ["Request", "ask", "ask_again", "tell"]

_OF_SCRIPTS = ("arms", "seeds", "lr", "tune", "tune_seeds", "metric")


@dataclass(frozen=True)
class Request:
    """What was asked for, apart from the task or script.

    Attributes:
        settings: Settings that were given, by name.
        question: Baseline, target and resolve, None where they were not given.
        output: The study's folder; None for one that is named by the options.
        jobs: Trials that run at once; None for one.
        on: Where they run; None for this machine.
        log_with: A tracker; None for none.
        warn: Shows a line.
    """

    settings: dict[str, Any]
    question: dict[str, Any]
    output: Path | None
    jobs: int | None
    on: str | None
    log_with: Tracker | None
    warn: Callable[[str], None]

    def compare_task(self, name: str, *, checkpoint_every: float, first: bool) -> None:
        """Run a study of one of the lab's tasks, and tell what came out.

        Args:
            name: The task.
            checkpoint_every: Seconds between two checkpoints.
            first: Whether this is the first process of its group, which keeps the records.

        Raises:
            UsageError: If the study can't be run.
        """
        task, given = find_task(name), dict(self.settings)
        if "arms" in given:
            given["arms"] = parse_arms(given["arms"], task.arms)
        settings = task.settings(given)
        key = sha256(repr(settings).encode()).hexdigest()[:8]
        folder = self.output or Path("rezero-studies") / f"{name}-{key}"
        study = ask(Study(name, settings, {**provenance(), **task.recipe}), **self.question)
        with busy(f"reading the data of {name}") if first else nullcontext():
            data = task.load(settings)
        task.check(data, settings)
        self._check_jobs(processes=settings.processes)
        study = replace(study, data=data.name)
        if not first:
            sweep.follow_study(folder, study, task, data)
            return
        with Store.open(folder, study) as store:
            run = partial(sweep.run_study, store, task, data, checkpoint_every=checkpoint_every)
            self._run(store, study.question, run)

    def compare_script(
        self, script: Path, arguments: tuple[str, ...], *, goal: str | None, time_limit: float | None, retry: bool
    ) -> None:
        """Run a study of somebody's own script, and tell what came out.

        Args:
            script: The script.
            arguments: What it is given.
            goal: Whether low or high values of the metric are good; None tells it by its name.
            time_limit: Seconds that a run may take; None for any.
            retry: Whether trials that failed are run again.

        Raises:
            UsageError: If the study can't be run.
        """
        given = dict(self.settings)
        if wrong := [name for name in given if name not in _OF_SCRIPTS]:
            option = f"--{wrong[0].replace('_', '-')}"
            if option == "--tune-over":
                raise UsageError("--tune-over is for tasks of the lab: of a script, --tune tunes the learning rate")
            raise UsageError(f"{option} is for tasks of the lab: a script has its own, give it that behind --")
        self._check_jobs()
        if not script.is_file():
            raise UsageError(f"expected a script, found no file {script}")
        arms = split_arms(given.pop("arms", "original, rezero"))
        check_own_arms(arms, tuned=bool(given.get("tune")))
        settings = OwnSettings(
            arms=arms,
            script=str(script),
            digest=sha256(script.read_bytes()).hexdigest(),
            arguments=arguments,
            goal=goal,
            time_limit=time_limit,
            **{"lr": 1.0, "seeds": 5, **given},
        )
        study = ask(
            Study(script.name, settings, provenance(script=script), f"whatever {script.name} reads"), **self.question
        )
        with Store.open(self.output or settings.folder(), study) as store:
            if retry:
                store.forget(FAILURES)
            work = partial(run_script, own_device=(self.jobs or 1) > 1, threads=thread_variables())
            self._run(store, study.question, partial(sweep.run_own, store, work))

    def _check_jobs(self, processes: int = 1) -> None:
        jobs = self.jobs
        if jobs is not None and (jobs < 1 or (jobs > 1 and processes > 1)):
            several = " for the processes of torchrun" if processes > 1 else ""
            raise UsageError(f"jobs must be {'1' if several else '1 or more'}{several}: got {jobs}")
        if self.on is not None and processes > 1:
            raise UsageError(f"on can't be joined with the processes of torchrun: got {self.on!r}")

    def _run(self, store: Store, question: Question, run: Callable[..., None]) -> None:
        store.ask(question)
        cluster: Cluster | None = None if self.on is None else open_cluster(self.on, store.folder)
        with StudyProgress(store) as progress:
            watcher: Watcher = progress
            if self.log_with is not None:
                watcher = Tracked(progress, self.log_with, store, self.warn)
            run(watcher, jobs=self.jobs or 1, cluster=cluster)
        tell(store)


def ask(
    study: Study,
    baseline: str | None,
    target: float | None,
    resolve: float | None,
    metric: str | None = None,
    goal: str | None = None,
) -> Study:
    """Ask something of a study.

    Args:
        study: The study.
        baseline: The arm that the others are held against.
        target: Value of the deciding metric, as it is shown: in percent for an accuracy of a task.
        resolve: Difference of it, likewise.
        metric: The metric that decides; None for the study's own.
        goal: Whether low or high values of it are good.

    Returns:
        The study with this question.

    Raises:
        UsageError: If a value is out of range, or the study has no such baseline.
    """
    subject = subject_of(replace(study, question=Question(metric=metric, goal=goal)))
    shown = {"target": target, "resolve": resolve}
    recorded = {name: None if value is None else subject.recorded(value) for name, value in shown.items()}
    question = Question(baseline=baseline, metric=metric, goal=goal, **recorded)
    if target is not None and not subject.may_be(target):
        raise UsageError(f"target must be in percent, from 0 to 100: got {target:g}")
    question.held_against(study.settings, subject.standard)
    return replace(study, question=question)


def ask_again(store: Store, *, metric: str | None, goal: str | None, **given: Any) -> None:
    """Ask something else of a study's numbers, and keep what was asked before as far as it still means anything.

    Args:
        store: The study's records.
        metric: The metric that decides from now on; None for the same as before.
        goal: Whether low or high values of it are good.
        **given: Baseline, target and resolve, as `ask` takes them; None for the same as before.

    Raises:
        UsageError: If a value is out of range, or the study has no such baseline or metric.
    """
    before = store.study.question
    if metric not in (None, before.metric):
        before = Question(baseline=before.baseline)  # a target is one of a metric
    if goal is not None and not isinstance(store.study.settings, OwnSettings):
        raise UsageError(f"goal is for metrics of one's own, of a task's it is known which way is good: got {goal!r}")
    asked = ask(store.study, **given, metric=metric or before.metric, goal=goal or before.goal)
    subject_of(asked).quality(store.results())  # refuses a metric that there is not
    new = {name: value for name, value in vars(asked.question).items() if value is not None}
    if (question := replace(before, **new)) != store.study.question:
        store.ask(question)


def tell(store: Store) -> None:
    """Write the report of a study, and print its table and its verdict.

    Args:
        store: The study's records.
    """
    from rezero.lab import write_report, write_verdict
    from rezero.lab.tables import summary_rows

    results = store.results()
    path = write_report(store)
    print_table(summary_rows(store, results), medians=store.study.settings.seeds > 1)
    print_text(write_verdict(store.study, results))
    print(f"report: {path}")
