"""Write the gates into the weights, for a model that is trained: nothing is left of them, and the outputs stay."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rezero.errors import UsageError
from rezero.surgery.gated import (
    Changed,
    GatedOutput,
    GatedWeight,
    ReadsGated,
    ReadsGatedUnfused,
    ReusedScale,
    SharedOutput,
    SharedWeight,
    restore_class,
)
from rezero.surgery.saved import note, recall

__all__ = ["Folded", "fold_"]

_Leaf = GatedOutput | GatedWeight | ReusedScale | SharedOutput | SharedWeight

# Where a layer of each kind has its output features: the axis of the weight. Biases have one axis.
_AXES: tuple[tuple[tuple[type[nn.Module], ...], int], ...] = (
    ((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), 0),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1),
    ((nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm), 0),
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
        lines = [f"{len(self.folded)} gates folded into the weights, {len(self.left)} left"]
        return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in self.left)])


def fold_(model: nn.Module) -> Folded:
    r"""Write every gate of a converted model into its layer's weights: ``alpha * (W h + b) = (alpha W) h + alpha b``.

    The layers get their own classes back, and the gates leave the state dict, so the checkpoint loads into the original
    model. The outputs stay, to rounding. A gate that can't be folded stays, and is named.

    Args:
        model: A model that `convert_` gated.

    Returns:
        What was folded and what was left.

    Raises:
        UsageError: If the model has no gates.

    Example:
        >>> import rezero
        >>> model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(1, 3, 8)
        >>> conversion = rezero.convert_(model, x, init_value=0.5)
        >>> rezero.fold_(model).folded
        ('self_attn.out_proj', 'linear2')
    """
    leaves = {name: module for name, module in model.named_modules() if isinstance(module, _Leaf)}
    if not leaves:
        raise UsageError("expected a model that rezero.convert_ has gated, found no gated layer in it")
    uses = _uses(model)
    groups: dict[int, list[str]] = {}  # the layers that share a gate are folded together or not at all
    for name, leaf in leaves.items():
        groups.setdefault(id(_owner(leaf)), []).append(name)
    folded: list[str] = []
    left: list[tuple[str, str]] = []
    for names in groups.values():
        scaled: list[tuple[Tensor, Tensor]] = []
        problem: tuple[str, str] | None = None
        for name in names:
            numbers = _scaled(leaves[name], uses)
            if isinstance(numbers, str):
                problem = name, numbers
                break
            scaled += numbers
        if problem is not None:
            reason = problem[1] if len(names) == 1 else f"{problem[0]} shares its gate, and {problem[1]}"
            left += [(name, reason) for name in names]
            continue
        for parameter, new in scaled:
            with torch.no_grad():
                parameter.copy_(new)
        for leaf in (leaves[name] for name in names):
            if isinstance(leaf, GatedOutput | GatedWeight):
                del leaf._parameters[leaf.rezero_gate.parameter]
        for name in names:
            restore_class(leaves[name])
        folded += names
    for module in model.modules():
        _tell(module)
    return Folded(tuple(name for name in leaves if name in folded), tuple(left))


def _tell(module: nn.Module) -> None:
    """Take folded gates off the list of a module that reads gated weights, and of one that was converted."""
    if isinstance(module, ReadsGated):
        module.rezero_weights = tuple(layer for layer in module.rezero_weights if isinstance(layer, Changed))
        if not module.rezero_weights and not isinstance(module, ReadsGatedUnfused):
            restore_class(module)
    if recipe := recall(module):
        gates = tuple(gate for gate in recipe.gates if isinstance(module.get_submodule(gate.leaf), _Leaf))
        note(module, replace(recipe, gates=gates))


def _owner(leaf: Any) -> Any:
    return leaf.rezero_owner[0] if isinstance(leaf, SharedOutput | SharedWeight) else leaf


def _uses(model: nn.Module) -> dict[int, list[str]]:
    """Name the places of every parameter."""
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    return uses


def _scaled(leaf: Any, uses: dict[int, list[str]]) -> list[tuple[Tensor, Tensor]] | str:
    """Return a layer's parameters with their folded numbers, or why it can't be folded."""
    if isinstance(leaf, ReusedScale):
        return []  # its gate is its weight
    if getattr(leaf, "rezero_moved", ()):
        return "an activation was moved into its branch"
    attention = leaf.original_class is nn.MultiheadAttention
    layer, kind = (leaf.out_proj, nn.Linear) if attention else (leaf, leaf.original_class)
    axis = _axis(kind)
    if axis is None and not _only_scales(leaf):
        return f"its layer, {kind.__name__}, is not known to be affine with weights of its own"
    own = {name: p for name, p in layer._parameters.items() if p is not None and p is not _gate_of(leaf)}
    if "weight" not in own and axis is not None:
        return "its layer has no weight"
    for parameter in own.values():
        if len(places := uses[id(parameter)]) > 1:
            return f"its parameter is shared: {', '.join(places)}"
    scale = leaf.gate_scale.detach().double().flatten()
    groups = getattr(layer, "groups", 1)
    return [
        (parameter, parameter.double() * _beside(scale, parameter, axis or 0, groups)) for parameter in own.values()
    ]


def _gate_of(leaf: Any) -> Tensor | None:
    return leaf.gate_parameter if isinstance(leaf, GatedOutput | GatedWeight) else None


def _axis(kind: type[nn.Module]) -> int | None:
    """Return where a weight has its output features; None if the class may not be affine."""
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
    return scale.view([-1 if each == axis else 1 for each in range(parameter.ndim)])


def _only_scales(leaf: Any) -> bool:
    """Try whether a layer whose parameters are all vectors, a LayerScale or a norm, is linear in them together."""
    own = [p for p in leaf._parameters.values() if p is not None and p is not _gate_of(leaf)]
    if (
        not own
        or any(p.ndim > 1 for p in own)
        or len(own) < len(list(leaf.parameters())) - (_gate_of(leaf) is not None)
    ):
        return False
    layer = copy.deepcopy(leaf).eval().double()
    restore_class(layer)
    parameters = [p for name, p in layer._parameters.items() if p is not None and p.numel() == own[0].numel()]
    channels = own[0].numel()
    for shape in ((2, channels), (2, 3, channels), (2, channels, 4, 4), (2, 4, 4, channels)):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(own[0].device)
        try:
            with torch.no_grad():
                before = layer(x.clone())
                for parameter in parameters:
                    parameter.mul_(3.0)
                after = layer(x.clone())
                for parameter in parameters:
                    parameter.div_(3.0)
        except Exception:  # noqa: S112 - somebody's layer may refuse a shape in any way
            continue
        return isinstance(before, Tensor) and torch.allclose(after, 3 * before, rtol=1e-9, atol=0)
    return False
