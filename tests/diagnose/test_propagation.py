"""Signals through networks: against numbers worked out by hand, against theory, and in other people's models."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.charts import save
from rezero.charts.depth import propagation_chart
from rezero.diagnose import propagation, relu_mean_field
from rezero.diagnose.attention import WatchesAttention
from rezero.diagnose.blocks import block_names
from rezero.errors import UsageError
from rezero.layers import MLP, TransformerEncoderLayer
from rezero.layers.attention import Attention

D = 8
F64 = torch.float64


def gated(alpha: float, depth: int, width: int, *, centred: bool = False) -> nn.Module:
    """Stack gated He-initialised ReLU branches, centred by a second linear layer that keeps the size."""
    branches = [nn.Sequential(nn.Linear(width, width, bias=False), nn.ReLU()) for _ in range(depth)]
    for branch in branches:
        nn.init.kaiming_normal_(branch[0].weight)
        if centred:
            branch.append(nn.Linear(width, width, bias=False))
            nn.init.normal_(branch[2].weight, std=width**-0.5)
    return nn.Sequential(*(rezero.ReZero(branch, gate=rezero.Gate(init_value=alpha)) for branch in branches))


def test_numbers_are_those_worked_out_by_hand() -> None:
    """Norm, mean, cosine and gradient behind each block, at alpha = 0.5 and -0.3."""
    first, second = (nn.Linear(2, 2, bias=False).double() for _ in range(2))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        second.weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    gates = [rezero.Gate(init_value=alpha, dtype=F64) for alpha in (0.5, -0.3)]
    model = nn.Sequential(*(rezero.ReZero(f, gate=gate) for f, gate in zip((first, second), gates, strict=True)))
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=F64)
    found = propagation(model, x, loss_fn=lambda y: y[:, 0].sum())
    start, one, two = found.start, *found.layers
    assert start is not None
    # (1, 0) -> (1.5, 0) -> (0.15, -0.45); (0, 2) -> (2, 1) -> (0.2, 0.1)
    for signal, h in ((start, x), (one, [[1.5, 0], [2, 1]]), (two, [[0.15, -0.45], [0.2, 0.1]])):
        a, b = torch.as_tensor(h, dtype=F64)
        assert signal.norm == pytest.approx(math.sqrt(float((a @ a + b @ b) / 4)))
        assert signal.mean == pytest.approx(float((a + b).mean() / 2))
        assert signal.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())))
        assert signal.entropy is None
    # dL/dy = (1, 0); before the second block (1 - 0.3 * 3, 0), before the first (0.1 * 1.5, 0.1 * 1)
    expected = [math.sqrt((0.15**2 + 0.1**2) / 2), math.sqrt(0.1**2 / 2), math.sqrt(1 / 2)]
    assert [start.gradient, one.gradient, two.gradient] == pytest.approx(expected)
    assert [each.depth for each in (start, one, two)] == [0, 1, 2]


def test_a_closed_network_passes_everything_on_as_it_is() -> None:
    """At alpha = 0 every number is the same at every depth, to the last bit."""
    found = propagation(MLP(12, D, 50, 3), torch.randn(4, 12))
    assert found.start is not None
    rows = {(each.norm, each.mean, each.cosine, each.gradient) for each in (found.start, *found.layers)}
    assert len(rows) == 1
    assert len(found.layers) == 50


THEORY: dict[str, tuple[Callable[[int, int], nn.Module], dict[str, Any]]] = {
    "plain": (lambda depth, width: MLP(16, width, depth, 2, residual="plain"), {"skip": False}),
    "residual": (
        lambda depth, width: MLP(16, width, depth, 2, residual="residual"),
        {"skip": True, "weight_variance": 0.25},
    ),
    "gated": (lambda depth, width: gated(0.1, depth, width), {"skip": True, "alpha": 0.1}),
    "centred": (
        lambda depth, width: gated(0.3, depth, width, centred=True),
        {"skip": True, "alpha": 0.3, "centred": True},
    ),
}


@pytest.mark.parametrize("name", THEORY)
def test_wide_networks_do_what_theory_says(name: str) -> None:
    """Of 8 networks 512 wide: signals and gradients lie within 5% of the mean field, cosines within 0.02."""
    make, options = THEORY[name]
    depth, width, networks = 8, 512, 8
    measured, expected = torch.zeros(2, 3, depth + 1)
    for _ in range(networks):
        model = make(depth, width)
        found = propagation(model, torch.randn(4, 16 if isinstance(model, MLP) else width))
        theory = found.mean_field(**options)
        assert found.start is not None
        rows = [found.start, *found.layers]
        for total, of in (
            (measured, [[getattr(row, name) for row in rows] for name in ("norm", "gradient", "cosine")]),
            (expected, [theory.norm, theory.gradient, theory.cosine]),
        ):
            numbers = torch.tensor(of) / networks
            total += torch.cat([networks * numbers[:2].square(), numbers[2:]])
    torch.testing.assert_close(measured[:2].sqrt(), expected[:2].sqrt(), rtol=0.05, atol=0)
    torch.testing.assert_close(measured[2], expected[2], rtol=0, atol=0.02)


def test_centred_branches_grow_by_one_plus_alpha_squared() -> None:
    """Forward as backward, and plain layers of He's variance keep the norm while examples become alike."""
    theory = relu_mean_field(50, skip=True, alpha=0.2, centred=True)
    assert theory.norm[-1] ** 2 == pytest.approx(1.04**50)
    assert theory.gradient[0] ** 2 == pytest.approx(1.04**50)
    assert theory.mean == (0.0,) * 51
    plain = relu_mean_field(50, skip=False)
    assert set(plain.norm) == {1.0}
    assert plain.cosine[1] == pytest.approx(1 / math.pi)  # of orthogonal examples
    assert plain.cosine[-1] > 0.98


def entropies(weights: Tensor) -> Tensor:
    """Return the entropy of every query."""
    return -(weights * weights.clamp(min=1e-300).log()).sum(-1)


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "boolean": {"attn_mask": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.6},
    "added": {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=F64)},
    "scaled": {"scale": 2.0},
}


@pytest.mark.parametrize("name", MASKS)
def test_entropy_is_that_of_the_explicit_softmax(name: str) -> None:
    """Of scaled_dot_product_attention, with every kind of mask; the most it could be counts the keys that are seen."""
    options: dict[str, Any] = MASKS[name]
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=F64) for _ in range(3))
    scores = q @ k.transpose(-1, -2) * options.get("scale", 4**-0.5)
    seen = torch.ones(5, 5, dtype=torch.bool)
    if name == "causal":
        seen = seen.tril()
    elif name == "boolean":
        seen = options["attn_mask"]
    elif name == "added":
        scores = scores + options["attn_mask"]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    with WatchesAttention() as watch:
        output = F.scaled_dot_product_attention(q, k, v, **options)
    [found] = watch.seen
    torch.testing.assert_close(output, weights @ v)
    assert found.nats == pytest.approx(float(entropies(weights).mean()))
    assert found.most == pytest.approx(float(seen.sum(-1).double().log().mean()))


def test_queries_without_keys_do_not_count() -> None:
    """They have no weights; grouped heads are the same as repeated ones."""
    mask = torch.tensor([[True, True, False], [False, False, False]])
    q, k = torch.randn(1, 4, 2, 4, dtype=F64), torch.randn(1, 2, 3, 4, dtype=F64)
    with WatchesAttention() as watch:
        F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)
    repeated = k.repeat_interleave(2, dim=1)
    weights = (q[:, :, :1] @ repeated[:, :, :2].transpose(-1, -2) / 2).softmax(-1)
    assert watch.seen[0].nats == pytest.approx(float(entropies(weights).mean()))
    assert watch.seen[0].most == pytest.approx(math.log(2))


class Attends(nn.Module):
    """A model whose only layer attends."""

    def __init__(self, layer: nn.Module, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([layer])
        self.options = options

    def forward(self, x: Tensor) -> Any:
        """Attend to itself."""
        of_torch = isinstance(self.blocks[0], nn.MultiheadAttention)
        return self.blocks[0](*([x] * (3 if of_torch else 1)), **self.options)


FUTURE = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CALLS: dict[str, dict[str, Any]] = {
    "open": {},
    "causal": {"attn_mask": FUTURE, "is_causal": True},
    "padding": {"key_padding_mask": PADDING},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_our_attention_and_torchs_have_the_entropy_of_torchs_weights(call: str, need_weights: bool) -> None:
    """nn.MultiheadAttention, whether it returns weights or not, and our Attention with its parameters."""
    theirs, ours = nn.MultiheadAttention(D, 2, batch_first=True), Attention(D, 2, batch_first=True)
    nn.init.normal_(theirs.in_proj_weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, D)
    with torch.no_grad():
        _, weights = theirs(x, x, x, average_attn_weights=False, **CALLS[call])
    expected = float(entropies(weights.double()).mean())
    for model in (Attends(theirs, need_weights=need_weights, **CALLS[call]), Attends(ours, **CALLS[call])):
        [found] = propagation(model, x).layers
        assert found.entropy == pytest.approx(expected, rel=1e-5)
        assert found.entropy_share is not None
        assert 0 < found.entropy_share < 1


def converted() -> tuple[nn.Module, Any]:
    """Convert torch's encoder, and open its gates."""
    layers = [nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=True) for _ in range(3)]
    model = rezero.convert_(nn.Sequential(*layers), torch.randn(2, 5, D)).model
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.3)
    return model, torch.randn(2, 5, D)


def vit() -> tuple[nn.Module, Any]:
    options: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return timm.models.VisionTransformer(num_classes=4, **options), torch.randn(2, 3, 32, 32)


def gpt2() -> tuple[nn.Module, Any]:
    config = transformers.GPT2Config(n_layer=3, n_head=2, n_embd=16, vocab_size=50, n_positions=8, bos_token_id=0)
    config.eos_token_id = 0
    return transformers.GPT2LMHeadModel(config).requires_grad_(False), {"input_ids": torch.randint(50, (2, 6))}


MODELS = {
    "ours": lambda: (
        nn.Sequential(*(TransformerEncoderLayer(D, 2, 16, batch_first=True) for _ in range(3))),
        torch.randn(2, 5, D),
    ),
    "converted": converted,
    "timm": vit,
    "transformers": gpt2,
    "half": lambda: (converted()[0].bfloat16(), torch.randn(2, 5, D).bfloat16()),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_peoples_models_are_measured_and_left_as_they_were(name: str) -> None:
    """Every block has all numbers; parameters, buffers, mode, gradients and random numbers stay, even frozen ones."""
    model, x = MODELS[name]()
    model.train()
    state, drawn = {key: each.clone() for key, each in model.state_dict().items()}, torch.get_rng_state()
    needed = [each.requires_grad for each in model.parameters()]
    found = propagation(model, x)
    assert len(found.layers) == 3
    for each in found.layers:
        numbers = (each.norm, each.mean, each.cosine, each.gradient, each.entropy, each.entropy_share)
        assert all(value is not None and math.isfinite(value) for value in numbers)
    assert all(torch.equal(each, state[key]) for key, each in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == needed
    assert all(each.grad is None for each in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert found == propagation(model, x)


class Writes(nn.Module):
    """Blocks whose output the next one writes into, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.ReLU(inplace=True)])

    def forward(self, x: Tensor) -> Tensor:
        """Call one block twice."""
        linear, relu = self.blocks
        return relu(linear(linear(x)))  # type: ignore[no-any-return]


def test_what_is_written_over_is_measured_as_it_was() -> None:
    """Gradients with respect to an output that changes in place, and a row for each call of a layer."""
    model, x = Writes(), torch.randn(4, 3)
    found = propagation(model, x, loss_fn=lambda y: y.sum())
    assert [each.name for each in found.layers] == ["blocks.0", "blocks.0", "blocks.1"]
    h = model.blocks[0](model.blocks[0](x)).detach()
    assert found.layers[1].norm == pytest.approx(float(h.square().mean().sqrt()))
    assert found.layers[1].gradient == pytest.approx(float((h > 0).float().mean().sqrt()))


class Checkpointed(nn.Sequential):
    """Recomputes every layer in the backward pass, or does not."""

    reentrant: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers."""
        for layer in self:
            again = self.reentrant
            x = layer(x) if again is None else checkpoint(layer, x, use_reentrant=again)
        return x


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "plain"])
def test_checkpoints_are_seen_through(reentrant: bool) -> None:
    """The numbers are those of the model without them."""
    model = Checkpointed(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
    x = torch.randn(4, 8)
    expected = propagation(model, x)
    model.reentrant = reentrant
    assert propagation(model, x) == expected


def test_overflow_and_silence_are_told() -> None:
    """Norms beyond the square root of the largest number are measured; zeros have no cosine; no gradient is None."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.mul_(1e30)
        model[1].weight.zero_()
        model[1].bias.fill_(-1.0)
    found = propagation(model, torch.randn(4, 2))
    assert 1e28 < found.layers[0].norm < 1e31
    assert found.layers[2].norm == 0
    assert found.layers[2].cosine is None
    assert found.layers[1].gradient == 0
    assert found.to_json()["layers"][2]["cosine"] is None


BLOCKS = {
    "list": (lambda: MLP(4, 4, 2, 2), ["blocks.0", "blocks.1"]),
    "stages": (lambda: timm.create_model("resnet18"), [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]),
    "nested": (
        lambda: nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))),
        ["0", "1", "2"],
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_found(name: str) -> None:
    """Those of the longest list, and of all stages where they are of one kind."""
    make, names = BLOCKS[name]
    assert block_names(make()) == names


def test_a_model_without_a_list_has_its_gated_blocks() -> None:
    """And one without either is told to name layers."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (rezero.ReZero(nn.Linear(2, 2)) for _ in range(2))

    assert block_names(Two()) == ["one", "two"]
    with pytest.raises(UsageError, match=r"has no list of blocks .*: name the layers"):
        propagation(nn.Linear(2, 2), torch.ones(2, 2))


def test_the_table_is_short() -> None:
    """Twelve rows of a hundred, with the first and the last; a model that is its own only layer has a name too."""
    lines = str(propagation(MLP(4, 4, 100, 2), torch.randn(2, 4))).splitlines()
    assert lines[0] == "100 layers, 12 rows of 101"
    assert lines[1].split() == ["depth", "layer", "norm", "cosine", "gradient"]
    assert lines[2].split()[:2] == ["0", "(input)"]
    assert lines[-1].split()[:2] == ["100", "blocks.99"]
    assert len(lines) == 14
    assert len(str(propagation(MLP(4, 4, 30, 2), torch.randn(2, 4))).splitlines()) == 2 + 31  # all of so few
    whole = propagation(MLP(4, 4, 2, 2), torch.randn(2, 4), layers="")
    assert [line.split()[1] for line in str(whole).splitlines()[2:]] == ["(input)", "(model)"]


def test_charts_are_drawn(tmp_path: Any) -> None:
    """Of one model beside theory, of several, and with a panel for attention where there is some."""
    x = torch.randn(4, 12)
    plain, open_ = (propagation(MLP(12, 16, 6, 2, residual=each), x) for each in ("plain", "residual"))
    [alone] = save(plain.chart(plain.mean_field(skip=False)), tmp_path / "alone", ("svg",))
    [both] = save(propagation_chart({"plain": plain, "residual": open_}), tmp_path / "both", ("svg",))
    [attention] = save(propagation(*converted()).chart(), tmp_path / "attention", ("svg",))
    assert "(dashed: infinite width)" in alone.read_text()
    assert "theory" not in both.read_text()
    for name in ("plain", "residual", "root mean square of the gradient", "cosine between examples"):
        assert name in both.read_text()
    assert "entropy of attention" not in both.read_text()
    assert "entropy of attention" in attention.read_text()


class Tokens(nn.Module):
    """Blocks that return whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity()])
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a signal that leads nowhere."""
        return self.blocks[0](x).detach()  # type: ignore[no-any-return]


def measure(x: Any = None, **options: Any) -> Any:
    return propagation(MLP(4, 4, 2, 2), torch.ones(2, 4) if x is None else x, **options)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: measure(layers=["blocks.7"]), r"has no layer 'blocks.7' \(did you mean 'blocks"),
        (lambda: measure(layers=[]), "expected at least one layer, got none"),
        (lambda: measure(torch.ones(1, 4)), "expected at least two examples, .* got a batch of 1"),
        (lambda: measure(torch.tensor(1.0)), "expected an input with a batch along its first axis"),
        (lambda: measure(torch.ones(2, 4, device="meta")), "the input is on meta, the model on cpu"),
        (lambda: propagation(MLP(4, 4, 2, 2, device="meta"), torch.ones(2, 4, device="meta")), "on the meta device"),
        (lambda: propagation(Tokens(), torch.ones(2, 4, dtype=torch.long)), "'blocks.0' returns no real numbers"),
        (lambda: propagation(Tokens(), torch.ones(2, 2)), "returns nothing that has a gradient"),
        (lambda: propagation(Tokens(), torch.ones(2, 2), layers=["unused"]), "'unused' is not called"),
        (lambda: measure(torch.full((2, 4), torch.nan)), "the input is nan or infinite"),
        (lambda: measure(torch.full((2, 4), torch.inf)), "the input is nan or infinite"),
        (lambda: measure(loss_fn=lambda y: y), "returns one number with a gradient, got a tensor of shape"),
        (lambda: measure(loss_fn=lambda _: 3.0), "returns one number with a gradient, got float"),
    ],
    ids=[
        "name",
        "none",
        "one",
        "no batch",
        "device",
        "meta",
        "whole",
        "detached",
        "uncalled",
        "nan",
        "infinite",
        "vector",
        "number",
    ],
)
def test_bad_input(call: Any, error: str) -> None:
    """One clear line each."""
    with pytest.raises(UsageError, match=error):
        call()


def test_not_a_module() -> None:
    """A function is refused, and theory of no layers."""
    with pytest.raises(TypeError, match=r"model must be an nn\.Module: got function"):
        propagation(lambda x: x, torch.ones(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="depth must be at least 1: got 0"):
        relu_mean_field(0, skip=True)
    with pytest.raises(ValueError, match="cosine must lie from -1 to 1"):
        relu_mean_field(1, skip=True, cosine=2.0)


@pytest.mark.parametrize(
    ("depth", "options", "error"),
    [
        (5000, {}, "grow beyond what floating point can hold within 5,000 layers of alpha 1"),
        (1, {"norm": 1e200}, "grow beyond"),
        (1, {"alpha": float("nan")}, "alpha must be finite: got nan"),
        (1, {"mean": float("inf")}, "mean must be finite: got inf"),
    ],
    ids=["deep", "large", "nan", "infinite"],
)
def test_theory_of_what_no_number_can_hold(depth: int, options: dict[str, float], error: str) -> None:
    """Neither nan nor an error of Python's own."""
    with pytest.raises(ValueError, match=error):
        relu_mean_field(depth, skip=True, **options)


def test_numbers_that_are_not_whole() -> None:
    """One clear line each."""
    with pytest.raises(TypeError, match=r"depth must be a whole number: got 1\.5"):
        relu_mean_field(1.5, skip=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be a whole number: got None"):
        measure(seed=None)


def test_inference_mode_around_it_changes_nothing() -> None:
    """Neither for the model nor for an input that was made in it."""
    model = MLP(4, 4, 2, 2)
    with torch.inference_mode():
        x = torch.randn(3, 4)
        found = propagation(model, x)
    assert found == propagation(model, x.clone())


def test_what_the_model_cannot_be_run_on() -> None:
    """Where and why is told in one line, and an empty batch is told as that."""
    with pytest.raises(UsageError, match=r"can't be run on the example input in .*cannot be multiplied"):
        measure(torch.ones(2, 9))
    with pytest.raises(UsageError, match="one example or more, got an empty one"):
        measure(torch.ones(0, 4))
