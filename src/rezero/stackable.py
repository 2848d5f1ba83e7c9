"""The blocks that a `rezero.DeepStack` can be made of, and what it does for one kind in another way than for the other.

A unit is the block of one layer with its gate: ``ReZero(MLPBlock(dim))``, or a `TransformerEncoderLayer`, which has
gates of its own. A place is the name of a parameter in a unit.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from rezero.branch import is_plain
from rezero.gate import AnyGate, Gate, gate_dtype
from rezero.kernels.deep_stack import deep_stack
from rezero.layers.attention import Attention
from rezero.layers.mlp import MLPBlock
from rezero.layers.transformer import TransformerEncoderLayer
from rezero.residual import ReZero
from rezero.stacked import draw_layers, run_layers

__all__ = [
    "build_unit",
    "check_units",
    "draw",
    "find_children",
    "find_gates",
    "find_own",
    "find_weight",
    "named_class",
    "run",
]

_UNITS = "ReZero(MLPBlock(dim)) or TransformerEncoderLayer(...)"
_PLACES = {"weight": "branch.linear.weight", "bias": "branch.linear.bias"}  # in a ReZero(MLPBlock)
_PARTS: dict[type, dict[str, type[nn.Module]]] = {
    MLPBlock: {"linear": nn.Linear},
    TransformerEncoderLayer: {
        "self_attn": Attention,
        **dict.fromkeys(("self_attn.out_proj", "linear1", "linear2"), nn.Linear),
        **dict.fromkeys(("dropout", "dropout1", "dropout2"), nn.Dropout),
    },
}


def build_unit(block: nn.Module, init_value: float | None) -> nn.Module:
    """Build the unit of a template.

    Args:
        block: An MLPBlock, or a TransformerEncoderLayer.
        init_value: Where its gates start; None for where the template's own do, or for 0.

    Returns:
        The unit, with a copy of the template's values.

    Raises:
        TypeError: If the block is of another kind, or changed.
        ValueError: If its gates are not alike, it has buffers or one parameter twice, or ``init_value`` is not finite.
    """
    unit: nn.Module
    _check_block(block, "the block")
    if isinstance(block, MLPBlock):
        weight = block.linear.weight
        gate = Gate(init_value=init_value or 0.0, device=weight.device, dtype=gate_dtype(weight.dtype))
        unit = ReZero(MLPBlock(1, device="meta"), gate=gate)
        unit.branch = copy.deepcopy(block)  # later, as it may be zero: its numbers are not used
        return unit
    unit = copy.deepcopy(block)
    for gate in find_gates(unit).values():
        start = gate.init_value if init_value is None else init_value
        gate.init_value = Gate(init_value=start, device="meta", dtype=gate.alpha.dtype).init_value
    return unit


def find_gates(unit: nn.Module) -> dict[str, Gate]:
    """Return the gates of a unit by name; ``alpha`` of a stack holds their numbers side by side."""
    return {
        name: module for name, module in unit.named_modules() if name.startswith("gate") and isinstance(module, Gate)
    }


def find_own(unit: nn.Module) -> dict[str, list[str]]:
    """Return the parameters that a stack itself has, each with its places; the others lie in its children."""
    alpha = [f"{name}.alpha" for name in find_gates(unit)]
    own = {name: [place] for name, place in _PLACES.items()} if isinstance(unit, ReZero) else {}
    return {**own, "alpha": alpha}


def find_weight(unit: nn.Module) -> str:
    """Return the place of a parameter that an input must fit: its dtype, and its last axis."""
    return _PLACES["weight"] if isinstance(unit, ReZero) else "self_attn.in_proj_weight"


def find_children(unit: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a unit that a stack has as children by the same names."""
    if isinstance(unit, ReZero):
        return {}
    return {name: child for name, child in unit.named_children() if name != "gates"}


def draw(unit: Any, stacked: Mapping[str, Tensor]) -> None:
    """Draw all layers anew.

    Args:
        unit: The unit.
        stacked: Place to tensor, ``(L, *shape)``, changed in place.
    """
    if not isinstance(unit, ReZero):
        draw_layers(unit, stacked)
        return
    weight, bias = (stacked[place] for place in _PLACES.values())
    dim = weight.shape[-1]
    nn.init.normal_(weight, std=cast(MLPBlock, unit.branch).gain / math.sqrt(dim))  # Xavier-normal
    nn.init.uniform_(bias, -1 / math.sqrt(dim), 1 / math.sqrt(dim))


def run(unit: nn.Module, stacked: Mapping[str, Tensor], x: Tensor, masks: dict[str, Any], *, segments: bool) -> Tensor:
    """Run all layers.

    Args:
        unit: The unit.
        stacked: Place to tensor, ``(L, *shape)``.
        x: What the first layer gets.
        masks: What each layer gets beside.
        segments: Whether to keep what goes into segments of layers only.

    Returns:
        What the last layer returns.

    Raises:
        TypeError: If there is a mask for layers without attention.
    """
    if not isinstance(unit, ReZero):
        return run_layers(unit, stacked, x, segments=segments, **masks)
    given = [name for name, mask in masks.items() if mask is not None and mask is not False]
    if given:
        raise TypeError(
            f"expected x alone, as an MLPBlock has no attention to mask: got {', '.join(given)}; stack "
            "TransformerEncoderLayer for sequences"
        )
    return deep_stack(x, *(stacked[place] for place in (*_PLACES.values(), "gate.alpha")), segments=segments)


def check_units(units: Sequence[nn.Module]) -> None:
    """Refuse units that can't be stacked.

    Args:
        units: One for each layer.

    Raises:
        TypeError: If one is of another kind, or changed.
        ValueError: If there is none, one can't be stacked, one differs from the first, or two share a parameter.
    """
    for index, unit in enumerate(units):
        _check_unit(unit, f"block {index}")
    if not units:
        raise ValueError(f"expected at least one block {_UNITS}, got none")
    facts = [_facts(unit) for unit in units]
    for index, each in enumerate(facts):
        for name in {**facts[0], **each}:
            first, other = facts[0].get(name, "missing"), each.get(name, "missing")
            if first != other:
                raise ValueError(
                    f"blocks of a stack must be equal but for their values: {name} is {first} in block 0 and {other} "
                    f"in block {index}; stack those that are equal, one stack after the other"
                )
    places = sum(1 for unit in units for _ in unit.named_parameters(remove_duplicate=False))
    if len({id(each) for unit in units for each in unit.parameters()}) < places:
        raise ValueError("blocks of a stack must not share parameters, as each layer of a stack has its own")


def _check_unit(unit: nn.Module, name: str) -> None:
    if type(unit) is TransformerEncoderLayer:
        _check_block(unit, name)
        return
    if type(unit) is not ReZero or type(unit.gate) is not Gate:
        hint = "; wrap it, ReZero(MLPBlock(...))" if type(unit) is MLPBlock else _hint(unit)
        raise TypeError(f"expected blocks {_UNITS}, of rezero.layers: {name} is {named_class(unit)}{hint}")
    _check_block(unit.branch, name)
    if type(unit.branch) is not MLPBlock:
        raise TypeError(f"expected a TransformerEncoderLayer without ReZero around it, as it has gates: got {name}")
    if unit.dropout.p or unit.gate.activation or unit.gate.alpha.shape != (1,):
        raise ValueError(
            f"expected blocks without dropout, whose gate is one number without an activation: {name} is {unit}"
        )


def _check_block(block: object, name: str) -> None:
    """Refuse what is no unchanged MLPBlock or TransformerEncoderLayer."""
    kind = type(block)
    if not isinstance(block, nn.Module) or kind not in _PARTS:
        hint = "; give the branch without ReZero around it" if isinstance(block, ReZero) else _hint(block)
        raise TypeError(
            "a stack is made of unchanged rezero.layers.MLPBlock or rezero.layers.TransformerEncoderLayer, the kinds "
            f"that it can run so far: got {named_class(block)}{hint}"
        )
    modules, gates = dict(block.named_modules()), find_gates(block)
    for place, part in {**_PARTS[kind], **dict.fromkeys(gates, Gate)}.items():
        if type(modules.get(place)) is not part:
            raise TypeError(
                f"expected an unchanged {kind.__name__}, whose {place} is a {part.__name__}: in {name} it is a "
                f"{type(modules.get(place)).__name__}"
            )
    for place, module in modules.items():
        if not is_plain(module):
            raise TypeError(
                "expected blocks without hooks and with the forward of their classes, as a stack has no place for "
                f"others: {place or 'the whole'} of {name} has one; remove it, and add it to the stack"
            )
        if isinstance(module, AnyGate) and place not in gates:
            raise TypeError(f"expected blocks without other gates than their own: {name} has {place}")
    _check_numbers(block, gates, name)


def _hint(block: object) -> str:
    if isinstance(block, nn.TransformerEncoderLayer):
        return "; torch's own layer has norms: build rezero.layers.TransformerEncoderLayer with the same arguments"
    return ""


def named_class(thing: object) -> str:
    """Name the class of a thing, that of torch's layers with where they are from.

    Args:
        thing: Anything.

    Returns:
        Such as ``MLPBlock`` or ``torch.nn.Linear``.
    """
    kind = type(thing)
    return f"torch.nn.{kind.__name__}" if kind.__module__.startswith("torch.nn.modules.") else kind.__name__


def _check_numbers(block: nn.Module, gates: dict[str, Gate], name: str) -> None:
    starts = {gate.init_value for gate in gates.values()}
    if len(starts) > 1 or any(gate.activation or gate.alpha.shape != (1,) for gate in gates.values()):
        raise ValueError(
            f"expected gates of one number each, without an activation, that start alike: those of {name} are "
            f"{', '.join(map(str, gates.values()))}"
        )
    if buffers := [place for place, _ in block.named_buffers()]:
        raise ValueError(f"expected blocks without buffers, which a stack has no place for: {name} has {buffers[0]}")
    if len(list(block.parameters())) < len(list(block.named_parameters(remove_duplicate=False))):
        raise ValueError(f"blocks of a stack must not share parameters: {name} has one in two places")


def _facts(unit: nn.Module) -> dict[str, object]:
    """Tell what must be equal in all layers: what their parameters are like, and all that their modules hold."""
    facts: dict[str, object] = {}
    for place, parameter in unit.named_parameters():
        for fact in ("shape", "dtype", "device", "requires_grad"):
            facts[f"{place}.{fact}"] = getattr(parameter, fact)
    for place, module in unit.named_modules():
        facts[f"the class of {place or 'the block'}"] = type(module)
        for name, value in vars(module).items():
            if not name.startswith("_"):
                facts[f"{place}.{name}".removeprefix(".")] = _plain(value)
    return facts


def _plain(value: object) -> object:
    """Return something that equals its like from another copy of a block."""
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    return value.tolist() if isinstance(value, Tensor) else value
