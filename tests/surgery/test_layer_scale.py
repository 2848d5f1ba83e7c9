"""A LayerScale that a branch ends with already is reported, and kept under the gate, made the gate, or refused."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, Gemma2Config, Gemma2ForCausalLM

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.errors import UsageError
from tests.surgery.test_convert import Picture

B, D = 2, 8
X_BD = torch.randn(B, D, generator=torch.Generator().manual_seed(1))
IMAGE = torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class LayerScale(nn.Module):
    """One number a channel."""

    def __init__(self, value: float = 1e-6) -> None:
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((D,), value))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.value)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """``x + last(f(x))``."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(D, 16), nn.GELU(), nn.Linear(16, D))
        self.last = LayerScale() if last is None else last

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.f(x))


class Inline(Block):
    """``x + gamma * f(x)``, the product being the block's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last.gamma * self.f(x)


class Affine(LayerScale):
    """Adds something, too."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.bias


class Squared(LayerScale):
    """Not linear in its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.square()


def stack() -> nn.Module:
    return nn.Sequential(Block(), Block())


def vit() -> nn.Module:
    options: dict[str, Any] = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", init_values=1e-5, **options)


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)


def cait() -> nn.Module:
    options: dict[str, Any] = {"depth": 1, "depth_token_only": 1, "embed_dim": 32, "num_heads": 2, "img_size": 32}
    return timm.create_model("cait_xxs24_224", init_values=1e-5, num_classes=5, **options)


def dinov2() -> nn.Module:
    options: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
    return Dinov2Model(Dinov2Config(layerscale_value=1e-5, patch_size=16, **options))


class Case(NamedTuple):
    """A model, an input, and the parameters that scale its branches."""

    build: Callable[[], nn.Module]
    x: Tensor
    scales: tuple[str, ...]

    def built(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()


REUSABLE = {
    "module": Case(stack, X_BD, ("0.last.gamma", "1.last.gamma")),
    "timm vit": Case(vit, IMAGE, tuple(f"blocks.{i}.ls{j}.gamma" for i in range(2) for j in (1, 2))),
    "dinov2": Case(dinov2, IMAGE, tuple(f"encoder.layer.{i}.layer_scale{j}.lambda1" for i in range(2) for j in (1, 2))),
}
INLINE = {
    "inline": Case(Inline, X_BD, ("last.gamma",)),
    "timm convnext": Case(convnext, IMAGE, tuple(f"stages.{i}.blocks.0.gamma" for i in range(4))),
    "timm cait": Case(cait, IMAGE, tuple(f"blocks{kind}.0.gamma_{i}" for kind in ("", "_token_only") for i in (1, 2))),
}
CASES = {**REUSABLE, **INLINE}


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Return a model's output, the first one of several."""
    with torch.no_grad():
        output = model(x)
    return output if isinstance(output, Tensor) else output[0]


# What is reported


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_scale_is_reported_wherever_it_is(case: Case) -> None:
    """Each LayerScale is named in the table, in the JSON and in what the conversion prints, a module or not."""
    model = case.built()
    found = rezero.find_residuals(model, case.x)
    assert tuple(name for branch in found.branches for name in branch.scale) == case.scales
    assert "scaled by" in str(found)
    assert all(name in str(found) for name in case.scales)
    written = [name for site in found.to_json()["sites"] for branch in site["branches"] for name in branch["scale"]]
    assert tuple(written) == case.scales
    told = str(rezero.convert_(model, case.x))
    assert f"scaled already, by parameters that are kept under the gates: {len(case.scales)} branch" in told
    assert case.scales[0] in told


def test_the_gain_of_a_norm_is_no_layer_scale() -> None:
    """The norm after a branch of Gemma 2 multiplies by a parameter too, and is not reported."""
    options: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = Gemma2Config(hidden_size=16, intermediate_size=32, num_hidden_layers=2, vocab_size=50, **options)
    found = rezero.find_residuals(Gemma2ForCausalLM(config), torch.arange(6)[None])
    assert len(found.branches) == 4
    assert all(branch.scale == () for branch in found.branches)
    assert "scaled by" not in str(found)


# Kept


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_kept_layer_scale_stays_under_the_gate(case: Case) -> None:
    """By default every branch gets a gate of its own, the LayerScale keeps its numbers, and at 1 the outputs stay."""
    model = case.built()
    expected, numbers = run(model, case.x), [model.get_parameter(name).clone() for name in case.scales]
    conversion = rezero.convert_(model, case.x, init_value=1.0)
    assert len(conversion.gates) == len(case.scales)
    assert not set(conversion.gates) & set(case.scales)
    assert torch.equal(run(model, case.x), expected)
    assert all(torch.equal(model.get_parameter(name), n) for name, n in zip(case.scales, numbers, strict=True))


# Reused


@pytest.mark.parametrize("case", REUSABLE.values(), ids=REUSABLE)
def test_a_reused_layer_scale_is_the_gate(case: Case) -> None:
    """No key is new; the LayerScale's parameter starts at init_value, is listed as the gate, and is not decayed."""
    model = case.built()
    keys = list(model.state_dict())
    conversion = rezero.convert_(model, case.x, layer_scale="reuse", init_value=0.25)
    assert conversion.gates == case.scales
    assert list(model.state_dict()) == keys
    assert [f"{name}.{case.scales[0].rpartition('.')[2]}" for name in rezero.gates(model)] == list(case.scales)
    assert all(torch.equal(p, torch.full_like(p, 0.25)) for p in map(model.get_parameter, case.scales))
    *_, group = rezero.param_groups(model, lr=0.01, weight_decay=0.1)
    assert (group["name"], group["weight_decay"]) == ("gates", 0.0)
    assert {id(p) for p in group["params"]} == {id(model.get_parameter(name)) for name in case.scales}
    assert "by parameters that are the gates now" in str(conversion)


@pytest.mark.parametrize("case", REUSABLE.values(), ids=REUSABLE)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_reused_layer_scale_computes_what_it_did(case: Case, value: float) -> None:
    """The model gives what the original gives with these numbers in its LayerScales, and learns them."""
    model, twin = case.built(), case.built()
    rezero.convert_(model, case.x, layer_scale="reuse", init_value=value)
    for name in case.scales:
        nn.init.constant_(twin.get_parameter(name), value)
    assert torch.equal(run(model, case.x), run(twin, case.x))
    output = model(case.x)
    (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
    for name in case.scales[-1:]:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.any()


def test_a_block_is_the_identity_at_zero() -> None:
    """With the LayerScale as the gate at 0, x comes out bitwise."""
    model = stack()
    rezero.convert_(model, X_BD, layer_scale="reuse")
    assert torch.equal(model(X_BD), X_BD)


@pytest.mark.parametrize("case", REUSABLE.values(), ids=REUSABLE)
@pytest.mark.parametrize("learned", [False, True], ids=["at once", "after learning"])
def test_undo_gives_the_layer_scale_its_numbers_back(case: Case, learned: bool) -> None:
    """After undo the model is the very same, also when the gates have moved."""
    model = case.built()
    before = Picture(model)
    conversion = rezero.convert_(model, case.x, layer_scale="reuse")
    if learned:
        for gate in rezero.gates(model).values():
            nn.init.constant_(gate.gate_parameter, 0.3)
    conversion.undo()
    before.check(model)


def test_a_failed_conversion_leaves_the_layer_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure at the end of a conversion that reuses LayerScales leaves the very same model."""
    model = stack()
    before = Picture(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("forced")

    monkeypatch.setattr("rezero.surgery.convert.remember", fail)
    with pytest.raises(RuntimeError, match="forced"):
        rezero.convert_(model, X_BD, layer_scale="reuse")
    before.check(model)


def test_a_layer_scale_at_zero_can_be_reused() -> None:
    """A LayerScale that starts at zero is no dead branch where it becomes the gate: nothing is reset."""
    model = nn.Sequential(Block(LayerScale(0.0)))
    conversion = rezero.convert_(model, X_BD, layer_scale="reuse")
    assert conversion.reset == ()
    assert not model.get_parameter("0.last.gamma").any()


def test_a_branch_behind_a_reused_layer_scale_is_woken() -> None:
    """A last layer at zero behind a reused LayerScale would never learn, and gets its usual start."""
    model = nn.Sequential(Block())
    nn.init.zeros_(model.get_parameter("0.f.2.weight"))
    nn.init.zeros_(model.get_parameter("0.f.2.bias"))
    conversion = rezero.convert_(model, X_BD, layer_scale="reuse")
    assert conversion.reset == ("0.f.2.weight",)


def test_branches_without_one_get_a_gate_of_their_own() -> None:
    """Where some branches end with a LayerScale and others do not, each kind gets its gate."""
    model = nn.Sequential(Block(), Block(nn.Identity()))
    conversion = rezero.convert_(model, X_BD, layer_scale="reuse", init_value=0.5)
    assert conversion.gates == ("0.last.gamma", "1.f.2.alpha")
    assert rezero.fold_(model).folded == ("0.last", "1.f.2")


def test_reset_parameters_sets_the_gate() -> None:
    """A reused LayerScale resets to the gate's start, not to its own."""
    model = nn.Sequential(Block())
    rezero.convert_(model, X_BD, layer_scale="reuse", init_value=0.5)
    nn.init.ones_(model.get_parameter("0.last.gamma"))
    model[0].last.reset_parameters()
    assert torch.equal(model.get_parameter("0.last.gamma"), torch.full((D,), 0.5))


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies_have_gates_of_their_own(way: str) -> None:
    """A copy of a model with reused LayerScales computes the same, with its own numbers."""
    model = stack()
    rezero.convert_(model, X_BD, layer_scale="reuse", init_value=0.5)
    again = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(again(X_BD), model(X_BD))
    assert list(rezero.gates(again)) == ["0.last", "1.last"]
    assert again.get_parameter("0.last.gamma") is not model.get_parameter("0.last.gamma")


def test_it_compiles_to_one_graph() -> None:
    """torch.compile takes a reused LayerScale in whole."""
    model = stack()
    rezero.convert_(model, X_BD, layer_scale="reuse", init_value=0.5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X_BD), model(X_BD))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reused_layer_scale_stays_precise_in_a_half_precision_model(when: str) -> None:
    """In a bfloat16 model the gate is float32, so that small steps count, and the output is bfloat16."""
    model = stack().bfloat16() if when == "before" else stack()
    x = X_BD.bfloat16() if when == "before" else X_BD
    before = Picture(model)
    conversion = rezero.convert_(model, x, layer_scale="reuse", init_value=0.5)
    model.bfloat16()
    assert model.get_parameter("0.last.gamma").dtype == torch.float32
    assert model.get_parameter("0.f.0.weight").dtype == torch.bfloat16
    assert model(X_BD.bfloat16()).dtype == torch.bfloat16
    if when == "before":
        conversion.undo()
        before.check(model)


# Saved and folded


@pytest.mark.parametrize("case", REUSABLE.values(), ids=REUSABLE)
def test_it_comes_back_from_its_folder(case: Case, tmp_path: Path) -> None:
    """What was saved rebuilds the same outputs, classes and gates."""
    model = case.built()
    conversion = rezero.convert_(model, case.x, layer_scale="reuse", init_value=0.5)
    for gate in rezero.gates(model).values():
        nn.init.uniform_(gate.gate_parameter)
    conversion.save(tmp_path)
    again = rezero.load_converted_(case.built(), tmp_path)
    assert torch.equal(run(again, case.x), run(model, case.x))
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]


def test_from_pretrained_rebuilds_it(tmp_path: Path) -> None:
    """DINOv2 with reused LayerScales comes back from save_pretrained, and its file has the keys of the original's."""
    model = dinov2().eval()
    model.save_pretrained(tmp_path / "original")
    rezero.convert_(model, IMAGE, layer_scale="reuse", init_value=0.5)
    model.save_pretrained(tmp_path / "converted")
    keys = [set(load_file(tmp_path / name / "model.safetensors")) for name in ("original", "converted")]
    assert keys[0] == keys[1]
    assert torch.equal(run(rezero.from_pretrained(tmp_path / "converted"), IMAGE), run(model, IMAGE))


@pytest.mark.parametrize("case", REUSABLE.values(), ids=REUSABLE)
def test_folding_leaves_the_layer_scale_with_what_it_learned(case: Case) -> None:
    """fold_ gives the original classes back and changes no number; a later undo is refused."""
    model = case.built()
    classes = [type(module) for module in model.modules()]
    conversion = rezero.convert_(model, case.x, layer_scale="reuse")
    for gate in rezero.gates(model).values():
        nn.init.uniform_(gate.gate_parameter)
    expected = run(model, case.x)
    folded = rezero.fold_(model)
    assert len(folded.folded) == len(case.scales)
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(UsageError, match="folding stays"):
        conversion.undo()
    assert torch.equal(run(model, case.x), expected)


# Refused


@pytest.mark.parametrize("case", INLINE.values(), ids=INLINE)
def test_a_layer_scale_that_is_no_module_can_not_be_reused(case: Case) -> None:
    """Where the model's own code multiplies, reuse is refused by name and the model is untouched."""
    model = case.built()
    before = Picture(model)
    with pytest.raises(
        UsageError, match=rf"is scaled by {case.scales[0]}, which is not the only parameter of a module"
    ):
        rezero.convert_(model, case.x, layer_scale="reuse")
    before.check(model)


def test_a_module_that_is_not_linear_can_not_be_reused() -> None:
    """A module that multiplies by the square of its parameter can't be a gate: reuse is refused."""
    with pytest.raises(UsageError, match=r"is scaled by 0\.last\.gamma, which is not the only"):
        rezero.convert_(nn.Sequential(Block(Squared())), X_BD, layer_scale="reuse")


def test_a_module_that_adds_is_no_layer_scale() -> None:
    """A module that multiplies and adds a bias is a layer as others are, and gets a gate."""
    model = nn.Sequential(Block(Affine()))
    assert rezero.convert_(model, X_BD, layer_scale="reuse").gates == ("0.last.alpha",)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_refused_where_asked(case: Case) -> None:
    """layer_scale='refuse' names the first, counts the others, and leaves the model untouched."""
    model = case.built()
    before = Picture(model)
    with pytest.raises(
        UsageError, match=rf"scaled by {case.scales[0]} already \(and so are {len(case.scales) - 1} more"
    ):
        rezero.convert_(model, case.x, layer_scale="refuse")
    before.check(model)


def test_a_model_without_any_is_not_refused() -> None:
    """Both options convert a model without LayerScales as usual."""
    for option in ("reuse", "refuse"):
        model = nn.Sequential(Block(nn.Identity()))
        assert rezero.convert_(model, X_BD, layer_scale=option).gates == ("0.f.2.alpha",)


class Rectified(nn.Module):
    """``relu(x + gamma * f(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.last, self.act = nn.Linear(D, D), LayerScale(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.last(self.f(x)))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (stack, {"gate": "tanh"}, r"'0\.last' multiplies by its own numbers, not by gate='tanh'"),
        (stack, {"share": "layer"}, r"'0\.last' multiplies by its own numbers, not by share='layer'"),
        (Rectified, {"activation_after": "move"}, r"'act' can't move before 'last', a reused LayerScale"),
    ],
    ids=["tanh", "shared", "moved"],
)
def test_what_does_not_fit_a_reused_layer_scale_is_refused(build: Any, options: dict[str, Any], message: str) -> None:
    """Options that a LayerScale's own code can't follow are refused by name, and the model is untouched."""
    model = build()
    before = Picture(model)
    with pytest.raises(UsageError, match=message):
        rezero.convert_(model, X_BD, layer_scale="reuse", **options)
    before.check(model)


def test_an_optimizer_that_may_decay_it_is_refused() -> None:
    """The optimizer of a model whose LayerScales become gates is made afterwards."""
    model = stack()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(UsageError, match="make it after the conversion, from"):
        rezero.convert_(model, X_BD, layer_scale="reuse", optimizer=optimizer)
    assert len(optimizer.param_groups) == 1
