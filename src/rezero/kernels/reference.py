"""Plain-torch twins of the kernels: the definition that every faster one is held against."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["branch", "gate", "gated_linear_residual", "gated_mlp_residual", "gated_residual"]


def gate(f: Tensor, alpha: Tensor) -> Tensor:
    """Return ``alpha * f`` in the dtype of ``f``, the product being formed in the wider of the two."""
    return (_like_rank(alpha, f) * f).to(f.dtype)


def branch(f: Tensor, alpha: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Return ``alpha * mask * (f + bias)``, the mask being what a dropout multiplies by."""
    f = f if bias is None else f + bias
    return gate(f if mask is None else f * mask, alpha)


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return ``x + alpha * dropout(f + bias)``, formed in the widest dtype and rounded once to that of ``x + f``."""
    f = f if bias is None else f + bias
    f = F.dropout(f, dropout) if dropout else f
    if x.dtype == f.dtype == alpha.dtype:  # as mostly; to find the widest takes as long as a small product
        return x + _like_rank(alpha, f) * f
    dtype = torch.promote_types(x.dtype, f.dtype)
    widest = torch.promote_types(dtype, alpha.dtype)
    return (x + _like_rank(alpha.to(widest), f) * f).to(dtype)


def gated_linear_residual(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float = 0.0
) -> Tensor:
    """Return ``x + alpha * dropout(h W^T + b)``, the branch being formed first."""
    return gated_residual(x, F.linear(h, weight, bias), alpha, None, dropout)


def gated_mlp_residual(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, alpha: Tensor
) -> Tensor:
    """Return ``x + alpha * (relu(x W1^T + b1) W2^T + b2)``."""
    return gated_linear_residual(x, F.linear(x, weight1, bias1).relu(), weight2, bias2, alpha)


def _like_rank(alpha: Tensor, f: Tensor) -> Tensor:
    # A (1,) gate would turn a 0-d branch, as torch.vmap makes them, into a 1-d one.
    return alpha if f.ndim else alpha.squeeze(0)
