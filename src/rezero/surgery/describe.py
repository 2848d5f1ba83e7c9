"""Say of a residual addition what a user wants to know: its modules, its norms, what follows it."""

from collections.abc import Collection, Mapping

from rezero.surgery import linear
from rezero.surgery.sites import Branch, Kind, Site
from rezero.surgery.sums import Sum, Term, count_layers, ops_between, weights
from rezero.surgery.traced import Call, Op, Trace, Value

__all__ = ["Describer"]


class Describer:
    """Describes the additions of one forward pass.

    Args:
        traced: The pass.
        places: The additions; which call of their owner they happen in, and which of its additions they are.
        skips: What is added to, anywhere.
    """

    def __init__(self, traced: Trace, places: Mapping[Op, tuple[int, int]], skips: Collection[Value]) -> None:
        self.ops = traced.ops
        self.norms = [
            call
            for call in traced.calls
            if call.inputs
            and linear.is_norm(call.module)
            and not any(
                map(linear.is_activation, traced.ops[call.first : call.last])
            )  # it does more, as BatchNormAct2d
        ]
        self.places = places
        self.skips = frozenset(skips)

    def site(self, found: Sum) -> Site:
        """Describe an addition that can be gated."""
        total = found.add.outputs[-1]
        norms = [call for call in self.norms if self._is_pre_norm(call, found)]
        after = [call for call in self.norms if total in call.inputs]
        post = next((call for call in after if self._is_post_norm(call, found.add, alone=not norms)), None)
        projected = any(count_layers(ops_between(found.skip, side), found.skip) for side in found.shortcuts)
        kind: Kind = "parallel" if len(found.terms) > 1 else "projection" if projected else "identity"
        return Site(
            found.add.call.name,
            tuple(_branch(found, term, call) for term, call in zip(found.terms, found.gated, strict=True)),
            tuple(dict.fromkeys(call.name for call in norms)),
            post.name if post else None,
            _activation(found.add),
            kind,
            tuple((*self.places[add], operand) for add, operand in found.operands),
        )

    def _is_pre_norm(self, norm: Call, found: Sum) -> bool:
        """Return whether a norm reads the skip for a branch."""
        reads = any(root is found.skip for root, _ in linear.sources(norm.inputs[0]))
        return reads and any(op in found.between for op in self.ops[norm.first : norm.last])

    def _is_post_norm(self, norm: Call, op: Op, *, alone: bool) -> bool:
        """Return whether a norm after a sum belongs to it; the final norm of a pre-norm network does not."""
        total = op.outputs[-1]
        if total.escapes or any(user not in self.ops[norm.first : norm.last] for user in total.users):
            return False
        return norm.output in self.skips or (alone and norm.parent is op.call)


def _branch(found: Sum, term: Term, leaf: Call) -> Branch:
    ops = sorted(ops_between(found.skip, term.value), key=lambda op: op.index)
    calls = [op.call for op in ops if op.call is not found.add.call]
    used = [call.name for call in calls if next(call.module.parameters(recurse=False), None) is not None]
    scales = [
        weight.parameter
        for _, reader in linear.path(term.value, term.reader, found.skip, scales=True)
        for weight in weights(reader, found.skip)
        if weight.parameter and reader is not term.reader and not linear.is_norm(reader.call.module)
    ]
    shape = leaf.output.shape if leaf.output is not None else ()
    return Branch(leaf.name, tuple(dict.fromkeys(used)), shape, tuple(dict.fromkeys(scales)))


def _activation(op: Op) -> str | None:
    users = op.outputs[-1].users
    if len(users) != 1 or op.outputs[-1].escapes or not linear.is_activation(users[0]):
        return None
    call = users[0].call
    return call.name if call is not op.call else f"({users[0].name})"
