"""Where the gate of a branch goes: the innermost module that returns it, and that nothing else reads."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from rezero.surgery import linear
from rezero.surgery.sites import Repeated
from rezero.surgery.sums import Sum, Term
from rezero.surgery.traced import Call, Op, Value

__all__ = ["NO_MODULE", "USED_ELSEWHERE", "Placer"]

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
            for calls in _returning(found, term, way):
                if calls is None:
                    trouble = USED_ELSEWHERE
                    break
                once = next((call for call in calls if way.tied or self.uses[call.module] == 1), None)
                deepest = once or deepest
                if once is None and (not way.hands_on or trouble == NO_MODULE):
                    trouble = f"{calls[-1].name} is used {self.uses[calls[-1].module]} times"
            if deepest is not None:
                return deepest
        return trouble

    def check_ties(self, sums: Collection[Sum]) -> None:
        """Refuse a module that is used several times, unless each use is a branch that is gated.

        A module such as a shared drop-path, which ends some branches that no other ends, gets the gate of all that it
        ends.
        """
        gathered: set[nn.Module] = set()
        while True:
            gated: dict[nn.Module, list[Sum]] = {}
            for found in sums:
                for call in [] if found.trouble else found.gated:
                    gated.setdefault(call.module, []).append(found)
            partly = {module: len(sums) for module, sums in gated.items() if len(sums) < self.uses[module]}
            if not partly:
                return
            for module in partly.keys() - gathered:
                gathered.add(module)
                if self._gather(module, sums):
                    del partly[module]
            for found in {found for module in partly for found in gated[module]}:
                found.leaves = [self._untied(leaf, partly) for leaf in found.leaves]

    def _gather(self, module: nn.Module, sums: Collection[Sum]) -> bool:
        """Give all branches that a module ends to it, if it ends one at each of its uses."""
        ends = ((found, place, way) for found in sums for place in range(len(found.terms)) for way in WAYS[3:])
        moved = {
            call: (found, place)
            for found, place, way in ends
            for calls in _returning(found, found.terms[place], way)
            for call in calls or ()
            if call.module is module
        }
        if len(moved) < self.uses[module]:
            return False
        for call, (found, place) in moved.items():
            found.leaves[place] = call
        return True

    def _untied(self, leaf: Call | str, partly: Mapping[nn.Module, int]) -> Call | str:
        if isinstance(leaf, str) or leaf.module not in partly:
            return leaf
        return f"{leaf.name} is used {self.uses[leaf.module]} times, {partly[leaf.module]} of them as a branch"


def _returning(found: Sum, term: Term, way: _Way) -> Iterator[list[Call] | None]:
    """Walk back from a branch; yield the calls that return all of it, the innermost first; None where it is split."""
    came: Value | None = None
    for value, reader in linear.path(term.value, term.reader, found.skip, scales=way.scales):
        if not value.descends_from(found.skip):
            return
        if not _is_whole(value, reader, came, found.add.outputs[-1]):
            yield None
            return
        came = value
        returned = (call for call in value.returned if not found.add.call.within(call))
        if calls := [call for call in returned if (value in call.inputs) == way.hands_on]:
            yield calls


def _is_whole(value: Value, reader: Op, came: Value | None, total: Value) -> bool:
    """Return whether nothing of a value goes anywhere but through a reader, on to where it is added or joined."""
    others = [user for user in value.users if user is not reader]
    pieces = [piece for piece in reader.outputs if piece is not came] if came is not None else []
    users = [*others, *(user for piece in pieces for user in piece.users)]
    escapes = value.escapes or any(piece.escapes for piece in pieces)
    return not escapes and all(linear.rejoins(user, total) for user in users)
