"""Triton kernels of the gate: bias, dropout, gate and addition in one pass, their gradients in another.

All is computed in float32, float64 in float64, and rounded once. Tensors are read as ``(rows, columns)`` with the
features as columns, or as one row where no feature is told from another. A sum over rows is taken tile by tile and then
over the tiles, in an order that the shapes alone decide. The mask of a dropout is drawn from a seed and the place of
each number, so that it is never stored.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["align", "backward", "enter", "forward", "kept", "leave"]

Needs = tuple[bool, bool, bool]

_TILE = 4096  # numbers a program handles at a time
_PROGRAMS = 2048  # that keep any GPU of today busy; with more tiles, each takes several
_ROUNDS = tl.constexpr(7)  # of Philox, the fewest that pass the known tests of randomness
_TINY = tl.constexpr(2.0**-24)  # a smaller gate is not multiplied into what is divided by it again


@triton.jit
def _forward(
    x, f, alpha, bias, seed, y, rows, columns, p,
    BY_FEATURE: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row, column = _places(columns, 1, M, N)
    index, inside = row * columns + column, (row < rows) & (column < columns)
    branch = _read(f, index, inside, WIDE)
    if bias is not None:
        branch += _read(bias, column, column < columns, WIDE)
    if seed is not None:
        branch *= _mask(seed, index, p)
    scale = _gate(alpha, column, columns, BY_FEATURE, WIDE)
    tl.store(y + index, _read(x, index, inside, WIDE) + scale * branch, mask=inside)


@triton.jit
def _backward(
    g, f, alpha, bias, seed, df, dalpha, dbias, rows, columns, p, turns,
    BY_FEATURE: tl.constexpr, STEADY: tl.constexpr, WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    first, column = _places(columns, turns, M, N)
    gate = _gate(alpha, column, columns, BY_FEATURE, WIDE)
    scale = _steady(gate) if STEADY else gate
    of_alpha = tl.zeros((M, N), WIDE)
    of_bias = tl.zeros((M, N), WIDE)
    for turn in range(turns):
        row = first + turn * M
        index, inside = row * columns + column, (row < rows) & (column < columns)
        gradient = _read(g, index, inside, WIDE)
        if seed is not None:
            gradient *= _mask(seed, index, p)
        if dalpha is not None:
            branch = tl.zeros((M, N), WIDE)
            if f is not None:
                branch += _read(f, index, inside, WIDE)
            if bias is not None:
                branch += _read(bias, column, column < columns, WIDE)
            of_alpha += gradient * branch
        if df is not None:
            tl.store(df + index, gradient * scale, mask=inside)
        of_bias += gradient
    program = tl.program_id(0)
    place = (program // tl.cdiv(columns, N)).to(tl.int64) * columns + column
    if dalpha is not None:
        if BY_FEATURE:
            tl.store(dalpha + place, tl.sum(of_alpha, 0, keep_dims=True), mask=column < columns)
        else:
            tl.store(dalpha + program, tl.sum(of_alpha))
    if dbias is not None:
        tl.store(dbias + place, gate * tl.sum(of_bias, 0, keep_dims=True), mask=column < columns)


@triton.jit
def _settle(first, other, inner, second, alpha, size, more, programs, WIDE: tl.constexpr, TILE: tl.constexpr):
    program = tl.program_id(0)
    gate = tl.load(alpha).to(WIDE)
    is_tiny = _steady(gate) != gate
    if program < programs:
        index = program.to(tl.int64) * TILE + tl.arange(0, TILE)
        value = _read(first, index, index < size, WIDE)
        tl.store(inner + program, tl.sum(value * _read(other, index, index < size, WIDE)))
        if is_tiny:
            tl.store(first + index, value * gate, mask=index < size)
    elif second is not None:  # noqa: SIM102 - what is known when it is compiled must stand alone
        if is_tiny:
            index = (program - programs).to(tl.int64) * TILE + tl.arange(0, TILE)
            tl.store(second + index, _read(second, index, index < more, WIDE) * gate, mask=index < more)


@triton.jit
def _finish(
    inner, through, alpha, dalpha, partial, dbias, size, more, rows, columns,
    WIDE: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    row, column = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    if tl.program_id(0) == 0:
        place = row * N + column
        product, rest = tl.zeros((M, N), WIDE), tl.zeros((M, N), WIDE)
        for start in range(0, size, M * N):
            product += _read(inner, start + place, start + place < size, WIDE)
        if through is not None:
            for start in range(0, more, M * N):
                rest += _read(through, start + place, start + place < more, WIDE)
        tl.store(dalpha, tl.sum(product) / _steady(tl.load(alpha).to(WIDE)) + tl.sum(rest))
    elif dbias is not None:
        column += (tl.program_id(0) - 1) * N
        total = tl.zeros((M, N), WIDE)
        for start in range(0, rows, M):
            inside = (start + row < rows) & (column < columns)
            total += _read(partial, (start + row) * columns + column, inside, WIDE)
        tl.store(dbias + column, tl.sum(total, 0, keep_dims=True), mask=column < columns)


@triton.jit
def _kept(seed, factor, size, p, TILE: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    tl.store(factor + index, _mask(seed, index, p), mask=index < size)


@triton.jit
def _places(columns, turns, M: tl.constexpr, N: tl.constexpr):
    """Return the rows of a program's first tile, a column, and its columns, a row."""
    across = tl.cdiv(columns, N)
    row = (tl.program_id(0) // across).to(tl.int64) * turns * M + tl.arange(0, M)[:, None]
    column = (tl.program_id(0) % across).to(tl.int64) * N + tl.arange(0, N)[None, :]
    return row, column


@triton.jit
def _read(tensor, index, inside, WIDE: tl.constexpr):
    return tl.load(tensor + index, mask=inside, other=0).to(WIDE)


@triton.jit
def _mask(seed, index, p):
    """Return what dropout multiplies by: 0 with probability ``p``, else ``1 / (1 - p)``."""
    return tl.where(tl.rand(tl.load(seed), index, _ROUNDS) < p, 0.0, 1.0 / (1.0 - p))


@triton.jit
def _gate(alpha, column, columns, BY_FEATURE: tl.constexpr, WIDE: tl.constexpr):
    return _read(alpha, column, column < columns, WIDE) if BY_FEATURE else tl.load(alpha).to(WIDE)


@triton.jit
def _steady(gate):
    """Return the gate, or 1 where it is so small that dividing by it would not undo a multiplication."""
    return tl.where(tl.abs(gate) < _TINY, 1.0, gate)


def forward(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None, seed: Tensor | None, p: float) -> Tensor:
    """Return ``x + alpha * dropout(f + bias)``.

    Args:
        x: The skip, ``(*, D)``, aligned with ``f``.
        f: The branch, ``(*, D)``.
        alpha: The gate, ``(1,)`` or ``(D,)``.
        bias: ``(D,)``, or None.
        seed: Of the dropout, ``(1,)``, int64, on the same device; None for no dropout.
        p: Probability that a number is dropped, below 1.

    Returns:
        ``(*, D)``, in the dtype of ``x + f``.
    """
    y = torch.empty_like(x, dtype=torch.promote_types(x.dtype, f.dtype))
    by_feature, tiles = len(alpha) > 1, _Tiles(f, len(alpha) > 1 or bias is not None)
    if tiles.all:
        _forward[(tiles.all,)](
            x, f, alpha, bias, seed, y, *tiles.shape, p,
            BY_FEATURE=by_feature, WIDE=_wide(x, f, alpha), M=tiles.m, N=tiles.n,
        )  # fmt: skip
    return y


def backward(
    g: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, needs: Needs
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of branch, gate and bias: ``alpha m g``, ``sum(m g (f + bias))`` and ``sum(alpha m g)``.

    Args:
        g: Gradient of the output, ``(*, D)``, aligned with ``f``. ``m`` is the mask of the dropout.
        f: The branch, ``(*, D)``.
        alpha: The gate, ``(1,)`` or ``(D,)``.
        bias: ``(D,)``, or None.
        seed: Of the dropout, ``(1,)``, or None.
        p: Probability that a number is dropped.
        needs: Which of the three are asked for.

    Returns:
        ``(*, D)``, ``(1,)`` or ``(D,)``, and ``(D,)``, in the dtypes of what they belong to; None for what is not asked
        for.
    """
    df, dalpha, dbias = _scale(g, f, alpha, bias, seed, p, dtype=f.dtype, needs=needs)
    return (
        df,
        None if dalpha is None else dalpha.sum(0).to(alpha.dtype),
        None if dbias is None or bias is None else dbias.sum(0).to(bias.dtype),
    )


def enter(
    g: Tensor, alpha: Tensor, bias: Tensor | None, seed: Tensor | None, p: float, dtype: torch.dtype, needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scale the gradient on its way into a branch that ends in a map and was not kept.

    Args:
        g: Gradient of the output, ``(*, D)``, contiguous. ``m`` is the mask of the dropout.
        alpha: The gate, ``(1,)``. Where its own gradient is asked for, a tiny one is taken for 1.
        bias: ``(D,)``, or None.
        seed: Of the dropout, ``(1,)``, or None.
        p: Probability that a number is dropped.
        dtype: Of the branch.
        needs: Whether the gradients of the map, of the gate and of the bias are asked for.

    Returns:
        ``alpha m g``, and what `leave` sums up: ``sum(m g bias)`` and ``sum(alpha m g)``, each in parts.
    """
    of_map, of_alpha, of_bias = needs
    needs = of_map, of_alpha and bias is not None, of_bias
    s, through, partial = _scale(g, None, alpha, bias, seed, p, dtype=dtype, needs=needs, steady=of_alpha)
    return g if s is None else s, through, partial


def leave(
    first: Tensor,
    second: Tensor | None,
    other: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    through: Tensor | None,
    partial: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Finish the gradients of such a branch: multiply by a tiny gate, in place, what `enter` did not, and sum up.

    Args:
        first: Gradient of the map's weight, or of its input; contiguous.
        second: The other of the two, contiguous, or None.
        other: What the first is the gradient of; contiguous.
        alpha: The gate, ``(1,)``.
        bias: ``(D,)``, or None.
        through: Parts of ``sum(m g bias)``, or None.
        partial: Parts of the bias's gradient, or None.

    Returns:
        The gradients of the gate, ``(1,)``, and of the bias, ``(D,)`` or None.
    """
    wide = _wide(first, alpha)
    programs, more = triton.cdiv(first.numel(), _TILE), 0 if second is None else second.numel()
    inner = torch.empty(programs, 1, device=first.device, dtype=_DTYPES[wide])
    if count := programs + triton.cdiv(more, _TILE):
        _settle[(count,)](first, other, inner, second, alpha, first.numel(), more, programs, WIDE=wide, TILE=_TILE)
    dalpha = torch.empty_like(alpha)
    dbias = None if partial is None or bias is None else torch.empty_like(bias)
    rows, columns = (0, 0) if partial is None else partial.shape
    size = 0 if through is None else through.numel()
    _finish[(1 + triton.cdiv(columns, 64),)](
        inner, through, alpha, dalpha, partial, dbias, programs, size, rows, columns, WIDE=wide, M=16, N=64
    )
    return dalpha, dbias


def _scale(
    g: Tensor, f: Tensor | None, alpha: Tensor, bias: Tensor | None, seed: Tensor | None, p: float,
    *, dtype: torch.dtype, needs: Needs, steady: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradient of the branch, and those of gate and bias in parts, one a program."""
    of_f, of_alpha, of_bias = needs
    by_feature, wide = len(alpha) > 1, _wide(g, alpha, *([] if f is None else [f]))
    tiles = _Tiles(g, by_feature or of_bias or bias is not None)
    parts: dict[str, Any] = {"device": g.device, "dtype": _DTYPES[wide]}
    df = torch.empty_like(g, dtype=dtype) if of_f else None
    dalpha = torch.empty(tiles.by_column if by_feature else (tiles.count, 1), **parts) if of_alpha else None
    dbias = torch.empty(tiles.by_column, **parts) if of_bias else None
    if tiles.count and any(needs):
        _backward[(tiles.count,)](
            g, f, alpha, bias, seed, df, dalpha, dbias, *tiles.shape, p, tiles.turns,
            BY_FEATURE=by_feature, STEADY=steady, WIDE=wide, M=tiles.m, N=tiles.n,
        )  # fmt: skip
    return df, dalpha, dbias


def kept(like: Tensor, seed: Tensor, p: float) -> Tensor:
    """Return the mask that a dropout multiplies by, 0 or ``1 / (1 - p)``, for an aligned tensor."""
    factor = torch.empty_like(like, dtype=torch.float32)
    if factor.numel():
        _kept[(triton.cdiv(factor.numel(), _TILE),)](seed, factor, factor.numel(), p, TILE=_TILE)
    return factor


def align(like: Tensor, tensor: Tensor, *, by_column: bool) -> Tensor:
    """Return a tensor whose numbers lie in the order of another's.

    Args:
        like: Whose order is wanted, after an ``align`` with itself.
        tensor: Of the same shape.
        by_column: Whether features are told from each other, so that rows must lie one after the other.

    Returns:
        The tensor, copied only if need be.
    """
    if by_column or like.is_contiguous():
        return tensor.contiguous()
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class _Tiles:
    """How a tensor is cut: into ``all`` tiles of ``m`` by ``n`` numbers, or ``count`` columns of ``turns`` tiles."""

    def __init__(self, tensor: Tensor, by_column: bool) -> None:
        size = tensor.numel()
        columns = tensor.shape[-1] if by_column else size
        self.shape = (size // columns if size else 0, columns)
        self.n = min(triton.next_power_of_2(max(columns, 1)), min(256, _TILE) if by_column else _TILE)
        self.m = _TILE // self.n if by_column else 1
        across, down = triton.cdiv(columns, self.n), triton.cdiv(self.shape[0], self.m)
        self.all = across * down
        self.turns = max(1, min(down, self.all // _PROGRAMS))
        self.count = across * triton.cdiv(down, self.turns)
        self.by_column = (triton.cdiv(down, self.turns), columns)


_DTYPES = {tl.float32: torch.float32, tl.float64: torch.float64}


def _wide(*tensors: Tensor) -> tl.dtype:
    return tl.float64 if any(each.dtype == torch.float64 for each in tensors) else tl.float32
