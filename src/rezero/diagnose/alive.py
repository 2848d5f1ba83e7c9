"""What a forward and a backward pass tell of the gates."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from rezero.diagnose.findings import Finding, Owners, report
from rezero.diagnose.liveness import Pass, is_finite, run
from rezero.diagnose.stepping import Stepping
from rezero.diagnose.stored import is_zero
from rezero.errors import UsageError
from rezero.gate import Gate, held
from rezero.optim import branches_by_gate, count_branches
from rezero.surgery.backward import Objective, started
from rezero.surgery.find import sort_additions, trace_learning

__all__ = ["in_a_pass"]


def in_a_pass(
    model: nn.Module,
    owners: Owners,
    objective: Objective,
    stepping: Stepping | None,
    notes: list[str],
    *,
    of_loss: bool,
) -> Iterator[Finding]:
    """Run a model as it is, and with closed gates a little open, which shows what lies behind them.

    Args:
        model: The model.
        owners: Its gates by name.
        objective: What is differentiated.
        stepping: Its optimizer.
        notes: Gets what could not be looked at.
        of_loss: Whether that is a loss, and not a random projection, whose gradients are of any size.

    Yields:
        What is wrong.
    """
    ajar_at, closed = 1 / max(1, count_branches(model)), [each for each in owners.values() if is_zero(each)]
    now = run(model, objective)
    with held(closed, ajar_at):
        ajar = run(model, objective)
    if any(each.broken is not None for each in (now, ajar)) or not math.isfinite(ajar.loss):
        yield _not_finite(now, ajar)
        return
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: parameters[id(owner.gate_parameter)] for name, owner in owners.items()}
    passes = [now, ajar]
    learning = [parameter for name, parameter in model.named_parameters() if now.moves(name)]
    if any(not each.any() for each in learning) and not all(now.moves(name) for name in names.values()):
        with started(learning), held(closed, ajar_at):  # a head of zeros lets gradients through after its first step
            passes.append(run(model, objective))
    yield from _dead(owners, names, passes)
    if stepping is not None:
        gradients = {name: now.gradients.get(names[name]) for name in names}
        if of_loss or not stepping.grows(gradients):
            counts = branches_by_gate(model)
            named = Counter({name: counts[owner] for name, owner in owners.items()})
            yield from stepping.first_step(named, gradients)
        else:
            notes.append("the first step of the gates, which grows with the loss, was not judged: give a loss function")
    yield from _activations(model, owners, now.inputs, notes)


def _not_finite(now: Pass, ajar: Pass) -> Finding:
    """Tell the module, the data or the loss that nan or infinity comes from."""
    name = "not finite"
    broken = now.broken if now.broken is not None else ajar.broken
    behind = ", which a closed gate hides for now" * (now.broken is None and math.isfinite(now.loss))
    if broken is not None:
        advice = "look at what overflows there: half precision, a division or a logarithm, a norm of a constant"
        advice += ", weights that nothing has initialised"
        return Finding(name, (broken,), f"its output is nan or infinite{behind}", advice, "fault")
    if not is_finite(now.inputs):
        return Finding(name, (), "the model's input holds nan or infinity", "look at the data", "fault")
    why = f"the loss is nan or infinite{behind}, and it is no module that makes it so"
    advice = "look at the loss function and its targets: a division or a logarithm of zero, a mean of nothing"
    return Finding(name, (), why, advice, "fault")


def _dead(owners: Owners, names: Mapping[str, str], passes: Sequence[Pass]) -> Iterator[Finding]:
    def moves(parameter: str) -> bool:
        return any(each.moves(parameter) for each in passes)

    beside = _beside(owners, names, passes[0])
    dead = [name for name, owner in owners.items() if owner.gate_parameter.requires_grad and not moves(names[name])]
    twice = [name for name in dead if is_zero(owners[name]) and any(map(moves, beside[name]))]
    yield from report(
        "zero twice",
        twice,
        "gate and branch are both zero on this input, so that neither gets a gradient, for ever",
        "initialise the branch's last layer or its scale as usual, or make the gate with another init_value, as "
        "rezero.Gate(init_value=0.1)",
    )
    yield from report(
        "cut off",
        [name for name in dead if name not in twice],
        "the gate gets no gradient, open or closed: what it scales is zero, multiplied by zero or detached, or does "
        "not reach the loss",
        "look for a second scale that is zero, which must be initialised, for detach(), no_grad() or .data behind the "
        "branch, and whether the loss depends on it; try other input",
    )
    yield from report(
        "branch without gradient",
        [name for name in owners if name not in dead and beside[name] and not any(map(moves, beside[name]))],
        "the gate learns, but the branch's own parameters get no gradient even where it is open",
        "look for detach(), no_grad() or .data in the branch",
    )


def _beside(owners: Owners, names: Mapping[str, str], current: Pass) -> Mapping[str, list[str]]:
    """Name the trainable parameters beside each gate: of the layer that owns it, or of the block that it is in."""
    gated, inside = set(names.values()), defaultdict(list)
    for parameter in current.gradients.keys() - gated:
        parts = parameter.split(".")
        for depth in range(len(parts)):
            inside[".".join(parts[:depth])].append(parameter)
    homes = {name: name.rpartition(".")[0] if isinstance(owner, Gate) else name for name, owner in owners.items()}
    return {name: inside[home] for name, home in homes.items()}


def _activations(model: nn.Module, owners: Owners, inputs: Any, notes: list[str]) -> Iterator[Finding]:
    """Look for activations after the addition, through which a closed block is not the identity."""
    if inputs is None:
        notes.append("activations after additions were not looked for: the loss does not call the model itself")
        return
    try:
        found = sort_additions(trace_learning(model, *inputs, numbers=True), long_skips=True, repeated="tie")
    except UsageError as error:
        notes.append(f"activations after additions were not looked for: {error}")
        return
    closed = {name for name, owner in owners.items() if owner.gate_init == 0}
    homes = {name.rpartition(".")[0] for name in closed if isinstance(owners[name], Gate)}
    layers = {name for name in closed if not isinstance(owners[name], Gate)}
    after = [site for site in (*found, *found.own) if site.activation_after is not None]
    converted = [site.name for site in after if any(branch.leaf in layers for branch in site.branches)]
    own = [site.name for site in after if any(_home(name) in homes for b in site.branches for name in b.scale)]
    name, why = (
        "activation after the addition",
        "a closed block is not the identity there, but changes what is negative",
    )
    yield from report(name, own, why, "move the activation into the branch, before its gate", "risk")
    yield from report(
        name,
        converted,
        why,
        "convert a new model, or this one after undo(), with rezero.convert_(..., activation_after='move'); an "
        "activation that is a function must become a module first",
        "risk",
    )


def _home(name: str) -> str:
    """Name the block that the parameter of a gate is in."""
    return name.rpartition(".")[0].rpartition(".")[0]
