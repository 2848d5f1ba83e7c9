"""Somebody's own script or function as the subject of a study: its settings, and what its metrics mean."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rezero.errors import UsageError, near
from rezero.lab.arms import read_arm
from rezero.lab.design import Design
from rezero.lab.quality import Quality

__all__ = ["FAILURES", "LOGS", "OwnSettings", "check_own_arms", "choose_metric", "own_quality"]

FAILURES = ("crashed", "timed out", "silent")
LOGS = "logs"  # the folder, in that of the study, of what scripts print
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
    goal: str | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune_over != "lr":
            raise UsageError(f"of a script only the rate can be tuned, with rezero.lab.lr(): got {self.tune_over!r}")
        if self.goal not in (None, "min", "max"):
            raise UsageError(f"goal must be min or max: got {self.goal!r}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise UsageError(f"time-limit must be a number of seconds above 0: got {self.time_limit}")

    def decides(self) -> dict[str, Any]:
        """Return what tells this study from another one: no patience, and no metric where nothing is tuned by it."""
        of_readers = {"time_limit"} if self.tune else {"time_limit", "metric", "goal"}
        return {name: value for name, value in super().decides().items() if name not in of_readers}

    def folder(self) -> Path:
        """Return where the study lies unless it is told otherwise."""
        key = sha256(repr(self.decides()).encode()).hexdigest()[:8]
        return Path("rezero-studies") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(self.script).stem)}-{key}"


def check_own_arms(arms: Collection[str], known: Collection[str] | None = None, *, tuned: bool = False) -> None:
    """Refuse arms that a script or function can't have.

    Args:
        arms: Names, each with what it has of its own: ``rezero lr=3`` runs at three times the script's rate.
        known: The names there are; None leaves that to the script.
        tuned: Whether rates are tuned, so that none can have its own.

    Raises:
        UsageError: If there is none, one is not printable, or has settings of its own other than a possible lr.
    """
    if not arms:
        raise UsageError("expected at least one arm, such as original or rezero, got none")
    for each in arms:
        arm = read_arm(each)
        if not each.isprintable():
            raise UsageError(f"the name of an arm must be printable text: got {each!r}")
        if known is not None and arm.formula not in known:
            raise UsageError(
                f"no arm is called {arm.formula!r}{near(arm.formula, known)}; there are {', '.join(sorted(known))}"
            )
        if others := arm.own.keys() - {"lr"}:
            raise UsageError(f"an arm of a script can have lr of its own, no {', '.join(sorted(others))}: got {each!r}")
        if arm.own and tuned:
            raise UsageError(f"lr is tuned: leave it out of the arm {each!r}, or give --tune off")
        if not arm.own.get("lr", 1.0) > 0:
            raise UsageError(f"lr of an arm must be a finite number above 0: got {each!r}")


def choose_metric(logged: Collection[str], asked: str | None) -> str:
    """Choose the metric that decides.

    Args:
        logged: The metrics that a trial has logged.
        asked: The one that was asked for; None leaves the choice.

    Returns:
        Its name.

    Raises:
        UsageError: If it was not logged, or no name of one that was says which way is up.
    """
    if asked is not None:
        if asked not in logged:
            raise UsageError(
                f"expected the script to log {asked!r}{near(asked, logged)}, "
                f"got {', '.join(sorted(logged)) or 'nothing'}"
            )
        return asked
    held_out = re.compile(r"val|eval|valid|validation|test|dev")
    told = sorted(filter(_goal, logged), key=lambda name: (not held_out.match(name.lower()), name))
    known = [name for name in PREFERRED if name in logged] + told
    if not known:
        raise UsageError(f"which metric decides? Give --metric, one of {', '.join(sorted(logged))}, and --goal")
    return known[0]


def own_quality(metric: str, goal: str | None) -> Quality:
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
    goal = goal or _goal(metric)
    if goal is None:
        raise UsageError(f"is a low or a high {metric} good? Give --goal min or --goal max")
    words = [
        {"val": "validation", "eval": "evaluation", "train": "training"}.get(word, word) for word in metric.split("_")
    ]
    return Quality(" ".join(words), "", metric, 1.0, lower_is_better=goal == "min", percent=False, significant=True)


def _goal(metric: str) -> str | None:
    """Tell by the words of a metric's name which way is up."""
    words = re.split(r"[^a-z0-9]+", metric.lower())
    if any(re.fullmatch(_DOWN, word) for word in words):
        return "min"
    return "max" if any(re.fullmatch(_UP, word) for word in words) else None
