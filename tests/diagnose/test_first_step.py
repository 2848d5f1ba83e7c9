"""The size of an optimizer's first step is that of the step that it makes, which a check foretells."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.diagnose import check
from rezero.diagnose.first_step import first_step

D, DEPTH = 8, 6
X_BD = torch.randn(16, D, generator=torch.Generator().manual_seed(1))
OPTIM = torch.optim
Make = Callable[[Iterable[nn.Parameter]], Any]

OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda p: OPTIM.SGD(p, lr=100.0),
    "SGD, momentum": lambda p: OPTIM.SGD(p, lr=100.0, momentum=0.9, nesterov=True),
    "Adam": lambda p: OPTIM.Adam(p, lr=1.0),
    "Adam, maximize": lambda p: OPTIM.Adam(p, lr=1.0, maximize=True, amsgrad=True),
    "AdamW, fused": lambda p: OPTIM.AdamW(p, lr=1.0, fused=True, weight_decay=0.0),
    "Adam, a tensor": lambda p: OPTIM.Adam(p, lr=torch.tensor(1.0)),
    "NAdam": lambda p: OPTIM.NAdam(p, lr=1.0),
    "RAdam": lambda p: OPTIM.RAdam(p, lr=0.6),
    "Adamax": lambda p: OPTIM.Adamax(p, lr=1.0),
    "Adagrad": lambda p: OPTIM.Adagrad(p, lr=1.0),
    "Adadelta": lambda p: OPTIM.Adadelta(p, lr=1.0),
    "Adafactor": lambda p: OPTIM.Adafactor(p, lr=1.0),
    "RMSprop": lambda p: OPTIM.RMSprop(p, lr=0.1),
    "Rprop": lambda p: OPTIM.Rprop(p, lr=1.0),
    "ASGD": lambda p: OPTIM.ASGD(p, lr=100.0),
    "Lion": lambda p: timm.optim.Lion(p, lr=1.0),
    "LAMB": lambda p: timm.optim.Lamb(p, lr=1.0, weight_decay=0.0, max_grad_norm=None),
}
optimizers = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def blocks() -> nn.Module:
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D)) for _ in range(DEPTH)]
    return nn.Sequential(*map(rezero.ReZero, branches), nn.Linear(D, 4))


def loss_fn(model: nn.Module) -> Tensor:
    out: Tensor = model(X_BD)
    return (out - 1).square().mean()


def numbers(model: nn.Module) -> list[nn.Parameter]:
    return [owner.gate_parameter for owner in rezero.gates(model).values()]


@optimizers
def test_the_step_is_the_one_that_is_made(make: Make) -> None:
    """Of every kind of optimizer, and neither parameters, gradients, state nor random generators see it before."""
    model = blocks()
    optimizer = make(model.parameters())
    loss_fn(model).backward()
    given = {each: each.grad.clone() for each in numbers(model) if each.grad is not None}
    state, drawn = str(dict(optimizer.state)), torch.get_rng_state()
    told = first_step(optimizer, given)
    assert not any(each.any() for each in numbers(model))
    assert all(torch.equal(each.grad, gradient) for each, gradient in given.items() if each.grad is not None)
    assert (str(dict(optimizer.state)), len(given)) == (state, DEPTH)
    assert torch.equal(torch.get_rng_state(), drawn)
    optimizer.step()
    assert [told[each] for each in numbers(model)] == pytest.approx(
        [float(each.detach().abs().mean()) for each in numbers(model)]
    )


@optimizers
def test_the_rate_that_is_advised_makes_the_finding_go_away(make: Make) -> None:
    """It is below the present one, and what param_groups gives only where that helps."""
    model = blocks()
    optimizer = make(model.parameters())
    found = [finding for finding in check(model, loss_fn, optimizer) if finding.name == "learning rate of the gates"]
    if type(optimizer).__name__ in ("Adadelta", "Adafactor", "RAdam"):
        assert not found  # their first steps are far smaller than their rates
        return
    rate = float(found[0].advice.split("a rate of ")[1].split(",")[0])
    assert rate < float(optimizer.param_groups[0]["lr"])
    if found[0].advice.endswith("as rezero.param_groups does"):
        assert rate == pytest.approx(1 / DEPTH, rel=0.03)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(rate) if isinstance(group["lr"], Tensor) else rate
    assert not check(model, loss_fn, optimizer)


def test_advice_for_a_steep_loss() -> None:
    """A rate far below that of param_groups, where plain SGD steps by a gradient of thousands; it helps."""
    model = blocks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003)

    def steep(model: nn.Module) -> Tensor:
        out: Tensor = model(X_BD)
        return (out - 500).square().sum()

    [finding] = check(model, steep, optimizer)
    assert finding.advice.endswith(", with the alpha_lr of rezero.param_groups")
    rate = float(finding.advice.split("a rate of ")[1].split(",")[0])
    assert rate < 0.001
    assert not check(model, steep, torch.optim.SGD(rezero.param_groups(model, lr=0.003, weight_decay=0, alpha_lr=rate)))


@pytest.mark.parametrize("name", ["SGD", "ASGD", "Adam", "Lion", "RMSprop", "Rprop"])
def test_a_step_that_grows_with_the_loss_is_judged_by_a_loss(name: str) -> None:
    """A batch alone does not tell how large the loss's gradient is; steps that do not depend on it are judged."""
    model = blocks()
    report = check(model, X_BD, OPTIMIZERS[name](model.parameters()))
    if name in ("SGD", "ASGD"):
        assert not report
        assert report.notes == (
            "the first step of the gates, which grows with the loss, was not judged: give a loss function",
        )
    else:
        assert [finding.name for finding in report] == ["learning rate of the gates"]


def test_steps_of_hooks_and_schedulers_are_not_made() -> None:
    """Neither the optimizer's own hooks, nor those of all optimizers, nor a scheduler's count see the step."""
    model, calls = blocks(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    hook = register_optimizer_step_pre_hook(lambda *given: calls.append(given))
    optimizer.register_step_post_hook(lambda *given: calls.append(given))
    try:
        assert not check(model, loss_fn, scheduler)
    finally:
        hook.remove()
    assert calls == []
    assert not getattr(optimizer, "_opt_called", False)


def test_an_optimizer_that_needs_more_is_estimated() -> None:
    """By its rate and the gradient, as one that wants a closure."""
    gate = nn.Parameter(torch.zeros(1))
    assert first_step(torch.optim.LBFGS([gate], lr=0.5), {gate: torch.tensor([-4.0])}) == {gate: 2.0}
    assert first_step(timm.optim.Lookahead(torch.optim.Adam([gate], lr=0.5)), {gate: torch.tensor([-4.0])}) == {
        gate: 2.0
    }
    assert not gate.any()
