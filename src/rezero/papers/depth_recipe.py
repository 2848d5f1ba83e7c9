"""One rule for alpha's learning rate, from 8 to 10,000 layers: loss after 300 steps against depth, for each rule.

Fully connected networks on scikit-learn's digits and Transformers on English text, with SGD, Adagrad, AdamW and Muon,
everything but alpha at a rate that stays as it is. At each depth the rules are held against the best of all fixed
rates of alpha, and against other ways to go deep.

    rezero reproduce depth-recipe
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import lab
from rezero.charts import save
from rezero.charts.depth import Panel, depth_panels
from rezero.data.batches import TensorData
from rezero.data.digits import load_digits
from rezero.data.windows import TextData
from rezero.gate import gates
from rezero.layers import MLP, LanguageModel, MLPBlock
from rezero.optim import count_branches
from rezero.papers.claims import Claim, Finding, judge, written
from rezero.papers.pace import FIXED, OPTIMIZERS, RULES, Pace, Stepper
from rezero.papers.plain_text import load_plain_text, loss_of
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import compare_own
from rezero.stack import DeepStack

__all__ = ["DEFAULT", "DEPTH_RECIPE", "NETS", "Bytes", "Digits", "Paced", "run", "train"]

DEFAULT = "min(lr, 1 / L)"
"""The rule of `rezero.param_groups`."""
STEPS, EVERY, EARLY = 300, 20, 100
STEADY = 1.05
"""Largest loss of the first 100 steps, over that of the untrained model on the same batch."""
ALIKE = 1.1
"""Final loss over that of the best fixed rate."""
MUP = "branches / sqrt(L)"


class Stack(nn.Module):
    """The fully connected network, its layers in one stack.

    Args:
        width: Of the layers.
        depth: Their number.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = DeepStack(MLPBlock(width), depth)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of digits ``(B, 64)``, ``(B, 10)``."""
        y: Tensor = self.output(self.blocks(F.relu(self.input(x))))
        return y


@cache
def _digits() -> TensorData:
    return load_digits()


_text: Callable[[int], TextData] = cache(load_plain_text)


@dataclass(frozen=True)
class Digits:
    """Fully connected networks that read digits.

    Attributes:
        depths: Optimizer to the numbers of layers.
        width: Of the layers.
        batch: Digits a step.
        rivals: Residual formulas beside, where layers are modules.
    """

    depths: Mapping[str, tuple[int, ...]]
    width: int = 16
    batch: int = 64
    rivals: tuple[str, ...] = ("pre-norm", "layerscale", "deepnorm")

    def build(self, depth: int, *, stacked: bool) -> nn.Module:
        """Make a network with gates."""
        return Stack(self.width, depth) if stacked else self.rival("rezero", depth)

    def rival(self, formula: str, depth: int) -> nn.Module:
        """Make one of another formula."""
        return MLP(64, self.width, depth, 10, residual=formula)

    def blocks(self, model: nn.Module) -> nn.Module:
        """Return what holds the layers."""
        return model.get_submodule("blocks")

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Return the loss on a batch, in nats."""
        inputs, targets = _digits().batch(seed, step, self.batch)
        return F.cross_entropy(model(inputs), targets)

    def digest(self) -> str:
        """Return what tells the data apart from others."""
        return "scikit-learn's digits"


@dataclass(frozen=True)
class Bytes:
    """Transformers that read English text.

    Attributes:
        depths: Optimizer to the numbers of layers.
        width: Of the layers.
        context: Bytes of a row.
        batch: Rows a step.
        rivals: Residual formulas beside.
    """

    depths: Mapping[str, tuple[int, ...]]
    width: int = 32
    context: int = 32
    batch: int = 8
    rivals: tuple[str, ...] = ("pre-norm", "layerscale", "deepnorm", "fixup")

    def build(self, depth: int, *, stacked: bool) -> nn.Module:
        """Make a network with gates; its layers are modules."""
        del stacked
        return self.rival("rezero", depth)

    def rival(self, formula: str, depth: int) -> nn.Module:
        """Make one of another formula; embeddings start alike in all."""
        return LanguageModel(self.width, depth, 4, residual=formula, embedding_std=self.width**-0.5)

    def blocks(self, model: nn.Module) -> nn.Module:
        """Return what holds the layers."""
        return model.get_submodule("layers")

    def loss(self, model: nn.Module, seed: int, step: int) -> Tensor:
        """Return the loss on a batch, in nats a byte."""
        inputs, targets = _text(self.context).batch(seed, step, self.batch)
        return loss_of(model(inputs), targets)

    def digest(self) -> str:
        """Return what tells the data apart from others."""
        return _text(self.context).digest()


Net = Digits | Bytes
_DEEP, _LAYERED, _TALL = (8, 64, 512, 10_000), (8, 64), (6, 24, 128)
NETS: Mapping[str, Net] = {
    "MLP": Digits({"SGD": _DEEP, "Adagrad": _DEEP, "AdamW": _DEEP, "Muon": _LAYERED}),
    "Transformer": Bytes({"SGD": _TALL, "Adagrad": _TALL, "AdamW": _TALL, "Muon": _TALL[:2]}),
}
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
        return {name: rule(self.lr, self.branches()) for name, rule in RULES.items()}

    def arms(self) -> dict[str, Callable[[nn.Module], nn.Module]]:
        """Return what is compared: each pace once, however many rules come to it, and the rivals."""
        paces = {str(pace): pace for pace in (*self.paces().values(), *FIXED)}
        arms: dict[str, Callable[[nn.Module], nn.Module]] = {
            name: partial(Paced, pace=pace) for name, pace in paces.items()
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


def run(nets: Mapping[str, Net], work: Work, steps: int = STEPS) -> dict[str, Any]:
    """Let the lab train every network at every depth with every optimizer and rule.

    Args:
        nets: What is trained, by name.
        work: Where.
        steps: Of each training.

    Returns:
        ``cells``: network, optimizer, depth, and by arm the seeds' ``ends`` and ``jumps``, None where not finite.
    """
    cells = []
    for name, net in nets.items():
        for optimizer, depths in net.depths.items():
            for depth in depths:
                cell = Cell(net, optimizer, depth, steps)
                here = {"net": name, "optimizer": optimizer, "depth": depth, "branches": cell.branches()}
                print(f"{name}, {optimizer}, {depth:,} layers", flush=True)
                folder = work.of(steps, name, asdict(net), net.digest(), here).folder / "study"
                cells.append({**here, "rules": _named(cell), **_told(cell, folder, work.seeds)})
    return {"steps": steps, "cells": cells}


def _named(cell: Cell) -> dict[str, str]:
    return {name: str(pace) for name, pace in cell.paces().items()}


def _told(cell: Cell, folder: Path, seeds: int) -> dict[str, Any]:
    arms = cell.arms()
    study = compare_own(
        folder,
        build=cell.build,
        train=cell.train,
        arms=arms,
        baseline=_named(cell)[DEFAULT],
        seeds=seeds,
        metric="train_loss",
    )
    last = {
        name: [points[-1] for points in found["points"].values() if points] for name, found in study["arms"].items()
    }
    return {
        "fixed": [str(pace) for pace in _constant(cell)],
        "arms": {
            name: {"ends": [each["train_loss"] for each in points], "jumps": [each["jump"] for each in points]}
            for name, points in last.items()
        },
    }


def _constant(cell: Cell) -> list[Pace]:
    """Return all paces that are one rate from first to last."""
    found = dict.fromkeys((*cell.paces().values(), *FIXED))
    return [pace for pace in found if not pace.rise and math.isinf(pace.most)]


def _end(cell: Mapping[str, Any], arm: str) -> float:
    """Return the median over the seeds of the loss at the end; infinite where most diverged."""
    return median(math.inf if end is None else end for end in cell["arms"][arm]["ends"])


def _jump(cell: Mapping[str, Any], arm: str) -> float:
    """Return the largest over the seeds."""
    return max(math.inf if jump is None else jump for jump in cell["arms"][arm]["jumps"])


def _best(cell: Mapping[str, Any]) -> float:
    return min(_end(cell, arm) for arm in cell["fixed"])


def tally(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Count where each rule does what it should.

    Args:
        summary: What `run` returned.

    Returns:
        Rule to ``cells``; those that are ``steady``, those ``alike`` the best fixed rate, and ``both``; the geometric
        mean of the final loss over that of the best fixed rate where it is finite, the ``worst`` of them, and how many
        are ``lost``.
    """
    found = {}
    for rule in RULES:
        ends = [(cell, cell["rules"][rule]) for cell in summary["cells"]]
        steady = [_jump(cell, arm) <= STEADY for cell, arm in ends]
        misses = [_end(cell, arm) / _best(cell) for cell, arm in ends]
        known = [miss for miss in misses if math.isfinite(miss)]
        found[rule] = {
            "cells": len(ends),
            "steady": sum(steady),
            "alike": sum(miss <= ALIKE for miss in misses),
            "both": sum(calm and miss <= ALIKE for calm, miss in zip(steady, misses, strict=True)),
            "mean": geometric_mean(known),
            "worst": max(known),
            "lost": len(misses) - len(known),
        }
    return found


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the loss at the end against depth: of the rules, and of the default beside other ways to go deep.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    about = f"Training loss after {summary['steps']} steps against depth, a panel each network and optimizer: "
    best = "best fixed rate"
    others = list(dict.fromkeys(arm for cell in summary["cells"] for arm in cell["arms"] if arm in _OTHERS))
    lines: dict[str, tuple[list[str], str]] = {
        "rules": ([best, *SHOWN], "rules for the rate of alpha, and the best of the fixed ones."),
        "rivals": ([DEFAULT, *others], "the default rule, and other ways to go deep at the same rates."),
    }
    for name, (drawn, said) in lines.items():
        panels = list(_panels(summary, drawn, best))
        chart = depth_panels(panels, x="layers", lines=drawn, log=True, description=about + said)
        save(chart, folder / name)
    return {name: about + said for name, (_, said) in lines.items()}


SHOWN = (
    "lr",
    "lr / L",
    "lr / sqrt(L)",
    "min(lr, 1 / L)",
    "min(10 lr, 1 / L)",
    "from min(lr, 1 / L) to lr",
    "lr, held",
)
_OTHERS = (MUP, *dict.fromkeys(name for net in NETS.values() for name in net.rivals))


def _panels(summary: Mapping[str, Any], drawn: list[str], best: str) -> Iterator[Panel]:
    kinds = dict.fromkeys((cell["net"], cell["optimizer"]) for cell in summary["cells"])
    for net, optimizer in kinds:
        rows = []
        for cell in summary["cells"]:
            if (cell["net"], cell["optimizer"]) != (net, optimizer):
                continue
            for line in drawn:
                arm = min(cell["fixed"], key=partial(_end, cell)) if line == best else cell["rules"].get(line, line)
                if arm in cell["arms"]:
                    ends = [math.inf if end is None else end for end in cell["arms"][arm]["ends"]]
                    spread = {"median": median(ends), "low": min(ends), "high": max(ends)}
                    rows.append({"line": line, "theory": False, "x": cell["depth"], **spread})
        yield Panel(f"{net}, {optimizer}: loss, nats", rows, log=True)


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say how often each rule does what it should, and where the default does not.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    said = [
        f"{rule}: {each['both']} of {each['cells']} (steady {each['steady']}, as good as the best fixed rate "
        f"{each['alike']}); loss over the best {written(each['mean'])}, at worst {written(each['worst'])}, "
        f"diverged {each['lost']}"
        for rule, each in tally(summary).items()
    ]
    for cell in summary["cells"]:
        arm = cell["rules"][DEFAULT]
        miss, jump = _end(cell, arm) / _best(cell), _jump(cell, arm)
        if miss > ALIKE or jump > STEADY:
            where = f"{cell['net']}, {cell['optimizer']}, {cell['depth']:,} layers"
            said.append(
                f"{DEFAULT} fails at {where}: loss {written(miss)} of the best, highest {written(jump)} of the start"
            )
    return said


def _one_rule(summary: Mapping[str, Any]) -> Finding:
    found = tally(summary)
    best = max(found, key=lambda rule: (found[rule]["both"], -found[rule]["mean"]))
    ours = found[DEFAULT]
    said = f"{DEFAULT}: both in {ours['both']} of {ours['cells']}, steady in {ours['steady']}, loss over the best "
    said += f"{written(ours['mean'])} (worst {written(ours['worst'])})"
    if best != DEFAULT:
        said += f"; most in {best}: {found[best]['both']}"
    return Finding(said, judge(ours["both"] == ours["cells"], ours["steady"] == ours["cells"]))


def _one_rate(summary: Mapping[str, Any]) -> Finding:
    """Ask whether alpha at the rate of everything else is steady."""
    jumps = {}
    for cell in summary["cells"]:
        if (jump := _jump(cell, cell["rules"]["lr"])) > STEADY:
            jumps[f"{cell['net']}, {cell['optimizer']}, {cell['depth']:,}"] = jump
    said = "; ".join(f"{where}: {'diverges' if math.isinf(jump) else written(jump)}" for where, jump in jumps.items())
    return Finding(
        f"largest loss of the first {EARLY} steps over that of the start, where it rises: {said or 'nowhere'}",
        judge(not jumps, len(jumps) < len(summary["cells"])),
    )


def _deeper(summary: Mapping[str, Any]) -> Finding:
    """Hold the default against other ways to go deep, cell by cell."""
    said, better = [], []
    for rival in _OTHERS:
        cells = [cell for cell in summary["cells"] if rival in cell["arms"]]
        if cells:
            won = sum(_end(cell, cell["rules"][DEFAULT]) < _end(cell, rival) for cell in cells)
            said.append(f"{rival} {won} of {len(cells)}")
            better.append(2 * won > len(cells))
    return Finding(f"networks where it ends lower: than {'; than '.join(said)}", judge(*better))


DEPTH_RECIPE = Reproduction(
    name="depth-recipe",
    shows="one rule for alpha's learning rate from 8 to 10,000 layers, against tuned ones and other ways to go deep",
    source="Bachlechner et al. (2020), arXiv:2003.04887, and the authors' notebook of 10,000 layers",
    version=1,
    scales={"laptop": Scale(minutes=140, seeds=3, run=partial(run, NETS))},
    write=write,
    lines=lines,
    claims=(
        Claim(
            "One rule needs no tuning at any depth: never above the loss of the start, as good as the best fixed rate",
            "ours",
            "",
            _one_rule,
        ),
        Claim("Alpha can learn at the rate of everything else", "authors' code", "no number", _one_rate),
        Claim(
            "At one rate for all depths it trains better than other ways to go deep",
            "ours; Yang et al. (2023), arXiv:2310.02244 (depth-muP), and the papers of the arms",
            "",
            _deeper,
        ),
    ),
)
