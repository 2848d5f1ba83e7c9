"""The Jacobians of Transformer encoders at the start: singular values of post-norm, pre-norm and ReZero.

Bachlechner et al. (2020), arXiv:2003.04887, and the authors' notebook: width 16, 4 tokens, 4 heads, a feed-forward
width of 64, Xavier weights, alpha set to 0.1, 10 networks an arm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rezero.diagnose.jacobian import jacobian_spectrum
from rezero.gate import gates
from rezero.layers import TransformerEncoderLayer

__all__ = ["ARMS", "PUBLISHED", "Measured", "measure"]

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
