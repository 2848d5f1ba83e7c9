"""Charts of an `AlphaHistory`, thinned to what a chart can show."""

import math
from collections.abc import Container, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rezero.errors import UsageError

if TYPE_CHECKING:
    from rezero.diagnose.alpha_history import AlphaHistory

__all__ = ["draw_lines", "draw_map", "draw_profile"]

MOST = 200  # gates, and records, in a chart


def draw_map(history: "AlphaHistory", *, signed: bool | None) -> Any:
    """Draw what `AlphaHistory.heat_map` says."""
    charts = _charts(history)
    alphas = history.alphas
    signed = bool((alphas < 0).any()) if signed is None else signed
    for axis, length in enumerate(alphas.shape):
        bins = alphas.tensor_split(min(length, MOST), dim=axis)
        alphas = torch.stack([_largest(each, axis) for each in bins], dim=axis)
    steps = _names(history.steps, charts.ticks.round_places(history.steps.tolist()))
    gates = _names(torch.arange(1, len(history.names) + 1), charts.ticks.block_labels(len(history.names)))
    rows = [
        {"gate": gate, "x": step} | ({"alpha": alpha} if signed else {"size": abs(alpha)})
        for step, row in zip(steps, alphas.tolist(), strict=True)
        for gate, alpha in zip(gates, row, strict=True)
        if math.isfinite(alpha)
    ]
    description = f"{'Value' if signed else 'Size'} of every gate over depth and time."
    return charts.gate_map(rows, x="step", description=description, signed=signed, gate="gate")


def draw_lines(history: "AlphaHistory") -> Any:
    """Draw what `AlphaHistory.lines` says."""
    charts = _charts(history)
    records, gates = (_evenly(length) for length in history.alphas.shape)
    rows = [
        {"gate": gate + 1, "x": step, "alpha": alpha if math.isfinite(alpha) else None}
        for gate in gates.tolist()
        for step, alpha in zip(history.steps[records].tolist(), history.alphas[records, gate].tolist(), strict=True)
    ]
    return charts.gate_lines(rows, x="step", description="Value of every gate over time, coloured by its depth.")


def draw_profile(histories: Sequence["AlphaHistory"], *, signed: bool) -> Any:
    """Draw what `AlphaHistory.profile` says."""
    first = histories[0]
    if other := next((each for each in histories if each.names != first.names), None):
        raise UsageError(
            f"expected runs of one model, got one with {len(first.names)} gates and one with {len(other.names)}, or "
            "with other names"
        )
    charts = _charts(*histories)
    ends = torch.stack([each.alphas[-1] for each in histories])
    ends = ends if signed else ends.abs()
    low, median, high = ends.nanquantile(torch.tensor([0, 0.5, 1], dtype=ends.dtype), dim=0)
    spread = f" (median and range of {len(histories)} runs)"
    if len(histories) == 1:
        spread = ""
        if signed and first.lows is not None and first.highs is not None:
            low, high = first.lows[-1], first.highs[-1]
            spread = " (mean and range of channels)"
    rows = [
        {"gate": gate + 1, "median": median[gate].item(), "low": low[gate].item(), "high": high[gate].item()}
        for gate in _evenly(len(first.names)).tolist()
        if math.isfinite(median[gate])
    ]
    name = "alpha" if signed else "|alpha|"
    return charts.gate_profile(
        rows, y=f"{name}{spread}", description=f"Value of every gate at the last record{spread}."
    )


def _charts(*histories: "AlphaHistory") -> ModuleType:
    """Load what draws, once it is sure that there is something to draw."""
    if not all(len(each.steps) and each.names for each in histories):
        raise UsageError("there is nothing to draw: expected one record or more of gates, the history has none")
    try:
        from rezero import charts
    except ImportError as error:
        raise ImportError("charts need altair and vl-convert: pip install 'rezero-torch[lab]'") from error
    return charts


def _largest(alphas: Tensor, axis: int) -> Tensor:
    """Return the numbers of largest size along an axis."""
    place = alphas.abs().nan_to_num(nan=-1).argmax(axis, keepdim=True)
    return alphas.gather(axis, place).squeeze(axis)


def _names(numbers: Tensor, labels: Container[float]) -> list[int]:
    """Name each bin by the number in it that an axis labels, or else by its last."""
    bins = [each.tolist() for each in numbers.tensor_split(min(len(numbers), MOST))]
    return [next((number for number in each if number in labels), each[-1]) for each in bins]


def _evenly(length: int) -> Tensor:
    """Choose places from the first to the last."""
    return torch.linspace(0, length - 1, min(length, MOST), dtype=torch.float64).round().long()
