"""Blocks put into a trained model: from exactly where it stands, and out again."""

import copy
import json
import math
import os
import pickle
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rezero
from rezero.errors import UsageError
from rezero.layers import GatedCrossAttention
from rezero.surgery.layer_lists import find_layers

WIDTH, MEDIA = 8, 6


class Layer(nn.Module):
    """A layer that returns a tuple, and counts its calls."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        """Return the hidden states and a word."""
        return hidden + scale * self.linear(self.norm(hidden)), "second"


class Model(nn.Module):
    """Four layers."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.head = nn.Linear(WIDTH, 3)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, *, by_name: bool = False) -> Tensor:
        """Run the layers, each given the hidden states by place or by name."""
        for layer in self.layers:
            if self.checkpointed:
                x = checkpoint(layer, x, use_reentrant=False)[0]
            else:
                x = layer(hidden=x)[0] if by_name else layer(x)[0]
        y: Tensor = self.head(x)
        return y


class Look(nn.Module):
    """A block of one's own that attends to a context."""

    def __init__(self, width: int, context_dim: int = MEDIA) -> None:
        super().__init__()
        self.context_dim = context_dim
        self.query, self.key, self.value = nn.Linear(width, 4), nn.Linear(context_dim, 4), nn.Linear(context_dim, width)
        self.gate = rezero.Gate()

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return what can be computed once."""
        return self.key(context), self.value(context)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None, *, kept: Any = None) -> Tensor:
        """Add what was found in the context."""
        key, value = self.keys_values(context) if kept is None else kept
        scores = self.query(x) @ key.mT
        if mask is not None:
            scores = scores.masked_fill(~(mask if mask.ndim == 3 else mask[:, None]), -1e9)
        return rezero.functional.gated_residual(x, scores.softmax(-1) @ value, self.gate.scale)


class Counting(Look):
    """Counts how often it computes keys and values."""

    computed = 0

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Count."""
        self.computed += 1
        return super().keys_values(context)


def adapter(width: int) -> nn.Module:
    """Make a block without a context."""
    return rezero.ReZero(nn.Sequential(nn.Linear(width, 4), nn.GELU(), nn.Linear(4, width)))


def opened(graft: rezero.Graft) -> rezero.Graft:
    """Open every gate."""
    for gate in rezero.gates(graft.model).values():
        nn.init.constant_(gate.gate_parameter, 0.5)
    return graft


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    """The input, ``(2, 5, 8)``."""
    return torch.randn(2, 5, WIDTH)


@pytest.fixture
def media() -> Tensor:
    """The context, ``(2, 3, 6)``."""
    return torch.randn(2, 3, MEDIA)


@pytest.mark.parametrize("position", ["before", "after", "parallel"])
@pytest.mark.parametrize("by_name", [False, True], ids=["by place", "by name"])
def test_a_graft_starts_from_the_base_model_bitwise(position: Any, x: Tensor, media: Tensor, *, by_name: bool) -> None:
    """At every position the output equals the base model's, and no key of the base model has changed."""
    model = Model()
    expected, keys = model(x, by_name=by_name), list(model.state_dict())
    graft = rezero.graft_(model, Look, every=2, position=position)
    with graft.condition(media):
        assert torch.equal(model(x, by_name=by_name), expected)
    assert graft.sites == ("layers.1", "layers.3")
    assert [key for key in model.state_dict() if ".graft." not in key] == keys


@pytest.mark.parametrize("position", ["before", "after", "parallel"])
def test_an_open_block_does_what_its_position_says(position: Any, x: Tensor) -> None:
    """With open gates the model equals one whose loop calls the blocks by hand."""
    model = Model()
    graft = opened(rezero.graft_(model, adapter, position=position))
    blocks, layers = list(graft.blocks.values()), [copy.deepcopy(layer) for layer in Model().layers]
    for layer, own in zip(layers, model.layers, strict=True):
        layer.load_state_dict({key: value for key, value in own.state_dict().items() if "graft" not in key})
    hidden = x
    for block, layer in zip(blocks, layers, strict=True):
        if position == "before":
            hidden = layer(block(hidden))[0]
        elif position == "after":
            hidden = block(layer(hidden)[0])
        else:
            hidden = layer(hidden)[0] + (block(hidden) - hidden)
    assert torch.equal(model(x), model.head(hidden))


def test_training_moves_the_gates_and_nothing_of_the_base(x: Tensor, media: Tensor) -> None:
    """After steps of an optimizer that has all parameters, the base is untouched bitwise and every gate has moved."""
    model = Model()
    before = copy.deepcopy(model.state_dict())
    graft = rezero.graft_(model, Look)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    assert {id(p) for p in graft.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}
    for _ in range(5):
        with graft.condition(media):
            model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert all(gate.gate_parameter.item() for gate in rezero.gates(model).values())


def test_disable_and_remove_give_the_base_model_back(x: Tensor, media: Tensor) -> None:
    """Bitwise, whatever the blocks have learned; keys, classes and what learns are the base model's again."""
    model = Model()
    model.head.weight.requires_grad_(False)
    expected, keys = model(x), list(model.state_dict())
    learns = [parameter.requires_grad for parameter in model.parameters()]
    graft = opened(rezero.graft_(model, Look))
    with graft.condition(media):
        assert not torch.equal(model(x), expected)
        with graft.disable():
            assert torch.equal(model(x), expected)
    with graft.disable():
        assert torch.equal(model(x), expected)
    graft.remove()
    graft.remove()
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == keys
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert {type(layer) for layer in model.layers} == {Layer}


def test_a_graft_is_saved_and_loaded(x: Tensor, media: Tensor, tmp_path: Path) -> None:
    """Only the new tensors are written; another copy of the base model gives the same output with them."""
    model = Model()
    base = copy.deepcopy(model)
    graft = opened(rezero.graft_(model, Look, every=2, position="after"))
    size = graft.save(tmp_path)
    tensors = sum(4 * parameter.numel() for parameter in graft.parameters())
    recipe = (tmp_path / "graft.json").stat().st_size
    assert tensors < size < tensors + 3 * recipe
    assert size == (tmp_path / "graft.safetensors").stat().st_size
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~_umask()}
    loaded = rezero.load_graft_(base, tmp_path, block=Look)
    with graft.condition(media), loaded.condition(media):
        assert torch.equal(model(x), base(x))
    assert (loaded.sites, loaded.position) == (graft.sites, "after")


def test_keys_and_values_are_computed_once(x: Tensor, media: Tensor) -> None:
    """Without gradients once a condition, and anew when the weights change; in training always."""
    model = Model()
    graft = opened(rezero.graft_(model, Counting, at="layers.0"))
    block: Any
    (block,) = graft.blocks.values()
    with graft.condition(media):
        with torch.no_grad():
            first = model(x)
            assert torch.equal(model(x), first)
            assert block.computed == 1
            block.value.weight.mul_(2)
            assert not torch.equal(model(x), first)
            assert block.computed == 2
        model(x)
        assert block.computed == 3


def test_rows_are_repeated_as_beam_search_does(x: Tensor, media: Tensor) -> None:
    """A batch of three times the rows sees the context of each row three times, with its mask."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    mask = torch.tensor([[True, False, True], [True, True, False]])
    with torch.no_grad(), graft.condition(media, mask):
        once, thrice = model(x), model(x.repeat_interleave(3, 0))
        again = model(x.repeat_interleave(3, 0))
    torch.testing.assert_close(thrice, once.repeat_interleave(3, 0))
    assert torch.equal(thrice, again)


def test_every_thread_has_its_own_condition(x: Tensor) -> None:
    """Threads that run one model at once with different contexts get what each gets alone."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    contexts = [torch.randn(2, 3, MEDIA) for _ in range(4)]

    def run(context: Tensor) -> Tensor:
        with torch.no_grad(), graft.condition(context):
            return model(x)

    expected = [run(context) for context in contexts]
    got: dict[int, bool] = {}
    barrier = threading.Barrier(len(contexts))

    def work(index: int) -> None:
        barrier.wait()
        got[index] = all(torch.equal(run(contexts[index]), expected[index]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(contexts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == dict.fromkeys(range(4), True)


def test_a_context_for_good_serves_every_thread(x: Tensor, media: Tensor) -> None:
    """It is overruled by a condition, and gone when it is taken away."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    graft.set_context(media)
    outputs: list[Tensor] = []
    thread = threading.Thread(target=lambda: outputs.append(model(x)))
    thread.start()
    thread.join()
    assert torch.equal(outputs[0], model(x))
    with graft.condition(2 * media):
        assert not torch.equal(outputs[0], model(x))
    graft.set_context(None)
    with pytest.raises(UsageError, match=r"has nothing to attend to: call the model inside `with graft.condition"):
        model(x)


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_checkpointed_layers_run_again_with_the_same_context(x: Tensor, media: Tensor, *, inside: bool) -> None:
    """The gradients equal those without checkpointing when backward runs within the condition; else it is an error."""
    plain, model = Model(), Model(checkpointed=True)
    model.load_state_dict(plain.state_dict())
    gradients = []
    for each in (plain, model):
        torch.manual_seed(1)
        graft = opened(rezero.graft_(each, Look))
        with graft.condition(media):
            loss = each(x).square().mean()
            if inside or each is plain:
                loss.backward()
        if not (inside or each is plain):
            with pytest.raises(UsageError, match="has nothing to attend to"):
                loss.backward()
            return
        gradients.append([parameter.grad for parameter in graft.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_compiled_model_follows_the_condition(x: Tensor, media: Tensor) -> None:
    """One graph, compiled once for all contexts of a shape, and equal to the model."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    graphs = 0

    def count(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    compiled = torch.compile(model, fullgraph=True, backend=count)
    for context in (media, 2 * media, 3 * media):
        with graft.condition(context):
            torch.testing.assert_close(compiled(x), model(x))
    assert graphs == 1


def test_a_copy_and_a_pickle_keep_the_blocks(x: Tensor, media: Tensor) -> None:
    """A copy is conditioned with the original; a pickled graft conditions the model that it is pickled with."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    twin = copy.deepcopy(model)
    again = pickle.loads(pickle.dumps(graft))  # noqa: S301 - our own
    with graft.condition(media), again.condition(media):
        assert torch.equal(twin(x), model(x))
        assert torch.equal(again.model(x), model(x))


def test_the_rows_of_a_mask_follow_the_cache() -> None:
    """A call behind the end of the mask takes its last row, a call with a cache the rows of its own positions."""
    from rezero.surgery.grafted import _rows_of_mask

    mask = torch.arange(2 * 4 * 3).view(2, 4, 3) % 2 == 0
    assert _rows_of_mask(mask, 4, None) is mask
    assert torch.equal(_rows_of_mask(mask, 2, 1), mask[:, 1:3])
    assert torch.equal(_rows_of_mask(mask, 2, 3), mask[:, [3, 3]])
    assert torch.equal(_rows_of_mask(mask, 6, 0), mask[:, [0, 1, 2, 3, 3, 3]])
    assert _rows_of_mask(mask[:, 0], 1, 7) is not None
    with torch.no_grad():  # written without a cache, and by a model that keeps no positions
        assert torch.equal(_rows_of_mask(mask, 6, None), mask[:, [0, 1, 2, 3, 3, 3]])
        assert torch.equal(_rows_of_mask(mask, 1, None), mask[:, [3]])
    for length in (1, 2, 6):
        with pytest.raises(UsageError, match=f"the mask has rows for 4 positions, and the input has {length}"):
            _rows_of_mask(mask, length, None)


@pytest.mark.parametrize("position", ["before", "after", "parallel"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_linear_block_merges_into_a_linear_layer(position: Any, x: Tensor, *, bias: bool) -> None:
    """The output stays to rounding, and neither keys nor classes tell of the block."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=bias), nn.Tanh()).double()
    keys = set(model.state_dict())
    graft = opened(
        rezero.graft_(model, lambda width: rezero.ReZero(nn.Linear(width, width)), "0", position=position, width=WIDTH)
    )
    expected = model(x.double())
    graft.merge()
    torch.testing.assert_close(model(x.double()), expected)
    assert set(model.state_dict()) == keys | {"0.bias"}
    assert type(model[0]) is nn.Linear


def test_what_is_not_linear_does_not_merge() -> None:
    """An error names the part or the layer, and the block stays."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    graft = rezero.graft_(model, adapter, "0", width=WIDTH)
    with pytest.raises(UsageError, match="the block at '0' is not linear because of GELU"):
        graft.merge()
    assert graft.blocks
    layers = Model()
    whole = rezero.graft_(layers, lambda width: rezero.ReZero(nn.Linear(width, width)))
    with pytest.raises(UsageError, match=r"'layers.0' is a Layer, and only an nn.Linear can take a block in"):
        whole.merge()


def test_the_longest_list_is_found() -> None:
    """Lists inside a block, as of experts, do not count, nor do stages of different widths."""
    model: Any = Model()
    for layer in model.layers:
        layer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    model.stages = nn.Sequential(*(nn.Sequential(nn.Linear(size, size)) for size in range(1, 8)))
    assert find_layers(model) == [f"layers.{index}" for index in range(4)]


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Model(), Model()


class _Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, 'found no list of layers: .* name the places with at=, such as at="encoder.layers'),
        (_Odd(), {}, r"several lists have 4 equal blocks, name one with at=: 'first.layers.\*' \(4 Layer\), 'second"),
        (Model(), {"at": "layer.*"}, r"at='layer.\*' names no module .*did you mean 'layers.*lists of layers are 'lay"),
        (Model(), {"at": "*.linear"}, r"at='\*.linear' names no module: .* write 'layers.\*.linear'"),
        (Model(), {"every": 5}, "every must be at most 4, the number of layers found: got 5"),
        (Model(), {"every": 0}, "every must be a whole number from 1: got 0"),
        (Model(), {"position": "behind"}, "position must be one of before, after, parallel: got 'behind'"),
        (Model(), {"width": 0}, "width must be a whole number from 1, or None to read it: got 0"),
        (Model(), {"at": "layers"}, r"'layers' \(ModuleList\) is a container"),
        (_Flat(), {}, r"the width of 'blocks.0' \(Linear\) can't be read.*give width=, or example="),
        (Model(), {"example": torch.randn(2, 5, 7)}, "the model fails on the example: .*normalized_shape"),
    ],
    ids=[
        "no list",
        "two lists",
        "no match",
        "deeper",
        "every",
        "zero",
        "position",
        "width",
        "list",
        "no width",
        "example",
    ],
)
def test_bad_requests_leave_the_model_as_it_was(model: nn.Module, options: dict[str, Any], message: str) -> None:
    """One clear error each; keys, classes and what learns stay."""
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(UsageError, match=message):
        rezero.graft_(model, adapter, **options)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_block_that_is_no_identity_is_told_by_an_example(x: Tensor) -> None:
    """The output is compared with the base model's, and the model is put back."""
    model = Model()
    expected = model(x)
    with pytest.raises(UsageError, match="the output with the blocks differs from the base model's"):
        rezero.graft_(model, lambda width: nn.Linear(width, width), example=x)
    assert torch.equal(model(x), expected)
    assert not any("graft" in key for key in model.state_dict())


def test_factories_are_checked() -> None:
    """A module instead of a factory, no module from it, and one module for all layers are refused."""
    with pytest.raises(TypeError, match=r"block must make the block of a layer from its width.* got ReZero"):
        rezero.graft_(Model(), adapter(8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"block must make an nn.Module, got str for a width of 8"):
        rezero.graft_(Model(), lambda _: "block")  # type: ignore[arg-type, return-value]
    one = adapter(8)
    with pytest.raises(UsageError, match="block must make a new module at each call"):
        rezero.graft_(Model(), lambda _: one)


def test_a_layer_takes_one_block() -> None:
    """A second graft at one place is refused, elsewhere it is not."""
    model = Model()
    graft = rezero.graft_(model, adapter, at="layers.1")
    with pytest.raises(UsageError, match=r"'layers.1' \(GraftedLayer\) has a block already: call remove\(\)"):
        rezero.graft_(model, adapter, at="layers.1")
    rezero.graft_(model, adapter, at="layers.2")
    with pytest.raises(UsageError, match=r"'layers.1' \(GraftedLayer\) has a block already"):
        rezero.graft_(model, adapter, every=2)
    graft.remove()
    rezero.graft_(model, adapter, at="layers.1")


def test_nothing_can_be_attended_to(x: Tensor, media: Tensor) -> None:
    """Attention adds exactly zero, as to a row that may see nothing; the feed-forward of an open block stays."""
    for block, same in ((partial(GatedCrossAttention, num_heads=2, ff_mult=0), True), (GatedCrossAttention, False)):
        model = Model()
        before = model(x)
        options = {} if same else {"num_heads": 2}
        graft = opened(rezero.graft_(model, lambda width: block(width, MEDIA, **options)))  # noqa: B023
        with graft.condition(media, torch.zeros(2, 3, dtype=torch.bool)):
            blind = model(x)
        with graft.condition(media), graft.condition(None):
            assert torch.equal(model(x), blind)
            assert torch.equal(model(x[:1]), blind[:1])
            with torch.no_grad(), graft.condition(media):
                assert not torch.equal(model(x), blind)
            with torch.no_grad():
                assert torch.equal(model(x), blind)
        assert torch.equal(blind, before) == same
    with pytest.raises(UsageError, match="a mask without a context says nothing"):
        graft.condition(None, torch.ones(2, 3, dtype=torch.bool))


def test_a_block_that_does_not_tell_its_width_can_not_be_given_nothing(x: Tensor) -> None:
    """It is named, with what to do."""
    model = Model()
    graft = rezero.graft_(model, Look, at="layers.2")
    del graft.blocks["layers.2"].context_dim
    with (
        graft.condition(None),
        pytest.raises(UsageError, match=r"'layers.2' can't be given nothing: it has no attribute"),
    ):
        model(x)


def test_it_is_shown_in_a_few_words() -> None:
    """Not the whole model."""
    graft = rezero.graft_(Model(), adapter)
    assert len(repr(graft)) < 300
    assert str(graft) in repr(graft).encode().decode("unicode_escape")


def test_contexts_are_checked() -> None:
    """A context that is no tensor, and one for blocks that take none, are refused."""
    with pytest.raises(TypeError, match="the context must be a tensor: got list"):
        rezero.graft_(Model(), Look).condition([1.0])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="none of the blocks takes a context"):
        rezero.graft_(Model(), adapter).condition(torch.ones(1, 1, MEDIA))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cut(folder: Path) -> None:
    file = folder / "graft.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def _pickled(folder: Path) -> None:
    torch.save({"layers.0.graft.x": torch.ones(1)}, folder / "graft.safetensors")


def _gone(folder: Path) -> None:
    (folder / "graft.safetensors").unlink()


def _rewrite(folder: Path, text: str | None) -> None:
    file = folder / "graft.safetensors"
    save_file(load_file(file), file, None if text is None else {"rezero": text})


def _recipe(change: Any) -> Any:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "graft.json").read_text())
        change(data)
        _rewrite(folder, json.dumps(data))

    return edit


def _first(**changes: Any) -> Any:
    return _recipe(lambda data: next(iter(data["blocks"].values())).update(changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "graft.safetensors is damaged, or no file of safetensors"),
        (_pickled, "graft.safetensors is damaged, or no file of safetensors"),
        (_gone, "expected a graft in .*, found no graft.safetensors: save one with Graft.save"),
        (lambda folder: _rewrite(folder, None), "holds tensors and no graft: save one with Graft.save"),
        (lambda folder: _rewrite(folder, "[" * 100_000), "graft.safetensors is damaged: RecursionError"),
        (_recipe(lambda data: data.update(version=9)), "was written by a newer version of rezero: update it"),
        (_recipe(lambda data: data.update(version="x")), "graft.safetensors is damaged: ValueError"),
        (_recipe(lambda data: data.pop("base")), "graft.safetensors is damaged: KeyError"),
        (_recipe(lambda data: data.update(position="behind")), "graft.safetensors is damaged: ValueError"),
        (_first(width=math.inf), "graft.safetensors is damaged: OverflowError"),
        (_first(width=-8), "graft.safetensors is damaged: ValueError"),
        (_first(**{"class": "GatedAdapter", "arguments": {"dim": "8"}}), "damaged at 'layers.0', or of a newer rezero"),
        (_recipe(lambda data: data["base"].update({"head.weight": [4, 8]})), r"'head.weight' is \(3, 8\) here and"),
        (_recipe(lambda data: data["base"].pop("head.bias")), "that one has no 'head.bias'"),
        (_recipe(lambda data: data["base"].update({"tail": [4]})), "this one has no 'tail'"),
        (_recipe(lambda data: data["blocks"].update({"layers.9": {"width": 8, "class": None}})), "no 'layers.9'"),
        (_recipe(lambda data: data["blocks"].popitem()), "there is a 'layers.3.graft.*which no block here has"),
    ],
    ids=[
        "cut",
        "pickle",
        "no tensors",
        "no recipe",
        "deep",
        "newer",
        "no version",
        "key",
        "position",
        "infinite",
        "negative",
        "arguments",
        "shape",
        "more",
        "less",
        "no layer",
        "block",
    ],
)
def test_a_damaged_or_foreign_graft_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    """With the first difference, and the model stays as it was."""
    rezero.graft_(Model(), adapter).save(tmp_path)
    damage(tmp_path)
    model = Model()
    keys = list(model.state_dict())
    with pytest.raises(UsageError, match=message):
        rezero.load_graft_(
            model, tmp_path, block=None if "arguments" in message or "newer rezero" in message else adapter
        )
    assert list(model.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_block_of_ones_own_needs_its_factory(tmp_path: Path) -> None:
    """Its class is not in the file, and a factory of other blocks is refused."""
    rezero.graft_(Model(), adapter).save(tmp_path)
    with pytest.raises(UsageError, match=r"the block at 'layers.0' is of a class of your own: give what makes it"):
        rezero.load_graft_(Model(), tmp_path)
    with pytest.raises(UsageError, match=r"there is no 'layers.0.graft.branch.weight'"):
        rezero.load_graft_(Model(), tmp_path, block=lambda width: rezero.ReZero(nn.Linear(width, width)))


def test_an_earlier_graft_is_kept_when_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder holds the one that was there, whole."""
    model = Model()
    rezero.graft_(model, adapter).save(tmp_path)
    other = Model()
    graft = opened(rezero.graft_(other, adapter))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rezero.surgery.graft_file.save_file", full)
    with pytest.raises(UsageError, match=r"the graft can't be written to .*No space left"):
        graft.save(tmp_path)
    loaded = rezero.load_graft_(Model(), tmp_path, block=adapter)
    assert all(gate.gate_parameter.item() == 0 for gate in rezero.gates(loaded.model).values())


def test_a_resampler_learns_whatever_ran_before_without_gradients(x: Tensor) -> None:
    """A context of one row serves all rows, with its gradient, also after a call that needed none."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    context = torch.randn(1, 3, MEDIA, requires_grad=True)
    with graft.condition(context):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                model(x)
        model(x).sum().backward()
    assert context.grad is not None
    assert context.grad.any()


def test_rows_are_not_repeated_in_training(media: Tensor) -> None:
    """Where gradients are on, a context of fewer rows is an error that says so."""
    model = Model()
    graft = rezero.graft_(model, Look)
    with graft.condition(media), pytest.raises(UsageError, match="the context has 2 rows and the batch 4: give a row"):
        model(torch.randn(4, 5, WIDTH))
    with (
        graft.condition(media),
        torch.no_grad(),
        pytest.raises(UsageError, match="the context has 2 rows and the batch 3"),
    ):
        model(torch.randn(3, 5, WIDTH))


def test_what_is_kept_follows_the_context_and_autocast(x: Tensor, media: Tensor) -> None:
    """A context that is changed in place, another precision and weights put in anew are seen."""
    model = Model()
    graft = opened(rezero.graft_(model, Look))
    state = {key: 2 * value for key, value in model.state_dict().items()}
    with torch.no_grad(), graft.condition(media):
        first = model(x)
        media.mul_(2)
        second = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        assert torch.equal(model(x), second)
        model.load_state_dict(state, assign=True)
        third = model(x)
    assert not torch.equal(first, second)
    with torch.no_grad(), graft.condition(media.clone()):
        assert torch.equal(model(x), third)


def test_conditions_that_end_out_of_order_leave_nothing(media: Tensor) -> None:
    """As those of two coroutines do."""
    graft = rezero.graft_(Model(), Look)
    first, second = graft.condition(media), graft.condition(2 * media)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert graft.conditions.now.context is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first first", "last first"])
def test_two_grafts_are_removed_in_any_order(order: tuple[int, int]) -> None:
    """The base learns again when both are gone, and neither freezes the blocks of the other."""
    model = Model()
    grafts = [rezero.graft_(model, adapter, at=f"layers.{place}") for place in (0, 1)]
    assert all(parameter.requires_grad for graft in grafts for parameter in graft.parameters())
    grafts[order[0]].remove()
    assert not model.head.weight.requires_grad
    grafts[order[1]].remove()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert str(grafts[0]).endswith("which are not there any more")


class Final(Layer):
    """A layer whose class can't be derived from."""

    def __init_subclass__(cls, **_: Any) -> None:
        raise TypeError("final")


def _with(layer: nn.Module) -> nn.Module:
    model = Model()
    model.layers[2] = layer
    return model


class ByName(Layer):
    """A layer that takes nothing by its place."""

    def forward(self, **given: Any) -> Any:
        """Run."""
        return super().forward(**given)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (_with(Final()), {"at": "layers.*"}, "expected a class that a gated one can be derived from, got Final"),
        (_with(ByName()), {"at": "layers.*"}, r"'layers.2' \(ByName\) takes no argument by its place"),
        (_with(nn.LazyLinear(8)), {"at": "layers.*"}, r"'layers.2' \(LazyLinear\) is lazy"),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False),
            {"at": "layers.*.linear2", "width": 8},
            "is inside of a TransformerEncoderLayer, which reads it without calling it: graft there",
        ),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), {"at": "parametrizations"}, "container|names no"),
        (Model(), {"at": []}, r"at must be a pattern such as 'layers.\*', or several: got \[\]"),
        (Model(), {"at": 5}, "at must be a pattern .* got 5"),
        (Model(), {"at": "layers.*.norm", "example": torch.randn(2, 5, WIDTH), "width": 9}, "is 8 wide, and the"),
    ],
    ids=["final", "by name", "lazy", "fused", "parametrized", "empty", "number", "width"],
)
def test_layers_that_can_take_no_block_leave_the_model_as_it_was(
    model: nn.Module, options: dict[str, Any], message: str
) -> None:
    """Also where the first layers had theirs already."""
    classes, learns = [type(each) for each in model.modules()], [each.requires_grad for each in model.parameters()]
    with pytest.raises(UsageError, match=message):
        rezero.graft_(model, lambda _: rezero.layers.GatedAdapter(8, 2), **options)
    assert [type(each) for each in model.modules()] == classes
    assert [each.requires_grad for each in model.parameters()] == learns


def test_an_example_tells_the_width_and_what_is_not_called() -> None:
    """Of layers without a norm; of a layer that is never called it says so."""

    class Half(Model):
        def forward(self, x: Tensor, **_: Any) -> Tensor:
            y: Tensor = self.layers[0](x)[0]
            return y

    flat = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    x = torch.randn(2, 6)
    assert rezero.graft_(flat, adapter, ["0", "1"], example=x).widths == {"0": 6, "1": 8}
    flat = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6))
    assert rezero.graft_(flat, adapter, ["0", "1"], position="after", example=x).widths == {"0": 8, "1": 6}
    with pytest.raises(UsageError, match=r"'layers.1' is not called on the example, and its block would not be"):
        rezero.graft_(Half(), adapter, example=torch.randn(2, 5, WIDTH))


def test_blocks_and_layers_that_change_the_shape_are_told_at_the_call(x: Tensor) -> None:
    """A block, before or after; a layer, parallel to a block."""
    model = Model()
    rezero.graft_(model, lambda width: nn.Linear(width, 3), at="layers.0")
    with pytest.raises(UsageError, match=r"the block grafted at 'layers.0' turns \(2, 5, 8\) into \(2, 5, 3\)"):
        model(x)
    head = Model()
    rezero.graft_(head, adapter, at="head", position="parallel", width=WIDTH)
    with pytest.raises(UsageError, match=r"the layer 'head' turns \(2, 5, 8\) into \(2, 5, 3\): no block"):
        head(x)


def test_a_block_without_a_mask_is_given_none(x: Tensor, media: Tensor) -> None:
    """A condition with a mask is refused at the call."""

    class Plain(Look):
        def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, context)

    model = Model()
    graft = rezero.graft_(model, Plain)
    with graft.condition(media):
        model(x)
    with (
        graft.condition(media, torch.ones(2, 3, dtype=torch.bool)),
        pytest.raises(UsageError, match=r"the block grafted at 'layers.0' takes no mask"),
    ):
        model(x)


@pytest.mark.parametrize(
    ("context", "mask", "message"),
    [
        (torch.ones(3), None, r"the context must be \(B, M, C\), a row for each of the batch: got \(3,\)"),
        (torch.ones(2, 3, 6), torch.ones(2, 3), r"the mask must be boolean, .*got torch.float32, \(2, 3\)"),
        (torch.ones(2, 3, 6), torch.ones(2, 0, 3).bool(), r"the mask must be boolean.*got torch.bool, \(2, 0, 3\)"),
    ],
    ids=["context", "dtype", "empty"],
)
def test_odd_contexts_are_told_before_the_call(context: Tensor, mask: Tensor | None, message: str) -> None:
    """With what was expected."""
    with pytest.raises(UsageError, match=message):
        rezero.graft_(Model(), Look).condition(context, mask)


def test_weights_that_are_not_a_layers_own_take_no_block_in() -> None:
    """A tied weight, and one that a hook computes."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(8, 8), nn.Linear(8, 8, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.head(self.embedding(ids))
            return y

    graft = rezero.graft_(Tied(), lambda width: rezero.ReZero(nn.Linear(width, width)), "head", width=8)
    with pytest.raises(UsageError, match=r"the weight of 'head' is used elsewhere too, as 'embedding.weight'"):
        graft.merge()
    with pytest.warns(FutureWarning, match="weight_norm"):
        normed = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 8)))
    graft = rezero.graft_(normed, lambda width: rezero.ReZero(nn.Linear(width, width)), "0", width=8)
    with pytest.raises(UsageError, match=r"the weight of '0' is computed from other parameters"):
        graft.merge()


def test_a_shared_bias_a_hook_or_another_width_takes_no_block_in() -> None:
    """Each is named, and the blocks stay."""

    def block(width: int) -> nn.Module:
        return rezero.ReZero(nn.Linear(width, width))

    shared = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    shared[1].bias = shared[0].bias
    graft = rezero.graft_(shared, block, "0", width=8)
    with pytest.raises(
        UsageError, match=r"the weight of '0' stands beside a bias that is used elsewhere too, as '1.bias'"
    ):
        graft.merge()
    graft = rezero.graft_(nn.Sequential(nn.Linear(8, 8)), block, "0", width=8)
    hook = graft.blocks["0"].register_forward_hook(lambda *given: given[2].relu())
    with pytest.raises(UsageError, match="the block at '0' is not linear because of a hook on its ReZero"):
        graft.merge()
    hook.remove()
    graft.merge()
    for options, message in (
        ({"position": "parallel", "width": 4}, "'0' turns 4 features into 6: no block is parallel"),
        ({"position": "after", "width": 4}, "the block at '0' is 4 wide, where 6 features come through"),
        ({"position": "before", "width": 5}, "the block at '0' is 5 wide, where 4 features come through"),
    ):
        graft = rezero.graft_(nn.Sequential(nn.Linear(4, 6)), block, "0", **options)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=message):
            graft.merge()
        graft.remove()
    graft = rezero.graft_(nn.Sequential(nn.Linear(4, 4)), lambda _: rezero.ReZero(nn.Identity()), "0", width=4)
    with pytest.raises(UsageError, match="the block at '0' has no matrix that could be written into a weight"):
        graft.merge()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_an_encoder_nests_again_when_its_last_block_is_out(order: tuple[int, int], x: Tensor) -> None:
    """And not before: the layers of the other block are given whole batches until then."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.arange(5).expand(2, 5) > 3
    grafts = [rezero.graft_(model, adapter, at=f"layers.{place}") for place in (0, 1)]
    grafts[order[0]].remove()
    assert not model.use_nested_tensor
    with torch.no_grad():
        assert model(x, src_key_padding_mask=padding).shape == x.shape
    grafts[order[1]].remove()
    assert model.use_nested_tensor


def test_a_model_that_can_not_learn_is_refused() -> None:
    """Of parameters that were made under inference_mode none can be frozen and thawed."""
    with torch.inference_mode():
        model = Model()
    before = [each.requires_grad for each in model.parameters()]
    with pytest.raises(UsageError, match=r"was made under torch.inference_mode and can't be trained"):
        rezero.graft_(model, adapter)
    assert [each.requires_grad for each in model.parameters()] == before


def test_the_dropout_of_a_block_is_no_difference(x: Tensor) -> None:
    """It draws nothing while the output is compared, and is there afterwards."""
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, dropout=0.1), 2, enable_nested_tensor=False
    )
    graft = rezero.graft_(model, lambda width: rezero.layers.GatedAdapter(width, 2, dropout=0.2), example=x)
    probabilities = {
        vars(each)[name]
        for block in graft.blocks.values()
        for each in block.modules()
        for name in ("p", "dropout")
        if isinstance(vars(each).get(name), float)
    }
    assert probabilities == {0.2}


def test_a_file_is_loaded_into_blocks_of_their_own_and_on_a_device(tmp_path: Path) -> None:
    """One module for all layers, a model without numbers, and what makes no block are refused."""
    rezero.graft_(Model(), adapter).save(tmp_path)
    one = adapter(WIDTH)
    model = Model()
    with pytest.raises(UsageError, match="block must make a new module at each call"):
        rezero.load_graft_(model, tmp_path, block=lambda _: one)
    with pytest.raises(TypeError, match=r"block must make the block of a layer .*: got str"):
        rezero.load_graft_(model, tmp_path, block="x")  # type: ignore[arg-type]
    assert not any("graft" in key for key in model.state_dict())
    with pytest.raises(UsageError, match="the model is on the meta device and has no numbers"):
        rezero.load_graft_(Model().to("meta"), tmp_path, block=adapter)


def _edited(folder: Path, **changes: Any) -> None:
    """Change the description of the first block in a file."""
    file = folder / "graft.safetensors"
    tensors = load_file(file)
    recipe = json.loads((folder / "graft.json").read_text(encoding="utf-8"))
    described = recipe["blocks"]["layers.0"]
    described["class"] = changes.pop("class", described["class"])
    described["arguments"] |= changes
    save_file(tensors, file, {"rezero": json.dumps(recipe)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck": 10**9}, "is damaged at 'layers.0': bottleneck is 1000000000"),
        ({"class": "media_mask"}, "is damaged at 'layers.0', or of a newer rezero: 'media_mask'"),
        ({"class": "LanguageModel"}, "is damaged at 'layers.0', or of a newer rezero: 'LanguageModel'"),
        ({"device": "meta"}, "is damaged at 'layers.0', or of a newer rezero: 'GatedAdapter'"),
    ],
    ids=["size", "function", "network", "device"],
)
def test_only_blocks_of_the_files_size_are_built(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A description that was edited runs nothing else, and does not build for ever."""
    rezero.graft_(Model(), lambda width: rezero.layers.GatedAdapter(width, 2)).save(tmp_path)
    _edited(tmp_path, **changes)
    with pytest.raises(UsageError, match=message):
        rezero.load_graft_(Model(), tmp_path)


def test_tensors_of_another_kind_are_not_cast(tmp_path: Path) -> None:
    """Whole numbers in the place of weights are no weights."""
    rezero.graft_(Model(), adapter).save(tmp_path)
    file = tmp_path / "graft.safetensors"
    tensors, recipe = load_file(file), (tmp_path / "graft.json").read_text(encoding="utf-8")
    name = next(key for key in tensors if key.endswith("weight"))
    save_file({**tensors, name: tensors[name].long()}, file, {"rezero": recipe})
    with pytest.raises(UsageError, match=f"'{name}' is torch.float32 here and torch.int64 there"):
        rezero.load_graft_(Model(), tmp_path, block=adapter)
