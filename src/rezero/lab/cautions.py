"""What makes the trials of a study no fair comparison, or no comparison at all, as far as their numbers show it."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from rezero.lab.journal import UNMOVED, UNSEEDED
from rezero.lab.quality import Quality
from rezero.lab.spreads import by_arm
from rezero.lab.study import TrialResult

__all__ = ["all_equal", "cautions_of", "equal_by_seed"]

_HARDLY = 0.05
"""Of the way that the best arm goes between its first and its last measurement."""


def cautions_of(finals: Sequence[TrialResult], quality: Quality | None = None) -> list[str]:
    """Say what a reader has to know before believing a comparison.

    Args:
        finals: The trials that are compared.
        quality: What decides; None if nothing does yet.

    Returns:
        Sentences; none if nothing looks wrong.
    """
    ended = [result for result in finals if result.status == "finished"]
    arms = by_arm(ended)
    found = []
    if any(UNSEEDED in result.note for result in ended):
        found.append(
            "The seeds were never read (rezero.lab.seed()): runs are paired by chance, which hides what is small, and "
            "none can be repeated."
        )
    alike = [arm for arm, trials in arms.items() if all_equal(trials)]
    if alike:
        found.append(
            f"All seeds of {', '.join(alike)} gave the very same numbers and tell no more than one: let "
            "rezero.lab.seed() decide the weights and the order of the data."
        )
    still = [arm for arm, trials in arms.items() if all(UNMOVED in result.note for result in trials)]
    if still:
        found.append(f"No gate of {', '.join(still)} moved: was the optimizer made before rezero.lab.arm()?")
    names = [*arms]
    for place, arm in enumerate(names):
        same = [other for other in names[:place] if equal_by_seed(arms[arm], arms[other])]
        if same:
            found.append(f"{arm} gave the very same numbers as {same[0]} on every seed.")
    return found if quality is None else [*found, *_hardly_learned(arms, quality)]


def _hardly_learned(arms: Mapping[str, Sequence[TrialResult]], quality: Quality) -> list[str]:
    """Name arms that stay where they are, behind where the best one is first measured."""
    sign = 1 if quality.lower_is_better else -1
    courses = {arm: course for arm, trials in arms.items() if (course := _course(trials, quality.metric))}
    if not courses:
        return []
    best = min(courses, key=lambda arm: sign * courses[arm][1])
    start, end = courses[best]
    return [
        f"{arm} hardly learned: its {quality.name} goes from {_shown(first, quality)} to {_shown(last, quality)}, that "
        f"of {best} from {_shown(start, quality)} to {_shown(end, quality)}. How many times as fast another arm is "
        "then counts the steps to where it stood all along."
        for arm, (first, last) in courses.items()
        if sign * (first - last) < _HARDLY * sign * (start - end) and sign * last > sign * start
    ]


def _course(trials: Sequence[TrialResult], metric: str) -> tuple[float, float] | None:
    """Return the first and the last value of a metric, the medians of the seeds; None where there is one or none."""
    values = [[point.metrics[metric] for point in trial.points if metric in point.metrics] for trial in trials]
    known = [each for each in values if len(each) > 1 and math.isfinite(each[0]) and math.isfinite(each[-1])]
    return (median(each[0] for each in known), median(each[-1] for each in known)) if known else None


def _shown(value: float, quality: Quality) -> str:
    return quality.show(quality.factor * value)


def all_equal(trials: Sequence[TrialResult]) -> bool:
    """Say whether all seeds of an arm gave the very same numbers, so that they repeat nothing independently.

    Args:
        trials: Its trials.

    Returns:
        Whether two have finished, and all that have measured the same.
    """
    numbers = [_numbers(result) for result in trials if result.status == "finished"]
    return len(numbers) > 1 and all(each == numbers[0] for each in numbers)


def equal_by_seed(ours: Sequence[TrialResult], theirs: Sequence[TrialResult]) -> bool:
    """Say whether two arms gave the very same numbers on every seed.

    Args:
        ours: Trials of the one.
        theirs: Trials of the other.

    Returns:
        Whether they have the same seeds, and measured the same on each.
    """
    one, other = ({result.trial.seed: _numbers(result) for result in trials} for trials in (ours, theirs))
    return one == other


def _numbers(result: TrialResult) -> list[tuple[int, dict[str, float]]]:
    """Return what was measured, but for the time."""
    return [
        (point.step, {name: value for name, value in point.metrics.items() if name != "seconds"})
        for point in result.points
    ]
