"""A model that is not as its conversion left it is refused in one line, before anything of it is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import remove_parametrizations

import rezero
from rezero.errors import UsageError

# Suffixes: B batch, T positions, D width.
D = 8
X_BTD = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """An MLP behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(self.norm(x))))


def blocks(**options: Any) -> tuple[nn.Sequential, Any]:
    """Return a converted stack of four blocks with open gates, and its conversion."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(4)))
    conversion = rezero.convert_(model, X_BTD, **options)
    for gate, value in zip(rezero.gates(model).values(), (0.5, 1e-9, 0.75, 0.25), strict=True):
        nn.init.constant_(gate.gate_parameter, value)
    return model, conversion


def take_out(model: nn.Sequential) -> None:
    del model[2]


def replace(model: nn.Sequential) -> None:
    model[2] = Block()


def replace_norm(model: nn.Sequential) -> None:
    model[2].norm = nn.LayerNorm(D)


def fold_a_part(model: nn.Sequential) -> None:
    rezero.fold_(model[2])


DONE: dict[str, Callable[[nn.Module, Any, Path], object]] = {
    "undo": lambda _, conversion, __: conversion.undo(),
    "prune_": lambda model, _, __: rezero.prune_(model, 1e-6, X_BTD),
    "fold_": lambda model, _, __: rezero.fold_(model),
    "save": lambda _, conversion, folder: conversion.save(folder),
    "save_converted": lambda model, _, folder: rezero.save_converted(model, folder),
}


@pytest.mark.parametrize("harm", [take_out, replace, replace_norm, fold_a_part])
@pytest.mark.parametrize("name", DONE)
def test_a_module_that_is_gone_is_named(name: str, harm: Callable[[nn.Sequential], None], tmp_path: Path) -> None:
    """Whatever is asked of it, the module that is not the converted one is named, and the model stays as it is."""
    model, conversion = blocks(norms="remove")
    harm(model)
    keys, kinds, y = list(model.state_dict()), [type(module) for module in model.modules()], model(X_BTD)
    with pytest.raises(
        UsageError, match=r"'[23]\.(b|norm)' is not the module that was converted: .* put the converted"
    ):
        DONE[name](model, conversion, tmp_path / "folder")
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(X_BTD), y)
    assert not (tmp_path / "folder").exists()


def test_pruning_is_not_undone_in_a_model_that_lost_a_module() -> None:
    """Pruned.undo() refuses likewise."""
    model, _ = blocks()
    pruned = rezero.prune_(model, 1e-6, X_BTD)
    assert pruned.removed == ("1.b",)
    model[2] = Block()
    keys = list(model.state_dict())
    with pytest.raises(UsageError, match=r"'2\.b' is not the module that was converted"):
        pruned.undo()
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("options", [{}, {"norms": "remove"}, {"norms": "remove", "drop": True}], ids=str)
def test_what_is_done_after_pruning_is_done_as_before(options: dict[str, Any], tmp_path: Path) -> None:
    """A pruned model is pruned again, saved, folded, and put back: what lies in a removed module is not missed."""
    model, conversion = blocks(**options)
    y = model(X_BTD)
    first = rezero.prune_(model, 1e-6, X_BTD)
    nn.init.constant_(rezero.gates(model)["2.b"].gate_parameter, 0.0)
    second = rezero.prune_(model, 1e-6, X_BTD)
    assert (first.removed, second.removed) == (("1.b",), ("2.b",))
    rezero.save_converted(model, tmp_path)
    again = rezero.load_converted_(nn.Sequential(*(Block() for _ in range(4))), tmp_path)
    assert torch.equal(again(X_BTD), model(X_BTD))
    assert not rezero.fold_(again).left
    second.undo()
    nn.init.constant_(rezero.gates(model)["2.b"].gate_parameter, 0.75)
    first.undo()
    assert torch.equal(model(X_BTD), y)
    conversion.undo()
    assert list(model.state_dict()) == list(nn.Sequential(*(Block() for _ in range(4))).state_dict())


@pytest.mark.parametrize("name", ["undo", "prune_"])
def test_a_layer_that_was_parametrized_since_is_refused(name: str, tmp_path: Path) -> None:
    """A parametrization of a gated layer has to be taken off before the gate is; then the same model is back."""
    model, conversion = blocks()
    twin = nn.Sequential(*(Block() for _ in range(4)))
    spectral_norm(model[0].b)
    y = model.eval()(X_BTD)
    with pytest.raises(UsageError, match=r"0\.b \(Parametrized\w*\) was given another class .*remove_parametrizations"):
        DONE[name](model, conversion, tmp_path)
    torch.testing.assert_close(model(X_BTD), y)
    remove_parametrizations(model[0].b, "weight")
    conversion.undo()
    assert set(model.state_dict()) == set(twin.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "double": lambda model: model.double(),
    "bfloat16": lambda model: model.bfloat16(),
    "meta": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("name", CASTS)
def test_what_was_taken_away_comes_back_as_the_model_is_now(name: str) -> None:
    """After a cast or a move, dropped norms and pruned branches come back in its dtype and on its device."""
    model, conversion = blocks(norms="remove", drop=True)
    tensors = dict(Block().named_parameters())
    pruned = rezero.prune_(model, 1e-6, X_BTD)
    CASTS[name](model)
    pruned.undo()
    gates = [gate.gate_parameter for gate in rezero.gates(model).values()]
    assert {gate.dtype for gate in gates} == {torch.float64 if name == "double" else torch.float32}
    conversion.undo()
    assert {n for n, _ in model[1].named_parameters()} == set(tensors)
    here = next(model.parameters())
    assert {(p.dtype, p.device) for p in model.parameters()} == {(here.dtype, here.device)}
    x = X_BTD.to(here.device, here.dtype)
    assert model(x).dtype == here.dtype


def test_what_comes_back_is_the_very_same_tensor() -> None:
    """A dropped parameter that was cast with the model is the same object, and its gradient is cast too."""
    model = nn.Sequential(Block(), Block())
    weight, bias = model[0].norm.weight, model[1].norm.bias
    bias.grad = torch.ones_like(bias)
    conversion = rezero.convert_(model, X_BTD, norms="remove", drop=True)
    model.double()
    conversion.undo()
    assert model[0].norm.weight is weight
    assert model[1].norm.bias is bias
    assert bias.grad.dtype == bias.dtype == torch.float64
