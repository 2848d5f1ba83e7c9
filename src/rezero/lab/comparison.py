"""Every arm against the baseline, on the seeds that both have finished: better, faster, at what cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rezero.lab.cautions import all_equal, equal_by_seed
from rezero.lab.quality import Quality
from rezero.lab.speed import Arrival, arrival
from rezero.lab.spreads import by_arm
from rezero.lab.stats import LEVEL, Paired, compare_pairs, holm
from rezero.lab.study import TrialResult

__all__ = ["Comparison", "Outcome", "compare", "fate", "worst_final"]

Outcome = Literal["more", "less", "level", "unknown"]
"""More or less of what is good, no difference that the seeds can see, or no telling from these seeds."""


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline.

    Attributes:
        arm: The arm.
        baseline: What it is held against.
        seeds: Seeds that both have finished.
        diverged: On how many of them the arm and the baseline have no final value.
        fates: Why: diverged, crashed, timed out, logged nothing, did not log it, or failed where there is more than one
            reason; empty where nothing is missing.
        gain: How much better the final metric is, in its recorded unit, positive where the arm is better; None where a
            trial diverged, or there is no seed.
        gain_p: Its p, corrected for all tests of the study; nan where no test could be made.
        target: The value of the metric that speed is measured by; None if no trial got anywhere.
        arrivals: Seed to when the arm and the baseline reached it.
        lead: How much sooner the arm is there: the logarithm of the baseline's steps over its own, or, where a trial
            never got there, steps, of which the run has no more. Positive where the arm is faster; None where both were
            there whenever they were first measured, neither ever was, or there is no target.
        lead_p: Its p, corrected likewise.
        repeated: Which of the two gave the very same numbers on all seeds. These repeat nothing independently, and no
            test is made.
        same: Whether both gave the very same numbers on every seed, of which no test is made either.
    """

    arm: str
    baseline: str
    seeds: tuple[int, ...]
    diverged: tuple[int, int]
    fates: tuple[str, str]
    gain: Paired | None
    gain_p: float
    target: float | None
    arrivals: Mapping[int, tuple[Arrival, Arrival]]
    lead: Paired | None
    lead_p: float
    repeated: tuple[str, ...]
    same: bool

    @property
    def censored(self) -> tuple[int, int]:
        """On how many seeds the arm and the baseline never reached the target."""
        missed = [sum(not pair[side].reached for pair in self.arrivals.values()) for side in (0, 1)]
        return missed[0], missed[1]

    @property
    def testable(self) -> bool:
        """Whether its numbers are repeated independently."""
        return not self.repeated and not self.same

    @property
    def quality(self) -> Outcome:
        """Whether the arm ends better."""
        return _outcome(self.gain, self.gain_p)

    @property
    def speed(self) -> Outcome:
        """Whether the arm reaches the target sooner."""
        return _outcome(self.lead, self.lead_p)


def compare(
    results: Sequence[TrialResult],
    quality: Quality,
    baseline: str,
    *,
    steps: int,
    target: float | None = None,
) -> list[Comparison]:
    """Compare every arm with the baseline.

    Speed is measured by a target: a value of the metric. Unless it is given, it is the worst final value of the two
    arms over the seeds, which both reach on each. That of the baseline alone would be no fair one: an arm that is the
    same would miss it on some seeds, and the baseline never.

    An arm whose seeds all gave the very same numbers has no independent repetitions, and is not tested.

    All tests of a study, two for each arm, are corrected together by Holm's method. Where a trial never reached the
    target the steps are cut off at the length of the run, and a test by signs decides, if with so many pairs it can.

    Args:
        results: The trials that ended, without those of the tuning.
        quality: The metric that decides.
        baseline: The arm that the others are held against.
        steps: Optimizer steps of a whole trial.
        target: The target, as the metric is recorded.

    Returns:
        A comparison an arm, in the order of the arms, the baseline left out.
    """
    arms = {arm: {result.trial.seed: result for result in trials} for arm, trials in by_arm(results).items()}
    theirs = arms.pop(baseline, {})
    found = [_compare(arm, ours, baseline, theirs, quality, steps, target) for arm, ours in arms.items()]
    tests = 2 * len(found)
    raw = [_p(paired, tests) if each.testable else math.nan for each in found for paired in (each.gain, each.lead)]
    adjusted = holm(raw)
    return [
        replace(each, gain_p=adjusted[2 * place], lead_p=adjusted[2 * place + 1]) for place, each in enumerate(found)
    ]


def worst_final(results: Sequence[TrialResult], quality: Quality) -> float | None:
    """Return the worst value that any of the trials ends with, apart from those that diverged.

    Args:
        results: Trials that ended.
        quality: What is measured, and which way is up.

    Returns:
        The value as it is recorded; None if there is none.
    """
    known = [value for result in results if not math.isnan(value := result.final(quality.metric))]
    return (max if quality.lower_is_better else min)(known, default=None)


def fate(results: Sequence[TrialResult]) -> str:
    """Say what became of trials that have no final value.

    Args:
        results: The trials.

    Returns:
        A verb in the past; nothing of no trials.
    """
    words = {"silent": "logged nothing", "finished": "did not log it"}
    ends = [*{words.get(result.status, result.status) for result in results}]
    return "failed" if len(ends) > 1 else "".join(ends)


def _compare(
    arm: str,
    ours: Mapping[int, TrialResult],
    baseline: str,
    theirs: Mapping[int, TrialResult],
    quality: Quality,
    steps: int,
    target: float | None,
) -> Comparison:
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    pairs = {seed: (ours[seed], theirs[seed]) for seed in seeds}
    sign = 1 if quality.lower_is_better else -1
    finals = [(one.final(quality.metric), other.final(quality.metric)) for one, other in pairs.values()]
    sides = [[pair[side] for pair in pairs.values()] for side in (0, 1)]
    lost = [[result for result in trials if math.isnan(result.final(quality.metric))] for trials in sides]
    gain = None if any(lost) or not seeds else compare_pairs([sign * (other - one) for one, other in finals])
    if target is None:
        target = worst_final([result for pair in pairs.values() for result in pair], quality)
    arrivals, lead = {}, None
    if target is not None and seeds:
        arrivals = {
            seed: (arrival(one, quality, target, steps), arrival(other, quality, target, steps))
            for seed, (one, other) in pairs.items()
        }
        lead = _lead(list(arrivals.values()))
    return Comparison(
        arm=arm,
        baseline=baseline,
        seeds=seeds,
        diverged=(len(lost[0]), len(lost[1])),
        fates=(fate(lost[0]), fate(lost[1])),
        gain=gain,
        gain_p=math.nan,
        target=target,
        arrivals=arrivals,
        lead=lead,
        lead_p=math.nan,
        repeated=tuple(name for name, trials in zip((arm, baseline), sides, strict=True) if all_equal(trials)),
        same=equal_by_seed(*sides),
    )


def _lead(arrivals: Sequence[tuple[Arrival, Arrival]]) -> Paired | None:
    if all(one.at_first and other.at_first for one, other in arrivals):
        return None
    if all(one.reached and other.reached for one, other in arrivals):
        return compare_pairs([math.log(other.step / one.step) for one, other in arrivals])
    return compare_pairs([other.step - one.step for one, other in arrivals], by_signs=True)


def _p(found: Paired | None, tests: int) -> float:
    """Return the p of a test that could come out; one by signs can't if its rarest outcome is common enough."""
    if found is None or (found.by_signs and 2 / 2**found.n * tests > LEVEL):
        return math.nan
    return found.p


def _outcome(found: Paired | None, p: float) -> Outcome:
    if found is None or math.isnan(p):
        return "unknown"
    if p > LEVEL:
        return "level"
    return "more" if found.mean > 0 else "less"
