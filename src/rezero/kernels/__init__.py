"""Kernels by device type. Each has a plain-torch twin in `reference`, which serves every device without its own."""

from types import ModuleType

from torch import Tensor

from rezero.kernels import reference

__all__ = ["gated_residual"]

_BY_DEVICE: dict[str, ModuleType] = {}


def gated_residual(x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    """Run the kernel of ``x``'s device. Shapes and formula: `rezero.functional.gated_residual`."""
    result: Tensor = _BY_DEVICE.get(x.device.type, reference).gated_residual(x, f, alpha)
    return result
