"""What the numbers of a study say, in words."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rezero.papers.claims import interval, shown

__all__ = ["bits_at_end", "end_of", "gain_of", "loss_of_epoch", "of_pair", "speed_of"]


def bits_at_end(study: Mapping[str, Any], arm: str) -> list[float | None]:
    """Return the validation losses that an arm ends with.

    Args:
        study: What `Recipe.run` returned.
        arm: Which.

    Returns:
        Bits a byte, a seed each; None where it diverged.
    """
    losses = [points[-1]["val_loss"] for points in study["arms"][arm]["points"].values()]
    return [None if loss is None else loss / math.log(2) for loss in losses]


def end_of(study: Mapping[str, Any], arm: str) -> str:
    """Write what an arm ends with, in bits a byte.

    Args:
        study: What `Recipe.run` returned.
        arm: Which.

    Returns:
        Mean and interval, or that it diverged.
    """
    ends = bits_at_end(study, arm)
    return "diverged" if None in ends else shown(interval([end for end in ends if end is not None]))


def of_pair(study: Mapping[str, Any], arm: str, baseline: str, metric: str) -> Mapping[str, Any]:
    """Return what was asked of two arms.

    Args:
        study: What `Recipe.run` returned.
        arm: The one.
        baseline: The other, which the one is held against.
        metric: By which.

    Returns:
        What `told` made of it, and ``early``: on how many seeds the arm and the baseline had reached the target when
        they were first measured.
    """
    asked = next(each for each in study["asked"] if (each["baseline"], each["metric"]) == (baseline, metric))
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
        Text: "at least" where the one was there whenever it was first measured, "at most" where the other was.
    """
    if found["lead"] is not None and any(found["censored"]):
        which = found["arm"] if found["censored"][0] else found["baseline"]
        return f"{which} never got there on {max(found['censored'])} of {found['lead']['n']} seeds"
    ours, theirs = found.get("early", (0, 0))
    bound = "" if bool(ours) == bool(theirs) else "at least " if ours else "at most "
    return f"{bound}{shown(found['lead'], of=math.exp)}"


def gain_of(
    found: Mapping[str, Any], unit: str, factor: float = 1.0, words: tuple[str, str] = ("better", "worse")
) -> str:
    """Write how much better or worse an arm ends than the other, with its interval.

    Args:
        found: What `told` returned.
        unit: Of what is shown.
        factor: What a recorded difference is multiplied by to be shown.
        words: For a gain and for a loss.

    Returns:
        Text, such as "0.54 (0.44 to 0.64) bits better"; the interval of a loss is that of the loss.
    """
    if found["gain"] is None:
        lost = [name for name, times in zip((found["arm"], found["baseline"]), found["diverged"], strict=True) if times]
        return f"{' and '.join(lost)} diverged"
    mean, low, high = (found["gain"][name] for name in ("mean", "low", "high"))
    if mean is None or mean >= 0:
        return f"{shown(found['gain'], of=lambda value: factor * value)} {unit} {words[0]}"
    lost_by = {"mean": -mean, "low": None if high is None else -high, "high": None if low is None else -low}
    return f"{shown(lost_by, of=lambda value: factor * value)} {unit} {words[1]}"


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
