"""The charts of a report."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

import altair as alt

from rezero import charts
from rezero.lab.comparison import worst_final
from rezero.lab.costs import costs_of
from rezero.lab.quality import Quality
from rezero.lab.settings import Settings
from rezero.lab.speed import arrival
from rezero.lab.spreads import by_arm, compared, spread
from rezero.lab.stats import survival
from rezero.lab.study import Study, TrialResult
from rezero.lab.subject import chosen_by, subject_of
from rezero.lab.tables import one_line, quality_title
from rezero.lab.tune import Choice, choose

__all__ = ["draw"]

_LONGEST = 60  # characters, of four bytes at most, of a file's name, which has 255
Drawn = tuple[str, alt.TopLevelMixin]
"""A caption and a chart."""


def draw(study: Study, results: Sequence[TrialResult]) -> dict[str, Drawn]:
    """Draw the charts of a study, the one that decides first.

    Args:
        study: What was run.
        results: The trials that ended.

    Returns:
        Name for files, one of its own whatever metrics and arms are called, to caption and chart; what there is nothing
        of is left out.
    """
    quality = subject_of(study).quality(results)
    if quality is None:
        return {}
    finals = compared(results)
    drawn = (
        *_curves(study, finals, quality).items(),
        ("arrivals", _arrivals(study, finals, quality)),
        ("seeds", _seeds(study, finals, quality)),
        *_rates(study, results).items(),
        *_gates(study, finals).items(),
    )
    named: dict[str, Drawn] = {}
    for name, each in drawn:
        if each is not None:
            named[_file_name(name, named)] = each
    return named


def _file_name(name: str, taken: Collection[str]) -> str:
    """Return a name for files that no other chart has, also where capitals are the same as small letters."""
    stem = re.sub(r"[^\w.=+-]", "-", name.replace(" ", "_"))[:_LONGEST].strip(".-") or "chart"
    others = {each.casefold() for each in taken}
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    return next(each for each in numbered if each.casefold() not in others)


def _curves(study: Study, finals: Sequence[TrialResult], quality: Quality) -> dict[str, Drawn | None]:
    measures = {each.metric: each for each in [quality, *subject_of(study).columns(finals)]}
    return {name: _curve(study, finals, each) for name, each in measures.items()}


def _curve(study: Study, finals: Sequence[TrialResult], measure: Quality) -> Drawn | None:
    arms, by = _arms(study, finals), _by(study)
    spread_of = ": median over seeds, shaded from the lowest to the highest seed" if _several(finals) else ""
    caption = f"{_titled(measure)} of {_whose(arms)}{spread_of}."
    if not (rows := _curve_rows(finals, measure.metric, measure.factor, by)):
        return None  # nothing has ended, or nothing stayed finite
    described, percent = _describe(caption, rows, by), measure.percent
    log = measure.metric == "train_loss" and all(row["low"] > 0 for row in rows)
    axis = ", ".join(filter(None, (measure.unit, "log scale" if log else "")))
    name = one_line(measure.name)
    title = f"{name} ({axis})" if axis else name
    return caption, charts.curves(rows, x=by, y=title, arms=arms, log=log, percent=percent, description=described)


def _arrivals(study: Study, finals: Sequence[TrialResult], quality: Quality) -> Drawn | None:
    """Draw the share of seeds that are still on their way to a target that is one for all arms."""
    arms = _arms(study, finals)
    baseline = study.question.held_against(study.settings, subject_of(study).standard)
    target = study.question.target
    whose = "the target"
    if target is None:
        both = len(arms) == 2  # the verdict's own target then
        target = worst_final(finals if both else [r for r in finals if r.trial.arm == baseline], quality)
        whose = f"the worst that {'either' if both else baseline} ends with"
    if target is None or len(arms) < 2:
        return None
    rows, steps = [], subject_of(study).length(finals)
    for arm, trials in by_arm(finals).items():
        found = [arrival(result, quality, target, steps) for result in trials]
        corners = survival([each.step for each in found], [each.reached for each in found])
        rows += [{"arm": arm, "x": step, "share": share} for step, share in [*corners, (float(steps), corners[-1][1])]]
    shown = f"{quality.show(quality.factor * target)} {quality.unit}".rstrip()
    caption = f"Steps to {quality.name} {shown}, {whose}: the share of seeds that are still on their way."
    ends = ", ".join(f"{arm} {[r['share'] for r in rows if r['arm'] == arm][-1]:.0%}" for arm in arms)
    description = f"{caption} At the end of the run: {ends}."
    return caption, charts.arrival_steps(rows, x="step", arms=arms, description=description)


def _seeds(study: Study, finals: Sequence[TrialResult], quality: Quality) -> Drawn | None:
    arms = _arms(study, finals)
    ends = [(r.trial.arm, r.trial.seed, quality.factor * r.final(quality.metric)) for r in finals]
    rows = [{"arm": arm, "seed": seed, "value": value} for arm, seed, value in ends if math.isfinite(value)]
    arms = [arm for arm in arms if any(row["arm"] == arm for row in rows)]
    if len(arms) < 2:
        return None
    gone = len(ends) - len(rows)
    lost = f" {gone} without a final value have no place." if gone else ""
    caption = f"{_titled(quality)} at the end of every seed; a line joins a seed's arms.{lost}"
    chart = charts.seed_lines(rows, y=quality_title(quality), arms=arms, percent=quality.percent, description=caption)
    return caption, chart


def _rates(study: Study, results: Sequence[TrialResult]) -> dict[str, Drawn | None]:
    """Draw what was tried out, a chart a setting, by the metric that chose."""
    quality = chosen_by(study, results)
    if quality is None:
        return {}
    choices = choose(study.settings, costs_of(study, results))
    names = study.settings.tuned
    several = len(names) > 1
    return {
        f"rates_{name}" if several else "rates": _tried(study, choices, place, quality)
        for place, name in enumerate(names)
        if choices
    }


def _tried(study: Study, choices: Mapping[str, Choice], place: int, quality: Quality) -> Drawn | None:
    sign = quality.factor * (1 if quality.lower_is_better else -1)
    rows = [
        {"arm": arm, "x": values[place][1], "value": sign * cost, "chosen": values == choice.values}
        for arm, choice in choices.items()
        for values, cost in sorted(choice.costs.items())
        if math.isfinite(cost)
    ]
    if not rows:
        return None
    names = study.settings.tuned
    rate = "learning rate" if isinstance(study.settings, Settings) else "multiple of the learning rate"
    over = {"lr": rate}.get(names[place], names[place])
    beside = "; other settings differ too" if len(names) > 1 else ""
    caption = (
        f"{_titled(quality)} at the end of every {over} that was tried, on seeds that the "
        f"comparison does not use{beside}; ringed: the chosen ones. What diverged has no point."
    )
    arms = [arm for arm in study.settings.arms if any(row["arm"] == arm for row in rows)]
    chart = charts.rate_lines(
        rows,
        x=over,
        y=quality_title(quality),
        arms=arms,
        percent=quality.percent,
        joined=len(names) == 1,
        description=caption,
    )
    return caption, chart


def _gates(study: Study, finals: Sequence[TrialResult]) -> dict[str, Drawn | None]:
    drawn: dict[str, Drawn | None] = {}
    for arm, cells in _gate_cells(finals, _by(study)).items():
        size = "median of |alpha| over seeds" if _several(finals) else "|alpha|"
        caption = f"Size of every gate of {arm} over depth and time: {size}."
        drawn[f"alpha_{arm}"] = caption, charts.gate_map(cells, x=_by(study), description=caption)
    return drawn


def _titled(measure: Quality) -> str:
    return f"{measure.name[:1].upper()}{measure.name[1:]}"


def _arms(study: Study, finals: Sequence[TrialResult]) -> list[str]:
    return [arm for arm in study.settings.arms if arm in by_arm(finals)]


def _by(study: Study) -> str:
    return subject_of(study).axis


def _whose(arms: Sequence[str]) -> str:
    return "each arm" if len(arms) > 1 else "".join(arms)


def _several(finals: Sequence[TrialResult]) -> bool:
    return max((len(trials) for trials in by_arm(finals).values()), default=0) > 1


def _curve_rows(results: Sequence[TrialResult], metric: str, factor: float, by: str) -> list[dict[str, Any]]:
    rows = []
    for arm, trials in by_arm(results).items():
        curves = [
            {getattr(point, by): factor * point.metrics[metric] for point in result.points if metric in point.metrics}
            for result in trials
        ]
        for x in sorted(set().union(*curves)):
            # A trial that diverged has no value from then on, and counts as infinite.
            values = [curve.get(x, math.nan) for curve in curves]
            at = spread(values)
            if math.isfinite(at.median):
                high = max(value for value in values if math.isfinite(value))
                rows.append({"arm": arm, "x": x, "median": at.median, "low": at.low, "high": high})
    return rows


def _gate_cells(results: Sequence[TrialResult], by: str) -> dict[str, list[dict[str, Any]]]:
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
