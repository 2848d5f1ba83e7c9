"""Make a trained model deeper: zero-gated copies of its own layers, from exactly where it stands."""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.gate import gate_dtype, gates
from rezero.surgery.apply import check_convertible
from rezero.surgery.changed import restore_class, swap_class
from rezero.surgery.convert import check_optimizer, convert_
from rezero.surgery.depth import check_config, deepen_configs_, renumber_
from rezero.surgery.example import advice, as_example
from rezero.surgery.gated import Owner
from rezero.surgery.grafted import first_tensor, input_argument, with_first
from rezero.surgery.layer_lists import choose_sites, find_layers
from rezero.surgery.outputs import Mode, output_of, same
from rezero.surgery.recipe import GateRecipe, Undo
from rezero.surgery.saved import own_config
from rezero.surgery.sites import counted
from rezero.surgery.undisturbed import unfused

__all__ = ["Blended", "Growth", "grow_"]

_QUIET = (Mode(training=False, grad=False), Mode(training=False, grad=True))


class Blended(Owner):
    """A layer whose whole change of the hidden states is gated: ``x + alpha * (layer(x) - x)``.

    For layers that end in a norm, as those of BERT, which gates on their branches do not make the identity.
    """

    rezero_argument: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer.

        Args:
            *args: As the layer's own class takes them.
            **kwargs: Likewise.

        Returns:
            What the layer returns, its first tensor being gated.
        """
        x: Tensor = args[0] if args else kwargs[self.rezero_argument]
        output = super().forward(*args, **kwargs)
        return with_first(output, x + (self.gate_scale * (first_tensor(output) - x)).to(x.dtype))


@dataclass(frozen=True, eq=False)
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
    _undo: Undo = field(repr=False)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Yield the parameters of the new layers, with their gates."""
        for name in self.layers:
            yield from self.model.get_submodule(name).parameters()

    def undo(self) -> None:
        """Take the new layers out: the model is as shallow as before, its other weights as they are now."""
        self._undo()

    def __str__(self) -> str:
        new = sum(parameter.numel() for parameter in self.parameters())
        pairs = ", ".join(f"{name} from {of}" for name, of in zip(self.layers, self.originals, strict=True))
        kind = "of their branches" if self.gated == "branches" else "of their whole output, since they end in a norm"
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
    check_optimizer(optimizer, model)
    path, chosen = _choose(model, every, layers, at)
    args, kwargs = _inputs(model, example)
    before = _outputs(model, args, kwargs)
    if isinstance(before[0], Exception):
        raise UsageError(f"the model fails on the example: {before[0]}{advice(args, kwargs)}") from before[0]
    old = dict(model.named_parameters())
    undo = Undo()
    try:
        names, originals = _insert(model, path, chosen, undo)
        if init == "fresh":
            _draw(model, names)
        check_config(model)
        gated = _gate(model, names, args, kwargs, before, undo)
        _settle(model, names, originals, set(map(id, old.values())), train, undo)
        if optimizer is not None:
            _extend(optimizer, model, names, originals, undo)
    except BaseException:
        undo()
        raise
    own = {id(gate.gate_parameter) for gate in gates(model).values()}
    new = {id(each) for name in names for each in model.get_submodule(name).parameters()}
    found = tuple(name for name, each in model.named_parameters() if id(each) in own & new)
    return Growth(model, names, originals, found, gated, undo)


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
    if len(paths) > 1 or not isinstance(model.get_submodule(next(iter(paths))), nn.ModuleList | nn.Sequential):
        raise UsageError(
            f"expected layers of one nn.ModuleList or nn.Sequential, got those of {', '.join(sorted(paths))}"
        )
    keys = [name.rpartition(".")[2] for name in found]
    order = list(model.get_submodule(next(iter(paths)))._modules)
    if layers is None:
        chosen = [name.rpartition(".")[2] for name in choose_sites(model, at, every)]
    elif odd := [
        each for each in layers if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < len(keys)
    ]:
        raise UsageError(f"layers must be numbers from 0 to {len(keys) - 1}: got {odd[0]!r}")
    else:
        chosen = [keys[each] for each in sorted(set(layers))]
    if not chosen:
        raise UsageError("layers must name at least one layer")
    return paths.pop(), [order.index(key) for key in chosen]


def _inputs(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example is not None:
        args, kwargs = as_example((), example) if isinstance(example, Mapping) else as_example(example, None)
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


def _insert(model: nn.Module, path: str, chosen: Sequence[int], undo: Undo) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Put copies behind the chosen layers; return their names and those of the layers that they were made from."""
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
    own_config(model, undo)
    undo.steps.append(partial(_refill, blocks, before))
    _refill(blocks, {str(place): layer for place, layer in enumerate(layers)})
    renumber_(layers, places, undo)
    deepen_configs_(model, path, places, undo)
    return tuple(f"{path}.{place}".lstrip(".") for place in new), tuple(
        f"{path}.{place - 1}".lstrip(".") for place in new
    )


def _refill(blocks: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    blocks._modules.clear()
    blocks._modules.update(layers)


def _copied(layer: nn.Module, name: str, model: nn.Module) -> nn.Module:
    """Copy a layer; what it shares with other parts of the model stays shared."""
    modules = model.named_modules(remove_duplicate=False)
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    elsewhere = [each for key, each in (*modules, *tensors) if not f"{key}.".startswith(f"{name}.")]
    return copy.deepcopy(layer, {id(each): each for each in elsewhere} | _configs(layer))


def _configs(layer: nn.Module) -> dict[int, Any]:
    """Return the configurations of a layer's modules, which a copy refers to as the layer does."""
    found = (vars(module).get("config") for module in layer.modules())
    return {id(each): each for each in found if each is not None}


def _draw(model: nn.Module, names: Sequence[str]) -> None:
    """Draw the weights of new layers as the model does."""
    own: Any = getattr(model, "_init_weights", None)
    for name in names:
        layer = model.get_submodule(name)
        for module in layer.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(own):
                own(module)
            elif callable(reset):
                reset()
        if callable(own) or any(callable(getattr(each, "reset_parameters", None)) for each in layer.modules()):
            continue
        raise UsageError(f"{name!r} can't be drawn anew: none of its modules has reset_parameters; use init='copy'")


def _gate(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any], before: list[Any], undo: Undo
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
        if _stays(before, _outputs(model, args, kwargs)):
            undo.steps.append(conversion.undo)
            return "branches"
        conversion.undo()
    for name in names:
        _blend(model.get_submodule(name), name, undo)
    if not _stays(before, after := _outputs(model, args, kwargs)):
        failed = next((each for each in after if isinstance(each, Exception)), None)
        raise UsageError(f"the deeper model fails: {failed}" if failed else "the outputs of the deeper model differ")
    return "layers"


def _stays(before: list[Any], after: list[Any]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(isinstance(one, Exception) or same(one, other, exact=True) for one, other in pairs)


def _blend(layer: nn.Module, name: str, undo: Undo) -> None:
    near = next((each for each in layer.parameters() if each.is_floating_point()), torch.empty(0))
    alpha = torch.zeros(1, dtype=gate_dtype(near.dtype), device=near.device)
    if "alpha" in dir(layer):
        raise UsageError(f"{name!r} has an 'alpha' of its own, which is the name that a gate gets")
    undo.steps += [partial(restore_class, layer), partial(layer._parameters.pop, "alpha")]
    argument = input_argument(layer)
    swap_class(layer, Blended)
    vars(layer).update(rezero_gate=GateRecipe(name), rezero_argument=argument)
    layer._parameters["alpha"] = nn.Parameter(alpha)


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


def _extend(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: Sequence[str], originals: Sequence[str], undo: Undo
) -> None:
    """Give an optimizer the new parameters: in the groups of their originals, the gates in one of their own."""
    groups = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    known = set(groups)
    fresh: list[tuple[str, nn.Parameter]] = []
    undo.steps.append(partial(_shrink, optimizer, frozenset(known), len(optimizer.param_groups)))
    for name, original in zip(names, originals, strict=True):
        twin = dict(model.get_submodule(original).named_parameters())
        for key, parameter in model.get_submodule(name).named_parameters():
            if id(parameter) in known:
                continue
            known.add(id(parameter))
            group = groups.get(id(twin[key])) if key in twin else None
            if group is not None:
                group["params"].append(parameter)
                if "param_names" in group:
                    group["param_names"].append(f"{name}.{key}")
            elif key not in twin:
                fresh.append((f"{name}.{key}", parameter))
    with_names = any("param_names" in group for group in optimizer.param_groups)
    params = fresh if with_names else [parameter for _, parameter in fresh]
    optimizer.add_param_group({"params": params, "weight_decay": 0.0, "name": "gates"})


def _shrink(optimizer: torch.optim.Optimizer, known: frozenset[int], count: int) -> None:
    for group in optimizer.param_groups:
        stay = [place for place, each in enumerate(group["params"]) if id(each) in known]
        for name in ("params", "param_names"):
            if name in group:
                group[name][:] = [group[name][place] for place in stay]
    del optimizer.param_groups[count:]
    for parameter in [each for each in optimizer.state if id(each) not in known]:
        del optimizer.state[parameter]
