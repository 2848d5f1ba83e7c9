"""`rezero.functional.gated_residual` on a GPU: one pass forward, one for the gradients of branch, gate and bias.

A Function rather than a custom op, whose call takes several times as long; `torch.compile` is given plain operations.
"""

from typing import Any

import torch
from torch import Tensor

from rezero.kernels import reference
from rezero.kernels.again import differentiate

__all__ = ["draw_seed", "gated_residual"]


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Return ``x + alpha * dropout(f + bias)``. Shapes: `rezero.functional.gated_residual`."""
    from rezero.kernels.triton_gate import align

    by_column = len(alpha) > 1 or bias is not None
    x, f = align(x, x, by_column=by_column), align(x, f, by_column=by_column)
    with torch.cuda.device_of(x):  # where Triton launches
        y: Tensor = _Gated.apply(x, f, alpha, bias, dropout)  # type: ignore[no-untyped-call]
    return y


def draw_seed(x: Tensor) -> Tensor:
    """Draw the seed of a dropout from the generator of a tensor's device, which is not waited for."""
    return torch.randint(2**63 - 1, (1,), device=x.device)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        from rezero.kernels import triton_gate

        seed = draw_seed(x) if dropout else None
        ctx.save_for_backward(f, alpha, bias, seed)
        ctx.dropout, ctx.dtype = dropout, x.dtype
        return triton_gate.forward(x, f, alpha, bias, seed, dropout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        from rezero.kernels import triton_gate

        f, alpha, bias, seed = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:4]
        if torch.is_grad_enabled():
            mask = None if seed is None else triton_gate.kept(f, seed, ctx.dropout)

            def twin(f: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
                return reference.branch(f, alpha, bias, mask).to(g.dtype)

            found = differentiate(twin, (f, alpha, bias), needs, g)
        else:
            aligned = triton_gate.align(f, g, by_column=len(alpha) > 1 or bias is not None)
            found = triton_gate.backward(aligned, f, alpha, bias, seed, ctx.dropout, needs)
        return g.to(ctx.dtype) if ctx.needs_input_grad[0] else None, *found, None
