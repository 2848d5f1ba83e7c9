"""A conversion is refused where gates could not learn, or where closed gates let a gradient through."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

import rezero
from rezero.errors import UsageError
from rezero.gate import AnyGate
from rezero.surgery.gradients import gated_only
from rezero.surgery.trace import trace

# Suffixes: B batch, D width.
D = 8
X_BD = torch.randn(3, D, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """``x + f(x)``."""

    def __init__(self, f: nn.Module | None = None) -> None:
        super().__init__()
        self.f = nn.Linear(D, D) if f is None else f

    def forward(self, x: Tensor) -> Any:
        return x + self.f(x)


def behind_a_stem(block: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(D, D), block)


def zero_(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def gates_of(model: nn.Module) -> list[Any]:
    return [gate.gate_parameter for gate in rezero.gates(model).values()]


# What starts at zero behind the branches


class ZeroGain(nn.Module):
    """Multiplies by a number that is zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


ZERO_HEADS = {
    "linear": lambda: nn.Sequential(Block(), Block(), zero_(nn.Linear(D, 3))),
    "gain": lambda: nn.Sequential(Block(), ZeroGain(), nn.Linear(D, 3)),
    "between": lambda: nn.Sequential(Block(), zero_(nn.Linear(D, D)), Block()),
    "norm": lambda: nn.Sequential(Block(), zero_(nn.LayerNorm(D)), nn.Linear(D, 3)),
}


@pytest.mark.parametrize("build", ZERO_HEADS.values(), ids=ZERO_HEADS)
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_head_that_starts_at_zero_is_no_hindrance(build: Callable[[], nn.Module], start: float) -> None:
    """A model whose head is zero at first is converted, keeps it, and its gates learn from the second step on."""
    model = build()
    before = copy.deepcopy(model.state_dict())
    conversion = rezero.convert_(model, X_BD, init_value=start)
    assert conversion.reset == ()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(X_BD) - 1).square().sum().backward()
        optimizer.step()
    assert all((alpha != start).all() for alpha in gates_of(model))


# Gates that could never learn


class Detached(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x).detach()


class WithoutGradients(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            f = self.f(x)
        return x + f


class GatedTwice(Block):
    """Multiplies by the gate once more, so that its gradient at 0 is zero and at 1 is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) * getattr(self.f, "alpha", 1.0)


class Unused(Block):
    """Adds, and returns something else."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.f(x)
        return self.g(x) + 0 * y.detach()


NEVER = {
    "detached": lambda: behind_a_stem(Detached()),
    "under no_grad": lambda: behind_a_stem(WithoutGradients()),
    "one of two": lambda: nn.Sequential(Block(), Detached()),
}


@pytest.mark.parametrize("build", NEVER.values(), ids=NEVER)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_gate_that_could_never_learn_is_refused_by_name(build: Callable[[], nn.Module], start: float) -> None:
    """A gate without a gradient, now and later, is named, and filter_fn can leave its branch out."""
    model = build()
    y, keys = model(X_BD), list(model.state_dict())
    with pytest.raises(UsageError, match=r"the gate '1\.f\.alpha' gets no gradient and could never learn.*filter_fn"):
        rezero.convert_(model, X_BD, init_value=start)
    assert torch.equal(model(X_BD), y)
    assert list(model.state_dict()) == keys
    assert rezero.convert_(nn.Sequential(model, Block()), X_BD, filter_fn=lambda _, name: name == "1.f").gates


def test_a_gate_that_other_code_reads_is_refused() -> None:
    """A block that multiplies by the gate once more is refused by name, and left as it was."""
    model = behind_a_stem(GatedTwice())
    with pytest.raises(UsageError, match="'1' reads a gate itself"):
        rezero.convert_(model, X_BD)
    assert not rezero.gates(model)


def test_what_is_not_returned_is_left_alone() -> None:
    """An addition whose sum is detached gets no gate, and is listed; the others do."""
    conversion = rezero.convert_(nn.Sequential(behind_a_stem(Unused()), Block()), X_BD)
    assert conversion.gates == ("1.f.alpha",)
    assert any("no gate could learn there" in left.reason for left in conversion.residuals.left_out)


class TwoStreams(nn.Module):
    """A decoder that reads an encoder inside its branch only."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.look = Block(), nn.Linear(D, D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x.flip(0))
        x = self.decoder(x)
        return x + self.look(torch.cat([x, h], dim=-1))


@pytest.mark.parametrize("gate", ["scalar", "tanh"])
@pytest.mark.parametrize(
    "build",
    [TwoStreams, lambda: Block(nn.Sequential(nn.Linear(D, D), Block(), nn.Linear(D, D)))],
    ids=["encoder and decoder", "nested"],
)
def test_a_gate_behind_another_learns_after_it(build: Callable[[], nn.Module], gate: Any) -> None:
    """A gate whose gradient is zero as long as the one it lies behind is closed gets it once that is open."""
    model = build()
    rezero.convert_(model, X_BD, gate=gate)
    model(X_BD).square().sum().backward()
    moves = [bool(alpha.grad.any()) for alpha in gates_of(model)]
    assert sorted(moves) == [False, True]
    for alpha, moved in zip(gates_of(model), moves, strict=True):
        nn.init.constant_(alpha, float(moved))
    model.zero_grad()
    model(X_BD).square().sum().backward()
    assert all(alpha.grad.any() for alpha in gates_of(model))


def test_a_branch_that_is_zero_on_the_example_is_excused() -> None:
    """A gate on a branch that is zero on this example can't be tried, and is accepted with any start."""
    for start in (0.0, 1.0):
        model = Block(nn.Sequential(nn.Linear(D, D), nn.Threshold(9.0, 0.0)))
        conversion = rezero.convert_(model, X_BD, init_value=start)
        assert conversion.gates == ("f.1.alpha",)


# Gradients that pass a closed gate, or are lost


class _Penalty(torch.autograd.Function):
    """Returns its input; its loss has a gradient all the same, as some mixtures of experts balance their router."""

    @staticmethod
    def forward(_: Any, x: Tensor, __: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Any:
        return gradients[0], torch.ones(())


class Penalised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Penalty.apply(super().forward(x), self.weight.square().sum())
        return y


def test_a_gradient_past_a_closed_gate_is_refused_by_name() -> None:
    """A parameter that only gated branches use and that has a gradient with closed gates is named."""
    model = nn.Sequential(Block(), Block(Penalised(D, D)))
    with pytest.raises(UsageError, match=r"with all gates at 0 .* '1\.f\.weight' has a gradient, although only gated"):
        rezero.convert_(model, X_BD)


class Tied(Block):
    """Uses the branch's weight outside it too."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.f(x)).tanh() @ self.f.weight


class AlsoReturned(Block):
    """Returns what its branch was made of, as a cache of keys is returned."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D)))
        self.cache = True

    def forward(self, x: Tensor) -> Any:
        h = self.f[1](self.f[0](x))
        return x + self.f[2](h), {"cache": [h]}


def test_what_only_gates_lead_to_the_outputs_is_found_behind_scaled_weights_too() -> None:
    """Of an encoder layer, whose gates are on weights, all but the norms reaches the outputs through gates only."""
    model, x = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), torch.randn(2, 3, D)
    gates = rezero.convert_(model, x).gates
    names = {name for name, _ in model.named_parameters() if name not in gates and "norm" not in name}
    assert gated_only(trace(model, (x,)), gates) == names


def test_the_walk_back_from_the_outputs_goes_any_way() -> None:
    """A network of thousands of operations is no deeper than the walk over it can go."""
    layers = [layer for _ in range(1500) for layer in (nn.Identity(), nn.Tanh())]
    model = nn.Sequential(Block(), *layers, Block())
    gates = rezero.convert_(model, X_BD, verify=False).gates
    assert gated_only(trace(model, (X_BD,)), gates) == {
        "0.f.weight",
        "0.f.bias",
        f"{len(layers) + 1}.f.weight",
        f"{len(layers) + 1}.f.bias",
    }


class Queries(nn.Module):
    """Begins with a block on learned numbers alone, whose sum a branch of the next block reads too, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.norm = nn.Parameter(torch.randn(D)), nn.LayerNorm(D)
        self.first, self.second = Block(), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(self.first(self.queries)).expand_as(x)
        return q + self.second(torch.cat([q, x], dim=-1))


@pytest.mark.parametrize("build", [Tied, AlsoReturned, Queries])
def test_what_is_used_outside_a_branch_too_may_have_a_gradient(build: Callable[[], nn.Module]) -> None:
    """A weight or an activation of a branch that also reaches the output otherwise is no reason to refuse."""
    assert rezero.convert_(build(), X_BD).gates


class LosesGradient(Block):
    """Detaches its stem when it sees a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.detach() if isinstance(self.f, AnyGate) else x
        return x + self.f(x)


def test_a_parameter_that_loses_its_gradient_is_named() -> None:
    """A parameter with a gradient in the original and without one in the converted model is an error."""
    with pytest.raises(UsageError, match=r"'stem\.bias' has a gradient in the original and has none in the converted"):
        rezero.convert_(LosesGradient(), X_BD)


class Routed(Block):
    """Chooses one of two layers by its numbers, which the gate decides."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.f.bias, 9.0)
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x)
        return self.experts[int(x.sum() > 0)](x)


def test_another_way_by_other_numbers_is_no_lost_gradient() -> None:
    """A model that chooses its experts by its numbers chooses others behind closed gates, and is accepted."""
    model = Routed()
    x = -X_BD.abs()
    assert model(x).equal(model.experts[1](x + model.f(x)))
    rezero.convert_(model, x)
    assert model(x).equal(model.experts[0](x))


# Where there is no backward pass


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return 2 * x


class ForwardOnly(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _NoBackward.apply(super().forward(x))
        return y


class WritesOver(Block):
    """Writes into what the backward pass needs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).exp().mul(1.0).exp_().sigmoid_().mul_(2)


class WritesOverInTraining(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).exp()
        return y.mul_(2) if self.training else 2 * y


class NoGradients(Block):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Classes(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


class FailsWhenGated(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return _NoBackward.apply(y) / 2 if isinstance(self.f, AnyGate) else y


IMPOSSIBLE = {
    "no backward": (ForwardOnly, r"the backward pass of the original fails, .*must implement either the backward"),
    "in place": (WritesOver, r"the backward pass of the original fails, .*modified by an inplace operation"),
    "no gradients": (NoGradients, r"no output of the model has a gradient, so that no gate could learn"),
    "integers": (Classes, r"no output of the model has a gradient, .*returns no floating-point numbers"),
    "only when gated": (FailsWhenGated, r"the backward pass of the converted model fails where the original's ran"),
}


@pytest.mark.parametrize(("build", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_without_a_backward_pass_it_is_refused(build: Callable[[], nn.Module], message: str) -> None:
    """A model that can't be differentiated is one clear error, stays as it was, and converts with verify=False."""
    model = build()
    y = model(X_BD)
    with pytest.raises(UsageError, match=message):
        rezero.convert_(model, X_BD)
    assert torch.equal(model(X_BD), y)
    assert not rezero.gates(model)
    assert rezero.convert_(model, X_BD, verify=False).gates == ("f.alpha",)


def test_one_mode_with_a_backward_pass_is_enough() -> None:
    """A model that can be differentiated in evaluation alone is checked there."""
    assert rezero.convert_(WritesOverInTraining(), X_BD).gates == ("f.alpha",)


class Recomputes(Block):
    """Recomputes its activations in the way that torch.autograd.grad can't see through."""

    def forward(self, x: Tensor) -> Any:
        return checkpoint.checkpoint(super().forward, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # in evaluation
def test_a_model_that_recomputes_is_checked_like_any_other() -> None:
    """Reentrant checkpoints hide no gradient from the check, which finds the gates alive, and stay switched on."""
    model = behind_a_stem(Recomputes())
    function = checkpoint.CheckpointFunction
    assert rezero.convert_(model, X_BD).gates == ("1.f.alpha",)
    assert checkpoint.CheckpointFunction is function
    model(X_BD).square().sum().backward()
    assert gates_of(model)[0].grad.any()


# Traces


def test_the_check_leaves_no_gradients_and_calls_no_optimizer() -> None:
    """Nothing is accumulated: gradients are the same objects, and hooks of optimizers that step backwards don't run."""
    model, calls = nn.Sequential(Block(), nn.Linear(D, D)), []
    x = X_BD.clone().requires_grad_()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    rezero.convert_(model, x)
    assert calls == []
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_gates_of_ones_own_are_left_alone() -> None:
    """A ReZero block of the model's own keeps the numbers of its gate, at whatever they are."""
    model = nn.Sequential(rezero.ReZero(nn.Linear(D, D)), Block())
    nn.init.constant_(model[0].gate.alpha, 0.3)
    rezero.convert_(model, X_BD, init_value=1.0, filter_fn=lambda _, name: name.startswith("1."))
    assert model[0].gate.alpha.item() == pytest.approx(0.3)
