"""Super-convergence: a PreAct-ResNet-18 in 45 epochs of one cycle, with gates and without.

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.3, and the authors' code: CIFAR-10, batches of 512, SGD from 0.032
to 1.2 to 0.001, momentum from 0.95 to 0.85 and back, decay 2e-4, alpha with an Adagrad of its own at 0.1. The authors
stored one run with gates and none without.

    rezero reproduce superconvergence
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import lab
from rezero.data.batches import TensorData
from rezero.data.cifar10 import load_cifar10
from rezero.functional import gated_residual
from rezero.gate import Gate
from rezero.optim import param_groups
from rezero.papers.claims import Claim, Finding, above, confirmed, ended, interval, judge
from rezero.papers.drawing import draw_arms
from rezero.papers.reading import ends_at, gain_of, speed_of
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import compare_own

__all__ = ["LAPTOP", "PAPER", "SUPERCONVERGENCE", "Plan", "PreActResNet18", "run", "train"]

PUBLISHED = 0.9391
"""Validation accuracy at the end of the authors' run; 0.9400 at its best epoch."""
NEAR = 0.0025  # of one run to another


@dataclass(frozen=True)
class Plan:
    """How large and how long.

    Attributes:
        width: Channels of the first stage; 64 in the paper.
        images: Of the training part, from its first; None for all.
        unseen: Of the test part.
        epochs: Passes.
        batch: Images a step.
        every: Epochs between measurements.
        device: Where.
    """

    width: int
    images: int | None
    unseen: int
    epochs: int = 45
    batch: int = 512
    every: int = 5
    device: str = "cpu"


LAPTOP = Plan(width=10, images=10_000, unseen=2_000)
PAPER = Plan(width=64, images=None, unseen=10_000, every=1, device="cuda")


class _Branch(nn.Sequential):
    """Norm, ReLU and convolution, twice: the first may halve the picture."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__(
            nn.BatchNorm2d(into),
            nn.ReLU(),
            nn.Conv2d(into, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )


class _Residual(nn.Module):
    """The sum of a skip and a branch, which may have a gate."""

    def __init__(self, branch: nn.Module, skip: nn.Module, gate: Gate | None) -> None:
        super().__init__()
        self.branch, self.skip, self.gate = branch, skip, gate

    def forward(self, x: Tensor) -> Tensor:
        """Add them."""
        if self.gate is not None:
            return gated_residual(self.skip(x), self.branch(x), self.gate.scale)
        y: Tensor = self.skip(x) + self.branch(x)
        return y


class PreActResNet18(nn.Module):
    """He et al.'s second residual network with 18 layers, for pictures of 32 x 32.

    Args:
        width: Channels of the first of four stages.
        gated: Whether each branch has a gate that starts at zero.

    References:
        He et al. (2016), arXiv:1603.05027, fig. 1 b.
    """

    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        into = width
        for stage in range(4):
            for block in range(2):
                out, stride = width * 2**stage, 2 if stage and not block else 1
                same = (into, stride) == (out, 1)
                skip = nn.Identity() if same else nn.Conv2d(into, out, 1, stride, bias=False)
                blocks.append(_Residual(_Branch(into, out, stride), skip, Gate() if gated else None))
                into = out
        self.first = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(into)
        self.output = nn.Linear(into, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures ``(B, 3, 32, 32)``, ``(B, 10)``."""
        y: Tensor = self.output(F.relu(self.norm(self.blocks(self.first(x)))).mean((2, 3)))
        return y


class Task:
    """What is trained on what.

    Args:
        plan: How large and how long.
        data: CIFAR-10.
    """

    def __init__(self, plan: Plan, data: TensorData) -> None:
        self.plan, self.data = plan, data

    def build(self) -> nn.Module:
        """Make the network without gates."""
        return PreActResNet18(self.plan.width, gated=False)

    def gated(self, _: nn.Module) -> nn.Module:
        """Make the one with gates."""
        return PreActResNet18(self.plan.width, gated=True)

    def train(self, model: nn.Module) -> None:
        """Train a model, and log."""
        train(model, self.plan, self.data, lab.seed())


def train(model: nn.Module, plan: Plan, data: TensorData, seed: int) -> None:
    """Train a model in one cycle, and log its accuracy.

    Args:
        model: The model.
        plan: How long.
        data: CIFAR-10.
        seed: Of the order of the pictures, and how they are cropped.
    """
    model, data = model.to(plan.device), data.to(plan.device)
    size = data.steps_per_epoch(plan.batch)
    groups = param_groups(model, lr=0.032, weight_decay=2e-4)
    gates = [group for group in groups if group["name"] == "gates"]
    optimizer = torch.optim.SGD([group for group in groups if group["name"] != "gates"], momentum=0.9)
    others = [torch.optim.Adagrad(gates[0]["params"], lr=0.1)] if gates else []
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.2, total_steps=plan.epochs * size, div_factor=1.2 / 0.032, final_div_factor=0.032 / 0.001
    )
    for step in range(plan.epochs * size):
        inputs, targets = data.batch(seed, step, plan.batch)
        loss = F.cross_entropy(model(inputs), targets)
        for each in (optimizer, *others):
            each.zero_grad()
        loss.backward()
        for each in (optimizer, *others):
            each.step()
        cycle.step()
        if (step + 1) % (plan.every * size) == 0:
            lab.log(step + 1, val_accuracy=_accuracy(model, data, plan), train_loss=loss.item())


@torch.no_grad()
def _accuracy(model: nn.Module, data: TensorData, plan: Plan) -> float:
    model.eval()
    batches = (data.val_batch(index, plan.batch) for index in range(data.val_steps(plan.batch)))
    right = sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches)
    model.train()
    return right / len(data.val_targets)


def load(plan: Plan) -> TensorData:
    """Load CIFAR-10, or the part of it that a plan takes.

    Args:
        plan: The plan.

    Returns:
        The pictures.
    """
    data = load_cifar10(layout="image")
    return replace(
        data,
        inputs=data.inputs[: plan.images],
        targets=data.targets[: plan.images],
        val_inputs=data.val_inputs[: plan.unseen],
        val_targets=data.val_targets[: plan.unseen],
    )


def run(plan: Plan, work: Work, data: TensorData | None = None) -> dict[str, Any]:
    """Train both arms on paired seeds, at the authors' rates.

    Args:
        plan: How large and how long.
        work: Where.
        data: In the place of CIFAR-10.

    Returns:
        The plan, the lab's verdict, each arm's curve, and the comparison.
    """
    task = Task(plan, load(plan) if data is None else data)
    found = compare_own(
        work.of(plan).folder,
        device=plan.device,
        build=task.build,
        train=task.train,
        arms={"residual": _same, "rezero": task.gated},
        baseline="residual",
        seeds=work.seeds,
        metric="val_accuracy",
    )
    return {"plan": asdict(plan), **found}


def _same(model: nn.Module) -> nn.Module:
    return model


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the accuracy over the steps.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    said = f"Validation accuracy over the steps of one cycle, median and range of {summary['seeds']} seeds."
    title = "validation accuracy"
    draw_arms(summary, folder / "accuracy", metric="val_accuracy", title=title, description=said, percent=True)
    return {"accuracy": said}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    [found] = summary["found"]
    said = [f"{arm}: {_end(summary, arm)} at the end" for arm in summary["arms"]]
    return [*said, f"rezero {gain_of(found, 'points', 100)}, {speed_of(found)}"]


def _end(summary: Mapping[str, Any], arm: str) -> str:
    return ended(ends_at(summary, arm, "val_accuracy"), ".2%")


def _reaches(summary: Mapping[str, Any]) -> Finding | None:
    """Only the paper's own size can reach it."""
    if summary["plan"]["width"] != PAPER.width or summary["plan"]["images"] is not None:
        return None
    reaches = above(interval(ends_at(summary, "rezero", "val_accuracy")), PUBLISHED - NEAR)
    return Finding(f"{_end(summary, 'rezero')} at the end, asked is {PUBLISHED - NEAR:.2%}", judge(reaches))


def _better(summary: Mapping[str, Any]) -> Finding:
    [found] = summary["found"]
    said = f"rezero {_end(summary, 'rezero')}, residual {_end(summary, 'residual')}; {gain_of(found, 'points', 100)}"
    return Finding(f"{said}, {speed_of(found)}", judge(confirmed(found["quality"]), confirmed(found["speed"])))


SUPERCONVERGENCE = Reproduction(
    name="superconvergence",
    shows="a PreAct-ResNet-18 in one cycle of 45 epochs, with gates and without",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.3",
    version=1,
    scales={
        "laptop": Scale(
            minutes=55,
            seeds=3,
            run=partial(run, LAPTOP),
            about=(
                "The same network with 10 channels in its first stage in the place of 64, on 10,000 of the "
                "50,000 images, measured on 2,000 of the other 10,000. The rates of the cycle are the "
                "authors' for both arms, not tuned."
            ),
        ),
        "paper": Scale(minutes=180, seeds=5, run=partial(run, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=(
        Claim("In 45 epochs it is at 94%", "authors' code", "94.00% at best, 93.91% at the end (one seed)", _reaches),
        Claim("Gates converge sooner and end better than none", "sec. 4.3", "no run without is stored", _better),
    ),
)
