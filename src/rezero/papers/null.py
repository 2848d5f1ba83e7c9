"""Null calibration: how often does the lab see a difference between arms that are the same?

Every trial is a real, tiny training of ReZero on scikit-learn's digits. Trials of one arm on one seed are the same bit
for bit, so the arms of a study take theirs from different seeds, and no seed serves twice within a scheme: between the
arms there is no difference, only chance. The lab's own comparison then judges. All rates are fixed: nothing is tuned.

    python -m rezero.papers.null    # 3,000 trainings, a quarter of an hour on a busy core; writes results/null

Ctrl-C stops it; the same command goes on.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy import stats

from rezero.charts import curves, save
from rezero.errors import UsageError
from rezero.interrupt import STOPPED
from rezero.lab import Settings, Store, Study, TrialResult, find_task, open_processes
from rezero.lab.comparison import Comparison, compare
from rezero.lab.one import Silent, run_one
from rezero.lab.stats import LEVEL, MOST_OF_T
from rezero.lab.tune import plan
from rezero.provenance import provenance
from rezero.waiting import share_bar

__all__ = ["SCHEMES", "Rate", "Scheme", "deal", "judge", "rates", "train", "write"]

TASK = find_task("fc-digits")
ARMS = ("A", "B", "C")
DEALS = 20
PLACES = [place / 20 for place in range(1, 21)]  # of p


@dataclass(frozen=True)
class Scheme:
    """Studies of one form.

    Attributes:
        studies: How many.
        arms: Arms of each, the first being the baseline.
        seeds: Paired seeds of each.
        metric: The metric that decides.
    """

    studies: int
    arms: int
    seeds: int
    metric: str = "val_accuracy"

    @property
    def trials(self) -> int:
        """Trials of all studies."""
        return self.studies * self.arms * self.seeds


SCHEMES = (
    Scheme(200, 2, 5),
    Scheme(200, 2, 5, "val_loss"),
    Scheme(200, 3, 5),
    Scheme(150, 2, 10),
    Scheme(75, 2, 20),
)


@dataclass(frozen=True)
class Rate:
    """How often something came out.

    Attributes:
        count: In how many studies.
        studies: Of how many.
        low: Lower end of the 95% interval of the probability, after Clopper and Pearson (1934).
        high: Upper end.
    """

    count: int
    studies: int
    low: float
    high: float


def settings(trials: int) -> Settings:
    """Return what every trial runs with.

    Args:
        trials: How many, each on a seed of its own.

    Returns:
        The settings of a study of one arm.
    """
    length = {"steps": 30, "measure_every": 5}
    return TASK.settings({"arms": ("rezero",), "seeds": trials, "depth": 2, "width": 16, "threads": 1, **length})


def train(
    asked: Settings, work: Path, facts: Mapping[str, str], *, tell: Callable[[float, str], None] = lambda *_: None
) -> tuple[list[TrialResult], dict[str, str]]:
    """Train what is missing of the trials.

    Args:
        asked: What the trials run with; they are kept as a study of the lab.
        work: Its folder.
        facts: How it comes about, title to text, if it begins here.
        tell: Is told the share that is done and what comes next.

    Returns:
        The trials in the order of their seeds, and how they came about.

    Raises:
        UsageError: If the folder holds something else, or can't be used.
    """
    data = TASK.load(asked)
    study = Study(TASK.name, asked, dict(facts), data.name)
    with Store.open(work, study) as store, open_processes(asked) as accelerator:
        done, planned = store.done(), plan(asked, {})
        missing = [trial for trial in planned if trial not in done]
        for place, trial in enumerate(missing, len(planned) - len(missing)):
            tell(place / len(planned), f"training {place + 1:,} of {len(planned):,}")
            run_one(store, TASK, trial, data, Silent(), accelerator, math.inf)
        return store.results(), dict(store.study.provenance)


def deal(pool: Sequence[TrialResult], scheme: Scheme) -> Iterator[list[TrialResult]]:
    """Make studies of a pool of trials, each of which serves once at most.

    Args:
        pool: The trials.
        scheme: The form of the studies.

    Yields:
        The trials of a study, which say that they are of the arms A, B and so on, on seeds from 0.

    Raises:
        UsageError: If there are too few.
    """
    if len(pool) < scheme.trials:
        raise UsageError(f"expected {scheme.trials:,} trials for {scheme.studies} studies, got {len(pool):,}")
    left = iter(pool)
    for _ in range(scheme.studies):
        places = [(arm, seed) for arm in ARMS[: scheme.arms] for seed in range(scheme.seeds)]
        yield [
            replace(result, trial=replace(result.trial, arm=arm, seed=seed))
            for (arm, seed), result in zip(places, left, strict=False)
        ]


def judge(pool: Sequence[TrialResult], scheme: Scheme, asked: Settings) -> list[list[Comparison]]:
    """Let the lab compare the arms of every study with the first.

    Args:
        pool: The trials.
        scheme: The form of the studies.
        asked: What the trials ran with.

    Returns:
        The comparisons of each study.
    """
    quality = TASK.decisive(replace(asked, metric=scheme.metric))
    return [compare(results, quality, ARMS[0], steps=asked.steps or 0) for results in deal(pool, scheme)]


_ALONE = f", p <= {LEVEL} alone"
_VERDICTS: Mapping[str, Callable[[Comparison], bool]] = {
    "any verdict": lambda found: bool({found.quality, found.speed} & {"more", "less"}),
    "better": lambda found: found.quality == "more",
    "worse": lambda found: found.quality == "less",
    "faster": lambda found: found.speed == "more",
    "slower": lambda found: found.speed == "less",
}


def rates(judged: Sequence[Sequence[Comparison]]) -> dict[str, Rate]:
    """Count verdicts, and what each test would say by itself.

    Args:
        judged: The comparisons of each study.

    Returns:
        In how many studies any arm got a verdict, a verdict of each kind, and in how many the p of arm B, before it is
        corrected for the other tests of its study, is at most .05.
    """
    counts = {name: sum(any(map(said, study)) for study in judged) for name, said in _VERDICTS.items()}
    for name, values in raw(judged).items():
        counts[name + _ALONE] = sum(p <= LEVEL for p in values)
    return {name: _rate(count, len(judged)) for name, count in counts.items()}


def raw(judged: Sequence[Sequence[Comparison]]) -> dict[str, list[float]]:
    """Return the uncorrected p of arm B in every study, by test; nan where there was no test."""
    firsts = [study[0] for study in judged]
    return {
        "final": [math.nan if found.gain is None else found.gain.p for found in firsts],
        "speed": [math.nan if found.lead is None else found.lead.p for found in firsts],
    }


def cumulative(values: Sequence[float]) -> list[int]:
    """Count the p that are at most .05, .10 and so on up to 1."""
    return [sum(p <= place for p in values) for place in PLACES]


def _rate(count: int, studies: int) -> Rate:
    interval = stats.binomtest(count, studies).proportion_ci(method="exact")
    return Rate(count, studies, float(interval.low), float(interval.high))


def again(pool: Sequence[TrialResult], scheme: Scheme, asked: Settings, deals: int = DEALS) -> dict[str, float]:
    """Deal the pool anew at random, again and again: what luck there was in the order of the seeds averages out.

    Args:
        pool: The trials.
        scheme: The form of the studies.
        asked: What the trials ran with.
        deals: How many times.

    Returns:
        The share of all studies with any verdict, and those of arm B's p of at most .05 alone; without intervals, for
        the studies of different deals share trials. Nothing where signs decide, which takes half a second a test.
    """
    if scheme.seeds > MOST_OF_T:
        return {}
    draw = random.Random(0)
    found = [study for _ in range(deals) for study in judge(draw.sample(pool, len(pool)), scheme, asked)]
    return {"studies": len(found)} | {
        name: rate.count / rate.studies
        for name, rate in rates(found).items()
        if name == "any verdict" or name.endswith(_ALONE)
    }


def bounds(studies: int) -> tuple[int, int]:
    """Return between which counts a probability of 5% stays in at least 95 of 100 repetitions."""
    low, high = stats.binom.interval(0.95, studies, LEVEL)
    return int(low), int(high)


def write(
    pool: Sequence[TrialResult], schemes: Sequence[Scheme], asked: Settings, folder: Path, facts: Mapping[str, str]
) -> dict[str, Any]:
    """Write the counts of all schemes as ``null.json``, and how p is distributed in the first one as a picture.

    Args:
        pool: The trials.
        schemes: Forms of studies, each made of the same pool.
        asked: What the trials ran with.
        folder: Where to; it is made if it is not there.
        facts: How they came about.

    Returns:
        What ``null.json`` holds.
    """
    judged = {scheme: judge(pool, scheme, asked) for scheme in schemes}
    rows = []
    for scheme, found in judged.items():
        fewest, most = bounds(scheme.studies)
        counted = rates(found)
        false = counted["any verdict"].count
        rows.append(
            {
                **asdict(scheme),
                "bounds of 5%": [fewest, most],
                "false verdicts": "above" if false > most else "below" if false < fewest else "within",
                "dealt anew": again(pool, scheme, asked),
                "counts": {name: asdict(rate) for name, rate in counted.items()},
                "decided by signs": {name: sum(map(signs, found)) for name, signs in _SIGNS.items()},
                "p of B alone, cumulative": {name: cumulative(values) for name, values in raw(found).items()},
            }
        )
    statuses = sorted({result.status for result in pool})
    about = {"tuned": False, "trials": len(pool), "ended": statuses, "settings": asdict(asked)}
    summary = {**facts, **about, "schemes": rows}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "null.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    save(chart(judged[schemes[0]]), folder / "null")
    return summary


_SIGNS: Mapping[str, Callable[[Sequence[Comparison]], bool]] = {
    "final": lambda study: any(found.gain is not None and found.gain.by_signs for found in study),
    "speed": lambda study: any(found.lead is not None and found.lead.by_signs for found in study),
}


def chart(judged: Sequence[Sequence[Comparison]]) -> Any:
    """Draw which share of studies has a p of at most so much, with its 95% interval, beside the diagonal.

    Args:
        judged: The comparisons of each study.

    Returns:
        The chart.
    """
    rows = []
    for name, values in raw(judged).items():
        for place, count in zip(PLACES, cumulative(values), strict=True):
            rate = _rate(count, len(values))
            middle = rate.count / rate.studies
            rows.append({"arm": name, "x": place, "median": middle, "low": rate.low, "high": rate.high})
    rows += [{"arm": "expected", "x": each, "median": each, "low": each, "high": each} for each in PLACES]
    description = "Share of null studies whose p is at most so much, of both tests, with 95% intervals; expected: p."
    axes = {"x": "p, uncorrected", "y": "studies with such a p or a smaller one"}
    return curves(rows, **axes, arms=("final", "speed", "expected"), log=False, percent=True, description=description)


def show(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of counts."""
    for row in summary["schemes"]:
        fewest, most = row["bounds of 5%"]
        yield f"{row['studies']} studies of {row['arms']} arms, {row['seeds']} seeds, {row['metric']}"
        for name, each in row["counts"].items():
            yield f"  {name:24} {each['count']:4}  {each['low']:6.1%} to {each['high']:6.1%}"
        for name, share in row["dealt anew"].items():
            if name != "studies":
                yield f"  {name:24} {share:6.2%} of {row['dealt anew']['studies']:,.0f} studies dealt anew"
        yield f"  bounds of 5%: {fewest} to {most}; false verdicts {row['false verdicts']}"


def main(given: Sequence[str] | None = None, schemes: Sequence[Scheme] = SCHEMES) -> int:
    """Train, judge and write.

    Args:
        given: Words of the command line; None for those of this process.
        schemes: Forms of studies.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("rezero-studies/null"), help="folder of the trials")
    parser.add_argument("--output", type=Path, default=Path("results/null"), help="folder of the results")
    folders = parser.parse_args(given)
    try:
        asked = settings(max(scheme.trials for scheme in schemes))
        with share_bar("null studies") as tell:
            pool, facts = train(asked, folders.work, provenance("python -m rezero.papers.null"), tell=tell)
            tell(1.0, "judging")
            summary = write(pool, schemes, asked, folders.output, facts)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(show(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
