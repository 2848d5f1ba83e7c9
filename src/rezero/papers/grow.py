"""Depth that grows: 6 layers that become 12 on the way, against 12 from the start, at equal compute.

Wu et al. (2024), arXiv:2401.02415, deepen a trained language model by copies of its layers that begin as the identity.
Here a byte-level language model grows in the middle of its training, by `rezero.grow_`. A unit of compute is a step of
12 layers, a step of 6 costs half of one; all arms have the same compute, the same schedule over it, and tuned rates.

    rezero reproduce grow
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rezero import lab
from rezero.data.windows import TextData
from rezero.layers import LanguageModel
from rezero.optim import param_groups
from rezero.papers.claims import Claim, Finding, above, confirmed, difference, interval, judge, shown
from rezero.papers.drawing import draw_arms
from rezero.papers.plain_text import load_plain_text, measure, take_step
from rezero.papers.reading import gain_of
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import compare_own
from rezero.surgery.grow import grow_

__all__ = ["GROW", "Growing", "Plan", "train"]


@dataclass(frozen=True)
class Plan:
    """How large and how long.

    Attributes:
        width: Of the models.
        deep: Layers of the deep one; the shallow one has half of them.
        context: Bytes of a row.
        batch: Rows of a step.
        compute: Of each training, in steps of the deep model.
        growth: When the grown one grows.
        warmup: Over which the rate rises.
        every: A measurement each how many.
        windows: Of the validation part that are measured.
        lr: Middle of the rates that are tried.
        tune: How many are.
    """

    width: int = 64
    deep: int = 12
    context: int = 64
    batch: int = 16
    compute: int = 400
    growth: int = 200
    warmup: int = 40
    every: int = 40
    windows: int = 256
    lr: float = 2e-3
    tune: int = 5


PLAN = Plan()


class Growing(LanguageModel):
    """A language model that is to grow."""


class Task:
    """What is trained on what.

    Args:
        plan: How large and how long.
        text: The text.
    """

    def __init__(self, plan: Plan, text: TextData) -> None:
        self.plan, self.text = plan, text

    def deep(self) -> LanguageModel:
        """Make the deep model."""
        return LanguageModel(self.plan.width, self.plan.deep, 4, residual="pre-norm")

    def shallow(self, _: nn.Module) -> nn.Module:
        """Make one of half of the layers."""
        return LanguageModel(self.plan.width, self.plan.deep // 2, 4, residual="pre-norm")

    def growing(self, _: nn.Module) -> nn.Module:
        """Make one of half of the layers, which is to grow."""
        return Growing(self.plan.width, self.plan.deep // 2, 4, residual="pre-norm")

    def train(self, model: Any) -> None:
        """Train a model with the compute that there is, and log by compute."""
        for at, loss in train(model, self.plan, self.text, lab.lr(self.plan.lr), lab.seed()):
            lab.log(at, val_loss=loss)


def train(model: Any, plan: Plan, text: TextData, lr: float, seed: int) -> Iterator[tuple[int, float]]:
    """Train a model with the compute that there is.

    Args:
        model: The model; one that is `Growing` grows on the way.
        plan: How long.
        text: The text.
        lr: Highest rate.
        seed: Of the order of the text.

    Yields:
        Compute and validation loss, in nats a byte.
    """
    optimizer = torch.optim.AdamW(param_groups(model, lr=lr, weight_decay=0.01, alpha_lr=lr), lr=lr)
    spent, step, measured = 0.0, 0, 0
    while spent < plan.compute:
        if isinstance(model, Growing) and spent >= plan.growth and len(model.layers) < plan.deep:
            grow_(model, every=1, optimizer=optimizer, example=text.val_batch(0, 1)[0])
        rate = lr * min((spent + 1) / plan.warmup, 1) * (1 - spent / plan.compute)
        for group in optimizer.param_groups:
            group["lr"] = rate
        take_step(model, optimizer, text, seed, step, plan.batch)
        spent, step = spent + len(model.layers) / plan.deep, step + 1
        if spent >= measured + plan.every or spent >= plan.compute:
            measured = int(spent)
            yield measured, measure(model, text, plan.windows)


def run(work: Work, plan: Plan = PLAN) -> dict[str, Any]:
    """Let the lab compare: rates are tuned for each arm, then paired seeds.

    Args:
        work: Where.
        plan: How large and how long.

    Returns:
        The plan, the lab's verdict, and each arm's curve.
    """
    text = load_plain_text(plan.context)
    task = Task(plan, text)
    found = compare_own(
        work.of(plan, text.digest()).folder,
        build=task.deep,
        train=task.train,
        arms={f"{plan.deep} layers": same, "grown": task.growing, f"{plan.deep // 2} layers": task.shallow},
        baseline=f"{plan.deep} layers",
        seeds=work.seeds,
        tune=plan.tune,
        metric="val_loss",
    )
    return {"plan": asdict(plan), "text": text.name, **found}


def same(model: nn.Module) -> nn.Module:
    """Return a model as it is."""
    return model


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the loss over the compute.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    plan = summary["plan"]
    description = (
        f"Validation loss over the compute of {plan['deep']} layers, of {plan['deep'] // 2}, and of those that grow at "
        f"{plan['growth']}."
    )
    title, x = "validation loss, nats a byte", "compute, in steps of the deep model"
    draw_arms(summary, folder / "loss", metric="val_loss", title=title, x=x, description=description)
    return {"loss": description}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say where each arm ends, and at which rate.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    return [
        f"{arm}: {shown(interval(_at(summary, arm, summary['plan']['compute'])))} nats a byte at the end, "
        f"rate {found['lr'] * summary['plan']['lr']:.3g}"
        for arm, found in summary["arms"].items()
    ]


def _at(summary: Mapping[str, Any], arm: str, compute: int) -> list[float | None]:
    """Return the losses of an arm when it had spent so much, or at the last measurement before."""
    points = summary["arms"][arm]["points"].values()
    return [[point["val_loss"] for point in each if point["step"] <= compute][-1] for each in points]


def _goes_on(summary: Mapping[str, Any]) -> Finding:
    plan = summary["plan"]
    before, after = (_at(summary, "grown", compute) for compute in (plan["growth"], plan["compute"]))
    fall = difference(before, after)
    return Finding(f"its loss falls by {shown(fall)} nats a byte from growth to end", judge(above(fall)))


def _saves(summary: Mapping[str, Any]) -> Finding:
    grown = next(each for each in summary["found"] if each["arm"] == "grown")
    return Finding(f"{gain_of(grown, 'nats a byte')} at equal compute", judge(confirmed(grown["quality"])))


def _pays(summary: Mapping[str, Any]) -> Finding:
    """Compare with the model that stays shallow, on the same compute and seeds."""
    shallow = next(arm for arm in summary["arms"] if arm not in ("grown", summary["found"][0]["baseline"]))
    ends = (_at(summary, arm, summary["plan"]["compute"]) for arm in (shallow, "grown"))
    gain = difference(*ends)
    said = gain_of({"arm": "grown", "gain": gain}, "nats a byte")
    return Finding(f"{said} than {shallow} to the end", judge(above(gain)))


GROW = Reproduction(
    name="grow",
    shows="6 layers that grow to 12 on the way, against 12 from the start, at equal compute",
    source="Wu et al. (2024), arXiv:2401.02415",
    version=1,
    scales={
        "laptop": Scale(
            minutes=15,
            seeds=5,
            run=run,
            about=(
                "Layers of width 64, which read 64 bytes of Tiny Shakespeare at once, batches of 16 rows; all "
                "arms have the compute of 400 steps of 12 layers. Each has the best of 5 rates."
            ),
        )
    },
    write=write,
    lines=lines,
    claims=(
        Claim(
            "A trained language model that is deepened by copies of its layers goes on learning from there",
            "LLaMA Pro",
            "no number",
            _goes_on,
        ),
        Claim("On equal compute it gets further than one that is deep from the start", "ours", "no number", _saves),
        Claim("On equal compute it gets further than one that stays shallow", "what growth is for", "no number", _pays),
    ),
)
