"""The gate in the weight of a branch of two linear maps with a ReLU between them, added to the branch's own input.

The second map takes the gate as in `linear`. Since the operation knows the whole branch, the last product of the
backward pass begins with the gradient of the skip, and the ReLU and its gradient stay where the numbers lie: three
passes over activations fewer than without a gate.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from rezero.kernels import linear, reference
from rezero.kernels.again import differentiate
from rezero.kernels.fusing import are_plain

__all__ = ["gated_mlp_residual", "serves"]


def serves(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, alpha: Tensor
) -> bool:
    """Tell whether these are plain tensors of the CPU, large and of one dtype, and fit, and nobody watches."""
    if torch.compiler.is_compiling() or linear.is_small(x, len(weight1)):
        return False
    given = [each for each in (x, weight1, bias1, weight2, bias2, alpha) if each is not None]
    return (
        are_plain(*given)
        and linear.can_multiply(given)
        and weight1.shape[::-1] == weight2.shape == (x.shape[-1], len(weight1))
        and forward_ad._current_level < 0
    )


def gated_mlp_residual(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, alpha: Tensor
) -> Tensor:
    """Return ``x + alpha * (relu(x W1^T + b1) W2^T + b2)``.

    Args:
        x: The skip and the branch's input, ``(*, D)``.
        weight1: ``W1``, ``(K, D)``.
        bias1: ``b1``, ``(K,)``; None for none.
        weight2: ``W2``, ``(D, K)``.
        bias2: ``b2``, ``(D,)``; None for none.
        alpha: The gate, ``(1,)``.

    Returns:
        ``(*, D)``.
    """
    y: Tensor = _Mlp.apply(x, weight1, bias1, weight2, bias2, alpha)  # type: ignore[no-untyped-call]
    return y


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
        alpha: Tensor,
    ) -> Tensor:
        h = F.linear(linear.as_rows(x), weight1, bias1).relu_()
        ctx.save_for_backward(h, x, weight1, bias1, weight2, bias2, alpha)
        return linear.add_product(x, h, weight2, bias2, alpha.item())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, *given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiate(reference.gated_mlp_residual, given, ctx.needs_input_grad, g)
        of_x, of_weight1, of_bias1, *of_end = ctx.needs_input_grad
        x, weight1, _, weight2, bias2, alpha = given
        rows = linear.as_rows(g)
        dx: Tensor | None
        dx = dweight1 = dbias1 = None
        needs = (of_x or of_weight1 or of_bias1, *of_end)
        dh, *found = linear.gradients(rows, h, weight2, bias2, alpha, needs)
        if dh is not None:
            dz = torch.ops.aten.threshold_backward.grad_input(dh, h, 0, grad_input=dh)
            dbias1 = dz.sum(0) if of_bias1 else None
            dweight1 = dz.t() @ linear.as_rows(x) if of_weight1 else None
            if of_x:  # a long sum is formed before the skip's gradient is added, as in the forward pass
                long = dz.shape[-1] > linear.LONG
                dx = (dz @ weight1).add_(rows) if long else torch.addmm(rows, dz, weight1)
        return None if dx is None else dx.view(g.shape), dweight1, dbias1, *found
