"""Branches that start at zero are woken before a gate at zero hides them, and put back by undo."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import rezero
from rezero.errors import UsageError

# Suffixes: B batch, T positions, D width.
D = 8


class Block(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class LayerScale(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((D,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ScaledBlock(nn.Module):
    """``x + gain * branch(x)``, the gain being a parameter of the block's own, 0 at first, as in SkipInit."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(D, D)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.branch(x)


def zero_(module: nn.Module) -> nn.Module:
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)
    return module


def zero_linear() -> nn.Module:
    return Block(nn.Sequential(nn.Linear(D, D), nn.GELU(), zero_(nn.Linear(D, D))))


def zero_layer_scale() -> nn.Module:
    return Block(nn.Sequential(nn.Linear(D, D), LayerScale(0.0)))


def twice_zero() -> nn.Module:
    return Block(nn.Sequential(zero_(nn.Linear(D, D)), LayerScale(0.0)))


class Side(nn.Module):
    """Two branches at one addition, of which the second starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m = nn.Linear(D, D), zero_(nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(x) + self.m(x)


class SideFirst(Side):
    """The branches are summed before they are added."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.m(x) + self.a(x))


class SideStacked(Side):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([self.a(x), self.m(x)]).sum(0)


class SideGain(nn.Module):
    """One of two branches has a gain of zero, a parameter of the block's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.gain = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.a(x) + self.gain * self.m(x))


ASLEEP = {
    "beside another": (Side, ("m.weight",)),
    "beside another, summed": (SideFirst, ("m.weight",)),
    "beside another, stacked": (SideStacked, ("m.weight",)),
    "gain beside another": (SideGain, ("gain",)),
    "linear": (zero_linear, ("branch.2.weight",)),
    "layer scale": (zero_layer_scale, ("branch.1.gamma",)),
    "twice": (twice_zero, ("branch.1.gamma", "branch.0.weight")),
    "gain of the block": (ScaledBlock, ("gain",)),
}
every_sleeper = pytest.mark.parametrize(("build", "names"), ASLEEP.values(), ids=ASLEEP)
X_BD = torch.randn(3, D, generator=torch.Generator().manual_seed(1))


def resnet() -> nn.Module:
    return timm.create_model("resnet18", layers=(1, 2, 1, 1), channels=(8, 8, 16, 16), num_classes=5)


@every_sleeper
def test_what_ends_a_branch_with_zeros_is_reset_and_listed(build: Any, names: tuple[str, ...]) -> None:
    """The weights and gains that make a branch zero are listed, become another than zero, and its gate can learn."""
    model = build()
    conversion = rezero.convert_(model, X_BD)
    assert conversion.reset == names
    assert all(name in str(conversion) for name in names)
    assert all(model.get_parameter(name).any() for name in names)
    assert torch.equal(model(X_BD), X_BD)
    model(X_BD).square().sum().backward()
    assert all(gate.gate_parameter.grad.any() for gate in rezero.gates(model).values())


@every_sleeper
def test_refusing_names_the_branch_and_changes_nothing(build: Any, names: tuple[str, ...]) -> None:
    """With zero_last='refuse' a branch that starts at zero is an error, and the model stays as it was."""
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=r"outputs only zeros and would never learn .* zero_last='reset'"):
        rezero.convert_(model, X_BD, zero_last="refuse")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_sleeper
@pytest.mark.parametrize("start", [1.0, 0.5])
def test_open_gates_leave_zeros_alone(build: Any, names: tuple[str, ...], start: float) -> None:
    """A gate that starts at another number than 0 lets a zero branch learn, which stays as it is then."""
    model = build()
    conversion = rezero.convert_(model, X_BD, init_value=start, zero_last="refuse")
    assert conversion.reset == ()
    assert not any(model.get_parameter(name).any() for name in names)


def test_a_reset_matrix_is_drawn_as_its_layer_draws_it() -> None:
    """A zero linear layer gets what its own reset_parameters draws from the same seed."""
    model, twin = zero_linear(), nn.Linear(D, D)
    torch.manual_seed(3)
    rezero.convert_(model, X_BD)
    torch.manual_seed(3)
    twin.reset_parameters()
    assert torch.equal(model.get_parameter("branch.2.weight"), twin.weight)


class Draws(nn.Linear):
    """A layer that draws with Python's and NumPy's generators, and counts its draws in a buffer."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.register_buffer("draws", torch.zeros(1))
        zero_(self)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "draws"):
            self.get_buffer("draws").add_(random.random() + np.random.rand())


@pytest.mark.parametrize("last", [lambda: zero_(nn.Linear(D, D)), Draws], ids=["torch", "others"])
def test_a_reset_draws_from_nobodys_generator(last: Any) -> None:
    """Draws of a reset, and undo, leave the generators of torch, Python and NumPy where they were, and buffers too."""
    model = nn.Sequential(Block(last()), Block(last()))
    before = copy.deepcopy(model.state_dict())
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    conversion = rezero.convert_(model, X_BD)
    assert conversion.reset == ("0.branch.weight", "1.branch.weight")
    assert not torch.equal(model[0].branch.weight, model[1].branch.weight)
    for _ in range(2):
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert str(np.random.get_state()) == states[2]
        conversion.undo()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Resets(nn.Module):
    """A module whose reset_parameters draws those of its layers too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weight = nn.Linear(D, D), nn.Parameter(torch.zeros(D, D))
        self.bias = nn.Parameter(torch.zeros(D))

    def reset_parameters(self) -> None:
        self.inner.reset_parameters()
        nn.init.ones_(self.bias)
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.inner(x), self.weight, self.bias)


def test_only_what_is_listed_is_reset() -> None:
    """Of a module that draws its bias and its inner layers anew as well, the listed parameter alone changes."""
    model = Block(Resets())
    before = copy.deepcopy(model.state_dict())
    conversion = rezero.convert_(model, X_BD)
    assert conversion.reset == ("branch.weight",)
    changed = {key for key, value in before.items() if not torch.equal(value, model.state_dict()[key])}
    assert changed == {"branch.weight"}


def test_undo_keeps_what_a_reset_parameter_has_learned() -> None:
    """undo puts a zero back where the reset numbers still stand, and leaves what was trained or folded since."""
    model = nn.Sequential(zero_layer_scale(), zero_layer_scale())
    conversion = rezero.convert_(model, X_BD)
    with torch.no_grad():
        model.get_parameter("0.branch.1.gamma").add_(0.25)
    conversion.undo()
    assert torch.equal(model.get_parameter("0.branch.1.gamma"), torch.full((D,), 1.25))
    assert not model.get_parameter("1.branch.1.gamma").any()


class Experts(nn.Module):
    """Matrices without a reset_parameters, as models of experts keep them."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.weight.ndim == 2 else torch.einsum("bi,eij->bj", x, self.weight)


class ZeroAgain(nn.Linear):
    """A linear layer that resets itself to zero."""

    def reset_parameters(self) -> None:
        zero_(self)


def conv1d() -> nn.Module:
    layer = transformers.pytorch_utils.Conv1D(D, D)
    nn.init.zeros_(layer.weight)
    return layer


MATRICES = {
    "Conv1D": (conv1d, 0.02),
    "matrix": (lambda: Experts(D, D), D**-0.5),
    "experts": (lambda: Experts(3, D, D), D**-0.5),
    "resets to zero": (lambda: ZeroAgain(D, D), D**-0.5),
}


@pytest.mark.parametrize(("build", "spread"), MATRICES.values(), ids=MATRICES)
def test_a_matrix_that_nobody_draws_is_drawn_from_a_normal(build: Any, spread: float) -> None:
    """A matrix without a reset_parameters that helps gets normal numbers of its layer's usual spread, its bias none."""
    model = Block(build())
    conversion = rezero.convert_(model, X_BD)
    assert conversion.reset == ("branch.weight",)
    weight = model.get_parameter("branch.weight")
    assert weight.mean().abs() < spread
    assert 0.7 * spread < weight.std() < 1.4 * spread
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    conversion.undo()
    assert not weight.any()


def test_timms_zero_gains_become_one() -> None:
    """timm's resnet starts the last gain of each block at 0: they become 1, and undo puts the zeros back."""
    model = resnet()
    gains = [f"layer{i}.{j}.bn2.weight" for i, j in ((1, 0), (2, 0), (2, 1), (3, 0), (4, 0))]
    assert not any(model.get_parameter(name).any() for name in gains)
    conversion = rezero.convert_(model, torch.randn(2, 3, 32, 32))
    assert list(conversion.reset) == gains
    assert all(torch.equal(p, torch.ones_like(p)) for p in map(model.get_parameter, gains))
    conversion.undo()
    assert not any(model.get_parameter(name).any() for name in gains)


def test_timms_resnet_is_refused_on_demand() -> None:
    """With zero_last='refuse' timm's resnet is an error that names the first such block, and stays as it was."""
    model = resnet()
    with pytest.raises(UsageError, match=r"the branch of 'layer1\.0\.bn2' outputs only zeros"):
        rezero.convert_(model, torch.randn(2, 3, 32, 32), zero_last="refuse")
    assert not rezero.gates(model)
    assert not model.get_parameter("layer1.0.bn2.weight").any()


def test_a_zero_that_means_one_stays() -> None:
    """Gemma's norms multiply by 1 + weight: their zero weights are no zero branch, and stay."""
    tiny: Any = {"hidden_size": D, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Gemma2Config(vocab_size=31, num_key_value_heads=1, head_dim=4, pad_token_id=0, **tiny)
    model = transformers.Gemma2ForCausalLM(config)
    norms = [name for name, p in model.named_parameters() if name.endswith("norm.weight") and not p.any()]
    assert len(norms) == 9
    conversion = rezero.convert_(model, (), {"input_ids": torch.arange(1, 7)[None]}, zero_last="refuse")
    assert conversion.reset == ()
    assert not any(model.get_parameter(name).any() for name in norms)


def test_a_layer_scale_that_is_small_stays() -> None:
    """A LayerScale of 1e-5 is small and not zero: it stays."""
    model = Block(nn.Sequential(nn.Linear(D, D), LayerScale(1e-5)))
    assert rezero.convert_(model, X_BD).reset == ()
    assert torch.equal(model.get_parameter("branch.1.gamma"), torch.full((D,), 1e-5))


def test_a_zero_that_no_parameter_explains_is_left_alone() -> None:
    """A branch that is zero on this example for another reason, such as a closed threshold, is gated and not reset."""
    model = Block(nn.Sequential(nn.Linear(D, D), nn.Threshold(3.0, 0.0)))
    before = copy.deepcopy(model.state_dict())
    conversion = rezero.convert_(model, 0.01 * X_BD)
    assert conversion.reset == ()
    assert len(conversion.gates) == 1
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_only_chosen_branches_are_woken() -> None:
    """A zero branch that filter_fn leaves out stays zero."""
    model = nn.Sequential(zero_linear(), zero_linear())
    conversion = rezero.convert_(model, X_BD, filter_fn=lambda _, name: name.startswith("1."))
    assert conversion.reset == ("1.branch.2.weight",)
    assert not model.get_parameter("0.branch.2.weight").any()


class Queries(nn.Module):
    """Learned queries, the same for every input, that a decoder begins with; also through layers of their own."""

    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        self.queries, self.before = nn.Parameter(torch.randn(4, D)), before
        self.decoder = nn.TransformerDecoderLayer(D, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.before(self.queries.expand(len(x), 4, D)), x)
        return output


@pytest.mark.parametrize("encodes", [False, True])
def test_what_no_input_reaches_is_not_reset(encodes: bool) -> None:
    """A branch that reads parameters alone is scaled by none of them: its biases, and theirs, stay zero."""
    torch.manual_seed(0)
    before = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True) if encodes else nn.Identity()
    model, x = Queries(before), torch.randn(2, 3, D)
    numbers = copy.deepcopy(model.state_dict())
    conversion = rezero.convert_(model, x)
    assert conversion.reset == ()
    assert not any(branch.scale for branch in conversion.residuals.branches)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in numbers.items())
