"""A conversion that can't be shown to be right is refused, and the check itself leaves no trace."""

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rezero
from rezero.errors import UsageError

# Suffixes: B batch, T positions, D width.
D = 8
X_BD = torch.randn(3, D, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """``x + f(x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


# What is refused


class AnotherPathInTraining(Block):
    """Adds another layer's output in training."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.g(x) if self.training else self.f(x))


class NoAdditionInTraining(Block):
    """Skips the block in training, as LayerDrop does."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x + self.f(x)


class ReadInTraining(Block):
    """Reads the layer's weight itself in training, and calls the layer in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (F.linear(x, self.f.weight, self.f.bias) if self.training else self.f(x))


class ReadWithGradients(Block):
    """Reads the layer's weight itself as long as gradients are wanted."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (F.linear(x, self.f.weight, self.f.bias) if torch.is_grad_enabled() else self.f(x))


class ReadWithoutGradients(Block):
    """Reads the layer's weight itself as soon as no gradients are wanted."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.f(x) if torch.is_grad_enabled() else F.linear(x, self.f.weight, self.f.bias))


class RunPastItsCall(Block):
    """The layer serves once more, through its forward: no call of the module is seen there."""

    def forward(self, x: Tensor) -> Tensor:
        return self.f.forward(x + self.f(x))


class ReadElsewhere(Block):
    """The layer's output is used once, but its class is asked for: a gated one takes another path."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) if type(self.f) is nn.Linear else 2 * x + self.f(x)


class OwnForward(Block):
    """The layer's forward was replaced on the instance, as accelerate's hooks do: its class no longer counts."""

    def __init__(self) -> None:
        super().__init__()
        forward = self.f.forward
        self.f.forward = lambda x: forward(x)


class OwnGateScale(Block):
    """The layer has a parameter of the name that a gate's factor has."""

    def __init__(self) -> None:
        super().__init__()
        self.f = GateScale()


class GateScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.gate_scale = nn.Parameter(torch.full((D,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate_scale * self.linear(x)


class ReadBehindAnotherAddition(Block):
    """Reads the weight itself in training, where another addition takes the place of the residual one."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x + self.f(x)
        x = x + torch.zeros_like(x)
        return x + F.linear(x, self.f.weight, self.f.bias)


class Averages(Block):
    """Moves an average of its weights on, in place and past the version counters of autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        self.average.data.mul_(0.9).add_(self.f.weight.data[0])
        return x + self.f(x * self.average)


class AveragesInTraining(Averages):
    """Does so in training."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x + self.f(x)


REFUSED = {
    "another path in training": (AnotherPathInTraining, r"in training .* the model takes another path"),
    "no addition in training": (NoAdditionInTraining, r"in training .* the model takes another path"),
    "read in training": (ReadInTraining, r"in training .* does not return its skip"),
    "read behind another": (ReadBehindAnotherAddition, r"in training .* does not return its skip"),
    "read with gradients": (ReadWithGradients, "no module returns the branch"),
    "read without": (ReadWithoutGradients, r"without gradients .* does not return its skip"),
    "run past its call": (RunPastItsCall, "runs the forward of a gated module past its call"),
    "class asked for": (ReadElsewhere, r"output differs from the original's|takes another path"),
    "forward of its own": (OwnForward, r"has a forward of its own.*hooks off first"),
    "gate_scale of its own": (OwnGateScale, r"gate_scale|output differs from the original's"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_can_not_be_gated_surely_is_refused(build: Callable[[], nn.Module], message: str, training: bool) -> None:
    """A model whose gates would not gate, in one mode or for one gradient, is refused and left as it was."""
    model = build().train(training)
    before, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    expected = model(X_BD)
    with pytest.raises(UsageError, match=message):
        rezero.convert_(model, X_BD)
    assert [type(module) for module in model.modules()] == classes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(X_BD), expected)
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize("build", [Averages, AveragesInTraining])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_model_that_writes_into_its_weights_keeps_them(build: Callable[[], nn.Module], start: float) -> None:
    """A forward that changes parameters in place is refused, and they have their numbers and their memory."""
    model = build()
    before = {name: (p.detach().clone(), p.data_ptr()) for name, p in model.named_parameters()}
    with pytest.raises(UsageError, match=r"writes into its parameter 'average' .* move the update out of it"):
        rezero.convert_(model, X_BD, init_value=start)
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.data_ptr() == before[name][1]


class Bounded(Block):
    """Has an embedding that shortens its vectors when they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, D, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.table(torch.arange(3)))


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_what_is_written_once_is_converted_after_it(start: float) -> None:
    """A model that changes weights in its first pass is refused, with the weights as they were, until it has run."""
    model = Bounded()
    before = model.table.weight.detach().clone()
    with pytest.raises(UsageError, match=r"writes into its parameter 'table\.weight' .* run the model on the example"):
        rezero.convert_(model, X_BD, init_value=start)
    assert torch.equal(model.table.weight, before)
    model(X_BD)
    assert rezero.convert_(model, X_BD, init_value=start).gates == ("f.alpha",)


def test_weights_that_are_not_a_number_are_not_taken_for_written() -> None:
    """A parameter that holds NaN beside the branches is no obstacle."""
    model = Block()
    model.unused = nn.Parameter(torch.full((D,), torch.nan))
    assert rezero.convert_(model, X_BD, init_value=1).gates == ("f.alpha",)


def test_the_addition_is_named() -> None:
    """The message names the module whose addition went wrong."""
    model = nn.Sequential(Block(), ReadInTraining())
    with pytest.raises(UsageError, match=r"with all gates at 0 in training without gradients the addition in '1'"):
        rezero.convert_(model, X_BD)


@pytest.mark.parametrize("number", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_an_example_that_is_not_finite_is_named(number: float, start: float) -> None:
    """A branch that is not finite on the example, which no gate at zero can close, is refused for that reason."""
    with pytest.raises(UsageError, match=r"what is added in '0' is not finite on the example.*0 \* inf is nan"):
        rezero.convert_(nn.Sequential(Block(), Block()), torch.full((3, D), number), init_value=start)


class Recomputes(nn.TransformerEncoderLayer):
    """Recomputes its feed-forward branch in the backward pass."""

    def _ff_block(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(super()._ff_block, x, use_reentrant=True)
        return out


class RecomputedWhole(nn.Module):
    """Recomputes a whole layer, which runs again as it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.layer, x, use_reentrant=True)
        return out


X_BTD = X_BD[None]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # in evaluation
def test_a_checkpoint_that_would_recompute_a_branch_without_its_gate_is_refused() -> None:
    """A reentrant checkpoint inside an encoder layer, whose weights are gated only while it runs, is refused."""
    model = Recomputes(D, 2, 16, batch_first=True)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(
        UsageError, match=r"backward pass .*'self_attn\.out_proj' is gated .* recompute it without its gate: check"
    ):
        rezero.convert_(model, X_BTD)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # in evaluation
def test_a_recomputed_layer_has_the_gradients_of_one_that_is_not() -> None:
    """A reentrant checkpoint around an encoder layer is converted, and gives its gates the same gradients."""
    torch.manual_seed(0)
    model = RecomputedWhole()
    rezero.convert_(model, X_BTD, init_value=0.5)
    gradients = []
    for run in (model, model.layer):
        model.zero_grad()
        run(X_BTD.clone().requires_grad_()).square().sum().backward()
        gradients.append([gate.gate_parameter.grad.clone() for gate in rezero.gates(model).values()])
    assert all(bool(gradient.any()) for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_without_verification_nothing_is_held_against_the_original() -> None:
    """verify=False converts what the check would refuse."""
    model = ReadInTraining()
    assert rezero.convert_(model, X_BD, verify=False).gates == ("f.alpha",)


# What is not refused


class Draws(Block):
    """Draws from Python's, NumPy's and torch's generators."""

    def forward(self, x: Tensor) -> Tensor:
        return x * random.random() + F.dropout(self.f(x), 0.5, self.training) + torch.rand(1)


class Counts(Block):
    """Counts its calls in a buffer and in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        self.seen.append(len(x))
        return x + self.f(x) * (1 + self.get_buffer("calls"))


class Remembers(Block):
    """Keeps a table in a plain object, and moves an average of its weights on in training, as MoCo does."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.kept = nn.Parameter(torch.ones(D)), SimpleNamespace(table=None)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept.table is None:
            self.kept.table = torch.arange(D) / D
        if self.training:
            self.average.data = 0.9 * self.average.data + 0.1 * self.f.weight.data[0]
        return x + self.f(x * self.average * self.kept.table)


class FailsInTraining(Block):
    """Can't be trained at all: it is converted for evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError("only for inference")
        return x + self.f(x)


class NotANumber(Block):
    """Gives infinities and NaNs beside its output."""

    def forward(self, x: Tensor) -> Any:
        y = x + self.f(x)
        return y, torch.full_like(y, torch.nan), torch.full_like(y, torch.inf)


class NoiseInTraining(Block):
    """Adds noise to its input in training: one addition more, before the residual one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.randn_like(x) if self.training else x
        return x + self.f(x)


class DropsLayers(nn.Module):
    """Leaves out layers at random in training, as LayerDrop does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if not self.training or torch.rand(()) > 0.5 else x
        return x


ACCEPTED = {
    "noise in training": NoiseInTraining,
    "drops layers": DropsLayers,
    "draws": Draws,
    "counts": Counts,
    "remembers": Remembers,
    "fails in training": FailsInTraining,
    "not a number": NotANumber,
    "frozen": lambda: Block().requires_grad_(False),
    "batch norm": lambda: nn.Sequential(Block(), nn.BatchNorm1d(D), Block()),
}


@pytest.mark.parametrize("build", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_what_others_do_in_forward_does_not_matter(build: Callable[[], nn.Module], start: float) -> None:
    """Randomness, counters, writes to the input and the like are converted, and leave no trace behind."""
    model = build().eval()
    state = copy.deepcopy(model.state_dict())
    given = X_BD.clone()
    rng, python = torch.get_rng_state(), random.getstate()
    conversion = rezero.convert_(model, given, init_value=start)
    assert torch.equal(given, X_BD), "the example input was written into"
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == python
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(gate.gate_parameter.item() == start for gate in rezero.gates(model).values())
    assert all(p.grad is None for p in model.parameters())
    assert getattr(model, "seen", []) == []
    conversion.undo()
    assert model.state_dict().keys() == state.keys()


def test_modes_and_gradients_stay_as_they_were() -> None:
    """Each module's mode and each parameter's gradient are the same objects and values after a conversion."""
    model = nn.Sequential(Block(), nn.Dropout(0.5), Block())
    model[1].eval()
    model(X_BD).sum().backward()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None}
    rezero.convert_(model, X_BD)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, (gradient, numbers) in before.items():
        assert model.get_parameter(name).grad is gradient
        assert torch.equal(gradient, numbers)


@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_gates_can_learn_wherever_they_were_made(enabled: bool) -> None:
    """A conversion under no_grad is as good as any: it is verified, and its gates learn."""
    model = nn.Sequential(Block(), Block())
    with torch.set_grad_enabled(enabled):
        rezero.convert_(model, X_BD)
        assert torch.is_grad_enabled() == enabled
        with pytest.raises(UsageError, match="does not return its skip"):
            rezero.convert_(ReadWithoutGradients(), X_BD)
    model(X_BD).square().sum().backward()
    assert all(gate.gate_parameter.grad.any() for gate in rezero.gates(model).values())


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_a_conversion_inside_autocast_is_verified(start: float) -> None:
    """Within autocast a model is converted as elsewhere, and afterwards its gates and weights learn."""
    model = nn.Sequential(Block(), Block())
    with torch.autocast("cpu", torch.bfloat16):
        rezero.convert_(model, X_BD, init_value=start)
        y = model(X_BD)
    y.sum().backward()
    assert type(y) is Tensor
    assert torch.equal(y, X_BD) == (start == 0)
    assert all(gate.gate_parameter.grad.any() for gate in rezero.gates(model).values())
    assert all(bool(block.f.weight.grad.any()) == (start == 1) for block in model)
