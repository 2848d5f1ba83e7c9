"""Kernels by device. Each has a plain-torch twin in `reference`, which serves wherever there is none."""

from torch import Tensor

from rezero.kernels import gated, gated_cpu, reference
from rezero.kernels.fusing import can_fuse

__all__ = ["gated_residual"]

_LARGE = 1 << 25  # numbers; with fewer, the kernels are called more slowly than a GPU runs


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Choose the kernel for these tensors. Shapes and formula: `rezero.functional.gated_residual`."""
    if x.numel() >= _LARGE and dropout < 1 and can_fuse(x, f, alpha, bias):
        return gated.gated_residual(x, f, alpha, bias, dropout)
    if gated_cpu.serves(x, f, alpha, bias, dropout):
        return gated_cpu.gated_residual(x, f, alpha)
    return reference.gated_residual(x, f, alpha, bias, dropout)
