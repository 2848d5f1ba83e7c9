"""Gates over depth and time."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from rezero.charts.look import dress
from rezero.charts.ticks import block_labels

__all__ = ["gate_map"]


def gate_map(rows: Sequence[dict[str, Any]], *, x: str, description: str) -> alt.Chart:
    """Draw the size of every gate over depth and time.

    Args:
        rows: Cells with the keys ``gate`` (from 1), ``x`` and ``size``.
        x: Title of the horizontal axis, with its unit.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(rows)))
        .mark_rect(stroke=alt.ExprRef("scale('color', datum.size)"), strokeWidth=1)  # covers the seams between cells
        .encode(
            x=alt.X("x:O", title=x, axis=alt.Axis(labelAngle=0, labelOverlap=True, format="~g")),
            y=alt.Y(
                "gate:O",
                title="block, from the input",
                axis=alt.Axis(values=block_labels(max((row["gate"] for row in rows), default=0))),
                scale=alt.Scale(reverse=True),
            ),
            color=alt.Color(
                "size:Q",
                scale=alt.Scale(scheme="cividis", reverse=True, domainMin=0),
                legend=alt.Legend(title="|alpha|", orient="top", gradientLength=180, format="~g"),
            ),
            tooltip=[
                alt.Tooltip("gate:O", title="block"),
                alt.Tooltip("x:O", title=x, format="~g"),
                alt.Tooltip("size:Q", title="|alpha|", format=".3g"),
            ],
        )
    )
    dressed: alt.Chart = dress(chart, description)
    return dressed
