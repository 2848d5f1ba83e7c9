"""What an optimizer does to the gates, and what its first step would do."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rezero.diagnose.findings import Finding, Owners, report, where
from rezero.gate import AnyGate

__all__ = ["Stepping", "in_the_scaler"]

_SAFE = 3.0  # sum of the first steps of all gates: 3 / L a gate broke no training, at 10 / L the loss jumped
_SIGNS = ("Ada", "NAdam", "RAdam", "RMSprop", "Rprop", "Lion", "LAMB", "Lamb", "Sophia")  # step by their rate at first
_LOWEST = 1.0  # a loss scale that has come down to this does not help
_KEEPS = ("betas", "eps", "etas", "lambd")  # options of optimizers that keep something of every parameter
_PATIENCE = 10  # steps: a warm-up starts at a rate of zero, and a head of zeros lets no gradient through at first


def in_the_scaler(scaler: Any) -> Iterator[Finding]:
    """Look at the loss scale.

    Args:
        scaler: A gradient scaler, or None.

    Yields:
        What is wrong.

    Raises:
        TypeError: If it is something else.
    """
    if scaler is not None and not (hasattr(scaler, "is_enabled") and hasattr(scaler, "get_scale")):
        raise TypeError(f"scaler must be a torch.amp.GradScaler: got {type(scaler).__name__}")
    if scaler is not None and scaler.is_enabled() and scaler.get_scale() <= _LOWEST:
        yield Finding(
            "loss scale at its minimum",
            (),
            f"the loss scale has fallen to {scaler.get_scale():g}, so that gradients overflow at any scale",
            "train in bfloat16 or float32, and look for the layer that is not finite",
            "fault",
        )


class Stepping:
    """An optimizer and the gates that it has.

    Args:
        optimizer: The optimizer.
        owners: A model's gates by name.

    Raises:
        TypeError: If it is no optimizer.
    """

    def __init__(self, optimizer: Any, owners: Owners) -> None:
        if isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # of a scheduler, or a wrapper such as accelerate's
        if isinstance(optimizer, type) or not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise TypeError(f"optimizer must be a torch optimizer that has been made: got {optimizer!r:.80}")
        self.optimizer, self.owners = optimizer, owners
        self.groups: Mapping[int, Mapping[str, Any]] = {
            id(parameter): group for group in optimizer.param_groups for parameter in group["params"]
        }
        self.learning = any((group.get("lr") or 0) > 0 for group in optimizer.param_groups)

    def findings(self) -> Iterator[Finding]:
        """Look at the gates' groups and at what the steps so far have made of them.

        Yields:
            What is wrong.
        """
        yield from report(
            "not in the optimizer",
            where(self.owners, lambda owner: id(owner.gate_parameter) not in self.groups),
            "no step changes them",
            "make the optimizer after the gates, from rezero.param_groups(model, lr=..., weight_decay=...), or add "
            "them with optimizer.add_param_group({'params': ..., 'lr': ..., 'weight_decay': 0.0})",
        )
        yield from report(
            "decayed",
            where(self.owners, lambda owner: self._option(owner, "weight_decay", 0) > 0),
            "weight decay pulls them back to zero, whatever they learn",
            "give them a group with weight_decay=0, as rezero.param_groups does",
            "risk",
        )
        yield from report(
            "learning rate zero",
            where(self.owners, lambda owner: self.learning and self._option(owner, "lr", 1) == 0),
            "their group's learning rate is 0, and that of others is not",
            "set the group's lr, or look at the schedule",
            "risk",
        )
        yield from report(
            "left at zero",
            where(self.owners, self._is_left),
            f"they are exactly 0 after {_PATIENCE} or more steps of the optimizer",
            "see the other findings; if there is none, something sets them back: look for code that initialises or "
            "clamps the parameters",
        )
        yield from report(
            "changed by another initialisation",
            where(self.owners, self._is_changed),
            "they are not at their start, and the optimizer has made no step with them",
            "if they were not loaded from a checkpoint, set them back with gate.reset_gate() after the code that "
            "initialises the model",
            "risk",
        )

    def first_step(self, branches: Counter[str], gradients: Mapping[str, Tensor | None]) -> Iterator[Finding]:
        """Add up how far the first step moves the gates.

        Args:
            branches: How many branches each gate scales.
            gradients: The gates' gradients, by their names.

        Yields:
            What is wrong.
        """
        like_signs = type(self.optimizer).__name__.startswith(_SIGNS)
        total = 0.0
        for name, owner in self.owners.items():
            gradient = gradients.get(name)
            if gradient is None or self._steps(owner):
                continue
            size = 1.0 if like_signs else float(gradient.abs().mean())
            total += branches[name] * self._option(owner, "lr", 0) * size
        if total > _SAFE:
            count = branches.total()
            yield Finding(
                "learning rate of the gates",
                tuple(self.owners),
                f"the first step moves all {count} branches at once, by {total:.3g} in sum: where branches are as "
                f"large as their input the output grows by up to exp({total:.3g})",
                f"give the gates a rate of {1 / count:.2g}, as rezero.param_groups does",
                "risk",
            )

    def _option(self, owner: AnyGate, name: str, default: float) -> float:
        value = self.groups.get(id(owner.gate_parameter), {}).get(name)
        return float(default if value is None else value)

    def _steps(self, owner: AnyGate) -> float:
        state = self.optimizer.state.get(owner.gate_parameter, {})
        return float(state.get("step", any(each is not None for each in state.values())))

    def _is_left(self, owner: AnyGate) -> bool:
        parameter: nn.Parameter = owner.gate_parameter
        return self._steps(owner) >= _PATIENCE and not parameter.is_meta and not bool(parameter.any())

    def _is_changed(self, owner: AnyGate) -> bool:
        """Return whether a gate has left its start without a step; plain SGD and L-BFGS don't tell who made steps."""
        group = self.groups.get(id(owner.gate_parameter), {})
        counts = bool(group.get("momentum")) or any(option in group for option in _KEEPS)
        parameter = owner.gate_parameter
        if not counts or id(parameter) not in self.groups or self._steps(owner) or parameter.is_meta:
            return False
        numbers = parameter.detach()
        return bool(numbers.isfinite().all()) and not torch.equal(numbers, torch.full_like(numbers, owner.gate_init))
