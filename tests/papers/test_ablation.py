"""One thing at a time: what the arms change, and what is said of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rezero.gate import gates
from rezero.layers import LanguageModel
from rezero.papers.ablation import ABLATION, ARMS, LAPTOP, PAPER, PAPERS, Normed, Plan, Rated, Task, run
from rezero.papers.plain_text import load_plain_text
from rezero.papers.reproduction import Work

TINY = replace(LAPTOP, width=8, depth=2, context=8, batch=2, steps=4, warmup=1, every=2, windows=2, tune=2)


def made(arm: str, plan: Plan = TINY) -> Any:
    """Build a model and change it as an arm does."""
    torch.manual_seed(0)
    return ARMS[arm](Task(plan, load_plain_text(plan.context)).build())


def test_arms_change_one_thing() -> None:
    """Where gates start, whether they learn, their shape and number, norms, rate and decay."""
    starts = {arm: {gate.gate_parameter.mean().item() for gate in gates(made(arm)).values()} for arm in ARMS}
    assert {arm for arm, values in starts.items() if values == {0.0}} == ARMS.keys() - {
        "from 1",
        "frozen at 1",
        "frozen at 0.1",
        "with LayerNorm, from 1",
    }
    frozen = {arm for arm in ARMS if not all(each.requires_grad for each in made(arm).parameters())}
    assert frozen == {"frozen at 1", "frozen at 0.1"}
    sizes = {arm: sum(gate.gate_parameter.numel() for gate in gates(made(arm)).values()) for arm in ARMS}
    assert sizes[PAPERS] == TINY.depth
    assert {arm: size for arm, size in sizes.items() if size != TINY.depth} == {
        "a number a channel": TINY.depth * TINY.width,
        "a gate a branch": 2 * TINY.depth,
    }
    normed = {arm for arm in ARMS if any(isinstance(each, Normed) for each in made(arm).modules())}
    assert normed == {"with LayerNorm", "with LayerNorm, from 1"}
    rated = {arm: (model.times, model.decay) for arm in ARMS if isinstance(model := made(arm), Rated)}
    assert rated == {"a tenth of the rate": (0.1, 0), "ten times the rate": (10, 0), "decayed": (1, 0.1)}


@pytest.mark.parametrize("arm", [arm for arm in ARMS if "from 1" not in arm and "frozen" not in arm])
def test_arms_whose_gates_are_closed_start_from_the_same_function(arm: str) -> None:
    """Those with a norm before the output apart, which changes it."""
    tokens = torch.randint(256, (2, 8))
    model, other = made(PAPERS), made(arm)
    if "LayerNorm" in arm:
        other.norm = nn.Identity()
    assert torch.equal(other(tokens), model(tokens))


def test_separate_gates_leave_all_other_weights() -> None:
    """Bit for bit, by their names in the other model."""
    model, other = made(PAPERS), made("a gate a branch")
    assert isinstance(other, LanguageModel)
    weights = {name: value for name, value in model.named_parameters() if not name.endswith("alpha")}
    others = {name.replace(".branch.", "."): each for name, each in other.named_parameters() if "gate" not in name}
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.mark.slow
def test_the_lab_compares_the_arms(tmp_path: Path) -> None:
    """All of them, each with its own rate; lines, claims and the picture follow; a second run trains nothing."""
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    summary = run(TINY, work)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["arms"]) == list(ARMS)
    assert [each["arm"] for each in summary["found"]] == [arm for arm in ARMS if arm != PAPERS]
    assert run(TINY, work)["arms"] == summary["arms"]
    assert len(ABLATION.lines(summary)) == len(ARMS)
    assert all(claim.find(summary) for claim in ABLATION.claims)
    assert list(ABLATION.write(summary, tmp_path)) == ["ends"]


def test_claims_follow_what_the_lab_concludes() -> None:
    """A difference that is not seen tells nothing, unless the interval leaves no room for one that matters.

    One arm that does better is enough for a claim not to hold.
    """
    found = [
        {"arm": arm, "quality": "level", "gain": {"mean": 0.0, "low": -0.1, "high": 0.1}, "diverged": [0, 0]}
        for arm in ARMS
    ]
    verdicts = [claim.find({"found": found}).verdict for claim in ABLATION.claims]  # type: ignore[union-attr]
    assert verdicts == ["cannot be told"] * 5
    for each in found:
        each["gain"] = {"mean": 0.0, "low": -0.1, "high": 0.019}
    verdicts = [claim.find({"found": found}).verdict for claim in ABLATION.claims]  # type: ignore[union-attr]
    assert verdicts == ["cannot be told", "cannot be told", "holds", "holds", "holds"]
    lost = [
        {**each, "baseline": "the paper's", "quality": "unknown", "gain": None, "diverged": [2, 0]} for each in found
    ]
    verdicts = [claim.find({"found": lost}).verdict for claim in ABLATION.claims]  # type: ignore[union-attr]
    assert verdicts == ["holds"] * 5
    for each in found:
        each["gain"] = {"mean": 0.2, "low": 0.1, "high": 0.3}
        each["quality"] = "less" if each["arm"] in ("from 1", "frozen at 1") else "more"
    verdicts = [claim.find({"found": found}).verdict for claim in ABLATION.claims]  # type: ignore[union-attr]
    assert verdicts == ["holds", *["does not hold"] * 4]


def test_the_papers_size_is_built_and_takes_a_step() -> None:
    """Every arm, on the CPU, with a short row."""
    plan = replace(PAPER, device="cpu")
    tokens = torch.randint(256, (1, 8))
    for arm in ARMS:
        model = made(arm, plan)
        model(tokens).sum().backward()
        assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
