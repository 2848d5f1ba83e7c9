"""Paired comparisons: tests that decide, intervals that are shown, and how many pairs it takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import scipy  # which loads scipy.stats, a matter of seconds, when it is used

__all__ = ["LEVEL", "Paired", "compare_pairs", "detectable", "holm", "pairs_needed", "power", "sign_flip", "survival"]

LEVEL = 0.05
"""How often a study without any difference may say that there is one."""
POWER = 0.8
MOST_OF_T = 15  # pairs that a t test decides; with more the signs can decide, which asks nothing of the distribution
_RESAMPLES = 99_999
_MOST_PAIRS = 100_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)  # of the integral from -1 to 1


@dataclass(frozen=True)
class Paired:
    """What pairs say about a difference.

    Attributes:
        n: Pairs.
        mean: Mean difference.
        low: Lower end of its 95% t interval; nan with one pair.
        high: Upper end.
        deviation: Standard deviation of the differences; nan with one pair.
        p: Probability of a mean as far from zero if there were no difference; nan where no test is possible.
        by_signs: Whether a sign-flip test gave it, and not a t test.
    """

    n: int
    mean: float
    low: float
    high: float
    deviation: float
    p: float
    by_signs: bool = False


def compare_pairs(differences: Sequence[float], *, by_signs: bool = False) -> Paired:
    """Ask whether paired differences have a mean other than zero.

    Up to 15 pairs are decided by the paired t test: on 5 of them no choice of signs is rarer than 1 in 16. More are
    decided by their signs, and so are fewer where all differences are the same, of which t knows no error.

    Args:
        differences: One a pair, finite.
        by_signs: Whether a sign-flip test decides however few there are, as where differences are cut off at a limit.

    Returns:
        Mean, interval and p.

    References:
        Student (1908), "The probable error of a mean", Biometrika 6.

    Example:
        >>> found = compare_pairs([1.0, 2.0, 3.0, 2.0])
        >>> f"{found.mean:.2f} ({found.low:.2f} to {found.high:.2f}), p = {found.p:.4f}"
        '2.00 (0.70 to 3.30), p = 0.0163'
    """
    n, mean = len(differences), fmean(differences)
    if n < 2:
        return Paired(n, mean, math.nan, math.nan, math.nan, math.nan)
    deviation = stdev(differences)
    half = float(scipy.stats.t.ppf(1 - LEVEL / 2, n - 1)) * deviation / math.sqrt(n)
    if by_signs or n > MOST_OF_T or deviation <= 1e-12 * abs(mean) or deviation == 0:
        return Paired(n, mean, mean - half, mean + half, deviation, sign_flip(differences), by_signs=True)
    p = 2 * float(scipy.stats.t.sf(abs(mean) * math.sqrt(n) / deviation, n - 1))
    return Paired(n, mean, mean - half, mean + half, deviation, p)


def sign_flip(differences: Sequence[float]) -> float:
    """Return the share of all choices of signs that bring the mean as far from zero as it is.

    Args:
        differences: One a pair, finite. No p of n pairs is below ``2 / 2**n``.

    Returns:
        The two-sided p, exact up to 16 pairs and from 99,999 choices, always the same ones, above.

    References:
        Fisher (1935), "The Design of Experiments", sec. 21.

    Example:
        >>> sign_flip([1.0, 2.0, 3.0, 2.0])  # of 16 choices, two
        0.125
    """
    if len(differences) < 2 or not any(differences):
        return 1.0
    # permutation_test flips the sign of single samples, counts ties within a rounding error as ties, and includes what
    # was seen among the choices that it draws.
    found = scipy.stats.permutation_test(
        (np.asarray(differences),),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust the p of several tests for each other, so that one that is at most .05 errs with no more than that in all.

    Args:
        p: One a test; nan, a test that could not be made, stays nan and counts.

    Returns:
        The adjusted ones, in the same order.

    References:
        Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6.

    Example:
        >>> [round(each, 3) for each in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    ranked = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        adjusted[place] = largest
    return adjusted


def power(n: int, difference: float, deviation: float, *, level: float = LEVEL) -> float:
    """Return how probable it is that a paired t test sees a difference.

    Args:
        n: Pairs.
        difference: The true mean difference.
        deviation: Standard deviation of the differences, in the same unit.
        level: Two-sided level of the test.

    Returns:
        The probability, exact for normal differences.

    References:
        Cohen (1988), "Statistical Power Analysis for the Behavioral Sciences", sec. 2.3.
    """
    if n < 2:
        return 0.0
    if not deviation:
        return 1.0 if difference else 0.0
    shift = abs(difference) * math.sqrt(n) / deviation
    edge = float(scipy.stats.t.ppf(1 - level / 2, n - 1))
    # A mean over the scale that the test would find, for SciPy's noncentral t is nan in places.
    scale = edge * np.sqrt(scipy.stats.chi2.ppf((1 + _NODES) / 2, n - 1) / (n - 1))
    return float(_WEIGHTS @ (scipy.stats.norm.sf(scale - shift) + scipy.stats.norm.cdf(-scale - shift))) / 2


def pairs_needed(difference: float, deviation: float, *, level: float = LEVEL, power_: float = POWER) -> int | None:
    """Return the smallest number of pairs that see a difference often enough.

    Args:
        difference: The true mean difference.
        deviation: Standard deviation of the differences, in the same unit.
        level: Two-sided level of the test.
        power_: How often it shall be seen.

    Returns:
        The number; None if it is above 100,000.

    Example:
        >>> pairs_needed(10, 10 * 2**0.5, power_=0.85)  # R: power.t.test(type = "paired") gives n = 19.96892
        20
    """
    if power(_MOST_PAIRS, difference, deviation, level=level) < power_:
        return None
    low, high = 1, _MOST_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, deviation, level=level) >= power_ else (middle, high)
    return high


def detectable(n: int, deviation: float, *, level: float = LEVEL, power_: float = POWER) -> float:
    """Return the smallest difference that so many pairs see often enough.

    Args:
        n: Pairs.
        deviation: Standard deviation of the differences.
        level: Two-sided level of the test.
        power_: How often it shall be seen.

    Returns:
        The difference, in the unit of the deviation, to a millionth; inf with one pair.
    """
    if n < 2:
        return math.inf
    low, high = 0.0, 1.0
    while power(n, high, 1.0, level=level) < power_:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(n, middle, 1.0, level=level) >= power_ else (middle, high)
    return high * deviation


def survival(times: Sequence[float], reached: Sequence[bool]) -> list[tuple[float, float]]:
    """Estimate the share that has not got there by each time, of which some never did.

    Args:
        times: When each got there, or how long it was watched.
        reached: Whether it got there.

    Returns:
        Time and share that is still on its way, from ``(0, 1)``, a step at each time.

    References:
        Kaplan and Meier (1958), "Nonparametric estimation from incomplete observations", JASA 53.
    """
    sample = scipy.stats.CensoredData.right_censored(np.asarray(times, float), ~np.asarray(reached, bool))
    left = scipy.stats.ecdf(sample).sf
    return [(0.0, 1.0), *zip(left.quantiles.tolist(), left.probabilities.tolist(), strict=True)]
