"""Where the gate of a branch goes: the innermost module that returns it, and that nothing else reads."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import nn

from rezero.surgery import linear
from rezero.surgery.sites import Repeated
from rezero.surgery.sums import Sum, Term
from rezero.surgery.trace import Call, Op, Value

__all__ = ["USED_ELSEWHERE", "Placer"]

NO_MODULE, USED_ELSEWHERE = "no module returns the branch", "the branch is used elsewhere too"


class _Way(NamedTuple):
    """What a module that gets a gate may be.

    Attributes:
        scales: Its output is multiplied by other tensors before it is added.
        hands_on: It returns its own input, as a dropout does in evaluation.
        tied: It is used several times: the gate is tied over its uses, as its parameters are.
    """

    scales: bool = False
    hands_on: bool = False
    tied: bool = False


WAYS = tuple(
    _Way(scales, hands_on, tied)
    for tied in (False, True)
    for scales, hands_on in ((False, False), (True, False), (False, True))
)  # the best first


class Placer:
    """Finds the modules that gates go to.

    Args:
        calls: All calls of modules in the pass.
        repeated: What becomes of a module that is used several times.
    """

    def __init__(self, calls: Collection[Call], repeated: Repeated) -> None:
        self.uses = Counter(call.module for call in calls)
        self.repeated = repeated

    def leaf(self, found: Sum, term: Term) -> Call | str:
        """Return the call of the module that a gate goes to, or why there is none."""
        trouble = NO_MODULE
        for way in WAYS if self.repeated == "tie" else WAYS[:3]:
            deepest: Call | None = None
            came: Value | None = None
            for value, reader in linear.path(term.value, term.reader, found.skip, scales=way.scales):
                if not value.descends_from(found.skip):
                    break
                if not _is_whole(value, reader, came, found.add.outputs[-1]):
                    trouble = USED_ELSEWHERE
                    break
                came = value
                for call in value.returned:
                    if found.add.call.within(call) or (value in call.inputs) != way.hands_on:
                        continue
                    if way.tied or self.uses[call.module] == 1:
                        deepest = call
                        break
                    if not way.hands_on or trouble == NO_MODULE:
                        trouble = f"{call.name} is used {self.uses[call.module]} times"
            if deepest is not None:
                return deepest
        return trouble

    def check_ties(self, sums: Collection[Sum]) -> None:
        """Refuse a module that is used several times, unless each use is a branch that is gated."""
        while True:
            gated: dict[nn.Module, list[Sum]] = {}
            for found in sums:
                for call in [] if found.trouble else found.gated:
                    gated.setdefault(call.module, []).append(found)
            partly = {module: len(sums) for module, sums in gated.items() if len(sums) < self.uses[module]}
            if not partly:
                return
            for found in {found for module in partly for found in gated[module]}:
                found.leaves = [self._untied(leaf, partly) for leaf in found.leaves]

    def _untied(self, leaf: Call | str, partly: Mapping[nn.Module, int]) -> Call | str:
        if isinstance(leaf, str) or leaf.module not in partly:
            return leaf
        return f"{leaf.name} is used {self.uses[leaf.module]} times, {partly[leaf.module]} of them as a branch"


def _is_whole(value: Value, reader: Op, came: Value | None, total: Value) -> bool:
    """Return whether nothing of a value goes anywhere but through a reader, on to where it is added or joined."""
    others = [user for user in value.users if user is not reader]
    pieces = [piece for piece in reader.outputs if piece is not came] if came is not None else []
    users = [*others, *(user for piece in pieces for user in piece.users)]
    escapes = value.escapes or any(piece.escapes for piece in pieces)
    return not escapes and all(linear.rejoins(user, total) for user in users)
