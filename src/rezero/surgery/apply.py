"""Change a model's modules as a recipe says, with every change undone on request."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from rezero.errors import UsageError
from rezero.gate import AnyGate, gate_dtype
from rezero.surgery.changed import Changed, has_own_forward, restore_class, rezero_attributes, swap_class
from rezero.surgery.fit import misfit
from rezero.surgery.gated import (
    Blended,
    GatedOutput,
    GatedWeight,
    ReadsGated,
    ReadsGatedUnfused,
    ReusedScale,
    SharedOutput,
    SharedWeight,
)
from rezero.surgery.passed import Dropped, Passed, Silent
from rezero.surgery.recipe import GateRecipe, Recipe, SilentRecipe, Undo

__all__ = [
    "apply_",
    "check_convertible",
    "check_followable",
    "check_forwards",
    "check_module",
    "check_trainable",
    "check_unwrapped",
    "drop_",
    "silence_",
    "ungate_",
]

_SCALES_WEIGHT = (GatedWeight, SharedWeight)
_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"}


def check_convertible(model: nn.Module) -> None:
    """Refuse a model that can't be changed in place.

    Args:
        model: Any module.

    Raises:
        UsageError: If it is wrapped, scripted, lazy or converted already, or gradients are off for good.
    """
    check_followable(model)
    if torch.is_inference_mode_enabled():
        raise UsageError("torch.inference_mode is on, gates made in it could not be trained: convert outside of it")
    check_unwrapped(model)
    for name, module in model.named_modules():
        where = _where(name, module)
        if "quantized" in type(module).__module__:
            raise UsageError(f"{where} is quantized, its weights can't be trained: convert first, then quantize")
        if "rezero_graft" in vars(module):
            raise UsageError(f"{where} has a grafted block: call remove() of that graft first, and graft afterwards")
        if isinstance(module, Changed):
            raise UsageError(
                f"{where} has been converted already: take a new model, fold its gates, or call undo() first"
            )
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise UsageError(f"{where} is lazy, its shapes are not known yet: run the model once before")


def check_followable(model: nn.Module) -> None:
    """Refuse what has no code that can be followed.

    Args:
        model: Any module.

    Raises:
        UsageError: If it is scripted, or a part of it.
    """
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = _where(name, module)
            raise UsageError(f"{where} is scripted, its code can't be followed: convert the model before torch.jit")


def check_module(model: Any) -> None:
    """Refuse what is no module.

    Args:
        model: Anything.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")


def check_trainable(model: nn.Module) -> None:
    """Refuse a model whose parameters can't learn, nor be frozen and thawed.

    Args:
        model: The model.

    Raises:
        UsageError: If one was made under ``torch.inference_mode``.
    """
    known = ((name, each) for name, each in model.named_parameters() if not isinstance(each, UninitializedParameter))
    if made := next((name for name, each in known if each.is_inference()), None):
        raise UsageError(f"{made!r} was made under torch.inference_mode and can't be trained: build the model outside")


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model that is compiled or distributed, or parametrized after its conversion.

    Args:
        model: Any module.

    Raises:
        UsageError: If it is, or a part of it, or if a converted module has been given another class.
    """
    for name, module in model.named_modules():
        if _WRAPPERS & {kind.__name__ for kind in type(module).__mro__}:
            raise UsageError(f"{_where(name, module)} is a wrapped model: convert first, then compile or distribute it")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UsageError(f"{_where(name, module)} is compiled in place: convert first, then compile")
        if isinstance(module, Changed) and "original_class" not in vars(type(module)):
            raise UsageError(
                f"{_where(name, module)} was given another class since it was converted, as a parametrization does: "
                "take that off first (torch.nn.utils.parametrize.remove_parametrizations)"
            )


def _where(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


def apply_(model: nn.Module, recipe: Recipe, undo: Undo) -> None:
    """Change a model's modules as a recipe says.

    Args:
        model: The model.
        recipe: The changes.
        undo: Gets what puts them back.

    Raises:
        UsageError: If the recipe does not fit, or a module has a ``forward`` of its own, which no class can change.
    """
    if (difference := misfit(model, recipe)) is not None:
        raise UsageError(f"the model can't be changed so: {difference}")
    check_forwards(model, recipe)
    unfused = _encoder_layers(model, recipe.norms)
    readers: dict[str, list[nn.Module]] = {name: [] for name in unfused}
    for gate in recipe.gates:
        leaf = model.get_submodule(gate.leaf)
        if gate.blended:
            _change(leaf, Blended, undo, rezero_gate=gate)
            _give_gate(model, leaf, gate, undo)
        elif gate.reused:
            _change(leaf, ReusedScale, undo, rezero_gate=gate)
            _reset(model, leaf, gate, undo)
        elif gate.owner is None:
            _change(leaf, GatedOutput if gate.reader is None else GatedWeight, undo, rezero_gate=gate)
            _give_gate(model, leaf, gate, undo)
        else:
            owner = (model.get_submodule(gate.owner),)
            change = SharedOutput if gate.reader is None else SharedWeight
            _change(leaf, change, undo, rezero_gate=gate, rezero_owner=owner)
        if gate.reader is not None:
            readers.setdefault(gate.reader, []).append(leaf)
        if gate.moved is not None:
            vars(leaf)["rezero_moved"] = (model.get_submodule(gate.moved),)
    for name, layers in readers.items():
        reading = ReadsGatedUnfused if name in unfused else ReadsGated
        _change(model.get_submodule(name), reading, undo, rezero_weights=tuple(layers))
    _unpack(model, undo)
    for name in (*recipe.norms, *recipe.activations):
        _change(model.get_submodule(name), Passed, undo)
    for parameter in (model.get_parameter(name) for name in recipe.frozen):
        undo.steps.append(partial(parameter.requires_grad_, parameter.requires_grad))
        parameter.requires_grad_(False)
    silence_(model, recipe.silent, undo)
    drop_(model, recipe.dropped, undo)


def silence_(model: nn.Module, recipes: Sequence[SilentRecipe], undo: Undo) -> None:
    """Make modules return zeros, whether they had a gate or not.

    Args:
        model: The model.
        recipes: The modules.
        undo: Gets what puts them back.
    """
    for recipe in recipes:
        _change(model.get_submodule(recipe.module), Silent, undo, rezero_silent=recipe)
    for name in _encoder_layers(model, [recipe.module for recipe in recipes]):
        layer: Any = model.get_submodule(name)
        weights = tuple(each for each in getattr(layer, "rezero_weights", ()) if isinstance(each, _SCALES_WEIGHT))
        _change(layer, ReadsGatedUnfused, undo, rezero_weights=weights)
    _unpack(model, undo)


def ungate_(model: nn.Module, gates: Sequence[GateRecipe], undo: Undo) -> None:
    """Take gates out of a converted model.

    Args:
        model: The model.
        gates: The gates.
        undo: Gets what puts the very same gates back.
    """
    for gate in gates:
        leaf = model.get_submodule(gate.leaf)
        undo.steps.append(partial(_become, leaf, type(leaf), rezero_attributes(leaf)))
        if gate.owner is None and not gate.reused:
            undo.steps.append(_returning(model, f"{gate.leaf}.{gate.parameter}".lstrip("."), gate=True))
            del leaf._parameters[gate.parameter]
        restore_class(leaf)


def drop_(model: nn.Module, names: Sequence[str], undo: Undo) -> None:
    """Take parameters and buffers away: they are None now, and so are modules in a silent one that have none left.

    Args:
        model: The model.
        names: The parameters and buffers.
        undo: Gets what puts the very same tensors back.
    """
    for name in names:
        owner, _, key = name.rpartition(".")
        module = model.get_submodule(owner)
        store: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
        undo.steps.append(_returning(model, name, names))
        store[key] = None
        if isinstance(module, Passed) and not any(True for _ in (*module.parameters(), *module.buffers())):
            _change(module, Dropped, undo)
    for module in model.modules():
        for name, child in module._modules.items() if isinstance(module, Silent) else ():
            if child is not None and not any(True for _ in (*child.parameters(), *child.buffers())):
                undo.steps.append(partial(module._modules.__setitem__, name, child))
                module._modules[name] = None


def _returning(model: nn.Module, name: str, gone: Collection[str] = (), *, gate: bool = False) -> Callable[[], None]:
    """Return what puts the very same tensor back, on the device and in the dtype that the model has by then."""
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    store: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
    tensor = store[key]
    near = None if tensor is None else _nearest(model, name, tensor.dtype, gone)
    alike = near is not None and model.get_parameter(near).dtype == tensor.dtype

    def put_back() -> None:
        now = dict(model.named_parameters()).get(near or "")
        store[key] = tensor
        if tensor is not None and now is not None:
            dtype = now.dtype if alike else tensor.dtype
            store[key] = _cast(tensor, gate_dtype(dtype) if gate else dtype, now.device)

    return put_back


def _nearest(model: nn.Module, name: str, dtype: torch.dtype, gone: Collection[str]) -> str | None:
    """Name the parameter closest to a tensor that stays when it goes and is no gate, of its dtype if there is one."""
    gates = {id(module.gate_parameter) for module in model.modules() if isinstance(module, AnyGate)}
    others = [each for each in model.named_parameters() if id(each[1]) not in gates and each[0] not in (*gone, name)]
    ranks = {each: (parameter.dtype == dtype, _shared_parts(each, name)) for each, parameter in others}
    return max(ranks, key=ranks.__getitem__, default=None)


def _shared_parts(one: str, other: str) -> int:
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _cast(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cast the very same tensor, and its gradient; only to and from the meta device it becomes another one."""
    if (tensor.dtype, tensor.device) == (dtype, device):
        return tensor
    if tensor.is_meta or device.type == "meta":
        empty = torch.empty_like(tensor, dtype=dtype, device=device)
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    grad, tensor.grad = tensor.grad, None
    tensor.data = tensor.data.to(device, dtype)
    tensor.grad = grad if grad is None else grad.to(device, dtype)
    return tensor


def _encoder_layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Name the Transformer layers whose fused path would use the named modules without calling them."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [name for name in parents if isinstance(model.get_submodule(name), nn.TransformerEncoderLayer)]


def _unpack(model: nn.Module, undo: Undo) -> None:
    """Keep encoders from packing a padded batch for a fused path that a layer no longer takes."""
    module: Any
    for module in model.modules():
        unfused = isinstance(module, nn.TransformerEncoder) and any(
            isinstance(layer, ReadsGatedUnfused) for layer in module.layers
        )
        if unfused and hasattr(module, "use_nested_tensor"):
            undo.steps.append(partial(setattr, module, "use_nested_tensor", module.use_nested_tensor))
            module.use_nested_tensor = False


def check_forwards(model: nn.Module, recipe: Recipe) -> None:
    """Refuse modules that do not run the ``forward`` of their class.

    Args:
        model: The model.
        recipe: What is changed in it.

    Raises:
        UsageError: If there is one among the modules that the recipe changes.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in recipe.modules:
        if name in modules and has_own_forward(modules[name]):  # inside a silent module there may be none
            raise UsageError(
                f"{name!r} has a forward of its own, as hooks of accelerate set it, which would pass the change by: "
                "take the hooks off first (accelerate.hooks.remove_hook_from_module), and dispatch the model afterwards"
            )


def _change(module: nn.Module, change: type[Changed], undo: Undo, **attributes: Any) -> None:
    undo.steps.append(partial(_restore, module, type(module), rezero_attributes(module)))
    vars(module).pop("forward", None)  # the class's own
    swap_class(module, change)
    vars(module).update(attributes)


def _restore(module: nn.Module, kind: type[nn.Module], attributes: dict[str, Any]) -> None:
    if isinstance(module, Changed):  # not folded since
        restore_class(module)
        _become(module, kind, attributes)


def _become(module: nn.Module, kind: type[nn.Module], attributes: dict[str, Any]) -> None:
    module.__class__ = kind
    vars(module).update(attributes)


def _give_gate(model: nn.Module, leaf: nn.Module, gate: GateRecipe, undo: Undo) -> None:
    near = next((p for each in (leaf, model) for p in each.parameters() if p.is_floating_point()), None)
    dtype, device = (None, None) if near is None else (near.dtype, near.device)
    alpha = torch.full((max(gate.shape),), gate.init_value, dtype=gate_dtype(dtype), device=device)
    undo.steps.append(partial(leaf._parameters.pop, gate.parameter, None))
    leaf._parameters[gate.parameter] = nn.Parameter(alpha)  # register_parameter refuses where __getattr__ has any name


def _reset(model: nn.Module, leaf: nn.Module, gate: GateRecipe, undo: Undo) -> None:
    parameter = leaf.get_parameter(gate.parameter)
    before, put_back = parameter.data, _returning(model, f"{gate.leaf}.{gate.parameter}".lstrip("."))

    def unset() -> None:
        if isinstance(leaf, Changed):  # not folded since
            parameter.data = before
            put_back()

    undo.steps.append(unset)
    parameter.data = torch.full_like(parameter, gate.init_value, dtype=gate_dtype(parameter.dtype))
