"""Remove the branches of a converted model that add next to nothing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.apply import check_forwards, check_module, check_unwrapped, drop_, silence_, ungate_
from rezero.surgery.closed import Closed, cacheless
from rezero.surgery.contribution import Batch, measure
from rezero.surgery.dead import Dead, choose_silent
from rezero.surgery.example import as_example
from rezero.surgery.fit import check_intact
from rezero.surgery.recipe import GateRecipe, Recipe, Undo
from rezero.surgery.saved import recall, remember
from rezero.surgery.sites import counted
from rezero.surgery.trace import trace
from rezero.surgery.traced import Trace
from rezero.surgery.watch import read_elsewhere, tensors_of
from rezero.surgery.zeros import Zeros, observe_zeros

__all__ = ["Pruned", "prune_"]


@dataclass(frozen=True)
class Pruned:
    """What `prune_` removed.

    Attributes:
        model: The smaller model.
        removed: The branches that are gone, by the module that had the gate: those that add too little, and those
            inside them.
        silent: The modules that return zeros now instead of computing.
        kept: Parameters and buffers of silent modules that stay, because other code reads them.
        parameters: How many parameters the model has lost.
        contributions: What was measured: branch to ``||scale * f(x)|| / ||x||``, of all gated branches.
        change: How much the output has changed: the root mean square of the difference, relative to that of the output.
        left: Branches that add too little and stay, with the reason.
        running: Modules that serve removed branches alone and are computed all the same, with the reason.
    """

    model: nn.Module
    removed: tuple[str, ...]
    silent: tuple[str, ...]
    kept: tuple[str, ...]
    parameters: int
    contributions: Mapping[str, float]
    change: float
    left: Mapping[str, str]
    running: Mapping[str, str]
    _recipe: Recipe = field(repr=False)
    _undo: Undo = field(repr=False)

    def undo(self) -> None:
        """Put the removed branches back, with the very same parameters. Once is enough.

        Raises:
            UsageError: If the model has been folded, pruned, compiled or distributed since, or if a module that was
                converted has been replaced or parametrized.
        """
        if self._undo.steps and recall(self.model) != self._recipe:
            raise UsageError("the model has been folded or pruned since: undo what came last first; folding stays")
        check_unwrapped(self.model)
        check_intact(self.model, recall(self.model))
        self._undo()

    def __str__(self) -> str:
        lines = [
            f"{len(self.removed)} of {counted(len(self.contributions), 'branch')} removed, with "
            f"{counted(self.parameters, 'parameter')}; the output's relative change is {self.change:.2g}"
        ]
        lines += [f"  {name}: {self.contributions[name]:.2g}" for name in self.removed if name in self.contributions]
        lines += [f"  {name} stays: {reason}" for name, reason in self.left.items()]
        lines += [f"  {name} stays: other code reads it" for name in self.kept]
        lines += [f"  {name} is still computed: {reason}" for name, reason in self.running.items()]
        return "\n".join(lines)


def prune_(
    model: nn.Module,
    threshold: float,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    batches: Iterable[Any] | None = None,
) -> Pruned:
    r"""Remove the branches of a converted model that add next to nothing to their skip.

    The contribution of a branch is ``||alpha * f(x)|| / ||x||`` where the two are added, a root mean square over the
    given data in evaluation. A branch whose contribution is not above the threshold goes, and what computes nothing
    else goes with it, parameters and all: the largest modules that serve such branches alone return zeros from now on.
    The outputs are those that the model has with these gates at 0, bit for bit; this is checked on the data, or all is
    undone.

    A module whose forward takes anything but tensors and plain values, such as the attention of a language model, may
    change it: its cache must be filled. So it runs on, and the layers inside it are removed. What is kept so is named.

    The optimizer knows the removed parameters still: make a new one.

    Args:
        model: A model that `convert_` gated, and that has been trained since.
        threshold: Contribution (dimensionless) up to which branches go. 0 removes those that add nothing at all.
        args: Example arguments of its ``forward``: a tensor, or a tuple.
        kwargs: Example keyword arguments.
        batches: Instead of one example, any number: tensors, tuples of arguments or dictionaries of keyword arguments.
            They are held in memory.

    Returns:
        What was removed, what was measured, and ``undo()``. Branches with one gate between them go together or not.

    Raises:
        TypeError: If ``model`` is not a module, or ``kwargs`` no dictionary.
        ValueError: If the threshold is not a finite number of 0 or more.
        UsageError: If the model has no gates, can't be run on the data, or would lose every branch, or if a module that
            was converted has been replaced or parametrized since. It is left as it was.

    Example:
        >>> import rezero, torch
        >>> model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)
        >>> conversion = rezero.convert_(model, x)
        >>> with torch.no_grad():  # stands for training
        ...     _ = rezero.gates(model)["linear2"].gate_parameter.fill_(0.5)
        >>> rezero.prune_(model, 0.01, x).removed
        ('self_attn',)
    """
    check_module(model)
    check_unwrapped(model)
    if not (isinstance(threshold, Real) and math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold must be a finite number, 0 or more: got {threshold!r}")
    recipe = recall(model)
    if not recipe.gates:
        raise UsageError("expected a model that rezero.convert_ has gated, found no gate that it noted in this one")
    check_intact(model, recipe)
    check_forwards(model, recipe)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("the model is on the meta device: without numbers no contribution can be measured")
    given = _given(args, kwargs, batches)
    measured = measure(model, given)
    contributions = {gate.branch: measured[gate.branch] for gate in recipe.gates if gate.branch in measured}
    low, left = _low(recipe, contributions, threshold)
    traces = _passes(model, *given[0])
    low, dead = _serving(traces, low, observe_zeros(model, given), keep=_shared(recipe, low))
    silent = tuple(each.module for each in dead.silent)
    gone = [gate for gate in recipe.gates if gate in low or f"{gate.leaf}.".startswith(tuple(f"{s}." for s in silent))]
    if len(gone) == len(recipe.gates):
        raise UsageError(
            f"no branch would be left between the model's stem and its head: the largest contribution is "
            f"{max(contributions.values()):.2g}, the threshold {threshold:g}; lower it, or train the gates first"
        )
    closed = Closed(model, given, low)
    size, smaller, kept = _size(model), recipe, ()
    undo = Undo()
    try:
        if gone:
            smaller, kept = _remove(model, given, gone, dead, undo)
            closed.check()
    except BaseException:
        undo()
        raise
    return Pruned(
        model,
        removed=tuple(gate.branch for gate in gone),
        silent=silent,
        kept=kept,
        parameters=size - _size(model),
        contributions=contributions,
        change=closed.change,
        left={**left, **dead.stuck},
        running=dead.running,
        _recipe=smaller,
        _undo=undo,
    )


def _given(args: Any, kwargs: Mapping[str, Any] | None, batches: Iterable[Any] | None) -> list[Batch]:
    if batches is None:
        return [as_example(args, kwargs)]
    if not isinstance(args, tuple) or args or kwargs is not None:
        raise ValueError("expected one example, as args and kwargs, or batches: got both")
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, such as a list: got {type(batches).__name__}")
    given: list[Batch] = []
    for each in batches:
        if isinstance(each, Mapping):
            given.append(((), dict(each)))
        else:
            given.append((tuple(each) if isinstance(each, tuple | list) else (each,), {}))
    if not given:
        raise UsageError("batches yields nothing to measure on")
    return given


# Which branches


def _groups(gates: Iterable[GateRecipe]) -> list[list[GateRecipe]]:
    """Put gates together that are one parameter."""
    groups: dict[str, list[GateRecipe]] = {}
    for gate in gates:
        groups.setdefault(gate.owner or gate.leaf, []).append(gate)
    return list(groups.values())


def _low(
    recipe: Recipe, contributions: Mapping[str, float], threshold: float
) -> tuple[list[GateRecipe], dict[str, str]]:
    """Return the gates of which no branch is above the threshold, and what might be among them but was not measured."""
    low: list[GateRecipe] = []
    left: dict[str, str] = {}
    for group in _groups(recipe.gates):
        branches = [gate.branch for gate in group]
        unknown = [branch for branch in branches if branch not in contributions]
        if all(contributions.get(branch, 0.0) <= threshold for branch in branches):
            reason = f"the addition of {unknown[0]!r} can't be told from others, or is not made" if unknown else ""
            low += [] if unknown else group
            left |= dict.fromkeys(branches, reason) if unknown else {}
    return low, left


def _shared(recipe: Recipe, low: Sequence[GateRecipe]) -> list[str]:
    """Name the modules with gates that stay and serve several branches: none of them can go alone."""
    return [gate.leaf for group in _groups(recipe.gates) if len(group) > 1 and group[0] not in low for gate in group]


def _serving(
    traces: Sequence[Trace], low: list[GateRecipe], zeros: Zeros, keep: Sequence[str]
) -> tuple[list[GateRecipe], Dead]:
    """Find what serves some branches alone; branches that can't be made zero stay, and those that share their gates."""
    dead = Dead((), {}, {})
    stuck: dict[str, str] = {}
    while low:
        dead = choose_silent(traces, [gate.branch for gate in low], zeros, keep)
        if not dead.stuck:
            break
        for group in _groups(low):
            reason = next((dead.stuck[gate.branch] for gate in group if gate.branch in dead.stuck), None)
            if reason is not None:
                stuck |= {gate.branch: reason for gate in group}
        low = [gate for gate in low if gate.branch not in stuck]
        dead = Dead((), {}, {})
    return low, replace(dead, stuck=stuck)


def _passes(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Trace]:
    with cacheless(model):
        traces = [trace(model, args, kwargs, numbers=True)]
        with suppress(UsageError):  # an example may do for evaluation alone
            traces.append(trace(model, args, kwargs, training=True, grad=True, numbers=True))
    return traces


# Removing them


def _remove(
    model: nn.Module, given: Sequence[Batch], gone: Sequence[GateRecipe], dead: Dead, undo: Undo
) -> tuple[Recipe, tuple[str, ...]]:
    """Take branches out; return all that is changed now, and the parameters that stay because other code reads them."""
    recipe = recall(model)
    silent = [each.module for each in dead.silent]
    ungate_(model, gone, undo)
    silence_(model, dead.silent, undo)
    theirs = [name for module in silent for name in tensors_of(model, module)]
    read = read_elsewhere(model, theirs, *given[0])
    dropped = tuple(name for name in theirs if name not in read)
    drop_(model, dropped, undo)
    recipe = replace(
        recipe,
        gates=tuple(gate for gate in recipe.gates if gate not in gone),
        frozen=tuple(name for name in recipe.frozen if name not in dropped),
        silent=(*recipe.silent, *dead.silent),
        dropped=(*recipe.dropped, *dropped),
    )
    remember(model, recipe, undo)
    return recipe, tuple(name for name in theirs if name in read)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
