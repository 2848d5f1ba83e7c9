"""The report of a study: one HTML page that needs no network, its charts as files, and the verdict as text."""

import json
import math
import os
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from rezero.errors import UsageError
from rezero.lab.spreads import by_arm, compared
from rezero.lab.store import Store
from rezero.lab.study import Study, TrialResult
from rezero.lab.subject import subject_of
from rezero.lab.tables import summary_rows
from rezero.lab.tasks import SAMPLE_MARK
from rezero.lab.verdict import compare_arms, write_verdict

__all__ = ["write_report"]

_BESIDE = ".report-"


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
        _clear(store.folder)
        with TemporaryDirectory(dir=store.folder, prefix=f"{_BESIDE}{os.getpid()}-") as beside:
            _write(store, store.results(), Path(beside))
            for file in sorted(Path(beside).iterdir()):
                file.replace(store.folder / file.name)
        return store.folder / "report.html"
    except OSError as error:
        raise UsageError(f"cannot write the report into {store.folder}: {error}") from error


def _clear(folder: Path) -> None:
    """Remove what processes that were killed had begun to write."""
    for path in folder.glob(f"{_BESIDE}*"):
        process = path.name.removeprefix(_BESIDE).partition("-")[0]
        if not (process.isdecimal() and psutil.pid_exists(int(process))):
            shutil.rmtree(path, ignore_errors=True)


def _write(store: Store, results: list[TrialResult], folder: Path) -> None:
    import jinja2  # a study has processes that write no report, and this takes a second to load

    from rezero import charts
    from rezero.charts.bundle import javascript
    from rezero.lab.figures import draw

    drawn = draw(store.study, results)
    for name, (_, chart) in drawn.items():
        charts.save(chart, folder / name)
    finals = compared(results)
    verdict = write_verdict(store.study, results)
    _write_text(folder / "verdict.txt", verdict + "\n")
    comparisons = [asdict(each) for each in compare_arms(store.study, results)]
    summary = {**asdict(store.study), "comparisons": comparisons, "results": _summarise(results)}
    _write_text(folder / "summary.json", json.dumps(_finite(summary), indent=1) + "\n")
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
        several_seeds=any(len(trials) > 1 for trials in by_arm(finals).values()),
        pace=subject_of(store.study).pace,
        notes=_notes(results),
        samples=_samples(finals),
        facts=_facts(store.study),
        bundle=javascript(),
    )
    _write_text(folder / "report.html", html)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path that is not UTF-8 has such bytes


def _summarise(results: list[TrialResult]) -> list[dict[str, object]]:
    """Reduce each trial to its last numbers."""
    return [
        {
            **asdict(result.trial),
            "tuned": dict(result.trial.tuned),
            "status": result.status,
            "memory": result.memory,
            **({"note": result.note} if result.note else {}),
            "steps": result.last.step,
            **result.last.metrics,
        }
        for result in results
    ]


def _notes(results: list[TrialResult]) -> list[str]:
    """Say what is odd about trials, once for those of an arm of which the same is to be said."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if result.note:
            trial, rest = result.trial, "" if result.status == "finished" else f"{result.status}, "
            which = f"tuning at {trial.lr:g}" if trial.tuning else f"seed {trial.seed}"
            found.setdefault((trial.arm, rest + result.note), []).append(which)
    return [f"{arm}, {', '.join(dict.fromkeys(which))}: {note}" for (arm, note), which in found.items()]


def _finite(value: Any) -> Any:
    """Write None for numbers that are not finite, which JSON has not."""
    match value:
        case dict():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def _samples(results: list[TrialResult]) -> list[tuple[str, int, str, str]]:
    """List what the first seed of each arm wrote: arm, seed, the text that was given, the model's own."""
    first = [trials[0] for trials in by_arm(results).values()]
    halves = [(r.trial, *_halve(r.last.sample)) for r in first if r.last.sample is not None]
    return [(trial.arm, trial.seed, given, written) for trial, given, written in halves]


def _halve(sample: str) -> tuple[str, str]:
    given, mark, written = sample.partition(SAMPLE_MARK)
    return (given, written) if mark else ("", sample)


def _facts(study: Study) -> list[tuple[str, str]]:
    """List all that makes a study again, title to text: its data, where it comes from, its settings and questions."""
    tuning = ("tune", "tune_seeds", "tune_over")
    settings = {
        name: value for name, value in vars(study.settings).items() if study.settings.tune or name not in tuning
    }
    asked = {name: value for name, value in vars(study.question).items() if value is not None}
    listed = [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, tuple) else str(value))
        for name, value in {**settings, **asked}.items()
        if value is not None
    ]
    return [("data set", study.data), *study.provenance.items(), *listed]
