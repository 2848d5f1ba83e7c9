"""ResNets on CIFAR-10: the first epoch, epochs to an accuracy, and the final error.

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.3, and the authors' code: ResNet-20, -56 and -110 with SGD, momentum
0.9, weight decay 1e-4, batches of 128, rates of 0.2 for 20 layers and 0.1 for more, flips and crops. On the final error
of ResNet-56 its sources contradict each other.

    rezero reproduce resnet
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rezero.lab.subject import counted
from rezero.papers.claims import Claim, Finding, above, confirmed, difference, ended, judge
from rezero.papers.drawing import draw_arms, file_stem
from rezero.papers.reading import ends_at, gain_of, of_pair, speed_of
from rezero.papers.reproduction import Reproduction, Scale
from rezero.papers.studies import Asked, Recipe, run_all

__all__ = ["LAPTOP", "PAPER", "RESNET"]

PUBLISHED: Mapping[int, tuple[float, float]] = {20: (49.52, 43.43), 56: (53.50, 26.63), 110: (50.65, 27.01)}
"""Validation accuracy after the first epoch by the authors' code, in percent: ReZero, and without."""
TARGETS = (0.80, 0.85)
LEVELS = (0.60, 0.70)  # below them, which a short run gets to
FEW = 3  # seeds, of which an interval is wider than what can be

_ASKS = (Asked("residual", "val_accuracy"), *(Asked("residual", "val_accuracy", target) for target in TARGETS))


def _recipe(depth: int, epochs: int, *, jobs: int, most_seeds: int | None = None, **more: Any) -> Recipe:
    name = f"ResNet-{depth}, {counted(epochs, 'epoch')}"
    settings = {"arms": "residual,rezero", "depth": depth, "epochs": epochs, **more}
    return Recipe(name, "resnet-cifar10", settings, _ASKS, jobs=jobs, most_seeds=most_seeds)


LAPTOP = (
    _recipe(20, 1, jobs=2, threads=1),
    _recipe(20, 8, jobs=2, threads=1, most_seeds=1),
    _recipe(56, 1, jobs=2, threads=1, most_seeds=2),
    _recipe(110, 1, jobs=2, threads=1, most_seeds=1),
)
PAPER = tuple(_recipe(depth, 200, jobs=1, device="cuda") for depth in PUBLISHED)


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the accuracy of each study that has more than one epoch.

    Args:
        summary: The numbers.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    pictures = {}
    for name, study in summary["studies"].items():
        if study["settings"]["epochs"] > 1:
            stem = file_stem(name)
            of = "median and range of the seeds" if study["settings"]["seeds"] > 1 else "one seed"
            said = f"{name} on CIFAR-10: validation accuracy over the steps, {of}."
            draw_arms(
                study,
                folder / stem,
                metric="val_accuracy",
                title="validation accuracy",
                description=said,
                percent=True,
            )
            pictures[stem] = said
    return pictures


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: The numbers.

    Returns:
        Lines of text.
    """
    said = []
    for name, study in summary["studies"].items():
        published = PUBLISHED[study["settings"]["depth"]]
        for arm, number in zip(("rezero", "residual"), published, strict=True):
            found = f"{_percent(study, arm, 0)} after the first{_range(study, arm)}"
            said.append(f"{name}: {arm} {found}, published {number}%")
        if study["settings"]["epochs"] > 1:
            said += [f"{name}: {arm} ends at {_percent(study, arm, -1)}" for arm in study["arms"]]
            said += [f"{name}: {_epochs_to(study, level)}" for level in LEVELS]
            said += [f"{name}: to {target:.0%} rezero is {_to(study, target)}" for target in TARGETS]
    return said


def _percent(study: Mapping[str, Any], arm: str, place: int) -> str:
    values = ends_at(study, arm, "val_accuracy", place)
    known = [value for value in values if value is not None]
    return ended(values, ".1%") if len(known) < len(values) or len(known) >= FEW else _listed(known, ".1%")


def _range(study: Mapping[str, Any], arm: str) -> str:
    """Say where single seeds lie, as the published ones are."""
    known = [value for value in ends_at(study, arm, "val_accuracy", 0) if value is not None]
    return f" (single seeds from {min(known):.1%} to {max(known):.1%})" if len(known) >= FEW else ""


def _listed(values: Sequence[float], form: str) -> str:
    return " and ".join(format(value, form) for value in values) + (" (one seed)" if len(values) == 1 else "")


def _epochs_to(study: Mapping[str, Any], level: float) -> str:
    """Say after how many epochs each arm was first measured at an accuracy or above it, in the median of the seeds."""
    said = []
    for arm in ("rezero", "residual"):
        epochs = []
        for points in study["arms"][arm]["points"].values():
            steps = points[-1]["step"] / study["settings"]["epochs"]
            there = (point["step"] / steps for point in points if point["val_accuracy"] >= level)
            epochs.append(next(there, math.inf))
        said.append(f"{arm} after {middle:g} epochs" if math.isfinite(middle := median(epochs)) else f"{arm} not yet")
    return f"at {level:.0%}: {', '.join(said)}"


def _to(study: Mapping[str, Any], target: float) -> str:
    asked = next(each for each in study["asked"] if each["target"] == target)
    return speed_of(asked["found"][0])


def _first(depth: int, summary: Mapping[str, Any]) -> Finding | None:
    """Take the study with the most seeds; all of them begin alike."""
    studies = [each for each in summary["studies"].values() if each["settings"]["depth"] == depth]
    if not studies:
        return None
    study = max(studies, key=lambda each: each["settings"]["seeds"])
    gain = difference(*(ends_at(study, arm, "val_accuracy", 0) for arm in ("rezero", "residual")))
    said = f"rezero {_percent(study, 'rezero', 0)}, residual {_percent(study, 'residual', 0)}"
    return Finding(f"{said}; {counted(study['settings']['seeds'], 'seed')}", judge(above(gain)))


def _sooner(summary: Mapping[str, Any]) -> Finding | None:
    study = max(summary["studies"].values(), key=lambda each: each["settings"]["epochs"])
    said, faster = [], []
    for target in TARGETS:
        [found] = next(each for each in study["asked"] if each["target"] == target)["found"]
        said.append(f"to {target:.0%} {speed_of(found)}")
        faster.append(confirmed(found["speed"]))
    depth, levels = study["settings"]["depth"], "; ".join(_epochs_to(study, level) for level in LEVELS)
    said.append(f"earlier levels: {levels}")
    return Finding(f"ResNet-{depth}, {counted(study['settings']['seeds'], 'seed')}: {'; '.join(said)}", judge(*faster))


def _final(summary: Mapping[str, Any]) -> Finding | None:
    study = next((each for name, each in summary["studies"].items() if name == "ResNet-56, 200 epochs"), None)
    if study is None:
        return None
    found = of_pair(study, "rezero", "residual", "val_accuracy")
    said = f"rezero {_percent(study, 'rezero', -1)}, residual {_percent(study, 'residual', -1)}"
    return Finding(f"{said}; {gain_of(found, 'points', 100)}", judge(confirmed(found["quality"])))


RESNET = Reproduction(
    name="resnet",
    shows="ResNets on CIFAR-10: the first epoch, epochs to 80 and 85%, the final error",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.3",
    version=1,
    scales={
        "laptop": Scale(
            minutes=90,
            seeds=5,
            run=partial(run_all, LAPTOP),
            about=(
                "The authors' networks, batches and rates, on all images, for 1 and 8 of their 200 epochs; nothing is "
                "tuned for either arm. An accuracy of 10% is that of a network that knows nothing: so the one seed of "
                "110 layers without gates ends its first epoch here. 8 epochs are too few for 80%, on which the claim "
                "of the paper waits, and the residual ResNet-20 is behind the published one, which is one seed."
            ),
        ),
        "paper": Scale(minutes=1500, seeds=5, run=partial(run_all, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=(
        *(
            Claim(
                f"ResNet-{depth} is more accurate after its first epoch",
                "authors' code",
                f"rezero {ours}%, residual {theirs}% (one seed)",
                partial(_first, depth),
            )
            for depth, (ours, theirs) in PUBLISHED.items()
        ),
        Claim("ResNets reach 80 and 85% sooner", "v1, abstract", "ResNet-56: 32% fewer epochs to 85%", _sooner),
        Claim(
            "ResNet-56 ends with a smaller error",
            "README of the authors' examples; the supplement of the UAI paper says the opposite",
            "error 6.38% against 7.74%; in the supplement 6.58% against 6.27%",
            _final,
        ),
    ),
)
