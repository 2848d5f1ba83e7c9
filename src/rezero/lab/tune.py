"""Which trials a study takes: settings that every arm tries out, then each arm at its best on paired seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rezero.lab.arms import read_arm
from rezero.lab.design import Design
from rezero.lab.search import ROUND, propose
from rezero.lab.trial import TUNING_SEEDS, Trial

__all__ = ["Choice", "Values", "choose", "plan", "table"]

MOST_EXTENSIONS = 3  # entries that a table gets at one end because the best one lies there

Values = tuple[tuple[str, float], ...]
"""Settings that are tried out, name and value."""


@dataclass(frozen=True)
class Choice:
    """What tuning found for an arm.

    Attributes:
        values: The settings with the lowest mean cost.
        costs: All that were tried, with their mean costs over the tuning seeds; infinite where a trial diverged.
    """

    values: Values
    costs: Mapping[Values, float]

    @property
    def at_edge(self) -> bool:
        """Whether the best of a table is its lowest or highest entry, so that a better one may lie beyond."""
        return len(self.values) == 1 and self.values in (min(self.costs), max(self.costs))


def plan(design: Design, costs: Mapping[Trial, float]) -> list[Trial]:
    """List the trials of a study as far as its results so far tell.

    Tuning: every arm with every entry of the table, on seeds of its own. While the best entry of an arm is the lowest
    or the highest, the table gets another one there, for every arm alike, up to three at either end. Several settings
    are searched for in rounds, as many trials an arm. Then the comparison: seed by seed, so that a study that is
    stopped early can still be compared, every arm at its best.

    Args:
        design: The study's design.
        costs: What ended trials came to, low values good and infinite ones diverged.

    Returns:
        The trials, in the order in which they are run. If all of them have costs the study is complete.
    """
    tuning = _tuning(design, costs)
    if any(trial not in costs for trial in tuning):
        return tuning
    chosen = _choices(design, tuning, costs)
    return tuning + [
        _trial(design, arm, chosen[arm].values if chosen else (), seed)
        for seed in range(design.seeds)
        for arm in design.arms
    ]


def choose(design: Design, costs: Mapping[Trial, float]) -> dict[str, Choice]:
    """Find each arm's best settings among those that it has tried.

    Args:
        design: The study's design.
        costs: As for `plan`.

    Returns:
        Arm to choice; empty while trials are missing, and for a study that is not tuned.
    """
    tuning = _tuning(design, costs)
    return {} if any(trial not in costs for trial in tuning) else _choices(design, tuning, costs)


def table(middle: float, count: int) -> tuple[float, ...]:
    """Return entries of the lab's table, 1 and 3 times each power of ten, around a value.

    Args:
        middle: The entry nearest to it is in the middle.
        count: How many; of an even number the larger half lies below.

    Returns:
        The entries, rising.

    Example:
        >>> table(0.01, 5)
        (0.001, 0.003, 0.01, 0.03, 0.1)
    """
    place = round(2 * math.log10(middle))
    return tuple(_entry(place + step) for step in range(-(count // 2), count - count // 2))


def _entry(place: int) -> float:
    return float(f"{(1, 3)[place % 2]}e{place // 2}")


def _beside(entry: float, step: int) -> float:
    return _entry(round(2 * math.log10(entry)) + step)


def _tuning(design: Design, costs: Mapping[Trial, float]) -> list[Trial]:
    """List the trials that serve the choice, the table as wide as the results so far ask for."""
    if not design.tune:
        return []
    if len(design.tuned) > 1:
        return [trial for arm in design.arms for trial in _searched(design, arm, costs)]
    name = design.tuned[0].replace("-", "_")
    entries = list(table(design.middle(design.tuned[0]), design.tune))
    added = {-1: 0, 1: 0}
    while True:
        tuning = [
            _trial(design, arm, ((name, entry),), TUNING_SEEDS + index)
            for entry in entries
            for index in range(design.tune_seeds)
            for arm in design.arms
        ]
        if any(trial not in costs for trial in tuning):
            return tuning
        best = {choice.values[0][1] for choice in _choices(design, tuning, costs).values()}
        ends = [step for step, end in ((-1, entries[0]), (1, entries[-1])) if end in best]
        ends = [step for step in ends if added[step] < MOST_EXTENSIONS]
        if not ends:
            return tuning
        for step in ends:
            added[step] += 1
            entries = sorted([*entries, _beside(entries[0 if step < 0 else -1], step)])


def _searched(design: Design, arm: str, costs: Mapping[Trial, float]) -> list[Trial]:
    """List the trials of an arm's search, up to the first round that has not ended; each arm gets as many."""
    names = tuple(name.replace("-", "_") for name in design.tuned)
    middles = tuple((name, design.middle(each)) for name, each in zip(names, design.tuned, strict=True))
    trials: list[Trial] = []
    tried: tuple[tuple[tuple[float, ...], float], ...] = ()
    while len(tried) < design.tune:
        for values in propose(middles, tried, min(ROUND, design.tune - len(tried))):
            own = tuple(zip(names, values, strict=True))
            seeds = [_trial(design, arm, own, TUNING_SEEDS + index) for index in range(design.tune_seeds)]
            trials += seeds
            tried += ((values, fmean(costs.get(trial, math.nan) for trial in seeds)),)
        if any(trial not in costs for trial in trials):
            break
    return trials


def _trial(design: Design, arm: str, values: Values, seed: int) -> Trial:
    given = dict(values)
    lr = given.pop("lr", read_arm(arm).own.get("lr", design.lr))
    return Trial(arm, lr, seed, tuple(given.items()))


def _choices(design: Design, tuning: Sequence[Trial], costs: Mapping[Trial, float]) -> dict[str, Choice]:
    tunes_rate = "lr" in design.tuned
    found: dict[str, dict[Values, list[float]]] = {}
    for trial in tuning:
        values = ((("lr", trial.lr),) if tunes_rate else ()) + trial.tuned
        found.setdefault(trial.arm, {}).setdefault(values, []).append(costs[trial])
    return {arm: _best({values: fmean(each) for values, each in tried.items()}) for arm, tried in found.items()}


def _best(costs: Mapping[Values, float]) -> Choice:
    """Choose the lowest cost; of several that are level the one nearest the middle, the lowest if all diverged."""
    tried = sorted(costs)
    middle = 0.0 if all(math.isinf(cost) for cost in costs.values()) else (len(tried) - 1) / 2
    place = min(range(len(tried)), key=lambda each: (costs[tried[each]], abs(each - middle), each))
    return Choice(tried[place], costs)
