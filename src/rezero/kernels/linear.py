"""The gate in the weight: a linear map that ends a residual branch, its gate and the addition, as one product.

``x + alpha * (h W^T + b)`` is a matrix product that begins with ``x + alpha b`` and scales what it adds; in bfloat16,
where that takes longer, the product is let go once it is added. What is kept for the gradients is what a branch
without a gate keeps: ``h`` and ``W``. The gradient of alpha comes out of a product that is needed anyway:
``<g^T h, W>``, or where rows are few ``<g W, h>``.
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

__all__ = ["LONG", "add_product", "as_rows", "can_multiply", "gated_linear_residual", "gradients", "is_small"]

Gradients = tuple[Tensor | None, ...]
_SCALED_APART = {torch.bfloat16}  # in which a product with a factor takes longer than one more pass over what goes in
_TINY = 2**-24  # what is scaled by less might vanish before it is divided again
_LARGE = 1 << 24  # multiplications; with fewer, what a Function in Python costs is more than what it saves
_FEW = 16  # rows or features; with fewer, BLAS may round each term of the sum at the size of the skip
_DTYPES = {torch.float32, torch.float64, torch.bfloat16}  # float16 ends where products without alpha can lie
LONG = 2048  # terms of a sum, which BLAS cuts into pieces: with more, they are summed before the skip is added


def gated_linear_residual(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, dropout: float = 0.0
) -> Tensor:
    """Choose the product for these tensors. Shapes and formula: `rezero.functional.gated_linear_residual`."""
    if torch.compiler.is_compiling() and not dropout:
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to load, and loaded by now

        # What is scaled is kept. A graph of any number of rows must not depend on those of its example.
        if statically_known_true(x.numel() < weight.numel()):
            return reference.gated_linear_residual(x, h, weight, bias, alpha)
        return _by_weight(x, h, weight, bias, alpha)
    if linear_gpu.serves(x, h, weight, bias, alpha, dropout):
        return linear_gpu.gated_linear_residual(x, h, weight, bias, alpha, dropout)
    if is_small(x, h.shape[-1]):  # where asking more would take longer than it saves
        return kernels.gated_residual(x, F.linear(h, weight, bias), alpha, None, dropout)
    given = [tensor for tensor in (x, h, weight, bias, alpha) if tensor is not None]
    if not dropout and are_plain(*given):
        if not x.is_cpu and h.numel() >= weight.numel():
            return _by_weight(x, h, weight, bias, alpha)
        if can_multiply(given):
            y: Tensor = _Product.apply(x, h, weight, bias, alpha)  # type: ignore[no-untyped-call]
            return y
    return kernels.gated_residual(x, F.linear(h, weight, bias), alpha, None, dropout)


def is_small(x: Tensor, k: int) -> bool:
    """Tell whether the branch is formed and then scaled because its product, of ``k`` terms, is small."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return False
    products = x.numel() * k
    if x.dtype == torch.bfloat16:  # faster products: where weights outnumber the rows, so does what is done with them
        return products < 8 * _LARGE or x.shape[:-1].numel() < k
    return products < _LARGE


def can_multiply(given: Sequence[Tensor]) -> bool:
    """Tell whether BLAS can add the products of these to the first of them, the last being one scale."""
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
        return add_product(x, as_rows(h), weight, bias, alpha.item())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        formula: Callable[..., Gradients] = _differentiable if torch.is_grad_enabled() else gradients
        h, *others = ctx.saved_tensors
        dh, *found = formula(as_rows(g), as_rows(h), *others, ctx.needs_input_grad[1:])
        return (g, None if dh is None else dh.view(h.shape), *found)

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


def add_product(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    """Return ``x + factor * (h W^T + b)``, ``h`` being rows."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = as_rows(y)  # whereas a view that is returned could not be changed in place
    if h.shape[-1] > LONG or x.dtype in _SCALED_APART:
        start, weighs = (rows.new_zeros(1), 0) if bias is None else (bias, 1)
        torch.addmm(start, h, weight.t(), beta=weighs, out=rows)
        return torch.add(x, y, alpha=factor, out=y)
    if bias is None:
        y.copy_(x)
    else:
        torch.add(x, bias, alpha=factor, out=y)
    rows.addmm_(h, weight.t(), alpha=factor)
    return y


def as_rows(tensor: Tensor) -> Tensor:
    """Return a tensor ``(*, D)`` as ``(N, D)``."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def gradients(
    g: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, needs: Sequence[bool]
) -> Gradients:
    """Return the gradients of ``h``, weight, bias and gate, each product scaled where it is written."""
    of_h, of_weight, of_bias, of_alpha = needs
    factor = alpha.item()
    scale = factor if abs(factor) > _TINY else 1.0  # that of the products, from which alpha's gradient is taken
    within = scale
    if g.dtype in _SCALED_APART and scale != 1:
        g, within = g * scale, 1.0
    by_weight = of_weight and (len(g) >= len(weight) or not of_h)
    dh = _product(g, weight, within) if of_h or (of_alpha and not by_weight) else None
    dweight = _product(g.t(), h, within) if of_weight else None
    dbias = g.sum(0).mul_(within) if bias is not None and (of_bias or of_alpha) else None
    dalpha = None
    if of_alpha:
        dalpha = _inner(dweight, weight) if by_weight else _inner(dh, h)
        if bias is not None:
            dalpha += _inner(dbias, bias)
        dalpha = dalpha.div_(scale).to(alpha.dtype)
    found = [dh if of_h else None, dweight, dbias if of_bias else None]
    if scale != factor:
        found = [None if each is None else each.mul_(factor) for each in found]
    return *found, dalpha


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    return a @ b if factor == 1 else torch.addmm(a.new_empty(1, 1), a, b, beta=0, alpha=factor)


def _inner(a: Any, b: Any) -> Tensor:
    product: Tensor = a * b
    return product.sum(dtype=torch.promote_types(product.dtype, torch.float32)).view(1)


def _differentiable(
    g: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, needs: Sequence[bool]
) -> Gradients:
    """Return the same gradients by operations that can be differentiated again."""
    dh, dbias = g @ weight, g.sum(0)
    dalpha = _inner(dh, h) + (0 if bias is None else _inner(dbias, bias))
    found = (alpha * dh, alpha * (g.t() @ h), alpha * dbias, dalpha)
    kinds = (h.dtype, weight.dtype, g.dtype, alpha.dtype)
    return tuple(each.to(kind) if needed else None for each, kind, needed in zip(found, kinds, needs, strict=True))
