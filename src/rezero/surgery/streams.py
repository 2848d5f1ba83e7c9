"""Additions that look residual, but add to a stream what came back from another: nothing there is to be gated."""

from collections.abc import Mapping

from rezero.surgery import linear
from rezero.surgery.place import NO_MODULE, USED_ELSEWHERE
from rezero.surgery.sums import Sum
from rezero.surgery.traced import Op, Value

__all__ = ["replaces", "why_no_branch"]

COORDINATES = "a part of the skip moves by as much as another part of it says, as boxes do: no branch"
STREAM = "both sides are streams of their own: what is added is no branch"


def replaces(found: Sum) -> bool:
    """Return whether an addition makes something else of its skip, as a quantizer and its remainder do.

    Args:
        found: An addition.

    Returns:
        Whether nothing of the skip, or only a remainder, is left.
    """
    if linear.is_subtraction(found.add):
        return found.trouble == USED_ELSEWHERE
    return any(linear.cancels(skip, term) for skip, term in linear.summands(found.add))


def why_no_branch(found: Sum, sums: Mapping[Op, Sum]) -> str | None:
    """Say why an addition whose other side is used elsewhere, too, is no residual one, if it is none.

    Args:
        found: The addition.
        sums: All additions that look residual.

    Returns:
        The reason, if its other side is a stream that existed beside the skip: positions that are added again in every
        layer, trends that are collected, what a residual quantizer made of the remainders.
    """
    if found.trouble in (NO_MODULE, USED_ELSEWHERE) and all(_moves(term.value, found.skip) for term in found.terms):
        return COORDINATES
    if found.trouble != USED_ELSEWHERE:
        return None
    inner = [sums[op].skip for op in found.between & sums.keys()]
    joins = any(skip is not found.skip and not skip.descends_from(found.skip) for skip in inner)
    older = any(_goes_past(term.value, found.skip, sums) for term in found.terms)
    return STREAM if joins or older or _is_of_remainder(found) else None


def _moves(value: Value, skip: Value) -> bool:
    """Return whether a value is smaller than the skip, and multiplied by a part of the skip itself."""
    if value.op is None or not linear.is_product(value.op) or linear.size(value) >= linear.size(skip):
        return False
    return any(skip in {root for root, _ in linear.sources(factor)} for factor in value.op.inputs)


def _goes_past(value: Value, root: Value, sums: Mapping[Op, Sum]) -> bool:
    """Return whether a stream, followed back along its skips and through what is affine, comes past a value."""
    while value is not root:
        if not value.descends_from(root):
            return True
        joined = sums.get(value.op) if value.op is not None else None
        before = joined.skip if joined is not None else next(linear.affine_sources(value), None)
        if before is None:
            return False
        value = before
    return False


def _is_of_remainder(found: Sum) -> bool:
    """Return whether a branch knows of its skip only what that left of another value."""
    readers = [op for op in found.skip.users if op in found.between]
    return bool(readers) and all(linear.is_subtraction(op) and op.inputs[-1] is found.skip for op in readers)
