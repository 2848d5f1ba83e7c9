"""Charts with one look: a spread of curves, and a map of gates over depth and time."""

import re
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
_FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Arial, sans-serif"


def curves(
    rows: Sequence[dict[str, Any]], *, x: str, y: str, arms: Sequence[str], log: bool, percent: bool, description: str
) -> alt.LayerChart:
    """Draw one line an arm, the median over seeds, with a band from the lowest to the highest seed.

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
    number = "%" if percent else "~g"
    scale = _log_scale(rows) if log else alt.Scale(zero=False)
    key = alt.Legend(title=None, orient="top", columns=3, symbolType="stroke", symbolOpacity=1, symbolSize=400)
    legend = key if arms else None  # a legend of nothing has no place
    others = iter(OTHER_COLOURS * len(arms))
    colours = [COLOURS.get(arm) or next(others) for arm in arms]
    colour = alt.Color("arm:N", scale=alt.Scale(domain=list(arms), range=colours), legend=legend)
    dashes = [DASHES[i % len(DASHES)] for i in range(len(arms))]
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=list(arms), range=dashes), legend=legend)
    base = alt.Chart(alt.InlineData(values=list(rows)))
    whole = max((row["x"] for row in rows), default=0) >= 4
    horizontal = alt.X(
        "x:Q", title=x, scale=alt.Scale(nice=False), axis=alt.Axis(format="~f", tickMinStep=1 if whole else 0)
    )
    band = base.mark_area(opacity=0.18).encode(
        x=horizontal, y=alt.Y("low:Q", title=y, scale=scale), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=22, filled=True)).encode(
        x=horizontal,
        y=alt.Y("median:Q", title=y, scale=scale, axis=alt.Axis(format=number, tickCount=8 if log else 6)),
        color=colour,
        strokeDash=dash,
        tooltip=[
            alt.Tooltip("arm:N"),
            alt.Tooltip("x:Q", title=x, format="~g"),
            *(alt.Tooltip(f"{name}:Q", format=".1%" if percent else ".3g") for name in ("median", "low", "high")),
        ],
    )
    chart: alt.LayerChart = _dress(alt.layer(band, line), description)
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
        .mark_rect()
        .encode(
            x=alt.X("x:O", title=x, axis=alt.Axis(labelAngle=0, labelOverlap=True, format="~g")),
            y=alt.Y(
                "gate:O", title="block, from the input", axis=alt.Axis(labelOverlap=True), scale=alt.Scale(reverse=True)
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


def _log_scale(rows: Sequence[dict[str, Any]]) -> alt.Scale:
    """Span the values above zero; a zero, which has no place on such an axis, is drawn at its lower end."""
    values = [value for row in rows for value in (row["low"], row["median"], row["high"]) if value > 0] or [0.1, 1.0]
    low, high = min(values), max(values)
    decades = high > 10 * low  # otherwise rounding to whole ones would leave most of the chart empty
    return alt.Scale(type="log", domain=[low, high], nice=decades, clamp=True)


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
