"""The tables of a report: how every arm ends, and what it costs."""

from collections import Counter
from collections.abc import Callable, Sequence

from rezero.lab.own import FAILURES, OwnSettings
from rezero.lab.quality import Quality, show_value
from rezero.lab.spreads import Spread, by_arm, compared, spread
from rezero.lab.store import Store
from rezero.lab.study import TrialResult
from rezero.lab.subject import subject_of
from rezero.lab.trial import Trial

__all__ = ["one_line", "quality_title", "summary_rows"]


def summary_rows(store: Store, results: Sequence[TrialResult]) -> list[dict[str, str]]:
    """Reduce each arm to a row of the table that the report and the command line show.

    Args:
        store: The study's records.
        results: Its trials that ended; those of the tuning are left out.

    Returns:
        A row an arm, column title to text.
    """
    study, subject = store.study, subject_of(store.study)
    rows = []
    for arm, trials in by_arm(compared(results)).items():
        lost = Counter(result.status for result in trials if result.status != "finished")
        trained = [result for result in trials if result.status not in FAILURES]  # to the end, whatever end
        row = {"arm": arm}
        if study.settings.tune:
            times = isinstance(study.settings, OwnSettings)
            row["chosen"] = _chosen(trials[0].trial, study.settings.tuned) + (" times its own" if times else "")
        for each in subject.columns(results):
            show = show_value if each.metric == "train_loss" else each.show
            values = [each.factor * result.final(each.metric) for result in trained]
            row[quality_title(each)] = _with_range(spread(values), show) if values else "none"
        paces = [1000 * r.last.metrics["seconds"] / r.last.step for r in trials if r.last.step]
        row["ms a step"] = _with_range(spread(paces), "{:.1f}".format) if paces else ""
        memory = [r.memory / 1e6 for r in trials if r.memory]
        row["peak memory (MB)"] = f"{spread(memory).median:,.0f}" if memory else ""
        row["seeds"] = ", ".join([f"{len(trials)}", *(f"{count} {status}" for status, count in lost.items())])
        row["formula"] = subject.formula(arm)
        rows.append(row)
    return [{title: text for title, text in row.items() if any(each[title] for each in rows)} for row in rows]


def quality_title(quality: Quality) -> str:
    """Return the title of an axis or a column."""
    name = one_line(quality.name)
    return f"{name} ({quality.unit})" if quality.unit else name


def one_line(name: str) -> str:
    """Return a name without line breaks, which the title of an axis can't have."""
    return " ".join(name.split())


def _chosen(trial: Trial, names: Sequence[str]) -> str:
    values = {"lr": trial.lr, **dict(trial.tuned)}
    return ", ".join(f"{name} {values[name.replace('-', '_')]:g}" for name in names)


def _with_range(values: Spread, show: Callable[[float], str]) -> str:
    low, high = show(values.low).removesuffix(" %"), show(values.high).removesuffix(" %")
    return f"{show(values.median)} ({low} to {high})" if values.n > 1 else show(values.median)
