"""Does ReZero generalise better? The remark of a user: two points more of validation accuracy, training loss alike.

Fully connected networks of 16 layers on five small real data sets, ReZero against residuals with LayerNorm, before and
after the sum, each arm at its own best rate, 10 paired seeds.

    rezero reproduce generalization
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rezero.charts import intervals, save
from rezero.papers.claims import Claim, Finding, above, closed, judge, shown
from rezero.papers.reading import gain_of, of_pair
from rezero.papers.reproduction import Reproduction, Scale
from rezero.papers.studies import Asked, Recipe, run_all

__all__ = ["GENERALIZATION", "LAPTOP", "PAPER"]

SETS = {"breast_cancer": 400, "wine": 300, "digits": 600, "cifar10-1000": 600, "cifar10-5000": 1200}
"""Name of the data set to the optimizer steps."""
BASELINES = ("pre-norm", "post-norm")


def _recipes(jobs: int, longer: int = 1, **settings: Any) -> tuple[Recipe, ...]:
    asks = tuple(Asked(baseline, metric) for baseline in BASELINES for metric in ("val_accuracy", "train_loss"))
    given = {"arms": "pre-norm,post-norm,rezero", "tune": 5, "tune_seeds": 2, **settings}
    return tuple(
        Recipe(
            name,
            "fc-table",
            {**given, "data": name, "steps": longer * steps, "measure_every": longer * steps // 10},
            asks,
            jobs=jobs,
        )
        for name, steps in SETS.items()
    )


LAPTOP = _recipes(2, depth=16, width=64, threads=1)
PAPER = _recipes(1, 5, depth=32, width=256, device="cuda")


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw how many points ReZero is better, data set by data set.

    Args:
        summary: The numbers.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    rows = []
    for name, study in summary["studies"].items():
        for baseline in BASELINES:
            gain = of_pair(study, "rezero", baseline, "val_accuracy")["gain"]
            if gain is not None:
                middle, low, high = (100 * end for end in closed(gain))
                rows.append({"name": name, "arm": f"against {baseline}", "middle": middle, "low": low, "high": high})
    said = "Points of validation accuracy that ReZero is better at the end, with 95% intervals."
    arms = tuple(f"against {baseline}" for baseline in BASELINES)
    save(intervals(rows, x="points better", arms=arms, mark=0.0, description=said), folder / "points")
    return {"points": said}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: The numbers.

    Returns:
        Lines of text.
    """
    said = ["one split of each set, by which the rates are chosen too; the seeds are of weights and order of the rows"]
    for name, study in summary["studies"].items():
        for baseline in BASELINES:
            accuracy, loss = (of_pair(study, "rezero", baseline, each) for each in ("val_accuracy", "train_loss"))
            trained = gain_of(loss, "nats", words=("lower", "higher"))
            said.append(
                f"{name}: rezero ends {gain_of(accuracy, 'points', 100)} than {baseline}, its training loss {trained}"
            )
    return said


def _two_points(baseline: str, summary: Mapping[str, Any]) -> Finding:
    """Ask on each data set whether it is better, and whether by 2 points."""
    gains = {
        name: of_pair(study, "rezero", baseline, "val_accuracy")["gain"] for name, study in summary["studies"].items()
    }
    said = "; ".join(f"{name} {shown(gain, '+.1f', of=lambda value: 100 * value)}" for name, gain in gains.items())
    better, by_two = ([above(gain, mark) for gain in gains.values()] for mark in (0.0, 0.02))
    counts = f"asked on every set are both: better, which it is on {better.count(True)} of {len(gains)}, "
    counts += f"and by 2 points, which it is on {by_two.count(True)} "
    counts += f"(ruled out on {by_two.count(False)})"
    return Finding(f"points better than {baseline}: {said}; {counts}", judge(*better, *by_two))


GENERALIZATION = Reproduction(
    name="generalization",
    shows="validation accuracy of ReZero and of residuals with LayerNorm on five small data sets",
    source="a user's remark",
    version=1,
    scales={
        "laptop": Scale(minutes=10, seeds=10, run=partial(run_all, LAPTOP)),
        "paper": Scale(minutes=240, seeds=10, run=partial(run_all, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=tuple(
        Claim(
            f"It generalises better than a residual with LayerNorm ({baseline})",
            "a user's remark",
            "2 points of validation accuracy",
            partial(_two_points, baseline),
        )
        for baseline in BASELINES
    ),
)
