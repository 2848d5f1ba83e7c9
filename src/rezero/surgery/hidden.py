"""The hidden states in what goes into a layer, and in what comes out."""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from rezero.errors import UsageError

__all__ = ["first_tensor", "input_argument", "with_first"]


def first_tensor(output: Any) -> Tensor:
    """Return the hidden states in what a layer returns: the tensor itself, or the first one of several.

    Args:
        output: A tensor, or a tuple, list, mapping or dataclass.

    Returns:
        The tensor.

    Raises:
        UsageError: If there is none in the first place.
    """
    first = output
    if isinstance(output, tuple | list) and output:
        first = output[0]
    elif is_dataclass(output) and fields(output):
        first = getattr(output, fields(output)[0].name)
    elif isinstance(output, dict) and output:
        first = next(iter(output.values()))
    if not isinstance(first, Tensor):
        raise UsageError(
            f"expected a layer that returns a tensor, or one as its first item: got {type(output).__name__}; graft at "
            "modules inside it with at="
        )
    return first


def with_first(output: Any, y: Tensor) -> Any:
    """Return what a layer returned, with other hidden states.

    Args:
        output: What it returned.
        y: The hidden states.

    Returns:
        The same container.
    """
    if isinstance(output, Tensor):
        return y
    if is_dataclass(output):  # also the outputs of transformers, which are mappings too
        return replace(output, **{next(each.name for each in fields(output)): y})  # type: ignore[type-var]
    if isinstance(output, dict):
        again = copy(output)
        again[next(iter(output))] = y
        return again
    rest = (y, *output[1:])
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def input_argument(forward: Callable[..., Any]) -> str | None:
    """Return the name of the argument that holds a layer's hidden states.

    Args:
        forward: The layer's.

    Returns:
        The first one; None if none is taken by its place.
    """
    names = (each for each in inspect.signature(forward).parameters.values() if each.name != "self")
    first = next(names, None)
    return None if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD) else first.name
