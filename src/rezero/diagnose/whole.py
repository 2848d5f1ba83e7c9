"""Numbers that must be whole."""

import operator
from collections.abc import Iterable
from typing import Any

from rezero.errors import UsageError

__all__ = ["whole", "whole_numbers"]


def whole(name: str, value: Any) -> int:
    """Return a whole number, also one of numpy, as an int.

    Args:
        name: What it is called, for errors.
        value: The number.

    Returns:
        The number.

    Raises:
        TypeError: If it is not whole, or a truth value.
        UsageError: If it does not fit into 64 bits.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number: got {value!r}")
    number = operator.index(value)
    if not -(2**63) <= number < 2**63:
        raise UsageError(f"{name} must fit into 64 bits: got {number}")
    return number


def whole_numbers(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Return whole numbers.

    Args:
        name: What one of them is called, for errors.
        values: The numbers.

    Returns:
        The numbers.

    Raises:
        TypeError: If there are no several, or one is not whole.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"expected several numbers, each a {name}, as (8, 16, 32): got {values!r}")
    return tuple(whole(f"each {name}", value) for value in values)
