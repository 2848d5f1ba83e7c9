"""The Jacobians of Transformer encoders at the start: singular values of post-norm, pre-norm and ReZero.

Bachlechner et al. (2020), arXiv:2003.04887, and the authors' notebook: width 16, 4 tokens, 4 heads, a feed-forward
width of 64, Xavier weights, alpha set to 0.1, 10 networks an arm.

    rezero reproduce jacobian
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from rezero.charts import histogram, save
from rezero.diagnose.jacobian import jacobian_spectrum
from rezero.gate import gates
from rezero.layers import TransformerEncoderLayer
from rezero.papers.claims import Claim, Finding, above, below, every, interval, judge, shown, written
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import one_thread
from rezero.waiting import share_bar

__all__ = ["ARMS", "JACOBIAN", "PUBLISHED", "build", "measure", "run"]

ARMS = ("post-norm", "pre-norm", "rezero")
PUBLISHED: Mapping[tuple[str, int], float] = {("post-norm", 12): 0.810, ("pre-norm", 12): 10.242, ("rezero", 12): 1.059}
ONE = (0.8, 1.25)  # what counts as near 1
WIDTH, TOKENS, HEADS, FEED_FORWARD, ALPHA = 16, 4, 4, 64, 0.1
DEPTHS = (12, 128)


def run(work: Work, depths: Sequence[int] = DEPTHS) -> dict[str, Any]:
    """Measure networks at their start, each a part.

    Args:
        work: Where; a network an arm and depth for each seed.
        depths: Numbers of layers.

    Returns:
        The singular values of each, and sums of them.
    """
    networks = [(arm, depth, seed) for depth in depths for arm in ARMS for seed in range(work.seeds)]
    found = []
    with one_thread(), share_bar("jacobian") as tell:
        for place, (arm, depth, seed) in enumerate(networks):
            tell(place / len(networks), f"{arm}, {depth} layers, seed {seed}")
            found.append(work.part(f"{arm}-{depth}-{seed}", partial(measure, arm, depth, seed)))
    return {"alpha": ALPHA, "rows": summary(found), "networks": found}


def measure(arm: str, depth: int, seed: int) -> dict[str, Any]:
    """Measure a network at its start.

    Args:
        arm: Residual formula.
        depth: Layers.
        seed: Of the network and its input.

    Returns:
        All 64 singular values, to 6 digits, and the mean of their squares.
    """
    torch.manual_seed(seed)
    model = build(arm, depth)
    found = jacobian_spectrum(model, torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    values = [float(f"{value:.6g}") for value in found.singular_values[0].tolist()]
    mean_squared = float(found.mean_squared[0])
    return {"arm": arm, "depth": depth, "seed": seed, "mean_squared": mean_squared, "singular_values": values}


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


def write(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the histograms of the singular values.

    Args:
        found: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    networks = found["networks"]
    depths = sorted({each["depth"] for each in networks})
    panels = {arm: {f"{depth} layers": _values(networks, arm, depth) for depth in depths} for arm in ARMS}
    description = "Histograms of the singular values of encoders at their start, an arm in each panel, by depth."
    save(histogram(panels, description=description), folder / "singular_values")
    return {"singular_values": description}


def _values(networks: Sequence[Mapping[str, Any]], arm: str, depth: int) -> list[float]:
    """Return the singular values of all networks of an arm and depth."""
    of = (each["singular_values"] for each in networks if (each["arm"], each["depth"]) == (arm, depth))
    return [value for values in of for value in values]


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum up over the networks of an arm and depth.

    Args:
        found: What `measure` returned of each network.

    Returns:
        A row for each arm and depth: the mean over networks of the mean squared singular value, its standard deviation
        (None of one network), and the published number, if there is one.
    """
    rows = []
    for depth in sorted({each["depth"] for each in found}):
        for arm in ARMS:
            squares = [each["mean_squared"] for each in found if (each["arm"], each["depth"]) == (arm, depth)]
            rows.append(
                {
                    "arm": arm,
                    "depth": depth,
                    "networks": len(squares),
                    "mean_squared": mean(squares),
                    "deviation": stdev(squares) if len(squares) > 1 else None,
                    "published": PUBLISHED.get((arm, depth)),
                }
            )
    return rows


def lines(found: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        found: What `run` returned.

    Returns:
        Lines of text.
    """
    return [
        f"mean squared singular value, {row['depth']:4} layers, {row['arm']:9}  {_row(row)}" for row in found["rows"]
    ]


def _row(row: Mapping[str, Any]) -> str:
    spread = "" if row["deviation"] is None else f" ± {row['deviation']:.2g} (standard deviation)"
    beside = "" if row["published"] is None else f", published {row['published']:g}"
    return f"{written(row['mean_squared'])}{spread}{beside}"


def _squares(found: Mapping[str, Any]) -> Finding:
    squares = {arm: interval(_squares_of(found, arm, DEPTHS[0])) for arm in ARMS}
    said = "; ".join(f"{arm} {shown(mean)}" for arm, mean in squares.items())
    sides = above(squares["rezero"], ONE[0]), below(squares["rezero"], ONE[1])
    return Finding(said, judge(every(*sides), above(squares["pre-norm"], ONE[1]), below(squares["post-norm"], ONE[0])))


def _squares_of(found: Mapping[str, Any], arm: str, depth: int) -> list[float]:
    networks = found["networks"]
    return [each["mean_squared"] for each in networks if (each["arm"], each["depth"]) == (arm, depth)]


JACOBIAN = Reproduction(
    name="jacobian",
    shows="the singular values of Transformers at their start: post-norm, pre-norm and ReZero",
    source="Bachlechner et al. (2020), arXiv:2003.04887",
    version=1,
    scales={"laptop": Scale(minutes=1, seeds=10, run=run, whole=True)},
    write=write,
    lines=lines,
    claims=(
        Claim(
            f"Before training the mean squared singular value of 12 layers with gates at {ALPHA:g} is near 1, that of "
            "pre-norm large, that of post-norm below 1",
            "the authors' notebook",
            "post-norm 0.810, pre-norm 10.242, ReZero 1.059 (10 networks)",
            _squares,
        ),
    ),
)
