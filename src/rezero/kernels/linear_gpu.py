"""The gate of a linear map on a GPU: one pass adds bias, dropout, gate and skip, another scales what comes back.

What is kept for the gradients is what a branch without a gate keeps, ``h`` and ``W``: not the branch, nor a mask. The
backward pass scales the gradient where it comes in, ``s = alpha m g``, and the two products that every linear map has
give ``dh = s W`` and ``dW = s^T h``. The gradient of alpha is ``<dW, W> / alpha + <sum m g, b>``, or with ``<dh, h>``
where that is shorter. Where alpha is too small to divide by, the products are formed without it and scaled in place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rezero.kernels import reference
from rezero.kernels.again import differentiate
from rezero.kernels.fusing import can_fuse
from rezero.kernels.gated import draw_seed

__all__ = ["gated_linear_residual", "serves"]

_LARGE = 1 << 36  # multiplications; with fewer, the kernels are called more slowly than a GPU runs


def serves(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float) -> bool:
    """Tell whether these tensors can be taken, and are large enough for it to pay."""
    if h.numel() * len(weight) < _LARGE or alpha.numel() > 1 or dropout == 1 or not can_fuse(x, h, weight, bias, alpha):
        return False
    kinds = {_dtype(each) for each in (h, weight, bias) if each is not None}
    return len(kinds) == 1 and kinds != {torch.float16}  # whose range is too narrow for what is divided again


def gated_linear_residual(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float
) -> Tensor:
    """Return ``x + alpha * dropout(h W^T + b)``. Shapes: `rezero.functional.gated_linear_residual`."""
    h, weight = h.to(_dtype(h)), weight.to(_dtype(weight))
    bias = None if bias is None else bias.to(_dtype(bias))
    with torch.autocast(x.device.type, enabled=False), torch.cuda.device_of(x):  # where Triton launches
        y: Tensor = _Linear.apply(x, h, weight, bias, alpha, dropout)  # type: ignore[no-untyped-call]
    return y


def _dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a linear map computes with a tensor."""
    kind = tensor.device.type
    casts = torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else tensor.dtype


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float
    ) -> Tensor:
        from rezero.kernels import triton_gate

        seed = draw_seed(x) if dropout else None
        ctx.save_for_backward(h, weight, bias, alpha, seed)
        ctx.dropout, ctx.dtype = dropout, x.dtype
        return triton_gate.forward(x.contiguous(), F.linear(h, weight), alpha, bias, seed, dropout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:5]
        if torch.is_grad_enabled():
            found = _differentiable(g, tensors, seed, ctx.dropout, needs)
        else:
            found = _gradients(g, tensors, seed, ctx.dropout, needs)
        return g.to(ctx.dtype) if ctx.needs_input_grad[0] else None, *found, None


def _differentiable(
    g: Tensor, tensors: list[Any], seed: Tensor | None, dropout: float, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    from rezero.kernels import triton_gate

    mask = None if seed is None else triton_gate.kept(g.contiguous(), seed, dropout)

    def twin(h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
        return reference.branch(F.linear(h, weight), alpha, bias, mask).to(g.dtype)

    return differentiate(twin, tensors, needs, g)


def _gradients(
    g: Tensor, tensors: list[Any], seed: Tensor | None, dropout: float, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    from rezero.kernels import triton_gate

    h, weight, bias, alpha = tensors
    of_h, of_weight, of_bias, of_alpha = needs
    s, through, partial = triton_gate.enter(
        g.contiguous(), alpha, bias, seed, dropout, h.dtype, (of_h or of_weight or of_alpha, of_alpha, of_bias)
    )
    by_weight = of_alpha and (not of_h or (of_weight and weight.numel() <= h.numel()))
    dh = s @ weight if of_h else None
    dweight = s.view(-1, s.shape[-1]).t() @ h.reshape(-1, h.shape[-1]) if of_weight or by_weight else None
    if not of_alpha:
        return dh, dweight, None if partial is None else partial.sum(0).to(bias.dtype), None
    first: Any
    first, second, other = (dweight, dh, weight) if by_weight else (dh, dweight, h)
    dalpha, dbias = triton_gate.leave(first, second, other.contiguous(), alpha, bias, through, partial)
    return dh, dweight if of_weight else None, dbias, dalpha
