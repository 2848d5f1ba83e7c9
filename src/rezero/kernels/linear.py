"""The gate in the weight: a linear map that ends a residual branch, its gate and the addition, as one product.

``x + alpha * (h W^T + b)`` is a matrix product that begins with ``x + alpha b`` and scales what it adds. Nothing is
multiplied over activations, and what is kept for the gradients is what a branch without a gate keeps: ``h`` and ``W``.
The gradient of alpha comes out of a product that is needed anyway: ``<g^T h, W>``, or where rows are few ``<g W, h>``.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rezero import kernels
from rezero.kernels import linear_gpu, reference
from rezero.kernels.fusing import are_plain

__all__ = ["gated_linear_residual", "is_small"]

Gradients = tuple[Tensor | None, ...]
_LARGE = 1 << 24  # multiplications; with fewer, what a Function in Python costs is more than what it saves
_FEW = 16  # rows or features; with fewer, BLAS may round each term of the sum at the size of the skip
_DTYPES = {torch.float32, torch.float64, torch.bfloat16}  # float16 ends where products without alpha can lie
_LONG = 2048  # terms of a sum, which BLAS cuts into pieces: with more, they are summed before the skip is added


def gated_linear_residual(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float = 0.0
) -> Tensor:
    """Choose the product for these tensors. Shapes and formula: `rezero.functional.gated_linear_residual`."""
    if torch.compiler.is_compiling() and not dropout:
        return _by_weight(x, h, weight, bias, alpha)
    if linear_gpu.serves(x, h, weight, bias, alpha, dropout):
        return linear_gpu.gated_linear_residual(x, h, weight, bias, alpha, dropout)
    if is_small(x, h.shape[-1]):  # where asking more would take longer than it saves
        return kernels.gated_residual(x, F.linear(h, weight, bias), alpha, None, dropout)
    given = [tensor for tensor in (x, h, weight, bias, alpha) if tensor is not None]
    if not dropout and are_plain(*given):
        if not x.is_cpu and h.numel() >= weight.numel():
            return _by_weight(x, h, weight, bias, alpha)
        if h.numel() * len(weight) >= _LARGE and _is_one_product(given):
            y: Tensor = _Product.apply(x, h, weight, bias, alpha)  # type: ignore[no-untyped-call]
            return y
    return kernels.gated_residual(x, F.linear(h, weight, bias), alpha, None, dropout)


def is_small(x: Tensor, k: int) -> bool:
    """Tell whether the branch is formed and then scaled because its product, of ``k`` terms, is small."""
    return x.is_cpu and x.numel() * k < _LARGE and not torch.compiler.is_compiling()


def _is_one_product(given: Sequence[Tensor]) -> bool:
    *tensors, alpha = given
    return (
        all(tensor.is_cpu for tensor in given)
        and len({tensor.dtype for tensor in tensors}) == 1
        and tensors[0].dtype in _DTYPES
        and alpha.numel() == 1
        and min(tensors[0].shape[:-1].numel(), tensors[0].shape[-1]) >= _FEW
        and not torch.is_autocast_enabled("cpu")
    )


def _by_weight(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
    f = F.linear(h, reference.gate(weight, alpha.view(-1, 1)), None if bias is None else reference.gate(bias, alpha))
    return x + f


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight, bias, alpha)
        ctx.save_for_forward(h, weight, bias, alpha)
        factor, y = alpha.item(), torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = _rows(y)  # whereas a view that is returned could not be changed in place
        if h.shape[-1] > _LONG:
            start = y.new_zeros(1) if bias is None else bias * factor
            torch.addmm(start, _rows(h), weight.t(), alpha=factor, out=rows)
            return y.add_(x)
        if bias is None:
            y.copy_(x)
        else:
            torch.add(x, bias, alpha=factor, out=y)
        rows.addmm_(_rows(h), weight.t(), alpha=factor)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        formula: Callable[..., Gradients] = _differentiable if torch.is_grad_enabled() else _in_place
        h, *others = ctx.saved_tensors
        dh, *gradients = formula(_rows(g), _rows(h), *others, ctx.needs_input_grad[1:])
        return (g, None if dh is None else dh.view(h.shape), *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        h, weight, bias, alpha = ctx.saved_tensors
        dx, dh, dweight, dbias, dalpha = tangents
        parts = [
            dx,
            None if dh is None else alpha * F.linear(dh, weight),
            None if dweight is None else alpha * F.linear(h, dweight),
            None if dbias is None else (alpha * dbias).expand(*h.shape[:-1], -1),
            None if dalpha is None else dalpha * F.linear(h, weight, bias),
        ]
        return reduce(torch.add, (part for part in parts if part is not None)).to(h.dtype)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def _in_place(
    g: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, needs: Sequence[bool]
) -> Gradients:
    """Return the gradients of ``h``, weight, bias and gate, each product scaled where it is written."""
    of_h, of_weight, of_bias, of_alpha = needs
    factor, none = alpha.item(), g.new_empty(1, 1)
    dh = dweight = dalpha = None
    by_weight = len(g) >= len(weight) if of_h and of_weight else of_weight
    if by_weight:
        product, other = g.t() @ h, weight
        dh = torch.addmm(none, g, weight, beta=0, alpha=factor) if of_h else None
    elif of_h or of_alpha:
        product, other = g @ weight, h
        dweight = torch.addmm(none, g.t(), h, beta=0, alpha=factor) if of_weight else None
    dbias = g.sum(0) if bias is not None and (of_bias or of_alpha) else None
    if of_alpha:
        dalpha = _inner(product, other).to(alpha.dtype)
        if bias is not None and dbias is not None:
            dalpha += _inner(dbias, bias)
    if by_weight:
        dweight = product.mul_(factor)
    elif of_h:
        dh = product.mul_(factor)
    return dh, dweight, dbias.mul_(factor) if of_bias and dbias is not None else None, dalpha


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32)).view(1)


def _differentiable(
    g: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, needs: Sequence[bool]
) -> Gradients:
    """Return the same gradients by operations that can be differentiated again."""
    dh, dbias = g @ weight, g.sum(0)
    dalpha = _inner(dh, h) + (0 if bias is None else _inner(dbias, bias))
    found = (alpha * dh, alpha * (g.t() @ h), alpha * dbias, dalpha)
    kinds = (h.dtype, weight.dtype, g.dtype, alpha.dtype)
    return tuple(each.to(kind) if needed else None for each, kind, needed in zip(found, kinds, needs, strict=True))
