"""The gates over depth and time in real training: does the paper's description hold?

Bachlechner et al. (2020), arXiv:2003.04887, sec. 5, of Transformers: the gates of deep layers rise first, then all fall
to small values. Three studies, 3 seeds each, that any later run can be put beside:

    rezero compare fc-cifar10 --arms rezero --depth 32 --measure-every 100 --threads 1 -o mlp-32
    rezero compare lm-enwik8 --arms rezero --depth 12 --seeds 3 --steps 1000 --measure-every 20 --threads 1 -o lm-12
    rezero compare lm-enwik8 --arms rezero --depth 64 --width 64 --context 64 --seeds 3 --steps 600 --measure-every 20 \
        --threads 1 -o lm-64
    python -m rezero.papers.alphas mlp-32 lm-12 lm-64    # writes results/alphas
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rezero.charts import save
from rezero.diagnose.alpha_history import AlphaHistory
from rezero.lab import Store
from rezero.lab.spreads import by_arm, compared

__all__ = ["describe", "read", "write"]

_FALLEN = 0.9  # of its largest size: below that a gate has fallen


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
        seed: AlphaHistory(
            names=tuple(f"block {i + 1}" for i in range(len(points[0].alphas))),
            steps=torch.tensor([point.step for point in points]),
            alphas=torch.tensor([point.alphas for point in points], dtype=torch.float64),
            lows=None,
            highs=None,
            gradients=None,
            ratios=None,
        )
        for seed, points in found.items()
    }


def describe(history: AlphaHistory) -> dict[str, float]:
    """Put the course of the gates into numbers.

    Args:
        history: One run.

    Returns:
        ``early``: Spearman's correlation of a gate's depth with its size after a tenth of the run; 1 if the deepest is
        the largest. ``rise``: with the step at which it has half of its largest size; -1 if deep ones get there first.
        ``fallen``: the share of gates that end below 0.9 of their largest size. ``first``,
        ``middle`` and ``last``: the mean size at the end of the three thirds of the depth; ``largest``: of the largest
        gate at any time.
    """
    sizes: Tensor = history.alphas.abs()
    tops = sizes.max(0).values
    half = history.steps[(sizes >= tops / 2).int().argmax(0)]
    thirds = [float(part.mean()) for part in sizes[-1].tensor_split(3)]
    early = sizes[int((history.steps >= history.steps[-1] / 10).int().argmax())]
    fallen = float((sizes[-1] < _FALLEN * tops).double().mean())
    return {
        "early": _with_depth(early),
        "rise": _with_depth(half),
        "fallen": fallen,
        "largest": float(tops.max()),
        **dict(zip(("first", "middle", "last"), thirds, strict=True)),
    }


def _with_depth(values: Tensor) -> float:
    """Return Spearman's correlation of a value a gate with depth; nan where all are the same."""
    if bool((values == values[0]).all()):
        return math.nan
    return float(stats.spearmanr(range(len(values)), values.tolist()).statistic)


def write(name: str, runs: Mapping[int, AlphaHistory], facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the map of the first seed, the profile over seeds, and the numbers of all.

    Args:
        name: What was trained.
        runs: Seed to history.
        facts: How they came about.
        folder: Where to; it is made if it is not there.

    Returns:
        The numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {seed: describe(history) for seed, history in runs.items()}
    means = {key: mean(each[key] for each in seeds.values()) for key in next(iter(seeds.values()))}
    first, *others = runs.values()
    save(first.heat_map(), folder / f"{name}-map", ("svg",))
    save(first.profile(*others, signed=False), folder / f"{name}-profile", ("svg",))
    summary = {**facts, "mean": means, "seeds": seeds}
    (folder / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def main(folders: Sequence[str]) -> None:
    """Write what studies show.

    Args:
        folders: Their folders.
    """
    for path in map(Path, folders):
        with Store.open(path) as store:
            facts = dict(store.study.provenance)
        found = write(path.name, read(path), facts, Path("results/alphas"))
        print(path.name, {key: round(value, 3) for key, value in found["mean"].items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of studies")
    main(parser.parse_args().folders)
