"""How singular values are distributed, where they are too many to be counted: stochastic Lanczos quadrature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rezero.diagnose.linear_map import LinearMap, square

__all__ = ["Density", "estimate_density", "smooth"]


@dataclass(frozen=True)
class Density:
    """A smoothed density of singular values, with its standard error.

    Attributes:
        at: Where it is given: singular values, ``(G,)``.
        density: The estimate, ``(G,)``; it integrates to 1.
        error: Its standard error over the random vectors, ``(G,)``.
        width: Standard deviation of the Gaussian that each singular value is smeared into.
        vectors: Number of random vectors ``V``; ``(density - truth) / error`` has about Student's t distribution with
            ``V - 1`` degrees of freedom.
    """

    at: Tensor
    density: Tensor
    error: Tensor
    width: float
    vectors: int

    def chart(self) -> Any:
        """Draw the density with the bars of 95%.

        Returns:
            An Altair chart, which notebooks show and `rezero.charts.save` writes.
        """
        from scipy import stats

        from rezero.charts.spectra import density_line

        bar = float(stats.t.ppf(0.975, self.vectors - 1)) * self.error
        description = "The estimated density of the singular values, with bars of 95%."
        return density_line(self.at.tolist(), self.density.tolist(), bar.tolist(), description=description)


def estimate_density(
    linear_map: LinearMap, *, vectors: int, steps: int, points: int, generator: torch.Generator
) -> Density:
    r"""Estimate the density of the singular values of a map.

    Each random vector gives a Gauss quadrature of the spectrum of ``J^T J`` (or of ``J J^T``, if that is smaller) by
    ``steps`` steps of Lanczos' iteration; their mean is the estimate.

    Args:
        linear_map: The map.
        vectors: Number of random vectors.
        steps: Steps of the iteration, two products with the map each.
        points: Places at which the density is given.
        generator: Draws the vectors.

    Returns:
        The density.

    References:
        Ubaru, Chen and Saad (2017), Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, SIAM J. Matrix Anal.
    """
    side = min(linear_map.shape)
    steps = min(steps, side)

    quadratures = []
    for _ in range(vectors):
        start = torch.randn(side, generator=generator, dtype=torch.float64)
        quadratures.append(_lanczos(partial(square, linear_map), start, steps))
    highest = max(float(nodes.max()) for nodes, _ in quadratures)
    width = max(highest, 1e-12) / points * 2
    at = torch.linspace(-3 * width, highest + 3 * width, points, dtype=torch.float64)
    each = torch.stack([smooth(nodes, at, width, weights) for nodes, weights in quadratures])
    return Density(at, each.mean(0), each.std(0) / vectors**0.5, width, vectors)


def smooth(values: Tensor, at: Tensor, width: float, weights: Tensor | None = None) -> Tensor:
    """Smear singular values into Gaussians.

    Args:
        values: The values, ``(r,)``.
        at: Where to evaluate, ``(G,)``.
        width: Standard deviation of each Gaussian.
        weights: Weight of each value, ``(r,)``, of sum 1; by default equal.

    Returns:
        The density, ``(G,)``.
    """
    weights = torch.full_like(values, 1 / len(values)) if weights is None else weights
    bells = torch.exp(-0.5 * ((at[:, None] - values) / width) ** 2) / (width * (2 * torch.pi) ** 0.5)
    return torch.mv(bells, weights)


def _lanczos(square: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the nodes, as singular values, and the weights of one quadrature."""
    basis = start.new_zeros(steps, len(start))
    basis[0] = start / torch.linalg.vector_norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        known = basis[: step + 1]
        w = square(known[-1]).to("cpu", torch.float64)
        diagonal.append(float(w @ known[-1]))
        for _ in range(2):  # once is not enough in floating point
            w = w - known.T @ (known @ w)
        size = float(torch.linalg.vector_norm(w))
        if step + 1 == steps or size <= 1e-12 * max(map(abs, diagonal)):
            break
        beside.append(size)
        basis[step + 1] = w / size
    off = start.new_tensor(beside)
    matrix = torch.diag(start.new_tensor(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.clamp(min=0).sqrt(), vectors[0] ** 2
