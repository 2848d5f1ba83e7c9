"""Watch a model add: which branches are zero, and whether every addition with closed gates returns its skip."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from rezero.errors import UsageError
from rezero.surgery.find import UNREAD, sort_additions
from rezero.surgery.gated import ReadsGated, gates_by_name
from rezero.surgery.linear import is_addition
from rezero.surgery.outputs import Mode
from rezero.surgery.sites import Branch, Residuals, Site
from rezero.surgery.trace import trace
from rezero.surgery.traced import Call, Op, Trace

__all__ = ["check_skips", "silent_branches"]

Place = tuple[str, int, int, int]  # of an operand: the owner's name and call, the addition in it, which operand


@dataclass
class _Watcher:
    """Notes what is zero in one pass."""

    leaves: Mapping[nn.Module, str]
    silent: dict[Place, bool] = field(default_factory=dict)
    infinite: set[str] = field(default_factory=set)  # names of the modules that add what is not finite
    loud: dict[str, bool] = field(default_factory=dict)  # whether a leaf ever returned something else than zeros
    _counts: dict[Any, int] = field(default_factory=dict)

    def addition(self, op: Op, operands: list[Tensor]) -> None:
        if not is_addition(op):
            return
        number = self._counts[op.call] = self._counts.get(op.call, -1) + 1
        for index, operand in enumerate(operands[:2]):
            self.silent[op.call.name, op.call.number, number, index] = not bool(operand.any())
            if not bool(operand.isfinite().all()):
                self.infinite.add(op.call.name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        handle = hooks.register_module_forward_hook(self._leave)
        try:
            yield
        finally:
            handle.remove()

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if module in self.leaves:
            f = output if isinstance(output, Tensor) else output[0]
            with torch._C.DisableTorchFunction():  # the trace is not to see this
                self.loud[self.leaves[module]] = self.loud.get(self.leaves[module], False) or bool(f.any())


def _watch(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals, mode: Mode
) -> tuple[Trace, _Watcher]:
    watcher = _Watcher({model.get_submodule(branch.leaf): branch.leaf for branch in found.branches})
    with watcher.listening():
        traced = trace(model, args, kwargs, training=mode.training, grad=mode.grad, on_add=watcher.addition)
    return traced, watcher


def silent_branches(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], found: Residuals) -> list[Branch]:
    """Run a model in evaluation and list its branches that are zero everywhere.

    Each is judged by its own operand; of several that are summed before they are added, by what its module returned.

    Args:
        model: The model, converted or not; it is left as it was.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: Its additions.

    Returns:
        The branches that output only zeros.
    """
    _, watcher = _watch(model, args, kwargs, found, Mode(training=False, grad=False))
    return [
        branch
        for site in found
        for branch, operand in zip(site.branches, _operands(site, watcher.silent), strict=True)
        if operand
        or not watcher.loud.get(branch.leaf, True)
        or not all(bool(model.get_parameter(name).any()) for name in branch.scale)
    ]


def _operands(site: Site, silent: Mapping[Place, bool]) -> list[bool]:
    """Return whether the operand that each branch is in is silent."""
    operands = [silent.get((site.name, *place), False) for place in site.added]
    return operands if len(operands) == len(site.branches) else [all(operands)] * len(site.branches)


def check_skips(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    found: Residuals,
    mode: Mode,
    *,
    when: str | None = None,
) -> Trace:
    """Run a model whose gates are at 0: every addition that was gated must return its skip.

    Args:
        model: The converted model; it is left as it was.
        args: Example arguments.
        kwargs: Example keyword arguments.
        found: The additions that were gated.
        mode: How to run it.
        when: The circumstances, for errors, of a step that may leave parts of the model out; by default the mode.

    Returns:
        The pass.

    Raises:
        UsageError: If one does not, if none of them happens in this mode, or if others do. Layers that are dropped at
            random in training are no other path.
    """
    whole, when = when is None, when or str(mode)
    traced, watcher = _watch(model, args, kwargs, found, mode)
    gated = {branch.leaf for branch in found.branches}
    idle = {(each.name, *each.place) for each in found.left_out if each.reason == UNREAD}
    there = [
        site
        for site in sort_additions(traced, found.filter_fn, long_skips=found.long_skips, repeated=found.repeated)
        if not idle.issuperset((site.name, *place[:2]) for place in site.added)  # without gradients all look read
    ]
    added = dict.fromkeys(branch.leaf for site in there for branch in site.branches)
    closed = {
        branch.leaf
        for site in there
        for branch, silent in zip(site.branches, _operands(site, watcher.silent), strict=True)
        if silent and any(leaf.startswith(f"{branch.leaf}.") for leaf in gated)
    }  # a larger module ends the branch then, and the gate inside it closes it all the same
    if others := [leaf for leaf in added if leaf not in gated | closed]:
        raise UsageError(
            f"{when} the model takes another path, on which {others[0]!r} ends a branch that the example's path has "
            "not: give an example on which it takes all of them"
        )
    read = {value.parameter for value in traced.values if any(not _within(op.call, added) for op in value.users)}
    loud = [site.name for site in there if not all(_operands(site, watcher.silent))]
    loud += [site.name for site in found if any(_is_read(b.leaf, read) for b in site.branches if b.leaf not in added)]
    if loud and loud[0] in watcher.infinite:
        raise UsageError(
            f"{when} what is added in {loud[0]!r} is not finite on the example, and no gate makes it zero, for 0 * inf "
            "is nan: give an example on which the model's numbers are finite"
        )
    if loud:
        raise UsageError(f"with all gates at 0 {when} the addition in {loud[0]!r} does not return its skip")
    gates = gates_by_name(model)
    uses = (op for value in traced.values if value.parameter in gates for op in value.users)
    if stray := [op for op in uses if not (_within(op.call, gated) or isinstance(op.call.module, ReadsGated))]:
        raise UsageError(
            f"{when} {stray[0].call.name or 'the model'!r} reads a gate itself, or runs the forward of a gated module "
            "past its call, so that the gate scales more than the branch: call the module instead"
        )
    if whole and not added:
        raise UsageError(f"{when} none of the additions happens: the model takes another path then")
    return traced


def _within(call: Call | None, leaves: Container[str]) -> bool:
    while call is not None and call.name not in leaves:
        call = call.parent
    return call is not None


def _is_read(leaf: str, parameters: set[str | None]) -> bool:
    """Return whether other code uses the parameters of a module that ends no branch."""
    return any(name is not None and name.startswith(f"{leaf}.") for name in parameters)
