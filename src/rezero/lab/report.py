"""The report of a study: one HTML page that needs no network, its charts as files, and the verdict as text."""

import json
import math
from collections import defaultdict
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from rezero import charts
from rezero.errors import UsageError
from rezero.lab.stats import Spread, by_arm, spread
from rezero.lab.store import Store, TrialResult
from rezero.lab.task import Quality
from rezero.lab.tasks import find_task
from rezero.lab.verdict import show_value, write_verdict

__all__ = ["summary_rows", "write_report"]

_EMBED = "window.vegaEmbed = vegaEmbed;"  # what the page needs of the charts' JavaScript


def write_report(store: Store) -> Path:
    """Write ``report.html``, ``verdict.txt``, ``summary.json`` and the charts as SVG and PNG into the study's folder.

    The same study gives the same bytes.

    Args:
        store: The study's records.

    Returns:
        The page.

    Raises:
        UsageError: If a file cannot be written.
    """
    try:
        return _write(store, store.results())
    except OSError as error:
        raise UsageError(f"cannot write the report into {store.folder}: {error}") from error


def _write(store: Store, results: list[TrialResult]) -> Path:
    drawn = _draw(store, results)
    for name, (_, chart) in drawn.items():
        charts.save(chart, store.folder / name)
    verdict = write_verdict(store.study, results)
    (store.folder / "verdict.txt").write_text(verdict + "\n", encoding="utf-8")
    summary = {**asdict(store.study), "results": _summarise(results)}
    (store.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    specs = {
        name: json.dumps(chart.to_dict(), sort_keys=True).replace("<", "\\u003c") for name, (_, chart) in drawn.items()
    }
    template = files("rezero.lab").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    path = store.folder / "report.html"
    html = page.render(
        title=f"{store.study.task}: {', '.join(store.study.settings.arms)}",
        verdict=verdict.split("\n\n"),
        charts=[(name, caption, specs[name]) for name, (caption, _) in drawn.items()],
        table=summary_rows(store, results),
        settings=vars(store.study.settings),
        samples=_samples(results),
        provenance={"data": store.study.data, **store.study.provenance},
        bundle=vl_convert.javascript_bundle(_EMBED),
    )
    path.write_text(html, encoding="utf-8")
    return path


def summary_rows(store: Store, results: list[TrialResult]) -> list[dict[str, str]]:
    """Reduce each arm to a row of the table that the report and the command line show.

    Args:
        store: The study's records.
        results: Its trials that ended.

    Returns:
        A row an arm, column title to text.
    """
    task = find_task(store.study.task)
    quality, title = task.quality, _title(task.quality)
    rows = []
    for arm, trials in by_arm(results).items():
        last = [result.last for result in trials]
        loss = spread(r.final("train_loss") for r in trials)
        reached = spread(quality.factor * r.final(quality.metric) for r in trials)
        pace = spread(1000 * p.metrics["seconds"] / p.step for p in last)
        diverged = sum(result.status == "diverged" for result in trials)
        rows.append(
            {
                "arm": arm,
                "training loss (nats)": _with_range(loss, show_value),
                title: _with_range(reached, quality.show),
                "ms a step": _with_range(pace, "{:.1f}".format),
                "seeds": f"{len(trials)}" + (f", {diverged} diverged" if diverged else ""),
                "formula": task.arms[arm],
            }
        )
    return rows


def _summarise(results: list[TrialResult]) -> list[dict[str, object]]:
    """Reduce each trial to its last numbers; None stands for one that is not finite."""
    return [
        {
            **asdict(result.trial),
            "status": result.status,
            "steps": result.last.step,
            **{name: value if math.isfinite(value) else None for name, value in result.last.metrics.items()},
        }
        for result in results
    ]


def _samples(results: list[TrialResult]) -> list[tuple[str, int, str]]:
    """List what the first seed of each arm wrote: arm, seed, text."""
    first = [trials[0] for trials in by_arm(results).values()]
    return [(r.trial.arm, r.trial.seed, r.last.sample) for r in first if r.last.sample is not None]


def _with_range(values: Spread, show: Any) -> str:
    low, high = show(values.low).removesuffix(" %"), show(values.high).removesuffix(" %")
    return f"{show(values.median)} ({low} to {high})" if values.n > 1 else f"{show(values.median)} (one seed)"


def _draw(store: Store, results: list[TrialResult]) -> dict[str, tuple[str, alt.TopLevelMixin]]:
    """Draw the charts: name to caption and chart."""
    arms = [arm for arm in store.study.settings.arms if arm in by_arm(results)]
    seeds = "median over seeds, band from the lowest to the highest seed"
    by = "step" if store.study.settings.epochs is None else "epoch"
    drawn: dict[str, tuple[str, alt.TopLevelMixin]] = {}
    quality = find_task(store.study.task).quality
    plots = [
        ("train_loss", 1.0, "training loss", "training loss (nats, log scale)", True, False),
        (quality.metric, quality.factor, quality.name, _title(quality), False, quality.percent),
    ]
    for name, factor, title, axis, log, percent in plots:
        caption = f"{title[0].upper()}{title[1:]} of each arm: {seeds}."
        if not (rows := _curve_rows(results, name, factor, by)):
            continue  # nothing has ended, or nothing stayed finite
        chart = charts.curves(
            rows, x=by, y=axis, arms=arms, log=log, percent=percent, description=_describe(caption, rows, by)
        )
        drawn[name] = (caption, chart)
    for arm, cells in _gate_cells(results, by).items():
        caption = f"Size of every gate of {arm} over depth and time: median of |alpha| over seeds."
        drawn[f"alpha_{arm}"] = (caption, charts.gate_map(cells, x=by, description=caption))
    return drawn


def _title(quality: Quality) -> str:
    return f"{quality.name} ({quality.unit})" if quality.unit else quality.name


def _curve_rows(results: list[TrialResult], metric: str, factor: float, by: str) -> list[dict[str, Any]]:
    rows = []
    for arm, trials in by_arm(results).items():
        curves = [{getattr(point, by): factor * point.metrics[metric] for point in result.points} for result in trials]
        for x in sorted(set().union(*curves)):
            # A trial that diverged has no value from then on, and counts as infinite.
            values = [curve.get(x, math.nan) for curve in curves]
            at = spread(values)
            if math.isfinite(at.median):
                high = max(value for value in values if math.isfinite(value))
                rows.append({"arm": arm, "x": x, "median": at.median, "low": at.low, "high": high})
    return rows


def _gate_cells(results: list[TrialResult], by: str) -> dict[str, list[dict[str, Any]]]:
    cells: dict[str, list[dict[str, Any]]] = {}
    for arm, trials in by_arm(results).items():
        sizes: dict[tuple[float, int], list[float]] = defaultdict(list)
        for point in (point for result in trials for point in result.points):
            for gate, value in enumerate(point.alphas, 1):
                sizes[getattr(point, by), gate].append(abs(value))
        medians = {place: spread(values).median for place, values in sorted(sizes.items())}
        finite = [{"x": x, "gate": gate, "size": size} for (x, gate), size in medians.items() if math.isfinite(size)]
        if finite:
            cells[arm] = finite
    return cells


def _describe(caption: str, rows: list[dict[str, Any]], by: str) -> str:
    """Append where each curve ends, so that the chart can be read aloud."""
    ends = {row["arm"]: (row["x"], row["median"]) for row in rows}
    listed = ", ".join(f"{arm} {value:.3g} at {by} {x:g}" for arm, (x, value) in ends.items())
    return f"{caption} Where each curve ends: {listed}."
