"""Quantities against depth, a panel each."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import altair as alt

from rezero.charts.look import DASHES, colours, dress_panels
from rezero.charts.ticks import value_ticks
from rezero.diagnose.depth_verdict import LARGE

if TYPE_CHECKING:
    from rezero.diagnose.depth_check import DepthCheck
    from rezero.diagnose.mean_field import MeanField
    from rezero.diagnose.propagation import Propagation

__all__ = ["Panel", "depth_check_chart", "depth_panels", "propagation_chart"]

_WIDTH, _HEIGHT = 280, 200
_POINTS = 100  # more of them hide the line
_THEORY = "infinite width"


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Attributes:
        title: Title of its axis, with the unit.
        rows: Points with the keys ``line`` (which colour), ``theory`` (whether it is dashed), ``x``, ``median``,
            ``low`` and ``high``; where one of those is above ``most`` the upper edge is marked.
        log: Whether its axis is logarithmic.
        percent: Whether it is a fraction that is shown in percent.
        limit: A value that is marked across the panel.
        limit_name: What it is called.
        most: What is above it would flatten the rest.
    """

    title: str
    rows: Sequence[dict[str, Any]]
    log: bool = False
    percent: bool = False
    limit: float | None = None
    limit_name: str = ""
    most: float = sys.float_info.max


def depth_panels(
    panels: Sequence[Panel], *, x: str, lines: Sequence[str], log: bool, description: str
) -> alt.ConcatChart:
    """Draw quantities against depth, two panels beside each other.

    Args:
        panels: The quantities.
        x: Title of the horizontal axis.
        lines: Names of the lines, in the order of the legend.
        log: Whether the depth is on a logarithmic axis of base 2, which then ends in each panel where its points do.
        description: What the chart shows, for readers who do not see it.

    Returns:
        The chart.
    """
    stroke: dict[str, Any] = {
        "title": None,
        "orient": "top",
        "symbolType": "stroke",
        "symbolSize": 400,
        "symbolOpacity": 1,
    }
    colour = alt.Color(
        "line:N",
        scale=alt.Scale(domain=list(lines), range=colours(lines)),
        legend=alt.Legend(**stroke, columns=4, labelLimit=0) if len(lines) > 1 else None,
    )
    everywhere = {row["x"] for panel in panels for row in panel.rows}
    drawn = [
        _panel(panel, _depth_axis({row["x"] for row in panel.rows} if log else everywhere, x, log=log), colour)
        for panel in panels
    ]
    chart: alt.ConcatChart = dress_panels(alt.concat(*drawn, columns=2, spacing=24), description)
    return chart


def _panel(panel: Panel, horizontal: alt.X, colour: alt.Color) -> alt.LayerChart:
    within = [row for row in panel.rows if row["median"] <= panel.most]
    marked = [] if panel.limit is None else [{"low": panel.limit, "median": panel.limit, "high": panel.limit}]
    known = [{**row, "high": row["high"] if row["high"] <= panel.most else row["median"]} for row in within]
    ticks = value_ticks([*known, *marked], log=panel.log, percent=panel.percent)
    finite = [{**row, "high": min(row["high"], ticks[-1])} for row in within]
    beyond = list(_beyond(panel, ticks[0], ticks[-1]))
    scale = alt.Scale(
        type="log" if panel.log else "linear", domain=[ticks[0], ticks[-1]], nice=False, zero=False, clamp=panel.log
    )
    wide = panel.log and ticks[-1] >= 1e6 * ticks[0]
    axis = alt.Axis(values=ticks, format=".6~%" if panel.percent else "~e" if wide else ".6~g")
    vertical = alt.Y("median:Q", title=None, scale=scale, axis=axis)
    place = {"x": horizontal, "y": vertical, "color": colour}
    tooltip = [alt.Tooltip("line:N"), alt.Tooltip("x:Q", title="depth"), alt.Tooltip("median:Q", format=".3g")]
    base = alt.Chart(alt.InlineData(values=finite))
    layers: list[alt.Chart] = []
    if any(row["low"] < row["high"] for row in finite):
        low = alt.Y("low:Q", title=None, scale=scale, axis=axis)
        layers.append(base.mark_area(opacity=0.15).encode(x=horizontal, y=low, y2="high:Q", color=colour))
    points = alt.OverlayMarkDef(size=22, filled=True) if len(finite) <= _POINTS else False
    measured, expected = base.transform_filter("!datum.theory"), base.transform_filter("datum.theory")
    layers.append(measured.mark_line(strokeWidth=2.2, point=points).encode(**place, tooltip=tooltip))
    if any(row["theory"] for row in finite):
        layers.append(expected.mark_line(strokeWidth=2, strokeDash=list(DASHES[1])).encode(**place, tooltip=tooltip))
    if beyond:
        mark = alt.Chart(alt.InlineData(values=beyond)).mark_point(
            shape="triangle-up", size=110, filled=True, opacity=1
        )
        layers.append(mark.encode(**place, tooltip=tooltip[:2]))
    if panel.limit is not None:
        rule = alt.Chart(alt.InlineData(values=[{"median": panel.limit}])).mark_rule(strokeDash=[4, 4], color="#333333")
        layers.append(rule.encode(y=vertical))
    return alt.LayerChart(layer=layers, width=_WIDTH, height=_HEIGHT, title=_title(panel, beyond=bool(beyond)))


def _beyond(panel: Panel, bottom: float, top: float) -> Iterator[dict[str, Any]]:
    """Put the marks of what lies above the panel below each other, where there are several at a depth."""
    count: Counter[float] = Counter()
    for row in panel.rows:
        if not row["high"] <= panel.most:
            share = 0.07 * count[row["x"]]
            count[row["x"]] += 1
            height = top * (bottom / top) ** share if panel.log else top - share * (top - bottom)
            yield {"line": row["line"], "x": row["x"], "median": height}


def _title(panel: Panel, *, beyond: bool) -> alt.Title:
    """Put the quantity over its panel, with the meaning of the marks in it."""
    dashed = [panel.limit_name] * (panel.limit is not None) + [_THEORY] * any(row["theory"] for row in panel.rows)
    notes = [f"dashed: {', '.join(dashed)}"] * bool(dashed) + [_above(panel)] * beyond
    text = panel.title + (f" ({', '.join(notes)})" if notes else "")
    return alt.Title(text, anchor="start", fontSize=13, fontWeight="normal")


def _above(panel: Panel) -> str:
    return "▲ not finite" if panel.most == sys.float_info.max else f"▲ above {panel.most:g}"


def _depth_axis(places: Iterable[float], title: str, *, log: bool) -> alt.X:
    """Label every depth of a few, or every second one of many, on an axis of base 2."""
    ordered = sorted(places)
    scale: dict[str, Any] = {"nice": False, "padding": 8, "zero": False, "domain": [ordered[0], ordered[-1]]}
    axis: dict[str, Any] = {"format": ",d", "tickMinStep": 1}
    if log:
        scale |= {"type": "log", "base": 2}
        axis = {"format": ",d", "values": ordered[:: -math.ceil(len(ordered) / 6)]}
    return alt.X("x:Q", title=title, scale=alt.Scale(**scale), axis=alt.Axis(**axis))


def propagation_chart(
    found: Mapping[str, "Propagation"], theory: Mapping[str, "MeanField"] | None = None
) -> alt.ConcatChart:
    """Draw how signals go through one model or several.

    Args:
        found: Name to what was measured.
        theory: Name, one of ``found``, to what theory expects from the input on; it is drawn dashed.

    Returns:
        The chart: norm, gradient, cosine, and where there is attention the share of its entropy.
    """
    quantities = (
        ("norm", "root mean square of the signal", True, False),
        ("gradient", "root mean square of the gradient", True, False),
        ("cosine", "cosine between examples", False, False),
        ("entropy_share", "entropy of attention, share of the most", False, True),
    )
    panels = []
    for name, title, log, percent in quantities:
        rows = [
            _row(line, signal.depth, getattr(signal, name))
            for line, each in found.items()
            for signal in (*([] if each.start is None else [each.start]), *each.layers)
            if getattr(signal, name) is not None
        ]
        rows += [
            _row(line, depth, value, theory=True)
            for line, each in (theory or {}).items()
            for depth, value in enumerate(getattr(each, name, ()))
        ]
        if rows:
            panels.append(Panel(title, rows, log=log, percent=percent))
    return depth_panels(
        panels,
        x="layer, from the input",
        lines=list(found),
        log=False,
        description="Norm, gradient, cosine between examples and entropy of attention behind every layer.",
    )


def _row(line: str, x: float, value: float, *, theory: bool = False) -> dict[str, Any]:
    return {"line": line, "theory": theory, "x": x, "median": value, "low": value, "high": value}


def depth_check_chart(check: "DepthCheck") -> alt.ConcatChart:
    """Draw what the first and the last step do at every depth, a colour a rule.

    Args:
        check: What was measured.

    Returns:
        The chart: change of the output and loss after either step, and after the first the signal and the gates' step.
    """
    asked: list[tuple[str, int, str, float | None]] = [
        *(("change", step, "relative change of the output", LARGE) for step in sorted({1, check.steps})),
        *(("loss", step, "loss", None) for step in sorted({1, check.steps})),
        ("activation", 1, "signal behind the last block", None),
        ("gate_update", 1, "root mean square of the gates' step", None),
    ]
    panels = []
    for name, step, title, limit in asked:
        found = {(rule, depth): check.values(name, rule, depth, step) for rule in check.rules for depth in check.depths}
        rows: list[dict[str, Any]] = [
            {"line": rule, "theory": False, "x": depth, "median": median(each), "low": min(each), "high": max(each)}
            for (rule, depth), each in found.items()
            if each
        ]
        if rows:
            log = all(row["low"] >= 0 for row in rows)  # a loss may be negative
            panels.append(Panel(f"step {step}: {title}", rows, log=log, limit=limit, limit_name="e"))
    return depth_panels(
        panels,
        x="depth",
        lines=check.rules,
        log=True,
        description="How far the first steps change the output, the loss, the signal and the gates, against depth.",
    )
