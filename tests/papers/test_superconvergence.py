"""One cycle of 45 epochs: the network, its rates, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rezero.data.batches import TensorData
from rezero.gate import gates
from rezero.papers.reproduction import Work
from rezero.papers.superconvergence import LAPTOP, PAPER, SUPERCONVERGENCE, PreActResNet18, run

pytestmark = pytest.mark.slow

TINY = replace(LAPTOP, width=2, images=8, unseen=4, epochs=4, batch=4, every=2)


@pytest.fixture
def data() -> TensorData:
    """Pictures of noise."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    return TensorData("noise", images, labels, images[:4], labels[:4], classes=10)


def test_it_has_18_layers_and_the_parameters_of_its_width() -> None:
    """17 convolutions of 3 x 3, three of 1 x 1, a linear one; common code has 11,171,146 numbers and no last norm."""
    model = PreActResNet18(64, gated=True)
    kernels = [each.kernel_size for each in model.modules() if isinstance(each, nn.Conv2d)]
    assert (kernels.count((3, 3)), kernels.count((1, 1))) == (17, 3)
    plain = sum(each.numel() for each in PreActResNet18(64, gated=False).parameters())
    assert plain == 11_171_146 + 2 * 512
    assert sum(each.numel() for each in model.parameters()) == plain + 8
    assert len(list(gates(model))) == 8
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_closed_gates_leave_the_skips() -> None:
    """The network of gates is that of its projections at the start."""
    model = PreActResNet18(4, gated=True).eval()
    x = torch.randn(1, 3, 32, 32)
    h = model.first(x)
    for block in model.blocks:
        h = block.skip(h)
    assert torch.equal(model.output(torch.relu(model.norm(h)).mean((2, 3))), model(x))


def test_both_arms_go_through_the_authors_cycle(data: TensorData, tmp_path: Path) -> None:
    """From 0.032 to 1.2 to 0.001, momentum against it; alpha by an Adagrad of its own at 0.1."""
    rates: dict[str, list[tuple[float, float]]] = {"SGD": [], "Adagrad": []}

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        group = optimizer.param_groups[0]
        rates[type(optimizer).__name__].append((group["lr"], group.get("momentum", 0.0)))

    from rezero.papers import superconvergence

    hook = register_optimizer_step_pre_hook(note)
    task = superconvergence.Task(replace(TINY, epochs=20), data)
    logged: list[int] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(superconvergence.lab, "log", lambda step, **_: logged.append(step))
            superconvergence.train(task.gated(task.build()), task.plan, data, 0)
    finally:
        hook.remove()
    lrs, momenta = zip(*rates["SGD"], strict=True)
    assert (lrs[0], max(lrs)) == (pytest.approx(0.032), pytest.approx(1.2, rel=0.01))
    assert lrs[-1] == pytest.approx(0.001, rel=0.5)
    assert (momenta[0], min(momenta)) == (pytest.approx(0.95), pytest.approx(0.85, abs=1e-3))
    assert {rate for rate, _ in rates["Adagrad"]} == {0.1}
    assert len(rates["Adagrad"]) == len(rates["SGD"]) == 40
    assert logged == [4 * place for place in range(1, 11)]


def test_the_lab_compares_both(data: TensorData, tmp_path: Path) -> None:
    """Lines, claims and the picture; only the paper's size is asked for 94%."""
    summary = {"seeds": 2, **run(TINY, Work(tmp_path / "kept", tmp_path / "out", 2), data)}
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["arms"]) == ["residual", "rezero"]
    assert len(SUPERCONVERGENCE.lines(summary)) == 3
    reaches, better = (claim.find(summary) for claim in SUPERCONVERGENCE.claims)
    assert reaches is None
    assert better is not None
    assert better.ours.startswith("rezero ")
    assert list(SUPERCONVERGENCE.write(summary, tmp_path)) == ["accuracy"]
    large = {**summary, "plan": {"width": PAPER.width, "images": None}}
    assert SUPERCONVERGENCE.claims[0].find(large) is not None
