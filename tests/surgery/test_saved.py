"""A converted model comes back from its folder, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)

import rezero
from rezero.errors import UsageError
from rezero.surgery.recipe import Recipe

TOKENS = torch.arange(2, 20).view(2, 9)
SMALL = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
MODELS: dict[str, Any] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, **SMALL)
    ),
}
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EYE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28}
RENAMED: dict[str, Any] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=3, num_key_value_heads=2, **TINY)),
    "llava": lambda: LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(patch_size=14, **EYE), text_config=LlamaConfig(**TINY))
    ),
}
OPTIONS: list[dict[str, Any]] = [{}, {"norms": "remove"}, {"share": "layer", "gate": "channel"}, {"gate": "tanh"}]


def converted(model: nn.Module, x: Any, **options: Any) -> Any:
    """Convert a model and open its gates."""
    conversion = rezero.convert_(model, x, verify=False, **options)  # the same, for less
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


@pytest.mark.parametrize("name", RENAMED)
def test_keys_that_transformers_renames_come_back(name: str, tmp_path: Path) -> None:
    """Where save_pretrained writes a model under other keys than it has, its gates among them, it comes back."""
    model = RENAMED[name]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path)
    assert not set(load_file(tmp_path / "model.safetensors")) <= set(model.state_dict())
    again = rezero.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert type(again) is type(model)


@pytest.mark.parametrize("norms", ["keep", "remove"])
def test_a_model_in_shards_comes_back(norms: str, tmp_path: Path) -> None:
    """from_pretrained and load_converted_ read every file that the index names, and no other."""
    model = MODELS["gpt2"]()
    converted(model, TOKENS, norms=norms)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    save_file({"of.no.use": torch.ones(1)}, tmp_path / "another.safetensors")
    with torch.no_grad():
        expected = model(TOKENS).logits
        for again in (rezero.from_pretrained(tmp_path), rezero.load_converted_(MODELS["gpt2"](), tmp_path).eval()):
            assert torch.equal(again(TOKENS).logits, expected)
            assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*is deprecated")
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": torch.float64}, torch.float64),
    ],
    ids=str,
)
def test_a_dtype_is_for_the_weights(options: dict[str, Any], weights: torch.dtype, tmp_path: Path) -> None:
    """from_pretrained loads into the dtype that it is asked for; gates are at least float32, and not rounded."""
    model = MODELS["gpt2"]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path, **options)
    gates = rezero.gates(again)
    ours = {id(gate.gate_parameter) for gate in gates.values()}
    assert {p.dtype for p in again.parameters() if id(p) not in ours} == {weights}
    for name, gate in rezero.gates(model).items():
        assert gates[name].gate_parameter.dtype == torch.promote_types(weights, torch.float32)
        assert torch.equal(gates[name].gate_parameter, gate.gate_parameter.to(gates[name].gate_parameter.dtype))
    assert again(TOKENS).logits.dtype == weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_saved_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """A model that was cast after its conversion comes back in its dtype, bit for bit."""
    model = MODELS["gpt2"]()
    converted(model, TOKENS)
    model.to(dtype).save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    assert {name: p.dtype for name, p in again.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_options_reach_the_model(tmp_path: Path) -> None:
    """What else is given to from_pretrained goes where transformers' own would send it."""
    model = MODELS["gpt2"]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path, attn_implementation="eager", resid_pdrop=0.3, device_map="cpu")
    assert again.config._attn_implementation == "eager"
    assert again.transformer.h[0].attn.resid_dropout.p == 0.3


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_without_norms_comes_back(name: str, tmp_path: Path) -> None:
    """After fold_ the recipe speaks of the removed norms alone, whoever saves it."""
    model = MODELS[name]()
    conversion = converted(model, TOKENS, norms="remove")
    with torch.no_grad():
        gated = model(TOKENS).logits
        assert not rezero.fold_(model).left
        folded = model(TOKENS).logits
        torch.testing.assert_close(folded, gated)
        model.save_pretrained(tmp_path / "pretrained")
        conversion.save(tmp_path / "saved")
        for again in (
            rezero.from_pretrained(tmp_path / "pretrained"),
            rezero.load_converted_(MODELS[name](), tmp_path / "saved").eval(),
        ):
            assert not rezero.gates(again)
            assert torch.equal(again(TOKENS).logits, folded)


def test_a_folded_model_is_the_original_again(tmp_path: Path) -> None:
    """After fold_ nothing is left to rebuild: the configuration is the original's, and so is its loader."""
    model = MODELS["gpt2"]()
    before = model.config.to_json_string()
    conversion = converted(model, TOKENS)
    rezero.fold_(model)
    assert model.config.to_json_string() == before
    model.save_pretrained(tmp_path / "pretrained")
    with pytest.raises(UsageError, match=r"no recipe in config\.json: .* whose gates are folded as the original"):
        rezero.from_pretrained(tmp_path / "pretrained")
    conversion.save(tmp_path / "saved")
    again = rezero.load_converted_(MODELS["gpt2"](), tmp_path / "saved").eval()
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_what_could_not_be_folded_is_still_rebuilt(tmp_path: Path) -> None:
    """The gates that fold_ leaves stay in the recipe."""
    model = RENAMED["mixtral"]()
    converted(model, TOKENS)
    left = [name for name, _ in rezero.fold_(model).left]  # the experts
    assert len(left) == 2
    model.save_pretrained(tmp_path)
    again = rezero.from_pretrained(tmp_path)
    assert list(rezero.gates(again)) == left
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


def test_a_part_of_a_model_is_saved_by_its_conversion(tmp_path: Path) -> None:
    """The whole's save_pretrained does not say that a part was converted; Conversion.save of the part does."""
    model = MODELS["gpt2"]()
    conversion = converted(model.transformer, TOKENS)
    model.eval().save_pretrained(tmp_path / "whole")
    with pytest.raises(UsageError, match=r"found no recipe in config\.json"):
        rezero.from_pretrained(tmp_path / "whole")
    conversion.save(tmp_path / "part")
    again = MODELS["gpt2"]()
    rezero.load_converted_(again.transformer, tmp_path / "part")
    assert torch.equal(again.eval()(TOKENS).logits, model(TOKENS).logits)


def test_models_of_one_configuration_keep_apart(tmp_path: Path) -> None:
    """Models built from one object of a configuration are converted, saved and put back each by itself."""
    config = MODELS["gpt2"]().config
    a, b, plain = (GPT2LMHeadModel(config).eval() for _ in range(3))
    converted(a, TOKENS, gate="tanh")
    conversion = converted(b, TOKENS, norms="remove", share="layer")
    plain.save_pretrained(tmp_path / "plain")
    assert "rezero" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    for name, model in {"a": a, "b": b}.items():
        model.save_pretrained(tmp_path / name)
        assert torch.equal(rezero.from_pretrained(tmp_path / name)(TOKENS).logits, model(TOKENS).logits)
    conversion.undo()
    a.save_pretrained(tmp_path / "again")
    assert torch.equal(rezero.from_pretrained(tmp_path / "again")(TOKENS).logits, a(TOKENS).logits)
    assert all(module.config is config for module in b.modules() if hasattr(module, "config"))
    assert not hasattr(config, "rezero")


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
        ("model.layers.1.self_attn.o_proj.alpha", r"incomplete: it has no .model\.layers\.1\.self_attn\.o_proj\.alpha"),
        ("model.layers.0.mlp.up_proj.weight", r"incomplete: it has no .model\.layers\.0\.mlp\.up_proj\.weight"),
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
def test_a_recipe_survives_json(options: dict[str, Any]) -> None:
    """A recipe that was written as JSON and read again is the same."""
    recipe = converted(stack(), torch.randn(2, 3, 8), **options).recipe
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "here") == recipe


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


def unknown_norm(folder: Path) -> None:
    data = json.loads((folder / "rezero.json").read_text())
    (folder / "rezero.json").write_text(json.dumps({**data, "norms": ["layers.0.norm7"]}))


def gate(**fields: Any) -> Any:
    """Return what writes fields into the recipe's last gate, that of layers.1.linear2."""

    def harm(folder: Path) -> None:
        data = json.loads((folder / "rezero.json").read_text())
        data["gates"][-1].update(fields)
        (folder / "rezero.json").write_text(json.dumps(data))

    return harm


def lists(**fields: Any) -> Any:
    """Return what replaces fields of the recipe."""

    def harm(folder: Path) -> None:
        data = json.loads((folder / "rezero.json").read_text())
        (folder / "rezero.json").write_text(json.dumps({**data, **fields}))

    return harm


WRONG: dict[str, tuple[Any, str]] = {
    "leaf null": (gate(leaf=None), r"rezero\.json holds no recipe of a conversion, or is damaged: .*leaf is None"),
    "shape empty": (gate(shape=[]), r"is damaged: .*shape of a gate with \(\)"),
    "shape text": (gate(shape="ab"), r"is damaged: .*shape is 'ab'"),
    "shape of a matrix": (gate(shape=[2, 3]), r"is damaged: .*shape of a gate with \(2, 3\)"),
    "shape negative": (gate(shape=[-1]), r"is damaged: .*shape of a gate with \(-1,\)"),
    "init_value null": (gate(init_value=None), r"is damaged: .*init_value is None"),
    "parameter empty": (gate(parameter=""), r"is damaged: .*parameter or init_value"),
    "parameter with a dot": (gate(parameter="a.b"), r"is damaged: .*parameter or init_value"),
    "activation unknown": (gate(activation="relu"), r"is damaged: .*activation, parameter or init_value"),
    "owner a list": (gate(owner=["layers"]), r"is damaged: .*owner is \('layers',\)"),
    "branches a bool": (gate(branches=True), r"is damaged: .*branches is True"),
    "gates a dictionary": (lists(gates={"a": 1}), r"holds no recipe of a conversion, or is damaged"),
    "norms a text": (lists(norms="ab"), r"is damaged: .*norms is 'ab'"),
    "parameter taken": (gate(parameter="weight"), r"'layers\.1\.linear2' has a 'weight' of its own here"),
    "parameter missing": (gate(reused=True), r"'layers\.1\.linear2' has no parameter 'alpha' with the shape \(1,\)"),
    "leaf twice": (gate(leaf="layers.1.self_attn.out_proj"), r"there 'layers\.1\.self_attn\.out_proj' has two gates"),
    "owner without a gate": (gate(owner="layers.0.norm1"), r"shares a gate that 'layers\.0\.norm1' has not"),
    "reader itself": (gate(reader="layers.1.linear2"), r"'layers\.1\.linear2' does not read the weights of"),
    "reader of another": (gate(reader="layers.0"), r"'layers\.0' does not read the weights of 'layers\.1\.linear2'"),
    "moved stays": (gate(moved="layers.0.dropout1"), r"there 'layers\.0\.dropout1' is moved, and stays"),
    "moved a layer": (lists(activations=["layers.0.linear1"]), r"'layers\.0\.linear1' is no activation here"),
    "norm a layer": (lists(norms=["layers.0.linear1"]), r"'layers\.0\.linear1' is no norm here"),
    "frozen unknown": (lists(frozen=["layers.0.norm1.gain"]), r"this one has no parameter 'layers\.0\.norm1\.gain'"),
    "dropped unknown": (lists(dropped=["gain"]), r"this one has no 'gain' to drop"),
}


def damage_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def number_in_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}')


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
        (no_weights, r"found no model\.safetensors"),
        (unknown_norm, r"this one has no module 'layers\.0\.norm7'"),
        (damage_index, r"model\.safetensors\.index\.json is damaged"),
        (number_in_index, r"index\.json is damaged: .*5 is no name of a file"),
        (cut, r"model\.safetensors is damaged"),
        (pickle, r"found no model\.safetensors; other kinds are not read"),
        (fewer, r"incomplete: it has no 'layers\.0\.linear2\.alpha'"),
        (other, r"this one has no 'layers\.7\.weight'"),
        (misshapen, r"'layers\.0\.norm1\.weight' is \(8,\) here and \(3,\) there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_missing_or_damaged_is_named_and_the_model_left_alone(harm: Any, message: str, saved: Path) -> None:
    """Each fault gets one line, and the model stays as it was."""
    refuse(harm, message, saved)


@pytest.mark.parametrize(("harm", "message"), WRONG.values(), ids=WRONG)
def test_a_recipe_is_checked_before_anything_is_changed(harm: Any, message: str, saved: Path) -> None:
    """A field of another type, a name that the model has not or a change that makes no sense: each is named."""
    refuse(harm, message, saved)


def refuse(harm: Any, message: str, saved: Path) -> None:
    """Harm a folder, and see that it is refused and the model left as it was."""
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


def test_loading_is_the_last_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever interrupts after the weights are loaded has the converted model, and none without gates or recipe."""
    model, load = stack(), nn.Module.load_state_dict

    def interrupted(*args: Any, **kwargs: Any) -> None:
        load(*args, **kwargs)
        raise KeyboardInterrupt("stop")

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "load_state_dict", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stop"):
            rezero.load_converted_(model, saved)
    again, x = rezero.load_converted_(stack(), saved), torch.randn(2, 3, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))
    assert rezero.fold_(model) == rezero.fold_(again)


def test_a_model_of_another_shape_is_refused_by_its_first_difference(saved: Path) -> None:
    """A deeper recipe names the module that is missing."""
    with pytest.raises(UsageError, match=r"this one has no module 'layers\.1"):
        rezero.load_converted_(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), saved)


def test_a_plain_checkpoint_is_no_converted_model(tmp_path: Path) -> None:
    """from_pretrained of an unconverted model says what it expected."""
    MODELS["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="expected a converted model"):
        rezero.from_pretrained(tmp_path)


def lose(folder: Path) -> None:
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()


def cut_shard(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-10])


def drop(folder: Path) -> None:
    change(folder, "transformer.h.1.mlp.c_proj.alpha", None)


def widen(folder: Path) -> None:
    change(folder, "transformer.h.1.mlp.c_proj.alpha", torch.ones(2))


def add(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["transformer.h.1.beside"] = data["weight_map"]["transformer.wte.weight"]
    index.write_text(json.dumps(data))
    change(folder, "transformer.h.1.beside", torch.ones(2))


def change(folder: Path, key: str, value: torch.Tensor | None) -> None:
    """Put another tensor into its shard, or take it out."""
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][key]
    tensors = {**load_file(file), key: value}
    save_file({name: t for name, t in tensors.items() if t is not None}, file, {"format": "pt"})


def retype(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    data["rezero"]["gates"][0]["init_value"] = None
    (folder / "config.json").write_text(json.dumps(data))


def rename(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    data["rezero"]["gates"][0]["parameter"] = "bias"
    (folder / "config.json").write_text(json.dumps(data))


def another_kind(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "architectures": ["MyOwnModel"]}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose, r"found no model-00001-of-00005\.safetensors"),
        (cut_shard, r"model-00005-of-00005\.safetensors is damaged"),
        (drop, r"is incomplete: it has no 'transformer\.h\.1\.mlp\.c_proj\.alpha'"),
        (widen, r"'transformer\.h\.1\.mlp\.c_proj\.alpha' is \(1,\) here and has another shape there"),
        (add, r"this one has no 'transformer\.h\.1\.beside'"),
        (retype, r"config\.json holds no recipe of a conversion, or is damaged: .*init_value is None"),
        (rename, r"'transformer\.h\.0\.attn\.c_proj' has a 'bias' of its own here"),
        (another_kind, r"names no architecture of transformers: build the model yourself"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_from_pretrained_says_what_is_wrong_with_a_folder(harm: Any, message: str, tmp_path: Path) -> None:
    """A shard that is not there or damaged, a gate that is not there or another's: each is named."""
    model = MODELS["gpt2"]()
    converted(model, TOKENS)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    harm(tmp_path)
    with pytest.raises(UsageError, match=message):
        rezero.from_pretrained(tmp_path)


class Remembers(nn.Linear):
    """A layer with a state that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"of": "some kind"}

    def set_extra_state(self, state: Any) -> None:
        pass


class Small(nn.Module):
    """One branch, of some kind of layer and dtype."""

    def __init__(self, f: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("extra", torch.ones(2, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


def test_only_a_converted_model_is_saved(tmp_path: Path) -> None:
    """save_converted writes what is converted, one that was loaded too, and nothing else."""
    model, x = stack(), torch.randn(2, 3, 8)
    with pytest.raises(UsageError, match=r"expected a model that rezero\.convert_ or rezero\.load_converted_ has"):
        rezero.save_converted(model, tmp_path / "first")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        rezero.save_converted(None, tmp_path / "first")  # type: ignore[arg-type]
    converted(model, x).save(tmp_path / "first")
    loaded = rezero.load_converted_(stack(), tmp_path / "first").eval()
    rezero.save_converted(loaded, tmp_path / "second")
    assert torch.equal(rezero.load_converted_(stack(), tmp_path / "second").eval()(x), model(x))
    assert sorted(file.name for file in (tmp_path / "second").iterdir()) == ["model.safetensors", "rezero.json"]


@pytest.mark.parametrize(
    ("layer", "dtype", "message"),
    [
        (
            Remembers(8, 8),
            torch.float32,
            r"'f\._extra_state' is no tensor, and a file of safetensors holds nothing else",
        ),
        (nn.Linear(8, 8), torch.complex128, r"the model can't be written to .*complex128"),
    ],
)
def test_what_a_file_cannot_hold_is_named(layer: nn.Module, dtype: torch.dtype, message: str, tmp_path: Path) -> None:
    """Something that safetensors can't hold is an error, and what was saved before stays."""
    x = torch.randn(2, 3, 8)
    converted(Small(nn.Linear(8, 8)), x).save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    conversion = converted(Small(layer, dtype), x)
    with pytest.raises(UsageError, match=message):
        conversion.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_is_no_folder_to_save_in(tmp_path: Path) -> None:
    """A path that is a file, or under one, is an error, and the file stays."""
    file = tmp_path / "file"
    file.write_text("of mine")
    conversion = converted(stack(), torch.randn(2, 3, 8))
    with pytest.raises(UsageError, match=r"expected a folder to save in, or a path that is free, got a file: .*file"):
        conversion.save(file)
    with pytest.raises(UsageError, match=r"the model can't be written to .*file"):
        conversion.save(file / "under")
    assert file.read_text() == "of mine"


@pytest.mark.parametrize("end", ["model.safetensors", "rezero.json"])
def test_an_interrupted_save_leaves_no_mixture(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stops, a folder holds the old model, the new one or, for a moment, none: never parts of two."""
    x = torch.randn(2, 3, 8)
    converted(stack(), x, gate="tanh").save(tmp_path)
    conversion = converted(stack(), x)
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == end:
            raise KeyboardInterrupt("here")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt, match="here"):
        conversion.save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="expected a converted model in"):
        rezero.load_converted_(stack(), tmp_path)
    conversion.save(tmp_path)
    assert torch.equal(rezero.load_converted_(stack(), tmp_path).eval()(x), conversion.model(x))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.safetensors", "rezero.json"]


def test_a_folder_of_shards_is_replaced(tmp_path: Path) -> None:
    """Saved where shards were, a model is not mistaken for what they hold."""
    model = MODELS["gpt2"]()
    conversion = converted(model, TOKENS)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    for gate in rezero.gates(model).values():
        nn.init.constant_(gate.gate_parameter, 0.25)
    conversion.save(tmp_path)
    again = rezero.load_converted_(MODELS["gpt2"](), tmp_path).eval()
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("path", ["openai-community/gpt2", __file__], ids=["hub", "file"])
def test_only_a_folder_is_loaded(path: str) -> None:
    """The name of a model on the hub is an error that says how to get it."""
    with pytest.raises(UsageError, match=r"is no folder on this machine: .* huggingface_hub\.snapshot_download"):
        rezero.from_pretrained(path)
    with pytest.raises(UsageError, match="is no folder on this machine"):
        rezero.load_converted_(MODELS["gpt2"](), path)
