"""The mathematics of a gated residual, without modules."""

from torch import Tensor

from rezero import kernels
from rezero.kernels import linear

__all__ = ["gated_linear_residual", "gated_residual"]


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor, *, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    r"""Add a scaled branch to its skip: ``y = x + alpha * f``, or ``y = x + alpha * dropout(f + bias)``.

    The product and the sum are formed in the widest of the dtypes and rounded once, to the dtype of ``x + f``. With
    ``alpha = 0`` and a finite ``f`` the result equals ``x`` bitwise. A non-finite ``f`` shows even behind a closed
    gate, because ``0 * inf`` is ``nan``.

    On a GPU with Triton, tensors of 2^25 numbers and more take one pass forward, and one for the gradients of branch,
    bias and gate together; no mask is stored. On the CPU ``x`` and ``f`` of one dtype and of 2^18 numbers and more
    (2^15 beside a gate of another dtype), with one scale, without bias and dropout, take one pass forward. Under
    ``torch.compile`` and for others plain operations do it.

    Args:
        x: The skip, ``(*, D)``.
        f: The output of the residual branch, the shape of ``x``.
        alpha: The gate, ``(1,)`` for one scale or ``(D,)`` for one a feature of the last axis (dimensionless).
        bias: Added to the branch first, ``(D,)``; None for none.
        dropout: Probability of zeroing an entry of the branch; the others are divided by ``1 - dropout``. It is
            applied whenever it is given: pass 0 in evaluation.

    Returns:
        ``(*, D)``, in the dtype of ``x + f``.

    Raises:
        TypeError: If ``alpha`` is no tensor.
        ValueError: If ``f`` has not the shape of ``x``, ``alpha`` is neither ``(1,)`` nor ``(D,)``, ``bias`` is not
            ``(D,)``, or ``dropout`` is no probability.

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
    if bias is not None and bias.shape != x.shape[-1:]:
        raise ValueError(f"expected a bias {tuple(x.shape[-1:])}, one entry a feature: got {tuple(bias.shape)}")
    _check_gate(x, alpha)
    _check_dropout(dropout)
    return kernels.gated_residual(x, f, alpha, bias, dropout)


def gated_linear_residual(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, *, dropout: float = 0.0
) -> Tensor:
    r"""Add a scaled branch that ends in a linear map to its skip: ``y = x + alpha * dropout(h W^T + b)``.

    The gate goes into the product or into the addition, so that large ones cost about what they cost without a gate,
    and nothing but ``h`` and ``W`` is kept for the gradients. On the CPU that is so from 2^24 multiplications, in
    bfloat16 from 2^27 and with as many rows as ``K``, in one dtype, with one scale, without dropout and autocast; on a
    GPU with Triton from 2^36, with one scale and not in float16; without dropout also under ``torch.compile`` where
    ``x`` has as many numbers as ``W``, and on a GPU where ``h`` has. Else the branch is formed, kept, and then scaled.
    With ``alpha = 0`` and finite numbers the result equals ``x`` bitwise.

    Args:
        x: The skip, ``(*, D)``.
        h: What goes into the linear map, ``(*, K)``.
        weight: ``W``, ``(D, K)``.
        bias: ``b``, ``(D,)``; None for none.
        alpha: The gate, ``(1,)`` for one scale or ``(D,)`` for one a feature (dimensionless).
        dropout: Probability of zeroing an entry of the branch, as in `gated_residual`.

    Returns:
        ``(*, D)``, in the dtype of ``x + h W^T``.

    Raises:
        TypeError: If ``alpha`` is no tensor.
        ValueError: If the shapes do not fit, for nothing is broadcast, or ``dropout`` is no probability.

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
    _check_dropout(dropout)
    return linear.gated_linear_residual(x, h, weight, bias, alpha, dropout)


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be a probability from 0 to 1: got {dropout}")


def _check_gate(x: Tensor, alpha: Tensor) -> None:
    if not isinstance(alpha, Tensor):
        raise TypeError(f"alpha must be a tensor, such as torch.tensor([0.5]): got {type(alpha).__name__}")
    if alpha.shape != (1,) and alpha.shape != x.shape[-1:]:
        raise ValueError(
            f"alpha must have shape (1,), or {tuple(x.shape[-1:])}, one entry a feature of the last axis: got "
            f"{tuple(alpha.shape)}; a gate has one scale, Gate(), or one a feature of the last axis, which is not the "
            "channel of an (N, C, H, W) image"
        )
