"""Where the parameters of a model lie, seen from its gates: a second opinion, made from the trace alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rezero.surgery.linear import is_matrix, is_norm
from rezero.surgery.sites import Residuals
from rezero.surgery.trace import Call, Op, Trace, Value

__all__ = ["places", "unread_by_module"]

Places = dict[str, set[str]]


def places(model: Any, traced: Trace, found: Residuals) -> Places:
    """Sort the names of a model's parameters by place.

    ``branch``: matters only through a gate. ``shortcut`` and ``refused``: as the finder says. ``trunk``: stem,
    transitions, norms and head. ``unexplained``: in a layer that has gates, but behind none of them, and neither in a
    norm nor in a child that changes the shape. ``unread``: not read on this example.
    """
    leaves = {branch.leaf for branch in found.branches}
    gated = {call.output for call in traced.calls if call.name in leaves and call.output is not None}
    inside = _behind_gates(traced, gated)
    readers: dict[str, set[Op]] = {}
    for value in traced.values:
        if value.parameter and value.users:
            readers.setdefault(value.parameter, set()).update(value.users)
    sorted_: Places = {"branch": {name for name, ops in readers.items() if ops <= inside}}
    sorted_["branch"] |= found.parameters["branch"] & readers.keys()  # scales between a gate and its addition
    for place in ("shortcut", "refused"):
        sorted_[place] = set(found.parameters.get(place, ())) - sorted_["branch"]
    rest = readers.keys() - set().union(*sorted_.values())
    sorted_["unexplained"] = {
        name for name in rest if not _explained(model, name, readers[name], leaves, gated, traced.ops)
    }
    sorted_["trunk"] = rest - sorted_["unexplained"]
    sorted_["unread"] = {name for name, _ in model.named_parameters()} - readers.keys()
    return sorted_


def _behind_gates(traced: Trace, gated: set[Value]) -> set[Op]:
    """Return the operations whose results matter only through the output of a gated module."""
    inside: set[Op] = set()
    for op in reversed(traced.ops):
        free = [value for value in op.outputs if value not in gated]
        if all(not value.escapes and inside.issuperset(value.users) for value in free):
            inside.add(op)
    return inside


def _explained(model: Any, name: str, readers: set[Op], leaves: set[str], gated: set[Value], ops: list[Op]) -> bool:
    owner = name.rpartition(".")[0]
    layer = next((each for each in _layers(model, owner) if any(leaf.startswith(f"{each}.") for leaf in leaves)), None)
    if layer is None or not is_matrix(model.get_parameter(name).shape) or is_norm(model.get_submodule(owner)):
        return True
    return all(_on_every_way(op, layer, gated, ops) for op in readers)


def _layers(model: Any, name: str) -> Iterator[str]:
    """Yield the modules around one that are entries of a list of modules, the innermost first."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdecimal() and hasattr(model.get_submodule(".".join(parts[: end - 1])), "__getitem__"):
            yield ".".join(parts[:end])


def _on_every_way(middle: Op, layer: str, gated: set[Value], ops: list[Op]) -> bool:
    """Return whether a layer's output comes from its input through one operation only, all gates being closed."""
    call: Call | None = middle.call
    while call is not None and call.name != layer:
        call = call.parent
    if call is None or not call.inputs or call.output is None:
        return False
    reached = {call.inputs[0]}
    for op in ops[call.first : call.last]:
        if op is not middle and not reached.isdisjoint(op.inputs):
            reached.update(value for value in op.outputs if value not in gated)
    return call.output not in reached


def unread_by_module(model: Any, traced: Trace, unread: set[str]) -> tuple[Counter[str], set[str]]:
    """Count the unread parameters by module.

    Returns:
        The outermost module that was not called, or the owner that was, with its count; and those of them that were not
        called although they hold a stack of layers: an encoder that the example did not reach.
    """
    called = {call.name for call in traced.calls}
    counts: Counter[str] = Counter()
    for name in unread:
        parts = name.split(".")[:-1]
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        outer = next(
            (each for each in prefixes if not any(c == each or c.startswith(f"{each}.") for c in called)), None
        )
        counts[outer or ".".join(parts)] += 1
    stacks = {name for name in counts if name and name not in called and _has_stack(model.get_submodule(name))}
    return counts, stacks


def _has_stack(module: Any) -> bool:
    lists = [each for each in module.modules() if type(each).__name__ == "ModuleList" and len(each) > 0]
    return any(sum(1 for _ in each[0].modules()) > 4 for each in lists)
