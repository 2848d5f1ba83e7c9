"""Write the gates into the weights, for a model that is trained: nothing is left of them, and the outputs stay."""

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.gate import gates
from rezero.surgery.apply import check_module
from rezero.surgery.changed import Changed, has_own_forward, restore_class
from rezero.surgery.fit import check_intact
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
from rezero.surgery.saved import note, recall
from rezero.surgery.sites import counted
from rezero.zero_last import probe_shapes

__all__ = ["Folded", "fold_"]

_Leaf = GatedOutput | GatedWeight | ReusedScale | SharedOutput | SharedWeight

# Where a layer of each kind has its output features: the axis of the weight. Biases have one axis.
_AXES: tuple[tuple[tuple[type[nn.Module], ...], int], ...] = (
    ((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), 0),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1),
    ((nn.modules.batchnorm._BatchNorm, nn.GroupNorm), 0),
    ((nn.LayerNorm, nn.RMSNorm), -1),
)


@dataclass(frozen=True)
class Folded:
    """What `fold_` did.

    Attributes:
        folded: Names of the layers whose gate is in their weights now.
        left: Names of the layers that are still gated, each with the reason.
    """

    folded: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{counted(len(self.folded), 'gate')} folded into the weights, {len(self.left)} left"]
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in self.left)])


def fold_(model: nn.Module) -> Folded:
    r"""Write every gate of a converted model into its layer's weights: ``alpha * (W h + b) = (alpha W) h + alpha b``.

    The layers get their own classes back, and the gates leave the state dict, so the checkpoint loads into the original
    model. The outputs stay, to rounding: each fold is tried on a copy of its layer first. A gate that can't be folded
    stays, and is named.

    Args:
        model: A model that `convert_` gated.

    Returns:
        What was folded and what was left.

    Raises:
        TypeError: If ``model`` is not a module.
        UsageError: If the model has no gates, or no numbers, or if a module that was converted has been replaced since.

    Example:
        >>> import rezero
        >>> model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)
        >>> conversion = rezero.convert_(model, x, init_value=0.5)
        >>> rezero.fold_(model).folded
        ('self_attn.out_proj', 'linear2')
    """
    check_module(model)
    leaves = {name: module for name, module in model.named_modules() if isinstance(module, _Leaf)}
    blended = [name for name, module in model.named_modules() if isinstance(module, Blended)]
    if not leaves and not blended:
        others = len(gates(model))
        more = f"; its {counted(others, 'gate')} of ReZero blocks and layers stay what they are" if others else ""
        raise UsageError(f"expected a model that rezero.convert_ has gated, found no gated layer in it{more}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("the model is on the meta device and has no numbers: load them before folding")
    for module in model.modules():
        if recipe := recall(module):
            check_intact(module, recipe)
    memory = _memory(model)
    groups: dict[int, list[str]] = {}  # the layers that share a gate are folded together or not at all
    for name, leaf in leaves.items():
        groups.setdefault(id(_owner(leaf)), []).append(name)
    left = dict.fromkeys(blended, "its whole change is gated, which is no product of its weights")
    for names in groups.values():
        problems = _problems({name: leaves[name] for name in names}, memory)
        left |= problems
        if not problems:
            _fold([leaves[name] for name in names])
    for module in model.modules():
        _tell(module)
    return Folded(tuple(name for name in leaves if name not in left), tuple(left.items()))


def _tell(module: nn.Module) -> None:
    """Take folded gates off the list of a module that reads gated weights, and of one that was converted."""
    if isinstance(module, ReadsGated):
        module.rezero_weights = tuple(layer for layer in module.rezero_weights if isinstance(layer, Changed))
        if not module.rezero_weights and not isinstance(module, ReadsGatedUnfused):
            restore_class(module)
    if recipe := recall(module):
        gates = tuple(gate for gate in recipe.gates if isinstance(module.get_submodule(gate.leaf), _Leaf | Blended))
        note(module, replace(recipe, gates=gates))


def _owner(leaf: Any) -> Any:
    return leaf.rezero_owner[0] if isinstance(leaf, SharedOutput | SharedWeight) else leaf


@torch.no_grad()
def _fold(leaves: list[Any]) -> None:
    for leaf in leaves:
        for parameter, numbers in _scaled(leaf, _layer(leaf)):
            parameter.copy_(numbers)
    for leaf in leaves:
        if isinstance(leaf, GatedOutput | GatedWeight):
            del leaf._parameters[leaf.rezero_gate.parameter]
    for leaf in leaves:
        restore_class(leaf)


def _memory(model: nn.Module) -> dict[str, range]:
    """Return where the numbers of every parameter and buffer are, by all their names."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: range(tensor.data_ptr(), tensor.data_ptr() + max(1, tensor.nbytes))
        for name, tensor in tensors
        if tensor.layout is torch.strided
    }


def _problems(leaves: dict[str, Any], memory: dict[str, range]) -> dict[str, str]:
    """Return why each of the layers under a gate can't be folded; nothing if all can."""
    own = {name: problem for name, leaf in leaves.items() if (problem := _problem(leaf, memory)) is not None}
    return {
        name: own.get(name, f"{other} shares its gate, and {own[other]}") for other in [*own][:1] for name in leaves
    }


def _problem(leaf: Any, memory: dict[str, range]) -> str | None:
    """Return why a gate can't be folded, if it can't."""
    if has_own_forward(leaf):
        return "it has a forward of its own, as hooks of accelerate set it"
    if isinstance(leaf, ReusedScale):
        return None  # its gate is its weight
    if getattr(leaf, "rezero_moved", ()):
        return "an activation was moved into its branch"
    layer = _layer(leaf)
    kind = layer.original_class if isinstance(layer, Changed) else type(layer)
    own = _own(leaf, layer)
    if not own or (_axis(layer) is None and any(parameter.ndim > 1 for parameter in layer.parameters())):
        return f"its layer, {kind.__name__}, is not known to be affine with weights of its own"
    if _axis(layer) is not None and "weight" not in own:
        return f"the weight of its layer, {kind.__name__}, is computed from other parameters"
    for parameter in own.values():
        place = range(parameter.data_ptr(), parameter.data_ptr() + parameter.nbytes)
        places = [name for name, other in memory.items() if max(place[0], other[0]) <= min(place[-1], other[-1])]
        if len(places) > 1:
            return f"its parameter is shared: {', '.join(places)}"
    if others := leaf.rezero_gate.read_by:
        return f"its parameters are read by the code of {', '.join(name or 'the model' for name in others)} too"
    if not _is_tried(leaf, layer):
        return f"its layer, {kind.__name__}, does not scale with its parameters"
    return None


def _layer(leaf: Any) -> Any:
    """Return the layer that has the weights: of an attention it is the output projection."""
    return leaf.out_proj if leaf.original_class is nn.MultiheadAttention else leaf


def _own(leaf: Any, layer: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that are scaled: weight and bias of a known layer, all of another one."""
    gate = leaf.gate_parameter if isinstance(leaf, GatedOutput | GatedWeight | ReusedScale) else None
    own = {name: p for name, p in layer._parameters.items() if p is not None and p is not gate}
    return own if _axis(layer) is None else {name: p for name, p in own.items() if name in ("weight", "bias")}


def _scaled(leaf: Any, layer: Any) -> list[tuple[nn.Parameter, Tensor]]:
    """Return a layer's parameters with their folded numbers."""
    scale = leaf.gate_scale.detach().cpu().double().flatten()
    axis, groups = _axis(layer), getattr(layer, "groups", 1)
    return [
        (parameter, parameter.detach().cpu().double() * _beside(scale, parameter, axis or 0, groups))
        for parameter in _own(leaf, layer).values()
    ]


def _axis(layer: nn.Module) -> int | None:
    """Return where a layer's weight has its output features; None if its class may not be affine."""
    kind = layer.original_class if isinstance(layer, Changed) else type(layer)
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return 1  # its weight is transposed
    for kinds, axis in _AXES:
        for own in kinds:
            if issubclass(kind, own) and vars(nn.Module).get("forward") is not kind.forward:
                return axis if kind.forward is own.forward else None
    return None


def _beside(scale: Tensor, parameter: Tensor, axis: int, groups: int) -> Tensor:
    """Shape a scale so that it lies along the output features of a parameter."""
    if len(scale) == 1 or parameter.ndim == 1:
        return scale
    if axis == 1 and groups > 1:  # (in, out / groups, ...): the rows of a group have that group's features
        rows = scale.view(groups, -1).repeat_interleave(parameter.shape[0] // groups, dim=0)
        return rows.view(*rows.shape, *[1] * (parameter.ndim - 2))
    return scale.view([-1 if each == axis % parameter.ndim else 1 for each in range(parameter.ndim)])


def _is_tried(leaf: Any, layer: Any) -> bool:
    """Fold a copy in double precision: on random input it must return what the gated layer returns, to rounding."""
    scale = leaf.gate_scale.detach().cpu().double().view(leaf.rezero_gate.shape)
    try:
        gated, folded = (_copy(layer) for _ in range(2))
        for (name, parameter), (_, numbers) in zip(_own(leaf, layer).items(), _scaled(leaf, layer), strict=True):
            folded._parameters[name] = nn.Parameter(numbers.view(parameter.shape))
    except Exception:  # somebody's layer may be impossible to copy, and a gate may have another number of channels
        return False
    for shape in _shapes(layer):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), warnings.catch_warnings(action="error"):
                expected, got = gated(x.clone()), folded(x.clone())
                close = torch.allclose(got, scale * expected, rtol=1e-9, atol=1e-9 * float(got.abs().max()))
        except Exception:  # noqa: S112 - somebody's layer may refuse a shape in any way
            continue
        if (scale * expected).shape == got.shape:
            return close
    return False


def _copy(layer: nn.Module) -> Any:
    """Copy a layer as it was before its conversion, without its hooks, in double precision on the CPU."""
    twin = copy.deepcopy(layer).cpu().double().eval()
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    if isinstance(twin, Changed):
        restore_class(twin)
    return twin


def _shapes(layer: Any) -> list[tuple[int, ...]]:
    """Return shapes of input that a layer may take."""
    if _axis(layer) is not None and (shapes := probe_shapes(layer)):
        return shapes
    sizes = {size for parameter in layer.parameters() for size in parameter.shape if size > 1} or {8}
    return [shape for n in sorted(sizes) for shape in ((2, n), (2, 3, n), (2, n, 4, 4), (2, 4, 4, n))]
