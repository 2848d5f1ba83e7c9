"""Singular values: histograms in the form of the ReZero paper, and estimated densities."""

import math
from collections.abc import Mapping, Sequence

import altair as alt

from rezero.charts.look import OTHER_COLOURS, dress, dress_panels
from rezero.charts.ticks import visible_log_ticks

__all__ = ["density_line", "histogram"]

_FEWEST_BINS, _MOST_BINS = 12, 60
_FLOOR = 1e-6  # of the largest: what is below has no place on the axis
_POWERS = "format(datum.value, datum.value < 0.01 || datum.value > 100 ? '.0e' : '~g')"


def histogram(
    panels: Mapping[str, Mapping[str, Sequence[float]]], *, description: str, single: bool = False
) -> alt.VConcatChart:
    """Draw how singular values are distributed on a log axis, panel under panel.

    Args:
        panels: Title of a panel to its sets of singular values, such as those of several depths, by name. Values below
            a millionth of the largest have no place on the axis; the title of their panel says how many.
        description: What the chart shows, for readers who do not see it.
        single: Whether each value is a stroke of its own, where they are not all that there are.

    Returns:
        The chart; a dashed line marks 1.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, fig. 5.
    """
    every = [value for sets in panels.values() for values in sets.values() for value in values]
    largest = max(every, default=1.0) or 1.0
    floor = max(min(every, default=1.0), _FLOOR * largest)
    low, high = min(math.log10(floor), -0.1), max(math.log10(largest), 0.1)
    fewest = min((len(numbers) for sets in panels.values() for numbers in sets.values()), default=0)
    bins = min(_MOST_BINS, max(_FEWEST_BINS, round(3 * math.sqrt(fewest))))
    width = (high - low) / (bins - 2)
    low = -(math.ceil(-low / width) + 0.5) * width  # 1 is in the middle of a bin
    high = low + bins * width
    rows = [
        {"panel": panel, "set": name, "x": 10 ** (low + i * width), "share": share / width}
        for panel, sets in panels.items()
        for name, numbers in sets.items()
        for i, share in enumerate(_shares(numbers, low, width, bins))
    ]
    names = list(dict.fromkeys(name for sets in panels.values() for name in sets))
    legend = alt.Legend(title=None, orient="top", symbolType="square", symbolOpacity=1) if len(names) > 1 else None
    x = alt.X(
        "x:Q",
        title="singular value",
        scale=alt.Scale(type="log", domain=[10**low, 10**high], nice=False),
        axis=alt.Axis(values=visible_log_ticks(10**low, 10**high), labelExpr=_POWERS, grid=True),
    )
    colour = alt.Color(
        "set:N",
        scale=alt.Scale(domain=names, range=[OTHER_COLOURS[i % len(OTHER_COLOURS)] for i in range(len(names))]),
        legend=legend,
    )
    y = alt.Y("share:Q", title="share per decade", stack=None, axis=alt.Axis(format="~f", tickCount=3))
    drawn = []
    for panel in panels:
        base = alt.Chart(alt.InlineData(values=[row for row in rows if row["panel"] == panel]))
        area = base.mark_area(interpolate="step-after", opacity=0.4, line=True).encode(x=x, y=y, color=colour)
        if single:
            each = [{"set": name, "x": v} for name, numbers in panels[panel].items() for v in numbers if v >= floor]
            area = alt.Chart(alt.InlineData(values=each)).mark_tick(thickness=2, size=60).encode(x=x, color=colour)
        one = alt.Chart(alt.InlineData(values=[{"x": 1}])).mark_rule(strokeDash=[4, 4], color="#333333").encode(x=x)
        title = alt.Title(_title(panel, panels[panel], floor), anchor="start", fontSize=13, fontWeight="normal")
        height = 80 if single else 300 if len(panels) == 1 else 130
        drawn.append(alt.LayerChart(layer=[area, one], width=620, height=height, title=title))
    chart: alt.VConcatChart = dress_panels(alt.vconcat(*drawn), description)
    return chart


def density_line(
    at: Sequence[float], density: Sequence[float], error: Sequence[float], *, description: str
) -> alt.LayerChart:
    """Draw an estimated density with the bars of 95%.

    Args:
        at: Singular values.
        density: The estimate at each.
        error: Half the width of its interval.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    top = max((y + e for y, e in zip(density, error, strict=True)), default=1.0)
    rows = [
        {"x": x, "y": y, "low": max(0.0, y - e), "high": y + e}
        for x, y, e in zip(at, density, error, strict=True)
        if x >= 0 and y + e > 1e-3 * top
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    x = alt.X("x:Q", title="singular value", scale=alt.Scale(nice=False), axis=alt.Axis(format="~g"))
    colour = OTHER_COLOURS[0]
    band = base.mark_area(opacity=0.2, color=colour).encode(
        x=x, y=alt.Y("low:Q", title="density (band: 95%)"), y2="high:Q"
    )
    line = base.mark_line(color=colour, strokeWidth=2).encode(x=x, y=alt.Y("y:Q", title="density (band: 95%)"))
    chart: alt.LayerChart = dress(alt.layer(band, line), description)
    return chart


def _shares(values: Sequence[float], low: float, width: float, bins: int) -> list[float]:
    """Count values by bins of their logarithm, as shares of all; a last zero ends the steps."""
    counts = [0.0] * (bins + 1)
    for value in values:
        place = math.floor((math.log10(value) - low) / width + 1e-9) if value > 0 else -1
        if place >= 0:
            counts[min(bins - 1, place)] += 1 / len(values)
    return counts


def _title(panel: str, sets: Mapping[str, Sequence[float]], floor: float) -> str:
    """Say beside a panel's name how much of each set lies below the axis."""
    below = {name: sum(value < floor for value in values) / max(1, len(values)) for name, values in sets.items()}
    parts = [f"{share:.1%} of {name}" if len(sets) > 1 else f"{share:.1%}" for name, share in below.items() if share]
    return f"{panel} (below {floor:.1g}: {', '.join(parts)})" if parts else panel
