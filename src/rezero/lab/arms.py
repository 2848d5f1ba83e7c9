"""The arms of a study: variants of one model, each a residual formula and what else it has of its own."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from rezero.errors import UsageError, near

__all__ = ["OWN", "Arm", "parse_arms", "read_arm", "split_arms"]

OWN: dict[str, type[int] | type[float]] = {
    "lr": float,
    "alpha-lr": float,
    "warmup": int,
    "weight-decay": float,
    "embedding-std": float,
    "alpha": float,
}
"""Settings that an arm can have of its own, as they are written, and their kinds."""


@dataclass(frozen=True)
class Arm:
    """What an arm's text says.

    Attributes:
        formula: Residual formula.
        own: Settings in which it differs from the study's, name to number.
    """

    formula: str
    own: dict[str, float]


def read_arm(text: str) -> Arm:
    """Read an arm such as ``"post-norm warmup=400"``.

    Args:
        text: The formula, then settings of this arm alone: lr, alpha-lr, warmup, weight-decay, embedding-std, alpha. A
            text with anything else behind its first word is a name as a whole.

    Returns:
        The formula and the settings, named as `Settings` names them.

    Raises:
        UsageError: If a setting is given twice or is not a number.

    Example:
        >>> read_arm("post-norm warmup=400")
        Arm(formula='post-norm', own={'warmup': 400})
    """
    formula, *words = text.split() or [""]
    pairs = [word.partition("=") for word in words]
    if not all(equals and name in OWN for name, equals, _ in pairs):
        return Arm(text, {})
    own: dict[str, float] = {}
    for name, _, value in pairs:
        try:
            number = OWN[name](value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            kind = "whole number" if OWN[name] is int else "finite number"
            raise UsageError(f"{name} of an arm must be a {kind}, got {value!r} in {text!r}")
        if (field := name.replace("-", "_")) in own:
            raise UsageError(f"expected {name} once, got it twice in {text!r}")
        own[field] = number
    return Arm(formula, own)


def parse_arms(text: str, known: Collection[str]) -> tuple[str, ...]:
    """Read a list of arms such as ``"rezero, post-norm warmup=400"``.

    Args:
        text: Arms separated by commas.
        known: The formulas that the task defines.

    Returns:
        The arms' texts, in the order given, with single spaces.

    Raises:
        UsageError: If the list is empty, a formula or setting is unknown, or an arm is given twice.

    Example:
        >>> parse_arms("rezero, plain  warmup=5", ["plain", "rezero"])
        ('rezero', 'plain warmup=5')
    """
    arms = split_arms(text)
    if not arms:
        raise UsageError(f"expected at least one arm, got {text!r}; choose from {', '.join(known)}")
    for arm in arms:
        if (name := read_arm(arm).formula) not in known:
            settings = f"; settings of an arm are {', '.join(OWN)}" if "=" in name else ""
            raise UsageError(
                f"no arm of this task is called {name!r}{near(name, known)}; choose from {', '.join(known)}{settings}"
            )
    return arms


def split_arms(text: str) -> tuple[str, ...]:
    """Split a list of arms at its commas.

    Args:
        text: Arms separated by commas.

    Returns:
        The arms' texts, in the order given, with single spaces.

    Raises:
        UsageError: If an arm is given twice.
    """
    arms = tuple(" ".join(part.split()) for part in text.split(",") if part.strip())
    read = [read_arm(arm) for arm in arms]
    for arm, each in zip(arms, read, strict=True):
        if read.count(each) > 1:
            raise UsageError(f"expected each arm once, got {arm!r} {read.count(each)} times")
    return arms
