"""The signal in what a module takes or returns, and its size."""

from typing import Any

import torch
from torch import Tensor

from rezero.surgery.outputs import tensors

__all__ = ["first_real", "root_mean_square"]


def first_real(values: Any) -> Tensor | None:
    """Return the first tensor of real numbers, None if there is none.

    Args:
        values: A tensor, or containers of tensors.

    Returns:
        The tensor.
    """
    return next((each for each in tensors(values) if each.is_floating_point()), None)


def root_mean_square(h: Tensor) -> float:
    """Return the root mean square of the entries, computed in float64 so that no square is lost."""
    return float(h.detach().to("cpu", torch.float64).square().mean().sqrt())
