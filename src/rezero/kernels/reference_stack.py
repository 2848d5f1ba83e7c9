"""Plain-torch twins of the loops over the layers of a `rezero.DeepStack`.

Shapes: L layers, B rows, D width; weight ``(L, D, D)``, bias ``(L, D)``, alpha ``(L, 1)``, x ``(B, D)``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rezero.kernels.reference import gated_residual

__all__ = ["backward", "deep_stack", "forward"]


def deep_stack(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor) -> Tensor:
    """Return the last ``x`` of ``x + alpha * relu(W x + b)``, one layer after the other, differentiable at will."""
    for w, b, a in zip(weight.unbind(), bias.unbind(), alpha.unbind(), strict=True):
        x = gated_residual(x, F.relu(F.linear(x, w, b)), a)
    return x


def forward(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, kept: Tensor | None) -> Tensor:
    """Return what `deep_stack` does; write each layer's input and branch into ``kept``, ``(2, L, B, D)``."""
    for layer, (w, b, a) in enumerate(zip(weight, bias, alpha, strict=True)):
        f = F.relu(F.linear(x, w, b))
        if kept is not None:
            kept[0, layer], kept[1, layer] = x, f
        x = gated_residual(x, f, a)
    return x


def backward(
    gradient: Tensor, kept: Tensor, weight: Tensor, alpha: Tensor, out: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """Return the gradient of ``x``; write those of weight, bias and alpha into ``out``, if they are asked for."""
    wide = torch.promote_types(gradient.dtype, alpha.dtype)
    for layer in reversed(range(len(weight))):
        x, f = kept[0, layer], kept[1, layer]
        dz = torch.where(f <= 0, 0, alpha[layer] * gradient).to(f.dtype)
        if out is not None:
            out[0][layer] = dz.t() @ x
            out[1][layer] = dz.sum(0)
            out[2][layer] = (gradient.to(wide) * f).sum()
        gradient = gradient + dz @ weight[layer]
    return gradient
