"""Steps of the gates are held to a sum."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import DeepStack, Gate, ReZero, gates, hold_gates, param_groups
from rezero.layers import MLP, MLPBlock, TransformerEncoderLayer
from tests.core.test_optim import OPTIMIZERS

HIGH = 0.5  # a rate at which all gates in all move by more than 1


def backward(model: nn.Module, width: int = 4) -> None:
    torch.manual_seed(1)
    model(torch.randn(3, 5, width)).square().mean().backward()


def steps_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Take a step, and return what it changed the gates by."""
    before = {name: gate.gate_parameter.detach().clone() for name, gate in gates(model).items()}
    optimizer.zero_grad()
    backward(model)
    optimizer.step()
    return {name: gate.gate_parameter.detach() - before[name] for name, gate in gates(model).items()}


def total(steps: dict[str, Tensor]) -> float:
    return sum(step.abs().sum().item() for step in steps.values())


def tower(depth: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(ReZero(nn.Linear(4, 4), gate=Gate(init_value=0.1)) for _ in range(depth)))


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_holds_every_optimizer(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """A step that is too large is as long as allowed and points the same way; one that is not is bitwise the same."""
    model = tower()
    free, held, loose = (copy.deepcopy(model) for _ in range(3))
    made = [kind(param_groups(each, lr=0.1, weight_decay=0.0, alpha_lr=HIGH)) for each in (free, held, loose)]
    alone = steps_of(free, made[0])
    most = total(alone) / 3
    hold_gates(made[1], held, most=most)
    hold_gates(made[2], loose, most=4 * most)
    shortened, same = steps_of(held, made[1]), steps_of(loose, made[2])
    assert total(shortened) == pytest.approx(most, rel=1e-5)
    for name, step in alone.items():
        torch.testing.assert_close(shortened[name], step / 3, rtol=1e-4, atol=1e-7)
        assert torch.equal(same[name], step)
    rest = {name: p for name, p in held.named_parameters() if not name.endswith("alpha")}
    for name, p in free.named_parameters():
        assert name not in rest or torch.equal(p, rest[name])


def test_goes_on_step_after_step_until_removed() -> None:
    """Every step is held; after ``remove`` none is."""
    model = tower()
    optimizer = torch.optim.Adam(param_groups(model, lr=0.0, weight_decay=0.0, alpha_lr=HIGH))
    handle = hold_gates(optimizer, model, most=0.2)
    assert [total(steps_of(model, optimizer)) for _ in range(3)] == pytest.approx([0.2] * 3, rel=1e-5)
    handle.remove()
    assert total(steps_of(model, optimizer)) > 1


def test_gates_count_by_their_branches() -> None:
    """A scale a feature counts as their mean, a shared gate and a shared block as often as a signal passes them."""
    shared = Gate()
    wide, twice = ReZero(nn.Linear(4, 4), gate=Gate(4)), ReZero(nn.Linear(4, 4))
    layer = TransformerEncoderLayer(4, 2, 8, share="layer", batch_first=True)
    tied = [ReZero(nn.Linear(4, 4), gate=shared) for _ in range(3)]
    model = nn.Sequential(wide, twice, layer, *tied, twice)
    optimizer = torch.optim.Adam(param_groups(model, lr=0.0, weight_decay=0.0, alpha_lr=HIGH))
    hold_gates(optimizer, model, most=1.6)
    steps_of(model, optimizer)
    # Adam's first step moves each alpha alike: over 1 + 2 + 2 + 3 branches it is 0.2.
    for gate in gates(model).values():
        torch.testing.assert_close(gate.gate_parameter.abs(), torch.full_like(gate.gate_parameter, 0.2))


@pytest.mark.parametrize(
    "block", [MLPBlock(4), TransformerEncoderLayer(4, 2, 8, batch_first=True)], ids=["mlp", "layer"]
)
def test_stacks_count_all_layers(block: Any) -> None:
    """The gates of a stack count like those of its layers one by one."""
    stack = DeepStack(block, 5)
    optimizer = torch.optim.Adam(param_groups(stack, lr=0.0, weight_decay=0.0, alpha_lr=HIGH))
    hold_gates(optimizer, stack)
    assert total(steps_of(stack, optimizer)) == pytest.approx(1, rel=1e-5)


def test_deep_network_at_a_high_rate() -> None:
    """A thousand layers whose first step multiplies the loss many times learn from the first step on when held."""
    losses = []
    for holds in (False, True):
        torch.manual_seed(0)
        model = MLP(4, 16, 1000, 2)
        optimizer = torch.optim.Adam(param_groups(model, lr=0.001, weight_decay=0.0, alpha_lr=0.1))
        if holds:
            hold_gates(optimizer, model)
        x = torch.randn(32, 4)
        found = []
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            found.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(found)
    assert max(losses[0]) > 10 * losses[0][0]
    assert max(losses[1]) == losses[1][0]


def test_states_and_checkpoints_are_the_optimizers_own() -> None:
    """What is saved is what would be saved without, and a copy takes steps of its own."""
    model = tower()
    optimizer = torch.optim.Adam(param_groups(model, lr=0.1, weight_decay=0.0, alpha_lr=HIGH))
    plain = copy.deepcopy(optimizer.state_dict())
    hold_gates(optimizer, model)
    assert optimizer.state_dict() == plain


def test_frozen_gates_stay() -> None:
    """A gate without gradient does not move and does not count."""
    model = tower()
    model.get_submodule("0.gate").requires_grad_(False)
    optimizer = torch.optim.Adam(param_groups(model, lr=0.1, weight_decay=0.0, alpha_lr=HIGH))
    hold_gates(optimizer, model)
    steps = steps_of(model, optimizer)
    assert steps["0.gate"].item() == 0
    assert total(steps) == pytest.approx(1, rel=1e-5)


def test_nothing_moves_without_gradients() -> None:
    """A step that changes nothing is no division by zero."""
    model = tower()
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, weight_decay=0.0))
    hold_gates(optimizer, model)
    optimizer.step()
    assert all(gate.gate_parameter.item() == pytest.approx(0.1) for gate in gates(model).values())


def test_holds_what_accelerate_wraps() -> None:
    """An optimizer that Accelerate has prepared is held like the one inside."""
    accelerate = pytest.importorskip("accelerate")
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(
        model := tower(), torch.optim.Adam(param_groups(model, lr=0.0, weight_decay=0.0, alpha_lr=HIGH))
    )
    hold_gates(optimizer, model)
    assert total(steps_of(model, optimizer)) == pytest.approx(1, rel=1e-5)


# Errors


def test_refuses_what_it_cannot_hold() -> None:
    """Wrong kinds, limits that are none, and optimizers that train no gate are errors that say so."""
    model = tower(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="expected a torch optimizer: got Sequential"):
        hold_gates(model, optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected the model itself, to find its gates: got generator"):
        hold_gates(optimizer, model.parameters())  # type: ignore[arg-type]
    for most in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"most must be a finite number above 0: got {most}"):
            hold_gates(optimizer, model, most=most)
    with pytest.raises(ValueError, match="that trains the gates of the model: the model has none"):
        hold_gates(optimizer, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="that trains the gates of the model: of the model's gates it trains none"):
        hold_gates(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), model)
