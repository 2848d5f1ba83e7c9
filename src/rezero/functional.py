"""The mathematics of a gated residual, without modules."""

from torch import Tensor

from rezero import kernels

__all__ = ["gated_residual"]


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    r"""Add a scaled branch to its skip: ``y = x + alpha * f``.

    The product and the sum are formed in the widest of the three dtypes and rounded once, to the dtype of
    ``x + f``. With ``alpha = 0`` and a finite ``f`` the result equals ``x`` bitwise. A non-finite ``f`` shows
    even behind a closed gate, because ``0 * inf`` is ``nan``.

    Args:
        x: The skip, ``(*, D)``.
        f: The output of the residual branch, the shape of ``x``.
        alpha: The gate, ``(1,)`` for one scale or ``(D,)`` for one a feature of the last axis (dimensionless).

    Returns:
        ``x + alpha * f``, ``(*, D)``, in the dtype of ``x + f``.

    Raises:
        ValueError: If ``f`` has not the shape of ``x``, or ``alpha`` is neither ``(1,)`` nor ``(D,)``.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, eq. 1.

    Example:
        >>> import torch
        >>> x, f = torch.ones(2, 3), torch.full((2, 3), 4.0)
        >>> gated_residual(x, f, torch.tensor([0.5]))
        tensor([[3., 3., 3.],
                [3., 3., 3.]])
    """
    if f.shape != x.shape:
        raise ValueError(
            f"a residual branch must keep the shape of its input: expected {tuple(x.shape)}, got {tuple(f.shape)}; "
            "project the branch's output, or add a projection to the skip yourself"
        )
    if alpha.shape != (1,) and alpha.shape != x.shape[-1:]:
        raise ValueError(
            f"alpha must have shape (1,), or {tuple(x.shape[-1:])}, one entry a feature of the last axis: got "
            f"{tuple(alpha.shape)}; a gate has one scale, Gate(), or one a feature of the last axis, which is not the "
            "channel of an (N, C, H, W) image"
        )
    return kernels.gated_residual(x, f, alpha)
