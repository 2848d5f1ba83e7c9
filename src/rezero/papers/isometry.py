"""The Jacobians of Transformer encoders at the start: singular values of post-norm, pre-norm and ReZero.

Bachlechner et al. (2020), arXiv:2003.04887, and the authors' notebook: width 16, 4 tokens, 4 heads, a feed-forward
width of 64, Xavier weights, alpha set to 0.1, 10 networks an arm.

    python -m rezero.papers.isometry    # under a minute; writes results/isometry
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from rezero.charts import histogram, save
from rezero.diagnose.jacobian import jacobian_spectrum
from rezero.gate import gates
from rezero.layers import TransformerEncoderLayer
from rezero.provenance import provenance

__all__ = ["ARMS", "PUBLISHED", "Measured", "measure", "write"]

ARMS = ("post-norm", "pre-norm", "rezero")
PUBLISHED: Mapping[tuple[str, int], float] = {("post-norm", 12): 0.810, ("pre-norm", 12): 10.242, ("rezero", 12): 1.059}
WIDTH, TOKENS, HEADS, FEED_FORWARD, ALPHA = 16, 4, 4, 64, 0.1


@dataclass(frozen=True)
class Measured:
    """The singular values of one network.

    Attributes:
        arm: Residual formula.
        depth: Layers.
        seed: Of the network and its input.
        singular_values: All of them, ``(64,)``.
        mean_squared: The mean of their squares.
    """

    arm: str
    depth: int
    seed: int
    singular_values: Tensor
    mean_squared: float


def measure(depths: Sequence[int] = (12, 128), seeds: Sequence[int] = range(10)) -> Iterator[Measured]:
    """Measure networks at their start, one after the other.

    Args:
        depths: Numbers of layers.
        seeds: One network an arm and depth for each.

    Yields:
        What was measured of each.
    """
    for depth in depths:
        for arm in ARMS:
            for seed in seeds:
                torch.manual_seed(seed)
                model = build(arm, depth)
                found = jacobian_spectrum(model, torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
                yield Measured(arm, depth, seed, found.singular_values[0], float(found.mean_squared[0]))


def build(arm: str, depth: int) -> nn.Module:
    """Build an encoder with Xavier weights, in float64.

    Args:
        arm: Residual formula.
        depth: Layers.

    Returns:
        The encoder.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        if arm == "rezero":
            layers.append(TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, batch_first=True))
        else:
            first = arm == "pre-norm"
            layers.append(nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, batch_first=True, norm_first=first))
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    for gate in gates(model).values():
        nn.init.constant_(gate.gate_parameter, ALPHA)
    return model


def write(found: Sequence[Measured], folder: Path, facts: Mapping[str, str]) -> None:
    """Write the numbers as ``summary.json`` and the histograms as ``singular_values.svg``.

    Args:
        found: What was measured.
        folder: Where to; it is made if it is not there.
        facts: How it came about, title to text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = summary(found)
    text = json.dumps({**facts, "alpha": ALPHA, "rows": rows}, indent=1)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    depths = sorted({each.depth for each in found})
    panels = {arm: {f"{depth} layers": _values(found, arm, depth) for depth in depths} for arm in ARMS}
    description = "Histograms of the singular values of encoders at their start, an arm in each panel, by depth."
    save(histogram(panels, description=description), folder / "singular_values", ("svg",))


def _values(found: Sequence[Measured], arm: str, depth: int) -> list[float]:
    """Return the singular values of all networks of an arm and depth."""
    of = (each.singular_values.tolist() for each in found if (each.arm, each.depth) == (arm, depth))
    return [value for values in of for value in values]


def summary(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """Sum up over the networks of an arm and depth.

    Args:
        found: What was measured.

    Returns:
        A row for each arm and depth: the mean over networks of the mean squared singular value, its standard deviation,
        and the published number, if there is one.
    """
    rows = []
    for depth in sorted({each.depth for each in found}):
        for arm in ARMS:
            squares = [each.mean_squared for each in found if (each.arm, each.depth) == (arm, depth)]
            rows.append(
                {
                    "arm": arm,
                    "depth": depth,
                    "networks": len(squares),
                    "mean_squared": mean(squares),
                    "deviation": stdev(squares),
                    "published": PUBLISHED.get((arm, depth)),
                }
            )
    return rows


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measured = list(measure())
    for row in summary(measured):
        print(f"{row['depth']:4} layers  {row['arm']:9}  {row['mean_squared']:8.4g} +- {row['deviation']:.2g}")
    write(measured, Path("results/isometry"), {**provenance(), "command": "python -m rezero.papers.isometry"})
