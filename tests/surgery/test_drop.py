"""With drop=True a removed norm loses its parameters, unless other code reads them."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import rezero
import tests.operators  # noqa: F401 - before timm imports torchvision
from rezero.errors import UsageError
from tests.surgery.test_convert import Picture

D = 8
X_BTD = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))
TOKENS = torch.arange(2, 20).view(2, 9)
SMALL: dict[str, Any] = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}


class PreNorm(nn.Module):
    """``x + f(norm(x))``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class Casting(PreNorm):
    """Looks at the dtype of its norm's weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x).to(self.norm.weight.dtype))


class Penalised(PreNorm):
    """Reads its norm's bias in training only."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.norm.bias.square().sum() if self.training else y


class Tied(nn.Module):
    """The final norm has the very parameters of the one before the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm = PreNorm(), nn.LayerNorm(D)
        self.norm.weight, self.norm.bias = self.block.norm.weight, self.block.norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(x))


class Preactivated(nn.Module):
    """``x + conv(relu(bn(x)))``, whose norm has buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm1d(5), nn.Conv1d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.bn(x).relu())


class Case(NamedTuple):
    """A model, an input, and the modules that lose their parameters."""

    build: Callable[[], nn.Module]
    x: Tensor
    dropped: tuple[str, ...]

    def built(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)  # norms that do something
        return model


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), 2)


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL))


def llama() -> nn.Module:
    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **SMALL)
    return LlamaForCausalLM(config)


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    return T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **sizes))


SEQUENCES = {"input_ids": torch.arange(6)[None], "decoder_input_ids": torch.arange(4)[None]}
CASES = {
    "pre-norm": Case(lambda: nn.Sequential(PreNorm(), PreNorm()), X_BTD, ("0.norm", "1.norm")),
    "batch norm": Case(Preactivated, X_BTD, ("bn",)),
    "encoder": Case(encoder, X_BTD, tuple(f"layers.{i}.norm{j}" for i in range(2) for j in (1, 2))),
    "tied": Case(Tied, X_BTD, ("block.norm",)),
    "gpt2": Case(gpt2, TOKENS, tuple(f"transformer.h.{i}.ln_{j}" for i in range(2) for j in (1, 2))),
    "llama": Case(
        llama,
        TOKENS,
        tuple(f"model.layers.{i}.{n}_layernorm" for i in range(2) for n in ("input", "post_attention")),
    ),
}


def converted(case: Case, model: nn.Module | None = None, **options: Any) -> Any:
    """Convert a model without its norms, and open its gates."""
    conversion = rezero.convert_(case.built() if model is None else model, case.x, norms="remove", **options)
    generator = torch.Generator().manual_seed(3)
    for gate in rezero.gates(conversion.model).values():
        nn.init.uniform_(gate.gate_parameter, 0.2, 1.2, generator=generator)
    return conversion


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(x)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_parameters_of_removed_norms_leave_the_state_dict(case: Case) -> None:
    """Nothing of the dropped norms is in the state dict, all else stays, and the outputs are those without drop."""
    twin, conversion = converted(case), converted(case, drop=True)
    model = conversion.model
    assert {name.rpartition(".")[0] for name in conversion.recipe.dropped} == set(case.dropped)
    assert conversion.kept == ()
    gone = {name for name in twin.model.state_dict() if name.rpartition(".")[0] in case.dropped}
    assert gone
    assert list(model.state_dict()) == [name for name in twin.model.state_dict() if name not in gone]
    assert torch.equal(run(model, case.x), run(twin.model, case.x))
    assert f"{len(case.dropped)} of these lost their parameters" in str(conversion)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_undo_puts_the_same_parameters_back(case: Case) -> None:
    """After undo the model is the very same, with the same parameter objects in the same order."""
    model = case.built()
    before = Picture(model)
    rezero.convert_(model, case.x, norms="remove", drop=True).undo()
    before.check(model)


def test_what_is_tied_stays_with_the_others() -> None:
    """A parameter that a norm in use has too is dropped from the removed one only, and goes on learning."""
    conversion = converted(CASES["tied"], drop=True)
    model = conversion.model
    assert [name for name in model.state_dict() if "norm" in name] == ["norm.weight", "norm.bias"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(X_BTD).square().sum().backward()
    assert model.norm.weight.grad is not None


@pytest.mark.parametrize("build", [Casting, Penalised], ids=["dtype", "in training"])
def test_a_norm_that_other_code_reads_keeps_its_parameters(build: Callable[[], nn.Module]) -> None:
    """A norm of which any code reads a parameter in any mode is kept whole and named; another one is dropped."""
    model = nn.Sequential(build(), PreNorm())
    conversion = rezero.convert_(model, X_BTD, norms="remove", drop=True, init_value=0.5)
    assert conversion.kept == ("0.norm",)
    assert conversion.recipe.dropped == ("1.norm.weight", "1.norm.bias")
    assert [name for name in model.state_dict() if "norm" in name] == ["0.norm.weight", "0.norm.bias"]
    assert "kept, because other code reads their parameters: 0.norm" in str(conversion)
    for training in (False, True):
        assert model.train(training)(X_BTD).isfinite().all()


def test_a_kept_norm_comes_back_with_its_parameters(tmp_path: Path) -> None:
    """Loading gives the norms that were kept, and only those."""
    case = Case(lambda: nn.Sequential(Casting(), PreNorm()), X_BTD, ())
    conversion = converted(case, drop=True)
    conversion.save(tmp_path)
    again = rezero.load_converted_(case.build(), tmp_path).eval()
    assert list(again.state_dict()) == list(conversion.model.state_dict())
    assert torch.equal(again(X_BTD), conversion.model(X_BTD))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_comes_back_from_its_folder(case: Case, tmp_path: Path) -> None:
    """Conversion.save writes no dropped parameter, and load_converted_ rebuilds the same model from it."""
    conversion = converted(case, drop=True)
    conversion.save(tmp_path)
    assert not [n for n in load_file(tmp_path / "model.safetensors") if n.rpartition(".")[0] in case.dropped]
    again = rezero.load_converted_(case.build(), tmp_path).eval()
    assert torch.equal(run(again, case.x), run(conversion.model, case.x))
    assert list(again.state_dict()) == list(conversion.model.state_dict())


@pytest.mark.parametrize("folded", [False, True], ids=["gated", "folded"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_from_pretrained_rebuilds_it(name: str, folded: bool, tmp_path: Path) -> None:
    """A model of transformers comes back without the norms, with its gates or with them folded, and generates."""
    case = CASES[name]
    model = converted(case, drop=True).model
    if folded:
        assert rezero.fold_(model).left == ()
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    assert torch.equal(run(again, case.x), run(model, case.x))
    assert list(again.state_dict()) == list(model.state_dict())
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    assert torch.equal(again.generate(TOKENS, **options), model.generate(TOKENS, use_cache=False, **options))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_hugging_face_init_leaves_it(name: str) -> None:
    """The model's own initialisation passes over norms without parameters."""
    model, inputs = (t5(), SEQUENCES) if name == "t5" else (CASES[name].built(), {"input_ids": TOKENS})
    rezero.convert_(model, (), inputs, norms="remove", drop=True)
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    for parameter in model.parameters():
        vars(parameter).pop("_is_hf_initialized", None)
    model.initialize_weights()
    assert not any(gate.gate_parameter.any() for gate in rezero.gates(model).values())


def test_a_norm_without_parameters_resets() -> None:
    """reset_parameters of a dropped norm does nothing, and that of a removed one that has its own draws them anew."""
    for drop in (False, True):
        model = rezero.convert_(nn.Sequential(PreNorm()), X_BTD, norms="remove", drop=drop).model
        norm = model.get_submodule("0.norm")
        if not drop:
            nn.init.zeros_(norm.weight)
        norm.reset_parameters()
        assert norm.weight is None if drop else torch.equal(norm.weight, torch.ones(D))


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_copies_are_without_them_too(way: str) -> None:
    """A copy of a model without its norms computes the same and has the same keys."""
    model = converted(CASES["encoder"], drop=True).model
    again = copy.deepcopy(model) if way == "copy" else pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(run(again, X_BTD), run(model, X_BTD))
    assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_padded_batch_is_encoded_without_them(frozen: bool) -> None:
    """nn.TransformerEncoder reads its first layer's norms to pack a padded batch; without them it does not pack."""
    conversion = converted(CASES["encoder"], drop=True)
    model = conversion.model.requires_grad_(not frozen)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    with torch.no_grad():
        got = model(X_BTD, src_key_padding_mask=padding)
    assert torch.equal(got, model(X_BTD, src_key_padding_mask=padding))
    torch.testing.assert_close(got[1], model(X_BTD)[1])  # which has no padding


def test_on_the_meta_device_it_takes_no_weights() -> None:
    """A model without numbers loses the same parameters."""
    with torch.device("meta"):
        model = nn.Sequential(Casting(), PreNorm())
    conversion = rezero.convert_(model, X_BTD, norms="remove", drop=True)
    assert (conversion.kept, conversion.recipe.dropped) == (("0.norm",), ("1.norm.weight", "1.norm.bias"))


def test_it_compiles_to_one_graph() -> None:
    """torch.compile takes a model without norms in whole."""
    model = converted(CASES["pre-norm"], drop=True).model
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(X_BTD), model(X_BTD))


def test_t5_keeps_what_its_code_reads() -> None:
    """A conversion of T5, whose code looks at dtypes of weights, drops its norms and still runs in every mode."""
    model = t5().eval()
    conversion = rezero.convert_(model, (), SEQUENCES, norms="remove", drop=True, init_value=0.5)
    assert len(conversion.recipe.dropped) == 2 * 2 + 2 * 3
    assert conversion.kept == ()
    assert model(**SEQUENCES).logits.isfinite().all()


def test_dropping_kept_norms_is_an_error() -> None:
    """drop=True without norms='remove' is a ValueError, and the model is untouched."""
    model = nn.Sequential(PreNorm())
    before = Picture(model)
    with pytest.raises(ValueError, match=r"needs norms='remove', got norms='keep'"):
        rezero.convert_(model, X_BTD, drop=True)
    before.check(model)


def test_a_failure_after_dropping_puts_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the model without the parameters fails its verification, it is the very same again."""

    def fail(*_: Any, **__: Any) -> None:
        raise UsageError("forced")

    model = CASES["encoder"].built()
    before = Picture(model)
    monkeypatch.setattr("rezero.surgery.convert.verify_", fail)
    with pytest.raises(UsageError, match="forced"):
        rezero.convert_(model, X_BTD, norms="remove", drop=True)
    before.check(model)
