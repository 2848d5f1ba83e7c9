"""From the additions that were found to the recipe of a conversion."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, count
from types import FunctionType

from torch import nn

from rezero.errors import UsageError
from rezero.surgery.recipe import GateRecipe, Recipe
from rezero.surgery.sites import Branch, Residuals, Site

__all__ = ["plan"]

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
)


_READ_BY_LAYER: Mapping[str, type[nn.Module]] = {"self_attn": nn.MultiheadAttention, "linear2": nn.Linear}


def plan(
    model: nn.Module,
    found: Residuals,
    scales: Mapping[str, str],
    *,
    gate: str,
    share: str,
    init_value: float,
    norms: str,
    activation_after: str,
) -> Recipe:
    """Say what is to be changed.

    Args:
        model: The model, not converted yet.
        found: Its residual additions.
        scales: The LayerScales that become gates: module to parameter.
        gate: As for `rezero.convert_`.
        share: Likewise.
        init_value: Likewise.
        norms: Likewise.
        activation_after: Likewise.

    Returns:
        The recipe.

    Raises:
        UsageError: If the options can't be followed: where, and why.
    """
    if scales and (gate == "tanh" or share == "layer"):
        option = "gate='tanh'" if gate == "tanh" else "share='layer'"
        raise UsageError(f"layer_scale='reuse': {next(iter(scales))!r} multiplies by its own numbers, not by {option}")
    recipes: dict[str, GateRecipe] = {}
    owners: dict[str, GateRecipe] = {}
    served: Counter[str] = Counter()
    moved: list[str] = []
    for site in found:
        activation = _movable(found, site) if activation_after == "move" else None
        if activation is not None:
            moved.append(activation)
        for branch in site.branches:
            if branch.leaf in scales:
                reused = _reuse(model, branch.leaf, scales[branch.leaf], init_value, activation)
                recipes[branch.leaf] = reused
                served[branch.leaf] += 1
                continue
            leaf, reader = _place(model, branch.leaf)
            module = model.get_submodule(leaf)
            shape = _channels(model, leaf, branch, reader) if gate == "channel" else (1,)
            name = _free_name(module)
            tanh = "tanh" if gate == "tanh" else None
            key = _layer(model, site.name) if share == "layer" else leaf
            owner = owners.get(key)
            owned_by = None if owner is None or owner.leaf == leaf else owner.leaf
            others = _readers(found, leaf, reader)
            each = GateRecipe(leaf, shape, init_value, tanh, name, 1, owned_by, reader, activation, others)
            if owner is not None and max(owner.shape) != max(shape):
                raise UsageError(f"{owner.leaf!r} and {leaf!r} can't share a gate: they have other numbers of channels")
            if recipes.setdefault(leaf, each) != each:
                raise UsageError(f"{leaf!r} is used several times, in places that differ: one gate can't serve them")
            owners.setdefault(key, each)
            served[owned_by or leaf] += 1
    gates = tuple(each if each.owner else replace(each, branches=served[leaf]) for leaf, each in recipes.items())
    removed = tuple(sorted(found.removable)) if norms == "remove" else ()
    theirs = (f"{norm}.{name}" for norm in removed for name, _ in model.get_submodule(norm).named_parameters())
    frozen = tuple(name for name in theirs if name in found.readers and found.readers[name] <= set(removed))
    return Recipe(gates, removed, frozen, tuple(moved))


def _reuse(model: nn.Module, leaf: str, name: str, init_value: float, activation: str | None) -> GateRecipe:
    if activation is not None:
        raise UsageError(f"activation_after='move': {activation!r} can't move before {leaf!r}, a reused LayerScale")
    shape = tuple(model.get_submodule(leaf).get_parameter(name).shape)
    return GateRecipe(leaf, shape, init_value, parameter=name, reused=True)


def _place(model: nn.Module, leaf: str) -> tuple[str, str | None]:
    """Return the module that a gate goes to, and the module that reads its weights without calling it."""
    parent, _, child = leaf.rpartition(".")
    reader, module = model.get_submodule(parent), model.get_submodule(leaf)
    kind = _READ_BY_LAYER.get(child)
    plain = kind is not None and type(module).forward is kind.forward  # another one may end in something else
    if isinstance(reader, nn.TransformerEncoderLayer) and plain:
        return (f"{leaf}.out_proj" if child == "self_attn" else leaf), parent
    return leaf, None


def _free_name(module: nn.Module) -> str:
    """Choose the name of a gate: one that the module has not, and that its code does not set."""
    codes = [
        value.__code__
        for kind in type(module).__mro__
        for value in vars(kind).values()
        if isinstance(value, FunctionType)
    ]
    if not hasattr(module, "alpha") and not any("alpha" in code.co_names for code in codes):
        return "alpha"
    names = chain(["rezero_alpha"], (f"rezero_alpha_{number}" for number in count(2)))
    return next(name for name in names if name not in dir(module))


def _readers(found: Residuals, leaf: str, reader: str | None) -> tuple[str, ...]:
    """Name the modules outside a leaf, and not its reader, whose code reads its parameters."""
    theirs = {each for name, names in found.readers.items() if name.startswith(f"{leaf}.") for each in names}
    known = {leaf, reader, leaf.removesuffix(".out_proj")}
    return tuple(sorted(name for name in theirs - known if not name.startswith(f"{leaf}.")))


def _channels(model: nn.Module, name: str, branch: Branch, reader: str | None) -> tuple[int, ...]:
    """Return the shape of a gate with one number a channel beside a branch."""
    module, shape = model.get_submodule(name), branch.shape
    if reader is not None or isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm):
        return (shape[-1],)
    if isinstance(module, _CHANNELS_FIRST) or type(module).__name__.endswith("2d"):
        axis = _channel_axis(module, len(shape))
        return (shape[axis], *[1] * (len(shape) - axis - 1))
    last = model.get_submodule(branch.leaves[-1]) if branch.leaves else module
    if isinstance(last, _CHANNELS_FIRST):  # unless it was transposed since
        axes = [axis for axis in range(1, len(shape)) if shape[axis] == _features(last)]
    else:
        axes = [len(shape) - 1] if len(shape) <= 3 else []
    if len(axes) != 1:
        raise UsageError(f"gate='channel': which axis of {name!r} holds the channels is unknown; use gate='scalar'")
    return (shape[axes[0]], *[1] * (len(shape) - axes[0] - 1))


def _features(layer: nn.Module) -> int | None:
    names = ("out_channels", "num_features", "num_channels")
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)


def _channel_axis(module: nn.Module, ndim: int) -> int:
    """Return the axis of channels that stand before those of space, with a batch before them or without."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return ndim - len(module.kernel_size) - 1
    space = type(module).__name__[-2]  # as in InstanceNorm1d
    batched = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or not space.isdigit()
    return 1 if batched else ndim - int(space) - 1


def _layer(model: nn.Module, name: str) -> str:
    """Return the layer of a stack of equal layers that a module belongs to, or the module itself."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        stack = model.get_submodule(".".join(parts[: end - 1]))
        if isinstance(stack, nn.ModuleList | nn.Sequential) and len({type(layer) for layer in stack}) == 1:
            return ".".join(parts[:end])
    return name


def _movable(found: Residuals, site: Site) -> str | None:
    activation = site.activation_after
    if activation is None:
        return None
    where = site.name or "the model"
    if activation.startswith("("):
        raise UsageError(
            f"activation_after='move': {where} calls the function {activation[1:-1]}, which can't be moved: make it a "
            "module, or keep it"
        )
    if found.calls[activation] > 1:
        raise UsageError(
            f"activation_after='move': {activation!r} is used {found.calls[activation]} times, so its use after the "
            f"addition in {where} can't be told from the others: give each use a module of its own, or keep it"
        )
    if len(site.branches) > 1:
        raise UsageError(f"activation_after='move': {where} adds several branches: keep it")
    return activation
