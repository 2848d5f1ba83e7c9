"""What a norm costs and a gate saves: time and memory, of a layer and of a whole training step.

Of the layer: forward and backward, and what is kept in between. Of the step: forward, backward and the optimizer, and
what torch holds at the most during it. Rounds are interleaved, so that a machine's drift falls on all alike.

    rezero reproduce memory
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.charts import intervals, save
from rezero.layers import MLP, LanguageModel, TransformerEncoderLayer
from rezero.optim import param_groups
from rezero.papers.claims import Claim, Finding, below, closed, interval, judge, shown
from rezero.papers.reproduction import Reproduction, Scale, Work
from rezero.papers.timed import bytes_kept, interleave, peak_bytes

__all__ = ["LAPTOP", "MEMORY", "PAPER", "Plan", "run"]

BASE, OURS = "pre-norm", "rezero"
WORTH = 0.95  # of the memory: above it nobody would notice


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        device: Where.
        dtype: Of the layers; steps are in float32, on a GPU under bfloat16 autocast.
        layers: Widths of the layers.
        rows: Of tokens that a layer gets.
        tokens: In each row.
        mlp: Width, depth and batch of a fully connected network.
        lm: Width, depth, batch and context of a language model.
    """

    device: str
    dtype: torch.dtype
    layers: tuple[int, ...]
    rows: int
    tokens: int
    mlp: tuple[int, int, int]
    lm: tuple[int, int, int, int]


LAPTOP = Plan("cpu", torch.float32, (256, 512), 4, 256, (256, 64, 100), (128, 12, 16, 128))
PAPER = Plan("cuda", torch.bfloat16, (1024, 2048, 4096), 16, 1024, (256, 64, 100), (512, 12, 64, 512))


def run(plan: Plan, work: Work) -> dict[str, Any]:
    """Measure, each network a part.

    Args:
        plan: What.
        work: Where; as many rounds as seeds.

    Returns:
        For each network and arm: seconds of each round, bytes that are kept (of a layer) or held at the peak (of a
        step), and the ratios of both to pre-norm.
    """
    makes: dict[str, Callable[[], dict[str, Any]]] = {
        f"layer of width {width}": partial(_layer, plan, width, work.seeds) for width in plan.layers
    }
    makes[f"step of an MLP {plan.mlp[1]} x {plan.mlp[0]}"] = partial(_mlp, plan, work.seeds)
    makes[f"step of a Transformer {plan.lm[1]} x {plan.lm[0]}"] = partial(_lm, plan, work.seeds)
    work = work.of(plan, work.seeds)
    return {"networks": {name: work.part(name, make) for name, make in makes.items()}}


def _layer(plan: Plan, width: int, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    given: dict[str, Any] = {"d_model": width, "nhead": width // 64, "dim_feedforward": 4 * width, "dropout": 0.0}
    given |= {"batch_first": True, "device": plan.device, "dtype": plan.dtype}
    layers = {
        BASE: nn.TransformerEncoderLayer(**given, norm_first=True),
        "post-norm": nn.TransformerEncoderLayer(**given),
        OURS: TransformerEncoderLayer(**given, init_value=0.1),
    }
    x = torch.randn(plan.rows, plan.tokens, width, device=plan.device, dtype=plan.dtype, requires_grad=True)
    gradient = torch.randn_like(x)

    def step(layer: nn.Module) -> None:
        layer.zero_grad()
        x.grad = None
        layer(x).backward(gradient)

    calls = {name: partial(step, layer) for name, layer in layers.items()}
    kept = {name: bytes_kept(layer, x) for name, layer in layers.items()}
    return _compared(interleave(calls, rounds=rounds, device=plan.device, title=f"layer of width {width}"), kept)


def _mlp(plan: Plan, rounds: int) -> dict[str, Any]:
    width, depth, batch = plan.mlp
    x, y = torch.randn(batch, 3072, device=plan.device), torch.randint(10, (batch,), device=plan.device)
    models = {arm: MLP(3072, width, depth, 10, residual=arm, device=plan.device) for arm in (BASE, "residual", OURS)}
    return _steps(plan, models, x, y, rounds, partial(torch.optim.Adagrad, lr=1e-3), "step of an MLP")


def _lm(plan: Plan, rounds: int) -> dict[str, Any]:
    width, depth, batch, context = plan.lm
    text = torch.randint(256, (2, batch, context), device=plan.device)
    models = {
        arm: LanguageModel(width, depth, 4, residual=arm, device=plan.device) for arm in (BASE, "post-norm", OURS)
    }
    return _steps(plan, models, text[0], text[1], rounds, partial(torch.optim.AdamW, lr=1e-3), "step of a Transformer")


def _steps(
    plan: Plan,
    models: Mapping[str, nn.Module],
    inputs: Tensor,
    targets: Tensor,
    rounds: int,
    optimizer: Callable[..., torch.optim.Optimizer],
    title: str,
) -> dict[str, Any]:
    half = plan.device != "cpu"

    def step(model: nn.Module, update: torch.optim.Optimizer) -> None:
        with torch.autocast(plan.device, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        update.zero_grad()
        loss.backward()
        update.step()

    updates = {arm: optimizer(param_groups(model, lr=1e-3, weight_decay=0.0)) for arm, model in models.items()}
    calls = {arm: partial(step, model, updates[arm]) for arm, model in models.items()}
    held = {arm: peak_bytes(call, plan.device) for arm, call in calls.items()}
    return _compared(interleave(calls, rounds=rounds, device=plan.device, title=title), held)


def _compared(seconds: Mapping[str, list[float]], held: Mapping[str, int]) -> dict[str, Any]:
    """Put the arms beside pre-norm: the time round by round."""
    logs = {
        arm: [math.log(a / b) for a, b in zip(values, seconds[BASE], strict=True)] for arm, values in seconds.items()
    }
    return {
        arm: {
            "seconds": values,
            "bytes": held[arm],
            "time": interval(logs[arm]),
            "memory": held[arm] / held[BASE],
        }
        for arm, values in seconds.items()
    }


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw time and memory of each arm over those of pre-norm.

    Args:
        summary: What `run` returned.
        folder: Where to.

    Returns:
        Name of each picture to what it shows.
    """
    pictures = {}
    for what in ("time", "memory"):
        arms = tuple(dict.fromkeys(arm for network in summary["networks"].values() for arm in network))
        rows = [
            {"name": name, "arm": arm, **(_ends(found["time"]) if what == "time" else _point(found[what]))}
            for name, network in summary["networks"].items()
            for arm, found in network.items()
        ]
        pictures[what] = f"{what.capitalize()} over that of pre-norm."
        x = f"{what} over that of pre-norm"
        save(intervals(rows, x=x, arms=arms, mark=1.0, description=pictures[what]), folder / what)
    return pictures


def _ends(found: Mapping[str, float | None]) -> dict[str, float]:
    return dict(zip(("middle", "low", "high"), map(math.exp, closed(found)), strict=True))


def _point(value: float) -> dict[str, float]:
    return dict.fromkeys(("middle", "low", "high"), value)


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Say what came out.

    Args:
        summary: What `run` returned.

    Returns:
        Lines of text.
    """
    return [
        f"{_named(name)}: {arm} takes {_shown_time(found)} of the time of {BASE} and "
        f"{found['memory']:.3f} of its memory"
        for name, network in summary["networks"].items()
        for arm, found in network.items()
        if arm != BASE
    ]


def _shown_time(found: Mapping[str, Any]) -> str:
    """Write a ratio with its interval, with a digit more where an end would be rounded to the mark of 1."""
    said = shown(found["time"], ".3f", of=math.exp)
    return shown(found["time"], ".4f", of=math.exp) if "1.000" in said else said


def _named(name: str) -> str:
    """Say that what is beside our layer is torch's, which differs from it in more than the norms."""
    return f"{name} (ours beside torch's)" if name.startswith("layer") else name


def _saves(what: str, summary: Mapping[str, Any]) -> Finding:
    said, less = [], []
    for name, network in summary["networks"].items():
        found = network[OURS]
        if what == "time":
            said.append(f"{_named(name)} {_shown_time(found)}")
            less.append(below(found["time"]))
        else:
            said.append(f"{_named(name)} {found['memory']:.3f}")
            less.append(found["memory"] <= WORTH)
    asked = "an interval below 1" if what == "time" else f"{WORTH:g} or less"
    return Finding(f"of pre-norm's {what}, asked is {asked}: {'; '.join(said)}", judge(*less))


MEMORY = Reproduction(
    name="memory",
    shows="time and memory that a gate in the place of a norm saves",
    source="Bachlechner et al. (2020), arXiv:2003.04887, sec. 1",
    version=1,
    scales={
        "laptop": Scale(
            minutes=2,
            seeds=40,
            run=partial(run, LAPTOP),
            about=(
                "In float32: a layer on 4 rows of 256; a step of 64 fully connected layers of width 256 on "
                "batches of 100, and of a Transformer of 12 layers of width 128 on 16 rows of 128 bytes. "
                "A layer is this library's beside torch's own, so that the code differs as well as the norm; the steps "
                "are of the same code on both sides. The intervals are not corrected for their number, and are over "
                "the rounds of one run: another run, at another hour, differs by more."
            ),
        ),
        "paper": Scale(minutes=10, seeds=40, run=partial(run, PAPER)),
    },
    write=write,
    lines=lines,
    repeats="rounds",
    claims=(
        Claim(
            "A gate in the place of a norm saves time, run eagerly",
            "what its users expect",
            "no number",
            partial(_saves, "time"),
        ),
        Claim(
            "A gate in the place of a norm saves memory",
            "what its users expect",
            "no number",
            partial(_saves, "memory"),
        ),
    ),
)
