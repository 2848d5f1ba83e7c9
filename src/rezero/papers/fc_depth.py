"""Speed against depth: is ReZero the more valuable the larger the network?

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1: fully connected networks on CIFAR-10. Here 8 to 512 layers, each
arm at its own best rate.

    rezero reproduce fc-depth
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rezero.charts import save
from rezero.charts.depth import Panel, depth_panels
from rezero.papers.claims import Claim, Finding, closed, judge
from rezero.papers.fc import CHANCE
from rezero.papers.reading import gain_of, learned_nothing, of_pair, rates_tried, speed_of
from rezero.papers.reproduction import Reproduction, Scale
from rezero.papers.studies import Asked, Recipe, run_all

__all__ = ["FC_DEPTH", "LAPTOP", "PAPER"]

BASELINES = ("plain", "residual", "pre-norm")
METRICS: Mapping[str, str] = {"train_loss": "training loss", "val_loss": "validation loss"}


def _recipes(depths: tuple[int, ...], jobs: int, **settings: Any) -> tuple[Recipe, ...]:
    given = {"arms": "plain,residual,pre-norm,rezero", "tune": 5, **settings}
    asks = tuple(Asked(baseline, metric) for baseline in BASELINES for metric in METRICS)
    return tuple(
        Recipe(f"{depth} layers", "fc-cifar10", {**given, "depth": depth}, asks, jobs=jobs) for depth in depths
    )


LAPTOP = _recipes((8, 32, 128, 512), 2, width=64, steps=400, measure_every=50, threads=1)
PAPER = _recipes((8, 16, 32, 64, 128, 256, 512), 1, width=256, steps=5000, measure_every=250, device="cuda")


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw how many times as fast ReZero is, over the depth.

    Args:
        summary: The numbers.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    panels = [
        Panel(f"times as fast, by {by}", list(_rows(summary, metric)), log=True, limit=1.0, limit_name="1")
        for metric, by in METRICS.items()
    ]
    drawn = {row["line"] for panel in panels for row in panel.rows}
    arms = tuple(baseline for baseline in BASELINES if baseline in drawn)
    flat = [
        f"{baseline} of {name}"
        for baseline in BASELINES
        for name, study in summary["studies"].items()
        if baseline in learned_nothing(study, CHANCE)
    ]
    said = "How many times as fast as each other arm ReZero trains, over the number of layers, with 95% intervals."
    said += f" Left out, for they learn nothing: {', '.join(flat)}." if flat else ""
    save(depth_panels(panels, x="layers", lines=arms, log=True, description=said), folder / "speed")
    return {"speed": said}


def _rows(summary: Mapping[str, Any], metric: str) -> Iterator[dict[str, Any]]:
    for baseline in BASELINES:
        for name, study in summary["studies"].items():
            found = of_pair(study, "rezero", baseline, metric)
            flat = {"rezero", baseline} & set(learned_nothing(study, CHANCE))
            if found["lead"] is not None and not any(found["censored"]) and not flat:
                median, low, high = map(math.exp, closed(found["lead"]))
                place = {"line": baseline, "theory": False, "x": int(name.split()[0])}
                yield {**place, "median": median, "low": low, "high": high}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: The numbers.

    Returns:
        Lines of text.
    """
    said = []
    for name, study in summary["studies"].items():
        for baseline in BASELINES:
            if _flat(study, baseline):
                said.append(f"{name}: rezero {_flat(study, baseline)}")
                continue
            for metric, by in METRICS.items():
                found = of_pair(study, "rezero", baseline, metric)
                said.append(f"{name}, by {by}: rezero {speed_of(found)}, {gain_of(found, 'nats')} at the end")
        rates = ", ".join(f"{arm} {found['lr']:g}" for arm, found in study["arms"].items())
        said.append(f"{name}: rates: {rates}")
    return said


def _flat(study: Mapping[str, Any], baseline: str) -> str:
    """Say that one of the two diverges or learns nothing, if so: it is at its own end by chance, whenever that is."""
    flat = learned_nothing(study, CHANCE)
    if "rezero" in flat:
        return f"learns nothing, {baseline} {'neither' if baseline in flat else 'does'}"
    if baseline not in flat:
        return ""
    lost = set(study["arms"][baseline]["status"].values()) == {"diverged"}
    rates = rates_tried(study)[baseline]
    return f"learns, {baseline} diverges at its best of {rates} rates" if lost else f"learns, {baseline} nothing"


def _speed(study: Mapping[str, Any], baseline: str, metric: str) -> str:
    return _flat(study, baseline) or speed_of(of_pair(study, "rezero", baseline, metric))


def _grows(baseline: str, summary: Mapping[str, Any]) -> Finding:
    """Compare the least and the largest depth: their intervals must lie apart, the deeper one above."""
    studies = summary["studies"]
    shallow, *_, deep = studies.values()
    said = (
        f"By {by}, {'; '.join(f'{name}: {_speed(study, baseline, metric)}' for name, study in studies.items())}"
        for metric, by in METRICS.items()
    )
    return Finding(". ".join(said), judge(*(_above(baseline, metric, deep, shallow) for metric in METRICS)))


def _above(baseline: str, metric: str, deep: Mapping[str, Any], shallow: Mapping[str, Any]) -> bool | None:
    flat_deep, flat_shallow = (learned_nothing(study, CHANCE) for study in (deep, shallow))
    if "rezero" in (*flat_deep, *flat_shallow):
        return None
    if baseline in (*flat_deep, *flat_shallow):
        return None if baseline in flat_deep and baseline in flat_shallow else baseline in flat_deep
    more, less = (of_pair(study, "rezero", baseline, metric) for study in (deep, shallow))
    if any(less["censored"]) or any(more["censored"]):
        ours, theirs = more["censored"]
        return True if ours == 0 < theirs and not any(less["censored"]) else None
    ends = [each["lead"] and each["lead"][end] for each in (more, less) for end in ("low", "high")]
    if None in ends:
        return None
    if ends[0] > ends[3] and not less["early"][0]:  # which may have been there earlier
        return True
    return False if ends[1] < ends[2] and not more["early"][0] else None


FC_DEPTH = Reproduction(
    name="fc-depth",
    shows="how much faster ReZero trains, against the depth of a fully connected network",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1",
    version=2,
    scales={
        "laptop": Scale(
            minutes=25,
            seeds=5,
            run=partial(run_all, LAPTOP),
            about=(
                "Width 64, 400 steps. A training loss is the mean of 50 of them, so that what an arm learns within the "
                "first 50 counts less by it than by the validation loss. A network has learned nothing whose training "
                "loss ends above 99% of ln 10, in the median of the seeds. That more is gained is asked of the least "
                "and the largest depth: their intervals must lie apart, or the other arm learn in the former alone."
            ),
        ),
        "paper": Scale(minutes=600, seeds=5, run=partial(run_all, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=tuple(
        Claim(
            f"The deeper the network, the more is gained, against {name}",
            "v1, sec. 1",
            "no number",
            partial(_grows, name),
        )
        for name in BASELINES
    ),
)
