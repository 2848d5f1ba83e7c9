"""In words: does a rule hold over depth?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["ALIKE", "JUMP", "LARGE", "STEADY", "Verdict", "judge"]

LARGE = math.e
"""A first step that changes the output by more than this many times itself is an explosion."""
JUMP = 2.0
"""A loss that the first step multiplies by more than this has jumped."""
STEADY = 0.25
"""A change that follows ``depth^p`` with ``|p|`` up to this is steady: doubling the depth makes it 1.2 times."""
ALIKE = 1e-3
"""Outputs that differ between examples by less than this share of themselves do not depend on the input."""

Kind = Literal["explodes", "still", "grows", "steady", "shrinks", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """How the first step of one rule depends on depth, by the medians over the seeds.

    ``kind`` is ``"explodes"`` where the output changes by more than e times itself at some depth, or is not finite;
    else ``"still"`` where all examples have the same output at some depth even after the last step, so that the network
    learns nothing of them, or where the first step changes nothing; else ``"grows"`` or ``"shrinks"`` where the change
    follows a power of the depth above 0.25 or below -0.25, and ``"steady"`` between; ``"unknown"`` where it is known
    at one depth alone.

    Attributes:
        rule: Name of the rule.
        kind: The verdict.
        slope: Power of the depth that fits the change of the output best, by least squares over all depths where it is
            finite and not zero; None for fewer than two.
        spread: The largest of those changes divided by the smallest.
        exceeds: The first depth where the change exceeds e; None if none does.
        jumps: The first depth where the loss after the step is more than twice the loss at the start.
        lost: The first depth where something is not finite.
        alike: The first depth where the outputs of different examples differ by less than a thousandth of the output
            after the last step.
        largest: The largest finite change.
        depths: The smallest and the largest depth.
    """

    rule: str
    kind: Kind
    slope: float | None
    spread: float | None
    exceeds: int | None
    jumps: int | None
    lost: int | None
    largest: float | None
    depths: tuple[int, int]
    alike: int | None = None

    def __str__(self) -> str:
        if self.largest is None and self.lost is None:
            return f"{self.rule}: the first step changes nothing"
        same = f"after the last step all examples have the same output at depth {self.alike:,}" if self.alike else ""
        if self.kind == "still":
            return f"{self.rule} stands still: {same}"
        if self.kind == "unknown":
            return f"{self.rule} unknown: the change of the output is known at one depth, and takes two to compare"
        low, high = self.depths
        parts = []
        if self.kind in {"grows", "shrinks"} or (self.kind == "explodes" and (self.slope or 0) > STEADY):
            parts.append(f"follows depth^{self.slope:.1f}")
        if self.kind == "steady" and self.spread is not None:
            parts.append(f"stays within a factor of {self.spread:.1f} from depth {low:,} to {high:,}")
        if self.exceeds is not None:
            parts.append(f"exceeds e times the output at depth {self.exceeds:,}")
        if self.exceeds is not None and self.largest is not None:
            parts.append(f"reaches {self.largest:.2g} times" + (" before" if self.lost is not None else ""))
        text = f"{self.rule} {self.kind}"
        if parts:
            text += f": the first step's change of the output {_listed(parts)}"
        if self.jumps is not None:
            text += f"; the loss more than doubles at depth {self.jumps:,}"
        if self.lost is not None:
            text += f"; not finite at depth {self.lost:,}"
        return f"{text}; {same}" if same else text

    def to_json(self) -> dict[str, Any]:
        """Return it in plain types, with its words."""
        return {**asdict(self), "depths": list(self.depths), "words": str(self)}


def judge(
    rule: str,
    changes: Mapping[int, float | None],
    jumps: Mapping[int, float | None],
    contrasts: Mapping[int, float | None] | None = None,
) -> Verdict:
    """Judge a rule.

    Args:
        rule: Its name.
        changes: Depth to the change of the output by the first step; None where it can't be told.
        jumps: Depth to the loss after the first step divided by that at the start; None where it can't be told.
        contrasts: Depth to how much the outputs of examples differ after the last step; None where it can't be told.

    Returns:
        The verdict.
    """
    finite = {depth: each for depth, each in changes.items() if each is not None and 0 < each < math.inf}
    slope = _slope(finite) if len(finite) > 1 else None
    lost = _first(depth for depth, each in changes.items() if each is not None and not each < math.inf)
    exceeds = _first(depth for depth, each in changes.items() if each is not None and each > LARGE)
    alike = _first(depth for depth, each in (contrasts or {}).items() if each is not None and each < ALIKE)
    kind: Kind = "steady"
    if exceeds is not None or lost is not None:
        kind = "explodes"
    elif alike is not None or not finite:
        kind = "still"
    elif slope is None:
        kind = "unknown"
    elif abs(slope) > STEADY:
        kind = "grows" if slope > 0 else "shrinks"
    return Verdict(
        rule,
        kind,
        slope,
        max(finite.values()) / min(finite.values()) if finite else None,
        exceeds,
        _first(depth for depth, each in jumps.items() if each is not None and each > JUMP),
        lost,
        max(finite.values(), default=None),
        (min(changes), max(changes)),
        alike,
    )


def _slope(finite: Mapping[int, float]) -> float:
    """Fit a line to the logarithms by least squares."""
    xs, ys = [math.log(depth) for depth in finite], [math.log(each) for each in finite.values()]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - mean_x) ** 2 for x in xs)


def _first(depths: Any) -> int | None:
    return min(depths, default=None)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
