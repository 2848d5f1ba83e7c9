"""How much the gated branches of a model add to their skips."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rezero.errors import UsageError
from rezero.surgery.find import sort_additions
from rezero.surgery.linear import is_addition
from rezero.surgery.sites import Residuals
from rezero.surgery.trace import trace
from rezero.surgery.traced import Call, Op, Trace, Value

__all__ = ["Addend", "Batch", "find_addends", "measure"]

Batch = tuple[tuple[Any, ...], Mapping[str, Any]]


def measure(model: Any, batches: Sequence[Batch]) -> dict[str, float]:
    r"""Measure the contribution of every branch, ``||scale * f(x)|| / ||x||`` where the two are added.

    It is a root mean square over all elements of all batches and uses, in evaluation: branch and skip are squared and
    summed before they are divided, as they arrive at the addition, with all that lies between the gate and it.

    Args:
        model: The model; it is left as it was.
        batches: Arguments and keyword arguments of its forward.

    Returns:
        The module that ends a branch to the branch's contribution (dimensionless), for those that are added.

    Raises:
        UsageError: If a contribution is not a number.
    """
    sums: dict[str, list[float]] = {}
    for args, kwargs in batches:
        squares: dict[Op, list[float]] = {}

        def look(op: Op, operands: list[Tensor], squares: dict[Op, list[float]] = squares) -> None:
            if is_addition(op):
                squares[op] = [_square(operand, op) for operand in operands[:2]]

        traced = trace(model, args, kwargs, on_add=look)
        found = sort_additions(traced, long_skips=True, repeated="tie")
        skips = _skips(traced, found)
        for each in find_addends(traced, found):
            total = sums.setdefault(each.leaf, [0.0, 0.0])
            total[0] += squares[each.add][each.add.inputs.index(each.way[-1])]
            skip, operand = next(skips[each.leaf])
            total[1] += squares[skip][operand]
    contributions = {leaf: _ratio(branch, skip) for leaf, (branch, skip) in sums.items()}
    for leaf, contribution in contributions.items():
        if math.isnan(contribution):
            raise UsageError(f"the contribution of {leaf!r} is not a number: its branch or its skip is nan or infinite")
    return contributions


class Addend(NamedTuple):
    """A branch on its way to where it is added.

    Attributes:
        leaf: The module that ends it.
        call: The call of that module.
        add: The addition.
        way: The branch as the module returned it, and all that it becomes until it is added.
    """

    leaf: str
    call: Call
    add: Op
    way: tuple[Value, ...]


def find_addends(traced: Trace, found: Residuals) -> list[Addend]:
    """Find where branches are added.

    Args:
        traced: One forward pass.
        found: Its residual additions.

    Returns:
        Each use of each branch, in order; none of a branch that is summed with others in another way.
    """
    uses = Counter(branch.leaf for branch in found.branches)
    ways = [(call, tuple(_way(call.output))) for call in traced.calls if call.name in uses]
    uses.subtract(call.name for call, _ in ways)
    lost = {call.name for call, way in ways if uses[call.name] or not (way and is_addition(way[-1].users[0]))}
    return [Addend(call.name, call, way[-1].users[0], way) for call, way in ways if call.name not in lost]


def _way(value: Value | None) -> Iterator[Value]:
    while value is not None and len(value.users) == 1:
        yield value
        [op] = value.users
        if is_addition(op) or op.name == "stack":  # of branches that are summed
            return
        value = next((output for output in op.outputs if output.users), None)


def _skips(traced: Trace, found: Residuals) -> dict[str, Iterator[tuple[Op, int]]]:
    """Find which operand of which addition is the skip of each use of each branch."""
    additions: dict[tuple[str, int, int], Op] = {}
    counts: dict[Any, int] = {}
    for op in filter(is_addition, traced.ops):
        number = counts[op.call] = counts.get(op.call, -1) + 1
        additions[op.call.name, op.call.number, number] = op
    skips: dict[str, list[tuple[Op, int]]] = {}
    for site in found:
        call, number, operand = site.added[0]
        for branch in site.branches:
            skips.setdefault(branch.leaf, []).append((additions[site.name, call, number], 1 - operand))
    return {leaf: iter(places) for leaf, places in skips.items()}


def _square(operand: Tensor, op: Op) -> float:
    """Return the sum of squares of an operand, as often as it is broadcast."""
    wide = operand if operand.is_complex() else operand.to(torch.promote_types(operand.dtype, torch.float32))
    times = math.prod(op.outputs[-1].shape) / max(1, operand.numel())
    return float(torch.linalg.vector_norm(wide)) ** 2 * times


def _ratio(branch: float, skip: float) -> float:
    if skip == 0:
        return 0.0 if branch == 0 else math.inf
    return math.sqrt(branch / skip) if math.isfinite(branch) and math.isfinite(skip) else math.nan
