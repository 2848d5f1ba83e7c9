"""The singular values of a network's Jacobian: does a signal, and its gradient, get through?"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.diagnose.density import Density, estimate_density
from rezero.diagnose.example import check_devices, read_input
from rezero.diagnose.linear_map import LinearMap, frozen, linear_maps, square
from rezero.diagnose.untouched import check_model, untouched, written
from rezero.diagnose.whole import whole
from rezero.errors import TooManyError, UsageError
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["Spectrum", "jacobian_spectrum"]

_WHOLE = 2048  # singular values that are computed all, from the matrix


@dataclass(frozen=True)
class Spectrum:
    """Singular values of the Jacobian at each example of a batch of ``B``.

    Attributes:
        singular_values: ``(B, r)`` in float64, falling: all of them, or the ``k`` largest and then the ``k`` smallest.
        residuals: ``(B, r)``: how far ``J^T J v`` is from ``s^2 v``, in units of the mean square; zeros where all were
            computed.
        mean_squared: ``(B,)``: the sum of the squares of all singular values, divided by their number.
        mean_squared_error: ``(B,)``: its standard error; 0 where all were computed.
        shape: ``(m, n)``: entries of the output and of the input of one example.
        density: The estimated density of each example, if it was asked for.
        notes: What was done otherwise than the model does it.
    """

    singular_values: Tensor
    residuals: Tensor
    mean_squared: Tensor
    mean_squared_error: Tensor
    shape: tuple[int, int]
    density: tuple[Density, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of singular values of one example, whether they were computed or not."""
        return min(self.shape)

    @property
    def condition(self) -> Tensor:
        """The largest singular value divided by the smallest computed, ``(B,)``; infinite for a singular Jacobian."""
        largest, smallest = self.singular_values[:, 0], self.singular_values[:, -1]
        return (largest / smallest).where(smallest > 0, torch.inf)

    @property
    def isometry(self) -> Tensor:
        """Root mean square distance of the computed singular values from 1, ``(B,)``: 0 for a perfect isometry."""
        return (self.singular_values - 1).square().mean(1).sqrt()

    def to_json(self) -> dict[str, Any]:
        """Return all of it in plain types, but for the density."""
        return {
            "shape": list(self.shape),
            "singular_values": self.singular_values.tolist(),
            "residuals": self.residuals.tolist(),
            "mean_squared": self.mean_squared.tolist(),
            "mean_squared_error": self.mean_squared_error.tolist(),
            "notes": list(self.notes),
        }

    def chart(self) -> Any:
        """Draw the singular values of all examples together on a log axis: a histogram, or a stroke each if some lack.

        Returns:
            An Altair chart, which notebooks show and `rezero.charts.save` writes.

        Raises:
            UsageError: If none were computed.

        References:
            Bachlechner et al. (2020), arXiv:2003.04887, fig. 5.
        """
        from rezero.charts.spectra import histogram

        values = self.singular_values.flatten().tolist()
        if not values:
            raise UsageError("no singular values were computed: draw the density, with density[0].chart()")
        examples, whole = len(self.singular_values), self.singular_values.shape[1] == self.count
        title = f"{'all' if whole else len(values)} singular values, {examples} Jacobian{'s' * (examples > 1)}"
        title += f" of {self.shape[0]} x {self.shape[1]}"
        return histogram(
            {title: {"": values}}, single=not whole, description="How the singular values are distributed."
        )

    def __str__(self) -> str:
        s, (m, n) = self.singular_values, self.shape
        which = "all" if s.shape[1] == self.count else f"{s.shape[1]} of"
        square, error = float(self.mean_squared.mean()), float(self.mean_squared_error.square().mean().sqrt())
        lines = [
            f"{m} x {n} Jacobian, {which} {self.count} singular values, {len(s)} example{'s' * (len(s) > 1)}",
            f"mean squared {square:.4g}" + (f" (standard error {error:.2g})" if error else ""),
        ]
        if s.numel():
            span = f"from {float(s.min()):.4g} to {float(s.max()):.4g}"
            whole = s.shape[1] == self.count
            lines.append(f"{span}, {float(self.isometry.mean()):.2g} from isometry" if whole else f"those are {span}")
        return "\n".join([*lines, *self.notes])


def jacobian_spectrum(
    model: nn.Module,
    x: Any,
    *,
    of: Literal["input-output"] = "input-output",
    between: tuple[str, str] | None = None,
    k: int | None = None,
    which: Literal["both", "largest", "smallest"] = "both",
    density: int = 0,
    probes: int = 32,
    seed: int = 0,
) -> Spectrum:
    r"""Compute singular values of the Jacobian of a model, at each example of a batch, in evaluation mode.

    A network through which signals and gradients pass unchanged has singular values of 1 only: dynamical isometry. A
    ReZero network at ``alpha = 0`` is the identity, and all of them are exactly 1. With He-initialised ReLU branches
    and a small ``alpha`` the mean square of all but the largest is about ``(1 + alpha^2)^L``. Along the largest the
    means of the ReLUs add up; it adds about ``exp(1.13 alpha L) / (2 width)``, which only in wide networks is little:
    at ``alpha = 0.1``, ``L = 60`` the mean square is 1.7 without it and 21 with it at width 32, 1.8 and 5.9 at 128.

    Without ``k``, or where it asks for all, they are computed from the matrix, by one backward pass an output. With
    ``k`` the largest and smallest are computed by ARPACK from products with the Jacobian, which is never made; the mean
    square is then Hutchinson's estimate. Each example is passed through the model alone, so that what a model does with
    a whole batch, such as subtracting its mean, is done to a batch of one. The model, its mode, its gradients and the
    random generators are left as they were.

    Args:
        model: Any module.
        x: Its input, ``(B, *)``, with the batch first; several as a tuple, or by name as a dictionary. The first of
            real numbers is varied.
        of: The derivative of the output by the input.
        between: Instead, two layers by name: the output of the second by the input of the first, at its first call.
        k: Number of singular values at each end, none twice; None for all.
        which: Which end.
        density: Number of random vectors from which the density of all singular values is estimated, 2 or more; 0 for
            none.
        probes: Number of random vectors of the estimate of the mean square, 2 or more.
        seed: Of the random vectors.

    Returns:
        The singular values.

    Raises:
        TypeError: If ``model`` is no module, or a number is not whole.
        ValueError: If ``of`` or ``which`` is unknown, or ``between`` is no pair.
        UsageError: If the model can't be run on the input; if the input can't be differentiated, has half precision, is
            on another device than the model or not finite, as the Jacobian may be; if a number is out of range, or
            there are too many singular values for all to be computed.

    References:
        Pennington, Schoenholz and Ganguli (2017), arXiv:1711.04735; Bachlechner et al. (2020), arXiv:2003.04887.

    Example:
        >>> import rezero
        >>> model = nn.Sequential(*(rezero.ReZero(nn.Linear(4, 4)) for _ in range(100)))
        >>> print(jacobian_spectrum(model, torch.randn(2, 4)))
        4 x 4 Jacobian, all 4 singular values, 2 examples
        mean squared 1
        from 1 to 1, 0 from isometry
    """
    if of != "input-output":
        raise ValueError(f"of must be 'input-output', or give two layers as between=(first, last): got {of!r}")
    if which not in {"both", "largest", "smallest"}:
        raise ValueError(f"which must be 'both', 'largest' or 'smallest': got {which!r}")
    check_model(model)
    if between is not None and (isinstance(between, str) or len(between) != 2):
        raise ValueError(f"between must be the names of two layers, (first, last): got {between!r}")
    k = None if k is None else whole("k", k)
    density, probes, seed = whole("density", density), whole("probes", probes), whole("seed", seed)
    if density < 0 or density == 1 or probes < 2:
        raise UsageError(
            "expected density and probes of 2 random vectors or more, below which there is no standard error, or a "
            f"density of 0 for none: got density={density}, probes={probes}"
        )
    example = read_input(x)
    check_devices(model, example, "singular values")
    generator = torch.Generator().manual_seed(seed)
    with untouched(model, written(model)), undisturbed(model), switched(model, training=False), frozen(model):
        args, kwargs = copied(example)
        maps = linear_maps(model, args, kwargs, between)
        shape = maps[0].shape
        _check_size(shape, k)
        if k is None or _all_asked(shape, k, which):
            parts = [_all(each) for each in maps]
        else:
            parts = [_some(each, k, which, probes, generator) for each in maps]
        densities = [
            estimate_density(each, vectors=density, steps=80, points=200, generator=generator)
            for each in maps
            if density
        ]
    values, residuals, squares, errors = (torch.stack(column) for column in zip(*parts, strict=True))
    return Spectrum(values, residuals, squares, errors, shape, tuple(densities), _notes(maps))


def _all_asked(shape: tuple[int, int], k: int, which: str) -> bool:
    return (2 * k if which == "both" else k) >= min(shape) and min(shape) <= _WHOLE


_Part = tuple[Tensor, Tensor, Tensor, Tensor]


def _all(linear_map: LinearMap) -> _Part:
    values = torch.linalg.svdvals(linear_map.matrix().to("cpu", torch.float64))
    return values, torch.zeros_like(values), values.square().mean(), torch.zeros((), dtype=torch.float64)


def _some(linear_map: LinearMap, k: int, which: str, probes: int, generator: torch.Generator) -> _Part:
    square, error = _hutchinson(linear_map, probes, generator)
    ends = {"largest": k, "smallest": k if which == "smallest" else min(k, min(linear_map.shape) - k)}  # none twice
    found = [
        _extreme(linear_map, number, end, float(square))
        for end, number in ends.items()
        if number and which in {end, "both"}
    ]
    values = torch.cat([each for each, _ in found]) if found else torch.empty(0, dtype=torch.float64)
    residuals = torch.cat([each for _, each in found]) if found else torch.empty(0, dtype=torch.float64)
    return values, residuals, square, error


def _extreme(linear_map: LinearMap, k: int, end: str, unit: float) -> tuple[Tensor, Tensor]:
    """Return singular values at one end, falling, and their residuals, from the smaller of ``J^T J`` and ``J J^T``."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    side = min(linear_map.shape)

    def product(v: Any) -> Any:
        return square(linear_map, torch.from_numpy(v).reshape(-1)).to("cpu", torch.float64).numpy()

    operator = LinearOperator((side, side), matvec=product, dtype="float64")
    # Random, for many networks have a null space of constants; only zero maps all of it to zero.
    start = torch.randn(side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    if not product(start).any():
        return torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    precise = 0.0 if linear_map.dtype == torch.float64 else 1e-6
    try:
        values, vectors = eigsh(
            operator,
            k=k,
            which="LA" if end == "largest" else "SA",
            v0=start,
            ncv=min(side, max(2 * k + 20, 40)),
            tol=precise,
        )
    except ArpackNoConvergence as error:
        raise UsageError(
            f"only {len(error.eigenvalues)} of the {k} {end} singular values converged: they lie too close together; "
            "ask for fewer, or for the density"
        ) from error
    falling = values.argsort()[::-1]
    ends = [product(vectors[:, i]) - values[i] * vectors[:, i] for i in falling]
    residuals = torch.tensor([float((each @ each) ** 0.5) / (unit or 1) for each in ends], dtype=torch.float64)
    return torch.from_numpy(values[falling].copy()).clamp(min=0).sqrt(), residuals


def _hutchinson(linear_map: LinearMap, probes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Estimate the mean square of all singular values, and its standard error."""
    m, n = linear_map.shape
    squares = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (m,), generator=generator).to(torch.float64) * 2 - 1
        squares.append(linear_map.pull(signs).to("cpu", torch.float64).square().sum() / min(m, n))
    each = torch.stack(squares)
    return each.mean(), each.std() / probes**0.5


# Bad input, and what is said of good one


def _check_size(shape: tuple[int, int], k: int | None) -> None:
    count = min(shape)
    most = count if count <= _WHOLE else count - 1  # ARPACK's, and all of so many are refused
    if k is None and count > _WHOLE:
        raise TooManyError(
            f"the Jacobian is {shape[0]} x {shape[1]}, too large for all singular values (at most {_WHOLE:,}): ask for "
            "the k largest and smallest, such as k=10, or for their density, such as k=0, density=10",
            shape,
            most,
        )
    if k is not None and not 0 <= k <= most:
        message = f"expected k from 0 to {most}, for there are {count} singular values, got {k}"
        raise TooManyError(message, shape, most)


def _notes(maps: list[LinearMap]) -> tuple[str, ...]:
    if any(each.fused for each in maps):
        return ("fused attention has no second derivative, it was computed in its plain form",)
    return ()
