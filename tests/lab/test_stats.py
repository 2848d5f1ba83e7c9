"""Tests, intervals and numbers of pairs, held against published examples and against simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rezero.lab.stats import compare_pairs, detectable, holm, pairs_needed, power, sign_flip, survival

NAN = math.nan
# Student's sleep data, as R has them: hours gained by ten patients under two drugs.
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def test_the_paired_t_test_is_that_of_r() -> None:
    """R's t.test(extra ~ group, data = sleep, paired = TRUE): p = 0.002833, -1.58 (-2.4598858 to -0.7001142)."""
    found = compare_pairs([one - two for one, two in zip(FIRST, SECOND, strict=True)])
    assert (found.n, found.by_signs) == (10, False)
    assert (found.mean, found.low, found.high) == pytest.approx((-1.58, -2.4598858, -0.7001142), abs=5e-8)
    assert found.p == pytest.approx(0.002833, abs=5e-7)


def test_the_number_of_pairs_is_that_of_r() -> None:
    """Dalgaard, Introductory Statistics with R, sec. 8.3: delta = 10, sd = 10 sqrt(2), power = 0.85 takes 19.96892."""
    deviation = 10 * math.sqrt(2)
    assert pairs_needed(10, deviation, power_=0.85) == 20
    assert power(19, 10, deviation) < 0.85 < power(20, 10, deviation)


def test_power_is_that_of_simulated_tests() -> None:
    """Of 20,000 tests of 8 normal pairs as many find the difference as expected, within four standard errors."""
    draws = np.random.default_rng(1).normal(0.9, 1.0, (20_000, 8))
    seen = float((scipy_stats.ttest_1samp(draws, 0, axis=1).pvalue <= 0.01).mean())
    expected = power(8, 0.9, 1.0, level=0.01)
    assert abs(seen - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


@pytest.mark.parametrize("n", [2, 5, 15, 40])
@pytest.mark.parametrize("level", [0.05, 0.05 / 8])
def test_the_detectable_difference_is_seen_as_often_as_asked(n: int, level: float) -> None:
    """It has the power that was asked for, and that many pairs are needed for it."""
    difference = detectable(n, 3.0, level=level)
    assert power(n, difference, 3.0, level=level) == pytest.approx(0.8, abs=1e-5)
    assert pairs_needed(difference, 3.0, level=level) == n


def test_no_number_of_pairs_sees_nothing() -> None:
    """No difference is never found, and one pair has no error to hold a difference against."""
    assert pairs_needed(0.0, 1.0) is None
    assert power(1, 5.0, 1.0) == 0
    assert detectable(1, 1.0) == math.inf
    assert pairs_needed(1.0, 0.0) == 2
    assert power(10, 1e6, 1.0) == pytest.approx(1)
    assert power(10, 0.0, 0.0) == 0


def test_signs_are_counted_exactly() -> None:
    """Up to 16 pairs p is the share of all choices of signs with a mean as large, ties among them."""
    rng = np.random.default_rng(2)
    for n in (2, 3, 6, 9):
        values = rng.integers(-3, 6, n).tolist()
        seen = abs(sum(values))
        choices = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in _signs(n)]
        assert sign_flip([float(v) for v in values]) == float(Fraction(sum(c >= seen for c in choices), len(choices)))


def _signs(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product((1, -1), repeat=n))


def test_signs_of_many_pairs_are_drawn_always_alike() -> None:
    """The same differences have the same p, near that of the t test where they are normal."""
    values = np.random.default_rng(3).normal(0.4, 1.0, 30).tolist()
    found, again = compare_pairs(values), compare_pairs(values)
    assert found == again
    assert found.by_signs
    assert found.p == pytest.approx(float(scipy_stats.ttest_1samp(values, 0).pvalue), abs=0.01)


@pytest.mark.parametrize(
    ("differences", "p", "by_signs"),
    [
        ([0.0, 0.0, 0.0], 1.0, True),
        ([2.0, 2.0, 2.0, 2.0], 0.125, True),
        ([0.1 + 0.2, 0.3, 0.3], 0.25, True),
        ([1.0], NAN, False),
    ],
    ids=["none", "all the same", "the same but for rounding", "one pair"],
)
def test_differences_without_an_error_are_not_certain(differences: list[float], p: float, by_signs: bool) -> None:
    """Where t would divide by zero the signs decide, so that two equal pairs are no proof."""
    found = compare_pairs(differences)
    assert (found.p, found.by_signs) == (pytest.approx(p, nan_ok=True), by_signs)
    assert math.isnan(found.low) == (len(differences) == 1)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.01], [0.04, 0.02]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.01, NAN, 0.02], [0.03, NAN, 0.04]),
        ([], []),
        ([0.03], [0.03]),
    ],
    ids=["four", "two", "at most 1", "untested ones count", "none", "one"],
)
def test_holm_adjusts_as_r_does(p: list[float], expected: list[float]) -> None:
    """The first row is R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm")."""
    assert holm(p) == pytest.approx(expected, nan_ok=True)


def test_holm_errs_in_a_twentieth_of_the_families() -> None:
    """Of 4,000 families of six true null hypotheses at most 5% hold a false rejection, within four standard errors."""
    rng = np.random.default_rng(4)
    wrong = sum(min(holm(rng.uniform(size=6).tolist())) <= 0.05 for _ in range(4_000)) / 4_000
    assert wrong < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 4_000)


def test_survival_is_that_of_scipys_example() -> None:
    """Twenty patients of whom seven died (Hollander and Wolfe's kind of table in SciPy's pull request 18136)."""
    times = [24, 3, 11, 19, 24, 13, 14, 2, 18, 17, 24, 21, 12, 1, 10, 23, 6, 5, 9, 17]
    died = [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    found = survival(times, [bool(each) for each in died])
    assert found[0] == (0.0, 1.0)
    left, at_risk, expected = 1.0, 20, {}
    for time, gone in sorted(zip(times, died, strict=True), key=lambda pair: (pair[0], -pair[1])):
        left *= 1 - gone / at_risk
        at_risk -= 1
        expected[float(time)] = left
    assert dict(found[1:]) == pytest.approx(expected)
    assert survival([5.0, 5.0], [False, False]) == [(0.0, 1.0), (5.0, 1.0)]
