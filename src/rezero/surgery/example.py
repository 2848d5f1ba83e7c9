"""The example input: what a user gives to run a model on."""

from collections.abc import Mapping
from typing import Any

__all__ = ["advice", "as_example", "read_example"]


def as_example(args: Any, kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read example arguments as they are given.

    Args:
        args: A tuple or a list of arguments, or the only argument itself: a tensor, or a named tuple.
        kwargs: Arguments by name.

    Returns:
        Arguments in order, and by name.

    Raises:
        TypeError: If ``kwargs`` holds no arguments by name.
    """
    if not isinstance(kwargs, Mapping | None):
        raise TypeError(f"kwargs must be a dictionary of arguments by their names: got {type(kwargs).__name__}")
    several = isinstance(args, tuple | list) and not hasattr(args, "_fields")
    return tuple(args) if several else (args,), dict(kwargs or {})


def read_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read an example that is given as one thing.

    Args:
        example: A tensor, a tuple of arguments, or a mapping of arguments by name.

    Returns:
        Arguments in order, and by name.
    """
    return as_example((), example) if isinstance(example, Mapping) else as_example(example, None)


def advice(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Say what may be wrong with an example that a model can't be run on.

    Args:
        args: Example arguments.
        kwargs: Example keyword arguments.

    Returns:
        What to do, to be put after the reason; empty if nothing is odd.
    """
    if not args and not kwargs:
        return "; no example was given: pass the model's input after the model, or by name as kwargs={...}"
    if any(isinstance(each, Mapping) for each in args):
        return "; pass a dictionary of arguments as kwargs="
    return ""
