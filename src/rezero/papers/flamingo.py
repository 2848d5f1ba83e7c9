"""Flamingo's story in small: a frozen language model comes to read numbers from pictures.

Alayrac et al. (2022), arXiv:2204.14198: gated cross-attention between the frozen layers of a language model. The gates
start at zero, so that training begins from the unchanged model. Here a byte-level language model has read plays and
sentences with numbers in words; real handwritten digits are its pictures. In a second arm the gates start open.

    rezero reproduce flamingo
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rezero.charts import save, story_panels
from rezero.gate import gates
from rezero.layers import GatedCrossAttention
from rezero.papers.claims import Claim, Finding, above, below, interval, judge, shown
from rezero.papers.flamingo_story import FEATURES, Plan, Sight, Story, take_step
from rezero.papers.plain_text import load_plain_text, loss_of
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.surgery.graft import Graft
from rezero.surgery.insert import graft_
from rezero.waiting import share_bar

__all__ = ["FLAMINGO"]

PLAN = Plan()
_BEFORE = 0.2  # of the time: the language model and the eye
ARMS: Mapping[str, float] = {"gates from 0": 0.0, "gates from 1": 1.0}


def run(work: Work, plan: Plan = PLAN) -> dict[str, Any]:
    """Train the language model and the eye, then the grafted blocks, for each arm and seed.

    Args:
        work: Where.
        plan: How large and how long.

    Returns:
        The plan, the plain loss of the language model, and for each arm and seed what was measured on the way.
    """
    with share_bar("flamingo") as tell:
        text = load_plain_text(plan.length)
        work = work.of(plan, text.digest())
        story = Story(plan, text, work, lambda share, what: tell(_BEFORE * share, what))
        pairs = [(arm, seed) for seed in range(work.seeds) for arm in ARMS]
        runs: dict[str, list[Any]] = {arm: [] for arm in ARMS}
        for place, (arm, seed) in enumerate(pairs):
            tell(_BEFORE + (1 - _BEFORE) * place / len(pairs), f"{arm}, seed {seed}")
            runs[arm].append(work.part(f"{arm} {seed}".replace(" ", "-"), partial(_one, story, ARMS[arm], seed)))
    base = _plain_loss(story, None)
    seen = (story.eye(story.unseen.pixels).argmax(-1) == story.unseen.labels).double().mean().item()
    return {
        "plan": asdict(plan),
        "text": story.text.name,
        "base plain loss": base,
        "eye alone": seen,
        "found": found(base, runs),
        "runs": runs,
    }


def _one(story: Story, start: float, seed: int) -> dict[str, Any]:
    """Train the blocks from one start of the gates, on one seed."""
    plan = story.plan
    torch.manual_seed(seed)
    graft = graft_(
        story.model,
        lambda width: GatedCrossAttention(width, FEATURES, num_heads=4, ff_mult=2),
        every=2,
        width=plan.width,
    )
    try:
        for gate in gates(story.model).values():
            nn.init.constant_(gate.gate_parameter, start)
        sight = Sight()
        return _train(story, graft, sight, seed)
    finally:
        graft.remove()


def _train(story: Story, graft: Graft, sight: Sight, seed: int) -> dict[str, Any]:
    plan = story.plan
    same = _is_unchanged(story, graft, sight)
    optimizer = torch.optim.AdamW([*graft.parameters(), *sight.parameters()], lr=plan.lr, weight_decay=0.0)
    draw = random.Random(seed + 1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=plan.steps)
    rows = [_measure(story, graft, sight, 0)]
    for step in range(1, plan.steps + 1):
        features, seen, inputs, targets = story.batch(seed + 1, step - 1, draw)
        context = sight(features)
        with graft.condition(context, seen[:, None].expand(-1, context.shape[1])):
            take_step(optimizer, loss_of(story.model(inputs), targets))
        schedule.step()
        if step % plan.every == 0:
            rows.append(_measure(story, graft, sight, step))
    return {"unchanged at the start": same, "points": rows}


@torch.no_grad()
def _is_unchanged(story: Story, graft: Graft, sight: Sight) -> bool:
    """Tell whether logits on plain text are bitwise those of the base model, with pictures in sight and without."""
    inputs = story.plain[0]
    with graft.disable():
        expected = story.model(inputs)
    context = sight(story.asked[0][:1])
    equal = []
    for visible in (True, False):
        with graft.condition(context, torch.full((1, context.shape[1]), visible)):
            equal.append(torch.equal(story.model(inputs), expected))
    return all(equal)


@torch.no_grad()
def _measure(story: Story, graft: Graft, sight: Sight, step: int) -> dict[str, Any]:
    features, inputs, targets = story.asked
    with graft.condition(sight(features)):
        told = story.model(inputs).argmax(-1)
    right = ((told == targets) | (targets < 0)).all(-1).double().mean().item()
    return {
        "step": step,
        "plain loss": _plain_loss(story, (graft, sight)),
        "accuracy": right,
        "gates": [gate.gate_scale.item() for gate in gates(story.model).values()],
    }


@torch.no_grad()
def _plain_loss(story: Story, grafted: tuple[Graft, Sight] | None) -> float:
    """Return the loss on plain text without a picture, in nats a byte."""
    inputs, targets = story.plain
    if grafted is None:
        return loss_of(story.model(inputs), targets).item()
    graft, sight = grafted
    context = sight(story.asked[0][:1])
    with graft.condition(context, torch.zeros(1, context.shape[1], dtype=torch.bool)):
        return loss_of(story.model(inputs), targets).item()


def found(base: float, runs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Put the runs into numbers.

    Args:
        base: Loss of the language model on plain text.
        runs: Arm to what was measured, seed by seed.

    Returns:
        For each arm: mean and 95% interval over the seeds of the change of the plain loss, in the part of it, at the
        start and at the end, and of the accuracy at the end; and whether all started from the unchanged model.
    """
    rows = {}
    for arm, seeds in runs.items():
        first, last = ([each["points"][place] for each in seeds] for place in (0, -1))
        rows[arm] = {
            "unchanged at the start": all(each["unchanged at the start"] for each in seeds),
            "change of plain loss at the start": interval([each["plain loss"] / base - 1 for each in first]),
            "change of plain loss at the end": interval([each["plain loss"] / base - 1 for each in last]),
            "accuracy at the end": interval([each["accuracy"] for each in last]),
        }
    return rows


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw loss, accuracy and gates over the steps.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    base = summary["base plain loss"]
    panels = {
        "loss on plain text, over that of the base model": ("plain loss", base),
        "numbers read right from unseen pictures": ("accuracy", 1.0),
    }
    rows = {
        title: [
            {"arm": arm, "seed": seed, "x": point["step"], "y": point[name] / unit}
            for arm, seeds in summary["runs"].items()
            for seed, each in enumerate(seeds)
            for point in each["points"]
        ]
        for title, (name, unit) in panels.items()
    }
    rows["tanh(alpha), one line a gate, first seed"] = [
        {"arm": arm, "seed": gate, "x": point["step"], "y": value}
        for arm, seeds in summary["runs"].items()
        for point in seeds[0]["points"]
        for gate, value in enumerate(point["gates"])
    ]
    description = "Loss on plain text, accuracy of reading and gates, over the steps, for gates from 0 and from 1."
    save(story_panels(rows, x="step", arms=tuple(ARMS), description=description), folder / "story")
    return {"story": description}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    said = [f"the language model's loss on plain text: {summary['base plain loss']:.4f} nats a byte"]
    said.append("one language model and one eye; the seeds, and so the intervals, are of the grafted blocks")
    for arm, row in summary["found"].items():
        start, end = row["change of plain loss at the start"], row["change of plain loss at the end"]
        same = "bitwise unchanged" if row["unchanged at the start"] else _percent(start)
        said.append(f"{arm}: plain loss {same} at the start, {_percent(end)} at the end")
        said.append(f"{arm}: numbers read right {_percent(row['accuracy at the end'], sign='')}")
    return said


def _percent(value: Mapping[str, float], sign: str = "+") -> str:
    return shown(value, f"{sign}.2%")


def _unchanged(summary: Mapping[str, Any]) -> Finding:
    row = summary["found"]["gates from 0"]
    end = row["change of plain loss at the end"]
    said = f"plain loss {_percent(end)} at the end"
    same = row["unchanged at the start"]
    return Finding(f"{'bitwise unchanged' if same else 'changed'} at the start, {said}", judge(same, below(end, 0.01)))


def _reads(summary: Mapping[str, Any]) -> Finding:
    read = summary["found"]["gates from 0"]["accuracy at the end"]
    return Finding(f"{_percent(read, sign='')} of the numbers read right", judge(above(read, 0.9)))


def _spoils(summary: Mapping[str, Any]) -> Finding:
    row = summary["found"]["gates from 1"]
    start, end = row["change of plain loss at the start"], row["change of plain loss at the end"]
    return Finding(f"plain loss {_percent(start)} at step 0, {_percent(end)} at the end", judge(above(start)))


FLAMINGO = Reproduction(
    name="flamingo",
    shows="a frozen language model comes to read numbers from pictures through gates that start at zero",
    source="Alayrac et al. (2022), arXiv:2204.14198",
    version=1,
    scales={
        "laptop": Scale(
            minutes=25,
            seeds=5,
            run=run,
            about=(
                "A language model of 6 layers of width 96 that has read Tiny Shakespeare and sentences with "
                "numbers in words, and a small network that has learned to tell handwritten digits apart, both "
                "frozen. There is one of each, and as many grafts as seeds."
            ),
        )
    },
    write=write,
    lines=lines,
    claims=(
        Claim(
            "The grafted model starts as the language model that it was, and keeps it",
            "sec. 2.2",
            "no number",
            _unchanged,
        ),
        Claim("It learns to tell what it sees, its own weights frozen", "sec. 3", "no number", _reads),
        Claim("Gates that do not start at zero disturb the language model at first", "sec. 3.3", "no number", _spoils),
    ),
)
