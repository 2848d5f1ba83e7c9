"""What a paper says, beside what was measured here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rezero.lab.comparison import Outcome
from rezero.lab.stats import compare_pairs

__all__ = [
    "VERDICTS",
    "Claim",
    "Finding",
    "Verdict",
    "above",
    "below",
    "closed",
    "confirmed",
    "difference",
    "ended",
    "every",
    "interval",
    "judge",
    "shown",
    "written",
]

_ROUNDING = 1e-12  # what is smaller is left of numbers that cancel

Verdict = Literal["does not hold", "holds in part", "cannot be told", "holds"]
VERDICTS: tuple[Verdict, ...] = ("does not hold", "holds in part", "cannot be told", "holds")
"""All of them, contradictions first."""


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim.

    Attributes:
        ours: The numbers, with their intervals.
        verdict: Whether it holds.
    """

    ours: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """Something that a paper says.

    Attributes:
        says: What, in a sentence.
        source: Where it says so.
        published: Its number, or ``no number``.
        find: Reads from the numbers of a reproduction what was measured of it; None where this scale does not ask.
    """

    says: str
    source: str
    published: str
    find: Callable[[Mapping[str, Any]], Finding | None]


def judge(first: bool | None, *others: bool | None) -> Verdict:
    """Return the verdict on a claim of one or several parts.

    Args:
        first: Whether the first part holds; None where the numbers do not tell.
        *others: Whether each other one does.

    Returns:
        The verdict: of parts that do not hold and parts that cannot be told the claim does not hold.

    Example:
        >>> judge(True, False), judge(False, None), judge(None)
        ('holds in part', 'does not hold', 'cannot be told')
    """
    parts = (first, *others)
    if all(parts):
        return "holds"
    if any(parts):
        return "holds in part"
    return "does not hold" if False in parts else "cannot be told"


def every(*parts: bool | None) -> bool | None:
    """Tell whether something holds of all, so that one that it does not hold of is enough.

    Args:
        *parts: Whether it does of each; None where the numbers do not tell.

    Returns:
        Whether; None where nothing contradicts it, and the numbers do not tell of some.

    Example:
        >>> every(True, True), every(True, None, False), every(True, None)
        (True, False, None)
    """
    return False if False in parts else None if None in parts else True


def above(found: Mapping[str, float | None] | None, mark: float = 0.0) -> bool | None:
    """Tell whether a mean is above a mark, by its interval.

    Args:
        found: ``mean``, ``low`` and ``high``; None where nothing could be compared.
        mark: The mark.

    Returns:
        Whether; None where the mark lies within the interval, or where there is none, as of a single seed.

    Example:
        >>> above({"mean": 2.0, "low": 1.0, "high": 3.0}), above({"mean": 2.0, "low": -1.0, "high": 5.0})
        (True, None)
    """
    if found is None or (low := found["low"]) is None or (high := found["high"]) is None:
        return None
    return True if low > mark else False if high < mark else None


def below(found: Mapping[str, float | None] | None, mark: float = 0.0) -> bool | None:
    """Tell whether a mean is below a mark, by its interval.

    Args:
        found: As `above` takes it.
        mark: The mark.

    Returns:
        Whether; None where `above` does not tell.
    """
    return None if (higher := above(found, mark)) is None else not higher


def confirmed(outcome: Outcome) -> bool | None:
    """Tell whether the lab's tests find more of what is good.

    Args:
        outcome: What they find.

    Returns:
        Whether; None where they find no difference, which is not the same as that there is none.
    """
    return {"more": True, "less": False}.get(outcome)


def interval(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and 95% interval over seeds.

    Args:
        values: A number a seed; None of one that diverged.

    Returns:
        ``mean``, ``low`` and ``high``, of Student's t; both ends are None where a single seed gives none, and all three
        where a seed diverged.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "low": None, "high": None}
    pairs = compare_pairs(known)
    return {name: None if math.isnan(value) else value for name, value in _ends(pairs).items()}


def difference(more: Sequence[float | None], less: Sequence[float | None]) -> dict[str, float | None]:
    """Return mean and 95% interval of a difference over paired seeds.

    Args:
        more: A number a seed; None of one that diverged.
        less: What is taken away, of the same seeds.

    Returns:
        As `interval` does.
    """
    pairs = zip(more, less, strict=True)
    return interval([None if one is None or other is None else one - other for one, other in pairs])


def ended(values: Sequence[float | None], form: str = "#.3g") -> str:
    """Write what seeds end with.

    Args:
        values: A number a seed; None of one that diverged.
        form: As `shown` takes it.

    Returns:
        Mean and interval, or that one diverged.
    """
    return "diverged" if None in values else shown(interval(values), form)


def closed(found: Mapping[str, float | None]) -> tuple[float, float, float]:
    """Return mean, low and high end of an interval; where a single seed gives none, its value is all three.

    Args:
        found: ``mean``, ``low`` and ``high``.

    Returns:
        The numbers.

    Example:
        >>> closed({"mean": 2.0, "low": None, "high": None})
        (2.0, 2.0, 2.0)
    """
    mean = found["mean"]
    assert mean is not None  # noqa: S101 - of a value at least
    low, high = (mean if found[end] is None else found[end] for end in ("low", "high"))
    return mean, low, high  # type: ignore[return-value]


def _ends(pairs: Any) -> dict[str, float]:
    return {"mean": pairs.mean, "low": pairs.low, "high": pairs.high}


def shown(found: Mapping[str, float | None] | None, form: str = "#.3g", *, of: Callable[[float], float] = float) -> str:
    """Write a mean and its interval.

    Args:
        found: ``mean``, ``low`` and ``high``; None where nothing could be compared.
        form: Of each number, as `format` takes it.
        of: Is applied to each number before, such as `math.exp` to a logarithm.

    Returns:
        Text.

    Example:
        >>> shown({"mean": 2.0, "low": 1.0, "high": 3.0})
        '2.00 (1.00 to 3.00)'
        >>> shown({"mean": 2.0, "low": None, "high": None})
        '2.00 (one seed)'
    """
    if found is None or found["mean"] is None:
        return "cannot be told"
    middle = written(of(found["mean"]), form)
    if found["low"] is None or found["high"] is None:
        return f"{middle} (one seed)"
    return f"{middle} ({written(of(found['low']), form)} to {written(of(found['high']), form)})"


def written(value: float, form: str = "#.3g") -> str:
    """Write a number, by default with three digits, zeros at the end among them.

    Args:
        value: The number.
        form: As `format` takes it.

    Returns:
        Text.

    Example:
        >>> written(394.08), written(2.0)
        ('394', '2.00')
    """
    return format(value if abs(value) > _ROUNDING else 0.0, form).removesuffix(".")
