"""Median and range over the seeds of an arm."""

import itertools
import math

import pytest

from rezero.lab import Point, Spread, Trial, TrialResult, spread
from rezero.lab.spreads import by_arm

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0], Spread(2.0, 2.0, 2.0, 1)),
        ([3.0, 1.0], Spread(2.0, 1.0, 3.0, 2)),
        ([9.0, 1.0, 2.0], Spread(2.0, 1.0, 9.0, 3)),
        ([4.0, 1.0, 2.0, 3.0], Spread(2.5, 1.0, 4.0, 4)),
        ([1.0, NAN, 2.0], Spread(2.0, 1.0, INF, 3)),
        ([NAN, NAN, 2.0], Spread(INF, 2.0, INF, 3)),
        ([1.0, INF, 2.0], Spread(2.0, 1.0, INF, 3)),
        ([NAN, NAN], Spread(INF, INF, INF, 2)),
    ],
    ids=["one", "two", "odd", "even", "one-nan", "most-nan", "inf", "all-nan"],
)
def test_spread_is_median_and_range(values: list[float], expected: Spread) -> None:
    """spread() is the median, smallest, largest and count in any order of seeds; a diverged seed counts as infinity."""
    for order in itertools.permutations(values):
        assert spread(order) == expected


def test_spread_takes_an_iterator() -> None:
    """spread() reads its numbers once."""
    assert spread(iter([1.0, 2.0, 6.0])) == Spread(2.0, 1.0, 6.0, 3)


def test_by_arm_keeps_the_order() -> None:
    """by_arm() groups trials by arm, arms and trials in the order in which they came."""
    pairs = [("rezero", 1), ("plain", 0), ("rezero", 0), ("plain", 1)]
    results = [TrialResult(Trial(arm, 0.1, seed), "finished", (Point(1, 1.0, {}, ()),)) for arm, seed in pairs]
    grouped = by_arm(results)
    assert [*grouped] == ["rezero", "plain"]
    assert [[result.trial.seed for result in trials] for trials in grouped.values()] == [[1, 0], [0, 1]]
    assert by_arm([]) == {}
