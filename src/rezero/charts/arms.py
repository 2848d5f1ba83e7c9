"""What a study says beside its curves: how soon each seed arrives, how seeds end, what rates do."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from rezero.charts.look import DASHES, colours, dress
from rezero.charts.ticks import value_ticks

__all__ = ["arrival_steps", "rate_lines", "seed_lines"]


def arrival_steps(rows: Sequence[dict[str, Any]], *, x: str, arms: Sequence[str], description: str) -> alt.LayerChart:
    """Draw which share of each arm's seeds has not reached a target yet, as steps.

    Args:
        rows: Corners with the keys ``arm``, ``x`` and ``share``, rising in x for each arm.
        x: Title of the horizontal axis, with its unit.
        arms: The arms in the order of the legend.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    base = alt.Chart(alt.InlineData(values=list(rows)))
    line = base.mark_line(interpolate="step-after", strokeWidth=2.5).encode(
        x=alt.X("x:Q", title=x, scale=alt.Scale(nice=False, domainMin=0), axis=alt.Axis(format="~f")),
        y=alt.Y(
            "share:Q",
            title="seeds still on their way",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
        ),
        tooltip=[
            alt.Tooltip("arm:N"),
            alt.Tooltip("x:Q", title=x, format=",.0f"),
            alt.Tooltip("share:Q", format=".0%"),
        ],
        **_by_arm(arms),
    )
    chart: alt.LayerChart = dress(alt.layer(line), description)
    return chart


def seed_lines(
    rows: Sequence[dict[str, Any]], *, y: str, arms: Sequence[str], percent: bool, description: str
) -> alt.LayerChart:
    """Draw where every seed ends, the arms of a seed joined by a line.

    Args:
        rows: Ends with the keys ``arm``, ``seed`` and ``value``, finite.
        y: Title of the vertical axis, with its unit.
        arms: The arms in the order of the horizontal axis.
        percent: Whether values are fractions that are shown in percent.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    base = alt.Chart(alt.InlineData(values=list(rows)))
    horizontal = alt.X("arm:N", title=None, sort=list(arms), axis=alt.Axis(labelAngle=0, labelLimit=160))
    vertical = _values(rows, y, percent=percent)
    joined = base.mark_line(color="#999999", strokeWidth=1).encode(x=horizontal, y=vertical, detail="seed:N")
    ends = base.mark_point(size=70, filled=True, opacity=1).encode(
        x=horizontal,
        y=vertical,
        color=alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours(arms)), legend=None),
        tooltip=[
            alt.Tooltip("arm:N"),
            alt.Tooltip("seed:N"),
            alt.Tooltip("value:Q", format=".2%" if percent else ".4g"),
        ],
    )
    chart: alt.LayerChart = dress(alt.layer(joined, ends), description)
    return chart


def rate_lines(
    rows: Sequence[dict[str, Any]],
    *,
    x: str,
    y: str,
    arms: Sequence[str],
    percent: bool,
    description: str,
    joined: bool = True,
) -> alt.LayerChart:
    """Draw where each arm ends at every value that it tried, the chosen one ringed.

    Args:
        rows: Ends with the keys ``arm``, ``x``, ``value``, finite, and ``chosen``.
        x: What was tried; a log axis.
        y: Title of the vertical axis, with its unit.
        arms: The arms in the order of the legend.
        percent: Whether values are fractions that are shown in percent.
        description: What the chart shows, for readers who do not see it.
        joined: Whether a line joins the values of an arm, which differ in nothing else.

    Returns:
        The chart.
    """
    base = alt.Chart(alt.InlineData(values=list(rows)))
    ticks = sorted({row["x"] for row in rows}) if joined else alt.Undefined
    horizontal = alt.X(
        "x:Q",
        title=x,
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(values=ticks, format="~g"),
    )
    vertical = _values(rows, y, percent=percent)
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("x:Q", title=x, format="~g"),
        alt.Tooltip("value:Q", format=".2%" if percent else ".4g"),
    ]
    line = base.mark_line(strokeWidth=2 if joined else 0, point=alt.OverlayMarkDef(size=40, filled=True)).encode(
        x=horizontal, y=vertical, tooltip=tooltip, **_by_arm(arms)
    )
    ring = (
        base.transform_filter("datum.chosen")
        .mark_point(size=260, strokeWidth=2, filled=False)
        .encode(x=horizontal, y=vertical, color=_by_arm(arms)["color"])
    )
    chart: alt.LayerChart = dress(alt.layer(line, ring), description)
    return chart


def _values(rows: Sequence[dict[str, Any]], title: str, *, percent: bool) -> alt.Y:
    spans = [{"low": row["value"], "median": row["value"], "high": row["value"]} for row in rows]
    ticks = value_ticks(spans, log=False, percent=percent)
    return alt.Y(
        "value:Q",
        title=title,
        scale=alt.Scale(domain=[ticks[0], ticks[-1]], nice=False, zero=False),
        axis=alt.Axis(values=ticks, format=".6~%" if percent else ".6~g"),
    )


def _by_arm(arms: Sequence[str]) -> dict[str, Any]:
    """Give each arm a colour, and a dash for those who see no colours."""
    legend = alt.Legend(
        title=None, orient="top", columns=3, symbolOpacity=1, symbolType="stroke", symbolSize=400, labelLimit=0
    )
    dashes = [DASHES[place % len(DASHES)] for place in range(len(arms))]
    return {
        "color": alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours(arms)), legend=legend),
        "strokeDash": alt.StrokeDash("arm:N", scale=alt.Scale(domain=list(arms), range=dashes), legend=legend),
    }
