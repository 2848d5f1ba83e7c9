"""The gates over depth and time in real training: does the paper's description hold?

Bachlechner et al. (2020), arXiv:2003.04887, sec. 5, of Transformers: the gates of deep layers rise first, then all fall
to small values.

    rezero reproduce alphas
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rezero.charts import save
from rezero.diagnose.alpha_history import AlphaHistory
from rezero.lab import Store
from rezero.lab.spreads import by_arm, compared
from rezero.papers.claims import Claim, Finding, above, below, interval, judge, shown
from rezero.papers.drawing import file_stem
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import Recipe

__all__ = ["ALPHAS", "LAPTOP", "PAPER", "describe", "read", "run"]

_FALLEN, _SMALL_SHARE = 0.9, 0.5  # of its largest size: below that a gate has fallen, or become small
_BEGINNING = ", first steps"
"""What the names of studies end with that measure every other step of the beginning, where gates rise."""


def _recipes(
    mlp: Mapping[str, Any], shallow: Mapping[str, Any], deep: Mapping[str, Any], jobs: int
) -> tuple[Recipe, ...]:
    first = {"steps": 120, "measure_every": 2}
    twelve, many = {"arms": "rezero", "depth": 12, **shallow}, {"arms": "rezero", "depth": 48, **deep}
    return (
        Recipe("MLP of 32", "fc-cifar10", {"arms": "rezero", "depth": 32, **mlp}, (), jobs=jobs, most_seeds=3),
        Recipe("Transformer of 12", "lm-enwik8", twelve, (), jobs=jobs, most_seeds=3),
        Recipe("Transformer of 48", "lm-enwik8", many, (), jobs=jobs, most_seeds=3),
        Recipe(f"Transformer of 12{_BEGINNING}", "lm-enwik8", {**twelve, **first}, (), jobs=jobs),
        Recipe(f"Transformer of 48{_BEGINNING}", "lm-enwik8", {**many, **first}, (), jobs=jobs),
    )


_SMALL = {"width": 64, "heads": 4, "context": 64, "batch_size": 8, "lr": 0.01, "threads": 1}
_LARGE = {"width": 512, "heads": 8, "context": 512, "batch_size": 64, "lr": 1e-3, "steps": 20_000, "measure_every": 400}
LAPTOP = _recipes(
    {"steps": 3000, "measure_every": 100, "threads": 1},
    {**_SMALL, "steps": 2000, "measure_every": 50},
    {**_SMALL, "steps": 400, "measure_every": 20},
    2,
)
PAPER = _recipes(
    {"epochs": 10, "measure_every": 100, "device": "cuda"},
    {**_LARGE, "device": "cuda", "precision": "bf16"},
    {**_LARGE, "device": "cuda", "precision": "bf16"},
    1,
)


def run(recipes: Sequence[Recipe], work: Work) -> dict[str, Any]:
    """Train, and put the course of the gates into numbers.

    Args:
        recipes: Studies of ReZero alone.
        work: Where, and on how many seeds.

    Returns:
        For each study its command, its settings, the steps, and the gates at each of them by seed.
    """
    found = {}
    for recipe in recipes:
        study = recipe.run(work)
        histories = read(recipe.folder(work))
        found[recipe.name] = {
            "command": study["command"],
            "settings": study["settings"],
            "steps": next(iter(histories.values())).steps.tolist(),
            "alphas": {str(seed): _rounded(history.alphas) for seed, history in histories.items()},
        }
    return {"studies": found}


def _rounded(alphas: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in alphas.tolist()]


def read(folder: Path) -> dict[int, AlphaHistory]:
    """Read the gates of a study's ReZero arm, signs and all.

    Args:
        folder: Folder of the study.

    Returns:
        Seed to what was measured.
    """
    with Store.open(folder) as store:
        ended = by_arm(compared(store.results())).get("rezero", [])
        found = {result.trial.seed: result.points for result in ended}
    return {
        seed: _history([point.step for point in points], [list(point.alphas) for point in points])
        for seed, points in found.items()
    }


def _history(steps: Sequence[int], alphas: Sequence[Sequence[float]]) -> AlphaHistory:
    names = tuple(f"block {i + 1}" for i in range(len(alphas[0])))
    return AlphaHistory(names, torch.tensor(steps), torch.tensor(alphas, dtype=torch.float64))


def describe(history: AlphaHistory) -> dict[str, float]:
    """Put the course of the gates into numbers.

    Args:
        history: One run.

    Returns:
        ``early``: Spearman's correlation of a gate's depth with its size after a tenth of the run; 1 if the deepest is
        the largest. ``rise``: with the step at which it has half of its largest size; -1 if deep ones get there first.
        ``fallen``: the share of gates that end below 0.9 of their largest size; ``small``: below half. ``first``,
        ``middle`` and ``last``: the mean size at the end of the three thirds of the depth; ``largest``: of the largest
        gate at any time.
    """
    sizes: Tensor = history.alphas.abs()
    tops = sizes.max(0).values
    half = history.steps[(sizes >= tops / 2).int().argmax(0)]
    thirds = [float(part.mean()) for part in sizes[-1].tensor_split(3)]
    early = sizes[int((history.steps >= history.steps[-1] / 10).int().argmax())]
    return {
        "early": _with_depth(early),
        "rise": _with_depth(half),
        "fallen": float((sizes[-1] < _FALLEN * tops).double().mean()),
        "small": float((sizes[-1] < _SMALL_SHARE * tops).double().mean()),
        "largest": float(tops.max()),
        **dict(zip(("first", "middle", "last"), thirds, strict=True)),
    }


def _with_depth(values: Tensor) -> float:
    """Return Spearman's correlation of a value a gate with depth; 0 where all are the same."""
    if bool((values == values[0]).all()):
        return 0.0
    return float(stats.spearmanr(range(len(values)), values.tolist()).statistic)


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the map of the first seed and the profile over all, of each study.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    pictures = {}
    for name, study in summary["studies"].items():
        first, *others = (_history(study["steps"], alphas) for alphas in study["alphas"].values())
        stem = file_stem(name)
        save(first.heat_map(), folder / f"{stem}-map")
        pictures[f"{stem}-map"] = f"{name}: the gates over depth and time, first seed."
        save(first.profile(*others, signed=False), folder / f"{stem}-profile")
        pictures[f"{stem}-profile"] = f"{name}: size of the gates over depth at the end, median and range of the seeds."
    return pictures


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    said = []
    for name, study in summary["studies"].items():
        if name.endswith(_BEGINNING):
            rise, early = (shown(each, "+.2f") for each in _over_seeds(study, "rise", "early"))
            said.append(
                f"{name}: correlation of depth with the step of the rise {rise}, with size after a tenth {early}"
            )
            continue
        fallen, small = (shown(each, ".0%") for each in _shares(study, "fallen", "small"))
        first, middle, last = _over_seeds(study, "first", "middle", "last")
        sizes = ", ".join(shown(each, "#.2g") for each in (first, middle, last))
        said.append(
            f"{name}: {fallen} of the gates end below {_FALLEN:g} of their largest size, {small} below "
            f"{_SMALL_SHARE:g} (lowest to highest seed); sizes at the end {sizes} (first, middle, last third)"
        )
    return said


def _over_seeds(study: Mapping[str, Any], *names: str) -> list[dict[str, float | None]]:
    """Return mean and interval over the seeds of what `describe` says of a run."""
    runs = _runs(study)
    return [interval([run[name] for run in runs]) for name in names]


def _shares(study: Mapping[str, Any], *names: str) -> list[dict[str, float | None]]:
    """Return the mean of a share and its range over the seeds, which stays within 0 and 1."""
    runs = _runs(study)
    found = ([run[name] for run in runs] for name in names)
    return [{"mean": fmean(values), "low": min(values), "high": max(values)} for values in found]


def _runs(study: Mapping[str, Any]) -> list[dict[str, float]]:
    return [describe(_history(study["steps"], alphas)) for alphas in study["alphas"].values()]


def _rise(summary: Mapping[str, Any]) -> Finding | None:
    found = _transformers(summary, beginning=True)
    if not found:
        return None
    rises = {name: _over_seeds(study, "rise")[0] for name, study in found.items()}
    said = "; ".join(f"{name}: {shown(rise, '+.2f')}" for name, rise in rises.items())
    return Finding(
        f"rank correlation of a gate's depth with the step of its rise, -1 if deep ones are first, 0 if all rise "
        f"together: {said}",
        judge(*(below(rise) for rise in rises.values())),
    )


def _fall(summary: Mapping[str, Any]) -> Finding:
    """Ask that nine of ten gates become small on each seed; having fallen at all is less."""
    found = _transformers(summary, beginning=False)
    shares = {name: _shares(study, "small", "fallen") for name, study in found.items()}
    rates = sorted({study["settings"]["lr"] for study in found.values()})
    marks = _SMALL_SHARE, _FALLEN
    said = []
    for name, pair in shares.items():
        each = (f"{shown(share, '.0%')} below {mark:g}" for share, mark in zip(pair, marks, strict=True))
        said.append(f"{name}: {' and '.join(each)}")
    return Finding(
        f"share of gates that end below {_SMALL_SHARE:g} of their largest size (small) and below {_FALLEN:g} (fallen) "
        f"at a rate of {' and '.join(f'{rate:g}' for rate in rates)}, mean and range of the seeds, asked of both is "
        f"{_FALLEN:.0%}: {'; '.join(said)}",
        judge(*(above(share, _FALLEN) for pair in shares.values() for share in pair)),
    )


def _transformers(summary: Mapping[str, Any], *, beginning: bool) -> dict[str, Mapping[str, Any]]:
    return {
        name: study
        for name, study in summary["studies"].items()
        if name.startswith("Transformer") and name.endswith(_BEGINNING) == beginning
    }


ALPHAS = Reproduction(
    name="alphas",
    shows="the gates over depth and time in real training",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 5",
    version=2,
    scales={
        "laptop": Scale(minutes=50, seeds=10, run=partial(run, LAPTOP)),
        "paper": Scale(minutes=600, seeds=10, run=partial(run, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10", "enwik8"),
    claims=(
        Claim("In Transformers the gates of deep layers rise first", "sec. 5", "no number", _rise),
        Claim("Later all of them fall to small values", "sec. 5", "no number", _fall),
    ),
)
