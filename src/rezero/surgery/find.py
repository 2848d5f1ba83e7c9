"""Find the residual additions of any model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from rezero.errors import UsageError
from rezero.gate import AnyGate, gates
from rezero.surgery import linear
from rezero.surgery.apply import check_followable
from rezero.surgery.changed import Changed
from rezero.surgery.describe import Describer
from rezero.surgery.example import as_example
from rezero.surgery.place import Placer
from rezero.surgery.sites import LeftOut, Repeated, Residuals, Site
from rezero.surgery.streams import replaces, why_no_branch
from rezero.surgery.sums import (
    Sum,
    Term,
    additions,
    count_layers,
    has_parameters,
    ops_between,
    parameter_names,
    reaches,
)
from rezero.surgery.trace import trace
from rezero.surgery.traced import Call, Op, Trace, Value

__all__ = ["TIES", "find_residuals", "sort_additions"]


def find_residuals(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    long_skips: bool = False,
    repeated: Repeated = "refuse",
) -> Residuals:
    r"""Find every addition of a branch to its skip, ``x + f(x)``, in a model of any class.

    One forward pass is followed, with shapes only. An addition is residual if one side, the skip, went into the other,
    the branch, and parameters lie between; the skip may be projected by fewer layers than the branch has. The model
    stays as it was, with its mode, its buffers, its gradients and the state of the random generators.

    Args:
        model: Any module, also one on the meta device.
        args: Example arguments of its ``forward``: a tensor, or a tuple.
        kwargs: Example keyword arguments.
        filter_fn: Is given a branch's module and its qualified name, and says whether the branch is wanted. Where no
            gate can be given to a branch, it is asked about the module that adds.
        long_skips: Whether a skip over other resolutions, as in a U-Net, counts too.
        repeated: What becomes of a module that is used several times, each time as a branch, such as the one layer of
            ALBERT: ``refuse``, or ``tie``, one gate for all its uses, as its parameters are tied.

    Returns:
        The additions, printing as a table; those left out are in ``left_out``, each with its reason.

    Raises:
        TypeError: If ``model`` is not a module, or ``kwargs`` no dictionary.
        UsageError: If the model is scripted, or can't be run on the arguments.

    Example:
        >>> import torch, rezero
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> found = rezero.find_residuals(layer, torch.randn(1, 3, 8))
        >>> print(*(branch.leaf for branch in found.branches))
        self_attn linear2
    """
    check_followable(model)
    traced = trace_learning(model, *as_example(args, kwargs))
    return sort_additions(traced, filter_fn, long_skips=long_skips, repeated=repeated)


def trace_learning(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, *, numbers: bool = False
) -> Trace:
    """Trace a model with gradients, so that one sees where it disables them; without, if it runs in no other way.

    Args:
        model: Any module.
        args: Its example arguments.
        kwargs: Its example keyword arguments.
        numbers: As for `trace`.

    Returns:
        The pass.
    """
    try:
        return trace(model, args, kwargs, grad=True, numbers=numbers)
    except UsageError:
        return trace(model, args, kwargs, numbers=numbers)


def sort_additions(
    traced: Trace,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    *,
    long_skips: bool = False,
    repeated: Repeated = "refuse",
) -> Residuals:
    """Find the residual additions of one forward pass.

    Args:
        traced: The pass.
        filter_fn: As for `find_residuals`.
        long_skips: Likewise.
        repeated: Likewise.

    Returns:
        The additions.
    """
    return _Finder(traced, filter_fn, long_skips, repeated).residuals()


TIES = "both sides have as many layers: neither is a skip"
UNREAD = "the sum does not reach the outputs, or only as whole numbers or detached: no gate could learn there"
LONG = "a long skip over other resolutions: ask for it with long_skips=True"


class _Finder:
    def __init__(
        self,
        traced: Trace,
        filter_fn: Callable[[nn.Module, str], bool] | None,
        long_skips: bool,
        repeated: Repeated,
    ) -> None:
        self.trace = traced
        self.filter_fn = filter_fn
        self.long_skips = long_skips
        leading = _leading_out(traced)
        self.learning = _leading_out(traced, learning=True) or leading
        self.placer = Placer([call for call in traced.calls if _is_read(call, leading)], repeated)
        self.places = additions(traced)
        self.left_out: dict[Op, LeftOut] = {}
        self.sums: dict[Op, Sum] = {}

    def residuals(self) -> Residuals:
        """Sort all additions into sites and others."""
        for op in self.places:
            self._judge(op)
        for op in self.sums.keys() - self.learning:
            del self.sums[op]
            self._leave(op, UNREAD)
        self.placer.check_ties(self.sums.values())
        describer = Describer(self.trace, self.places, {found.skip for found in self.sums.values()})
        inside = set().union(*(found.between for found in self.sums.values() if not found.trouble))
        sites, own = [], []
        for op, found in self.sums.items():
            if _is_own_gate(op.call.module):  # a stack of gated layers
                self._leave(op, "gated already")
            elif found.trouble and self.filter_fn and not self.filter_fn(op.call.module, op.call.name):
                self._leave(op, "not wanted by filter_fn")
            elif found.trouble and (other := why_no_branch(found, self.sums)):
                self._leave(op, other)
            elif found.trouble:
                inner = op in inside
                reason = found.trouble + (", inside a gated branch" if inner else "")
                self._leave(op, reason, refused=not (inner or replaces(found)))
            elif self.filter_fn and not all(self.filter_fn(call.module, call.name) for call in found.gated):
                self._leave(op, "not wanted by filter_fn")
            elif self._is_gated(site := describer.site(found)):
                self._leave(op, "gated already")
                own.append(site)
            else:
                sites.append(site)
        for op in self.places:
            self._leave_with_outer(op)
        left_out = [self.left_out[op] for op in self.places if op in self.left_out]
        left_out += [each for op in self.trace.ops if (each := self._otherwise(op))]
        uses = Counter(call.module for call in self.trace.calls)
        return Residuals(
            sites,
            left_out,
            self._removable(sites),
            {call.name: uses[call.module] for call in self.trace.calls},
            self._parameters(),
            self._readers(),
            filter_fn=self.filter_fn,
            long_skips=self.long_skips,
            repeated=self.placer.repeated,
            gated=[name for name, gate in gates(self.trace.calls[0].module).items() if isinstance(gate, Changed)],
            own=own,
        )

    def _is_gated(self, site: Site) -> bool:
        """Return whether a branch is scaled by a gate that its author put there."""
        model = self.trace.calls[0].module
        owners = (name.rpartition(".")[0] for branch in site.branches for name in branch.scale)
        modules = map(model.get_submodule, owners)
        return any(map(_is_own_gate, modules))

    def _readers(self) -> dict[str, frozenset[str]]:
        """Name the modules whose code reads each parameter."""
        readers: dict[str, set[str]] = {}
        for value in self.trace.values:
            if value.parameter:
                readers.setdefault(value.parameter, set()).update(op.call.name for op in value.users)
        return {name: frozenset(modules) for name, modules in readers.items()}

    def _parameters(self) -> dict[str, frozenset[str]]:
        """Sort the parameters that were read by where."""
        places: dict[str, set[str]] = {"branch": set(), "shortcut": set(), "refused": set(), "trunk": set()}
        for op, found in self.sums.items():
            gated = op not in self.left_out
            for term in found.terms:
                places["branch" if gated else "refused"] |= parameter_names(
                    ops_between(found.skip, term.value), found.skip
                )
            for side in found.shortcuts if gated else ():
                places["shortcut"] |= parameter_names(ops_between(found.skip, side), found.skip)
        places["trunk"] = parameter_names(set(self.trace.ops))
        known: set[str] = set()
        for place, names in places.items():
            places[place] = names - known
            known |= names
        return {place: frozenset(names) for place, names in places.items()}

    def _removable(self, sites: Sequence[Site]) -> frozenset[str]:
        """Name the norms of which every use feeds gated branches alone, or follows a gated addition alone."""
        sums = [found for op, found in self.sums.items() if op not in self.left_out]
        inside = set().union(*(found.between for found in sums))
        outputs = {found.add.outputs[-1] for found in sums}
        before = {name for site in sites for name in site.pre_norms}
        after = {site.post_norm for site in sites if site.post_norm is not None}

        def serves(call: Call) -> bool:
            output = call.output
            feeds = output is not None and not output.escapes and all(user in inside for user in output.users)
            return (call.name in before and feeds) or (call.name in after and bool(outputs.intersection(call.inputs)))

        kept = {call.name for call in self.trace.calls if call.name in before | after and not serves(call)}
        return frozenset((before | after) - kept)

    def _leave_with_outer(self, op: Op) -> None:
        """Leave out a sum of branches where the addition that it went into is left out."""
        outer = op
        while outer not in self.sums and outer not in self.left_out:
            outer = outer.outputs[-1].users[0]
        if outer is not op and (left := self.left_out.get(outer)):
            self._leave(op, left.reason)

    def _otherwise(self, op: Op) -> LeftOut | None:
        """Look at an operation that adds, but is no addition."""
        for skip, term in linear.other_additions(op) if op in self.learning else ():
            root = next((root for root, _ in linear.sources(skip) if term.descends_from(root)), None)
            if root is None or not has_parameters(ops_between(root, term) | {op}, root, op.call):
                continue
            place, name = (op.call.number, -1), f"torch.{op.name.strip('_')}"
            if linear.averages(op):
                return LeftOut(op.call.name, f"mixed by {name}: no gate can be given to that", place=place)
            if self.filter_fn and not self.filter_fn(op.call.module, op.call.name):
                return LeftOut(op.call.name, "not wanted by filter_fn", place=place)
            return LeftOut(op.call.name, f"added by {name}: write x + f(x)", refused=True, place=place)
        return None

    def _leave(self, op: Op, reason: str, *, refused: bool = False) -> None:
        self.left_out[op] = LeftOut(op.call.name, reason, refused, self.places[op])

    # Judging one addition

    def _judge(self, op: Op) -> None:
        found = (
            self._identity(op) or self._over_sum(op) or self._beside(op) or self._of_queries(op) or self._projection(op)
        )
        if isinstance(found, str):
            self._leave(op, found)
            return
        found.leaves = [self.placer.leaf(found, term) for term in found.terms]
        if not self.long_skips and self._is_long(found):
            for inner in [add for add, other in self.sums.items() if add in found.between and _leaves(other)]:
                del self.sums[inner]
                self._leave(inner, LONG)
            self._leave(op, LONG)
        else:
            self.sums[op] = found

    def _identity(self, op: Op) -> "Sum | str | None":
        """Recognise ``x + f(x)``."""
        empty = None
        for skip, term in linear.summands(op):
            root, scaled = next(
                ((root, scaled) for root, scaled in linear.sources(skip) if term.descends_from(root)), (None, False)
            )
            if root is None:
                continue
            between = ops_between(root, term)
            if has_parameters(between, root, op.call):
                terms, operands = self._terms(op, root, term), [(op, op.inputs.index(term))]
                written = count_layers(ops_between(root, skip), root) > 0  # into a part of it, by other additions
                return Sum(op, root, scaled, terms, between, operands, beside=written)
            empty = "no parameters between skip and branch"
        return empty

    def _over_sum(self, op: Op) -> "Sum | None":
        """Recognise ``(x + f(x)) + g(x)``, which is one addition with two branches."""
        for inner, term in linear.summands(op):
            before = self.sums.get(inner.op) if inner.op is not None else None
            if before is None or inner.users != [op] or inner.escapes or before.add.call is not op.call:
                continue
            between = ops_between(before.skip, term) if term.descends_from(before.skip) else set()
            if has_parameters(between, before.skip, op.call):
                del self.sums[before.add]
                terms = [*before.terms, *self._terms(op, before.skip, term)]
                operands = [*before.operands, (op, op.inputs.index(term))]
                return Sum(op, before.skip, before.skip_scaled, terms, before.between | between, operands)
        return None

    def _beside(self, op: Op) -> "Sum | None":
        """Recognise ``x + f(x) + g(x + f(x)) + late(x)``: a branch that begins before others and joins after them."""
        for skip, term in linear.summands(op):
            root, before = skip, self.sums.get(skip.op) if skip.op is not None else None
            while before is not None and before.add.call is op.call and not term.descends_from(root):
                root, before = before.skip, self.sums.get(before.skip.op) if before.skip.op is not None else None
            between = ops_between(root, term) if term.descends_from(root) else set()
            if has_parameters(between, root, op.call):
                terms, operands = self._terms(op, root, term), [(op, op.inputs.index(term))]
                return Sum(op, root, False, terms, between, operands, beside=True)
        return None

    def _of_queries(self, op: Op) -> "Sum | None":
        """Recognise ``q + f(q, x)`` with learned queries, which the sum repeats for every input of a batch."""
        for skip, term in linear.queries(op):
            between = ops_between(skip, term) if term.descends_from(skip) else set()
            if has_parameters(between, skip, op.call):
                found = Sum(op, skip, False, [Term(term, op)], between, [(op, op.inputs.index(term))])
                if isinstance(self.placer.leaf(found, found.terms[0]), Call):  # else a bias of attention
                    return found
        return None

    def _terms(self, reader: Op, skip: Value, term: Value) -> list[Term]:
        """Split a branch that is itself a sum of branches."""
        for value, by in linear.path(term, reader, skip, scales=False):
            last = value.op
            if last is None or last.call is not reader.call or value.users != [by] or value.escapes:
                break
            stacked = last.inputs[0].op if last.name == "sum" else None
            if stacked is not None and stacked.name == "stack":
                last = stacked
            elif not linear.is_addition(last):
                continue
            if not all(part.descends_from(skip) for part in last.inputs):
                break
            self.left_out.pop(last, None)
            self.sums.pop(last, None)
            return [each for part in last.inputs for each in self._terms(last, skip, part)]
        return [Term(term, reader)]

    def _projection(self, op: Op) -> "Sum | str":
        """Recognise ``s(x) + f(x)`` with ``s`` affine and of fewer layers."""
        ties = False
        for skip, term in linear.summands(op):
            root = next((root for root in linear.affine_sources(skip) if term.descends_from(root)), None)
            if root is None:
                continue
            between = ops_between(root, term)
            short, long = count_layers(ops_between(root, skip), root), count_layers(between, root)
            if short < long:
                return Sum(op, root, False, self._terms(op, root, term), between, [(op, op.inputs.index(term))])
            ties = ties or short == long > 0
        if ties:
            return TIES
        if not all(side.data for side in op.inputs[:2]):
            return "one side does not depend on the input"
        return "neither side is a skip of the other"

    def _is_long(self, found: Sum) -> bool:
        """Return whether a branch runs through another resolution only, as the inside of a U-Net does.

        Where every change is undone in a module of its own, and no other residual addition lies between, a layer works
        at another resolution, as do attention on a pooled image and activations without aliasing; unless it turns out
        to be the innermost of several.
        """
        if not _leaves(found):
            return False
        changes = [op.call for op in found.between if linear.changes_resolution(op)]
        layers = (call for call in self.trace.calls if call is not found.add.call and call.within(found.add.call))
        kept = [call for call in layers if call.keeps_shape]
        undone = all(any(each.within(call) for call in kept) for each in changes)
        return not (undone and found.between.isdisjoint(self.sums))


def _leaves(found: Sum) -> bool:
    """Return whether a branch runs through another resolution only."""
    return any(not reaches(found.skip, term.value) for term in found.terms)


def _leading_out(traced: Trace, *, learning: bool = False) -> set[Op]:
    """Return the operations that the model's outputs depend on, otherwise than through whole numbers.

    Where it returns nothing but whole numbers, those that they depend on. With ``learning`` only those that gradients
    come back to.
    """
    alike = all(value.whole for value in traced.values if value.escapes)
    found: set[Op] = set()
    for op in reversed(traced.ops):
        parts = [value for value in op.outputs if alike or not value.whole]
        cut = learning and op.cuts
        if not cut and any(value.escapes or not found.isdisjoint(value.users) for value in parts):
            found.add(op)
    return found


def _is_read(call: Call, leading: set[Op]) -> bool:
    """Return whether the model's outputs depend on what a call returned; what is not read needs no care."""
    returned = call.others if call.output is None else (call.output, *call.others)
    return not returned or any(value.escapes or not leading.isdisjoint(value.users) for value in returned)


def _is_own_gate(module: nn.Module) -> bool:
    """Tell whether a module has a gate that its author put there."""
    return isinstance(module, AnyGate) and not isinstance(module, Changed)
