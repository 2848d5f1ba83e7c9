"""The fully connected network on CIFAR-10: how much faster ReZero trains, at the authors' rate and at tuned ones.

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1, and the authors' notebook: 32 and 64 layers of width 256, Adagrad
at 0.01, batches of 100. The notebook's epoch has 500 steps.

    rezero reproduce fc
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rezero.papers.claims import Claim, Finding, above, confirmed, ended, interval, judge, shown
from rezero.papers.drawing import draw_arms, file_stem
from rezero.papers.reading import ends_at, gain_of, learned_nothing, loss_of_epoch, of_pair, speed_of
from rezero.papers.reproduction import Reproduction, Scale
from rezero.papers.studies import Asked, Recipe, run_all

__all__ = ["FC", "LAPTOP", "PAPER"]

TUNED = "plain,residual,post-norm,pre-norm,rezero"
PUBLISHED: Mapping[str, float] = {"rezero": 1.68, "plain-norm": 2.23, "plain": 54693.80, "residual": 131269.63}
"""The authors' training losses, the mean over the first epoch, of 64 layers at 0.01."""
EPOCH = 500  # steps
EVERY = 50  # steps whose mean is a training loss: the first of 100 would be mostly that of ReZero's start
EXPLODED = 100.0  # nats
LEAST = 7.0  # times as fast, by the paper
SEVERAL = 2.0  # times, where the paper has no number
CHANCE = math.log(10)  # nats: the loss of a model that knows nothing
HIGH = 10.0  # nats: curves beyond it would flatten the others

METRICS: Mapping[str, str] = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "val_accuracy": "accuracy",
}
_ASKS = tuple(Asked(baseline, metric) for baseline in ("plain", "pre-norm") for metric in METRICS)
_ALONE = (Asked("plain", "train_loss"),)


def _recipes(lengths: tuple[int, int, int], more: Mapping[str, Any], jobs: int) -> tuple[Recipe, ...]:
    given = {"width": 256, **more}
    tuned = {**given, "arms": TUNED, "tune": 5, "measure_every": EVERY}
    arms = "plain,residual,plain-norm,rezero"
    authors = {**given, "arms": arms, "depth": 64, "lr": 0.01, "steps": lengths[2], "measure_every": 100}
    return (
        Recipe("32 layers", "fc-cifar10", {**tuned, "depth": 32, "steps": lengths[0]}, _ASKS, jobs=jobs),
        Recipe("64 layers", "fc-cifar10", {**tuned, "depth": 64, "steps": lengths[1]}, _ASKS, jobs=jobs),
        Recipe("64 layers, authors' rate", "fc-cifar10", authors, _ALONE, jobs=jobs),
    )


LAPTOP = _recipes((1000, 400, EPOCH), {"threads": 1}, 2)
PAPER = _recipes((10 * EPOCH, 10 * EPOCH, 10 * EPOCH), {"device": "cuda"}, 1)


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw training loss and accuracy of each study.

    Args:
        summary: The numbers.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    pictures = {}
    for name, study in summary["studies"].items():
        stem = file_stem(name)
        about = f"of {name}, width 256, on CIFAR-10 over the steps, median and range of {summary['seeds']} seeds."
        for metric, title, log in (("train_loss", "training loss, nats", True), ("val_accuracy", "accuracy", False)):
            out = [arm for arm in study["arms"] if log and _highest(study, arm) > HIGH]
            said = f"{title.partition(',')[0].capitalize()} {about}"
            left = (f"{arm}, which ends at {ended(ends_at(study, arm, metric))}" for arm in out)
            said += f" Left out, for losses above {HIGH:g} on the way: {'; '.join(left)}." if out else ""
            kept = {"arms": {arm: found for arm, found in study["arms"].items() if arm not in out}}
            file = folder / f"{stem}-{title.partition(',')[0].replace(' ', '-')}"
            draw_arms(kept, file, metric=metric, title=title, description=said, log=log, percent=not log)
            pictures[file.name] = said
    return pictures


def _highest(study: Mapping[str, Any], arm: str) -> float:
    """Return the largest training loss that was measured of an arm."""
    losses = (point["train_loss"] for points in study["arms"][arm]["points"].values() for point in points)
    return max(math.inf if loss is None else loss for loss in losses)


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: The numbers.

    Returns:
        Lines of text.
    """
    said = []
    for name in ("32 layers", "64 layers"):
        study = summary["studies"][name]
        for baseline in ("plain", "pre-norm"):
            found = {metric: of_pair(study, "rezero", baseline, metric) for metric in METRICS}
            faster = ", ".join(f"by {by} {speed_of(found[metric])}" for metric, by in METRICS.items())
            gain = gain_of(found["val_accuracy"], "points", 100)
            said.append(f"{name}, tuned: rezero is {faster}, and {gain} at the end")
        said += [f"{name}, tuned: {arm} ends at {_end(study, arm)}" for arm in study["arms"]]
        said += [
            f"{name}, tuned: the training loss of {arm} ends at {CHANCE:.1f} nats or more, that of a model that knows "
            "nothing, at the best of its rates"
            for arm in learned_nothing(study, CHANCE)
        ]
    epoch = (f"{arm} {_epoch(summary, arm)}, published {published:,g}" for arm, published in PUBLISHED.items())
    return [*said, *(f"64 layers, 0.01, training loss of the first epoch, nats: {each}" for each in epoch)]


def _end(study: Mapping[str, Any], arm: str) -> str:
    rate = study["arms"][arm]["lr"]
    loss, accuracy = (ends_at(study, arm, metric) for metric in ("train_loss", "val_accuracy"))
    return f"a training loss of {ended(loss)} nats and {ended(accuracy, '.1%')} right, at a rate of {rate:g}"


def _epoch(summary: Mapping[str, Any], arm: str) -> str:
    losses = loss_of_epoch(summary["studies"]["64 layers, authors' rate"], arm, EPOCH)
    known = [loss for loss in losses if loss is not None]
    if len(known) < len(losses):
        return f"diverged on {len(losses) - len(known)} of {len(losses)} seeds"
    if max(known) > EXPLODED:  # whose mean over seeds is that of the largest
        seeds = "one seed" if len(known) == 1 else f"median; range {min(known):,.0f} to {max(known):,.0f}"
        return f"{median(known):,.0f} ({seeds})"
    return shown(interval(known))


def _times(name: str, least: float, summary: Mapping[str, Any]) -> Finding:
    study = summary["studies"][name]
    said, within = [], []
    for metric, by in METRICS.items():
        found = of_pair(study, "rezero", "plain", metric)
        reaches = _reaches(found, least)
        words = {
            True: f"{least:g} times or more",
            False: f"short of {least:g} times",
            None: f"{least:g} is not ruled out",
        }
        said.append(f"by {by} {speed_of(found)} ({words[reaches]})")
        within.append(reaches)
    return Finding(f"{'; '.join(said)}; plain at its own best rate", judge(*within))


def _reaches(found: Mapping[str, Any], least: float) -> bool | None:
    """Tell whether it is so many times as fast or more; a plain network that never gets there is slower yet."""
    if any(found["censored"]):
        ours, theirs = found["censored"]
        return True if ours == 0 < theirs else None
    reaches = above(found["lead"], math.log(least))
    return None if reaches is False and found["early"][0] else reaches  # it may have been there earlier


def _first_epoch(summary: Mapping[str, Any]) -> Finding:
    losses = loss_of_epoch(summary["studies"]["64 layers, authors' rate"], "rezero", EPOCH)
    known = [loss for loss in losses if loss is not None]
    near = len(known) == len(losses) and abs(sum(known) / len(known) - PUBLISHED["rezero"]) < 0.05
    others = [arm for arm in PUBLISHED if arm != "rezero"]
    return Finding(
        "training loss: " + "; ".join(f"{arm} {_epoch(summary, arm)}" for arm in PUBLISHED),
        judge(*((near, all(_worse(summary, arm, known) for arm in others)) if len(losses) > 1 else (None,))),
    )


def _worse(summary: Mapping[str, Any], arm: str, rezero: list[float]) -> bool:
    losses = loss_of_epoch(summary["studies"]["64 layers, authors' rate"], arm, EPOCH)
    return all(loss is None or loss > max(rezero) for loss in losses)


def _saves_the_norm(summary: Mapping[str, Any]) -> Finding:
    said = []
    level = []
    for name in ("32 layers", "64 layers"):
        for metric, by in METRICS.items():
            found = of_pair(summary["studies"][name], "rezero", "pre-norm", metric)
            said.append(f"{name}, by {by}: {speed_of(found)}")
            level.append(confirmed(found["speed"]))
    return Finding("; ".join(said), judge(*level))


FC = Reproduction(
    name="fc",
    shows="32 and 64 fully connected layers on CIFAR-10, tuned and at the authors' rate",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1",
    version=2,
    scales={
        "laptop": Scale(
            minutes=55,
            seeds=5,
            run=partial(run_all, LAPTOP),
            about=(
                "1,000 steps of 32 layers, 400 of 64, and an epoch of the authors' at their rate. How many times as "
                "fast depends on how long it is trained and how often it is measured: a training loss is the mean "
                "over the steps since the last measurement, and ReZero's begins with a rise. The same 32 layers in "
                "[1,500 steps, measured every 100](../when.md), are 4.79 times as fast as plain by training loss, "
                "which rules 7 out, and 0.982 times as fast as pre-norm. `--seeds 1` takes 35 minutes, most of them "
                "to choose the rates, which are the same, as is what the first seed comes to."
            ),
        ),
        "paper": Scale(minutes=240, seeds=5, run=partial(run_all, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=(
        Claim(
            "A network of 32 layers trains many times faster",
            "v1, abstract and figure",
            "7 to 15 times",
            partial(_times, "32 layers", LEAST),
        ),
        Claim(
            "A network of 64 layers trains several times faster",
            "authors' notebook",
            f"no number; {SEVERAL:g} times is asked for here",
            partial(_times, "64 layers", SEVERAL),
        ),
        Claim(
            "At a rate of 0.01, 64 layers: ReZero learns in the first epoch, the others hardly or not",
            "authors' notebook",
            "; ".join(f"{arm} {value:,g}" for arm, value in PUBLISHED.items()) + " (nats)",
            _first_epoch,
        ),
        Claim("It is faster than a network with normalisation", "sec. 1", "no number", _saves_the_norm),
    ),
)
