"""Parameter groups: gates learn at their own rate and are never decayed."""

import math
from collections import Counter
from typing import Any

from torch import nn

from rezero.gate import AnyGate
from rezero.stack import DeepStack

__all__ = ["branches_by_gate", "count_branches", "default_alpha_lr", "param_groups"]


def param_groups(
    model: nn.Module, *, lr: float, weight_decay: float, alpha_lr: float | None = None
) -> list[dict[str, Any]]:
    r"""Split a model's parameters into groups for any torch optimizer.

    ``decayed`` holds the parameters with two or more axes, ``undecayed`` those with at most one (biases, norms), and
    ``gates`` every `rezero.Gate`, whatever its shape; the axis of the layers of a `rezero.DeepStack` does not count.
    Each parameter is in exactly one group, frozen ones too, so that they can be thawed later; empty groups are left
    out. A decayed gate shrinks even without a gradient: 0.5 falls to 0.18 in 1,000 AdamW steps.

    The default rate of the gates is ``min(3 * lr, 3 / L)`` with ``L`` the number of gated branches. A sign-like first
    step (Adam, Adagrad) moves every ``alpha`` by its whole rate at once and changes the output by about
    ``(1 + rate) ** L``, so ``L * rate`` must stay of order one. With `hold_gates` the rate can be higher. The page "The
    learning rate of alpha" has the measurement behind both.

    Args:
        model: Any module, with gates or without.
        lr: Learning rate of everything but the gates.
        weight_decay: Decay of the ``decayed`` group, in the optimizer's own unit.
        alpha_lr: Learning rate of the gates; by default ``min(3 * lr, 3 / L)``.

    Returns:
        Groups with the keys ``name``, ``params``, ``lr`` and ``weight_decay``.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If the model has no parameters, or a rate or the decay is negative or not finite.

    Example:
        >>> import torch, rezero
        >>> model = nn.Sequential(*(rezero.ReZero(nn.Linear(8, 8)) for _ in range(200)))
        >>> groups = rezero.param_groups(model, lr=0.01, weight_decay=0.1)
        >>> for group in groups:
        ...     print(group["name"], group["lr"], group["weight_decay"])
        decayed 0.01 0.1
        undecayed 0.01 0.0
        gates 0.015 0.0
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected the model itself, to tell its gates from other parameters: got {type(model).__name__}"
        )
    given = {"lr": lr, "weight_decay": weight_decay, "alpha_lr": 0.0 if alpha_lr is None else alpha_lr}
    for name, value in given.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, 0 or more: got {value}")
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(f"expected a model with parameters, got a {type(model).__name__} that has none")
    stacked = {id(p) for module in model.modules() if isinstance(module, DeepStack) for p in module.parameters()}
    gated = {id(module.gate_parameter) for module in model.modules() if isinstance(module, AnyGate)}
    if alpha_lr is None:
        alpha_lr = default_alpha_lr(model, lr)
    groups = [
        {
            "name": "decayed",
            "params": [p for p in parameters if id(p) not in gated and p.ndim - (id(p) in stacked) >= 2],
            "lr": lr,
            "weight_decay": weight_decay,
        },
        {
            "name": "undecayed",
            "params": [p for p in parameters if id(p) not in gated and p.ndim - (id(p) in stacked) < 2],
            "lr": lr,
            "weight_decay": 0.0,
        },
        {
            "name": "gates",
            "params": [p for p in parameters if id(p) in gated],
            "lr": alpha_lr,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def default_alpha_lr(model: nn.Module, lr: float) -> float:
    """Return the rate of the gates where none is given, ``min(3 * lr, 3 / L)``.

    Args:
        model: Any module; ``L`` is the number of its gated branches.
        lr: Learning rate of everything else.

    Returns:
        The rate.
    """
    return min(3 * lr, 3 / max(1, count_branches(model)))


def count_branches(model: nn.Module) -> int:
    """Count the gated branches that a signal passes: a gate or block used twice counts twice.

    Args:
        model: Any module.

    Returns:
        The number ``L`` of gated residual additions, read from the module tree.
    """
    return sum(branches_by_gate(model).values())


def branches_by_gate(model: nn.Module) -> Counter[AnyGate]:
    """Count the branches that each gate scales, as `count_branches` counts them.

    Args:
        model: Any module.

    Returns:
        Gate to number, in the order of the module tree.
    """
    found: Counter[AnyGate] = Counter()
    for _, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, AnyGate):
            found[module] += module.gate_branches
    return found
