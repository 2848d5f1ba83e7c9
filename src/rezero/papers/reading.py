"""What the numbers of a study say, in words."""

import math
from collections import Counter
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any

from rezero.lab.stats import LEVEL
from rezero.papers.claims import above, ended, shown

__all__ = [
    "bits_at_end",
    "end_of",
    "ends_at",
    "gain_of",
    "learned_nothing",
    "loss_of_epoch",
    "of_pair",
    "rates_tried",
    "speed_of",
]


_NEAR = 0.99
"""Of chance: an arm may have learned how often each class comes, no more."""


def ends_at(study: Mapping[str, Any], arm: str, metric: str, place: int = -1) -> list[float | None]:
    """Return what an arm ends with.

    Args:
        study: What `Recipe.run` or `compare_own` returned.
        arm: Which.
        metric: What.
        place: Of the measurement, by default the last.

    Returns:
        A value a seed; None where the training did not go as far, or something that was measured then is not finite:
        the accuracy of a network that has diverged is, and means nothing.
    """
    found = study["arms"][arm]
    return [
        None
        if not points or None in points[place].values() or (place == -1 and found["status"][seed] != "finished")
        else points[place][metric]
        for seed, points in found["points"].items()
    ]


def learned_nothing(study: Mapping[str, Any], chance: float) -> list[str]:
    """Return the arms whose training loss ends as that of a model that knows nothing, at their rates.

    Args:
        study: What `Recipe.run` returned.
        chance: The loss of such a model (nats).

    Returns:
        Those that end above 99% of it in the median of the seeds, or diverge.
    """
    ends = {arm: ends_at(study, arm, "train_loss") for arm in study["arms"]}
    return [
        arm
        for arm, values in ends.items()
        if median(math.inf if end is None else end for end in values) > _NEAR * chance
    ]


def rates_tried(study: Mapping[str, Any]) -> Counter[str]:
    """Count the rates that each arm has chosen among.

    Args:
        study: What `Recipe.run` returned, or what has no arms that chose.

    Returns:
        Arm to their number.
    """
    return Counter(arm for arm, _ in {(each["arm"], each["lr"]) for each in study.get("tried", ())})


def bits_at_end(study: Mapping[str, Any], arm: str) -> list[float | None]:
    """Return the validation losses that an arm ends with.

    Args:
        study: What `Recipe.run` returned.
        arm: Which.

    Returns:
        Bits a byte, a seed each; None where it diverged.
    """
    return [None if loss is None else loss / math.log(2) for loss in ends_at(study, arm, "val_loss")]


def end_of(study: Mapping[str, Any], arm: str) -> str:
    """Write what an arm ends with, in bits a byte.

    Args:
        study: What `Recipe.run` returned.
        arm: Which.

    Returns:
        Mean and interval, or that it diverged.
    """
    return ended(bits_at_end(study, arm))


def of_pair(
    study: Mapping[str, Any], arm: str, baseline: str, metric: str, *, target: bool = False
) -> Mapping[str, Any]:
    """Return what was asked of two arms.

    Args:
        study: What `Recipe.run` returned.
        arm: The one.
        baseline: The other, which the one is held against.
        metric: By which.
        target: Whether a target was named, where that was asked too.

    Returns:
        What `told` made of it, and ``early``: on how many seeds the arm and the baseline had reached the target when
        they were first measured.
    """
    both = [each for each in study["asked"] if (each["baseline"], each["metric"]) == (baseline, metric)]
    asked = next((each for each in both if target == (each["target"] is not None)), both[0])
    found = next(each for each in asked["found"] if each["arm"] == arm)
    return {**found, "early": [_early(study, name, metric, found["target"]) for name in (arm, baseline)]}


def _early(study: Mapping[str, Any], arm: str, metric: str, target: float | None) -> int:
    """Count the seeds on which an arm had reached a target when it was first measured."""
    firsts = [
        next((point[metric] for point in points if metric in point), None)
        for points in study["arms"][arm]["points"].values()
    ]
    sign = -1 if metric.endswith("accuracy") else 1
    return sum(target is not None and first is not None and sign * first <= sign * target for first in firsts)


def speed_of(found: Mapping[str, Any]) -> str:
    """Write how many times as fast an arm is as the other, with its interval.

    Args:
        found: What `of_pair` or `told` returned.

    Returns:
        What can be said of the arm, such as "2.00 (1.50 to 2.50) times as fast as plain": "at least" where it was
        there whenever it was first measured, "at most" where the other was. Where some trial never got there, how many
        did; where the seeds show no difference after correction although the interval does, p.
    """
    baseline = found["baseline"]
    if found["lead"] is None:
        return f"as fast as {baseline} or not cannot be told"
    if any(found["censored"]):
        seeds = found["lead"]["n"]
        ours, theirs = (seeds - missed for missed in found["censored"])
        return f"there on {ours} of {seeds} seeds, {baseline} on {theirs}"
    ours, theirs = found.get("early", (0, 0))
    bound = "" if bool(ours) == bool(theirs) else "at least " if ours else "at most "
    return f"{bound}{shown(found['lead'], of=math.exp)} times as fast as {baseline}{_corrected(found, 'lead')}"


def _corrected(found: Mapping[str, Any], what: str) -> str:
    """Write the corrected p where it says less than the interval."""
    p = found.get(f"{what} p")
    return f", p = {p:.2g}" if p is not None and p > LEVEL and above(found[what]) is not None else ""


def gain_of(
    found: Mapping[str, Any], unit: str, factor: float = 1.0, words: tuple[str, str] = ("better", "worse")
) -> str:
    """Write how much better an arm ends than the other, with its interval; how much worse where it is told to be so.

    Args:
        found: What `told` returned.
        unit: Of what is shown.
        factor: What a recorded difference is multiplied by to be shown.
        words: For a gain and for a loss.

    Returns:
        Text, such as "0.54 (0.44 to 0.64) bits better"; the interval of a loss is that of the loss. Where the seeds
        show no difference after correction although the interval does, p.
    """
    if found["gain"] is None:
        lost = [name for name, times in zip((found["arm"], found["baseline"]), found["diverged"], strict=True) if times]
        return f"{' and '.join(lost)} diverged"
    mean, low, high = (found["gain"][name] for name in ("mean", "low", "high"))
    p = _corrected(found, "gain")
    worse = mean is not None and mean < 0 and (high is None or high < 0)
    if not worse:
        return f"{shown(found['gain'], of=lambda value: factor * value)} {unit} {words[0]}{p}"
    lost_by = {
        "mean": None if mean is None else -mean,
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }
    return f"{shown(lost_by, of=lambda value: factor * value)} {unit} {words[1]}{p}"


def loss_of_epoch(study: Mapping[str, Any], arm: str, steps: int) -> list[float | None]:
    """Average the training loss over the first steps.

    Args:
        study: What `Recipe.run` returned; measured at equal distances, each loss a mean over what lies between.
        arm: Which.
        steps: How many, such as those of the first epoch.

    Returns:
        A loss a seed (nats); None where it was not finite.
    """
    means: list[float | None] = []
    for points in study["arms"][arm]["points"].values():
        losses = [point["train_loss"] for point in points if point["step"] <= steps]
        means.append(None if None in losses or points[-1]["step"] < steps else fmean(losses))
    return means
