"""The network of 10,000 layers: does it train, and what does the first step at the authors' rate do?

Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1, and the authors' notebook: 10,000 fully connected layers of width
150 on CIFAR-10, batches of 100, Adagrad at 0.003 for everything, alpha too. No result of it was published. Here it
overfits 5,000 images with alpha at the depth recipe's rate, its steps held; the authors' own setting is run beside, and
a network of 100,000 layers.

    rezero reproduce deep
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.charts import curves, save
from rezero.data.batches import TensorData
from rezero.data.cifar10 import load_cifar10
from rezero.layers import MLPBlock
from rezero.optim import param_groups
from rezero.papers.claims import Claim, Finding, judge, written
from rezero.papers.pace import RECIPE, RULES, Pace
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.stack import DeepStack
from rezero.waiting import share_bar

__all__ = ["DEEP", "LAPTOP", "PAPER", "Deep", "Plan", "run", "train"]

EVERY = 300.0  # seconds between two checkpoints
GOAL = 0.99
FIRST, THEN = 20, 200  # losses that are drawn


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        depth: Layers.
        width: Of the layers.
        images: Of CIFAR-10's training part, from its first; None for all.
        steps: Optimizer steps at the most.
        batch: Images a step.
        lr: Rate of everything but alpha.
        alpha_lr: Rate of alpha, whose steps are then not held; None for the depth recipe.
        goal: Accuracy over an epoch of training at which it ends; above 1 it does not.
        device: Where.
    """

    depth: int = 10_000
    width: int = 150
    images: int | None = None
    steps: int = 300
    batch: int = 100
    lr: float = 0.003
    alpha_lr: float | None = None
    goal: float = 2.0
    device: str = "cpu"


LAPTOP = {
    "overfit": Plan(images=5000, steps=2500, goal=0.995),
    "authors' setting": Plan(alpha_lr=0.003, steps=200),
    "100,000 layers": Plan(depth=100_000, width=64, steps=40),
}
PAPER = {
    "overfit": Plan(images=5000, steps=5000, goal=0.995, device="cuda"),
    "authors' setting": Plan(alpha_lr=0.003, steps=12_500, device="cuda"),
    "100,000 layers": Plan(depth=100_000, width=64, steps=500, device="cuda"),
}


class Deep(nn.Module):
    """The authors' network, its layers in one stack.

    Args:
        plan: Its depth and width.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.input = nn.Linear(3072, plan.width, device=plan.device)
        self.stack = DeepStack(MLPBlock(plan.width, device=plan.device), plan.depth)
        self.output = nn.Linear(plan.width, 10, device=plan.device)
        nn.init.kaiming_normal_(self.input.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images ``(B, 3072)``, ``(B, 10)``."""
        y: Tensor = self.output(self.stack(F.relu(self.input(x))))
        return y


def run(plans: Mapping[str, Plan], work: Work) -> dict[str, Any]:
    """Run the trainings, each a part that goes on from its last checkpoint.

    Args:
        plans: Their names and plans.
        work: Where; one seed each.

    Returns:
        For each its plan and what `train` returned, and that there was one seed, however many were asked for.
    """
    data = load_cifar10(layout="flat")
    found = {}
    with share_bar("deep") as tell:
        for place, (name, plan) in enumerate(plans.items()):
            told = partial(_tell, tell, place / len(plans), 1 / len(plans), name)
            part = partial(train, plan, data, work.of(plan), told)
            found[name] = {"plan": asdict(plan), **work.of(plan).part("run", part)}
    return {"seeds": 1, "runs": found}


def _tell(tell: Callable[[float, str], None], start: float, share: float, name: str, done: float, loss: float) -> None:
    tell(start + share * done, f"{name}, loss {written(loss)}")


def train(plan: Plan, data: TensorData, work: Work, tell: Callable[[float, float], None]) -> dict[str, Any]:
    """Train one network.

    Args:
        plan: How.
        data: CIFAR-10, flat.
        work: Where checkpoints are kept.
        tell: Is told the share that is done, and the loss.

    Returns:
        ``losses`` of each step before its update (None where it is not finite, and no step follows), ``epochs``:
        accuracy on the training images, each seen before its update, and ``accuracy`` on all of them at the end.
    """
    if plan.images is not None:
        data = replace(data, inputs=data.inputs[: plan.images], targets=data.targets[: plan.images])
    data = data.to(plan.device)
    torch.manual_seed(0)
    model = Deep(plan)
    pace = RULES[RECIPE](plan.lr, plan.depth) if plan.alpha_lr is None else Pace(plan.alpha_lr)
    groups = param_groups(model, lr=plan.lr, weight_decay=0.0, alpha_lr=pace.rate)
    optimizer = torch.optim.Adagrad(groups, fused=plan.device == "cpu")
    pace.hold(optimizer, model)
    checkpoint = _Checkpoint(work, model, optimizer)
    losses, right = checkpoint.restore()
    size = data.steps_per_epoch(plan.batch)
    while len(losses) < plan.steps and not (losses and losses[-1] is None):
        inputs, targets = data.batch(0, len(losses), plan.batch)
        logits = model(inputs)
        loss = F.cross_entropy(logits, targets)
        value = loss.item()
        losses.append(value if math.isfinite(value) else None)
        right.append((logits.argmax(-1) == targets).double().mean().item())
        tell(len(losses) / plan.steps, value)
        if losses[-1] is None or (len(losses) % size == 0 and fmean(right[-size:]) >= plan.goal):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        checkpoint.keep_now_and_then(losses, right)
    epochs = [fmean(right[place - size : place]) for place in range(size, len(right) + 1, size)]
    accuracy = None if plan.images is None or losses[-1] is None else _accuracy(model, data, plan.batch)
    return {"losses": losses, "epochs": epochs, "accuracy": accuracy, "steps an epoch": size}


@torch.no_grad()
def _accuracy(model: nn.Module, data: TensorData, batch: int) -> float:
    """Return the share of the training images that are told right."""
    steps = data.steps_per_epoch(batch)
    batches = (data.batch(0, step, batch) for step in range(steps))
    return sum(int((model(x).argmax(-1) == y).sum()) for x, y in batches) / len(data.targets)


class _Checkpoint:
    """A training in a file that is written now and then."""

    def __init__(self, work: Work, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.work, self.model, self.optimizer = work, model, optimizer
        self.written = time.monotonic()

    def restore(self) -> tuple[list[float | None], list[float]]:
        """Return the losses and accuracies until now, and put model and optimizer where they were."""
        if (kept := self.work.tensors("checkpoint")) is None:
            return [], []
        losses, right = kept.pop("losses").tolist(), kept.pop("right").tolist()
        for name, value in self._tensors().items():
            value.copy_(kept[name])
        return losses, right

    def keep_now_and_then(self, losses: list[float | None], right: list[float]) -> None:
        """Write, if that was long ago."""
        if time.monotonic() - self.written > EVERY:
            known = {
                "losses": torch.tensor(losses, dtype=torch.float64),
                "right": torch.tensor(right, dtype=torch.float64),
            }
            self.work.keep_tensors("checkpoint", {**self._tensors(), **known})
            self.written = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors of model and optimizer, which has them from its start."""
        found = {f"model.{name}": value.detach() for name, value in self.model.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for parameter, state in self.optimizer.state.items():
            found |= {f"{key}.{names[id(parameter)]}": value for key, value in state.items()}
        return found


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the loss of each training over its steps, and the accuracy of the one that overfits.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    rows = []
    for name, found in summary["runs"].items():
        known = [(step, loss) for step, loss in enumerate(found["losses"], 1) if loss is not None]
        every = max(1, len(known) // THEN)
        for step, loss in [*known[:FIRST], *known[FIRST::every]]:
            rows.append({"arm": name, "x": step, "median": loss, "low": loss, "high": loss})
    said = f"Training loss before the update of a step: of the first {FIRST}, and of some {THEN} of those that follow."
    arms = tuple(summary["runs"])
    chart = curves(rows, x="step", y="training loss, nats", arms=arms, log=True, percent=False, description=said)
    save(chart, folder / "loss")
    return {"loss": said}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    said = []
    for name, found in summary["runs"].items():
        losses, plan = found["losses"], found["plan"]
        told = ", ".join("not finite" if loss is None else written(loss) for loss in losses[:6])
        end = losses[-1]
        last = "not finite" if end is None else written(end)
        said.append(
            f"{name} ({plan['depth']:,} x {plan['width']}): losses {told}, ...; largest {_largest(losses)}; "
            f"after {len(losses):,} steps {last}"
        )
        if found["accuracy"] is not None:
            said.append(f"{name}: {found['accuracy']:.2%} of {plan['images']:,} training images right")
    return said


def _largest(losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{max(known):,.0f}" if max(known) >= 1000 else written(max(known))


def _overfits(summary: Mapping[str, Any]) -> Finding:
    found = summary["runs"]["overfit"]
    plan, losses = found["plan"], found["losses"]
    if found["accuracy"] is None:
        return Finding(f"diverged after {len(losses):,} steps", "does not hold")
    epochs = len(losses) / found["steps an epoch"]
    said = f"{found['accuracy']:.2%} of {plan['images']:,} training images right after {epochs:.0f} epochs"
    return Finding(f"{said}; largest loss {_largest(losses)}", judge(found["accuracy"] > GOAL))


def _as_they_did(summary: Mapping[str, Any]) -> Finding:
    losses = summary["runs"]["authors' setting"]["losses"]
    told = ", ".join("not finite" if loss is None else f"{loss:,.3g}" for loss in losses[:3])
    end = losses[-1]
    trains = None not in losses and fmean(losses[-20:]) < losses[0]
    last = "not finite" if end is None else written(fmean(losses[-20:]))
    jumps = max(loss for loss in losses if loss is not None) > 2 * losses[0]
    said = f"losses {told}, largest {_largest(losses)}; the last 20 of {len(losses):,} steps {last}"
    return Finding(said, judge(trains, not jumps))


def _deeper(summary: Mapping[str, Any]) -> Finding:
    losses = summary["runs"]["100,000 layers"]["losses"]
    if None in losses:
        return Finding(f"diverged after {len(losses):,} steps", "does not hold")
    end = fmean(losses[-5:])
    said = f"from {written(losses[0])} to {written(end)} (the last 5 of {len(losses):,} steps), never above "
    return Finding(f"{said}{_largest(losses)}", judge(end < losses[0]))


DEEP = Reproduction(
    name="deep",
    shows="10,000 fully connected layers train, and 100,000",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 4.1",
    version=1,
    scales={
        "laptop": Scale(
            minutes=30,
            seeds=1,
            run=partial(run, LAPTOP),
            about=(
                "The authors' network, 10,000 layers of width 150, on 5,000 images for 2,500 steps at the "
                "most, by the depth recipe; on all images at their rate for 200 steps; and 100,000 layers of "
                "width 64 for 40. One run of each."
            ),
        ),
        "paper": Scale(minutes=90, seeds=1, run=partial(run, PAPER)),
    },
    write=write,
    lines=lines,
    data=("cifar10",),
    claims=(
        Claim("A fully connected network of 10,000 layers can be trained", "sec. 4.1", "no number", _overfits),
        Claim("It trains with Adagrad at 0.003 for everything", "authors' notebook", "no result", _as_they_did),
        Claim("100,000 layers begin to learn", "ours", "no number", _deeper),
    ),
)
