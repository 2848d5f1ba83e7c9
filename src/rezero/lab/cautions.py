"""What makes the trials of a study no fair comparison, or no comparison at all, as far as their numbers show it."""

from collections.abc import Sequence

from rezero.lab.journal import UNMOVED, UNSEEDED
from rezero.lab.spreads import by_arm
from rezero.lab.study import TrialResult

__all__ = ["all_equal", "cautions_of", "equal_by_seed"]


def cautions_of(finals: Sequence[TrialResult]) -> list[str]:
    """Say what a reader has to know before believing a comparison.

    Args:
        finals: The trials that are compared.

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
    return found


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
