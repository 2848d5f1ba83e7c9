"""The feed-forward branch of layers with a norm of their own, and what it may have between its two maps."""

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "SquaredReLU", "build_activation", "build_feed_forward"]

Activation = Literal["gelu", "relu", "silu", "squared_relu"]


class SquaredReLU(nn.Module):
    r"""Activation ``relu(x) ** 2``.

    References:
        So et al. (2021), arXiv:2109.08668 (Primer).

    Example:
        >>> SquaredReLU()(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(x) ** 2``.

        Args:
            x: Any shape.

        Returns:
            The shape of ``x``.
        """
        return F.relu(x).square()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "squared_relu": SquaredReLU,
}
"""Every activation by name."""


def build_activation(name: str | None) -> nn.Module:
    """Build an activation.

    Args:
        name: A key of ``ACTIVATIONS``; None for the identity.

    Returns:
        The module.

    Raises:
        ValueError: If there is no activation of that name.
    """
    if name is None:
        return nn.Identity()
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation is called {name!r}: choose from {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def build_feed_forward(
    dim: int,
    hidden: int,
    *,
    activation: str,
    dropout: float = 0.0,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Build the branch ``linear2(dropout(activation(linear1(norm(x)))))``, ``(*, D) -> (*, D)``.

    Args:
        dim: Width ``D`` of input and output.
        hidden: Width between the two maps.
        activation: A key of ``ACTIVATIONS``.
        dropout: Probability of dropping an entry of the inner activation in training.
        bias: Whether the two maps have biases.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Returns:
        The branch, whose last layer is a linear map, as `rezero.ReZero` likes it.
    """
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.LayerNorm(dim, device=device, dtype=dtype),
            linear1=nn.Linear(dim, hidden, bias=bias, device=device, dtype=dtype),
            activation=build_activation(activation),
            dropout=nn.Dropout(dropout),
            linear2=nn.Linear(hidden, dim, bias=bias, device=device, dtype=dtype),
        )
    )
