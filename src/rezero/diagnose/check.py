"""Is every gate alive? What a model, its optimizer and one batch tell before the training and during it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from rezero.diagnose.findings import Finding, Report
from rezero.diagnose.liveness import Pass, objective_of, run
from rezero.errors import UsageError
from rezero.gate import AnyGate, Gate, gates, held
from rezero.optim import count_branches
from rezero.surgery.backward import Objective

__all__ = ["check"]

_SAFE = 3.0  # sum of the first steps of all gates: 3 / L a gate broke no training, at 10 / L the loss jumped
_SIGNS = ("Ada", "NAdam", "RAdam", "RMSprop", "Rprop", "Lion", "LAMB", "Lamb", "Sophia")  # step by their rate at first
_LOWEST = 1.0  # a loss scale that has come down to this does not help

Owners = Mapping[str, AnyGate]
Groups = Mapping[int, Mapping[str, Any]]  # by the id of each parameter


def check(model: nn.Module, batch_or_loss_fn: Any, optimizer: Any = None, *, scaler: Any = None) -> Report:
    r"""Look for gates that can't learn, and for what makes others learn badly.

    The model runs forward and backward twice in training mode: as it is, and with closed gates a little open, which
    shows what lies behind them. Model, optimizer, gradients and random generators are left as they were.

    Args:
        model: A model with gates: of this library's blocks, or converted.
        batch_or_loss_fn: The model's input (several as a tuple, by name as a dictionary), or a function of the model
            that returns its loss.
        optimizer: The torch optimizer that is to train it, or does.
        scaler: The `torch.amp.GradScaler` of a training in float16.

    Returns:
        The findings; none for a healthy model.

    Raises:
        TypeError: If ``model`` is not a module.
        UsageError: If the model has no gates or no numbers, or the loss can't be differentiated.

    Example:
        >>> import rezero
        >>> model = nn.Sequential(rezero.ReZero(nn.Linear(4, 4)), rezero.ReZero(nn.Linear(4, 4)))
        >>> report = check(model, torch.randn(2, 4), torch.optim.Adam(p for p in model.parameters() if p.ndim > 1))
        >>> for finding in report:
        ...     print(finding.name, finding.where)
        not in the optimizer ('0.gate', '1.gate')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module: got {type(model).__name__}")
    owners = gates(model)
    if not owners:
        raise UsageError("the model has no gates: put some in with rezero.convert_(model, example) or rezero.ReZero")
    found = [*_stored(owners), *_cloned(model)]
    groups: Groups = {}
    if optimizer is not None:
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        found += _in_optimizer(owners, optimizer, groups)
    if scaler is not None and scaler.is_enabled() and scaler.get_scale() <= _LOWEST:
        found.append(
            Finding(
                "loss scale at its minimum",
                (),
                f"the loss scale has fallen to {scaler.get_scale():g}, so that gradients overflow at any scale",
                "train in bfloat16 or float32, and look for the layer that is not finite",
                "fault",
            )
        )
    if not any(parameter.is_meta for parameter in model.parameters()):
        found += _alive(model, owners, objective_of(batch_or_loss_fn), optimizer, groups)
    order = sorted(found, key=lambda finding: finding.severity != "fault")
    return Report(tuple(order), len(owners))


def _where(owners: Owners, test: Any) -> tuple[str, ...]:
    return tuple(name for name, owner in owners.items() if test(owner.gate_parameter))


def _report(name: str, where: tuple[str, ...], why: str, advice: str, severity: Any = "fault") -> Iterator[Finding]:
    if where:
        yield Finding(name, where, why, advice, severity)


# What is stored


def _stored(owners: Owners) -> Iterator[Finding]:
    """Look at the gates' own numbers."""
    yield from _report(
        "on the meta device",
        _where(owners, lambda p: p.is_meta),
        "they have no numbers",
        "after model.to_empty(device=...) set each back: for gate in rezero.gates(model).values(): gate.reset_gate()",
    )
    yield from _report(
        "frozen",
        _where(owners, lambda p: not p.requires_grad),
        "they do not require gradients",
        "thaw them with gate.gate_parameter.requires_grad_(True)",
    )
    yield from _report(
        "in half precision",
        _where(owners, lambda p: p.dtype.itemsize < 4),
        "they round small steps away: a bfloat16 alpha of 0.5 can't take one of 1e-4",
        "keep them in float32: gate.gate_parameter.data = gate.gate_parameter.data.float()",
        "risk",
    )
    yield from _report(
        "not finite",
        _where(owners, lambda p: not p.is_meta and not bool(p.isfinite().all())),
        "they are nan or infinite",
        "set them back with gate.reset_gate(), and look at the rate and the loss of the step before",
    )


def _cloned(model: nn.Module) -> Iterator[Finding]:
    """Look for layers one after the other that start as copies, as nn.TransformerEncoder makes them."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        inside = [(f"{name}.{key}".lstrip("."), each) for key, each in module.named_children() if _gated(each)]
        copies = [second for (_, one), (second, other) in pairwise(inside) if _same_start(one, other)]
        yield from _report(
            "copies of one layer",
            tuple(copies),
            "each has the very weights of the layer before it, and gets the same gradients while the gates are closed",
            "start them apart: call reset_parameters() on each layer",
            "risk",
        )


def _gated(module: nn.Module) -> bool:
    return any(isinstance(each, AnyGate) for each in module.modules())


def _same_start(one: nn.Module, other: nn.Module) -> bool:
    if one is other or type(one) is not type(other):
        return False
    pairs = list(zip(one.parameters(), other.parameters(), strict=False))
    weights = [(a, b) for a, b in pairs if a.ndim > 1]
    return bool(weights) and all(
        a is not b and not a.is_meta and a.shape == b.shape and torch.equal(a, b) for a, b in weights
    )


# What the optimizer does


def _in_optimizer(owners: Owners, optimizer: Any, groups: Groups) -> Iterator[Finding]:
    yield from _report(
        "not in the optimizer",
        _where(owners, lambda p: id(p) not in groups),
        "no step changes them",
        "make the optimizer after the gates, from rezero.param_groups(model, lr=..., weight_decay=...), or add them "
        "with optimizer.add_param_group",
    )
    yield from _report(
        "decayed",
        _where(owners, lambda p: groups.get(id(p), {}).get("weight_decay", 0) > 0),
        "weight decay pulls them back to zero: 0.5 falls to 0.18 in 1,000 steps of AdamW",
        "give them a group with weight_decay=0, as rezero.param_groups does",
        "risk",
    )
    yield from _report(
        "learning rate zero",
        _where(owners, lambda p: groups.get(id(p), {}).get("lr", 1) == 0),
        "their group's learning rate is 0",
        "set the group's lr, or look at the schedule",
        "risk",
    )
    yield from _report(
        "left at zero",
        _where(owners, lambda p: _steps(optimizer, p) > 0 and not p.is_meta and not bool(p.any())),
        "they are exactly 0 after steps of the optimizer",
        "see the other findings; if there is none, something sets them back: look for code that initialises the model",
    )
    changed = [
        name
        for name, owner in owners.items()
        if id(owner.gate_parameter) in groups and _fresh(optimizer, owner) and _moved(owner)
    ]
    yield from _report(
        "changed by another initialisation",
        tuple(changed),
        "they are not at their start, and the optimizer has made no step with them",
        "set them back with gate.reset_gate() after the code that initialises the model",
    )


def _steps(optimizer: Any, parameter: nn.Parameter) -> float:
    state = optimizer.state.get(parameter, {})
    return float(state.get("step", 1 if state.get("momentum_buffer") is not None else 0))


def _fresh(optimizer: Any, owner: AnyGate) -> bool:
    """Return whether an optimizer that counts its steps has made none: plain SGD keeps no count."""
    counts = type(optimizer).__name__ != "SGD" or any(group.get("momentum") for group in optimizer.param_groups)
    return counts and _steps(optimizer, owner.gate_parameter) == 0


def _moved(owner: AnyGate) -> bool:
    parameter = owner.gate_parameter
    if parameter.is_meta or not bool(parameter.isfinite().all()):
        return False
    return not torch.equal(parameter.detach(), torch.full_like(parameter, owner.gate_init))


# What a pass shows


def _alive(model: nn.Module, owners: Owners, objective: Objective, optimizer: Any, groups: Groups) -> Iterator[Finding]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: known[id(owner.gate_parameter)] for name, owner in owners.items()}
    size = 1 / max(1, count_branches(model))
    now = run(model, objective)
    with held([owner for owner in owners.values() if not bool(owner.gate_parameter.any())], size):
        ajar = run(model, objective)
    broken = now.broken if now.broken is not None else ajar.broken
    hidden = now.broken is None and math.isfinite(now.loss)
    if broken is not None or not math.isfinite(ajar.loss):
        yield Finding(
            "not finite",
            () if broken is None else (broken,),
            "its output is nan or infinite" + (", which a closed gate hides for now" if hidden else ""),
            "look at what overflows there: half precision, a division or a logarithm, a norm of a constant",
            "fault",
        )
        return
    yield from _dead(owners, names, now, ajar)
    if optimizer is not None:
        yield from _first_step(model, owners, names, now, optimizer, groups)


def _learns(owner: AnyGate) -> bool:
    return owner.gate_parameter.requires_grad and not owner.gate_parameter.is_meta


def _branch(name: str, owner: AnyGate, current: Pass, gated: frozenset[str]) -> list[str]:
    """Name the trainable parameters beside a gate: of the layer that owns it, or of the block that it is in."""
    home = name.rpartition(".")[0] if isinstance(owner, Gate) else name
    return [each for each in current.gradients if each not in gated and each.startswith(f"{home}." if home else "")]


def _dead(owners: Owners, names: Mapping[str, str], now: Pass, ajar: Pass) -> Iterator[Finding]:
    gated = frozenset(names.values())
    dead = [
        name
        for name, owner in owners.items()
        if _learns(owner) and not now.moves(names[name]) and not ajar.moves(names[name])
    ]
    beside = {name: _branch(name, owners[name], ajar, gated) for name in owners}
    twice = [name for name in dead if any(ajar.moves(each) for each in beside[name])]
    yield from _report(
        "zero twice",
        tuple(name for name in twice if not bool(owners[name].gate_parameter.any())),
        "gate and branch are both zero on this input, so that neither gets a gradient, for ever",
        "initialise the branch's last layer as usual, or start the gate elsewhere",
    )
    yield from _report(
        "branch is zero",
        tuple(name for name in twice if bool(owners[name].gate_parameter.any())),
        "the branch is zero on this input",
        "look at its last layer and its activations",
        "risk",
    )
    yield from _report(
        "cut off",
        tuple(name for name in dead if name not in twice),
        "the gate gets no gradient, open or closed: what it scales is detached, or does not reach the loss",
        "look for detach(), no_grad() or .data behind the branch, and whether the loss depends on it",
    )
    yield from _report(
        "branch without gradient",
        tuple(
            name
            for name in owners
            if name not in dead and beside[name] and not any(ajar.moves(each) for each in beside[name])
        ),
        "the gate learns, but the branch's own parameters get no gradient even where it is open",
        "look for detach(), no_grad() or .data in the branch",
    )


def _first_step(
    model: nn.Module, owners: Owners, names: Mapping[str, str], now: Pass, optimizer: Any, groups: Groups
) -> Iterator[Finding]:
    """Add up how far the first step moves the gates."""
    known = {id(owner): name for name, owner in owners.items()}
    branches: Counter[str] = Counter()
    for _, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AnyGate):
            branches[known[id(module)]] += module.gate_branches
    like_signs = type(optimizer).__name__.startswith(_SIGNS)
    total = 0.0
    for name, owner in owners.items():
        parameter, gradient = owner.gate_parameter, now.gradients.get(names[name])
        rate = float(groups.get(id(parameter), {}).get("lr", 0.0))
        if gradient is None or _steps(optimizer, parameter):
            continue
        total += branches[name] * rate * (1.0 if like_signs else float(gradient.abs().mean()))
    if total > _SAFE:
        count = sum(branches.values())
        yield Finding(
            "learning rate of the gates",
            tuple(owners),
            f"the first step moves all {count} branches at once, by {total:.3g} in sum: where branches are as large as "
            f"their input the output grows by up to exp({total:.3g})",
            f"give the gates a rate of {1 / count:.2g}, as rezero.param_groups does",
            "risk",
        )
