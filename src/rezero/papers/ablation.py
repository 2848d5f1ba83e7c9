"""Which part of ReZero does the work? A Transformer of 12 layers, changed in one thing at a time.

Bachlechner et al. (2020), arXiv:2003.04887: one alpha a layer, from zero, learned at the rate of everything else, and
no LayerNorm. Each arm departs from that in one thing, and has its own best rate of the others.

    rezero reproduce ablation
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rezero import lab
from rezero.charts import intervals, save
from rezero.data.windows import TextData
from rezero.gate import Gate, gates
from rezero.layers import LanguageModel
from rezero.layers.decoder import CausalAttention, FeedForward
from rezero.optim import param_groups
from rezero.papers.claims import Claim, Finding, above, closed, confirmed, every, interval, judge, shown
from rezero.papers.plain_text import load_plain_text, measure, take_step
from rezero.papers.reading import ends_at, gain_of
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.studies import compare_own

__all__ = ["ABLATION", "ARMS", "Plan", "run", "train"]

PAPERS = "as the paper has it"
MARGIN = 0.02
"""Nats a byte: what is no better than this is no better."""


@dataclass(frozen=True)
class Plan:
    """How large and how long.

    Attributes:
        width: Of the models.
        depth: Their layers.
        context: Bytes of a row.
        batch: Rows of a step.
        steps: Of each training.
        warmup: Over which the rate rises.
        every: A measurement each how many.
        windows: Of the validation part that are measured.
        lr: Middle of the rates that are tried.
        tune: How many are.
        device: Where.
    """

    width: int = 64
    depth: int = 12
    context: int = 64
    batch: int = 8
    steps: int = 400
    warmup: int = 50
    every: int = 50
    windows: int = 256
    lr: float = 0.01
    tune: int = 3
    device: str = "cpu"


LAPTOP = Plan()
PAPER = Plan(512, 12, 512, 64, 10_000, 1000, 500, 256, 1e-3, 5, "cuda")


class Normed(nn.Module):
    """A branch behind a LayerNorm.

    Args:
        branch: The branch.
        dim: Its width.
    """

    def __init__(self, branch: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(dim), branch

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """Run the norm and the branch."""
        y: Tensor = self.branch(self.norm(x), *more)
        return y


def start_at(value: float, model: nn.Module) -> nn.Module:
    """Let every gate start elsewhere."""
    for gate in gates(model).values():
        nn.init.constant_(gate.gate_parameter, value)
    return model


def freeze_at(value: float, model: nn.Module) -> nn.Module:
    """Let every gate stay where it is put."""
    for gate in gates(start_at(value, model)).values():
        gate.gate_parameter.requires_grad_(False)
    return model


def widen(model: nn.Module) -> nn.Module:
    """Give every gate a number a channel."""
    width = next(each.embedding_dim for each in model.modules() if isinstance(each, nn.Embedding))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Gate):
                wide = Gate(width)
                wide.branches = child.branches
                setattr(module, name, wide)
    return model


def norm(model: nn.Module) -> nn.Module:
    """Put a LayerNorm before every branch and before the output."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, CausalAttention):
                setattr(module, name, Normed(child, child.out.out_features))
            elif isinstance(child, FeedForward):
                setattr(module, name, Normed(child, child.linear2.out_features))
    assert isinstance(model, LanguageModel)  # noqa: S101 - ours
    model.norm = nn.LayerNorm(model.embedding.embedding_dim)
    return model


def norm_from_one(model: nn.Module) -> nn.Module:
    """Do both: pre-norm whose branches have gates."""
    return norm(start_at(1.0, model))


class Rated(nn.Module):
    """A model whose gates learn at a rate of their own, or shrink.

    Args:
        times: Their rate over that of everything else.
        decay: Their weight decay.
        model: The model.
    """

    def __init__(self, times: float, decay: float, model: nn.Module) -> None:
        super().__init__()
        self.times, self.decay, self.model = times, decay, model

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the model."""
        y: Tensor = self.model(tokens)
        return y


def separate(model: nn.Module) -> nn.Module:
    """Give each branch a gate of its own, with the same weights otherwise."""
    assert isinstance(model, LanguageModel)  # noqa: S101 - ours
    heads = model.embedding.embedding_dim // model.head_dim
    other = LanguageModel(model.embedding.embedding_dim, len(model.layers), heads, residual="rezero")
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("alpha")}
    weights = {_separated(name): value for name, value in weights.items()}
    other.load_state_dict(weights, strict=False)
    return other


def _separated(name: str) -> str:
    """Return the name that a parameter has in a layer whose branches are blocks."""
    for branch in ("attention", "feed_forward"):
        name = name.replace(f".{branch}.", f".{branch}.branch.")
    return name


ARMS: Mapping[str, Callable[[nn.Module], nn.Module]] = {
    PAPERS: lambda model: model,
    "from 1": partial(start_at, 1.0),
    "frozen at 1": partial(freeze_at, 1.0),
    "frozen at 0.1": partial(freeze_at, 0.1),
    "a number a channel": widen,
    "a gate a branch": separate,
    "with LayerNorm": norm,
    "with LayerNorm, from 1": norm_from_one,
    "a tenth of the rate": partial(Rated, 0.1, 0.0),
    "ten times the rate": partial(Rated, 10.0, 0.0),
    "decayed": partial(Rated, 1.0, 0.1),
}


class Task:
    """What is trained on what.

    Args:
        plan: How large and how long.
        text: The text.
    """

    def __init__(self, plan: Plan, text: TextData) -> None:
        self.plan, self.text = plan, text

    def build(self) -> LanguageModel:
        """Make the model as the paper has it; embeddings start as those of models with norms."""
        std = self.plan.width**-0.5
        return LanguageModel(self.plan.width, self.plan.depth, 4, share="layer", embedding_std=std)

    def train(self, model: Any) -> None:
        """Train a model, and log."""
        train(model, self.plan, self.text, lab.lr(self.plan.lr), lab.seed())


def train(model: Any, plan: Plan, text: TextData, lr: float, seed: int) -> None:
    """Train a model, and log its validation loss, in nats a byte.

    Args:
        model: The model; one that is `Rated` says how its gates learn.
        plan: How long.
        text: The text.
        lr: Highest rate.
        seed: Of the order of the text.
    """
    text, model = text.to(plan.device), model.to(plan.device)
    rated = isinstance(model, Rated)
    groups = param_groups(model, lr=lr, weight_decay=0.01, alpha_lr=lr * (model.times if rated else 1.0))
    for group in groups:
        if rated and group["name"] == "gates":
            group["weight_decay"] = model.decay
    optimizer = torch.optim.AdamW(groups, lr=lr)
    highest = [group["lr"] for group in optimizer.param_groups]
    for step in range(plan.steps):
        share = min((step + 1) / plan.warmup, 1) * (1 - step / plan.steps)
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = rate * share
        take_step(model, optimizer, text, seed, step, plan.batch)
        if (step + 1) % plan.every == 0:
            lab.log(step + 1, val_loss=measure(model, text, plan.windows))


def run(plan: Plan, work: Work) -> dict[str, Any]:
    """Let the lab compare: rates are tuned for each arm, then paired seeds.

    Args:
        plan: How large and how long.
        work: Where.

    Returns:
        The plan, the lab's verdict, each arm's curve, and each against the paper's.
    """
    text = load_plain_text(plan.context)
    task = Task(plan, text)
    found = compare_own(
        work.of(plan, text.digest()).folder,
        device=plan.device,
        build=task.build,
        train=task.train,
        arms=dict(ARMS),
        baseline=PAPERS,
        seeds=work.seeds,
        tune=plan.tune,
        metric="val_loss",
    )
    return {"plan": asdict(plan), "text": text.name, **found}


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw how much better each arm ends than the paper's, with its interval.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    rows = []
    for each in summary["found"]:
        gain = each["gain"]
        if gain is not None:
            middle, low, high = closed(gain)
            rows.append({"name": each["arm"], "arm": PAPERS, "middle": middle, "low": low, "high": high})
    said = (
        "How much better each arm ends than the paper's choice, in nats a byte of validation loss, with 95% intervals."
    )
    chart = intervals(rows, x="nats a byte better than the paper's choice", arms=(PAPERS,), mark=0.0, description=said)
    save(chart, folder / "ends")
    return {"ends": said}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say how much better or worse than the paper's each arm is.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    rates = {arm: found["lr"] for arm, found in summary["arms"].items()}
    words = {"more": "better", "less": "worse", "level": "no difference that the seeds can see", "unknown": "not told"}
    return [
        f"{PAPERS}: {shown(interval(ends_at(summary, PAPERS, 'val_loss')))} nats a byte (rate "
        f"{rates[PAPERS] * summary['plan']['lr']:.3g})",
        *(
            f"{each['arm']}: {gain_of(each, 'nats a byte')} ({words[each['quality']]}; rate "
            f"{rates[each['arm']] * summary['plan']['lr']:.3g})"
            for each in summary["found"]
        ),
    ]


def _worse(arms: tuple[str, ...], summary: Mapping[str, Any]) -> Finding:
    """Ask whether the paper's choice is better than each of these."""
    found = {each["arm"]: each for each in summary["found"]}
    said = "; ".join(f"{arm} {gain_of(found[arm], 'nats a byte')}" for arm in arms)
    return Finding(f"beside the paper's choice: {said}", judge(every(*(_is_worse(found[arm]) for arm in arms))))


def _is_worse(found: Mapping[str, Any]) -> bool | None:
    lost, papers_lost = found["diverged"]
    if lost and not papers_lost:
        return True
    better = confirmed(found["quality"])
    return None if better is None else not better


def _no_better(arms: tuple[str, ...], summary: Mapping[str, Any]) -> Finding:
    """Ask whether none of these is better than the paper's choice by more than a margin."""
    found = {each["arm"]: each for each in summary["found"]}
    said = "; ".join(f"{arm} {gain_of(found[arm], 'nats a byte')}" for arm in arms)
    asked = f"asked is an interval that ends below {MARGIN:g} better"
    none_better = every(*(_is_no_better(found[arm]) for arm in arms))
    return Finding(f"beside the paper's choice: {said}; {asked}", judge(none_better))


def _is_no_better(found: Mapping[str, Any]) -> bool | None:
    if _is_worse(found) or above(found["gain"], MARGIN) is False:
        return True
    return False if confirmed(found["quality"]) else None


ABLATION = Reproduction(
    name="ablation",
    shows="a Transformer of 12 layers changed in one thing at a time: which part does the work?",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 3",
    version=1,
    scales={
        "laptop": Scale(
            minutes=30,
            seeds=5,
            run=partial(run, LAPTOP),
            about=(
                "12 layers of width 64, which read 64 bytes of Tiny Shakespeare at once, 400 steps of AdamW "
                "on batches of 8 rows. Each arm has the best of 3 rates or more."
            ),
        ),
        "paper": Scale(minutes=1500, seeds=5, run=partial(run, PAPER)),
    },
    write=write,
    lines=lines,
    claims=(
        Claim("Alpha does better from zero than from one", "sec. 3", "no number", partial(_worse, ("from 1",))),
        Claim("Alpha has to learn", "sec. 3", "no number", partial(_worse, ("frozen at 1", "frozen at 0.1"))),
        Claim(
            "One number a layer does as well as one a channel or a branch",
            "sec. 3",
            "no number",
            partial(_no_better, ("a number a channel", "a gate a branch")),
        ),
        Claim(
            "Nothing is lost without LayerNorm",
            "abstract",
            "no number",
            partial(_no_better, ("with LayerNorm", "with LayerNorm, from 1")),
        ),
        Claim(
            "Alpha does no better at other rates than that of everything else, or with decay",
            "authors' code",
            "no number",
            partial(_no_better, ("a tenth of the rate", "ten times the rate", "decayed")),
        ),
    ),
)
