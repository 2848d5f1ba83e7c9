"""The report of a study: one HTML page that needs no network, its charts as files, and the verdict as text."""

import json
import math
from collections import defaultdict
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import altair as alt
import jinja2
import vl_convert

from rezero import charts
from rezero.errors import UsageError
from rezero.lab.stats import Spread, by_arm, spread
from rezero.lab.store import Store, Study, TrialResult
from rezero.lab.task import Quality
from rezero.lab.tasks import SAMPLE_MARK, find_task
from rezero.lab.verdict import loss_unit, show_value, write_verdict

__all__ = ["summary_rows", "write_report"]

_EMBED = "window.vegaEmbed = vegaEmbed;"  # what the page needs of the charts' JavaScript


def write_report(store: Store) -> Path:
    """Write ``report.html``, ``verdict.txt``, ``summary.json`` and the charts as SVG and PNG into the study's folder.

    The same study gives the same bytes. All files are written beside the old ones and take their places at the end.

    Args:
        store: The study's records.

    Returns:
        The page.

    Raises:
        UsageError: If a file cannot be written.
    """
    try:
        with TemporaryDirectory(dir=store.folder, prefix=".report-") as beside:
            _write(store, store.results(), Path(beside))
            for file in sorted(Path(beside).iterdir()):
                file.replace(store.folder / file.name)
        return store.folder / "report.html"
    except OSError as error:
        raise UsageError(f"cannot write the report into {store.folder}: {error}") from error


def _write(store: Store, results: list[TrialResult], folder: Path) -> None:
    drawn = _draw(store, results)
    for name, (_, chart) in drawn.items():
        charts.save(chart, folder / name)
    verdict = write_verdict(store.study, results)
    _write_text(folder / "verdict.txt", verdict + "\n")
    summary = {**asdict(store.study), "results": _summarise(results)}
    _write_text(folder / "summary.json", json.dumps(summary, indent=1) + "\n")
    specs = {name: chart.to_dict() for name, (_, chart) in drawn.items()}
    template = files("rezero.lab").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    html = page.render(
        title=f"{store.study.task}: {', '.join(store.study.settings.arms)}",
        verdict=verdict.split("\n\n"),
        charts=[
            (name, caption, specs[name]["description"], json.dumps(specs[name], sort_keys=True).replace("<", "\\u003c"))
            for name, (caption, _) in drawn.items()
        ],
        table=summary_rows(store, results),
        several_seeds=_seeds(results) > 1,
        samples=_samples(results),
        facts=_facts(store.study),
        bundle=vl_convert.javascript_bundle(_EMBED),
    )
    _write_text(folder / "report.html", html)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path that is not UTF-8 has such bytes


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
    factor, unit = loss_unit(quality)
    rows = []
    for arm, trials in by_arm(results).items():
        last = [result.last for result in trials]
        loss = spread(factor * r.final("train_loss") for r in trials)
        reached = spread(quality.factor * r.final(quality.metric) for r in trials)
        pace = spread(1000 * p.metrics["seconds"] / p.step for p in last)
        diverged = sum(result.status == "diverged" for result in trials)
        rows.append(
            {
                "arm": arm,
                f"training loss ({unit})": _with_range(loss, show_value),
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


def _samples(results: list[TrialResult]) -> list[tuple[str, int, str, str]]:
    """List what the first seed of each arm wrote: arm, seed, the text that was given, the model's own."""
    first = [trials[0] for trials in by_arm(results).values()]
    halves = [(r.trial, *_halve(r.last.sample)) for r in first if r.last.sample is not None]
    return [(trial.arm, trial.seed, given, written) for trial, given, written in halves]


def _halve(sample: str) -> tuple[str, str]:
    given, mark, written = sample.partition(SAMPLE_MARK)
    return (given, written) if mark else ("", sample)


def _facts(study: Study) -> list[tuple[str, str]]:
    """List all that makes a study again, title to text: its data, where it comes from, and its settings."""
    settings = [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else str(value))
        for name, value in vars(study.settings).items()
        if value is not None
    ]
    return [("data set", study.data), *study.provenance.items(), *settings]


def _seeds(results: list[TrialResult]) -> int:
    return max((len(trials) for trials in by_arm(results).values()), default=0)


def _with_range(values: Spread, show: Any) -> str:
    low, high = show(values.low).removesuffix(" %"), show(values.high).removesuffix(" %")
    return f"{show(values.median)} ({low} to {high})" if values.n > 1 else str(show(values.median))


def _draw(store: Store, results: list[TrialResult]) -> dict[str, tuple[str, alt.TopLevelMixin]]:
    """Draw the charts: name to caption and chart."""
    arms = [arm for arm in store.study.settings.arms if arm in by_arm(results)]
    whose = "each arm" if len(arms) > 1 else "".join(arms)
    several = _seeds(results) > 1
    by = "step" if store.study.settings.epochs is None else "epoch"
    drawn: dict[str, tuple[str, alt.TopLevelMixin]] = {}
    quality = find_task(store.study.task).quality
    loss, unit = loss_unit(quality)
    plots = [
        ("train_loss", loss, "training loss", f"training loss ({unit}, log scale)", True, False),
        (quality.metric, quality.factor, quality.name, _title(quality), False, quality.percent),
    ]
    for name, factor, title, axis, log, percent in plots:
        seeds = ": median over seeds, shaded from the lowest to the highest seed" if several else ""
        caption = f"{title[0].upper()}{title[1:]} of {whose}{seeds}."
        if not (rows := _curve_rows(results, name, factor, by)):
            continue  # nothing has ended, or nothing stayed finite
        chart = charts.curves(
            rows, x=by, y=axis, arms=arms, log=log, percent=percent, description=_describe(caption, rows, by)
        )
        drawn[name] = (caption, chart)
    for arm, cells in _gate_cells(results, by).items():
        size = "median of |alpha| over seeds" if several else "|alpha|"
        caption = f"Size of every gate of {arm} over depth and time: {size}."
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
