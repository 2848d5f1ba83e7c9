"""The layers of a model: its longest run of equal blocks, or those that a pattern names."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import groupby
from operator import index
from typing import Any

from torch import nn

from rezero.errors import UsageError, near
from rezero.surgery.changed import Changed
from rezero.surgery.linear import is_norm

__all__ = ["choose_sites", "find_layers", "layer_lists", "width_of"]


def choose_sites(model: nn.Module, at: str | Sequence[str] | None, every: int) -> list[str]:
    """Name the modules at which something is put in.

    Args:
        model: The model.
        at: A pattern such as ``"transformer.h.*"``, in which ``*`` stands for one part of a name, from point to point;
            or several patterns; None for the model's layers, as `find_layers` finds them.
        every: Each how many of them: 2 takes the second, the fourth, and so on.

    Returns:
        Their qualified names, in the order of the model.

    Raises:
        UsageError: If there are none, or it is not clear which.
    """
    patterns = [at] if isinstance(at, str) else at
    if patterns is not None and not (
        isinstance(patterns, Sequence) and patterns and all(isinstance(each, str) and each for each in patterns)
    ):
        raise UsageError(f"at must be a pattern such as 'layers.*', or several: got {at!r}")
    try:
        step = 0 if isinstance(every, bool) else index(every)
    except TypeError:
        step = 0
    if step < 1:
        raise UsageError(f"every must be a whole number from 1: got {every!r}")
    found = find_layers(model) if patterns is None else _matching(model, patterns)
    if len(found) < step:
        raise UsageError(f"every must be at most {len(found)}, the number of layers found: got {every}")
    return found[step - 1 :: step]


def find_layers(model: nn.Module) -> list[str]:
    """Name a model's layers: the longest run of equal blocks in any of its lists.

    Args:
        model: The model.

    Returns:
        Their qualified names.

    Raises:
        UsageError: If no list has two equal blocks, or two lists have runs of the same length.
    """
    lists = layer_lists(model)
    if not lists:
        raise UsageError(
            "found no list of layers: no nn.ModuleList or nn.Sequential has two equal blocks in a row; name the places "
            'with at=, such as at="encoder.layers.*"'
        )
    longest = max(map(len, lists.values()))
    best = [name for name, run in lists.items() if len(run) == longest]
    if len(best) > 1:
        shown = ", ".join(f"{_pattern(name)!r} ({longest} {type(lists[name][0][1]).__name__})" for name in best)
        raise UsageError(f"several lists have {longest} equal blocks, name one with at=: {shown}")
    return [name for name, _ in lists[best[0]]]


def layer_lists(model: nn.Module) -> dict[str, list[tuple[str, nn.Module]]]:
    """Find the lists of equal blocks, leaving out those inside a block, such as the experts of a layer.

    Args:
        model: The model.

    Returns:
        Name of the list to its longest run of at least two equal blocks, each with its name.
    """
    found: dict[str, list[tuple[str, nn.Module]]] = {}
    blocks: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(name.startswith(each) for each in blocks):
            continue
        run = max(_runs(name, module), key=len, default=[])
        if len(run) > 1:
            found[name] = run
            blocks += [f"{each}." for each, _ in run]
    return found


def width_of(layer: nn.Module) -> int | None:
    """Read a layer's width from its outermost norms; None if it has none, or they differ.

    Args:
        layer: A layer.

    Returns:
        The number of features of what goes through it.
    """
    depths: dict[int, set[int]] = {}
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if is_norm(module) and isinstance(weight, nn.Parameter) and weight.ndim == 1:
            depths.setdefault(name.count("."), set()).add(len(weight))
    outermost = depths[min(depths)] if depths else set()
    return outermost.pop() if len(outermost) == 1 else None


def _runs(name: str, blocks: Any) -> Iterator[list[tuple[str, nn.Module]]]:
    children = [(f"{name}.{key}".lstrip("."), child) for key, child in blocks.named_children()]
    first: list[nn.Module] = []

    def place(child: tuple[str, nn.Module]) -> int:
        if not first or not _alike(first[-1], child[1]):
            first.append(child[1])
        return len(first)

    for _, run in groupby(children, place):
        yield list(run)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two blocks are of one class and differ in no shape that both have; some may have more than others.

    The first block of a T5 holds the position biases of all, and some models begin with a layer without experts.
    """
    if _class_of(one) is not _class_of(other) or not any(True for _ in one.parameters()):
        return False
    shapes = {name: parameter.shape for name, parameter in one.named_parameters()}
    return all(shapes.get(name, each.shape) == each.shape for name, each in other.named_parameters())


def _class_of(block: nn.Module) -> type[nn.Module]:
    return block.original_class if isinstance(block, Changed) else type(block)


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            lists = "".join(f", {_pattern(each)!r}" for each in layer_lists(model))
            there = f"; its lists of layers are{lists.removeprefix(',')}" if lists else ""
            if deeper := next((name for name in names if fnmatchcase(name, pattern)), None):
                meant = _starred(deeper, pattern)
                raise UsageError(f"at={pattern!r} names no module: * stands for one part of a name; write {meant!r}")
            raise UsageError(f"at={pattern!r} names no module of the model{near(pattern, names, count=3)}{there}")
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _starred(name: str, pattern: str) -> str:
    """Return a pattern that names a module, and its like in other layers, as one with too few parts was meant to."""
    tail = pattern.split(".")[1:]
    parts = name.split(".")
    parts = [*parts[: len(parts) - len(tail)], *tail]
    return ".".join("*" if part.isdecimal() else part for part in parts)


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _pattern(name: str) -> str:
    return f"{name}.*".lstrip(".")
