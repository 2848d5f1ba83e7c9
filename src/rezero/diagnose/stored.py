"""What a model's own numbers tell of its gates."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from rezero.diagnose.findings import Finding, Owners, report, where
from rezero.gate import AnyGate

__all__ = ["has_left_its_start", "in_store", "is_at_start", "is_zero"]

_SATURATED = 5.0  # the slope of tanh is 2e-4 there


def in_store(model: nn.Module, owners: Owners) -> Iterator[Finding]:
    """Look at the gates' own numbers, and for layers that start as copies.

    Args:
        model: The model.
        owners: Its gates by name.

    Yields:
        What is wrong.
    """
    yield from report(
        "on the meta device",
        where(owners, lambda owner: owner.gate_parameter.is_meta),
        "they have no numbers",
        "after model.to_empty(device=...) load or initialise the other parameters too, and set each gate back: for "
        "gate in rezero.gates(model).values(): gate.reset_gate()",
    )
    yield from report(
        "frozen",
        where(owners, lambda owner: not owner.gate_parameter.requires_grad),
        "they do not require gradients",
        "thaw them with gate.gate_parameter.requires_grad_(True)",
    )
    yield from report(
        "in half precision",
        where(owners, lambda owner: owner.gate_parameter.dtype.itemsize < 4),
        "they round small steps away: a bfloat16 alpha of 0.5 can't take one of 1e-4",
        "keep them in float32: gate.gate_parameter.data = gate.gate_parameter.data.float()",
        "risk",
    )
    yield from report(
        "not finite",
        where(owners, _is_broken),
        "they are nan or infinite",
        "set them back with gate.reset_gate(), and look at the rate and the loss of the step before",
    )
    yield from report(
        "saturated",
        where(owners, _is_saturated),
        f"tanh is flat beyond {_SATURATED:g}, and lets hardly any gradient through",
        "set them back with gate.reset_gate(), and give them a lower rate",
        "risk",
    )
    yield from _cloned(model)


def is_zero(owner: AnyGate) -> bool:
    """Return whether all numbers of a gate are exactly zero."""
    return not owner.gate_parameter.is_meta and not bool(owner.gate_parameter.any())


def is_at_start(owner: AnyGate) -> bool:
    """Return whether a gate is what it was made with."""
    numbers = owner.gate_parameter.detach()
    return not numbers.is_meta and torch.equal(numbers, torch.full_like(numbers, owner.gate_init))


def has_left_its_start(owner: AnyGate) -> bool:
    """Return whether a gate is something else than it was made with, and finite."""
    parameter = owner.gate_parameter
    return not (parameter.is_meta or _is_broken(owner) or is_at_start(owner))


def _is_broken(owner: AnyGate) -> bool:
    parameter = owner.gate_parameter
    return not parameter.is_meta and not bool(parameter.isfinite().all())


def _is_saturated(owner: AnyGate) -> bool:
    parameter = owner.gate_parameter.detach()
    bounded = owner.gate_activation == "tanh" and not parameter.is_meta
    return bounded and bool((parameter.abs() > _SATURATED).any())


def _cloned(model: nn.Module) -> Iterator[Finding]:
    """Look for layers one after the other that start as copies, as nn.TransformerEncoder makes them."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        inside = [(f"{name}.{key}".lstrip("."), each) for key, each in module.named_children() if _gated(each)]
        copies = [second for (_, one), (second, other) in pairwise(inside) if _same_start(one, other)]
        yield from report(
            "copies of one layer",
            tuple(copies),
            "each has the very weights of the layer before it, and gets the same gradients while the gates are closed",
            "build each layer by itself, or draw its weights anew",
            "risk",
        )


def _gated(module: nn.Module) -> bool:
    return any(isinstance(each, AnyGate) for each in module.modules())


def _same_start(one: nn.Module, other: nn.Module) -> bool:
    """Return whether most of the numbers that are drawn are the same, though not shared."""
    if one is other or type(one) is not type(other):
        return False
    same = drawn = 0
    for a, b in zip(one.parameters(), other.parameters(), strict=False):
        if a is b or a.is_meta or b.is_meta or a.shape != b.shape or a.ndim < 2 or bool((a == a.flatten()[0]).all()):
            continue
        drawn += a.numel()
        same += a.numel() * torch.equal(a, b)
    return 2 * same > drawn
