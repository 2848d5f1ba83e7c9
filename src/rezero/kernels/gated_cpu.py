"""`rezero.functional.gated_residual` on the CPU: one pass forward, which multiplies, adds and rounds once.

Plain operations take two passes, and in half precision beside a float32 alpha form everything in float32 between them.
"""

from typing import Any

import torch
from torch import Tensor

from rezero.kernels import reference
from rezero.kernels.fusing import are_plain

__all__ = ["gated_residual", "serves"]

_LARGE = 1 << 18  # numbers; with fewer, what a Function in Python costs is more than what it saves
_MIXED = 1 << 15  # beside a gate of another dtype, for which plain operations take twice the time


def serves(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None, dropout: float) -> bool:
    """Tell whether these are large plain tensors of one real dtype, with one scale, and nobody watches."""
    return (
        x.is_cpu
        and x.numel() >= (_LARGE if x.dtype == alpha.dtype else _MIXED)
        and f.is_cpu
        and alpha.is_cpu
        and alpha.numel() == 1
        and bias is None
        and not dropout
        and x.dtype == f.dtype
        and x.is_floating_point()
        and (alpha.dtype == torch.float32 or alpha.dtype == x.dtype)
        and not torch.compiler.is_compiling()
        and are_plain(x, f, alpha)
    )


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    """Return ``x + alpha * f``. Shapes: `rezero.functional.gated_residual`."""
    y: Tensor = _Sum.apply(x, f, alpha)  # type: ignore[no-untyped-call]
    return y


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(f, alpha)
        ctx.save_for_forward(f, alpha)
        return torch.add(x, f, alpha=alpha.item())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        f, alpha = ctx.saved_tensors
        _, of_f, of_alpha = ctx.needs_input_grad
        df = dalpha = None
        if of_f:
            df = reference.gate(g, alpha) if torch.is_grad_enabled() else g * alpha.item()
        if of_alpha:
            dalpha = (g.to(torch.promote_types(g.dtype, alpha.dtype)) * f).sum().view(1).to(alpha.dtype)
        return g, df, dalpha

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, df: Tensor | None, dalpha: Tensor | None) -> Tensor:
        f, alpha = ctx.saved_tensors
        parts = (dx, None if df is None else alpha * df, None if dalpha is None else dalpha * f)
        return sum(part for part in parts if part is not None).to(f.dtype)  # type: ignore[union-attr]
