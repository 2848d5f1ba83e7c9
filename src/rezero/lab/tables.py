"""The tables of a report: how every arm ends, and what it costs."""

from collections.abc import Callable, Sequence

from rezero.lab.quality import Quality
from rezero.lab.spread import Spread, by_arm, compared, spread
from rezero.lab.store import Store, TrialResult
from rezero.lab.subject import subject_of
from rezero.lab.trial import Trial
from rezero.lab.verdict import show_value

__all__ = ["quality_title", "summary_rows"]


def summary_rows(store: Store, results: Sequence[TrialResult]) -> list[dict[str, str]]:
    """Reduce each arm to a row of the table that the report and the command line show.

    Args:
        store: The study's records.
        results: Its trials that ended; those of the tuning are left out.

    Returns:
        A row an arm, column title to text.
    """
    study, subject = store.study, subject_of(store.study)
    quality = subject.quality(results)
    factor, unit = subject.train_loss()
    rows = []
    for arm, trials in by_arm(compared(results)).items():
        diverged = sum(result.status == "diverged" for result in trials)
        row = {"arm": arm}
        if study.settings.tune:
            row["chosen"] = _chosen(trials[0].trial, study.settings.tune_over)
        row[f"training loss ({unit})"] = _with_range(spread(factor * r.final("train_loss") for r in trials), show_value)
        if quality is not None and quality.metric != "train_loss":
            reached = spread(quality.factor * r.final(quality.metric) for r in trials)
            row[quality_title(quality)] = _with_range(reached, quality.show)
        pace = spread(1000 * r.last.metrics["seconds"] / r.last.step for r in trials)
        row["ms a step"] = _with_range(pace, "{:.1f}".format)
        memory = [r.memory / 1e6 for r in trials if r.memory]
        if memory:
            row["peak memory (MB)"] = f"{spread(memory).median:,.0f}"
        row["seeds"] = f"{len(trials)}" + (f", {diverged} diverged" if diverged else "")
        row["formula"] = subject.formula(arm)
        rows.append(row)
    return rows


def quality_title(quality: Quality) -> str:
    """Return the title of an axis or a column."""
    return f"{quality.name} ({quality.unit})" if quality.unit else quality.name


def _chosen(trial: Trial, over: str) -> str:
    value = trial.lr if over == "lr" else dict(trial.tuned)[over.replace("-", "_")]
    return f"{over} {value:g}"


def _with_range(values: Spread, show: Callable[[float], str]) -> str:
    low, high = show(values.low).removesuffix(" %"), show(values.high).removesuffix(" %")
    return f"{show(values.median)} ({low} to {high})" if values.n > 1 else show(values.median)
