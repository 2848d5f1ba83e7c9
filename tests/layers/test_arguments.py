"""Layers that know what they were built with, and are built again from it."""

import copy
import inspect
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from rezero.layers import GatedAdapter, GatedCrossAttention, PerceiverResampler
from rezero.layers.arguments import Rebuildable, remembers

CASES: dict[str, tuple[type[Any], dict[str, Any], tuple[Tensor, ...]]] = {
    "cross-attention": (GatedCrossAttention, {"dim": 8, "num_heads": 2}, (torch.ones(1, 3, 8), torch.ones(1, 2, 8))),
    "cross-attention other": (
        GatedCrossAttention,
        {"dim": 8, "context_dim": 6, "num_heads": 4, "ff_mult": 0, "gate": "linear", "qk_norm": True, "bias": True},
        (torch.ones(1, 3, 8), torch.ones(1, 2, 6)),
    ),
    "adapter": (GatedAdapter, {"dim": 8}, (torch.ones(2, 8),)),
    "adapter other": (
        GatedAdapter,
        {"dim": 8, "bottleneck": 2, "activation": None, "norm": False, "gate": "tanh", "dropout": 0.25},
        (torch.ones(2, 8),),
    ),
    "resampler": (
        PerceiverResampler,
        {"dim": 8, "depth": 2, "num_latents": 3, "num_heads": 2, "ff_mult": 1, "activation": "silu"},
        (torch.ones(1, 5, 8),),
    ),
}
every_case = pytest.mark.parametrize(("kind", "given", "x"), CASES.values(), ids=CASES)


@every_case
def test_arguments_build_the_layer_again(kind: type[Any], given: dict[str, Any], x: tuple[Tensor, ...]) -> None:
    """Through JSON, the arguments build a layer that takes the state dict, gives the same and says the same."""
    layer = kind(**given)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    again = kind(**json.loads(json.dumps(layer.arguments())))
    again.load_state_dict(layer.state_dict(), strict=True)
    assert repr(again) == repr(layer)
    assert again.arguments() == layer.arguments()
    assert torch.equal(again.eval()(*x), layer.eval()(*x))


@every_case
def test_arguments_are_those_of_the_constructor(kind: type[Any], given: dict[str, Any], x: tuple[Tensor, ...]) -> None:
    """Every argument of the constructor but device and dtype is there, with its default where it was not given."""
    named = inspect.signature(kind).parameters
    expected = {name: given.get(name, p.default) for name, p in named.items() if name not in {"device", "dtype"}}
    assert kind(**given, device="cpu", dtype=torch.float32).arguments() == expected


@every_case
def test_copies_say_the_same(kind: type[Any], given: dict[str, Any], x: tuple[Tensor, ...]) -> None:
    """A deep copy and a pickle know their arguments, and changing what was returned changes nothing."""
    layer = kind(**given)
    expected = layer.arguments()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):  # noqa: S301
        assert copied.arguments() == expected
    layer.arguments().clear()
    assert layer.arguments() == expected


def test_a_position_has_its_name() -> None:
    """Arguments given by position are returned by name."""
    assert GatedAdapter(8, 2).arguments()["bottleneck"] == 2


def test_the_constructor_keeps_its_face() -> None:
    """The decorated constructor has its signature, and Python's own error for a missing argument."""
    assert "num_heads" in inspect.signature(GatedCrossAttention).parameters
    with pytest.raises(TypeError, match=r"GatedCrossAttention.__init__\(\) missing 1 required keyword-only argument"):
        GatedCrossAttention(8)


def test_a_failed_constructor_notes_nothing() -> None:
    """Where the constructor fails its own error is raised."""

    class Failing(Rebuildable):
        @remembers
        def __init__(self, width: int) -> None:
            raise ValueError(f"no width of {width}")

    with pytest.raises(ValueError, match="no width of 3"):
        Failing(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GatedCrossAttention(8, num_heads=2.0), "num_heads must be a whole number: got 2.0"),
        (lambda: GatedCrossAttention(8.0, num_heads=2), "dim must be a whole number: got 8.0"),
        (lambda: GatedCrossAttention(8, num_heads=2, ff_mult=2.5), "ff_mult must be a whole number: got 2.5"),
        (lambda: GatedCrossAttention(8, num_heads=2, dropout=None), "dropout must be a probability .*: got None"),
        (lambda: GatedAdapter(8, "8"), "bottleneck must be a whole number: got '8'"),
        (lambda: PerceiverResampler(8, depth=2.5, num_latents=2, num_heads=2), "depth must be a whole number: got 2.5"),
        (lambda: PerceiverResampler(8, depth=True, num_latents=2, num_heads=2), "depth must be a whole .*: got True"),
    ],
    ids=["heads", "dim", "ff_mult", "dropout", "bottleneck", "depth", "bool"],
)
def test_arguments_of_the_wrong_type_are_told(build: Any, message: str) -> None:
    """By their names, before anything is built."""
    with pytest.raises(TypeError, match=message):
        build()
