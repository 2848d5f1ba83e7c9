"""The residual formulas that ReZero is compared with, one name for each in every family of networks."""

from typing import Any

import torch
from torch import Tensor, nn

from rezero.gate import Gate, gate_dtype
from rezero.residual import ReZero

__all__ = ["RESIDUALS", "LayerScale", "Residual", "ScalarBias", "ScalarScale", "residual_block"]

RESIDUALS = {
    "plain": "f(x)",
    "plain-norm": "norm(f(x))",
    "residual": "x + f(x)",
    "post-norm": "norm(x + f(x))",
    "pre-norm": "x + f(norm(x))",
    "rezero": "x + alpha * f(x), alpha = 0 at the start",
    "skipinit": "x + alpha * f(x) instead of batch norm, alpha = 0 at the start",
    "layerscale": "x + scale * f(norm(x)), one small scale a channel",
    "fixup": "x + f(x), f rescaled by depth and zero at the start",
    "deepnorm": "norm(a * x + f(x)), a from the depth",
}
"""Every residual formula by name. ``f`` is the branch; a family may define fewer and says why."""


class Residual(nn.Module):
    r"""A residual block without a gate: ``y = post_norm(skip_scale * skip(x) + scale(branch(pre_norm(x))))``.

    Args:
        branch: Module of the branch, ``(*, D) -> (*, D)``, or to any shape that ``skip`` gives too.
        skip: Module on the skip, where the branch changes the shape; None is the identity.
        pre_norm: Module before the branch; None leaves it out.
        scale: Module after the branch, such as `LayerScale`; None leaves it out.
        post_norm: Module after the addition; None leaves it out.
        skip_scale: Constant factor of the skip (dimensionless).

    References:
        He et al. (2016), arXiv:1512.03385, eq. 1; Xiong et al. (2020), arXiv:2002.04745, table 1 (pre- and post-norm).

    Example:
        >>> block = Residual(nn.Identity(), skip_scale=2.0)
        >>> block(torch.ones(3))
        tensor([3., 3., 3.])
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        skip: nn.Module | None = None,
        pre_norm: nn.Module | None = None,
        scale: nn.Module | None = None,
        post_norm: nn.Module | None = None,
        skip_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.skip = skip
        self.pre_norm = pre_norm
        self.branch = branch
        self.scale = scale
        self.post_norm = post_norm
        self.skip_scale = skip_scale

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the block's output.

        Args:
            x: ``(*, D)``.
            *args: Passed on to the branch.
            **kwargs: Passed on to the branch.

        Returns:
            ``(*, D)``, or the shape that branch and skip change it to.
        """
        f: Tensor = self.branch(x if self.pre_norm is None else self.pre_norm(x), *args, **kwargs)
        f = f if self.scale is None else self.scale(f)
        skip: Tensor = x if self.skip is None else self.skip(x)
        y: Tensor = (skip if self.skip_scale == 1.0 else self.skip_scale * skip) + f
        return y if self.post_norm is None else self.post_norm(y)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return "" if self.skip_scale == 1.0 else f"skip_scale={self.skip_scale:g}"


class LayerScale(nn.Module):
    r"""One learned scale a channel, small at the start: ``scale * f``.

    Args:
        dim: Number of features.
        depth: Number of residual blocks of the network, which sets the start: 0.1 up to 18, 1e-5 up to 24, else 1e-6.
        axis: Where the features lie, counted from the end: -1 in ``(*, D)``, -3 in an image ``(B, D, H, W)``.
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Raises:
        ValueError: If ``dim`` is below 1 or ``axis`` is not negative.

    References:
        Touvron et al. (2021), arXiv:2103.17239, eq. 4 and sec. 2.

    Example:
        >>> LayerScale(2, depth=12)(torch.ones(2))
        tensor([0.1000, 0.1000], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        axis: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1: got {dim}")
        if axis >= 0:
            raise ValueError(f"axis must count from the end, as -1 or -3: got {axis}")
        self.axis = axis
        self.init_value = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every scale back to its start."""
        nn.init.constant_(self.scale, self.init_value)

    def forward(self, f: Tensor) -> Tensor:
        """Scale a branch.

        Args:
            f: ``(*, D)``, or with ``D`` at ``axis``.

        Returns:
            The shape of ``f``.
        """
        return self.scale.view(-1, *[1] * (-self.axis - 1)) * f

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        axis = "" if self.axis == -1 else f", axis={self.axis}"
        return f"{len(self.scale)}, init_value={self.init_value:g}{axis}"


class ScalarBias(nn.Module):
    r"""One learned number for all features, added: ``x + bias``, zero at the start.

    Args:
        device: Device of the parameter, ``(1,)``.
        dtype: Dtype of the parameter.

    References:
        Zhang et al. (2019), arXiv:1901.09321, sec. 3, rule 3.

    Example:
        >>> torch.equal(ScalarBias()(torch.ones(2)), torch.ones(2))
        True
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the bias back to 0."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + bias``.

        Args:
            x: Any shape.

        Returns:
            The shape of ``x``.
        """
        return x + self.bias


class ScalarScale(nn.Module):
    r"""One learned number for all features, multiplied: ``scale * x``, one at the start and so no gate.

    Args:
        device: Device of the parameter, ``(1,)``.
        dtype: Dtype of the parameter.

    References:
        Zhang et al. (2019), arXiv:1901.09321, sec. 3, rule 3.

    Example:
        >>> torch.equal(ScalarScale()(torch.ones(2)), torch.ones(2))
        True
    """

    def __init__(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale back to 1."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``scale * x``.

        Args:
            x: Any shape.

        Returns:
            The shape of ``x``.
        """
        return self.scale * x


def residual_block(
    residual: str,
    branch: nn.Module,
    dim: int,
    *,
    depth: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    r"""Join a branch to its skip by the formula of that name.

    ``deepnorm`` scales the skip by ``(2 N) ** 0.25`` where ``2 N = depth``: its N counts Transformer layers, of two
    branches each. What a formula asks of the branch's own initialisation is left to the family that builds it.

    Args:
        residual: A name in ``RESIDUALS``, other than ``plain-norm`` and ``fixup``, which are more than an addition.
        branch: Shape-preserving module, ``(*, D) -> (*, D)``.
        dim: Width ``D``, for the norms.
        depth: Number of residual branches in the network.
        device: Device of new parameters.
        dtype: Dtype of new parameters.

    Returns:
        The block, ``(*, D) -> (*, D)``.

    Raises:
        ValueError: If no block has that name.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, table 1; De and Smith (2020), arXiv:2002.10444 (skipinit);
        Touvron et al. (2021), arXiv:2103.17239 (layerscale); Wang et al. (2022), arXiv:2203.00555, fig. 2 (deepnorm).

    Example:
        >>> block, x = residual_block("rezero", nn.Linear(4, 4), 4, depth=1), torch.randn(2, 4)
        >>> torch.equal(block(x), x)
        True
    """

    def norm() -> nn.LayerNorm:
        return nn.LayerNorm(dim, device=device, dtype=dtype)

    match residual:
        case "plain":
            return branch
        case "residual":
            return Residual(branch)
        case "post-norm":
            return Residual(branch, post_norm=norm())
        case "pre-norm":
            return Residual(branch, pre_norm=norm())
        case "rezero" | "skipinit":
            return ReZero(branch, gate=Gate(device=device, dtype=gate_dtype(dtype)))
        case "layerscale":
            scale = LayerScale(dim, depth=depth, device=device, dtype=dtype)
            return Residual(branch, pre_norm=norm(), scale=scale)
        case "deepnorm":
            return Residual(branch, post_norm=norm(), skip_scale=depth**0.25)
    offered = ", ".join(name for name in RESIDUALS if name not in ("plain-norm", "fixup"))
    raise ValueError(f"no residual block is called {residual!r}: choose from {offered}")
