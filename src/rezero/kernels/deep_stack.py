"""The custom ops of a `rezero.DeepStack`: one call for all layers, native on the CPU, the twin everywhere else.

Shapes: L layers, B rows, D width, S segments; x ``(B, D)``, weight ``(L, D, D)``, bias ``(L, D)``, alpha ``(L, 1)``.
``keep`` tells what the backward pass finds: ``"nothing"``; of all ``"layers"`` the inputs and branches,
``(2, L, B, D)``; of ``"segments"`` of about ``sqrt(L)`` layers the inputs, ``(S, B, D)``, to compute the rest anew.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rezero.kernels import buffers, native, reference_stack
from rezero.kernels.again import differentiate
from rezero.kernels.fusing import can_fuse, is_autocast

__all__ = ["cut_layers", "deep_stack"]


def deep_stack(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, *, segments: bool = False) -> Tensor:
    """Run all layers of ``x + alpha * relu(W x + b)``.

    Args:
        x: ``(*, D)``.
        weight: ``(L, D, D)``.
        bias: ``(L, D)``.
        alpha: ``(L, 1)``.
        segments: Whether to keep the inputs of segments of layers only.

    Returns:
        ``(*, D)``.

    Raises:
        ValueError: If a parameter has another shape than the others and ``x`` ask for.
    """
    tensors = x, weight, bias, alpha
    depth, dim = weight.shape[0], x.shape[-1]
    if (weight.shape[1:], bias.shape, alpha.shape) != ((dim, dim), (depth, dim), (depth, 1)):
        raise ValueError(
            f"expected weights ({depth}, {dim}, {dim}), biases ({depth}, {dim}) and alphas ({depth}, 1): got "
            f"{', '.join(str(tuple(each.shape)) for each in tensors[1:])}; give all three for the same layers"
        )
    if is_autocast(x) or _is_transformed(tensors):
        return reference_stack.deep_stack(*tensors)
    learns = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
    keep = "nothing" if not learns else "segments" if segments else "layers"
    y: Tensor = _forward(x.reshape(-1, x.shape[-1]), weight, bias, alpha, keep)[0]
    return y.view(x.shape)


def _is_transformed(tensors: Sequence[Tensor]) -> bool:
    """Tell whether torch.func or forward-mode differentiation is at work, which custom ops know nothing of."""
    if torch._C._are_functorch_transforms_active():
        return True
    if torch.compiler.is_compiling():  # which refuses forward mode itself
        return False
    return any(forward_ad.unpack_dual(each).tangent is not None for each in tensors)


@torch.library.custom_op("rezero::deep_stack", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, keep: str) -> tuple[Tensor, Tensor]:
    loops = _loops(x, weight, bias, alpha)
    x, w, b, a = (each.contiguous() for each in (x, weight, bias, alpha))
    if keep != "segments":
        kept = buffers.empty(_shape(x, weight, keep), weight)
        return loops.forward(x, w, b, a, kept if keep == "layers" else None), kept
    kept = x.new_empty(_shape(x, weight, keep))
    for segment, part in enumerate(cut_layers(len(w))):
        kept[segment] = x
        x = loops.forward(x, w[part], b[part], a[part], None)
    return x, kept


@_forward.register_fake
def _(x: Tensor, weight: Tensor, _bias: Tensor, _alpha: Tensor, keep: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(_shape(x, weight, keep))


@torch.library.custom_op("rezero::deep_stack_backward", mutates_args=())
def _backward(
    gradient: Tensor, kept: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, keep: str, learns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loops = _loops(gradient, weight, bias, alpha)
    g, w, b, a = (each.contiguous() for each in (gradient, weight, bias, alpha))
    out = (buffers.empty(w.shape, weight), torch.empty_like(b), torch.empty_like(a)) if learns else None
    if keep == "layers":
        g = loops.backward(g, kept, w, a, out)
    else:
        parts = list(cut_layers(len(w)))
        again = buffers.empty((2, parts[0].stop, *g.shape), weight)
        for segment, part in reversed(list(enumerate(parts))):
            layers = again[:, : part.stop - part.start]
            loops.forward(kept[segment], w[part], b[part], a[part], layers)
            g = loops.backward(g, layers, w[part], a[part], out and tuple(each[part] for each in out))
    return g, *(out or (g.new_empty(0) for _ in range(3)))


@_backward.register_fake
def _(
    gradient: Tensor, _kept: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, _keep: str, learns: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = [each.new_empty(each.shape if learns else (0,)) for each in (weight, bias, alpha)]
    return gradient.new_empty(gradient.shape), out[0], out[1], out[2]


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _derive(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    *tensors, kept = ctx.saved_tensors
    needed = ctx.needs_input_grad[:4]
    if torch.is_grad_enabled() or _is_transformed((gradient,)):  # derivatives of these are asked for
        return *differentiate(reference_stack.deep_stack, tensors, needed, gradient), None
    found = iter(_backward(gradient, kept, *tensors[1:], ctx.keep, any(needed[1:])))
    return *(each if asked else None for each, asked in zip(found, needed, strict=True)), None


_forward.register_autograd(_derive, setup_context=_save)


def _loops(*tensors: Tensor) -> Any:
    if native.Loops.serves(*tensors):
        return native.find(tensors[0].dtype) or reference_stack
    if can_fuse(*tensors):
        from rezero.kernels import triton_stack

        if triton_stack.serves(*tensors):
            return triton_stack
    return reference_stack


def cut_layers(depth: int) -> Iterator[slice]:
    """Cut the layers into about as many segments as each has layers; the first is the longest."""
    length = math.isqrt(depth - 1) + 1
    return (slice(first, min(first + length, depth)) for first in range(0, depth, length))


def _shape(x: Tensor, weight: Tensor, keep: str) -> tuple[int, ...]:
    depth = weight.shape[0]
    if keep == "layers":
        return 2, depth, *x.shape
    return (0,) if keep == "nothing" else (len(list(cut_layers(depth))), *x.shape)
