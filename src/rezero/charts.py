"""Charts with one look: a spread of curves, and a map of gates over depth and time."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

__all__ = ["curves", "gate_map", "save"]

# Okabe and Ito's colours, which colour-blind readers tell apart; an arm has the same one in every chart.
COLOURS = {
    "plain": "#7F7F7F",
    "plain-norm": "#333333",
    "residual": "#E69F00",
    "post-norm": "#009E73",
    "pre-norm": "#0072B2",
    "rezero": "#D55E00",
    "skipinit": "#CC79A7",
    "layerscale": "#56B4E9",
    "fixup": "#8C6D00",
    "deepnorm": "#882255",
}
OTHER_COLOURS = ("#332288", "#117733", "#AA4499", "#44AA99", "#999933")
DASHES = ([1, 0], [6, 3], [2, 2], [9, 3, 2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond")
FEW = 12  # places on an axis that are labelled one by one
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"


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
    others = iter(OTHER_COLOURS * len(arms))
    colours = [COLOURS.get(arm) or next(others) for arm in arms]
    legend = _legend(lines=lines) if arms else None  # a legend of nothing has no place
    colour = alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours), legend=legend)
    style, styles = (alt.StrokeDash, DASHES) if lines else (alt.Shape, SHAPES)
    named = [styles[i % len(styles)] for i in range(len(arms))]
    horizontal, ticks = _horizontal(rows, x), _value_ticks(rows, log=log, percent=percent)
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
    chart: alt.LayerChart = _dress(
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
                axis=alt.Axis(values=_block_labels(max((row["gate"] for row in rows), default=0))),
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
    dressed: alt.Chart = _dress(chart, description)
    return dressed


def save(chart: alt.TopLevelMixin, stem: Path) -> tuple[Path, Path]:
    """Write a chart as SVG and PNG, the same chart always as the same bytes.

    Args:
        chart: Any Altair chart.
        stem: Path without an ending.

    Returns:
        The two files.
    """
    spec = {**chart.to_dict(), "width": 720}
    svg = _renumber(vl_convert.vegalite_to_svg(spec))
    files = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    files[0].write_text(svg, encoding="utf-8")
    files[1].write_bytes(vl_convert.svg_to_png(svg, scale=2.0))
    return files


def _legend(*, lines: bool) -> alt.Legend:
    symbol: dict[str, Any] = {"symbolType": "stroke", "symbolSize": 400} if lines else {"symbolSize": 120}
    return alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1, **symbol)


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


def _value_ticks(rows: Sequence[dict[str, Any]], *, log: bool, percent: bool) -> list[float]:
    """Find round numbers around all values; a zero, which has no place on a log axis, is drawn at its lower end."""
    values = [row[name] for row in rows for name in ("low", "median", "high") if row[name] > 0 or not log]
    low, high = min(values, default=0.1), max(values, default=1.0)
    if high - low < 0.01 * high:
        low, high = 0.9 * low, 1.1 * high  # a level line lies in the middle
    ticks = _log_ticks(low, high) if log and high > 3 * low else _linear_ticks(low, high)
    return [tick for tick in ticks if tick <= 1] if percent else ticks


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, where those are few with their double and fivefold, from ``low`` or below to ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = math.ceil((last - first) / 9)
    factors = (1, 2, 5) if high <= 1000 * low else (1,)
    ticks = [float(f"{factor}e{power}") for power in range(first, last + stride, stride) for factor in factors]
    return [t for i, t in enumerate(ticks) if ticks[min(i + 1, len(ticks) - 1)] > low and ticks[max(i - 1, 0)] < high]


def _linear_ticks(low: float, high: float) -> list[float]:
    """Return the multiples of 1, 2 or 5 of a power of ten, at most eight, from below ``low`` to above ``high``."""
    if low == high:  # all zero
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(factor * power for factor in (1, 2, 5, 10) if 6 * factor * power >= high - low)
    return [float(f"{i * step:.12g}") for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _block_labels(count: int) -> list[int]:
    """Choose which blocks of so many are named: the first, the last, and round numbers between."""
    step = next(step for power in range(10) for step in (10**power, 2 * 10**power, 5 * 10**power) if count <= 16 * step)
    return sorted({1, count, *range(step, count - step // 2, step)}) if count else []


def _dress(chart: Any, description: str) -> Any:
    return (
        chart.properties(
            width="container",
            height=360,
            description=description,
            background="white",
            autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        )
        .configure(font=_FONT)
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=13, titleFontSize=13, titleFontWeight="normal", gridColor="#e6e6e6", domain=False)
        .configure_legend(labelFontSize=13, titleFontSize=13, titleFontWeight="normal", labelLimit=200)
    )


def _renumber(svg: str) -> str:
    """Give the ids of an SVG numbers of its own: the renderer counts on through all charts of a process."""
    ids = {found: f"id{number}" for number, found in enumerate(dict.fromkeys(re.findall(r'id="([^"]+)"', svg)))}
    for old, new in sorted(ids.items(), key=lambda pair: -len(pair[0])):
        svg = (
            svg.replace(f'id="{old}"', f'id="{new}"').replace(f"#{old})", f"#{new})").replace(f'"#{old}"', f'"#{new}"')
        )
    return svg
