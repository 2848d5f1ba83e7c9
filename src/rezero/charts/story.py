"""Several values over the steps of a training, one panel each, one line a seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from rezero.charts.look import DASHES, colours, dress_panels

__all__ = ["story_panels"]

_WIDTH, _HEIGHT = 300, 260


def story_panels(
    panels: Mapping[str, Sequence[dict[str, Any]]], *, x: str, arms: Sequence[str], description: str
) -> alt.HConcatChart:
    """Draw every seed of every arm as a line, in a panel a value.

    Args:
        panels: Title of a panel to points with the keys ``arm``, ``seed``, ``x`` and ``y``.
        x: Title of the horizontal axes, with its unit.
        arms: The arms in the order of the legend.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolSize=400)
    colour = alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours(arms)), legend=legend)
    dashes = alt.Scale(domain=list(arms), range=[DASHES[place % len(DASHES)] for place in range(len(arms))])
    charts = [
        alt.Chart(alt.InlineData(values=list(rows)), title=alt.Title(title, fontSize=13, fontWeight="normal"))
        .mark_line(strokeWidth=1.8, opacity=0.85)
        .encode(
            x=alt.X("x:Q", title=x, axis=alt.Axis(format="~f", tickCount=5)),
            y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=".4~g", tickCount=6)),
            color=colour,
            strokeDash=alt.StrokeDash("arm:N", scale=dashes, legend=legend),
            detail="seed:N",
        )
        .properties(width=_WIDTH, height=_HEIGHT)
        for title, rows in panels.items()
    ]
    chart: alt.HConcatChart = dress_panels(alt.hconcat(*charts, spacing=28), description)
    return chart
