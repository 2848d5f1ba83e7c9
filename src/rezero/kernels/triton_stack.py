"""Triton loops over the layers of a `rezero.DeepStack`, with the signatures of `reference_stack`.

One program takes a few rows through all layers. A layer needs its input by columns as well as by rows, so that it
passes through memory once, where the gradients want to find it anyway. The gradients of weights and biases are summed
for a chunk of layers at a time, as batched products.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward", "serves"]

_ROWS = 16  # of a program, the fewest that a tensor core takes
_WIDEST = 256  # layers; a wider one fills the GPU by itself
_CHUNK = 128 << 20  # bytes of gradients that wait for the products with the layers' inputs
_KINDS = {torch.float32, torch.bfloat16, torch.float16}


@triton.jit
def _forward(
    x, weight, bias, alpha, inputs, branches, y, depth, rows, step,
    D: tl.constexpr, R: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, column, inner = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    place, inside = row * D + column, (row < rows) & (column < D)
    state = tl.load(x + place, mask=inside, other=0)
    for layer in range(depth):
        tl.store(inputs + place, state, mask=inside)
        tl.debug_barrier()
        total = tl.zeros((R, N), tl.float32)
        for first in range(0, D, K):
            k = first + inner
            a = tl.load(inputs + row * D + k[None, :], mask=(row < rows) & (k < D)[None, :], other=0)
            b = tl.load(weight + column * D + k[:, None], mask=(column < D) & (k < D)[:, None], other=0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        total += tl.load(bias + column, mask=column < D, other=0).to(tl.float32)
        branch = tl.maximum(total, 0, propagate_nan=tl.PropagateNan.ALL).to(state.dtype)
        if branches is not None:
            tl.store(branches + place, branch, mask=inside)
            branches += step
            inputs += step
        else:
            inputs += (1 - 2 * (layer % 2)) * step  # there and back: another warp may still be reading
        state = (state.to(tl.float32) + tl.load(alpha).to(tl.float32) * branch.to(tl.float32)).to(state.dtype)
        weight += D * D
        bias += D
        alpha += 1
    tl.store(y + place, state, mask=inside)


@triton.jit
def _backward(
    g, weight, alpha, branches, waiting, dalpha, depth, rows, step, programs,
    D: tl.constexpr, R: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, column, inner = tl.program_id(0) * R + tl.arange(0, R)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    place, inside = row * D + column, (row < rows) & (column < D)
    gradient = tl.load(g + place, mask=inside, other=0)
    for _ in range(depth):  # from the last to the first
        branch = tl.load(branches + place, mask=inside, other=0).to(tl.float32)
        wide = gradient.to(tl.float32)
        tl.store(dalpha + tl.program_id(0), tl.sum(wide * branch))
        passed = tl.where(branch <= 0, 0.0, tl.load(alpha).to(tl.float32) * wide).to(gradient.dtype)
        tl.store(waiting + place, passed, mask=inside)
        tl.debug_barrier()
        total = tl.zeros((R, N), tl.float32)
        for first in range(0, D, K):
            k = first + inner
            a = tl.load(waiting + row * D + k[None, :], mask=(row < rows) & (k < D)[None, :], other=0)
            b = tl.load(weight + k[:, None] * D + column, mask=(column < D) & (k < D)[:, None], other=0)
            total = tl.dot(a, b, total, input_precision=PRECISION)
        gradient = (wide + total.to(gradient.dtype).to(tl.float32)).to(gradient.dtype)
        weight -= D * D
        alpha -= 1
        branches -= step
        waiting -= step
        dalpha -= programs
    tl.store(g + place, gradient, mask=inside)


def serves(*tensors: Tensor) -> bool:
    """Tell whether `forward` and `backward` can take an input or gradient, weights, biases and alphas."""
    x, weight = tensors[:2]
    return x.dtype in _KINDS and x.dtype == weight.dtype and 0 < weight.shape[-1] <= _WIDEST


def forward(x: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, kept: Tensor | None) -> Tensor:
    """Run the layers; see the twin."""
    y = torch.empty_like(x)
    inputs, branches = kept if kept is not None else (x.new_empty(2, *x.shape), None)
    if not x.numel():
        return y
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(len(x), _ROWS),)](
            x, weight, bias, alpha, inputs, branches, y, len(weight), len(x), x.numel(), **_options(x)
        )  # fmt: skip
    return y


def backward(
    gradient: Tensor, kept: Tensor, weight: Tensor, alpha: Tensor, out: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """Run the layers backwards; see the twin."""
    g, depth, programs = gradient.clone(), len(weight), triton.cdiv(len(gradient), _ROWS)
    chunk = min(depth, max(1, _CHUNK // max(1, g.numel() * g.element_size())))
    waiting = g.new_empty(chunk, *g.shape)
    partial = torch.zeros(chunk, programs, device=g.device)
    for last in range(depth, 0, -chunk):
        part = slice(max(0, last - chunk), last)
        size = part.stop - part.start
        if g.numel():
            with torch.cuda.device_of(g):
                _backward[(programs,)](
                    g, weight[last - 1], alpha[last - 1], kept[1, last - 1], waiting[size - 1], partial[size - 1],
                    size, len(g), g.numel(), programs, **_options(g),
                )  # fmt: skip
        if out is not None:
            torch.bmm(waiting[:size].mT, kept[0, part], out=out[0][part])
            torch.sum(waiting[:size], 1, out=out[1][part])
            out[2][part] = partial[:size].sum(1, keepdim=True)
    return g


def _options(x: Tensor) -> dict[str, Any]:
    # Three products of tf32 round as float32 does, and take less time.
    precision = "tf32" if torch.get_float32_matmul_precision() == "medium" else "tf32x3"
    precision = "ieee" if torch.version.hip else precision  # AMD's have none
    width = max(16, triton.next_power_of_2(x.shape[-1]))
    return {"D": x.shape[-1], "R": _ROWS, "N": width, "K": min(32, width), "PRECISION": precision, "num_warps": 8}
