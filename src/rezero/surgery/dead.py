"""Which modules compute nothing but given branches, and can be passed over with them."""

import inspect
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from rezero.surgery.changed import Changed, has_own_forward
from rezero.surgery.contribution import Addend, find_addends
from rezero.surgery.find import sort_additions
from rezero.surgery.recipe import SilentRecipe
from rezero.surgery.traced import Call, Op, Trace, Value
from rezero.surgery.zeros import Zeros

__all__ = ["Dead", "choose_silent"]

_PLAIN = {Tensor, torch.FloatTensor, torch.LongTensor, torch.BoolTensor, torch.Size, types.NoneType}
_PLAIN |= {bool, int, float, str, torch.dtype, torch.device}


@dataclass(frozen=True)
class Dead:
    """What can be done without, once some branches are gone.

    Attributes:
        silent: The outermost modules that can return zeros.
        running: Modules with parameters that serve these branches alone and must run on, with the reason.
        stuck: The modules of branches that can't be made zero, with the reason.
    """

    silent: tuple[SilentRecipe, ...]
    running: Mapping[str, str]
    stuck: Mapping[str, str]


def choose_silent(traces: Sequence[Trace], leaves: Collection[str], zeros: Zeros, keep: Collection[str]) -> Dead:
    """Choose the outermost modules that can return zeros once some branches are gone.

    What a module makes must be read by nothing but these branches, in every pass; its forward must take nothing that it
    could change beside computing, such as a cache; and the shape of what it returns must follow from its input's.

    Args:
        traces: Passes in evaluation, first, and in training.
        leaves: The modules that end the branches.
        zeros: How zeros take the place of what each module returns, or why they can't.
        keep: Modules that must stay.

    Returns:
        What was chosen, and what was not.
    """
    traced, *others = [_Part(each, leaves) for each in traces]
    alive = set().union(*(other.alive() for other in others))
    chosen: list[Call] = []
    reasons: dict[str, str] = {}
    for call in traced.calls():
        if call.name in alive or any(call.within(outer) for outer in chosen):
            continue
        reason = traced.obstacle(call) or _obstacle(call, zeros, keep)
        if reason is not None:
            reasons[call.name] = reason
        elif traced.inside(call) or any(True for _ in (*call.module.parameters(), *call.module.buffers())):
            chosen.append(call)
    stuck = {
        leaf: reasons.get(leaf, "it serves something else in training, or is summed with others in another way")
        for leaf in leaves
        if not traced.covered(leaf, chosen)
    }
    running = {call.name: reasons[call.name] for call in traced.calls() if call.name in reasons and _learns(call)}
    silent = dict.fromkeys(zeros[call.name] for call in chosen)
    return Dead(tuple(each for each in silent if isinstance(each, SilentRecipe)), running, stuck)


def _learns(call: Call) -> bool:
    return next(call.module.parameters(), None) is not None


class _Part:
    """The part of a pass that serves nothing but some branches."""

    def __init__(self, traced: Trace, leaves: Collection[str]) -> None:
        self.trace = traced
        found = sort_additions(traced, long_skips=True, repeated="tie")
        self.ends = [each for each in find_addends(traced, found) if each.leaf in leaves]
        self.dead = _unread(traced, {(each.add, each.way[-1]) for each in self.ends})
        self.new = self.dead - _unread(traced, set())

    def ops(self, call: Call) -> list[Op]:
        return self.trace.ops[call.first : call.last]

    def calls(self) -> Iterator[Call]:
        """Yield the calls of modules all of whose calls serve the branches alone, the outer ones first."""
        alive = self.alive()
        for call in self.trace.calls:
            if call.name not in alive and self.new.intersection(self.ops(call)):
                yield call

    def alive(self) -> set[str]:
        """Name the modules that serve something else, too."""
        return {call.name for call in self.trace.calls if not self.dead.issuperset(self.ops(call))}

    def inside(self, call: Call) -> list[Addend]:
        return [each for each in self.ends if each.call.within(call)]

    def obstacle(self, call: Call) -> str | None:
        """Say why a call can't return zeros, judged by what is done with its output."""
        ops = set(self.ops(call))
        ends = [each for each in self.inside(call) if each.add not in self.dead]
        if call.output is None or call.output.op not in ops:
            return "it returns what it was given, or no tensor"
        if not all(call.output in each.way for each in ends):
            return "it returns the branch as something else than its first output"
        read = any(each.escapes or not ops.issuperset(each.users) for each in call.others)
        if read or (call.others and not ends):
            return "its other outputs are read"
        return None

    def covered(self, leaf: str, chosen: Sequence[Call]) -> bool:
        """Return whether a branch is zero where it is added, or added to nothing that is read."""
        uses = [each for each in self.ends if each.leaf == leaf]
        return bool(uses) and all(
            each.add in self.dead or any(each.call.within(call) for call in chosen) for each in uses
        )


def _unread(traced: Trace, terms: set[tuple[Op, Value]]) -> set[Op]:
    """Return the operations whose results nothing reads, but for additions of given terms."""
    unread: set[Op] = set()
    for op in reversed(traced.ops):
        uses = {(user, value) for value in op.outputs for user in value.users} - terms
        read = any(user not in unread for user, _ in uses)
        if not read and not any(value.escapes for value in op.outputs):
            unread.add(op)
    return unread


# What a module is like


def _obstacle(call: Call, zeros: Zeros, keep: Collection[str]) -> str | None:
    """Say why a module can't return zeros, judged by itself."""
    module = call.module
    if any(name == call.name or name.startswith(f"{call.name}.") for name in keep):
        return "a gate in it is shared with branches that stay"
    if has_own_forward(module) or module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, or a forward of its own"
    if (name := _takes_object(module)) is not None:
        return f"its forward takes {name!r}, which may be an object that it changes, such as a cache"
    way = zeros.get(call.name, "it is not called on the data")
    return way if isinstance(way, str) else None


def _takes_object(module: nn.Module) -> str | None:
    """Name an argument of a module's forward, after the first, that is not declared to be a tensor or a plain value."""
    forward = (module.original_class if isinstance(module, Changed) else type(module)).forward
    _, *parameters = inspect.signature(forward).parameters.values()
    try:
        hints = get_type_hints(forward)
    except (NameError, TypeError):
        hints = {}
    for number, parameter in enumerate(parameters):
        loose = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if loose or (number and not _is_plain(hints.get(parameter.name))):
            return parameter.name
    return None


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType, tuple, list):
        return all(_is_plain(each) for each in get_args(hint) if each is not ...)
    return hint in _PLAIN
