"""A trained model made deeper: from exactly where it stands, and back."""

import copy
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rezero
from rezero.errors import UsageError

WIDTH = 8


def encoder(*, norm_first: bool = True, depth: int = 4) -> Any:
    """Make an encoder whose layers differ."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Numbered(nn.Module):
    """A residual layer that knows its place, and scales by it."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.linear(x + bias)


class Shared(nn.Module):
    """Layers that share a table with the head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Numbered(place) for place in range(3))
        self.depth = 3
        for block in self.blocks:
            block.table = nn.Linear(WIDTH, WIDTH, bias=False)
        self.table = self.blocks[1].table

    def forward(self, x: Tensor) -> Tensor:
        """Run as many blocks as it knows of."""
        for block in self.blocks[: self.depth]:
            x = block(x, self.table.weight[0])
        return x


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> Tensor:
    """The input, ``(2, 5, 8)``."""
    return torch.randn(2, 5, WIDTH)


@pytest.mark.parametrize("init", ["copy", "fresh"])
@pytest.mark.parametrize(
    ("norm_first", "gated"), [(True, "branches"), (False, "layers")], ids=["pre-norm", "post-norm"]
)
def test_a_deeper_model_starts_from_the_shallow_one_bitwise(
    init: Any, gated: str, x: Tensor, *, norm_first: bool
) -> None:
    """Outputs are equal; behind each second layer stands a copy of it, or one drawn anew, and the counts are right."""
    model = encoder(norm_first=norm_first)
    with torch.no_grad():
        expected = model(x)
    growth = rezero.grow_(model, init=init, example=x)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    assert (growth.layers, growth.originals) == (("layers.2", "layers.5"), ("layers.1", "layers.4"))
    assert (growth.gated, len(model.layers), model.num_layers) == (gated, 6, 6)
    one, other = model.layers[1].linear1.weight, model.layers[2].linear1.weight
    assert torch.equal(one, other) == (init == "copy")
    assert one is not other


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_every_new_parameter_learns(x: Tensor, *, norm_first: bool) -> None:
    """The first step opens the gates, the second moves the weights of the copies."""
    model = encoder(norm_first=norm_first)
    growth = rezero.grow_(model, example=x)
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    names = [name for name in before if name.startswith(tuple(f"{layer}." for layer in growth.layers))]
    still = [name for name in names if torch.equal(before[name], model.get_parameter(name))]
    assert len(names) > 2 * len(growth.gates)
    assert not still


def test_the_layers_are_chosen_by_number(x: Tensor) -> None:
    """In their order, each once."""
    growth = rezero.grow_(encoder(), layers=[3, 0], example=x)
    assert growth.originals == ("layers.0", "layers.4")
    assert rezero.grow_(encoder(), every=1, example=x).layers == tuple(f"layers.{place}" for place in (1, 3, 5, 7))


def test_undo_gives_the_shallow_model_back(x: Tensor) -> None:
    """With its keys, classes, counts and the weights that it has by then."""
    model = encoder()
    keys, classes, expected = list(model.state_dict()), [type(each) for each in model.modules()], model(x)
    growth = rezero.grow_(model, example=x, train="new")
    growth.undo()
    growth.undo()
    assert list(model.state_dict()) == keys
    assert [type(each) for each in model.modules()] == classes
    assert model.num_layers == 4
    assert torch.equal(model(x), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_new_layers_learn_if_told() -> None:
    """What was frozen in the original learns in the copy."""
    model = encoder()
    model.layers[1].linear1.weight.requires_grad_(False)
    growth = rezero.grow_(model, train="new", example=torch.randn(1, 3, WIDTH))
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {
        name for name, _ in model.named_parameters() if name.startswith(tuple(f"{each}." for each in growth.layers))
    }


def test_an_optimizer_goes_on(x: Tensor) -> None:
    """It keeps its state, treats copies as their originals and never decays a gate; undo takes them out again."""
    model = encoder()
    optimizer = torch.optim.AdamW(rezero.param_groups(model, lr=0.01, weight_decay=0.1), lr=0.01)
    model(x).square().mean().backward()
    optimizer.step()
    before = {id(parameter): copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    growth = rezero.grow_(model, every=1, example=x, optimizer=optimizer)
    *groups, gates = optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [2 * size for size in sizes]
    assert (len(gates["params"]), gates["weight_decay"]) == (len(growth.gates), 0.0)
    now = {id(parameter): state for parameter, state in optimizer.state.items()}
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key]["exp_avg"], state["exp_avg"]) for key, state in before.items())
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert all(model.get_parameter(name).item() for name in growth.gates)
    growth.undo()
    assert [len(group["params"]) for group in optimizer.param_groups] == sizes
    assert {id(parameter) for parameter in optimizer.state} == before.keys()


def test_layers_are_renumbered_and_what_they_share_stays_shared(x: Tensor) -> None:
    """A number that a layer keeps is its place; a tensor that is used elsewhere is not copied; the depth is told."""
    model = Shared()
    expected = model(x)
    growth = rezero.grow_(model, layers=[0, 1], example=x)
    assert [block.layer_idx for block in model.blocks] == [0, 1, 2, 3, 4]
    assert model.blocks[3].table.weight is model.blocks[2].table.weight is model.table.weight
    assert model.depth == 5
    assert torch.equal(model(x), expected)
    growth.undo()
    assert ([block.layer_idx for block in model.blocks], model.depth) == ([0, 1, 2], 3)


def test_a_grown_model_folds_to_rounding(x: Tensor) -> None:
    """With open gates the fold leaves a model of the plain class whose output is the same."""
    model = encoder()
    growth = rezero.grow_(model, example=x)
    for name in growth.gates:
        nn.init.constant_(model.get_parameter(name), 0.5)
    expected = model(x)
    assert len(rezero.fold_(model).folded) == len(growth.gates)
    deep = encoder(depth=6)
    deep.load_state_dict(model.state_dict())
    torch.testing.assert_close(deep(x), expected)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_a_copy_and_a_pickle_stay_grown(x: Tensor, *, norm_first: bool) -> None:
    """With their gates, bitwise."""
    model = encoder(norm_first=norm_first)
    for name in rezero.grow_(model, example=x).gates:
        nn.init.constant_(model.get_parameter(name), 0.5)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own
        assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({}, UsageError, "expected example=, arguments of the model's forward"),
        ({"example": torch.randn(1, 3, 5)}, UsageError, "the model fails on the example"),
        ({"layers": [4]}, UsageError, "layers must be numbers from 0 to 3: got 4"),
        ({"layers": ["1"]}, UsageError, "layers must be numbers from 0 to 3: got '1'"),
        ({"layers": []}, UsageError, "layers must name at least one layer"),
        ({"layers": 1}, UsageError, r"layers must be a list of numbers, such as \[0, 3\]: got 1"),
        ({"layers": [0, 0]}, UsageError, r"layers must name each layer once: got \[0, 0\]; .* grow again"),
        ({"at": "layers"}, UsageError, r"'layers' is a list of layers: name its layers, at='layers.\*'"),
        ({"every": 5}, UsageError, "every must be at most 4"),
        ({"at": "layers.*.linear1"}, UsageError, "expected layers of one nn.ModuleList or nn.Sequential, got those of"),
        ({"init": "zero"}, ValueError, "init must be one of 'copy', 'fresh': got 'zero'"),
        ({"train": "old"}, ValueError, "train must be one of 'new', 'all': got 'old'"),
        ({"optimizer": 1}, TypeError, "optimizer must be a torch.optim.Optimizer: got int"),
    ],
    ids=[
        "no example",
        "bad example",
        "number",
        "text",
        "none",
        "one",
        "twice",
        "list",
        "every",
        "two lists",
        "init",
        "train",
        "optimizer",
    ],
)
def test_bad_requests_leave_the_model_as_it_was(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    """One clear error each; keys, classes and counts stay."""
    model = encoder()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(kind, match=message):
        rezero.grow_(model, **options)
    assert (list(model.state_dict()), model.num_layers) == (keys, 4)
    assert [type(module) for module in model.modules()] == classes


def test_a_model_grows_once(x: Tensor) -> None:
    """A second time only when its gates are folded."""
    model = encoder()
    rezero.grow_(model, example=x)
    with pytest.raises(UsageError, match="has been converted already"):
        rezero.grow_(model, example=x)
    rezero.fold_(model)
    assert len(rezero.grow_(model, example=x).layers) == 3


def test_a_model_that_reads_its_layers_otherwise_is_refused(x: Tensor) -> None:
    """If the output does not stay, everything is put back."""

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Numbered(place) for place in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x, x[0, 0]) * (1 + block.layer_idx)
            return x

    model = Middle()
    expected = model(x)
    with pytest.raises(UsageError, match="the outputs of the deeper model differ"):
        rezero.grow_(model, example=x)
    assert torch.equal(model(x), expected)
    assert [block.layer_idx for block in model.blocks] == [0, 1, 2]


def test_a_model_that_returns_what_its_layers_did_is_told_so(x: Tensor) -> None:
    """The deeper one would return more."""

    class Telling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder()

        def forward(self, x: Tensor) -> list[Tensor]:
            states = [x]
            for layer in self.encoder.layers:
                states.append(layer(states[-1]))
            return states

    with pytest.raises(UsageError, match="differ: 7 tensors instead of 5, as of a model that returns the hidden"):
        rezero.grow_(Telling(), example=x)


def made_by_rule(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(rezero.param_groups(model, lr=0.01, weight_decay=0.1))


def test_an_optimizer_that_is_made_anew_takes_the_state_of_the_one_that_went_on(x: Tensor) -> None:
    """A state dict tells parameters by their places: those of the grown optimizer are those of a new one."""
    model = encoder()
    optimizer = made_by_rule(model)

    def step() -> None:
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    rezero.grow_(model, example=x, optimizer=optimizer)
    step()
    again = made_by_rule(model)
    again.load_state_dict(optimizer.state_dict())
    for parameter in model.parameters():
        assert torch.equal(again.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_an_order_of_ones_own_stays(x: Tensor) -> None:
    """Where groups were not in the order of the model, new parameters come last, and names go with them."""
    model = encoder()
    named = list(model.named_parameters())[::-1]
    optimizer = torch.optim.SGD(named, lr=0.1)
    before = [id(each) for _, each in named]
    growth = rezero.grow_(model, example=x, optimizer=optimizer)
    [group, gates] = optimizer.param_groups
    assert [id(each) for each in group["params"]][: len(before)] == before
    names = {id(each): name for name, each in model.named_parameters()}
    new = {id(each) for each in growth.parameters()}
    for each in (group, gates):
        there = zip(each["params"], each["param_names"], strict=True)
        assert all(names[id(parameter)] == name for parameter, name in there if id(parameter) in new)


def test_a_scheduler_goes_on(x: Tensor) -> None:
    """The groups stay as many: gates join the one without decay, and the rates are those of a model that stayed."""
    model = encoder()
    optimizer = torch.optim.AdamW(rezero.param_groups(model, lr=0.01, weight_decay=0.1), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    optimizer.step()
    scheduler.step()
    growth = rezero.grow_(model, example=x, optimizer=optimizer)
    undecayed = next(group for group in optimizer.param_groups if not group["weight_decay"])
    assert {id(model.get_parameter(name)) for name in growth.gates} <= {id(each) for each in undecayed["params"]}
    optimizer.step()
    scheduler.step()
    assert len(optimizer.param_groups) == len(scheduler.get_last_lr())
    other = encoder()
    decayed = torch.optim.AdamW(other.parameters(), lr=0.01)
    torch.optim.lr_scheduler.CosineAnnealingLR(decayed, 10)
    with pytest.raises(UsageError, match="has a learning-rate scheduler and no group without weight decay"):
        rezero.grow_(other, example=x, optimizer=decayed)


def test_undo_leaves_what_was_added_since(x: Tensor) -> None:
    """A group that somebody else has added stays with its state."""
    model, head = encoder(), nn.Linear(WIDTH, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    growth = rezero.grow_(model, example=x, optimizer=optimizer)
    optimizer.add_param_group({"params": list(head.parameters())})
    growth.undo()
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(list(model.parameters())), 2]


def test_copies_of_what_does_not_learn_are_given_to_the_optimizer(x: Tensor) -> None:
    """With train="new", also where it holds a head alone."""
    model = nn.Sequential(encoder(), nn.Linear(WIDTH, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    growth = rezero.grow_(model, example=x, optimizer=optimizer, train="new")
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert {id(each) for each in growth.parameters()} <= held


@pytest.mark.parametrize("change", ["fold", "graft", "grow"])
def test_undo_is_refused_after_other_changes(change: str, x: Tensor) -> None:
    """Before anything is undone: the optimizer keeps the new parameters, the model its layers."""
    if change == "graft":
        shared = Shared()
        growth = rezero.grow_(shared, layers=[1], example=x)
        graft = rezero.graft_(shared, lambda width: rezero.ReZero(nn.Linear(width, width)), "blocks.*", width=WIDTH)
        with pytest.raises(UsageError, match=r"'blocks.\d' has a grafted block: call remove\(\) of that graft first"):
            growth.undo()
        graft.remove()
        growth.undo()
        assert len(shared.blocks) == 3
        return
    model = encoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    growth = rezero.grow_(model, example=x, optimizer=optimizer)
    held = [len(group["params"]) for group in optimizer.param_groups]
    rezero.fold_(model)
    if change == "grow":
        rezero.grow_(model, example=x)
    for _ in range(2):
        with pytest.raises(UsageError, match="gates were folded or put in since"):
            growth.undo()
    assert [len(group["params"]) for group in optimizer.param_groups] == held
    assert len(model.layers) == (9 if change == "grow" else 6)


def test_layers_that_end_in_a_norm_are_saved_with_their_gates(x: Tensor, tmp_path: Path) -> None:
    """fold_ names them as left; save_converted and load_converted_ keep them, into a model that is as deep."""
    model = encoder(norm_first=False)
    for name in rezero.grow_(model, example=x).gates:
        nn.init.constant_(model.get_parameter(name), 0.5)
    assert [name for name, _ in rezero.fold_(model).left] == ["layers.2", "layers.5"]
    rezero.save_converted(model, tmp_path)
    again = rezero.load_converted_(encoder(norm_first=False, depth=6), tmp_path)
    assert torch.equal(again(x), model(x))
    assert len(rezero.gates(again)) == 2


class Counted(nn.Module):
    """Runs as many layers as an attribute of its own says."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Numbered(place) for place in range(3))
        self.used = 3

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        for place in range(self.used):
            x = self.blocks[place](x, x[0, 0])
        return x


class Final(Numbered):
    """A layer whose class can't be derived from."""

    def __init_subclass__(cls, **_: Any) -> None:
        raise TypeError("final")


class Locked(Numbered):
    """A layer that can't be copied."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.lock = threading.Lock()


def _of(layer: Callable[[int], nn.Module]) -> nn.Module:
    model = Counted()
    model.blocks = nn.ModuleList(map(layer, range(3)))
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Counted(), "the deeper model does not call 'blocks.4': its forward counts its layers by something"),
        (_of(Locked), r"'blocks.1' \(Locked\) can't be copied: cannot pickle '_thread.lock' object"),
        (Counted().to("meta"), "the model is on the meta device and has no numbers"),
    ],
    ids=["counted", "locked", "meta"],
)
def test_models_that_cannot_grow_are_left_as_they_were(model: nn.Module, message: str) -> None:
    """With the reason."""
    keys = list(model.state_dict())
    with pytest.raises(UsageError, match=message):
        rezero.grow_(model, layers=[1, 2], example=torch.randn(2, 3, WIDTH))
    assert list(model.state_dict()) == keys


def test_a_list_that_is_the_model_grows_and_keeps_its_names(x: Tensor) -> None:
    """Numbers move up; names stay, and those of copies say so."""

    def block() -> nn.Module:
        return rezero.layers.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, init_value=0.5)

    numbered = nn.Sequential(block(), block())
    expected = numbered.eval()(x)
    assert rezero.grow_(numbered, every=1, example=x).layers == ("1", "3")
    assert torch.equal(numbered(x), expected)
    named = nn.Sequential(OrderedDict(first=block(), second=block())).eval()
    growth = rezero.grow_(named, layers=[0], example=x)
    assert (growth.layers, list(named._modules)) == (("first_grown",), ["first", "first_grown", "second"])


def test_drawing_anew_leaves_what_is_shared(x: Tensor) -> None:
    """The table that the head uses too keeps its numbers."""
    model = Shared()
    before = model.table.weight.clone()
    rezero.grow_(model, layers=[1], init="fresh", example=x)
    assert torch.equal(model.table.weight, before)


def test_a_graft_on_an_old_layer_keeps_the_growth(x: Tensor) -> None:
    """Undoing would move its layer, and let learn what is to stay frozen."""
    model = encoder()
    before = model(x)
    growth = rezero.grow_(model, every=2, example=x, train="new")
    graft = rezero.graft_(model, lambda width: rezero.ReZero(nn.Linear(width, width)), "layers.3")
    with pytest.raises(UsageError, match=r"'layers.3' has a grafted block: call remove\(\) of that graft first"):
        growth.undo()
    graft.remove()
    growth.undo()
    assert torch.equal(model(x), before)
    assert all(each.requires_grad for each in model.parameters())


def test_numbers_of_numpy_are_numbers(x: Tensor) -> None:
    """As they come out of numpy."""
    import numpy as np

    assert len(rezero.grow_(encoder(), layers=np.array([0, 2]), example=x).layers) == 2  # type: ignore[arg-type]


def test_layers_that_are_given_their_input_by_name_alone_grow(x: Tensor) -> None:
    """Their first argument has no place."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, *, x: Tensor) -> Tensor:
            y: Tensor = x + self.linear(x)
            return y

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Named() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x=x)
            return x

    model = Stack()
    before = model(x)
    assert len(rezero.grow_(model, example=x).layers) == 1
    assert torch.equal(model(x), before)


def test_a_model_or_an_optimizer_that_can_not_take_gates_is_refused(x: Tensor) -> None:
    """Parameters made under inference_mode, and Muon, which knows matrices alone."""
    with torch.inference_mode():
        model = encoder()
    with pytest.raises(UsageError, match=r"was made under torch.inference_mode"):
        rezero.grow_(model, example=x)
    model = encoder()
    matrices = [each for each in model.parameters() if each.ndim == 2]
    with pytest.raises(UsageError, match="Muon takes matrices alone"):
        rezero.grow_(model, example=x, optimizer=torch.optim.Muon(matrices, lr=0.1))
