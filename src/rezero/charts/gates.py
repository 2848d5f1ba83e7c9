"""Gates over depth and time."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from rezero.charts.look import COLOURS, dress
from rezero.charts.ticks import block_labels, round_places

__all__ = ["gate_lines", "gate_map", "gate_profile"]

MANY = 20  # places on an ordinal axis that are no longer labelled one by one
DOTS = 64  # gates of a profile that are still marked one by one


def gate_map(
    rows: Sequence[dict[str, Any]], *, x: str, description: str, signed: bool = False, gate: str = "block"
) -> alt.Chart:
    """Draw the size of every gate over depth and time, or its value with its sign.

    Args:
        rows: Cells with the keys ``gate`` (from 1), ``x``, and ``size``, or ``alpha`` where signs matter.
        x: Title of the horizontal axis, with its unit.
        description: What the chart shows, for readers who do not see it.
        signed: Whether signs matter: colours then part at zero.
        gate: What a gate stands for, in the titles.

    Returns:
        The chart.
    """
    field, title = ("alpha", "alpha") if signed else ("size", "|alpha|")
    largest = max((abs(row[field]) for row in rows), default=0) or 1  # all are zero at the start
    scale = (
        alt.Scale(scheme="blueorange", domain=[-largest, largest])
        if signed
        else alt.Scale(scheme="cividis", reverse=True, domain=[0, largest])
    )
    places = sorted({row["x"] for row in rows})
    named: dict[str, Any] = {"values": round_places(places)} if len(places) > MANY else {}
    chart: alt.Chart = (
        alt.Chart()
        .mark_rect(stroke=alt.ExprRef(f"scale('color', datum.{field})"), strokeWidth=1)  # covers seams between cells
        .encode(
            x=alt.X("x:O", title=x, axis=alt.Axis(labelAngle=0, labelOverlap=True, format="~g", **named)),
            y=alt.Y(
                "gate:O",
                title=f"{gate}, from the input",
                axis=alt.Axis(values=block_labels(max((row["gate"] for row in rows), default=0))),
                scale=alt.Scale(reverse=True),
            ),
            color=alt.Color(
                f"{field}:Q",
                scale=scale,
                legend=alt.Legend(title=title, orient="top", gradientLength=240 if signed else 180, format="~g"),
            ),
            tooltip=[
                alt.Tooltip("gate:O", title=gate),
                alt.Tooltip("x:O", title=x, format="~g"),
                alt.Tooltip(f"{field}:Q", title=title, format=".3g"),
            ],
        )
    )
    dressed: alt.Chart = _filled(dress(chart, description), rows)
    return dressed


def gate_lines(rows: Sequence[dict[str, Any]], *, x: str, description: str) -> alt.LayerChart:
    """Draw every gate as a line over time, coloured by its depth.

    Args:
        rows: Points with the keys ``gate`` (from 1), ``x`` and ``alpha``; a line breaks where that is None.
        x: Title of the horizontal axis, with its unit.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    depth = max((row["gate"] for row in rows), default=1)
    legend = alt.Legend(
        title="gate, from the input",
        orient="top",
        gradientLength=180,
        values=sorted({1, (depth + 1) // 2, depth}),
        format="d",
    )
    # The bright end of the scale is left out, which is hard to see on white.
    colours = alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0, 0.9]), domain=[1, max(2, depth)])
    lines = (
        alt.Chart()
        .mark_line(strokeWidth=1.8 if depth <= 32 else 1, opacity=0.9, point=len({row["x"] for row in rows}) == 1)
        .encode(
            x=alt.X(
                "x:Q",
                title=x,
                scale=alt.Scale(nice=False),
                axis=alt.Axis(format="~f", tickMinStep=1, tickCount=8, labelFlush=False),
            ),
            y=_values("alpha", "alpha", rows),
            detail="gate:N",
            color=alt.Color("gate:Q", scale=colours, legend=legend if depth > 1 else None),
            tooltip=[
                alt.Tooltip("gate:Q", title="gate"),
                alt.Tooltip("x:Q", title=x),
                alt.Tooltip("alpha:Q", format=".3g"),
            ],
        )
    )
    dressed: alt.LayerChart = _filled(dress(alt.layer(_zero(), lines), description), rows)
    return dressed


def gate_profile(rows: Sequence[dict[str, Any]], *, y: str, description: str) -> alt.LayerChart:
    """Draw gates over their depth: a line, shaded from the lowest to the highest value.

    Args:
        rows: Points with the keys ``gate`` (from 1), ``median``, ``low`` and ``high``.
        y: Title of the vertical axis.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    depth = max((row["gate"] for row in rows), default=1)
    domain = [1, depth] if depth > 1 else [0, 2]
    horizontal = alt.X(
        "gate:Q",
        title="gate, from the input",
        scale=alt.Scale(domain=domain, nice=False, padding=12),
        axis=alt.Axis(values=block_labels(depth), format="d"),
    )
    base = alt.Chart()
    spread = base.mark_area(opacity=0.25, color=COLOURS["rezero"]).encode(
        x=horizontal, y=_values("low", y, rows), y2="high:Q"
    )
    line = base.mark_line(
        strokeJoin="round",
        strokeWidth=2.5 if depth <= DOTS else 1.5,
        color=COLOURS["rezero"],
        point=alt.OverlayMarkDef(size=30, filled=True, color=COLOURS["rezero"]) if depth <= DOTS else False,
    ).encode(
        x=horizontal,
        y=_values("median", y, rows),
        tooltip=[
            alt.Tooltip("gate:Q", title="gate"),
            *(alt.Tooltip(f"{name}:Q", format=".3g") for name in ("median", "low", "high")),
        ],
    )
    dressed: alt.LayerChart = _filled(dress(alt.layer(_zero(), spread, line), description), rows)
    return dressed


def _values(field: str, title: str, rows: Sequence[dict[str, Any]]) -> alt.Y:
    """Return a vertical axis, which needs an extent of its own where all is zero."""
    shown = any(row.get(name) for row in rows for name in ("alpha", "median", "low", "high"))
    scale = alt.Scale() if shown else alt.Scale(domain=[-1, 1])
    return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(format="~g"))


def _zero() -> alt.Chart:
    """Draw a line at zero, where a block is the identity."""
    rule: alt.Chart = alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(color="#999999").encode(y="zero:Q")
    return rule


def _filled(chart: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Give a chart its table at last, and as plain data: Altair copies and checks every row, which takes seconds."""
    chart.data = {"values": list(rows)}
    return chart
