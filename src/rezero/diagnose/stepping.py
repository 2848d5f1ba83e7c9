"""What an optimizer does to the gates, and what its first step would do."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rezero.diagnose.findings import Finding, Owners, report, where
from rezero.diagnose.first_step import first_step
from rezero.diagnose.stored import has_left_its_start, is_at_start, is_zero
from rezero.gate import AnyGate

__all__ = ["Stepping", "in_the_scaler"]

_SAFE = 3.0  # sum of the first steps of all gates: 3 / L a gate broke no training, at 10 / L the loss jumped
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
    """Optimizers and the gates that they have.

    Args:
        optimizers: One optimizer, or several as a list.
        owners: A model's gates by name.

    Raises:
        TypeError: If one of them is no optimizer.
    """

    def __init__(self, optimizers: Any, owners: Owners) -> None:
        several = isinstance(optimizers, list | tuple) and optimizers
        self.optimizers = [_read(each) for each in (optimizers if several else [optimizers])]
        self.owners = owners
        self.homes: Mapping[int, tuple[Any, Mapping[str, Any]]] = {
            id(parameter): (optimizer, group)
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        self.learning = any((group.get("lr") or 0) > 0 for _, group in self.homes.values())

    def findings(self) -> Iterator[Finding]:
        """Look at the gates' groups and at what the steps so far have made of them.

        Yields:
            What is wrong.
        """
        yield from report(
            "not in the optimizer",
            where(self.owners, lambda owner: id(owner.gate_parameter) not in self.homes),
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
            "left at zero",
            where(self.owners, self._is_pushed),
            "they are exactly 0 after a step, though the optimizer's momentum for them is not",
            "something sets them back: look for code that initialises or clamps the parameters",
        )
        yield from report(
            "changed by another initialisation",
            where(self.owners, self._is_changed),
            "they are not at their start, and the optimizer has made no step with them",
            "if they were not loaded from a checkpoint, set them back with gate.reset_gate() after the code that "
            "initialises the model; a start of your own belongs in the init_value of rezero.Gate or rezero.convert_",
            "risk",
        )

    def notes(self) -> Iterator[str]:
        """Tell what can mean trouble, or nothing.

        Yields:
            A line for a report.
        """
        most = max((_count(state) for each in self.optimizers for state in each.state.values()), default=0.0)
        unmoved = where(self.owners, self._is_unmoved)
        if unmoved and most >= _PATIENCE:
            yield (
                f"{len(unmoved)} gates, {unmoved[0]!r} first, are at their start without a step of the optimizer, "
                f"which made {most:g} with others: if they were not added or thawed just now, their .grad is None at "
                "each step, or something sets them back"
            )

    def grows(self, gradients: Mapping[str, Tensor | None]) -> bool:
        """Return whether the first step of the gates grows with their gradients, as that of SGD does.

        Args:
            gradients: The gates' gradients, by their names.

        Returns:
            Whether a gradient twice as large makes it larger by a tenth or more.
        """
        once, twice = (sum(self._sizes(gradients, scale).values()) for scale in (1.0, 2.0))
        return twice > 1.1 * once

    def first_step(self, branches: Counter[str], gradients: Mapping[str, Tensor | None]) -> Iterator[Finding]:
        """Add up how far the first step moves the gates.

        Args:
            branches: How many branches each gate scales.
            gradients: The gates' gradients, by their names.

        Yields:
            What is wrong.
        """
        steps = {name: branches[name] * size for name, size in self._sizes(gradients).items()}
        total = sum(steps.values())
        if total > _SAFE:
            yield Finding(
                "learning rate of the gates",
                tuple(self.owners),
                f"the first step moves all {branches.total()} branches at once, by {total:.3g} in sum: where branches "
                f"are as large as their input the output grows by up to exp({total:.3g})",
                self._lower(steps, 1 / branches.total()),
                "risk",
            )

    def _sizes(self, gradients: Mapping[str, Tensor | None], scale: float = 1.0) -> dict[str, float]:
        """Return how far each gate that has made no step yet is moved by its first."""
        sizes: dict[nn.Parameter, float] = {}
        first = {name: each.gate_parameter for name, each in self.owners.items() if not self._steps(each)}
        given = {first[name]: each * scale for name, each in gradients.items() if name in first and each is not None}
        for optimizer in self.optimizers:
            homes = (each for group in optimizer.param_groups for each in group["params"])
            sizes |= first_step(optimizer, {each: given[each] for each in homes if each in given})
        return {name: sizes.get(parameter, 0.0) for name, parameter in first.items()}

    def _lower(self, steps: Mapping[str, float], default: float) -> str:
        """Advise a rate at which steps that grow with it are safe."""
        rates = {name: self._option(self.owners[name], "lr", 0) for name in steps}
        slope = sum(steps[name] / rate for name, rate in rates.items() if rate > 0)
        if default * slope <= _SAFE / 2:
            return f"give the gates a rate of {default:.2g}, as rezero.param_groups does"
        return f"give the gates a rate of {1 / slope:.2g}, with the alpha_lr of rezero.param_groups"

    def _option(self, owner: AnyGate, name: str, default: float) -> float:
        value = self._group(owner).get(name)
        return float(default if value is None else value)

    def _group(self, owner: AnyGate) -> Mapping[str, Any]:
        _, group = self.homes.get(id(owner.gate_parameter), (None, {}))
        return group

    def _state(self, owner: AnyGate) -> Mapping[str, Any]:
        optimizer, _ = self.homes.get(id(owner.gate_parameter), (None, {}))
        state: Mapping[str, Any] = {} if optimizer is None else optimizer.state.get(owner.gate_parameter, {})
        return state

    def _steps(self, owner: AnyGate) -> float:
        return _count(self._state(owner))

    def _is_left(self, owner: AnyGate) -> bool:
        return is_zero(owner) and self._steps(owner) >= _PATIENCE

    def _is_pushed(self, owner: AnyGate) -> bool:
        """Return whether a momentum that counts no steps has moved a gate that is zero, unless a warm-up forbade it."""
        rate, state, shape = self._option(owner, "lr", 0), self._state(owner), owner.gate_parameter.shape
        if not is_zero(owner) or "step" in state or not 0 < self._option(owner, "initial_lr", rate) <= rate:
            return False
        return any(isinstance(each, Tensor) and each.shape == shape and bool(each.any()) for each in state.values())

    def _is_unmoved(self, owner: AnyGate) -> bool:
        learns = owner.gate_parameter.requires_grad and id(owner.gate_parameter) in self.homes
        return learns and not self._steps(owner) and is_at_start(owner)

    def _is_changed(self, owner: AnyGate) -> bool:
        """Return whether a gate has left its start without a step; plain SGD and L-BFGS don't tell who made steps."""
        group = self._group(owner)
        counts = bool(group.get("momentum")) or any(option in group for option in _KEEPS)
        return counts and not self._steps(owner) and has_left_its_start(owner)


def _count(state: Mapping[str, Any]) -> float:
    return float(state.get("step", any(each is not None for each in state.values())))


def _read(optimizer: Any) -> Any:
    if isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner  # of a scheduler, or a wrapper such as accelerate's
    if isinstance(optimizer, type) or not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise TypeError(f"optimizer must be a torch optimizer that has been made: got {optimizer!r:.80}")
    return optimizer
