"""The fully connected network of the paper and its rivals."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.layers.network import check_residual, check_sizes, reset_children
from rezero.layers.residuals import residual_block

__all__ = ["MLP", "MLPBlock"]


class MLPBlock(nn.Module):
    r"""The branch of the fully connected network: ``relu(W x + b)``.

    Args:
        dim: Width ``D`` of input and output.
        gain: Gain of the Xavier-normal start of ``W``; ``sqrt(2)`` keeps the variance through a ReLU.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If ``dim`` is below 1.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1.

    Example:
        >>> MLPBlock(4)(torch.randn(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        dim: int,
        *,
        gain: float = math.sqrt(2),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1: got {dim}")
        self.gain = gain
        self.linear = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw ``W`` Xavier-normal with the gain, ``b`` as ``nn.Linear`` does."""
        self.linear.reset_parameters()
        nn.init.xavier_normal_(self.linear.weight, gain=self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(W x + b)``.

        Args:
            x: ``(*, D)``.

        Returns:
            ``(*, D)``.
        """
        return F.relu(self.linear(x))


class MLP(nn.Module):
    r"""Fully connected network: a ReLU input layer, ``depth`` equal blocks and a linear output.

    For ``plain``, ``plain-norm`` (one norm shared by all layers; "LayerNorm" in the authors' code), ``residual`` and
    ``rezero`` the network and its initialisation are those of the authors' code: input Kaiming-normal, hidden
    Xavier-normal with gain ``sqrt(2)``, 0.5 for ``residual``, the rest torch's default. The others follow their papers:
    ``pre-norm`` and ``layerscale`` have a norm before the output, ``deepnorm`` starts hidden weights with gain
    ``(8 N) ** -0.25`` where ``2 N = depth``. ``skipinit`` replaces batch norm; there is none here, so it is the same
    network as ``rezero``. ``fixup`` is not defined: its rule rescales all but the last layer of a branch by
    ``L ** (-1 / (2 m - 2))``, and these branches have ``m = 1`` layer.

    Args:
        in_features: Width of the input.
        width: Width ``D`` of the blocks.
        depth: Number of blocks.
        out_features: Width of the output.
        residual: Name of the residual formula, a key of ``rezero.layers.residuals.RESIDUALS``.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a size is below 1, the formula is unknown, or it is not defined for this family.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1 and the authors' notebook.

    Example:
        >>> x = torch.randn(2, 3072)
        >>> MLP(3072, 16, 200, 10, residual="rezero")(x).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        out_features: int,
        *,
        residual: str = "rezero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features=in_features, width=width, depth=depth, out_features=out_features)
        if residual == "fixup":
            raise ValueError(
                "fixup is not defined for MLP: its rule needs branches of two or more layers, these have one"
            )
        check_residual(residual)
        self.residual = residual
        gain = {"residual": 0.5, "deepnorm": (4 * depth) ** -0.25}.get(residual, math.sqrt(2))
        self.input = nn.Linear(in_features, width, device=device, dtype=dtype)
        branches = [MLPBlock(width, gain=gain, device=device, dtype=dtype) for _ in range(depth)]
        formula = "plain" if residual == "plain-norm" else residual
        blocks = (residual_block(formula, f, width, depth=depth, device=device, dtype=dtype) for f in branches)
        self.blocks = nn.Sequential(*blocks)
        normed = residual in ("plain-norm", "pre-norm", "layerscale")
        self.norm = nn.LayerNorm(width, device=device, dtype=dtype) if normed else nn.Identity()
        self.output = nn.Linear(width, out_features, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights anew and set gates and scales back to their start."""
        reset_children(self)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output.

        Args:
            x: ``(*, in_features)``.

        Returns:
            ``(*, out_features)``.
        """
        h = F.relu(self.input(x))
        for block in self.blocks:
            h = self.norm(block(h)) if self.residual == "plain-norm" else block(h)
        y: Tensor = self.output(h if self.residual == "plain-norm" else self.norm(h))
        return y
