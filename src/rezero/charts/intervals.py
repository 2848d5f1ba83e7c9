"""Numbers with their intervals, of things that have names."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from rezero.charts.look import SHAPES, colours, dress

__all__ = ["intervals"]

_WIDEST, _CHARACTER = 240, 8  # pixels: a name's, and in a reader's font, which may be wider than the renderer's


def intervals(
    rows: Sequence[dict[str, Any]], *, x: str, arms: Sequence[str], mark: float | None, description: str
) -> alt.LayerChart:
    """Draw a number with its interval for each arm of each thing, the things below each other.

    Args:
        rows: Numbers with the keys ``name`` (of the thing), ``arm``, ``middle``, ``low`` and ``high``.
        x: Title of the horizontal axis, with its unit.
        arms: The arms in the order of the legend.
        mark: A value that is marked, such as that of no difference; None for none.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    shapes = [SHAPES[place % len(SHAPES)] for place in range(len(arms))]
    legend = alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1, symbolSize=120) if len(arms) > 1 else None
    names = list(dict.fromkeys(row["name"] for row in rows))
    extent = min(_WIDEST, _CHARACTER * max((len(name) for name in names), default=0))
    base = alt.Chart(alt.InlineData(values=list(rows))).encode(
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=_WIDEST, minExtent=extent)),
        yOffset=alt.YOffset("arm:N", sort=list(arms)),
        color=alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours(arms)), legend=legend),
    )
    scale = alt.Scale(zero=False, nice=True)
    axis = alt.Axis(format=".6~g", tickCount=6, labelOverlap="greedy", labelSeparation=6)
    tooltip = [
        alt.Tooltip("name:N"),
        alt.Tooltip("arm:N"),
        *(alt.Tooltip(f"{end}:Q", format=".3g") for end in ("middle", "low", "high")),
    ]
    layers = [
        base.mark_rule(strokeWidth=3, opacity=0.5).encode(
            x=alt.X("low:Q", title=x, scale=scale, axis=axis), x2="high:Q"
        ),
        base.mark_point(size=110, filled=True, opacity=1).encode(
            alt.Shape("arm:N", scale=alt.Scale(domain=list(arms), range=shapes), legend=legend),
            x=alt.X("middle:Q", title=x, scale=scale),
            tooltip=tooltip,
        ),
    ]
    if mark is not None:
        line = alt.Chart(alt.InlineData(values=[{"middle": mark}])).mark_rule(strokeDash=[4, 4], color="#333333")
        layers.insert(0, line.encode(x="middle:Q"))
    chart: alt.LayerChart = dress(alt.layer(*layers), description)
    return chart
