"""What is said of numbers, and what is concluded."""

import math

import pytest

from rezero.papers.claims import above, below, confirmed, interval, judge, shown


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ((True,), "holds"),
        ((True, True), "holds"),
        ((True, False), "holds in part"),
        ((True, None), "holds in part"),
        ((False, False), "does not hold"),
        ((False, None), "does not hold"),
        ((None, None), "cannot be told"),
    ],
    ids=["one", "all", "some", "some-open", "none", "none-open", "open"],
)
def test_the_verdict_is_of_the_parts(parts: tuple[bool | None, *tuple[bool | None, ...]], verdict: str) -> None:
    """All, some or none of them hold, or the numbers leave them open."""
    assert judge(*parts) == verdict


def test_an_interval_about_the_mark_tells_nothing() -> None:
    """No more than that of one seed, and of what the lab finds level."""
    sides = [{"mean": 0.0, "low": low, "high": low + 2} for low in (1.0, -1.0, -3.0)]
    assert [above(side) for side in sides] == [True, None, False]
    assert [below(side) for side in sides] == [False, None, True]
    assert above(None) is above({"mean": 3.0, "low": None, "high": None}) is None
    assert [confirmed(each) for each in ("more", "less", "level", "unknown")] == [True, False, None, None]


def test_an_interval_needs_two_seeds() -> None:
    """Of one there is a mean and no interval, and the text says so."""
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None}
    assert shown(interval([3.0])) == "3.00 (one seed)"


def test_an_interval_is_students() -> None:
    """Of three values it is the mean and 4.30 standard errors around it."""
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert shown(found) == "2.00 (-0.484 to 4.48)"


def test_a_logarithm_is_shown_as_what_it_is_of() -> None:
    """The interval of a ratio is that of its logarithm, and lies unevenly around it."""
    assert shown({"mean": math.log(2), "low": 0.0, "high": math.log(4)}, of=math.exp) == "2.00 (1.00 to 4.00)"


def test_what_rounding_leaves_is_nothing() -> None:
    """Numbers that cancel are not told by their last bits."""
    assert shown({"mean": 1.1e-15, "low": -0.5, "high": 0.5}) == "0.00 (-0.500 to 0.500)"


def test_what_was_not_compared_is_not_told() -> None:
    """No number is made up where there is none."""
    assert shown(None) == shown({"mean": None, "low": None, "high": None}) == "cannot be told"
    assert shown(interval([1.0, None, 2.0])) == "cannot be told"
