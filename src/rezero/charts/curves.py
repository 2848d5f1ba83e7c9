"""Curves of several arms, with their spread."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import altair as alt

from rezero.charts.look import DASHES, SHAPES, colours, dress
from rezero.charts.ticks import value_ticks

__all__ = ["curves"]

FEW = 12  # places on an axis that are labelled one by one


def curves(
    rows: Sequence[dict[str, Any]], *, x: str, y: str, arms: Sequence[str], log: bool, percent: bool, description: str
) -> alt.LayerChart:
    """Draw the median over seeds of each arm as a line, shaded from the lowest to the highest seed.

    Arms of one measurement each are points and bars instead.

    Args:
        rows: Points with the keys ``arm``, ``x``, ``median``, ``low`` and ``high``.
        x: Title of the horizontal axis, with its unit.
        y: Title of the vertical axis, with its unit.
        arms: The arms in the order of the legend.
        log: Whether the vertical axis is logarithmic.
        percent: Whether values are fractions that are shown in percent.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    counts = Counter(row["arm"] for row in rows)
    lines = max(counts.values(), default=0) > 1
    legend = _legend(lines=lines) if arms else None  # a legend of nothing has no place
    colour = alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours(arms)), legend=legend)
    style, styles = (alt.StrokeDash, DASHES) if lines else (alt.Shape, SHAPES)
    named = [styles[i % len(styles)] for i in range(len(arms))]
    horizontal, ticks = _horizontal(rows, x), value_ticks(rows, log=log, percent=percent)
    scale = alt.Scale(type="log" if log else "linear", domain=[ticks[0], ticks[-1]], nice=False, zero=False, clamp=log)
    axis = alt.Axis(values=ticks, format=".6~%" if percent else ".6~g")
    base = alt.Chart(alt.InlineData(values=list(rows)))
    size = 70 if min(counts.values(), default=0) <= 3 else 22
    spread = base.mark_area(opacity=0.18) if lines else base.mark_rule(opacity=0.3, strokeWidth=8)
    middle = (
        base.mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=size, filled=True))
        if lines
        else base.mark_point(size=120, filled=True, opacity=1)
    )
    chart: alt.LayerChart = dress(
        alt.layer(
            spread.encode(x=horizontal, y=alt.Y("low:Q", title=y, scale=scale, axis=axis), y2="high:Q", color=colour),
            middle.encode(
                style("arm:N", scale=alt.Scale(domain=list(arms), range=named), legend=legend),
                x=horizontal,
                y=alt.Y("median:Q", title=y, scale=scale, axis=axis),
                color=colour,
                tooltip=[
                    alt.Tooltip("arm:N"),
                    alt.Tooltip("x:Q", title=x, format="~g"),
                    *(
                        alt.Tooltip(f"{name}:Q", format=".1%" if percent else ".3g")
                        for name in ("median", "low", "high")
                    ),
                ],
            ),
        ),
        description,
    )
    return chart


def _legend(*, lines: bool) -> alt.Legend:
    symbol: dict[str, Any] = {"symbolType": "stroke", "symbolSize": 400} if lines else {"symbolSize": 120}
    return alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1, labelLimit=0, **symbol)


def _horizontal(rows: Sequence[dict[str, Any]], title: str) -> alt.X:
    """Label the measured places where they are few, and never a part of an epoch or step that nobody measured."""
    places = sorted({row["x"] for row in rows})
    whole = all(float(place).is_integer() for place in places)
    axis: dict[str, Any] = {"format": "~f", "tickMinStep": 1 if whole or places[-1] >= 4 else 0}
    scale: dict[str, Any] = {"nice": False, "padding": 12}
    if len(places) == 1 or (whole and len(places) <= FEW):
        axis["values"] = places
    if len(places) == 1:
        scale["domain"] = [places[0] - 1, places[0] + 1]
    return alt.X("x:Q", title=title, scale=alt.Scale(**scale), axis=alt.Axis(**axis))
