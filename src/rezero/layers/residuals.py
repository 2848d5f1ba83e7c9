"""The residual formulas that ReZero is compared with, one name for each in every family of networks."""

import torch
from torch import Tensor, nn

from rezero.gate import Gate, gate_dtype
from rezero.residual import ReZero

__all__ = ["RESIDUALS", "LayerScale", "Residual", "residual_block"]

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
    r"""A residual block without a gate: ``y = post_norm(skip_scale * x + scale(branch(pre_norm(x))))``.

    Args:
        branch: Shape-preserving module, ``(*, D) -> (*, D)``.
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
        pre_norm: nn.Module | None = None,
        scale: nn.Module | None = None,
        post_norm: nn.Module | None = None,
        skip_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.branch = branch
        self.scale = scale
        self.post_norm = post_norm
        self.skip_scale = skip_scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output.

        Args:
            x: ``(*, D)``.

        Returns:
            ``(*, D)``.
        """
        f: Tensor = self.branch(x if self.pre_norm is None else self.pre_norm(x))
        f = f if self.scale is None else self.scale(f)
        y: Tensor = (x if self.skip_scale == 1.0 else self.skip_scale * x) + f
        return y if self.post_norm is None else self.post_norm(y)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return "" if self.skip_scale == 1.0 else f"skip_scale={self.skip_scale:g}"


class LayerScale(nn.Module):
    r"""One learned scale a channel, small at the start: ``scale * f``.

    Args:
        dim: Number of features of the last axis.
        depth: Number of residual blocks of the network, which sets the start: 0.1 up to 18, 1e-5 up to 24, else 1e-6.
        device: Device of the parameter.
        dtype: Dtype of the parameter.

    Raises:
        ValueError: If ``dim`` is below 1.

    References:
        Touvron et al. (2021), arXiv:2103.17239, eq. 4 and sec. 2.

    Example:
        >>> LayerScale(2, depth=12)(torch.ones(2))
        tensor([0.1000, 0.1000], grad_fn=<MulBackward0>)
    """

    def __init__(
        self, dim: int, *, depth: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1: got {dim}")
        self.init_value = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every scale back to its start."""
        nn.init.constant_(self.scale, self.init_value)

    def forward(self, f: Tensor) -> Tensor:
        """Scale a branch.

        Args:
            f: ``(*, D)``.

        Returns:
            ``(*, D)``.
        """
        return self.scale * f

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{len(self.scale)}, init_value={self.init_value:g}"


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
