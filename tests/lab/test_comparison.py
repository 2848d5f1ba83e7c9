"""Arms against the baseline: what is decided, and how often nothing is mistaken for something."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from rezero.lab import Point, Trial, TrialResult
from rezero.lab.comparison import Comparison, compare, fate, worst_final
from rezero.lab.quality import ACCURACY, BITS, Quality
from rezero.lab.speed import Arrival, arrival
from rezero.lab.stats import LEVEL, compare_pairs, detectable, holm

NAN = math.nan


def trial(arm: str, seed: int, values: Sequence[float], *, every: int = 10) -> TrialResult:
    """A trial with these values of both metrics, a measurement each tenth step and a second each."""
    points = tuple(
        Point(every * n, float(n), {"val_accuracy": v, "val_loss": v, "train_loss": v, "seconds": float(n)}, ())
        for n, v in enumerate(values, 1)
    )
    return TrialResult(Trial(arm, 0.1, seed), "diverged" if math.isnan(values[-1]) else "finished", points)


def ends(arms: Mapping[str, Sequence[float]]) -> list[TrialResult]:
    """Trials that rise evenly to these accuracies in ten measurements."""
    return [
        trial(arm, seed, [end * n / 10 for n in range(1, 11)])
        for arm, values in arms.items()
        for seed, end in enumerate(values)
    ]


def only(found: list[Comparison]) -> Comparison:
    (one,) = found
    return one


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([0.2, 0.4, 0.6], 0.5, Arrival(25.0, 2.5, reached=True)),
        ([0.2, 0.4, 0.6], 0.4, Arrival(20.0, 2.0, reached=True)),
        ([0.2, 0.4, 0.6], 0.2, Arrival(10, 1.0, reached=True, at_first=True)),
        ([0.2, 0.4, 0.6], 0.61, Arrival(30, 3.0, reached=False)),
        ([0.2, 0.6, 0.4], 0.6, Arrival(20.0, 2.0, reached=True)),
        ([0.2, NAN], 0.6, Arrival(30, 3.0, reached=False)),
        ([0.2, 0.7, NAN], 0.45, Arrival(15.0, 1.5, reached=True)),
    ],
    ids=["between", "at a point", "at the first", "never", "then falls back", "diverged", "diverged later"],
)
def test_arrival_is_the_first_crossing(values: list[float], target: float, expected: Arrival) -> None:
    """Steps and seconds are interpolated; what never arrives took the whole run, also where it diverged halfway."""
    found = arrival(trial("a", 0, values), ACCURACY, target, 30)
    assert (found.step, found.seconds) == pytest.approx((expected.step, expected.seconds))
    assert (found.reached, found.at_first) == (expected.reached, expected.at_first)


def test_a_loss_arrives_from_above() -> None:
    """Where low is good the first value at or below the target counts."""
    assert arrival(trial("a", 0, [3.0, 2.0, 1.0]), BITS, 1.5, 30) == Arrival(25.0, 2.5, reached=True)


def test_twice_as_fast_and_better() -> None:
    """An arm that rises twice as fast is found at half the steps of the baseline, and its gain is the difference."""
    slow = [0.50, 0.52, 0.51, 0.53, 0.49]
    found = only(compare(ends({"base": slow, "new": [2 * v - 0.01 for v in slow]}), ACCURACY, "base", steps=100))
    assert (found.quality, found.speed) == ("more", "more")
    assert found.target == pytest.approx(0.49)
    assert found.gain is not None
    assert found.lead is not None
    assert found.gain.mean == pytest.approx(np.mean(slow) - 0.01)
    assert math.exp(found.lead.mean) == pytest.approx(2.0, abs=0.05)
    assert found.censored == found.diverged == (0, 0)


def test_the_sides_can_be_changed() -> None:
    """With the arms exchanged everything has the other sign, and the target is the same."""
    arms = {"one": [0.5, 0.55, 0.52, 0.57], "two": [0.61, 0.65, 0.63, 0.68]}
    there, back = (only(compare(ends(arms), ACCURACY, base, steps=100)) for base in ("one", "two"))
    assert there.target == back.target
    assert (there.gain_p, there.lead_p) == pytest.approx((back.gain_p, back.lead_p))
    assert there.gain is not None
    assert back.gain is not None
    assert there.gain.mean == -back.gain.mean
    assert (there.quality, back.quality) == ("more", "less")


@pytest.mark.parametrize(("n", "speed"), [(6, "unknown"), (7, "more")], ids=str)
def test_a_target_that_is_missed_is_decided_by_signs_where_they_can(n: int, speed: str) -> None:
    """The baseline never gets to the given target: 2 / 2^6 times 2 tests is above .05, 2 / 2^7 times 2 is not."""
    arms = {"base": [0.5 + 0.001 * i for i in range(n)], "new": [0.9 + 0.001 * i for i in range(n)]}
    found = only(compare(ends(arms), ACCURACY, "base", steps=100, target=0.7))
    assert found.censored == (0, n)
    assert found.speed == speed
    assert found.lead is not None
    assert found.lead.by_signs
    assert found.lead.mean > 0


def test_what_both_have_at_the_first_measurement_tells_no_speed() -> None:
    """With a target that all have passed by then there is no lead, and nothing is said to be level."""
    arms = {"base": [0.5, 0.52, 0.51], "new": [0.6, 0.61, 0.62]}
    found = only(compare(ends(arms), ACCURACY, "base", steps=100, target=0.01))
    assert (found.lead, found.speed) == (None, "unknown")
    assert math.isnan(found.lead_p)


def test_seeds_that_diverged_leave_the_end_undecided() -> None:
    """A final value that is no number has no difference; the arm that kept going is still the faster one in steps."""
    found = only(compare(ends({"base": [0.5, NAN, 0.52], "new": [0.6, 0.7, 0.65]}), ACCURACY, "base", steps=100))
    assert (found.gain, found.quality, found.diverged) == (None, "unknown", (0, 1))
    assert found.censored == (0, 1)


def test_an_arm_that_repeats_itself_is_not_tested() -> None:
    """Copies of one run prove nothing, however many they are; arms that differ by seed are tested as ever."""
    varied = [0.5 + 0.001 * i for i in range(8)]
    for base, new, repeated in (
        ([0.5] * 8, [0.6] * 8, ("new", "base")),
        ([0.5] * 8, [0.1 + v for v in varied], ("base",)),
        (varied, [0.6] * 8, ("new",)),
    ):
        found = only(compare(ends({"base": base, "new": new}), ACCURACY, "base", steps=100))
        assert (found.repeated, found.same, found.testable) == (repeated, False, False)
        assert (found.quality, found.speed) == ("unknown", "unknown")
        assert math.isnan(found.gain_p)
        assert math.isnan(found.lead_p)
        assert found.gain is not None
        assert found.gain.mean > 0
    found = only(compare(ends({"base": varied, "new": [v + 0.1 for v in varied]}), ACCURACY, "base", steps=100))
    assert (found.repeated, found.testable, found.quality) == ((), True, "more")


def test_arms_that_are_the_very_same_are_not_tested() -> None:
    """Where both measured the same on every seed that both have there is nothing to test, and one seed more differs."""
    varied = [0.5, 0.51, 0.52]
    found = only(compare(ends({"base": varied, "new": [*varied, 0.9]}), ACCURACY, "base", steps=100))
    assert (found.same, found.repeated, found.quality, found.speed) == (True, (), "unknown", "unknown")
    found = only(compare(ends({"base": [*varied, 0.8], "new": [*varied, 0.9]}), ACCURACY, "base", steps=100))
    assert (found.same, found.testable) == (False, True)


def test_a_trial_that_did_not_log_the_metric_did_not_fail() -> None:
    """The fate of a trial is told by its status, that of one that finished by what it did not log."""
    known = ends({"base": [0.5, 0.51, 0.52], "new": [0.6, 0.61, 0.62]})
    mute = replace(known[-1], points=(Point(10, 1.0, {"train_loss": 1.0, "seconds": 1.0}, ()),))
    found = only(compare([*known[:-1], mute], ACCURACY, "base", steps=100))
    assert (found.diverged, found.fates) == ((1, 0), ("did not log it", ""))
    assert fate([mute, replace(mute, status="silent")]) == "failed"
    assert only(compare(known, ACCURACY, "base", steps=100)).fates == ("", "")


def test_only_seeds_that_both_have_are_compared() -> None:
    """A seed that one arm has not finished has no part, not even in the target."""
    results = ends({"base": [0.5, 0.6, 0.1], "new": [0.55, 0.62]})
    found = only(compare(results, ACCURACY, "base", steps=100))
    assert (found.seeds, found.target) == ((0, 1), 0.5)
    assert compare(ends({"new": [0.5]}), ACCURACY, "base", steps=100)[0].seeds == ()


def test_all_tests_of_a_study_are_corrected_together() -> None:
    """Four more arms that are the baseline again make every p of the first larger, by Holm's rule for all ten."""
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.01, 5).tolist()
    new = [value + 0.02 + error for value, error in zip(base, rng.normal(0, 0.005, 5).tolist(), strict=True)]
    others = {f"other {i}": rng.normal(0.5, 0.01, 5).tolist() for i in range(4)}
    alone = only(compare(ends({"base": base, "new": new}), ACCURACY, "base", steps=100))
    among = compare(ends({"base": base, "new": new, **others}), ACCURACY, "base", steps=100)
    assert alone.gain == among[0].gain
    assert alone.gain_p < among[0].gain_p
    raw = [test.p for each in among for test in (each.gain, each.lead) if test is not None]
    assert holm(raw) == [p for each in among for p in (each.gain_p, each.lead_p)]


def test_worst_final_looks_the_right_way() -> None:
    """The lowest accuracy, the highest loss, and nothing where all diverged."""
    results = [trial("a", seed, [value]) for seed, value in enumerate((0.5, 0.3, NAN, 0.4))]
    assert worst_final(results, ACCURACY) == 0.3
    assert worst_final(results, BITS) == 0.5
    assert worst_final(results[2:3], ACCURACY) is None


def null_study(
    rng: np.random.Generator, arms: int, seeds: int, quality: Quality, *, noise: float = 0.008
) -> list[TrialResult]:
    """Arms that differ in nothing: saturating curves with a seed's share, an arm's own, and noise at each point."""
    sign = -1 if quality.lower_is_better else 1
    times = np.arange(1, 11) / 10
    results = []
    for seed, common in enumerate(rng.normal(0, 0.01, seeds)):
        for arm in range(arms):
            height = 0.8 + common + rng.normal(0, 0.01)
            pace = 0.3 * math.exp(rng.normal(0, 0.15))
            curve = height * (1 - np.exp(-times / pace)) + rng.normal(0, noise, 10)
            results.append(trial(f"arm {arm}", seed, (1 + sign * curve).tolist()))
    return results


@pytest.mark.parametrize(
    ("arms", "seeds", "quality"),
    [(2, 5, ACCURACY), (4, 5, BITS), (2, 12, BITS)],
    ids=["2 arms, 5 seeds", "4 arms, 5 seeds", "2 arms, 12 seeds"],
)
def test_no_difference_is_rarely_called_better_or_faster(arms: int, seeds: int, quality: Quality) -> None:
    """Of 1,000 studies whose arms are the same, at most 5% say better or faster; any verdict at all stays near 5%."""
    rng = np.random.default_rng(7)
    good = wrong = 0
    for _ in range(1_000):
        found = compare(null_study(rng, arms, seeds, quality), quality, "arm 0", steps=100)
        said = {outcome for each in found for outcome in (each.quality, each.speed)}
        assert "unknown" not in said
        good += "more" in said
        wrong += bool(said & {"more", "less"})
    assert good <= 50
    assert wrong <= 50 + 4 * math.sqrt(1_000 * 0.05 * 0.95)


def test_the_baselines_own_final_value_would_be_an_unfair_target() -> None:
    """Of 500 studies of ten seeds whose arms are the same, it calls more than 30% faster; the worst of both 1 to 5%."""
    rng, quality = np.random.default_rng(9), ACCURACY
    own = worst = 0
    for _ in range(500):
        results = null_study(rng, 2, 10, quality, noise=0.002)
        base, other = ([r for r in results if r.trial.arm == arm] for arm in ("arm 0", "arm 1"))
        leads = []
        for one, two in zip(base, other, strict=True):
            target = one.final(quality.metric)
            leads.append(arrival(one, quality, target, 100).step - arrival(two, quality, target, 100).step)
        found = compare_pairs(leads, by_signs=True)
        own += found.p <= LEVEL and found.mean > 0
        faster = compare_pairs(_logs(only(compare(results, quality, "arm 0", steps=100))))
        worst += faster.p <= LEVEL and faster.mean > 0
    print(f"faster in {own / 500:.1%} with the baseline's own final value, in {worst / 500:.1%} with the worst of both")
    assert own > 0.3 * 500
    assert 0.01 * 500 <= worst <= 0.05 * 500


def _logs(found: Comparison) -> list[float]:
    return [math.log(theirs.step / ours.step) for ours, theirs in found.arrivals.values()]


def test_a_real_difference_is_found_as_often_as_promised() -> None:
    """Of 400 studies with a difference that five seeds see in four of five, between 74% and 86% say so."""
    rng = np.random.default_rng(8)
    difference = detectable(5, math.sqrt(2) * 0.01, level=LEVEL / 2)
    seen = 0
    for _ in range(400):
        base = rng.normal(0.5, 0.01, 5)
        arms = {"base": base.tolist(), "new": rng.normal(0.5 + difference, 0.01, 5).tolist()}
        seen += only(compare(ends(arms), ACCURACY, "base", steps=100)).quality == "more"
    assert 0.74 * 400 <= seen <= 0.9 * 400
