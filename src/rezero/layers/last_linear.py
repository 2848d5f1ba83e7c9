"""The last linear map of a residual branch, with its gate and the addition."""

from torch import Tensor, nn

from rezero.branch import add_branch, is_plain, probability
from rezero.functional import gated_linear_residual

__all__ = ["add_linear"]


def add_linear(x: Tensor, h: Tensor, linear: nn.Linear, dropout: nn.Module, alpha: Tensor) -> Tensor:
    """Add the end of a branch to its skip: ``x + alpha * dropout(linear(h))``.

    It is one operation (`rezero.functional.gated_linear_residual`) where nobody looks at, or has exchanged, what either
    module returns.

    Args:
        x: The skip, ``(*, D)``.
        h: What goes into the linear map, ``(*, K)``.
        linear: The map, ``K`` to ``D``.
        dropout: What its output passes through.
        alpha: The gate, ``(1,)`` or ``(D,)``.

    Returns:
        ``(*, D)``.
    """
    p = probability(dropout)
    if p is not None and type(linear) is nn.Linear and is_plain(linear):
        return gated_linear_residual(x, h, linear.weight, linear.bias, alpha, dropout=p)
    return add_branch(x, linear(h), dropout, alpha)
