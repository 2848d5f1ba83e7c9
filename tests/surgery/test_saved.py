"""A converted model comes back from its folder, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import rezero
from rezero.errors import UsageError

TOKENS = torch.arange(2, 20).view(2, 9)
SMALL = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **SMALL)
    ),
}
OPTIONS: list[dict[str, Any]] = [{}, {"norms": "remove"}, {"share": "layer", "gate": "channel"}, {"gate": "tanh"}]


def converted(model: nn.Module, x: Any, **options: Any) -> Any:
    """Convert a model and open its gates."""
    conversion = rezero.convert_(model, x, **options)
    for gate in rezero.gates(model).values():
        nn.init.uniform_(gate.gate_parameter, 0.2, 1.2)
    model.eval()
    return conversion


def stack() -> nn.Module:
    """Return a small model of torch.nn."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_from_pretrained_rebuilds_a_model_of_transformers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """What save_pretrained wrote comes back with the same logits, gates and classes."""
    torch.manual_seed(0)
    model = MODELS[name]()
    converted(model, TOKENS, **options)
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert list(again.state_dict()) == list(model.state_dict())
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]


def test_it_generates_the_same_tokens_with_a_cache(tmp_path: Path) -> None:
    """A rebuilt model continues a text as the saved one did, with its cache and without."""
    model = MODELS["llama"]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    expected = model.generate(TOKENS, **options)
    assert torch.equal(again.generate(TOKENS, **options), expected)
    assert torch.equal(again.generate(TOKENS, use_cache=False, **options), expected)


@pytest.mark.parametrize("norms", ["keep", "remove"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_of_transformers_comes_back(name: str, norms: Any, tmp_path: Path) -> None:
    """Folded, a model is plain transformers again where its norms are kept, and rebuilt where they were removed."""
    model = MODELS[name]()
    converted(model, TOKENS, norms=norms)
    assert rezero.fold_(model).left == ()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval() if norms == "keep" else rezero.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert hasattr(again.config, "rezero") == (norms == "remove")


@pytest.mark.parametrize("norms", ["keep", "remove"])
def test_a_folded_model_is_saved_as_it_is_now(norms: Any, tmp_path: Path) -> None:
    """Conversion.save after fold_ writes the weights without gates, and what else was changed."""
    model, x = stack(), torch.randn(2, 3, 8)
    conversion = converted(model, x, norms=norms)
    rezero.fold_(model)
    conversion.save(tmp_path)
    again = rezero.load_converted_(stack(), tmp_path).eval()
    assert torch.equal(again(x), model(x))
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]


def test_a_model_whose_checkpoint_has_other_names_comes_back(tmp_path: Path) -> None:
    """transformers writes DINOv2's attention under the names of older versions; it is rebuilt all the same."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model, x = Dinov2Model(Dinov2Config(image_size=32, patch_size=16, **sizes)), torch.randn(2, 3, 32, 32)
    converted(model, x)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) != set(model.state_dict())
    again = rezero.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)


def test_a_model_of_half_precision_comes_back_with_precise_gates(tmp_path: Path) -> None:
    """dtype reaches transformers, and the gates stay float32."""
    model = MODELS["llama"]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.lm_head.weight.dtype == torch.bfloat16
    for gate, known in zip(rezero.gates(again).values(), rezero.gates(model).values(), strict=True):
        assert torch.equal(gate.gate_parameter, known.gate_parameter)


def test_removed_norms_come_back_frozen(tmp_path: Path) -> None:
    """What does not learn in the saved model does not learn in the rebuilt one."""
    model = MODELS["llama"]()
    converted(model, TOKENS, norms="remove")
    model.save_pretrained(tmp_path)
    learns = {name for name, p in rezero.from_pretrained(tmp_path).named_parameters() if p.requires_grad}
    assert learns == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.self_attn.o_proj.alpha", "missing_keys: model.layers.1.self_attn.o_proj.alpha"),
        ("model.layers.0.mlp.up_proj.weight", "missing_keys: model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_an_incomplete_model_of_transformers_is_refused(name: str, message: str, tmp_path: Path) -> None:
    """A gate or a weight that the file lacks is named."""
    converted(MODELS["llama"](), TOKENS).model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=message):
        rezero.from_pretrained(tmp_path)


def test_undo_takes_the_recipe_out_of_the_configuration() -> None:
    """After undo() the configuration is the original's."""
    model = MODELS["gpt2"]()
    before = model.config.to_json_string()
    conversion = converted(model, TOKENS)
    assert "rezero" in json.loads(model.config.to_json_string())
    conversion.undo()
    assert model.config.to_json_string() == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_load_converted_rebuilds_any_model(options: dict[str, Any], tmp_path: Path) -> None:
    """What Conversion.save wrote makes a new model of the same class the same model."""
    model, x = stack(), torch.randn(2, 3, 8)
    converted(model, x, **options).save(tmp_path)
    again = rezero.load_converted_(stack(), tmp_path).eval()
    assert torch.equal(again(x), model(x))


def test_a_model_on_the_meta_device_is_filled(tmp_path: Path) -> None:
    """Loading needs no weights to begin with."""
    model, x = stack(), torch.randn(2, 3, 8)
    converted(model, x).save(tmp_path)
    with torch.device("meta"):
        empty = stack()
    again = rezero.load_converted_(empty, tmp_path).eval()
    assert torch.equal(again(x), model(x))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return the folder of a converted model."""
    converted(stack(), torch.randn(2, 3, 8)).save(tmp_path)
    return tmp_path


def damage_recipe(folder: Path) -> None:
    (folder / "rezero.json").write_text("{")


def empty_recipe(folder: Path) -> None:
    (folder / "rezero.json").write_text("[]")


def newer(folder: Path) -> None:
    data = json.loads((folder / "rezero.json").read_text())
    (folder / "rezero.json").write_text(json.dumps({**data, "version": 99}))


def no_recipe(folder: Path) -> None:
    (folder / "rezero.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def fewer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("layers.0.linear2.alpha")
    save_file(tensors, folder / "model.safetensors")


def other(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "layers.7.weight": torch.ones(1)}, folder / "model.safetensors")


def misshapen(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "layers.0.norm1.weight": torch.ones(3)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_recipe, r"rezero\.json is damaged"),
        (empty_recipe, r"rezero\.json holds no recipe"),
        (newer, r"newer version of rezero: update it"),
        (no_recipe, r"found no recipe in rezero\.json or config\.json"),
        (no_weights, r"found no \.safetensors file"),
        (cut, r"model\.safetensors is damaged"),
        (pickle, r"found no \.safetensors file; other kinds are not read"),
        (fewer, r"incomplete: it has no 'layers\.0\.linear2\.alpha'"),
        (other, r"this one has no 'layers\.7\.weight'"),
        (misshapen, r"'layers\.0\.norm1\.weight' is \(8,\) here and \(3,\) there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_missing_or_damaged_is_named_and_the_model_left_alone(harm: Any, message: str, saved: Path) -> None:
    """Each fault gets one line, and the model stays as it was."""
    harm(saved)
    model = stack()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UsageError, match=message):
        rezero.load_converted_(model, saved)
    assert [type(module) for module in model.modules()] == classes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_model_of_another_shape_is_refused_by_its_first_difference(saved: Path) -> None:
    """A deeper recipe names the module that is missing."""
    with pytest.raises(UsageError, match=r"this one has no module 'layers\.1"):
        rezero.load_converted_(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), saved)


def test_a_plain_checkpoint_is_no_converted_model(tmp_path: Path) -> None:
    """from_pretrained of an unconverted model says what it expected."""
    MODELS["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="expected a converted model"):
        rezero.from_pretrained(tmp_path)
