"""The deep network: it goes on where it was stopped, ends when it is done, and what is said of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rezero.data.batches import TensorData
from rezero.papers import deep, pace
from rezero.papers.deep import DEEP, LAPTOP, PAPER, Deep, Plan, train
from rezero.papers.reproduction import Work

TINY = Plan(depth=5, width=8, images=20, steps=12, batch=10)


@pytest.fixture
def data() -> TensorData:
    """Images of noise with ten classes."""
    torch.manual_seed(0)
    images, labels = torch.randn(40, 3072), torch.arange(40) % 10
    return TensorData("noise", images, labels, images[:4], labels[:4], classes=10)


def silent(*_: float) -> None:
    """Say nothing."""


def stopping(step: int) -> Callable[[float, float], None]:
    """Return what stops a training as Ctrl-C does, at a step."""
    told = 0

    def tell(*_: float) -> None:
        nonlocal told
        told += 1
        if told == step:
            raise KeyboardInterrupt

    return tell


def test_it_goes_on_from_its_checkpoint_bit_for_bit(
    data: TensorData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was stopped twice ends as one that was not, and takes no step twice but those behind a file."""
    whole = train(TINY, data, Work(tmp_path / "whole", tmp_path, 1), silent)
    monkeypatch.setattr(deep, "EVERY", 0.0)
    work = Work(tmp_path / "kept", tmp_path, 1)
    for step in (5, 4):
        with pytest.raises(KeyboardInterrupt):
            train(TINY, data, work, stopping(step))
    told: list[float] = []
    assert train(TINY, data, work, lambda share, _: told.append(share)) == whole
    assert len(told) == 12 - 4 - 3
    assert len(whole["losses"]) == 12
    assert len(whole["epochs"]) == 6
    assert json.loads(json.dumps(whole)) == whole


def test_it_ends_when_its_goal_is_reached(data: TensorData, tmp_path: Path) -> None:
    """At the end of an epoch, with the accuracy on all of its images."""
    plan = replace(TINY, width=32, steps=400, lr=0.01, goal=0.99)
    found = train(plan, data, Work(tmp_path, tmp_path, 1), silent)
    assert len(found["losses"]) < 400
    assert len(found["losses"]) % found["steps an epoch"] == 0
    assert found["epochs"][-1] >= 0.99
    assert found["accuracy"] > 0.9


def test_it_ends_when_it_diverges(data: TensorData, tmp_path: Path) -> None:
    """The loss that is no number is the last, and there is no accuracy."""
    plan = replace(TINY, lr=1e30, alpha_lr=1e30)
    found = train(plan, data, Work(tmp_path, tmp_path, 1), silent)
    assert found["losses"][-1] is None
    assert None not in found["losses"][:-1]
    assert found["accuracy"] is None


def test_alpha_has_the_rate_of_the_plan() -> None:
    """The depth recipe's, or the authors' own."""
    assert {name: plan.alpha_lr for name, plan in LAPTOP.items()} == {
        "overfit": None,
        "authors' setting": 0.003,
        "100,000 layers": None,
    }
    assert LAPTOP["authors' setting"].lr == 0.003


def test_steps_are_held_but_for_the_authors_own(
    data: TensorData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the depth recipe, to a sum of 1."""
    limits: list[float] = []
    monkeypatch.setattr(pace, "hold_gates", lambda *_, most: limits.append(most))
    for place, plan in enumerate((TINY, replace(TINY, alpha_lr=0.003))):
        train(plan, data, Work(tmp_path / str(place), tmp_path, 1), silent)
    assert limits == [1.0]


@pytest.mark.parametrize("name", list(PAPER))
def test_the_papers_size_has_its_parameters(name: str) -> None:
    """Counted without numbers; a step of the same, made shallow, moves all of them."""
    plan = replace(PAPER[name], device="meta")
    model = Deep(plan)
    layers = plan.depth * (plan.width**2 + plan.width + 1)
    assert sum(each.numel() for each in model.parameters()) == 3073 * plan.width + layers + (plan.width + 1) * 10
    shallow = Deep(replace(plan, device="cpu", depth=3))
    shallow(torch.randn(2, 3072)).sum().backward()
    assert all(each.grad is not None for each in shallow.parameters())


def summary(**losses: list[float | None]) -> dict[str, Any]:
    """Return one that was made up."""
    names = {"overfit": "overfit", "authors": "authors' setting", "deeper": "100,000 layers"}
    return {
        "runs": {
            names[key]: {
                "plan": {"depth": 10, "width": 4, "images": 20 if key == "overfit" else None},
                "losses": values,
                "epochs": [],
                "accuracy": 0.995 if key == "overfit" else None,
                "steps an epoch": 2,
            }
            for key, values in losses.items()
        }
    }


def test_claims_follow_the_losses(tmp_path: Path) -> None:
    """A jump that heals is half of a claim; what is no number does not hold."""
    made = summary(overfit=[2.3, 1.0, 0.1, 0.01], authors=[2.3, 224956.0, 2.2, 2.1], deeper=[2.3, 2.2, 2.1])
    overfits, as_they_did, deeper = (claim.find(made) for claim in DEEP.claims)
    assert overfits is not None
    assert (overfits.verdict, overfits.ours[:44]) == ("holds", "99.50% of 20 training images right after 2 e")
    assert as_they_did is not None
    assert as_they_did.verdict == "does not hold"  # the mean of the last steps has the jump in it
    assert "largest 224,956" in as_they_did.ours
    assert deeper is not None
    assert deeper.verdict == "holds"
    healed = summary(overfit=[2.3], authors=[2.3, 200.0, *[2.0] * 30], deeper=[2.3, None])
    verdicts = [claim.find(healed) for claim in DEEP.claims]
    assert [each and each.verdict for each in verdicts] == ["holds", "holds in part", "does not hold"]
    assert len(DEEP.lines(made)) == 4
    assert list(DEEP.write(made, tmp_path)) == ["loss"]
