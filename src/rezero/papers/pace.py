"""How fast alpha learns: rules that know the rate of everything else and the depth, and optimizers that obey them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rezero.hold import hold_gates
from rezero.optim import param_groups

__all__ = ["OPTIMIZERS", "RECIPE", "RULES", "Kind", "Pace", "Stepper", "fixed"]


@dataclass(frozen=True)
class Pace:
    """How fast alpha learns in one training.

    Attributes:
        rate: Its learning rate.
        most: Sum over all gates of what one step may change them by; a larger step is made smaller, for all alike.
        start: Its rate before the first step; it rises evenly to ``rate``.
        rise: Over how many steps; 0 for none.
    """

    rate: float
    most: float = math.inf
    start: float = 0.0
    rise: int = 0

    def __str__(self) -> str:
        risen = f" from {self.start:.3g} over {self.rise} steps" if self.rise else ""
        held = "" if math.isinf(self.most) else f" held to {self.most:g} a step"
        return f"alpha at {self.rate:.3g}{risen}{held}"

    def at(self, step: int) -> float:
        """Return the rate of a step.

        Args:
            step: From 0.

        Returns:
            The rate.
        """
        return self.rate if step >= self.rise else self.start + (self.rate - self.start) * step / self.rise

    def hold(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Hold the steps of a model's gates, if there is a limit.

        Args:
            optimizer: Trains the gates.
            model: The model.
        """
        if math.isfinite(self.most):
            hold_gates(optimizer, model, most=self.most)


RISE = 100
HELD = 1.0


def _risen(rate: float, start: float) -> Pace:
    return Pace(rate, start=start, rise=RISE) if start < rate else Pace(rate)


RULES: Mapping[str, Callable[[float, int], Pace]] = {
    "lr": lambda lr, _: Pace(lr),
    "lr / sqrt(L)": lambda lr, depth: Pace(lr / math.sqrt(depth)),
    "lr / L": lambda lr, depth: Pace(lr / depth),
    "min(lr, 1 / L)": lambda lr, depth: Pace(min(lr, 1 / depth)),
    "min(3 lr, 1 / L)": lambda lr, depth: Pace(min(3 * lr, 1 / depth)),
    "min(3 lr, 3 / L)": lambda lr, depth: Pace(min(3 * lr, 3 / depth)),
    "10 lr / sqrt(L)": lambda lr, depth: Pace(10 * lr / math.sqrt(depth)),
    "from 1 / L to 10 lr / sqrt(L)": lambda lr, depth: _risen(10 * lr / math.sqrt(depth), 1 / depth),
    "3 lr, held": lambda lr, _: Pace(3 * lr, most=HELD),
    "10 lr / sqrt(L), held": lambda lr, depth: Pace(10 * lr / math.sqrt(depth), most=HELD),
    "20 lr / sqrt(L), held": lambda lr, depth: Pace(20 * lr / math.sqrt(depth), most=HELD),
    "20 lr / sqrt(L), held to 0.3": lambda lr, depth: Pace(20 * lr / math.sqrt(depth), most=0.3),
}
"""Name to rule: of the rate of everything else and the number ``L`` of gated branches. ``held``: to 1 a step in all."""
RECIPE = "20 lr / sqrt(L), held"
"""The rule that the page on alpha's rate advises."""


def fixed(branches: int) -> list[Pace]:
    """Return rates that know nothing of the depth, of which the best is looked for at each: two a decade.

    Args:
        branches: Their number; rates that would let each step change the sum of all gates by more than 30 are left out.

    Returns:
        Paces from 1e-4 up.
    """
    return [Pace(rate) for rate in (10 ** (power / 2) for power in range(-8, 0)) if rate * branches <= 30]


@dataclass(frozen=True)
class Kind:
    """An optimizer.

    Attributes:
        make: Its class in torch.
        lr: Rate of everything but alpha; of Muon, of everything but alpha and what Muon trains itself.
        muon: Rate at which Muon trains the matrices of the blocks; None leaves them to the optimizer.
    """

    make: Callable[..., torch.optim.Optimizer]
    lr: float
    muon: float | None = None


OPTIMIZERS: Mapping[str, Kind] = {
    "SGD": Kind(torch.optim.SGD, 0.1),
    "Adagrad": Kind(torch.optim.Adagrad, 0.01),
    "AdamW": Kind(torch.optim.AdamW, 0.001),
    "Muon": Kind(torch.optim.AdamW, 0.001, muon=0.02),
}


class Stepper:
    """Optimizers of a model whose gates learn at a pace.

    Args:
        model: The model.
        kind: The optimizer.
        pace: Of alpha; None for a model without gates.
        hidden: What the rate of the blocks' own parameters is multiplied by.
        blocks: The module that the blocks are in.
    """

    def __init__(self, model: nn.Module, kind: Kind, pace: Pace | None, hidden: float, blocks: nn.Module) -> None:
        self.pace = pace
        inside = {id(each) for each in blocks.parameters()}
        groups = []
        matrices: list[Tensor] = []
        for group in param_groups(model, lr=kind.lr, weight_decay=0.0, alpha_lr=pace.at(0) if pace else 0.0):
            own = [each for each in group["params"] if id(each) in inside and group["name"] != "gates"]
            rest = [each for each in group["params"] if not any(each is one for one in own)]
            if kind.muon is not None and group["name"] == "decayed":
                matrices, own = own, []
            groups += [{**group, "params": rest}, {**group, "params": own, "lr": kind.lr * hidden}]
        self.optimizers = [kind.make([group for group in groups if group["params"]], lr=kind.lr, fused=True)]
        if pace:
            pace.hold(self.optimizers[0], model)
        if matrices:
            assert kind.muon is not None  # noqa: S101 - there are none otherwise
            self.optimizers.append(torch.optim.Muon(matrices, lr=kind.muon * hidden, weight_decay=0.0))
        self.steps = 0

    def step(self, loss: Tensor) -> None:
        """Take a step.

        Args:
            loss: What becomes smaller.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if self.pace and group.get("name") == "gates":
                    group["lr"] = self.pace.at(self.steps)
            optimizer.step()
        self.steps += 1
