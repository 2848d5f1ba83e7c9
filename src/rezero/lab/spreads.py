"""Median and range over the seeds of an arm."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from rezero.lab.study import TrialResult

__all__ = ["Spread", "by_arm", "compared", "spread"]


@dataclass(frozen=True)
class Spread:
    """Median and range of a few numbers.

    Attributes:
        median: The median.
        low: The smallest.
        high: The largest.
        n: How many.
    """

    median: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Reduce the seeds of an arm to median and range.

    Args:
        values: One number a seed; nan, which a diverged trial leaves, counts as infinity.

    Returns:
        Their median and range.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0, n=3)
    """
    known = [math.inf if math.isnan(value) else value for value in values]
    return Spread(median(known), min(known), max(known), len(known))


def compared(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Leave out the trials that chose the rates, on seeds that no comparison uses.

    Args:
        results: Trials that ended.

    Returns:
        Those that are compared.
    """
    return [result for result in results if not result.trial.tuning]


def by_arm(results: Iterable[TrialResult]) -> dict[str, list[TrialResult]]:
    """Group results by arm.

    Args:
        results: Trials that ended.

    Returns:
        Arm to its trials, in the order of first appearance.
    """
    grouped: dict[str, list[TrialResult]] = {}
    for result in results:
        grouped.setdefault(result.trial.arm, []).append(result)
    return grouped
