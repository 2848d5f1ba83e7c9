"""What is found in a model: its residual additions, and the other additions that were looked at."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal, overload

from torch import nn

__all__ = ["Branch", "Kind", "LeftOut", "Repeated", "Residuals", "Site", "counted"]

Kind = Literal["identity", "projection", "parallel"]
Repeated = Literal["refuse", "tie"]

_LAYER = "\0"  # in place of a layer's name
_NUMBER = re.compile(r"\b\d+\b")


@dataclass(frozen=True)
class Branch:
    """A residual branch and the module that a gate goes to.

    Attributes:
        leaf: Qualified name of the innermost module whose returned value, or its first item, is the branch.
        leaves: Every module that takes part in the branch and has parameters of its own, in the order of use.
        shape: Sizes of what the leaf returned.
        scale: Parameters that the branch is multiplied by on its way to the addition: those of a LayerScale, but not
            the gain of a norm.
    """

    leaf: str
    leaves: tuple[str, ...]
    shape: tuple[int, ...] = ()
    scale: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A residual addition.

    Attributes:
        name: Qualified name of the module whose code adds; empty for the model itself.
        branches: What is added to the skip, one entry for each gate.
        pre_norms: Norms that read the skip for the branches.
        post_norm: The norm that alone reads the sum, if there is one.
        activation_after: The activation that alone reads the sum: a module's name, or a function's in brackets.
        kind: ``identity`` if the skip has no parameters, ``projection`` if it has, ``parallel`` for several branches.
        added: Where each branch is added: the owner's call, the addition in it, and the operand; all counted from 0.
    """

    name: str
    branches: tuple[Branch, ...]
    pre_norms: tuple[str, ...]
    post_norm: str | None
    activation_after: str | None
    kind: Kind
    added: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """An addition that gets no gate.

    Attributes:
        name: Qualified name of the module whose code adds.
        reason: Why.
        refused: Whether it is a residual addition that no gate can be given to.
        place: The owner's call, and the addition in it, both counted from 0.
    """

    name: str
    reason: str
    refused: bool = False
    place: tuple[int, int] = (0, 0)


class Residuals(Sequence[Site]):
    """The residual additions of a model, in the order in which they happen.

    Args:
        sites: Those that can be gated.
        left_out: The others that were looked at.
        removable: Norms before and after branches that feed nothing else.
        calls: How often each module was called.
        parameters: Names of the model's parameters by place: ``branch`` (inside a gated one), ``shortcut``, ``trunk``
            (stem, transitions, head), ``refused`` (inside a residual branch that no gate can be given to).
        readers: Names of the modules whose code reads each parameter.
        filter_fn: Which branches were wanted.
        long_skips: Whether long skips were.
        repeated: What becomes of modules that are used several times.
        gated: Names of the modules that `rezero.convert_` has gated already.
        own: Additions whose branches their author has gated.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        left_out: Sequence[LeftOut] = (),
        removable: frozenset[str] = frozenset(),
        calls: Mapping[str, int] | None = None,
        parameters: Mapping[str, frozenset[str]] | None = None,
        readers: Mapping[str, frozenset[str]] | None = None,
        filter_fn: Callable[[nn.Module, str], bool] | None = None,
        long_skips: bool = False,
        repeated: Repeated = "refuse",
        gated: Sequence[str] = (),
        own: Sequence[Site] = (),
    ) -> None:
        self._sites = tuple(sites)
        self.left_out = tuple(left_out)
        self.removable = removable
        self.calls = dict(calls or {})
        self.parameters = dict(parameters or {})
        self.readers = dict(readers or {})
        self.filter_fn = filter_fn
        self.long_skips = long_skips
        self.repeated: Repeated = repeated
        self.gated = tuple(gated)
        self.own = tuple(own)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, index: int | slice) -> Site | tuple[Site, ...]:
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches, in order."""
        return tuple(branch for site in self for branch in site.branches)

    def to_json(self) -> dict[str, Any]:
        """Return all that was found as what JSON can hold."""
        return {
            "sites": [asdict(site) for site in self],
            "left_out": [asdict(each) for each in self.left_out],
            "removable_norms": sorted(self.removable),
            "gated": list(self.gated),
            "parameters": {place: sorted(names) for place, names in self.parameters.items()},
        }

    def __repr__(self) -> str:
        additions, branches = counted(len(self), "residual addition"), counted(len(self.branches), "branch")
        return f"<{additions}, {branches}, {len(self.left_out)} left out>"

    def __str__(self) -> str:
        return self.table()

    def table(self, *, brief: bool = False) -> str:
        """Return what is printed.

        Args:
            brief: Whether layers in a row that are alike share their rows, as ``h.0-11``.

        Returns:
            The table, and below it what is left out, and what has a gate already.
        """
        heads = ("where", "kind", "gate at", "scaled by", "norms before", "norm after", "activation after")
        rows = [
            (
                site.name or "(the model)",
                site.kind,
                ", ".join(branch.leaf or "(the model)" for branch in site.branches),
                ", ".join(name for branch in site.branches for name in branch.scale),
                ", ".join(site.pre_norms),
                site.post_norm or "",
                site.activation_after or "",
            )
            for site in self
        ]
        lines = _table([heads, *(_merged(rows) if brief else rows)]) if rows else ["no residual additions"]
        if self.left_out:
            counts: dict[tuple[str, bool], list[str]] = {}
            for each in self.left_out:
                counts.setdefault((each.reason, each.refused), []).append(each.name or "the model")
            lines += ["", "left out:"]
            lines += [
                f"  {len(names)} {'refused: ' if refused else ''}{reason} ({_some(names, brief=brief)})"
                for (reason, refused), names in counts.items()
            ]
        if self.gated:
            lines += ["", f"gated already: {_some(self.gated, brief=brief)}"]
        return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """Put a number before a noun.

    Args:
        number: How many.
        noun: Of what, in the singular.

    Returns:
        Such as ``1 branch`` or ``2 branches``.
    """
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def _merged(rows: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
    """Write the rows of layers that differ in one number alone once: first the innermost layers, then those around."""
    deepest = max(len(_NUMBER.findall(row[0])) for row in rows)
    for depth in reversed(range(deepest)):
        rows = _merged_at(depth, rows)
    return rows


def _merged_at(depth: int, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    runs: list[tuple[str, int, int, list[tuple[str, ...]]]] = []
    for (prefix, number), layer in groupby(rows, lambda row: _numbered(row[0], depth)):
        alike = [tuple(re.sub(rf"(?<!\S){re.escape(prefix)}{number}\b", _LAYER, cell) for cell in row) for row in layer]
        before = runs[-1] if runs else None
        if before and (before[0], before[2] + 1, before[3]) == (prefix, number, alike):
            runs[-1] = (prefix, before[1], number, alike)
        else:
            runs.append((prefix, number, number, alike))
    names = [f"{prefix}{first}" + (f"-{last}" if last > first else "") for prefix, first, last, _ in runs]
    return [
        tuple(cell.replace(_LAYER, name) for cell in row)
        for name, (*_, alike) in zip(names, runs, strict=True)
        for row in alike
    ]


def _numbered(name: str, depth: int) -> tuple[str, int]:
    """Split the name of a layer, up to the number at a depth; -1 if it has none there."""
    found = list(_NUMBER.finditer(name))[depth : depth + 1]
    return (name[: found[0].start()], int(found[0][0])) if found else (name, -1)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    used = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in used]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*used, strict=True)
    ]


def _some(names: Sequence[str], *, brief: bool) -> str:
    different = list(dict.fromkeys(names))
    if brief:
        different = [name for (name,) in _merged([(name,) for name in different])]
    return ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
