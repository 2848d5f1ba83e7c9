"""A cell of the depth recipe: networks of one depth, an optimizer, and all that is compared there."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import nn

from rezero import lab
from rezero.gate import gates
from rezero.optim import count_branches
from rezero.papers.depth_nets import Digits, Net
from rezero.papers.pace import OPTIMIZERS, RULES, Pace, Stepper, fixed

__all__ = ["EARLY", "MUP", "STEPS", "Cell", "Paced", "train"]

STEPS, EVERY, EARLY = 300, 20, 100
MUP = "branches / sqrt(L)"
MANY = 512
"""Layers up to which those of other formulas, which are modules, are trained."""


class Paced(nn.Module):
    """A model that knows how its gates and blocks learn.

    Args:
        model: The model.
        pace: Of the gates; None for a model without.
        hidden: What the rate of the blocks is multiplied by.
    """

    def __init__(self, model: nn.Module, pace: Pace | None, hidden: float = 1.0) -> None:
        super().__init__()
        self.model, self.pace, self.hidden = model, pace, hidden


@dataclass(frozen=True)
class Cell:
    """Networks of one depth and their optimizer.

    Attributes:
        net: What is trained.
        optimizer: By which.
        depth: Layers.
        steps: Of each training.
    """

    net: Net
    optimizer: str
    depth: int
    steps: int = STEPS

    @property
    def lr(self) -> float:
        """Return the rate of everything but alpha."""
        return OPTIMIZERS[self.optimizer].lr

    def build(self) -> nn.Module:
        """Make a network with gates; Muon takes matrices, no stacks of them."""
        return self.net.build(self.depth, stacked=OPTIMIZERS[self.optimizer].muon is None)

    def branches(self) -> int:
        """Return the number of gated branches."""
        with torch.device("meta"):
            return self.depth if isinstance(self.net, Digits) else count_branches(self.build())

    def paces(self) -> dict[str, Pace]:
        """Return what the rules come to here."""
        branches = self.branches()  # which builds a network
        return {name: rule(self.lr, branches) for name, rule in RULES.items()}

    def tried(self) -> list[Pace]:
        """Return every pace once: what the rules come to, and the fixed rates."""
        branches = self.branches()
        return list(dict.fromkeys((*(rule(self.lr, branches) for rule in RULES.values()), *fixed(branches))))

    def constant(self) -> list[Pace]:
        """Return those that are one rate from first to last."""
        return [pace for pace in self.tried() if not pace.rise and math.isinf(pace.most)]

    def arms(self) -> dict[str, Callable[[nn.Module], nn.Module]]:
        """Return what is compared: each pace once, however many rules come to it, and the rivals."""
        arms: dict[str, Callable[[nn.Module], nn.Module]] = {
            str(pace): partial(Paced, pace=pace) for pace in self.tried()
        }
        rivals = self.net.rivals if self.depth <= MANY else ()
        return {**arms, MUP: self.divided, **{name: partial(self.rival, name) for name in rivals}}

    def divided(self, model: nn.Module) -> nn.Module:
        """Let every branch count 1 / sqrt(L), for good (depth-muP: so does the rate of sign-like optimizers)."""
        share = self.branches() ** -0.5
        for gate in gates(model).values():
            nn.init.constant_(gate.gate_parameter, share).requires_grad_(False)
        return Paced(model, None, 1.0 if self.optimizer == "SGD" else share)

    def rival(self, formula: str, _: nn.Module) -> nn.Module:
        """Take another residual formula."""
        return Paced(self.net.rival(formula, self.depth), None)

    def train(self, model: Any) -> None:
        """Train a model, and log."""
        train(model, self)


def train(paced: Paced, cell: Cell) -> None:
    """Train a model, and log its loss.

    Each point has ``train_loss``, the mean of the last 20 steps, and ``jump``, the largest of the losses of the first
    100 steps, each over that of the untrained model on the same batch.

    Args:
        paced: The model.
        cell: What it is trained on, and how.
    """
    net = cell.net
    stepper = Stepper(paced.model, OPTIMIZERS[cell.optimizer], paced.pace, paced.hidden, net.blocks(paced.model))
    untrained, jump = copy.deepcopy(paced.model), 1.0
    losses: list[float] = []
    for step in range(1, cell.steps + 1):
        loss = net.loss(paced.model, lab.seed(), step - 1)
        losses.append(loss.item())
        lost = not math.isfinite(losses[-1])
        if step <= EARLY + 1:
            with torch.no_grad():
                start = net.loss(untrained, lab.seed(), step - 1).item()
            jump = math.inf if lost else max(jump, losses[-1] / start)
        if step % EVERY == 0 or lost:
            lab.log(step, train_loss=fmean(losses[-EVERY:]), jump=jump)
        if lost:
            return
        stepper.step(loss)
