"""The mathematics of a gated residual, without modules."""

from torch import Tensor

from rezero import kernels
from rezero.kernels import linear

__all__ = ["gated_linear_residual", "gated_residual"]


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
    _check_gate(x, alpha)
    return kernels.gated_residual(x, f, alpha)


def gated_linear_residual(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
    r"""Add a scaled branch that ends in a linear map to its skip: ``y = x + alpha * (h W^T + b)``.

    The gate goes into the product, so that large ones cost what they cost without a gate, and nothing but ``h`` and
    ``W`` is kept for the gradients. On the CPU that is so from 2^24 multiplications, in one dtype, with one scale and
    without autocast; everywhere under ``torch.compile``, and on a GPU where ``h`` has as many numbers as ``W``. Else
    the branch is formed, kept, and then scaled. With ``alpha = 0`` and finite numbers the result equals ``x`` bitwise.

    Args:
        x: The skip, ``(*, D)``.
        h: What goes into the linear map, ``(*, K)``.
        weight: ``W``, ``(D, K)``.
        bias: ``b``, ``(D,)``; None for none.
        alpha: The gate, ``(1,)`` for one scale or ``(D,)`` for one a feature (dimensionless).

    Returns:
        ``(*, D)``, in the dtype of ``x + h W^T``.

    Raises:
        ValueError: If the shapes do not fit; nothing is broadcast.

    References:
        Bachlechner et al. (2020), arXiv:2003.04887, eq. 1.

    Example:
        >>> import torch
        >>> x, h, weight = torch.ones(2, 3), torch.ones(2, 4), torch.ones(3, 4)
        >>> gated_linear_residual(x, h, weight, None, torch.tensor([0.5]))
        tensor([[3., 3., 3.],
                [3., 3., 3.]])
    """
    fits = weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])
    if not fits or (*h.shape[:-1], weight.shape[0]) != x.shape or h.shape[-1] != weight.shape[-1]:
        got = ", ".join(
            f"{name} {tuple(each.shape)}"
            for name, each in (("x", x), ("h", h), ("weight", weight), ("bias", bias))
            if each is not None
        )
        raise ValueError(f"expected x (*, D), h (*, K), weight (D, K) and bias (D,) or None: got {got}")
    _check_gate(x, alpha)
    return linear.gated_linear_residual(x, h, weight, bias, alpha)


def _check_gate(x: Tensor, alpha: Tensor) -> None:
    if alpha.shape != (1,) and alpha.shape != x.shape[-1:]:
        raise ValueError(
            f"alpha must have shape (1,), or {tuple(x.shape[-1:])}, one entry a feature of the last axis: got "
            f"{tuple(alpha.shape)}; a gate has one scale, Gate(), or one a feature of the last axis, which is not the "
            "channel of an (N, C, H, W) image"
        )
