"""Somebody's own script or function as the subject of a study: its settings, and what its metrics mean."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from rezero.errors import UsageError, near
from rezero.lab.design import Design
from rezero.lab.quality import Quality

__all__ = ["OwnSettings", "choose_metric", "own_quality"]

Goal = Literal["min", "max"]
PREFERRED = (
    "val_accuracy",
    "eval_accuracy",
    "val_loss",
    "eval_loss",
    "test_accuracy",
    "test_loss",
    "train_loss",
    "loss",
)
_DOWN = r"loss|error|perplexity|ppl|nll|bpc|bpb|bits|mse|mae|rmse|wer|cer|fid"
_UP = r"acc|accuracy|f1|auc|auroc|ap|map|miou|iou|dice|bleu|rouge|r2|psnr|ssim|score|reward|return|precision|recall"


@dataclass(frozen=True, kw_only=True)
class OwnSettings(Design):
    """Everything that decides the numbers of a study of one's own script or function.

    Attributes:
        script: Path of the script, or the name of the function.
        digest: SHA-256 of its text, so that an edited script is another study.
        arguments: What the script is given.
        goal: Whether low or high values of the metric are good; None tells it by its name.
        time_limit: Seconds that a trial may take; None lets it take its time.
    """

    script: str
    digest: str
    arguments: tuple[str, ...] = ()
    goal: Goal | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune_over != "lr":
            raise UsageError(f"of a script only the rate can be tuned, with rezero.lab.lr(): got {self.tune_over!r}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UsageError(f"time-limit must be a number of seconds above 0: got {self.time_limit}")


def choose_metric(logged: Collection[str], asked: str | None) -> str:
    """Choose the metric that decides.

    Args:
        logged: The metrics that a trial has logged.
        asked: The one that was asked for; None leaves the choice.

    Returns:
        Its name.

    Raises:
        UsageError: If it was not logged, or none that is logged speaks for itself.
    """
    if asked is not None:
        if asked not in logged:
            raise UsageError(
                f"expected the script to log {asked!r}{near(asked, logged)}, got {', '.join(sorted(logged)) or 'nothing'}"
            )
        return asked
    known = [name for name in PREFERRED if name in logged]
    if not known:
        raise UsageError(
            f"which metric decides? Give --metric, one of {', '.join(sorted(logged)) or 'none: nothing was logged'}"
        )
    return known[0]


def own_quality(metric: str, goal: Goal | None) -> Quality:
    """Say which way a metric is good, by its name unless told.

    Args:
        metric: Its name, such as ``val_accuracy``.
        goal: ``min``, ``max`` or None.

    Returns:
        The measure.

    Raises:
        UsageError: If neither says.

    Example:
        >>> own_quality("val_perplexity", None).lower_is_better
        True
    """
    words = {*re.split(r"[^a-z0-9]+", metric.lower())}
    if goal is None:
        if any(re.fullmatch(_DOWN, word) for word in words):
            goal = "min"
        elif any(re.fullmatch(_UP, word) for word in words):
            goal = "max"
        else:
            raise UsageError(f"is a low or a high {metric} good? Give --goal min or --goal max")
    name = " ".join(metric.replace("val", "validation", 1).split("_")) if metric.startswith("val_") else metric
    percent = bool(words & {"acc", "accuracy"})
    return Quality(name.replace("_", " "), "", metric, 1.0, lower_is_better=goal == "min", percent=percent)
