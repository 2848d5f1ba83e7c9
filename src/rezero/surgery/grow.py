"""Make a trained model deeper: zero-gated copies of its own layers, from exactly where it stands."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import index
from typing import Any, Literal

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.gate import gates
from rezero.surgery.apply import apply_, check_convertible, check_forwards, check_trainable, check_unwrapped
from rezero.surgery.calls import watch
from rezero.surgery.convert import check_optimizer, convert_
from rezero.surgery.depth import check_config, deepen_configs_, renumber_
from rezero.surgery.enlist import extend_, home_of_gates
from rezero.surgery.example import advice, read_example
from rezero.surgery.fit import check_intact
from rezero.surgery.layer_lists import choose_sites, find_layers
from rezero.surgery.outputs import Mode, output_of, same
from rezero.surgery.recipe import GateRecipe, Recipe, Undo
from rezero.surgery.saved import own_config, recall, remember
from rezero.surgery.sites import counted
from rezero.surgery.undisturbed import unfused

__all__ = ["Growth", "grow_"]

_QUIET = (Mode(training=False, grad=False), Mode(training=False, grad=True))


@dataclass(frozen=True, eq=False, repr=False)
class Growth:
    """What `grow_` changed.

    Attributes:
        model: The deeper model.
        layers: Qualified names of the new layers.
        originals: Those of the layers that they were made from, as they are now.
        gates: Names of the gates' parameters.
        gated: ``"branches"`` where each residual branch of a new layer has a gate, which `rezero.fold_` can write into
            its weights; ``"layers"`` where the whole change of a new layer has one, which stays.
    """

    model: nn.Module
    layers: tuple[str, ...]
    originals: tuple[str, ...]
    gates: tuple[str, ...]
    gated: Literal["branches", "layers"]
    _recipe: Recipe = field(repr=False)
    _undo: Undo = field(repr=False)
    _grafted: frozenset[str] = frozenset()

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield the parameters of the new layers, with their gates."""
        for name in self.layers:
            yield from self.model.get_submodule(name).parameters()

    def undo(self) -> None:
        """Take the new layers out: the model is as shallow as before, its other weights as they are now.

        Raises:
            UsageError: If the model has been compiled, distributed, grafted, folded or grown again since. It is left as
                it is.
        """
        if not self._undo.steps:
            return
        check_unwrapped(self.model)
        if since := sorted(_grafted(self.model) - self._grafted):  # which would move, and are to stay frozen
            raise UsageError(f"{since[0]!r} has a grafted block: call remove() of that graft first")
        if recall(self.model) != self._recipe:
            raise UsageError("gates were folded or put in since, which undoing would take for its own: build it anew")
        check_intact(self.model, self._recipe)
        check_forwards(self.model, self._recipe)
        self._undo()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        new = sum(parameter.numel() for parameter in self.parameters())
        pairs = ", ".join(f"{name} from {of}" for name, of in zip(self.layers, self.originals, strict=True))
        kind = "of their branches" if self.gated == "branches" else "of the whole change that each makes"
        return "\n".join(
            (
                f"{counted(len(self.layers), 'layer')} more: {pairs}",
                f"{new:,} new parameters; {counted(len(self.gates), 'gate')} {kind}",
            )
        )


def grow_(
    model: nn.Module,
    *,
    every: int = 2,
    layers: Sequence[int] | None = None,
    at: str | Sequence[str] | None = None,
    init: Literal["copy", "fresh"] = "copy",
    train: Literal["new", "all"] = "all",
    optimizer: torch.optim.Optimizer | None = None,
    example: Any = None,
) -> Growth:
    r"""Deepen a trained model in place by layers behind its own whose gates are closed, so that every output stays.

    A new layer is a copy of the one before it. Its residual branches get gates that start at zero, which makes it the
    identity; where it ends in a norm, its whole change of the hidden states is gated. Layers that follow move up: their
    keys in the state dict, their own indices, and the depth in the model's configuration are changed with them.

    Args:
        model: The model.
        every: A new layer behind each how many: 2 goes from 6 layers to 9, 1 to 12.
        layers: Or the numbers of the layers that get one behind them, from 0.
        at: The layers, as for `rezero.graft_`; by default the longest run of equal blocks in one of the lists.
        init: Weights of the new layers: ``"copy"`` of those of the layer before, or drawn ``"fresh"``.
        train: Whether ``"all"`` parameters learn as they did, or the ``"new"`` ones only.
        optimizer: Gets the new parameters, each in the group of the one that it was copied from, and the gates in a
            group without decay. What it knows of the others stays.
        example: Arguments of the model's ``forward``: a tensor, a tuple, or a dictionary of arguments by name. Models
            of transformers need none.

    Returns:
        What was changed.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If an option is unknown.
        UsageError: If there are no such layers, or the outputs would not stay. The model is left as it was.

    References:
        Wu et al. (2024), arXiv:2401.02415 (block expansion); Bachlechner et al. (2020), arXiv:2003.04887, eq. 1.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
        >>> x = torch.randn(1, 3, 8)
        >>> before = model(x)
        >>> growth = grow_(model, every=1, example=x)
        >>> len(model.layers), torch.equal(model(x), before), growth.gates[0]
        (4, True, 'layers.1.self_attn.out_proj.alpha')
    """
    _check_options(init, train)
    check_convertible(model)
    if any(each.is_meta for each in model.parameters()):
        raise UsageError("the model is on the meta device and has no numbers: load them before it grows")
    check_trainable(model)
    check_optimizer(optimizer, model, scheduled=True)
    home = None if optimizer is None else home_of_gates(optimizer)
    path, chosen = _choose(model, every, layers, at)
    args, kwargs = _inputs(model, example)
    run = partial(_outputs, args=args, kwargs=kwargs)
    before = run(model)
    if isinstance(before[0], Exception):
        raise UsageError(f"the model fails on the example: {before[0]}{advice(args, kwargs)}") from before[0]
    old = dict(model.named_parameters())
    undo = Undo()
    try:
        names, originals = _insert(model, path, chosen, undo)
        _check_called(model, names, args, kwargs)
        if init == "fresh":
            _draw(model, names)
        check_config(model, run)
        gated = _gate(model, names, args, kwargs, run, before, undo)
        _settle(model, names, originals, set(map(id, old.values())), train, undo)
        if optimizer is not None:
            extend_(optimizer, home, model, names, originals, undo)
    except BaseException:
        undo()
        raise
    own = {id(gate.gate_parameter) for gate in gates(model).values()}
    new = {id(each) for name in names for each in model.get_submodule(name).parameters()}
    found = tuple(name for name, each in model.named_parameters() if id(each) in own & new)
    return Growth(model, names, originals, found, gated, recall(model), undo, _grafted(model))


def _grafted(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, module in model.named_modules() if "rezero_graft" in vars(module))


def _check_options(init: Any, train: Any) -> None:
    for name, value, known in (("init", init, ("copy", "fresh")), ("train", train, ("new", "all"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}: got {value!r}")


def _choose(
    model: nn.Module, every: int, layers: Sequence[int] | None, at: str | Sequence[str] | None
) -> tuple[str, list[int]]:
    """Return the name of a list of layers, and the numbers of those that get one behind them."""
    found = find_layers(model) if at is None else choose_sites(model, at, 1)
    paths = {name.rpartition(".")[0] for name in found}
    if whole := next((name for name in found if isinstance(model.get_submodule(name), nn.ModuleList)), None):
        raise UsageError(f"{whole!r} is a list of layers: name its layers, at='{whole}.*'")
    if len(paths) > 1 or not isinstance(model.get_submodule(next(iter(paths))), nn.ModuleList | nn.Sequential):
        raise UsageError(
            f"expected layers of one nn.ModuleList or nn.Sequential, got those of "
            f"{', '.join(sorted(path or type(model).__name__ for path in paths))}"
        )
    keys = [name.rpartition(".")[2] for name in found]
    order = list(model.get_submodule(next(iter(paths)))._modules)
    if layers is None:
        chosen = [name.rpartition(".")[2] for name in choose_sites(model, at, every)]
    else:
        chosen = [keys[each] for each in _numbers(layers, len(keys))]
    if not chosen:
        raise UsageError("layers must name at least one layer")
    return paths.pop(), [order.index(key) for key in chosen]


def _numbers(layers: Any, count: int) -> list[int]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise UsageError(f"layers must be a list of numbers, such as [0, {count - 1}]: got {layers!r}")
    numbers = list(layers)
    for each in numbers:
        if isinstance(each, bool) or not hasattr(each, "__index__") or not 0 <= index(each) < count:
            raise UsageError(f"layers must be numbers from 0 to {count - 1}: got {each!r}")
    places = sorted(map(index, numbers))
    if len({*places}) < len(places):
        raise UsageError(f"layers must name each layer once: got {places}; for more behind one, grow again")
    return places


def _inputs(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example is not None:
        args, kwargs = read_example(example)
    elif hasattr(model, "main_input_name"):
        from rezero.integrations.examples import example_inputs

        args, kwargs = (), example_inputs(model)
    else:
        raise UsageError("expected example=, arguments of the model's forward: the deeper model is tried on them")
    if "use_cache" in inspect.signature(model.forward).parameters:  # a cache grows with the layers
        kwargs.setdefault("use_cache", False)
    return args, kwargs


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    with unfused():
        return [output_of(model, args, kwargs, mode) for mode in _QUIET]


def _check_called(model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    called = watch(model, {name: model.get_submodule(name) for name in names}, args, kwargs)
    if idle := next((name for name in names if name not in called), None):
        raise UsageError(
            f"the deeper model does not call {idle!r}: its forward counts its layers by something that is not known "
            "here, such as an attribute that is not called num_layers, n_layers or depth; let it take the list's length"
        )


def _insert(model: nn.Module, path: str, chosen: Sequence[int], undo: Undo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put copies behind the chosen layers; return their names and those of the layers that they were made from."""
    own_config(model, undo)  # first, so that copies refer to it
    blocks: Any = model.get_submodule(path)
    before = dict(blocks._modules)
    layers: list[nn.Module] = []
    places: list[int] = []
    new: list[int] = []
    for place, (key, layer) in enumerate(before.items()):
        layers.append(layer)
        places.append(place)
        if place in chosen:
            new.append(len(layers))
            layers.append(_copied(layer, f"{path}.{key}".lstrip("."), model))
            places.append(place)
    numbered = all(key.isdecimal() for key in before)
    keys = [str(place) for place in range(len(layers))] if numbered else _names(list(before), places)
    undo.steps.append(partial(_refill, blocks, before))
    _refill(blocks, dict(zip(keys, layers, strict=True)))
    renumber_(layers, places, undo)
    deepen_configs_(model, path, places, undo)
    names = [f"{path}.{key}".lstrip(".") for key in keys]
    return tuple(names[place] for place in new), tuple(names[place - 1] for place in new)


def _names(keys: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return names of layers that had names: the copies' say so."""
    return [f"{keys[place]}_grown" if places[:i].count(place) else keys[place] for i, place in enumerate(places)]


def _refill(blocks: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    blocks._modules.clear()
    blocks._modules.update(layers)


def _copied(layer: nn.Module, name: str, model: nn.Module) -> nn.Module:
    """Copy a layer; what it shares with other parts of the model stays shared."""
    modules = model.named_modules(remove_duplicate=False)
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    elsewhere = [each for key, each in (*modules, *tensors) if not f"{key}.".startswith(f"{name}.")]
    try:
        return copy.deepcopy(layer, {id(each): each for each in elsewhere} | _configs(layer))
    except Exception as error:  # whatever somebody's layer holds
        raise UsageError(f"{name!r} ({type(layer).__name__}) can't be copied: {error}") from error


def _configs(layer: nn.Module) -> dict[int, Any]:
    """Return the configurations of a layer's modules, which a copy refers to as the layer does."""
    found = (vars(module).get("config") for module in layer.modules())
    return {id(each): each for each in found if each is not None}


def _draw(model: nn.Module, names: Sequence[str]) -> None:
    """Draw the weights of new layers as the model does; what they share with others stays."""
    own: Any = getattr(model, "_init_weights", None)
    for name in names:
        inside = [module for module in model.get_submodule(name).modules() if _is_alone(model, module, name)]
        drawn = [module for module in inside if callable(own) or callable(getattr(module, "reset_parameters", None))]
        if not drawn:
            raise UsageError(f"{name!r} can't be drawn anew: none of its modules has reset_parameters; use init='copy'")
        for module in drawn:
            own(module) if callable(own) else module.reset_parameters()  # type: ignore[operator]


def _is_alone(model: nn.Module, module: nn.Module, name: str) -> bool:
    """Tell whether nothing of a module is used outside of a layer."""
    theirs = {id(each) for each in (module, *module.parameters(), *module.buffers())}
    found = (*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
    return not any(id(each) in theirs and not f"{key}.".startswith(f"{name}.") for key, each in found)


def _gate(
    model: nn.Module,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Callable[[nn.Module], list[Any]],
    before: list[Any],
    undo: Undo,
) -> Literal["branches", "layers"]:
    """Close the new layers: by gates on their branches, or else on their whole change; return which."""
    prefixes = tuple(f"{name}." for name in names)

    def is_new(_: nn.Module, name: str) -> bool:
        return name.startswith(prefixes) or name in names

    try:
        conversion = convert_(model, args, kwargs, filter_fn=is_new)
    except UsageError:
        pass
    else:
        if _stays(before, run(model)):
            undo.steps.append(conversion.undo)
            return "branches"
        conversion.undo()
    recipe = Recipe(tuple(GateRecipe(name, blended=True) for name in names))
    apply_(model, recipe, undo)
    remember(model, recipe, undo)
    if not _stays(before, after := run(model)):
        failed = next((each for each in after if isinstance(each, Exception)), None)
        if failed is not None:
            raise UsageError(f"the deeper model fails: {failed}")
        raise UsageError(f"the outputs of the deeper model differ{_how(before, after)}")
    return "layers"


def _how(before: list[Any], after: list[Any]) -> str:
    counts = next(((len(one), len(two)) for one, two in zip(before, after, strict=True) if len(one) != len(two)), None)
    if counts is None:
        return ""
    return (
        f": {counts[1]} tensors instead of {counts[0]}, as of a model that returns the hidden states of each layer; "
        "switch that off while it grows (output_hidden_states, output_attentions)"
    )


def _stays(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(isinstance(one, Exception) or same(one, other, exact=True) for one, other in pairs)


def _settle(
    model: nn.Module, names: Sequence[str], originals: Sequence[str], old: set[int], train: str, undo: Undo
) -> None:
    """Let the new parameters learn, and the old ones only if they are to."""
    for name, original in zip(names, originals, strict=True):
        layer, twin = model.get_submodule(name), dict(model.get_submodule(original).named_parameters())
        for key, parameter in layer.named_parameters():
            if train == "new" and id(parameter) not in old and parameter.is_floating_point():
                parameter.requires_grad_(True)
            elif key in twin and id(parameter) not in old:
                parameter.requires_grad_(twin[key].requires_grad)
    for parameter in model.parameters() if train == "new" else ():
        if id(parameter) in old:
            undo.steps.append(partial(parameter.requires_grad_, parameter.requires_grad))
            parameter.requires_grad_(False)
