"""Whether a recipe fits a model: one that is to be changed, and one that was."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from rezero.errors import UsageError
from rezero.surgery.linear import is_norm
from rezero.surgery.passed import Passed
from rezero.surgery.recipe import GateRecipe, Recipe, SilentRecipe

__all__ = ["check_intact", "misfit"]

_FACE = ("gate_branches", "gate_parameter", "gate_scale", "reset_gate")  # of every layer that gets a gate


def misfit(model: nn.Module, recipe: Recipe) -> str | None:
    """Return why a recipe can't be applied to a model, nothing of which is changed yet.

    Args:
        model: The model.
        recipe: The changes.

    Returns:
        The first thing that does not fit, as the end of a sentence; None if all does.
    """
    return next(_misfits(model, recipe), None)


def _misfits(model: nn.Module, recipe: Recipe) -> Iterator[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    yield from (f"this one has no module {name!r}" for name in recipe.modules if name not in modules)
    yield from (f"this one has no parameter {name!r}" for name in recipe.frozen if name not in tensors)
    tensors |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    yield from (f"this one has no {name!r} to drop" for name in recipe.dropped if name not in tensors)
    yield from (f"{name!r} is no norm here" for name in recipe.norms if not is_norm(modules[name]))
    yield from (f"{name!r} is no activation here" for name in recipe.activations if not _is_activation(modules[name]))
    leaves = [gate.leaf for gate in recipe.gates]
    yield from (f"there {name!r} has two gates" for name in leaves if leaves.count(name) > 1)
    owners = {gate.leaf: gate for gate in recipe.gates if gate.owner is None}
    for gate in recipe.gates:
        yield from _misfits_of_gate(gate, modules, owners, recipe)


def _misfits_of_gate(
    gate: GateRecipe, modules: dict[str, nn.Module], owners: dict[str, GateRecipe], recipe: Recipe
) -> Iterator[str]:
    leaf = modules[gate.leaf]
    if gate.reused:
        parameter = leaf._parameters.get(gate.parameter)
        if parameter is None or parameter.shape != gate.shape:
            yield f"{gate.leaf!r} has no parameter {gate.parameter!r} with the shape {gate.shape} here"
    elif gate.owner is None and gate.parameter in dir(leaf):
        yield f"{gate.leaf!r} has a {gate.parameter!r} of its own here, which can't be the name of a gate"
    own = next((name for name in _FACE if name in dir(leaf)), None)
    if own is not None:
        yield f"{gate.leaf!r} has a {own!r} of its own, under which its gate would be asked: give that another name"
    if gate.owner is not None and (gate.owner not in owners or max(owners[gate.owner].shape) != max(gate.shape)):
        yield f"there {gate.leaf!r} shares a gate that {gate.owner!r} has not"
    if gate.reader is not None and not _reads(modules[gate.reader], leaf):
        yield f"{gate.reader!r} does not read the weights of {gate.leaf!r} here"
    if gate.moved is not None and gate.moved not in recipe.activations:
        yield f"there {gate.moved!r} is moved, and stays"


def _is_activation(module: nn.Module) -> bool:
    """Return whether a module may be an activation: it works on each number by itself."""
    bare = not any(module.children()) and not any(True for _ in (*module.parameters(), *module.buffers()))
    return isinstance(module, nn.PReLU) or (bare and not is_norm(module))


def _reads(reader: Any, leaf: nn.Module) -> bool:
    """Return whether a module may read a layer's weights without calling it."""
    return isinstance(reader, nn.TransformerEncoderLayer) and leaf in (
        getattr(reader.self_attn, "out_proj", None),
        reader.linear2,
    )


def check_intact(model: nn.Module, recipe: Recipe) -> None:
    """Refuse a converted model whose changed modules are others now.

    Args:
        model: The model.
        recipe: All that is changed in it, as far as is known.

    Raises:
        UsageError: If a module is gone, or is not the one that was changed.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    passed = {name for name in (*recipe.norms, *recipe.activations) if isinstance(modules.get(name), Passed)}
    marks: dict[str, tuple[str, GateRecipe | SilentRecipe]] = {
        gate.leaf: ("rezero_gate", gate) for gate in recipe.gates
    }
    marks |= {each.module: ("rezero_silent", each) for each in recipe.silent}
    marked = {name for name, (key, mark) in marks.items() if name in modules and vars(modules[name]).get(key) == mark}
    gone = tuple(f"{each.module}." for each in recipe.silent)  # what is inside is of no use any more
    for name in (*marks, *recipe.norms, *recipe.activations):
        if name not in marked | passed and not name.startswith(gone):
            raise UsageError(
                f"{name!r} is not the module that was converted: it has been taken out, replaced or folded by itself "
                "since; put the converted one back, or build the model anew and convert it"
            )
