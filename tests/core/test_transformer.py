"""The two classes of rezero 0.1.0: its arguments, its checkpoints, its numbers, and today's containers."""

# B batch, T target positions, S source positions, D width

import copy
import inspect
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import gates, layers
from rezero.transformer import RZTXDecoderLayer, RZTXEncoderLayer

B, T, S, D, H, FF = 3, 5, 7, 8, 2, 12
F64 = torch.float64
KINDS = [RZTXEncoderLayer, RZTXDecoderLayer]
IDS = ["encoder", "decoder"]


def sequences(kind: type, *, dtype: torch.dtype = F64) -> tuple[Tensor, ...]:
    shapes = [(T, B, D), (S, B, D)][: 1 + (kind is RZTXDecoderLayer)]
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


def forbid(*shape: int) -> Tensor:
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


def masks(kind: type, what: str) -> tuple[Tensor | None, ...]:
    """The old forward's further positional arguments."""
    attention = {
        "none": lambda _t, _s: None,
        "bool": forbid,
        "float": lambda t, s: torch.randn(t, s, dtype=F64),
        "causal": lambda t, s: torch.ones(t, s).triu(1).bool(),
        "padding": lambda _t, _s: None,
        "both": forbid,
    }[what]
    padding = forbid if what in ("padding", "both") else lambda _b, _s: None
    if kind is RZTXEncoderLayer:
        return attention(T, T), padding(B, T)
    return attention(T, T), attention(T, S), padding(B, T), padding(B, S)


def old_layer(package: ModuleType, kind: type, *args: Any, alpha: float = 0.3, **kwargs: Any) -> nn.Module:
    """The layer of the same name in rezero 0.1.0, with random weights and an open gate."""
    layer: nn.Module = getattr(package, kind.__name__)(*args, **kwargs).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(layer.get_parameter("resweight"), alpha)
    return layer


def test_the_old_package_is_the_old_package(rezero_010: ModuleType) -> None:
    """What we compare with is rezero 0.1.0 and not ourselves."""
    assert rezero_010.RZTXEncoderLayer is not RZTXEncoderLayer
    assert "resweight" in rezero_010.RZTXEncoderLayer(D, H).state_dict()
    with pytest.raises(TypeError, match="is_causal"):
        nn.TransformerEncoder(rezero_010.RZTXEncoderLayer(D, H, FF), 2, enable_nested_tensor=False)(
            torch.randn(T, B, D)
        )


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_old_arguments_come_first(rezero_010: ModuleType, kind: type, method: str) -> None:
    """The arguments of 0.1.0 keep their names, order and, up to the spelling of ReLU, their defaults."""
    expected = inspect.signature(getattr(getattr(rezero_010, kind.__name__), method)).parameters
    got = inspect.signature(getattr(kind, method)).parameters
    assert list(got)[: len(expected)] == list(expected)
    for name, parameter in expected.items():
        default = F.relu if name == "activation" else parameter.default
        assert got[name].default == default, name
        assert got[name].kind is parameter.kind, name


@pytest.mark.parametrize("what", ["none", "bool", "float", "causal", "padding", "both"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_equals_the_old_layer(rezero_010: ModuleType, kind: type, activation: str, training: bool, what: str) -> None:
    """With a checkpoint of 0.1.0 the output is equal in float64 to 1e-12, gradients too, for masks of all kinds."""
    old = old_layer(rezero_010, kind, D, H, FF, 0.0, activation).train(training)
    new = kind(D, H, FF, 0.0, activation).double().train(training)
    result = new.load_state_dict(old.state_dict(), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    inputs, given = sequences(kind), masks(kind, what)
    results = []
    for layer in (old, new):
        x = tuple(part.clone().requires_grad_() for part in inputs)
        y = layer(*x, *given)
        y.square().sum().backward()
        gradients = {name: p.grad for name, p in layer.named_parameters()}
        gradients["resweight"] = gradients.pop("gates.0.alpha", gradients.get("resweight"))
        results.append((y, [part.grad for part in x], gradients))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[1][1:], results[0][1:], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(results[1][0], inputs[0])


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_old_masks_may_be_given_by_name(rezero_010: ModuleType, kind: type) -> None:
    """The keyword arguments of the old forward still work and mean the same."""
    old = old_layer(rezero_010, kind, D, H, dim_feedforward=FF, dropout=0.0, activation="gelu")
    new = kind(d_model=D, nhead=H, dim_feedforward=FF, dropout=0.0, activation="gelu").double()
    new.load_state_dict(old.state_dict())
    inputs = sequences(kind)
    names = list(inspect.signature(old.forward).parameters)[len(inputs) :]
    given = dict(zip(names, masks(kind, "both"), strict=True))
    torch.testing.assert_close(new(*inputs, **given), old(*inputs, **given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_dropout_layers_are_where_they_were(rezero_010: ModuleType, kind: type) -> None:
    """The dropout modules of 0.1.0 have kept their names and their probability."""

    def probabilities(layer: nn.Module) -> dict[str, float]:
        return {name: module.p for name, module in layer.named_modules() if isinstance(module, nn.Dropout)}

    old, new = getattr(rezero_010, kind.__name__)(D, H, FF, 0.3), kind(D, H, FF, 0.3)
    assert probabilities(new) == probabilities(old)
    assert new.self_attn.dropout == old.self_attn.dropout == 0.3


def stack_of(layer: nn.Module, depth: int) -> nn.Module:
    if "Decoder" in type(layer).__name__:
        return nn.TransformerDecoder(layer, depth)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_old_stacks_load_into_todays_containers(rezero_010: ModuleType, kind: type) -> None:
    """A checkpoint of a stack in torch's container loads strictly, and the stack, which 0.1.0 cannot run, equals it."""
    old = stack_of(old_layer(rezero_010, kind, D, H, FF, 0.0), 3)
    for i, layer in enumerate(old.layers):
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
        nn.init.constant_(layer.resweight, 0.1 * (i + 1))
    new = stack_of(kind(D, H, FF, 0.0), 3).double()
    checkpoint = old.state_dict()
    assert "layers.2.resweight" in checkpoint
    new.load_state_dict(checkpoint, strict=True)
    assert [gate.alpha.item() for gate in gates(new).values()] == pytest.approx([0.1, 0.2, 0.3])
    inputs, given = sequences(kind), masks(kind, "both")
    expected, *memory = inputs
    for layer in old.layers:
        expected = layer(expected, *memory, *given)
    torch.testing.assert_close(new(*inputs, *given), expected, rtol=1e-12, atol=1e-12)
    assert "layers.2.resweight" in checkpoint  # the caller's dict is not changed


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_old_checkpoints_load_after_copies_and_pickles(rezero_010: ModuleType, kind: type, tmp_path: Any) -> None:
    """The renaming survives deepcopy and torch.save, as containers and checkpoints of whole modules need."""
    old = old_layer(rezero_010, kind, D, H, FF, 0.0)
    torch.save(kind(D, H, FF, 0.0).double(), tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    inputs = sequences(kind)
    for new in (copy.deepcopy(kind(D, H, FF, 0.0).double()), loaded):
        new.load_state_dict(old.state_dict(), strict=True)
        torch.testing.assert_close(new(*inputs), old(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_checkpoint_still_has_to_fit(rezero_010: ModuleType, kind: type) -> None:
    """Strict loading still names what is missing or too much."""
    checkpoint = old_layer(rezero_010, kind, D, H, FF).state_dict()
    checkpoint.pop("resweight")
    checkpoint["other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r'Missing key.*"gates.0.alpha"') as error:
        kind(D, H, FF).load_state_dict(checkpoint)
    assert 'Unexpected key(s) in state_dict: "other"' in str(error.value)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_new_checkpoints_round_trip(kind: type) -> None:
    """Our own state dict, with gates.0.alpha, loads strictly too."""
    layer, other = kind(D, H, FF), kind(D, H, FF, init_value=0.7)
    assert "gates.0.alpha" in other.state_dict()
    layer.load_state_dict(other.state_dict(), strict=True)
    assert layer.resweight.item() == pytest.approx(0.7)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_resweight_is_the_tied_alpha(kind: type) -> None:
    """Old code reads and fills layer.resweight: it is the parameter of the one gate."""
    layer = kind(D, H, FF)
    assert layer.resweight is layer.gates[0].alpha
    assert layer.resweight.shape == (1,)
    layer.resweight.data.fill_(0.5)
    assert layer.gates[0].alpha.item() == 0.5
    assert list(layer.state_dict()).count("resweight") == 0


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_layer_with_several_alphas_has_no_resweight(kind: type) -> None:
    """With a gate a sublayer there is no one parameter that resweight could stand for."""
    with pytest.raises(AttributeError, match="no attribute 'resweight'"):
        _ = kind(D, H, FF, share="sublayer").resweight


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_is_the_layer_with_one_gate(kind: type) -> None:
    """By default one alpha serves the layer; the options of today's layers are taken too."""
    ours = getattr(layers, kind.__name__.replace("RZTX", "Transformer"))
    assert issubclass(kind, ours)
    assert list(gates(kind(D, H, FF))) == ["gates.0"]
    assert len(gates(kind(D, H, FF, share="sublayer"))) == (3 if kind is RZTXDecoderLayer else 2)
    layer = kind(D, H, FF, 0.0, batch_first=True, bias=False, init_value=0.5, dtype=F64)
    twin = ours(D, H, FF, 0.0, batch_first=True, bias=False, share="layer", init_value=0.5, dtype=F64)
    twin.load_state_dict(layer.state_dict())
    inputs = tuple(x.transpose(0, 1) for x in sequences(kind))
    assert torch.equal(layer(*inputs), twin(*inputs))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_starts_as_the_identity_bitwise(kind: type, training: bool) -> None:
    """Alone and in torch's container a fresh layer returns its input bitwise, with the default dropout."""
    inputs = sequences(kind, dtype=torch.float32)
    layer = kind(D, H, FF).train(training)
    assert torch.equal(layer(*inputs), inputs[0])
    assert torch.equal(stack_of(layer, 6)(*inputs), inputs[0])


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_refuses_an_unknown_activation(kind: type) -> None:
    """An unknown activation is an error, where 0.1.0 silently took ReLU in the decoder."""
    with pytest.raises(ValueError, match="activation must be 'relu', 'gelu' or a callable: got 'swish'"):
        kind(D, H, FF, 0.1, "swish")


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_refuses_unknown_options(kind: type) -> None:
    """A misspelt option is an error."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchfirst'"):
        kind(D, H, FF, batchfirst=True)
