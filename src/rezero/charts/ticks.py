"""Round numbers on axes."""

import math
from collections.abc import Sequence
from typing import Any

__all__ = ["block_labels", "log_ticks", "round_places", "value_ticks", "visible_log_ticks"]

_SMALLEST = 1e-300  # so close to zero steps can't be told apart


def value_ticks(rows: Sequence[dict[str, Any]], *, log: bool, percent: bool) -> list[float]:
    """Find round numbers around all values; a zero, which has no place on a log axis, is drawn at its lower end."""
    drawn = [row[name] if abs(row[name]) > _SMALLEST else 0.0 for row in rows for name in ("low", "median", "high")]
    values = [value for value in drawn if value > 0 or not log]
    low, high = min(values, default=0.1), max(values, default=1.0)
    if high - low < 0.01 * max(abs(low), abs(high)):
        low, high = low - 0.1 * abs(low), high + 0.1 * abs(high)  # a level line lies in the middle
    ticks = log_ticks(low, high) if log and high > 3 * low else _linear_ticks(low, high)
    return [tick for tick in ticks if tick <= 1] if percent else ticks


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, where those are few with their double and fivefold, from ``low`` or below to ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = math.ceil((last - first) / 9)
    factors = (1, 2, 5) if high <= 1000 * low else (1,)
    ticks = [float(f"{factor}e{power}") for power in range(first, last + stride, stride) for factor in factors]
    return [t for i, t in enumerate(ticks) if ticks[min(i + 1, len(ticks) - 1)] > low and ticks[max(i - 1, 0)] < high]


def visible_log_ticks(low: float, high: float) -> list[float]:
    """Return `log_ticks` that lie between the two; on an axis too short for three, multiples of a round step."""
    ticks, finer = (
        [t for t in found if low <= t <= high] for found in (log_ticks(low, high), _linear_ticks(low, high))
    )
    return ticks if len(ticks) > 2 else finer


def _linear_ticks(low: float, high: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 of a power of ten, at most eight, from below ``low`` to above ``high``."""
    if low == high:  # all zero
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(factor * power for factor in (1, 2, 5, 10) if 6 * factor * power >= high - low)
    return [float(f"{i * step:.12g}") for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def block_labels(count: int) -> list[int]:
    """Choose which blocks of so many are named: the first, the last, and round numbers between."""
    step = next(step for power in range(10) for step in (10**power, 2 * 10**power, 5 * 10**power) if count <= 16 * step)
    return sorted({1, count, *range(step, count - step // 2, step)}) if count else []


def round_places(places: Sequence[float]) -> list[float]:
    """Choose some of many rising numbers, at most ten: the multiples of the roundest step, and the first if it is 0."""
    step = next(
        factor * 10.0**power
        for power in range(-12, 308)
        for factor in (1, 2, 5)
        if places[-1] - places[0] <= 9 * factor * 10.0**power
    )
    found = [place for place in places if math.isclose(place, step * round(place / step), abs_tol=1e-9 * step)]
    return found if len(found) > 2 else [places[0], places[len(places) // 2], places[-1]]
