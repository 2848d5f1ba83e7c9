"""prune_ removes the branches that add too little, and all that computes nothing else, and changes no other number."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.errors import UsageError
from rezero.surgery import prune
from rezero.surgery.undisturbed import unfused
from tests.surgery.test_convert import Picture

# Suffixes: B batch, T positions, D width.
D = 8
X_BTD = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(2, 20).view(2, 9)
SMALL: dict[str, Any] = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
LOW = 1e-5


class Block(nn.Module):
    """Attention and MLP behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h)[0]
        return x + self.mlp(self.norm2(x))


class Inline(nn.Module):
    """The layers of the branch are the block's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.drop, self.fc2 = nn.LayerNorm(D), nn.Linear(D, 16), nn.Dropout(0.1), nn.Linear(16, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.drop(F.gelu(self.fc1(self.norm(x)))))


class Parallel(nn.Module):
    """Two branches behind one norm."""

    def __init__(self, order: str = "in turn") -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(D), nn.Linear(D, D), nn.Sequential(nn.Linear(D, D), nn.Tanh())
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        if self.order == "stacked":
            return x + torch.stack([self.a(h), self.b(h)]).sum(0)
        return x + (self.a(h) + self.b(h)) if self.order == "together" else x + self.a(h) + self.b(h)


class Plain(nn.Module):
    """``x + branch(x)``."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch) if len(branch) > 1 else branch[0]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def nested() -> nn.Module:
    """A branch with a residual block inside, and a block after it."""
    return nn.Sequential(Plain(nn.Linear(D, D), Plain(nn.Linear(D, D)), nn.Linear(D, D)), Plain(nn.Linear(D, D)))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), 2)


def vit() -> nn.Module:
    options: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 64, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", init_values=0.5, **options)


def convnext() -> nn.Module:
    options: dict[str, Any] = {"depths": (2, 1, 1, 1), "dims": (8, 8, 16, 16), "ls_init_value": 0.5}
    return timm.create_model("convnext_atto", num_classes=5, **options)


def cait() -> nn.Module:
    options: dict[str, Any] = {"depth": 2, "depth_token_only": 1, "embed_dim": 32, "num_heads": 2, "img_size": 64}
    return timm.create_model("cait_xxs24_224", init_values=0.5, num_classes=5, **options)


def resnet() -> nn.Module:
    return timm.create_model("resnet26", num_classes=5, channels=(8, 8, 16, 16))


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL))


def gptj() -> nn.Module:
    return GPTJForCausalLM(GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **SMALL))


def llama() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **SMALL))


def dinov2() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
    return Dinov2Model(Dinov2Config(patch_size=16, **sizes))


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes))


MADE: dict[tuple[int, bool], tuple[Any, Any]] = {}


class Case(NamedTuple):
    """A model, an input, the gates that are nearly closed, by a part of their name, and the keys that stay of it."""

    build: Callable[[], nn.Module]
    args: Any
    low: str
    stay: tuple[str, ...] = ()
    kwargs: dict[str, Any] | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def built(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def converted(self) -> Any:
        """Convert the model and open its gates, those that are low by next to nothing."""
        conversion = rezero.convert_(self.built(), self.args, self.kwargs, verify=False, **self.options)
        generator = torch.Generator().manual_seed(3)
        for name, gate in rezero.gates(conversion.model).items():
            nn.init.uniform_(gate.gate_parameter, 0.5, 1.2, generator=generator)
            if name.startswith(self.low):
                nn.init.constant_(gate.gate_parameter, 1e-7)
        return conversion

    def closed(self) -> nn.Module:
        """Copy the converted model, with the low gates at 0."""
        model = self.copied()
        for name, gate in rezero.gates(model).items():
            if name.startswith(self.low):
                nn.init.zeros_(gate.gate_parameter)
        return model

    def copied(self, *, pruned: bool = False) -> Any:
        """Copy the converted model, as it is or pruned, which is made once: copies are as good as it (below)."""
        key = id(self), pruned
        if key not in MADE:
            model = self.copied() if pruned else self.converted().model
            if pruned:
                self.prune(model)
            MADE[key] = self, model  # the case too, so that no other gets its id
        return copy.deepcopy(MADE[key][1])

    def prune(self, model: nn.Module) -> Any:
        return rezero.prune_(model, LOW, self.args, self.kwargs)

    def run(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            args = self.args if isinstance(self.args, tuple) else (self.args,)
            output = model(*args, **(self.kwargs or {}))
        values = [output] if isinstance(output, Tensor) else list(output.values())
        return [value for value in values if isinstance(value, Tensor)]


SEQUENCES = {"input_ids": torch.arange(6)[None], "decoder_input_ids": torch.arange(4)[None]}
PROJECTION = ("layer3.0.conv2.weight", *(f"layer3.0.downsample.{each}" for each in ("0.weight", "1.weight", "1.bias")))
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
POSTNORMS = tuple(f"layers.0.norm{i}.{each}" for i in (1, 2) for each in ("weight", "bias"))
CASES = {
    "block": Case(lambda: nn.Sequential(Block(), Block()), X_BTD, "1."),
    "inline": Case(lambda: nn.Sequential(Inline(), Inline()), X_BTD, "0."),
    "tanh": Case(lambda: nn.Sequential(Block(), Block()), X_BTD, "0.", options={"gate": "tanh"}),
    "channel": Case(lambda: nn.Sequential(Block(), Block()), X_BTD, "0.", options={"gate": "channel"}),
    "shared": Case(lambda: nn.Sequential(Block(), Block()), X_BTD, "0.", options={"share": "layer"}),
    "parallel": Case(lambda: nn.Sequential(Parallel(), Block()), X_BTD, "0."),
    "parallel together": Case(lambda: nn.Sequential(Parallel("together"), Block()), X_BTD, "0."),
    "nested": Case(nested, X_BTD, "0.branch"),
    "without norms": Case(
        lambda: nn.Sequential(Block(), Block()), X_BTD, "0.", options={"norms": "remove", "drop": True}
    ),
    "norms passed by": Case(
        lambda: nn.Sequential(Block(), Block()),
        X_BTD,
        "0.",
        tuple(f"0.norm{i}.{each}" for i in (1, 2) for each in ("weight", "bias")),  # frozen, for those who read them
        options={"norms": "remove"},
    ),
    "encoder": Case(encoder, X_BTD, "layers.0", ("layers.0.self_attn.in_proj_bias", *POSTNORMS)),
    "encoder without norms": Case(
        encoder,
        X_BTD,
        "layers.0",
        ("layers.0.self_attn.in_proj_bias",),
        options={"norms": "remove", "drop": True},
    ),
    "timm vit": Case(vit, IMAGE, "blocks.1"),
    "timm vit, layer scale reused": Case(vit, IMAGE, "blocks.0", options={"layer_scale": "reuse"}),
    "timm convnext": Case(convnext, IMAGE, "stages.0.blocks.1", ("stages.0.blocks.1.gamma",)),
    "timm cait": Case(cait, IMAGE, "blocks.1", ("blocks.1.gamma_1", "blocks.1.gamma_2")),
    "timm resnet": Case(resnet, IMAGE, "layer2.1"),
    "timm resnet, projection": Case(
        resnet, IMAGE, "layer3.0", (*PROJECTION, *(f"layer3.0.downsample.1.{each}" for each in STATISTICS))
    ),
    "gpt2": Case(gpt2, TOKENS, "transformer.h.1."),
    "gptj": Case(gptj, TOKENS, "transformer.h.0."),
    "llama": Case(llama, TOKENS, "model.layers.0."),
    "llama without norms": Case(llama, TOKENS, "model.layers.0.", options={"norms": "remove", "drop": True}),
    "dinov2": Case(dinov2, IMAGE, "encoder.layer.1."),
    "t5": Case(t5, (), "decoder.block.1", kwargs=SEQUENCES),
}


EACH = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=pytest.mark.xdist_group(f"prune {name}")) for name, case in CASES.items()],
)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# What goes


@EACH
def test_the_outputs_are_those_with_the_gates_at_zero(case: Case) -> None:
    """Without its weakest branches a model gives bit for bit what it gives with their gates at 0, in evaluation."""
    model, closed = case.copied(), case.closed()
    before = case.run(model)
    pruned = case.prune(model)
    assert pruned.removed
    assert pruned.left == {}
    with unfused():  # the fused path rounds differently
        assert equal(case.run(model), case.run(closed))
    squares = [((a - b).square().sum(), a.square().sum()) for a, b in zip(before, case.run(closed), strict=True)]
    difference, size = (float(sum(each)) for each in zip(*squares, strict=True))
    assert pruned.change == pytest.approx((difference / size) ** 0.5, rel=0.1, abs=1e-7)
    assert pruned.change < 1e-5


@EACH
def test_what_served_the_branches_alone_is_gone(case: Case) -> None:
    """Of the part of the model that the branches were, only what is known to be read elsewhere is in the state dict."""
    conversion = case.converted()
    model = conversion.model
    keys, gates = list(model.state_dict()), list(rezero.gates(model))
    size = sum(parameter.numel() for parameter in model.parameters())
    pruned = case.prune(model)
    assert {name for name in model.state_dict() if name.startswith(case.low)} == set(case.stay)
    assert list(model.state_dict()) == [name for name in keys if not name.startswith(case.low) or name in case.stay]
    branches = [branch.leaf for branch in conversion.residuals.branches]
    assert set(pruned.removed) == {leaf for leaf in branches if leaf.startswith(case.low)}
    assert list(rezero.gates(model)) == [name for name in gates if not name.startswith(case.low)]
    assert "Silent" in str(model)
    assert pruned.parameters == size - sum(parameter.numel() for parameter in model.parameters()) > 0
    assert f"branches removed, with {pruned.parameters:,} parameters" in str(pruned)


@EACH
def test_undo_puts_the_very_same_branches_back(case: Case) -> None:
    """After undo the converted model is the very same, and its conversion can be undone too."""
    conversion = case.converted()
    before = Picture(conversion.model)
    pruned = case.prune(conversion.model)
    with pytest.raises(UsageError, match=r"pruned since the conversion: call undo\(\) of what prune_ returned first"):
        conversion.undo()
    pruned.undo()
    before.check(conversion.model)
    pruned.undo()
    conversion.undo()
    assert equal(case.run(conversion.model), case.run(case.built()))
    assert list(conversion.model.state_dict()) == list(case.built().state_dict())


@EACH
def test_it_comes_back_from_its_folder(case: Case, tmp_path: Path) -> None:
    """The saved folder holds no removed parameter, and rebuilds the same smaller model."""
    model = case.copied(pruned=True)
    rezero.save_converted(model, tmp_path)
    again = rezero.load_converted_(case.build(), tmp_path).eval()
    assert equal(case.run(again), case.run(model))
    assert list(again.state_dict()) == list(model.state_dict())
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    again.train()


@EACH
def test_it_folds(case: Case) -> None:
    """The gates that are left fold into the weights, and the outputs stay, to rounding."""
    model = case.copied(pruned=True)
    expected = case.run(model)
    gates = len(rezero.gates(model))
    folded = rezero.fold_(model)
    assert folded.left == ()
    assert len(folded.folded) >= gates
    assert not rezero.gates(model)
    for got, wanted in zip(case.run(model), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@EACH
def test_it_goes_on_learning(case: Case) -> None:
    """Training runs on: every parameter that is left and learned before gets a gradient, but for unused ones."""
    model, twin = case.copied(pruned=True), case.copied()
    graded = []
    for each in (twin, model):
        torch.manual_seed(0)
        args = case.args if isinstance(case.args, tuple) else (case.args,)
        output = each.train()(*args, **(case.kwargs or {}))
        (output if isinstance(output, Tensor) else output[0]).square().mean().backward()
        graded.append({name for name, parameter in each.named_parameters() if parameter.grad is not None})
    left = {name for name, _ in model.named_parameters()}
    assert graded[1] >= {name for name in graded[0] & left if not name.startswith(case.low)}


FLOPS = ["block", "parallel", "nested", "without norms", "timm vit", "timm convnext", "timm resnet"]


@pytest.mark.parametrize("name", [*FLOPS, "inline", "encoder"])
def test_nothing_of_the_branches_is_computed(name: str) -> None:
    """No product of matrices is left in a pruned part that is free of side effects."""
    case = CASES[name]
    model = case.copied()
    owner = case.low.strip(".").removesuffix(".branch")
    with FlopCounterMode(display=False) as before, torch.no_grad(), unfused():
        case.run(model)
    case.prune(model)
    with FlopCounterMode(display=False) as after, torch.no_grad(), unfused():
        case.run(model)
    counted = {key: sum(value.values()) for key, value in after.get_flop_counts().items()}
    assert counted.get(f"{type(model).__name__}.{owner}", 0) == 0
    assert 0 < after.get_total_flops() < before.get_total_flops()


def test_a_small_model_says_what_happened() -> None:
    """The report names each branch with its contribution, and what is left of the way to it."""
    case = CASES["llama"]
    told = str(case.prune(case.copied()))
    assert "2 of 4 branches removed" in told
    assert "model.layers.0.self_attn is still computed: its forward takes 'past_key_values'" in told
    assert "cache" in told


# Generation


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "t5"])
def test_generation_with_a_cache_is_that_with_the_gates_at_zero(name: str, beams: int) -> None:
    """A model whose first attention, or another, is pruned generates with a cache what it generates with gates at 0."""
    case = CASES[name]
    model, closed = case.copied(), case.closed()
    case.prune(model)
    tokens = SEQUENCES["input_ids"] if name == "t5" else TOKENS
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "num_beams": beams}
    expected = closed.generate(tokens, **options)
    assert torch.equal(model.generate(tokens, **options), expected)
    assert torch.equal(model.generate(tokens, use_cache=False, **options), expected)


def test_an_example_without_a_cache_does_not_prune_its_filling() -> None:
    """A model that is pruned on an example that uses no cache fills its cache in generation all the same."""
    case = CASES["llama"]._replace(kwargs={"use_cache": False})
    model, closed = case.copied(), case.closed()
    case.prune(model)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(model.generate(TOKENS, **options), closed.generate(TOKENS, **options))


@pytest.mark.parametrize("folded", [False, True], ids=["gated", "folded"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama without norms", "dinov2", "t5"])
def test_from_pretrained_rebuilds_it(name: str, folded: bool, tmp_path: Path) -> None:
    """save_pretrained writes the smaller model, and rezero.from_pretrained gives it back, gated or folded."""
    case = CASES[name]
    model = case.copied()
    case.prune(model)
    if folded:
        assert rezero.fold_(model).left == ()
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    assert equal(case.run(again), case.run(model))
    assert list(again.state_dict()) == list(model.state_dict())
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == learns


# What stays


class Reading(nn.Module):
    """Multiplies by the weight of its layer in training, without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return x + (h @ self.layer.weight if self.training else self.layer(h))


def test_what_training_computes_otherwise_stays() -> None:
    """Where training reads a layer's weight without calling it, the weight and the way to it stay, and it trains on."""
    model = nn.Sequential(Reading(), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD, verify=False)
    low_(model, "0.")
    expected = model.train()(X_BTD)
    pruned = rezero.prune_(model.eval(), LOW, X_BTD)
    assert pruned.silent == ("0.layer",)
    assert pruned.kept == ("0.layer.weight",)
    assert torch.equal(model.train()(X_BTD), expected)


class Remembering(nn.Module):
    """An attention that does something beside returning a branch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.how = how
        self.seen: list[Tensor] = []
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.mT).softmax(-1)
        if self.how == "attribute":
            self.last = weights
        elif self.how == "list":
            self.seen.append(k)
        elif self.how == "buffer":
            self.steps += 1
        out = self.out(weights @ v)
        return (out, weights) if self.how == "weights" else (None, out) if self.how == "second" else out


class Caching(Remembering):
    """May be given a cache to fill."""

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        if cache is not None:
            cache.append(self.qkv(x))
        return super().forward(x)


class Remembers(nn.Module):
    """``x + attention(norm(x))``, and a block that does not matter."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.rest = nn.LayerNorm(D), Plain(nn.Linear(D, D))
        self.attention = Caching(how) if how == "cache" else Remembering(how)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        h = self.norm(x)
        output = self.attention(h)
        if self.how == "weights":
            return self.rest(x + output[0]), output[1]
        return self.rest(x + (output[1] if self.how == "second" else output))


def low_(model: nn.Module, *names: str, open_: float = 0.7) -> nn.Module:
    """Open all gates, but those in the named parts by next to nothing."""
    for name, gate in rezero.gates(model).items():
        nn.init.constant_(gate.gate_parameter, 1e-7 if name.startswith(names) else open_)
    return model.eval()


@pytest.mark.parametrize("how", ["cache", "attribute", "list", "buffer"])
def test_a_module_with_side_effects_runs_on_without_its_layers(how: str) -> None:
    """An attention that may fill a cache, or remembers something, is called still; it is named, and its layers go."""
    model = Remembers(how)
    rezero.convert_(model, X_BTD)
    low_(model, "attention")
    pruned = rezero.prune_(model, LOW, X_BTD)
    assert pruned.removed == ("attention.out",)
    assert pruned.silent == ("norm", "attention.qkv", "attention.out")
    assert list(pruned.running) == ["attention"]
    assert ("takes 'cache'" if how == "cache" else "it remembers something") in pruned.running["attention"]
    if how == "list":
        model(X_BTD)
        assert len(model.attention.seen) == 1


def test_a_module_whose_other_outputs_are_read_runs_on() -> None:
    """Attention weights that the model returns are computed as before; only what ends the branch is gone."""
    model = Remembers("weights")
    rezero.convert_(model, X_BTD)
    low_(model, "attention")
    expected = model(X_BTD)[1]
    pruned = rezero.prune_(model, LOW, X_BTD)
    assert pruned.silent == ("attention.out",)
    assert torch.equal(model(X_BTD)[1], expected)


def test_a_branch_that_is_no_first_output_is_taken_out_inside() -> None:
    """A module that returns the branch second can't return zeros; the layers in it can."""
    model = Remembers("second")
    rezero.convert_(model, X_BTD)
    pruned = rezero.prune_(low_(model, "attention"), LOW, X_BTD)
    assert pruned.silent == ("norm", "attention.qkv", "attention.out")


def test_attention_of_torch_goes_whole() -> None:
    """nn.MultiheadAttention, which takes and returns nothing but tensors, is passed by; None stands for its weights."""
    model = nn.Sequential(Block(), Block())
    rezero.convert_(model, X_BTD)
    pruned = rezero.prune_(low_(model, "0.attention"), LOW, X_BTD)
    assert pruned.silent == ("0.norm1", "0.attention")
    zeros, weights = model[0].attention(X_BTD, X_BTD, X_BTD)
    assert torch.equal(zeros, torch.zeros_like(X_BTD))
    assert weights is None
    assert [name for name, _ in model[0].attention.named_modules()] == [""]


class Casts(nn.Module):
    """Looks at the dtype of a weight of its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Linear(16, D))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x.to(self.mlp[0].weight.dtype))


def test_a_parameter_that_other_code_reads_stays(tmp_path: Path) -> None:
    """A weight of which other code sees the dtype is kept, and named; the rest of its module goes."""
    model = nn.Sequential(Casts(), Casts())
    conversion = rezero.convert_(model, X_BTD)
    pruned = rezero.prune_(low_(model, "0."), LOW, X_BTD)
    assert pruned.kept == ("0.mlp.0.weight",)
    assert [name for name in model.state_dict() if name.startswith("0.")] == ["0.mlp.0.weight"]
    assert "0.mlp.0.weight stays: other code reads it" in str(pruned)
    conversion.save(tmp_path)
    again = rezero.load_converted_(nn.Sequential(Casts(), Casts()), tmp_path)
    assert torch.equal(again(X_BTD), model(X_BTD))


def test_a_tied_weight_stays_with_the_others() -> None:
    """A weight that a layer in use has too leaves the pruned one only."""
    model = nn.Sequential(Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D)), nn.Linear(D, D))
    rezero.convert_(model, X_BTD)
    low_(model, "0.")
    model[2].weight = model[0].branch.weight
    weight = model[2].weight
    rezero.prune_(model, LOW, X_BTD)
    assert model[2].weight is weight
    assert [name for name in model.state_dict() if name.startswith("0.")] == []


def test_a_layer_that_serves_another_branch_too_stays() -> None:
    """A norm in front of two branches goes with the second of them."""
    model = nn.Sequential(Parallel(), Block())
    rezero.convert_(model, X_BTD)
    low_(model, "0.a")
    first = rezero.prune_(model, LOW, X_BTD)
    assert first.silent == ("0.a",)
    low_(model, "0.b")
    second = rezero.prune_(model, LOW, X_BTD)
    assert second.silent == ("0.norm", "0.b")
    assert not [name for name in model.state_dict() if name.startswith("0.")]
    with pytest.raises(UsageError, match="folded or pruned since: undo what came last first"):
        first.undo()
    second.undo()
    first.undo()
    assert list(rezero.gates(model))[:2] == ["0.a", "0.b.1"]


def test_branches_that_are_summed_otherwise_stay() -> None:
    """Branches that are stacked and summed can't be measured one by one: they are named and left."""
    model = nn.Sequential(Parallel("stacked"), Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD)
    pruned = rezero.prune_(low_(model, "0.", "1."), LOW, X_BTD)
    assert pruned.removed == ("1.branch",)
    assert list(pruned.left) == ["0.a", "0.b.1"]
    assert "the addition of '0.a' can't be told from others" in pruned.left["0.a"]
    assert "0.a stays: the addition of" in str(pruned)


def test_a_layer_with_hooks_stays() -> None:
    """A module that somebody has hooked is not taken out from under the hook."""
    model = nn.Sequential(*(Plain(nn.Linear(D, D)) for _ in range(3)))
    rezero.convert_(model, X_BTD)
    low_(model, "0.", "1.")
    model[0].branch.register_forward_hook(lambda *_: None)
    pruned = rezero.prune_(model, LOW, X_BTD)
    assert pruned.removed == ("1.branch",)
    assert pruned.left == {"0.branch": "it has hooks, or a forward of its own"}


class Strided(nn.Module):
    """A projected skip, and a branch that ends with a convolution in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.short = nn.Conv2d(3, 4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.short(x) + self.conv2(self.conv1(x).relu())


@pytest.mark.parametrize("size", [8, 1])
def test_a_branch_that_ends_with_a_step_stays(size: int) -> None:
    """Zeros of a convolution in steps can't be shaped for other images, even if the example is a single pixel."""
    model = nn.Sequential(Strided(), Plain(nn.Conv2d(4, 4, 1)))
    image = torch.randn(2, 3, size, size)
    rezero.convert_(model, image)
    pruned = rezero.prune_(low_(model, "0."), LOW, image)
    assert pruned.removed == ()
    assert pruned.left == {"0.conv2": "the shape of its output can't be told from that of its input"}
    assert pruned.change == 0


class Cross(nn.Module):
    """Attention whose query comes second."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, kv: Tensor, q: Tensor) -> Tensor:
        memory = self.kv(kv)
        return self.out((self.q(q) @ memory.mT).softmax(-1) @ memory)


class Crossed(nn.Module):
    """``x + attention(memory, x)``, by hand or torch's, and a block that does not matter."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.rest = attention, Plain(nn.Linear(D, D))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        own = isinstance(self.attention, Cross)
        return self.rest(x + (self.attention(memory, x) if own else self.attention(x, memory, memory)[0]))


@pytest.mark.parametrize(
    ("attention", "silent"),
    [
        (Cross(), ("attention.kv", "attention.q", "attention.out")),
        (nn.MultiheadAttention(D, 2, batch_first=True), ("attention",)),
    ],
)
def test_the_shape_of_zeros_is_not_guessed(attention: nn.Module, silent: tuple[str, ...]) -> None:
    """Where several arguments are like the output, a module runs on and its layers go; torch's attention goes whole."""
    model, memory = Crossed(attention), X_BTD.flip(1)
    rezero.convert_(model, (X_BTD, memory))
    closed = copy.deepcopy(low_(model, "attention"))
    nn.init.zeros_(next(iter(rezero.gates(closed).values())).gate_parameter)
    pruned = rezero.prune_(model, LOW, (X_BTD, memory))
    assert pruned.silent == silent
    reason = "several of its arguments have the shape of its output"
    assert pruned.running == ({"attention": reason} if len(silent) > 1 else {})
    for x in (X_BTD, X_BTD[:, :2]):
        assert torch.equal(model(x, memory), closed(x, memory))


def test_other_shapes_than_the_examples_fit() -> None:
    """A pruned model takes batches, lengths and images of other sizes than it was pruned on."""
    for name, x in {"block": X_BTD[:1, :3], "inline": torch.randn(4, 7, D), "timm resnet": IMAGE[:1, :, :33]}.items():
        case = CASES[name]
        model, closed = case.copied(), case.closed()
        case.prune(model)
        with torch.no_grad():
            assert torch.equal(model(x), closed(x))


def test_a_padded_batch_is_encoded() -> None:
    """torch's encoder, pruned, gives for a padded batch what it gives with the gates at 0."""
    case = CASES["encoder"]
    model, closed = case.copied(), case.closed()
    case.prune(model)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with unfused():
        expected = closed(X_BTD, src_key_padding_mask=padding)
    with torch.no_grad():
        got = model(X_BTD, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], expected[~padding])


# Which go together


def test_branches_with_one_gate_go_together_or_not_at_all() -> None:
    """A shared gate is pruned only if all its branches add too little."""

    class Unequal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x)
            return x + self.b(x)

    model = nn.Sequential(Unequal(), Unequal())
    rezero.convert_(model, X_BTD, share="layer", init_value=0.5)
    with torch.no_grad():
        model[0].a.weight.mul_(1e-7)
        model[0].a.bias.mul_(1e-7)
    pruned = rezero.prune_(model, LOW, X_BTD)
    assert pruned.contributions["0.a"] < LOW < pruned.contributions["0.b"]
    assert pruned.removed == ()
    with torch.no_grad():
        model[0].b.weight.mul_(1e-7)
        model[0].b.bias.mul_(1e-7)
    assert rezero.prune_(model, LOW, X_BTD).removed == ("0.a", "0.b")


def test_a_branch_inside_goes_with_the_one_around_it() -> None:
    """A branch inside a removed one is gone too, however much it added there; inside one that stays it goes alone."""
    outer, inner = nested(), nested()
    for model, name in ((outer, "0.branch.2"), (inner, "0.branch.1")):
        rezero.convert_(model, X_BTD)
        low_(model, name)
    pruned = rezero.prune_(outer, LOW, X_BTD)
    assert pruned.removed == ("0.branch.1.branch", "0.branch.2")
    assert pruned.contributions["0.branch.1.branch"] > LOW
    assert pruned.silent == ("0.branch",)
    assert rezero.prune_(inner, LOW, X_BTD).removed == ("0.branch.1.branch",)


def test_a_gate_that_others_share_keeps_its_module() -> None:
    """A branch inside a removed one that shares its gate with another is kept, for the gate's sake."""
    model = nested()
    rezero.convert_(model, X_BTD, share="layer")
    assert rezero.prune_(low_(model), LOW, X_BTD).removed == ()


# What is measured


def test_the_contribution_is_that_of_the_definition() -> None:
    """||alpha f(x)|| / ||x|| over all elements, at the addition."""
    model = nn.Sequential(Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD)
    low_(model, open_=0.3)
    pruned = rezero.prune_(model, 0, X_BTD)
    h = X_BTD
    for name, block in zip(("0.branch", "1.branch"), model, strict=True):
        assert pruned.contributions[name] == pytest.approx((block.branch(h).norm() / h.norm()).item(), rel=1e-5)
        h = block(h)


@pytest.mark.parametrize("order", ["in turn", "together"])
def test_parallel_branches_are_each_held_against_the_skip(order: str) -> None:
    """Of two branches beside each other each is measured by itself, against the skip and not against the other."""
    model = nn.Sequential(Parallel(order), Block())
    rezero.convert_(model, X_BTD)
    low_(model)
    pruned = rezero.prune_(model, 0, X_BTD)
    h = model[0].norm(X_BTD)
    for name, branch in {"0.a": model[0].a(h), "0.b.1": model[0].b(h)}.items():
        assert pruned.contributions[name] == pytest.approx((branch.norm() / X_BTD.norm()).item(), rel=1e-5)


def test_what_lies_between_gate_and_addition_counts() -> None:
    """A LayerScale behind the gate belongs to the contribution."""

    class Scaled(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1e-3 * self.branch(x)

    model = nn.Sequential(Scaled(nn.Linear(D, D)), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD)
    low_(model)
    measured = rezero.prune_(model, 0, X_BTD).contributions["0.branch"]
    assert measured == pytest.approx(1e-3 * (model[0].branch(X_BTD).norm() / X_BTD.norm()).item(), rel=1e-5)


def test_several_batches_are_one_mean_square() -> None:
    """Batches, of unequal sizes, count by their elements: as one large batch would."""
    model = nn.Sequential(Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD)
    low_(model)
    x = torch.cat([X_BTD, 10 * X_BTD.flip(0), X_BTD + 1])
    whole = rezero.prune_(model, 0, x).contributions
    parts = rezero.prune_(model, 0, batches=iter([x[:1], x[1:4], x[4:]])).contributions
    assert parts == pytest.approx(whole, rel=1e-5)


class Two(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.a(x) * y)


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(list(zip(X_BTD.flatten(0, 1), X_BTD.flatten(0, 1), strict=True)), batch_size=4),
        [(X_BTD, X_BTD)],
        [[X_BTD, X_BTD]],
        [{"x": X_BTD, "y": X_BTD}],
        ({"x": x, "y": x} for x in X_BTD),
    ],
    ids=["loader", "tuple", "list", "dictionary", "generator"],
)
def test_a_batch_is_what_the_model_takes(batches: Any) -> None:
    """A batch is a tensor, a tuple or list of arguments, or a dictionary of keyword arguments."""
    model = Two()
    rezero.convert_(model, (X_BTD, X_BTD))
    assert rezero.prune_(low_(model, "a"), LOW, batches=batches).removed == ("a.branch",)


def test_measuring_leaves_no_trace() -> None:
    """A pruning that finds nothing to remove changes nothing: buffers, modes, random numbers, attributes."""
    model = resnet().train()
    rezero.convert_(model, IMAGE, verify=False)
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.7)
    before = Picture(model)
    pruned = rezero.prune_(model, 0, IMAGE)
    assert (pruned.removed, pruned.parameters, pruned.change) == ((), 0, 0)
    before.check(model)


def test_a_threshold_of_zero_takes_what_adds_nothing() -> None:
    """With a threshold of 0 a branch whose gate is exactly at 0 goes, and the output does not change."""
    model = nn.Sequential(Block(), Block())
    rezero.convert_(model, X_BTD)
    low_(model)
    nn.init.zeros_(rezero.gates(model)["1.mlp.2"].gate_parameter)
    expected = model(X_BTD)
    pruned = rezero.prune_(model, 0, X_BTD)
    assert pruned.removed == ("1.mlp.2",)
    assert pruned.change == 0
    assert torch.equal(model(X_BTD), expected)


# A pruned model among other tools


def pruned_block() -> nn.Module:
    case = CASES["block"]
    model = case.copied()
    case.prune(model)
    return model  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies_are_as_small(way: str) -> None:
    """A copy of a pruned model is a pruned model."""
    model = pruned_block()
    again = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(again(X_BTD), model(X_BTD))
    assert list(again.state_dict()) == list(model.state_dict())


def test_it_compiles_to_one_graph() -> None:
    """torch.compile takes a pruned model in whole."""
    model = pruned_block()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(X_BTD), model(X_BTD))


def test_it_exports() -> None:
    """torch.export takes a pruned model."""
    model = pruned_block()
    exported = torch.export.export(model, (X_BTD,)).module()
    torch.testing.assert_close(exported(X_BTD), model(X_BTD))


def test_it_runs_in_half_precision() -> None:
    """The zeros have the dtype of what they are added to, in a bfloat16 model and under autocast."""
    model = pruned_block()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(X_BTD).dtype == torch.float32
    assert model.bfloat16()(X_BTD.bfloat16()).dtype == torch.bfloat16


def test_what_is_left_resets() -> None:
    """reset_parameters passes by what is gone."""
    model = pruned_block()
    for module in model.modules():
        getattr(module, "reset_parameters", lambda: None)()
    assert not any(gate.gate_parameter.any() for gate in rezero.gates(model).values())


# Bad input


def test_a_model_without_gates_is_refused() -> None:
    """prune_ of a plain model, or of one that was folded, says what it expected."""
    model = nn.Sequential(Block(), Block())
    with pytest.raises(UsageError, match=r"expected a model that rezero\.convert_ has gated"):
        rezero.prune_(model, LOW, X_BTD)
    rezero.convert_(model, X_BTD, init_value=0.5)
    rezero.fold_(model)
    with pytest.raises(UsageError, match=r"expected a model that rezero\.convert_ has gated"):
        rezero.prune_(model, LOW, X_BTD)


def two_blocks() -> nn.Module:
    model = nn.Sequential(Plain(nn.Linear(D, D)), Plain(nn.Linear(D, D)))
    rezero.convert_(model, X_BTD)
    return low_(model, "0.")


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -0.1, "0.1", None, 1j], ids=str)
def test_a_threshold_that_is_none_is_refused(threshold: Any) -> None:
    """Anything but a finite number of 0 or more is a ValueError, and the model is untouched."""
    model = two_blocks()
    before = Picture(model)
    with pytest.raises(ValueError, match="threshold must be a finite number, 0 or more: got"):
        rezero.prune_(model, threshold, X_BTD)
    before.check(model)


WIDE = torch.ones(2, D + 1)
DATA: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no batch": ({"batches": []}, UsageError, "batches yields nothing to measure on"),
    "no batch left": ({"batches": iter(())}, UsageError, "batches yields nothing to measure on"),
    "a tensor": ({"batches": X_BTD}, TypeError, "must be an iterable of batches, such as a list: got Tensor"),
    "a batch": ({"batches": {"x": X_BTD}}, TypeError, "must be an iterable of batches, such as a list: got dict"),
    "a number": ({"batches": 3}, TypeError, "must be an iterable of batches, such as a list: got int"),
    "both": ({"batches": [X_BTD], "args": X_BTD}, ValueError, "one example, as args and kwargs, or batches: got both"),
    "keywords too": ({"batches": [X_BTD], "kwargs": {}}, ValueError, "one example, as args and kwargs, or batches"),
    "nothing": ({}, UsageError, "can't be run on the example input"),
    "too wide": ({"args": WIDE}, UsageError, "can't be run on the example input in 0.branch"),
    "the second": ({"batches": [X_BTD, WIDE]}, UsageError, "can't be run on the example input in 0.branch"),
    "nan": ({"args": X_BTD * float("nan")}, UsageError, "the contribution of '0.branch' is not a number"),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), DATA.values(), ids=DATA)
def test_data_that_do_not_serve_are_refused(arguments: dict[str, Any], kind: Any, message: str) -> None:
    """Each fault of the data is one clear error, and the model is untouched."""
    model = two_blocks()
    before = Picture(model)
    with pytest.raises(kind, match=message):
        rezero.prune_(model, LOW, **arguments)
    before.check(model)


@pytest.mark.parametrize("build", [lambda: nn.Sequential(Block(), Block()), nested], ids=["in a row", "nested"])
def test_losing_every_branch_is_refused(build: Callable[[], nn.Module]) -> None:
    """A threshold that would leave nothing but the stem and the head is an error, as with gates that never learned."""
    model = build()
    rezero.convert_(model, X_BTD)
    before = Picture(model)
    with pytest.raises(UsageError, match="no branch would be left between the model's stem and its head"):
        rezero.prune_(model, 0.01, X_BTD)
    before.check(model)


def test_what_can_not_be_changed_in_place_is_refused() -> None:
    """A compiled model, one on the meta device and something that is no model are refused."""
    model = two_blocks()
    with pytest.raises(UsageError, match="is a wrapped model: convert first"):
        rezero.prune_(torch.compile(model, backend="eager"), LOW, X_BTD)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is on the meta device: without numbers"):
        rezero.prune_(model.to("meta"), LOW, X_BTD)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
        rezero.prune_(3, LOW, X_BTD)  # type: ignore[arg-type]


class Forced(Exception):  # noqa: N818 - what it is
    """Nothing but this test raises it."""


@pytest.mark.parametrize("when", ["at its start", "at its end"])
@pytest.mark.parametrize("stage", ["ungate_", "silence_", "read_elsewhere", "drop_", "remember", "Closed.check"])
@pytest.mark.parametrize("name", ["block", "encoder", "llama", "shared"])
def test_a_failure_at_any_stage_leaves_no_trace(
    name: str, stage: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stage fails, before its work or after it, the converted model is the very same."""
    case = CASES[name]
    model = case.copied()
    owner: Any = prune.Closed if stage == "Closed.check" else prune
    attribute = stage.removeprefix("Closed.")
    real = getattr(owner, attribute)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if when == "at its end":
            real(*args, **kwargs)
        raise Forced(stage)

    before = Picture(model)
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, failing)
        with pytest.raises(Forced, match=stage):
            case.prune(model)
    before.check(model)


# Any stack of blocks

KINDS: dict[str, Callable[[], nn.Module]] = {
    "block": Block,
    "inline": Inline,
    "parallel": Parallel,
    "nested": lambda: Plain(nn.Linear(D, D), Plain(nn.Linear(D, D)), nn.Linear(D, D)),
    "plain": lambda: Plain(nn.Linear(D, D)),
}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=2, max_size=4),
    opened=st.lists(st.sampled_from([0.0, 1e-7, 0.8]), min_size=8, max_size=8),
    share=st.sampled_from(["sublayer", "layer"]),
    gate=st.sampled_from(["scalar", "channel", "tanh"]),
    norms=st.sampled_from(["keep", "remove"]),
)
def test_pruning_any_stack_is_closing_its_gates(
    kinds: list[str], opened: list[float], share: Any, gate: Any, norms: Any
) -> None:
    """On any stack of blocks, outputs are those with the removed gates at 0, and undo gives the same model back."""
    model = nn.Sequential(*(KINDS[kind]() for kind in kinds)).eval()
    options: dict[str, Any] = {"share": share, "gate": gate, "norms": norms, "drop": norms == "remove"}
    rezero.convert_(model, X_BTD, verify=False, **options)
    for found, value in zip(rezero.gates(model).values(), opened * 2, strict=False):
        nn.init.constant_(found.gate_parameter, value)
    nn.init.constant_(list(rezero.gates(model).values())[-1].gate_parameter, 0.8)  # something stays
    twin = copy.deepcopy(model)
    before = Picture(model)
    pruned = rezero.prune_(model, LOW, X_BTD)
    for name, found in rezero.gates(twin).items():
        if name in pruned.removed:
            nn.init.zeros_(found.gate_parameter)
    assert torch.equal(model(X_BTD), twin(X_BTD))
    if share == "sublayer":
        low = {name for name, value in pruned.contributions.items() if value <= LOW}
        assert low <= {*pruned.removed, *pruned.left}
        assert low == set(pruned.removed) or "nested" in kinds
    pruned.undo()
    before.check(model)
