"""Studies of the lab as parts of a reproduction: declared, run, and their numbers taken home."""

import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rezero import lab
from rezero.comparing import Request
from rezero.lab import Question, Store
from rezero.lab.comparison import Comparison, compare
from rezero.lab.own import OwnSettings
from rezero.lab.spreads import by_arm, compared
from rezero.lab.study import TrialResult
from rezero.lab.subject import subject_of
from rezero.papers.reproduction import Work

__all__ = [
    "Asked",
    "Recipe",
    "arms_of",
    "compare_own",
    "one_thread",
    "run_all",
    "told",
]


@dataclass(frozen=True)
class Asked:
    """Something that is asked of a study: every arm against one.

    Attributes:
        baseline: The arm that the others are held against.
        metric: By which.
        target: Value of it, as it is recorded, that speed is measured by; None for the worst end of each two.
    """

    baseline: str
    metric: str
    target: float | None = None


@dataclass(frozen=True)
class Recipe:
    """A study of the lab, declared.

    Attributes:
        name: Among those of a reproduction.
        task: What is trained.
        settings: As ``rezero compare`` takes them, name to value; those left out are the task's own.
        asks: What is asked of its numbers.
        jobs: Trials that run at once.
        most_seeds: Paired seeds at the most, of a study that takes long; None for as many as are asked for.
    """

    name: str
    task: str
    settings: Mapping[str, Any]
    asks: tuple[Asked, ...]
    jobs: int = field(default=2, kw_only=True)
    most_seeds: int | None = field(default=None, kw_only=True)

    def seeds(self, asked: int) -> int:
        """Return the number of paired seeds.

        Args:
            asked: What is asked for.

        Returns:
            As many, or the most that there are.
        """
        return asked if self.most_seeds is None else min(asked, self.most_seeds)

    def command(self, seeds: int) -> str:
        """Return the command that runs the same study by itself.

        Args:
            seeds: Paired seeds that are asked for.

        Returns:
            The command.
        """
        given = {**self.settings, "seeds": self.seeds(seeds), "jobs": self.jobs}
        options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return shlex.join(["rezero", "compare", self.task, *options])

    def folder(self, work: Work) -> Path:
        """Return the folder of the study: another number of seeds is another study.

        Args:
            work: Where, and on how many seeds.

        Returns:
            The folder.
        """
        return work.folder / f"{self.name}-{self.seeds(work.seeds)}"

    def run(self, work: Work) -> dict[str, Any]:
        """Run the study, or what is left of it, and read its numbers.

        Args:
            work: Where, and on how many seeds.

        Returns:
            Its settings, rates, ends and curves by arm, and what was asked of them, as JSON can hold it.

        Raises:
            UsageError: If data are missing, or the study can't be run.
        """
        folder = self.folder(work)
        request = Request(
            settings={**self.settings, "seeds": self.seeds(work.seeds)},
            question={"baseline": None, "target": None, "resolve": None},
            output=folder,
            jobs=self.jobs,
            on=None,
            log_with=None,
            warn=print,
        )
        request.compare_task(self.task, checkpoint_every=30.0, first=True)
        with Store.open(folder) as store:
            return {"command": self.command(work.seeds), **_read(store, self.asks)}


def run_all(recipes: Sequence[Recipe], work: Work) -> dict[str, Any]:
    """Run studies one after the other.

    Args:
        recipes: The studies.
        work: Where, and on how many seeds.

    Returns:
        Under ``studies``, each one's name to its numbers.
    """
    studies = {}
    for place, recipe in enumerate(recipes, 1):
        print(f"{recipe.name}: study {place} of {len(recipes)}", file=sys.stderr)
        studies[recipe.name] = recipe.run(work)
    return {"studies": studies}


def _read(store: Store, asks: Sequence[Asked]) -> dict[str, Any]:
    settings = store.study.settings
    assert not isinstance(settings, OwnSettings)  # noqa: S101 - of a task
    results = store.results()
    finals = compared(results)
    asked = []
    for ask in asks:
        subject = subject_of(replace(store.study, question=Question(metric=ask.metric)))
        quality = subject.quality(results)
        assert quality is not None  # noqa: S101 - a task knows its own
        found = compare(finals, quality, ask.baseline, steps=subject.length(finals), target=ask.target)
        asked.append({**asdict(ask), "found": [told(each) for each in found]})
    return {
        "task": store.study.task,
        "data": store.study.data,
        "settings": {**settings.decides(), "arms": list(settings.arms)},
        "arms": arms_of(finals),
        "tried": [
            {"arm": each.trial.arm, "lr": each.trial.lr, "status": each.status, **_finite(each.last.metrics)}
            for each in results
            if each.trial.tuning and each.points
        ],
        "asked": asked,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: several wait long for each other over small tensors, if anything else runs.

    Yields:
        Nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare_own(folder: Path, *, seeds: int, device: str = "cpu", **asked: Any) -> dict[str, Any]:
    """Let the lab compare arms that are functions: on the CPU two trials at once, of one thread each.

    Args:
        folder: That the study's folder goes into; another number of seeds is another study.
        seeds: Paired seeds.
        device: Where it trains.
        **asked: As `rezero.lab.compare` takes it.

    Returns:
        The lab's verdict, the trials by arm, and each arm against the baseline, as JSON can hold it.
    """
    with one_thread():
        jobs = 2 if device == "cpu" else 1
        answer = lab.compare(**asked, seeds=seeds, jobs=jobs, output=folder / f"study-{seeds}")
    return {
        "verdict": answer.verdict,
        "arms": arms_of(compared(answer.results)),
        "found": [told(each) for each in answer.comparisons],
    }


def arms_of(finals: Sequence[TrialResult]) -> dict[str, Any]:
    """Put the trials of a study into what JSON can hold.

    Args:
        finals: Trials that are compared.

    Returns:
        Arm to its rate, and by seed how each trial ended, its seconds a step, and its points: step and metrics; a value
        that is not finite is None.
    """
    return {
        arm: {
            "lr": trials[0].trial.lr,
            "tuned": dict(trials[0].trial.tuned),
            "status": {str(each.trial.seed): each.status for each in trials},
            "points": {
                str(each.trial.seed): [{"step": point.step, **_finite(point.metrics)} for point in each.points]
                for each in trials
            },
        }
        for arm, trials in by_arm(finals).items()
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def told(found: Comparison) -> dict[str, Any]:
    """Put a comparison into what JSON can hold.

    Args:
        found: An arm against another.

    Returns:
        The difference at the end, the logarithm of how many times as fast (in steps where ``censored``), each with its
        interval and p, and what is concluded.
    """
    return {
        "arm": found.arm,
        "baseline": found.baseline,
        "gain": _paired(found.gain),
        "gain p": None if math.isnan(found.gain_p) else found.gain_p,
        "quality": found.quality,
        "lead": _paired(found.lead),
        "lead p": None if math.isnan(found.lead_p) else found.lead_p,
        "censored": list(found.censored),
        "diverged": list(found.diverged),
        "target": found.target,
        "speed": found.speed,
    }


def _paired(found: Any) -> dict[str, float | None] | None:
    if found is None:
        return None
    return _finite({"mean": found.mean, "low": found.low, "high": found.high, "n": found.n})
