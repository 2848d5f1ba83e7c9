"""Residual networks for images: one formula an arm, their papers' starts and sizes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import gates, param_groups
from rezero.layers import PreActResNet18, Residual, ResNet
from rezero.layers.residuals import RESIDUALS
from rezero.optim import count_branches

F64 = torch.float64
ARMS = [name for name in RESIDUALS if name not in ("plain-norm", "deepnorm")]
PREACT_ARMS = ["plain", "residual", "rezero", "skipinit", "layerscale"]
BARE = ("skipinit", "fixup")
DEPTH, WIDTH, CLASSES, CHANNELS = 14, 4, 3, 2

every_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
every_network = pytest.mark.parametrize(
    ("family", "residual"),
    [(ResNet, arm) for arm in ARMS] + [(PreActResNet18, arm) for arm in PREACT_ARMS],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)


def build(family: type[nn.Module], residual: str, **options: object) -> nn.Module:
    depth = {"depth": DEPTH} if family is ResNet else {}
    return family(**depth, num_classes=CLASSES, residual=residual, width=WIDTH, in_channels=CHANNELS, **options)


def scramble_(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic random values, so that no norm, scale or gate is at its neutral start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return module


# The formulas


@dataclass
class Written:
    """A network's layers written out by hand, from its parameters and statistics."""

    state: dict[str, Tensor]
    training: bool

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, variance = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        scale = self.state[f"{name}.weight"] / (variance + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.state[f"{name}.bias"][:, None, None]


def relu(x: Tensor) -> Tensor:
    return x.clamp_min(0)


def shortcut(x: Tensor, stride: int) -> Tensor:
    """Option A written out: every second pixel in the middle half of the new channels."""
    if stride == 1:
        return x
    batch, channels = x.shape[:2]
    y = x.new_zeros(batch, 2 * channels, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    y[:, channels // 2 : channels // 2 + channels] = x[:, :, ::2, ::2]
    return y


def he(n: Written, b: str, x: Tensor, s: int) -> Tensor:
    """The branch with the norms after the convolutions, without its last ReLU."""
    return n.norm(f"{b}.norm2", n.conv(f"{b}.conv2", relu(n.norm(f"{b}.norm1", n.conv(f"{b}.conv1", x, s)))))


def pre(n: Written, b: str, x: Tensor, s: int) -> Tensor:
    """The branch with the norms before the convolutions."""
    h = n.conv(f"{b}.conv1", relu(n.norm(f"{b}.norm1", x)), s)
    return n.conv(f"{b}.conv2", relu(n.norm(f"{b}.norm2", h)))


def bare(n: Written, b: str, x: Tensor, s: int) -> Tensor:
    """The branch with no norms."""
    return n.conv(f"{b}.conv2", relu(n.conv(f"{b}.conv1", relu(x), s)))


def fixup(n: Written, b: str, x: Tensor, s: int) -> Tensor:
    """The branch with scalars in place of norms."""
    h = relu(n.conv(f"{b}.conv1", x + n[f"{b}.bias1.bias"], s) + n[f"{b}.bias2.bias"])
    return n[f"{b}.scale.scale"] * n.conv(f"{b}.conv2", h + n[f"{b}.bias3.bias"]) + n[f"{b}.bias4.bias"]


def post(n: Written, b: str, x: Tensor, s: int) -> Tensor:
    """The block with the second norm after the addition."""
    h = relu(n.norm(f"{b}.branch.norm1", n.conv(f"{b}.branch.conv1", x, s)))
    return relu(n.norm(f"{b}.post_norm", shortcut(x, s) + n.conv(f"{b}.branch.conv2", h)))


def channels(scale: Tensor) -> Tensor:
    return scale[:, None, None]


# x <- one block of each arm; b is the block's name, s its stride.
BLOCKS: dict[str, Callable[[Written, str, Tensor, int], Tensor]] = {
    "plain": lambda n, b, x, s: relu(he(n, b, x, s)),
    "residual": lambda n, b, x, s: relu(shortcut(x, s) + he(n, f"{b}.0.branch", x, s)),
    "post-norm": lambda n, b, x, s: post(n, f"{b}.0", x, s),
    "pre-norm": lambda n, b, x, s: shortcut(x, s) + pre(n, f"{b}.branch", x, s),
    "rezero": lambda n, b, x, s: shortcut(x, s) + n[f"{b}.gate.alpha"] * relu(he(n, f"{b}.branch", x, s)),
    "skipinit": lambda n, b, x, s: shortcut(x, s) + n[f"{b}.gate.alpha"] * bare(n, f"{b}.branch", x, s),
    "layerscale": lambda n, b, x, s: shortcut(x, s) + channels(n[f"{b}.scale.scale"]) * pre(n, f"{b}.branch", x, s),
    "fixup": lambda n, b, x, s: relu(shortcut(x, s) + fixup(n, f"{b}.0.branch", x, s)),
}


def resnet(n: Written, residual: str, x: Tensor) -> Tensor:
    h = n.conv("input.conv", x)
    if residual == "fixup":
        h = h + n["input.bias.bias"]
    elif residual != "skipinit":
        h = n.norm("input.norm", h)
    h = relu(h)
    for i in range(6):
        h = BLOCKS[residual](n, f"blocks.{i}", h, 2 if i in (2, 4) else 1)
    if residual in ("pre-norm", "layerscale"):
        h = relu(n.norm("final.norm", h))
    if residual == "fixup":
        h = h + n["final.bias.bias"]
    return h.mean((2, 3)) @ n["output.weight"].T + n["output.bias"]


def preact_block(n: Written, residual: str, b: str, x: Tensor, s: int) -> Tensor:
    def norm(name: str, h: Tensor) -> Tensor:
        return h if residual == "skipinit" else n.norm(name, h)

    join = f"{b}.addition" if s == 2 and residual != "plain" else b
    rest = b if residual == "plain" else f"{join}.branch"
    h = relu(norm(f"{rest if join == b else b}.norm1", x))
    f = n.conv(f"{rest}.conv2", relu(norm(f"{rest}.norm2", n.conv(f"{rest}.conv1", h, s))))
    skip = x if s == 1 or residual == "plain" else n.conv(f"{join}.skip", h, 2)
    match residual:
        case "plain":
            return f
        case "rezero" | "skipinit":
            return skip + n[f"{join}.gate.alpha"] * f
        case "layerscale":
            return skip + channels(n[f"{join}.scale.scale"]) * f
    return skip + f


def preact(n: Written, residual: str, x: Tensor) -> Tensor:
    h = n.conv("input", x)
    for i in range(8):
        h = preact_block(n, residual, f"blocks.{i}", h, 2 if i in (2, 4, 6) else 1)
    h = relu(h if residual == "skipinit" else n.norm("final.norm", h))
    return h.mean((2, 3)) @ n["output.weight"].T + n["output.bias"]


def test_every_arm_has_a_formula() -> None:
    """The formulas above are those of all arms that are defined for this family."""
    assert set(BLOCKS) == set(ARMS)


@every_mode
@every_network
def test_network_is_its_formula(family: type[nn.Module], residual: str, training: bool) -> None:
    """Output and gradients are those of the arm's formula, batch norm by the batch or by its running statistics."""
    model = scramble_(build(family, residual).double()).train(training)
    written = Written({**dict(model.named_parameters()), **{k: v.clone() for k, v in model.named_buffers()}}, training)
    x, labels = torch.randn(5, CHANNELS, 16, 12, dtype=F64), torch.arange(5) % CLASSES
    parameters = list(model.parameters())
    results = []
    for y in (model(x), (resnet if family is ResNet else preact)(written, residual, x)):
        results.append((y, torch.autograd.grad(F.cross_entropy(y, labels), parameters)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)
    if training and residual != "plain":  # without norms by the batch, or without skips, a channel may be dead
        assert all(g.any() for g in results[0][1])


@every_mode
@pytest.mark.parametrize("residual", ["rezero", "skipinit"])
def test_closed_blocks_of_equal_shape_are_the_identity(residual: str, training: bool) -> None:
    """At alpha = 0 a stage without a change of shape returns any input bitwise, negative values too."""
    stage = ResNet(56, residual=residual).blocks[:9].train(training)
    x = torch.randn(4, 16, 8, 8)
    assert (x < 0).any()
    assert torch.equal(stage(x), x)


def test_shortcuts_pad_odd_widths() -> None:
    """New channels are zeros, half on each side and the odd one behind, and odd images keep their corner."""
    block = ResNet(8, width=3).blocks[1]
    x = torch.randn(2, 3, 5, 7)
    y = block(x)
    assert y.shape == (2, 6, 3, 4)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, [0, 4, 5]].any()


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (32, 32)], ids=str)
@every_network
def test_takes_images_of_any_size(family: type[nn.Module], residual: str, size: tuple[int, int]) -> None:
    """Pooling leaves one pixel of an image of any size."""
    assert build(family, residual).eval()(torch.randn(2, CHANNELS, *size)).shape == (2, CLASSES)


# Sizes


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018), (110, 1_727_962)], ids=str)
def test_has_the_papers_parameter_count(depth: int, count: int) -> None:
    """He et al. (2015), table 6: 0.27M, 0.85M and 1.7M; exactly what convolutions, norms and the output add up to."""
    with torch.device("meta"):
        model, gated = (ResNet(depth, residual=residual) for residual in ("residual", "rezero"))
    assert sum(p.numel() for p in model.parameters()) == count
    n = (depth - 2) // 6
    convolutions = 9 * (3 * 16 + 2 * n * 16 * 16 + sum((2 * n - 1) * c * c + c * c // 2 for c in (32, 64)))
    assert count == convolutions + 2 * 16 + 2 * 2 * n * (16 + 32 + 64) + 64 * 10 + 10
    assert sum(p.numel() for p in gated.parameters()) == count + 3 * n


def test_preact_has_its_parameter_count() -> None:
    """The widths 64 to 512, three projections, and a final norm add up to 11.17M."""
    with torch.device("meta"):
        model = PreActResNet18(residual="residual")
    widths = (64, 128, 256, 512)
    convolutions = 9 * (3 * 64 + sum(3 * c * c for c in widths) + 64 * 64 + sum(c * c // 2 for c in widths[1:]))
    projections = sum(c * c // 2 for c in widths[1:])
    norms = 2 * (sum(3 * c for c in widths) + 64 + sum(c // 2 for c in widths[1:]) + 512)
    count = convolutions + projections + norms + 512 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == count == 11_172_170


@every_network
def test_only_bare_arms_have_no_batch_norm(family: type[nn.Module], residual: str) -> None:
    """skipinit and fixup have no batch norm; skipinit alone has biases in its convolutions."""
    model = build(family, residual)
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules()) == (residual not in BARE)
    biases = {part.bias is not None for part in model.modules() if isinstance(part, nn.Conv2d)}
    assert biases == {residual == "skipinit"}


@every_network
def test_a_gate_a_block(family: type[nn.Module], residual: str) -> None:
    """rezero and skipinit have one closed scalar gate a block, the others none, and param_groups counts them."""
    model = build(family, residual)
    expected = len(model.get_submodule("blocks")) if residual in ("rezero", "skipinit") else 0
    assert [gate.alpha.tolist() for gate in gates(model).values()] == [[0.0]] * expected
    assert count_branches(model) == expected
    rates = [group["lr"] for group in param_groups(model, lr=1.0, weight_decay=0.0) if group["name"] == "gates"]
    assert rates == ([3 / expected] if expected else [])


# Starts


@pytest.mark.parametrize("when", ["constructed", "reset"])
@every_network
def test_start_has_its_statistics(family: type[nn.Module], residual: str, when: str) -> None:
    """Convolutions and output He-normal by fan-in, Fixup's rescaled or zero; all else at its neutral start."""
    model = family(**{"depth": 14} if family is ResNet else {}, num_classes=60, residual=residual, width=32)
    if when == "reset":
        scramble_(model)
        model.reset_parameters()
    for name, part in model.named_modules():
        match part:
            case nn.Conv2d() | nn.Linear():
                scale = 1.0
                if residual == "fixup":
                    scale = 0.0 if name.endswith("conv2") or name == "output" else 1.0
                    scale = 6**-0.5 if name.endswith("conv1") else scale
                fan_in = part.weight[0].numel()
                assert part.weight.std().item() == pytest.approx(scale * math.sqrt(2 / fan_in), rel=0.08), name
                assert scale == 0 or (part.weight.abs() > 2.5 * scale * math.sqrt(2 / fan_in)).any(), name
            case nn.BatchNorm2d():
                assert torch.equal(part.weight, torch.ones_like(part.weight))
                assert torch.equal(part.running_var, torch.ones_like(part.weight))
                assert not part.bias.any()
                assert not part.running_mean.any()
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            assert not part.bias.any()
    bias = model.get_parameter("output.bias")
    bound = 0.0 if residual == "fixup" else model.get_parameter("output.weight").shape[1] ** -0.5
    assert 0.9 * bound <= bias.abs().max() <= bound
    for name, parameter in model.named_parameters():
        if name.endswith("scale.scale"):
            assert torch.equal(parameter, torch.full_like(parameter, 1.0 if residual == "fixup" else 0.1)), name
        if name.endswith(tuple(f"bias{i}.bias" for i in ("", 1, 2, 3, 4))):
            assert torch.equal(parameter, torch.zeros(1)), name


def test_layer_scale_starts_by_the_number_of_blocks() -> None:
    """A network of 27 blocks starts its scales at CaiT's 1e-6, one of 21 at 1e-5."""
    for depth, start in [(56, 1e-6), (44, 1e-5), (38, 0.1)]:
        block = ResNet(depth, residual="layerscale", width=1).blocks[-1]
        assert isinstance(block, Residual)
        assert torch.equal(block.get_parameter("scale.scale"), torch.full((4,), start))


def test_fixup_starts_with_silent_branches_and_output() -> None:
    """At the start Fixup's blocks are ReLU of the shortcut, and the network predicts every class alike."""
    model, x = ResNet(20, residual="fixup"), torch.randn(2, 3, 8, 8)
    h = model.input(x)
    assert torch.equal(model.blocks[:3](h), h)
    assert not model(x).any()


@every_network
def test_no_arm_starts_dead(family: type[nn.Module], residual: str) -> None:
    """Within five steps of SGD every parameter leaves its start."""
    model = build(family, residual)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, labels = torch.randn(8, CHANNELS, 16, 16), torch.arange(8) % CLASSES
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@every_network
def test_reset_draws_anew(family: type[nn.Module], residual: str) -> None:
    """Two resets give different weights, the same seed the same, and no two blocks start equal."""
    model = build(family, residual)
    draws = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        model.reset_parameters()
        draws.append({k: p.clone() for k, p in model.named_parameters() if k.endswith("conv1.weight")})
    assert all(torch.equal(draws[0][key], draws[2][key]) for key in draws[0])
    assert not any(torch.equal(draws[0][key], draws[1][key]) for key in draws[0])
    assert len({weight.sum().item() for weight in draws[0].values()}) == len(draws[0]) == len(model.blocks)


# Device, dtype, errors


@every_network
def test_takes_device_and_dtype(family: type[nn.Module], residual: str) -> None:
    """Parameters are made on the device and in the dtype asked for; gates are at least float32."""
    for name, parameter in build(family, residual, device="meta", dtype=torch.bfloat16).named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == (torch.float32 if "alpha" in name else torch.bfloat16), name


@pytest.mark.parametrize(
    ("depth", "nearest"), [(-3, "8 and 14"), (2, "8 and 14"), (18, "14 and 20"), (21, "20 and 26"), (55, "50 and 56")]
)
def test_refuses_other_depths(depth: int, nearest: str) -> None:
    """A depth that is not 6 n + 2 is an error that names the nearest two."""
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 2 .*: got {depth}; the nearest are {nearest}"):
        ResNet(depth)


@pytest.mark.parametrize(
    ("family", "residual", "reason"),
    [
        (ResNet, "plain-norm", "the plain network has its norms inside"),
        (ResNet, "deepnorm", "its constants are derived for Transformers only"),
        (PreActResNet18, "plain-norm", "the plain network has its norms inside"),
        (PreActResNet18, "deepnorm", "its constants are derived for Transformers only"),
        (PreActResNet18, "pre-norm", "the pre-activation network without a gate is the arm 'residual' here"),
        (PreActResNet18, "post-norm", "a pre-activation network has its norms before the convolutions; use ResNet"),
        (PreActResNet18, "fixup", "its block has a ReLU after the addition, .*; use ResNet"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_refuses_undefined_arms_with_their_reason(family: type[nn.Module], residual: str, reason: str) -> None:
    """An arm that this family has not is an error that says why."""
    with pytest.raises(ValueError, match=f"{residual} is not defined for {family.__name__}: {reason}"):
        build(family, residual)


@pytest.mark.parametrize("family", [ResNet, PreActResNet18])
def test_refuses_an_unknown_formula(family: type[nn.Module]) -> None:
    """An unknown name is an error that lists the known ones."""
    with pytest.raises(ValueError, match="no residual formula is called 'batchnorm': choose from plain, plain-norm,"):
        build(family, "batchnorm")


@pytest.mark.parametrize("which", ["num_classes", "width", "in_channels"])
@pytest.mark.parametrize("family", [ResNet, PreActResNet18])
def test_refuses_sizes_below_1(family: type[nn.Module], which: str) -> None:
    """A size below 1 is an error that names it."""
    depth = {"depth": 8} if family is ResNet else {}
    with pytest.raises(ValueError, match=f"^{which} must be at least 1: got 0"):
        family(**depth, **{which: 0})
