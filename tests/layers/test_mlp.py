"""The fully connected network: one formula an arm, the authors' start, equal draws in all arms."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import gates
from rezero.layers import MLP, MLPBlock
from rezero.layers.residuals import RESIDUALS

IN, D, DEPTH, OUT = 7, 6, 3, 4
F64 = torch.float64
ARMS = [name for name in RESIDUALS if name != "fixup"]
Parameters = dict[str, Tensor]


def scramble_(module: nn.Module) -> nn.Module:
    """Give every parameter random values, so that no norm, scale or gate is at its neutral start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def norm(p: Parameters, name: str, h: Tensor) -> Tensor:
    """LayerNorm written out."""
    mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
    return (h - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def f(p: Parameters, block: str, h: Tensor) -> Tensor:
    """The branch relu(W h + b) written out."""
    return (h @ p[f"{block}.linear.weight"].T + p[f"{block}.linear.bias"]).clamp_min(0)


# h <- one block of each arm, from the parameters p of the whole network; b is the block's name.
BLOCKS: dict[str, Callable[[Parameters, str, Tensor], Tensor]] = {
    "plain": lambda p, b, h: f(p, b, h),
    "plain-norm": lambda p, b, h: norm(p, "norm", f(p, b, h)),
    "residual": lambda p, b, h: h + f(p, f"{b}.branch", h),
    "post-norm": lambda p, b, h: norm(p, f"{b}.post_norm", h + f(p, f"{b}.branch", h)),
    "pre-norm": lambda p, b, h: h + f(p, f"{b}.branch", norm(p, f"{b}.pre_norm", h)),
    "rezero": lambda p, b, h: h + p[f"{b}.gate.alpha"] * f(p, f"{b}.branch", h),
    "skipinit": lambda p, b, h: h + p[f"{b}.gate.alpha"] * f(p, f"{b}.branch", h),
    "layerscale": lambda p, b, h: h + p[f"{b}.scale.scale"] * f(p, f"{b}.branch", norm(p, f"{b}.pre_norm", h)),
    "deepnorm": lambda p, b, h: norm(p, f"{b}.post_norm", DEPTH**0.25 * h + f(p, f"{b}.branch", h)),
}
NORM_BEFORE_OUTPUT = {"pre-norm", "layerscale"}


def test_every_arm_has_a_formula() -> None:
    """The formulas below are those of all arms that are defined for this family."""
    assert list(BLOCKS) == ARMS


@pytest.mark.parametrize("residual", ARMS)
def test_network_is_its_formula(residual: str) -> None:
    """The network equals its arm's formula, written out by hand from its parameters, and uses every one of them."""
    model = scramble_(MLP(IN, D, DEPTH, OUT, residual=residual).double())
    p: Parameters = dict(model.named_parameters())
    x = torch.randn(9, IN, dtype=F64)
    h = (x @ p["input.weight"].T + p["input.bias"]).clamp_min(0)
    for i in range(DEPTH):
        h = BLOCKS[residual](p, f"blocks.{i}", h)
    if residual in NORM_BEFORE_OUTPUT:
        h = norm(p, "norm", h)
    y = h @ p["output.weight"].T + p["output.bias"]
    torch.testing.assert_close(model(x), y, rtol=1e-11, atol=1e-11)
    gradients = torch.autograd.grad(model(x).square().sum(), list(p.values()))
    expected = torch.autograd.grad(y.square().sum(), list(p.values()))
    torch.testing.assert_close(gradients, expected, rtol=1e-8, atol=1e-8)
    assert all(g.any() for g in gradients)


def test_plain_norm_shares_one_norm() -> None:
    """The arm that the authors call LayerNorm has a single norm for all layers and none before the output."""
    model = MLP(IN, D, DEPTH, OUT, residual="plain-norm")
    assert [name for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)] == ["norm"]


def test_skipinit_is_rezero_here() -> None:
    """Without batch norm to replace, skipinit and rezero are the same network from the same seed."""
    models = []
    for residual in ("rezero", "skipinit"):
        torch.manual_seed(1)
        models.append(MLP(IN, D, DEPTH, OUT, residual=residual))
    first, second = (model.state_dict() for model in models)
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_default_is_rezero() -> None:
    """Without a name the network is ReZero's: a closed gate a block, so that blocks do not show at the start."""
    model, x = MLP(IN, D, DEPTH, OUT), torch.randn(5, IN)
    assert [gate.alpha.tolist() for gate in gates(model).values()] == [[0.0]] * DEPTH
    assert torch.equal(model(x), model.output(F.relu(model.input(x))))


# The authors' network


def test_has_the_authors_parameter_count() -> None:
    """On CIFAR-10 with 64 blocks of 256 the counts are those of the authors' code, counted by hand."""
    ends = 3072 * 256 + 256 + 256 * 10 + 10
    hidden = 64 * (256 * 256 + 256)
    counts = {"plain": 0, "plain-norm": 2 * 256, "residual": 0, "rezero": 64}
    for residual, more in counts.items():
        with torch.device("meta"):
            model = MLP(3072, 256, 64, 10, residual=residual)
        assert sum(p.numel() for p in model.parameters()) == ends + hidden + more
    assert ends + hidden + 64 == 5_000_010


GAINS = {residual: math.sqrt(2) for residual in ARMS} | {"residual": 0.5, "deepnorm": (4 * 8) ** -0.25}


@pytest.mark.parametrize("when", ["constructed", "reset"])
@pytest.mark.parametrize("residual", ARMS)
def test_start_has_its_statistics(residual: str, when: str) -> None:
    """Input Kaiming-normal, hidden Xavier-normal with the arm's gain, output and biases torch's, norms neutral."""
    n_in, width, depth, out = 300, 200, 8, 100
    model = MLP(n_in, width, depth, out, residual=residual)
    if when == "reset":
        scramble_(model)
        model.reset_parameters()
    weight = model.input.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / n_in), rel=0.02)
    assert (weight.abs() > 3 * math.sqrt(2 / n_in)).any()  # a normal and no uniform distribution
    for i in range(depth):
        branch = model.blocks[i] if "plain" in residual else model.blocks[i].branch
        hidden = branch.linear
        std = GAINS[residual] * math.sqrt(2 / (width + width))
        assert hidden.weight.std().item() == pytest.approx(std, rel=0.03)
        assert (hidden.weight.abs() > 3 * std).any()
        assert_torch_default(hidden.bias, width)
    assert_torch_default(model.input.bias, n_in)
    assert_torch_default(model.output.bias, width)
    assert_torch_default(model.output.weight, width)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(module.weight, torch.ones(width))
            assert torch.equal(module.bias, torch.zeros(width))
    for gate in gates(model).values():
        assert torch.equal(gate.alpha, torch.zeros(1))
    for name, parameter in model.named_parameters():
        if name.endswith("scale.scale"):
            assert torch.equal(parameter, torch.full((width,), 0.1))


def assert_torch_default(tensor: Tensor, fan_in: int) -> None:
    """Hold a tensor against the uniform start of nn.Linear, +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    assert tensor.abs().max() <= bound
    assert tensor.abs().max() > 0.9 * bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)


@pytest.mark.parametrize("how", ["constructed", "reset"])
@pytest.mark.parametrize("residual", ARMS)
def test_all_arms_draw_the_same_weights(residual: str, how: str) -> None:
    """From one seed every arm gets the ends and the biases of ReZero, and its hidden weights up to their gain."""
    states = []
    for arm in ("rezero", residual):
        torch.manual_seed(5)
        model = MLP(IN, D, DEPTH, OUT, residual=arm)
        if how == "reset":
            scramble_(model)
            torch.manual_seed(6)
            model.reset_parameters()
        states.append({k.replace(".branch", ""): v for k, v in model.state_dict().items()})
    reference, state = states
    gain = {"residual": 0.5, "deepnorm": (4 * DEPTH) ** -0.25}.get(residual, math.sqrt(2))
    for key in [key for key in reference if "alpha" not in key]:
        if key.startswith("blocks") and key.endswith("weight"):
            torch.testing.assert_close(state[key] / gain, reference[key] / math.sqrt(2))
        else:
            assert torch.equal(state[key], reference[key]), key
    assert len({state[f"blocks.{i}.linear.weight"].sum().item() for i in range(DEPTH)}) == DEPTH


def test_reset_draws_anew() -> None:
    """Two resets give different weights, and the same seed the same."""
    model = MLP(IN, D, DEPTH, OUT)
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        model.reset_parameters()
        draws.append({name: p.clone() for name, p in model.state_dict().items()})
    drawn = [key for key in draws[0] if "alpha" not in key]
    assert all(torch.equal(draws[0][key], draws[2][key]) for key in drawn)
    assert not any(torch.equal(draws[0][key], draws[1][key]) for key in drawn)


# MLPBlock


@pytest.mark.parametrize("gain", [math.sqrt(2), 0.5], ids=["default", "half"])
def test_block_is_relu_of_an_affine_map(gain: float) -> None:
    """MLPBlock is relu(W x + b), W Xavier-normal with the gain, b as nn.Linear's, on construction and reset."""
    block = MLPBlock(200) if gain == math.sqrt(2) else MLPBlock(200, gain=gain)
    for _ in range(2):
        assert block.linear.weight.std().item() == pytest.approx(gain / math.sqrt(200), rel=0.02)
        assert_torch_default(block.linear.bias, 200)
        x = torch.randn(3, 200)
        torch.testing.assert_close(block(x), (x @ block.linear.weight.T + block.linear.bias).clamp_min(0))
        scramble_(block)
        block.reset_parameters()


def test_the_default_gain_keeps_the_variance() -> None:
    """With gain sqrt(2) the mean square of a signal survives 20 plain blocks, with 0.5 it dies."""
    x = torch.randn(64, 400)
    alive = nn.Sequential(*(MLPBlock(400) for _ in range(20)))
    dead = nn.Sequential(*(MLPBlock(400, gain=0.5) for _ in range(20)))
    for model in (alive, dead):
        for block in model:
            nn.init.zeros_(block.get_parameter("linear.bias"))
    assert 0.3 < alive(x).square().mean() / x.square().mean() < 3
    assert dead(x).square().mean() / x.square().mean() < 1e-10


# Device, dtype, errors


@pytest.mark.parametrize("residual", ARMS)
def test_takes_device_and_dtype(residual: str) -> None:
    """Parameters are made on the device and in the dtype asked for; gates are at least float32."""
    model = MLP(IN, D, DEPTH, OUT, residual=residual, device="meta", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == (torch.float32 if "alpha" in name else torch.bfloat16), name


def test_fixup_is_refused_with_its_reason() -> None:
    """Fixup's rule has no meaning for branches of one layer, and the error says so."""
    with pytest.raises(ValueError, match="fixup is not defined for MLP: its rule needs branches of two or more layers"):
        MLP(IN, D, DEPTH, OUT, residual="fixup")


def test_refuses_an_unknown_formula() -> None:
    """An unknown name is an error that lists the known ones."""
    with pytest.raises(ValueError, match="no residual formula is called 'batchnorm': choose from plain, plain-norm,"):
        MLP(IN, D, DEPTH, OUT, residual="batchnorm")


@pytest.mark.parametrize("size", [0, -3], ids=str)
@pytest.mark.parametrize("which", ["in_features", "width", "depth", "out_features"])
def test_refuses_sizes_below_1(which: str, size: int) -> None:
    """A size below 1 is an error that names it."""
    sizes = {"in_features": IN, "width": D, "depth": DEPTH, "out_features": OUT, which: size}
    with pytest.raises(ValueError, match=f"^{which} must be at least 1: got {size}"):
        MLP(**sizes)


def test_a_block_has_a_width() -> None:
    """Of one at least."""
    with pytest.raises(ValueError, match="dim must be at least 1: got 0"):
        MLPBlock(0)
