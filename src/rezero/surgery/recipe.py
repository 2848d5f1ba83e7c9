"""What a conversion changes, as plain data: applied to a model, stored beside its weights, applied again."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.gate import gate_dtype
from rezero.surgery.gated import (
    Changed,
    GatedOutput,
    GatedWeight,
    Passed,
    ReadsGated,
    ReadsGatedUnfused,
    ReusedScale,
    SharedOutput,
    SharedWeight,
    has_own_forward,
    restore_class,
    swap_class,
)

__all__ = [
    "GateRecipe",
    "Recipe",
    "Undo",
    "apply_",
    "check_convertible",
    "check_forwards",
    "check_unwrapped",
    "drop_",
]

_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule"}


@dataclass(frozen=True)
class GateRecipe:
    """A gate and where it goes.

    Attributes:
        leaf: Qualified name of the module.
        shape: Shape of the scale beside the branch: ``(1,)``, ``(C,)`` or ``(C, 1, 1)``.
        init_value: Start of the gate (dimensionless).
        activation: None or ``"tanh"``.
        parameter: Name of the gate's parameter.
        branches: How many branches it scales.
        owner: The module whose gate it shares; None if it has its own.
        reader: The module that reads the leaf's weights without calling it; None if there is none.
        moved: The activation module that is applied to the branch instead of to the sum; None for none.
        read_by: Other modules whose code reads the leaf's parameters, so that a gate can't be folded into them.
        reused: Whether the module is a LayerScale, whose own parameter becomes the gate.
    """

    leaf: str
    shape: tuple[int, ...] = (1,)
    init_value: float = 0.0
    activation: str | None = None
    parameter: str = "alpha"
    branches: int = 1
    owner: str | None = None
    reader: str | None = None
    moved: str | None = None
    read_by: tuple[str, ...] = ()
    reused: bool = False


@dataclass(frozen=True)
class Recipe:
    """All changes of a conversion.

    Attributes:
        gates: The gates.
        norms: Norms that return their input.
        frozen: Their parameters that nothing else reads.
        activations: Activation modules that return their input.
        dropped: Modules without their parameters and buffers.
        version: Of this form.
    """

    gates: tuple[GateRecipe, ...]
    norms: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    version: int = 1

    def __bool__(self) -> bool:
        """Return whether anything is changed."""
        return bool(self.gates or self.norms or self.activations)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the gates' parameters."""
        return tuple(f"{gate.leaf}.{gate.parameter}".lstrip(".") for gate in self.gates if gate.owner is None)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that it speaks of."""
        gated = (name for gate in self.gates for name in (gate.leaf, gate.owner, gate.reader, gate.moved))
        return (*(name for name in gated if name is not None), *self.norms, *self.activations)

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, source: str) -> "Recipe":
        """Read what `to_json` returned.

        Args:
            data: The data.
            source: Where it comes from, for errors.

        Returns:
            The recipe.

        Raises:
            UsageError: If it is damaged, or of a newer form.
        """
        try:
            if data["version"] > cls.version:
                raise UsageError(f"{source} was written by a newer version of rezero: update it")
            pairs = ("shape", "read_by")
            gates = tuple(
                GateRecipe(**each | {name: tuple(each[name]) for name in pairs if name in each})
                for each in data["gates"]
            )
            lists = {name: tuple(data[name]) for name in ("norms", "frozen", "activations", "dropped")}
            return cls(gates, **lists, version=data["version"])
        except (KeyError, TypeError) as error:
            raise UsageError(f"{source} holds no recipe of a conversion, or is damaged: {error!r}") from error


def _gate_from_json(data: dict[str, Any]) -> GateRecipe:
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return GateRecipe(**data | lists)


def check_convertible(model: nn.Module) -> None:
    """Refuse a model that can't be changed in place.

    Args:
        model: Any module.

    Raises:
        TypeError: If it is none.
        UsageError: If it is wrapped, scripted, lazy or converted already, or gradients are off for good.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if torch.is_inference_mode_enabled():
        raise UsageError("torch.inference_mode is on, gates made in it could not be trained: convert outside of it")
    check_unwrapped(model)
    for name, module in model.named_modules():
        where = _where(name, module)
        if "quantized" in type(module).__module__:
            raise UsageError(f"{where} is quantized, its weights can't be trained: convert first, then quantize")
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(f"{where} is scripted, its code can't be followed: convert the model before torch.jit")
        if isinstance(module, Changed):
            raise UsageError(f"{where} has been converted already: call undo() of that conversion first")
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise UsageError(f"{where} is lazy, its shapes are not known yet: run the model once before")


def check_unwrapped(model: nn.Module) -> None:
    """Refuse a model that is compiled or distributed.

    Args:
        model: Any module.

    Raises:
        UsageError: If it is, or a part of it.
    """
    for name, module in model.named_modules():
        if _WRAPPERS & {kind.__name__ for kind in type(module).__mro__}:
            raise UsageError(f"{_where(name, module)} is a wrapped model: convert first, then compile or distribute it")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise UsageError(f"{_where(name, module)} is compiled in place: convert first, then compile")


def _where(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


@dataclass
class Undo:
    """Steps that put a model back, done in reverse.

    Attributes:
        steps: The steps.
    """

    steps: list[Callable[[], object]] = field(default_factory=list)

    def __call__(self) -> None:
        """Do the steps, the last one first; a second call does nothing."""
        while self.steps:
            self.steps.pop()()


def apply_(model: nn.Module, recipe: Recipe, undo: Undo) -> None:
    """Change a model's modules as a recipe says.

    Args:
        model: The model.
        recipe: The changes.
        undo: Gets what puts them back.

    Raises:
        UsageError: If a module has a ``forward`` of its own, which no class can change.
    """
    check_forwards(model, recipe)
    unfused = _unfused(model, recipe)
    readers: dict[str, list[nn.Module]] = {name: [] for name in unfused}
    for gate in recipe.gates:
        leaf = model.get_submodule(gate.leaf)
        if gate.reused:
            _change(leaf, ReusedScale, undo, rezero_gate=gate)
            _reset(leaf, gate, undo)
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
    drop_(model, recipe.dropped, undo)


def drop_(model: nn.Module, names: Sequence[str], undo: Undo) -> None:
    """Take the parameters and buffers of modules away, as those without such have them: as None.

    Args:
        model: The model.
        names: The modules, without those inside them.
        undo: Gets what puts the very same tensors back.
    """
    for module in map(model.get_submodule, names):
        for store in (module._parameters, module._buffers):
            undo.steps.append(partial(store.update, dict(store)))
            store.update(dict.fromkeys(store))


def _unfused(model: nn.Module, recipe: Recipe) -> list[str]:
    """Name the Transformer layers whose fused path would use what a recipe takes out of them."""
    parents = dict.fromkeys(name.rpartition(".")[0] for name in recipe.norms)
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
    for name in recipe.modules:
        if has_own_forward(model.get_submodule(name)):
            raise UsageError(
                f"{name!r} has a forward of its own, as hooks of accelerate set it, which would pass the change by: "
                "take the hooks off first (accelerate.hooks.remove_hook_from_module), and dispatch the model afterwards"
            )


def _change(module: nn.Module, change: type[Changed], undo: Undo, **attributes: Any) -> None:
    def put_back() -> None:
        if isinstance(module, Changed):  # not folded since
            restore_class(module)

    undo.steps.append(put_back)
    vars(module).pop("forward", None)  # the class's own
    swap_class(module, change)
    vars(module).update(attributes)


def _give_gate(model: nn.Module, leaf: nn.Module, gate: GateRecipe, undo: Undo) -> None:
    near = next((p for each in (leaf, model) for p in each.parameters() if p.is_floating_point()), None)
    dtype, device = (None, None) if near is None else (near.dtype, near.device)
    alpha = torch.full((max(gate.shape),), gate.init_value, dtype=gate_dtype(dtype), device=device)
    leaf.register_parameter(gate.parameter, nn.Parameter(alpha))
    undo.steps.append(partial(leaf._parameters.pop, gate.parameter, None))


def _reset(leaf: nn.Module, gate: GateRecipe, undo: Undo) -> None:
    parameter = leaf.get_parameter(gate.parameter)
    before = parameter.data

    def put_back() -> None:
        if isinstance(leaf, Changed):  # not folded since
            parameter.data = before.to(parameter.device)

    undo.steps.append(put_back)
    parameter.data = torch.full_like(parameter, gate.init_value, dtype=gate_dtype(parameter.dtype))
