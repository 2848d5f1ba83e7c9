"""Residual additions while they are sorted, and the ways through a forward pass that make them ones."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from rezero.surgery import linear
from rezero.surgery.traced import Call, Op, Trace, Value

__all__ = [
    "Sum",
    "Term",
    "additions",
    "count_layers",
    "has_parameters",
    "ops_between",
    "parameter_names",
    "reaches",
    "weights",
]


@dataclass(frozen=True)
class Term:
    """A branch where it is added."""

    value: Value
    reader: Op  # the addition, or an earlier one that sums branches


@dataclass(eq=False)
class Sum:
    """A residual addition on its way to becoming a site."""

    add: Op
    skip: Value  # what the branches descend from
    skip_scaled: bool  # the skip is multiplied by parameters on its way to the addition
    terms: "list[Term]"  # the branches
    between: set[Op]
    operands: list[tuple[Op, int]]  # which operand of which addition they are
    beside: bool = False  # the skip goes through other residual additions on its way
    leaves: "list[Call | str]" = field(default_factory=list)  # where the gates go, or why they can't

    @property
    def trouble(self) -> str | None:
        """Why the branches can't be gated, if they can't."""
        return next((each for each in self.leaves if isinstance(each, str)), None)

    @property
    def shortcuts(self) -> list[Value]:
        """The sides of the addition that are the skip after a way of its own."""
        if self.beside:
            return []
        values = {term.value for term in self.terms}
        return [side for side in self.add.inputs[:2] if side not in values and side.descends_from(self.skip)]

    @property
    def gated(self) -> "list[Call]":
        """The module calls whose output is gated."""
        return [each for each in self.leaves if not isinstance(each, str)]


def additions(traced: Trace) -> dict[Op, tuple[int, int]]:
    """Return the additions; which call of their owner they happen in, and which of its additions they are."""
    counts: Counter[Call] = Counter()
    places = {}
    for op in filter(linear.is_addition, traced.ops):
        places[op] = (op.call.number, counts[op.call])
        counts[op.call] += 1
    return places


def ops_between(start: Value, end: Value) -> set[Op]:
    """Return the operations through which ``end`` comes from ``start``."""
    found: set[Op] = set()
    open_values = [end]
    while open_values:
        value = open_values.pop()
        if value is start or value.op is None or value.op in found or not value.descends_from(start):
            continue
        found.add(value.op)
        open_values += value.op.inputs
    return found


def reaches(start: Value, end: Value) -> bool:
    """Return whether ``end`` comes from ``start`` on a way without a change of resolution."""
    seen: set[Value] = set()
    open_values = [end]
    while open_values:
        value = open_values.pop()
        if value is start:
            return True
        if value in seen or value.op is None or not value.descends_from(start) or linear.changes_resolution(value.op):
            continue
        seen.add(value)
        open_values += value.op.inputs
    return False


def weights(op: Op, start: Value | None = None) -> Iterator[Value]:
    """Yield the parameters that an operation reads, also those that were transformed first.

    Args:
        op: The operation.
        start: What comes from it is no weight, even where no input of the model reaches it, as with learned queries.

    Yields:
        The parameters.
    """
    for value in op.inputs:
        if start is not None and (value is start or value.descends_from(start)):
            continue
        if value.parameter:
            yield value
        elif value.op is not None and not value.data:
            yield from weights(value.op, start)


def parameter_names(ops: set[Op], start: Value | None = None) -> set[str]:
    """Name the parameters that operations read."""
    return {weight.parameter for op in ops for weight in weights(op, start) if weight.parameter}


def has_parameters(between: set[Op], start: Value, owner: Call) -> bool:
    """Return whether a branch has a layer: a matrix, parameters inside a module of its own, a Fourier transform."""
    weighted = any(
        linear.is_matrix(weight.shape) or op.call is not owner for op in between for weight in weights(op, start)
    )
    return weighted or any(map(linear.mixes, between))


def count_layers(between: set[Op], start: Value) -> int:
    """Count the matrices on the way."""
    return sum(any(linear.is_matrix(weight.shape) for weight in weights(op, start)) for op in between)
