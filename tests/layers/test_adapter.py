"""The gated adapter: the identity at the start, its formula afterwards, a linear map where told."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rezero import gates
from rezero.layers import GatedAdapter
from tests.kept import bytes_kept
from tests.layers.test_cross_attention import ACTIVATIONS

D = 8
F64 = torch.float64
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "tanh": {"gate": "tanh", "bias": False},
    "no norm": {"norm": False, "activation": "relu"},
    "linear": {"norm": False, "activation": None},
}
every_kind = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(*, alpha: float = 0.75, **options: Any) -> GatedAdapter:
    adapter = GatedAdapter(D, 3, **options).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    nn.init.constant_(adapter.gate.alpha, alpha)
    return adapter


def twin(adapter: GatedAdapter, x: Tensor) -> Tensor:
    """The formula from the parameters."""
    p, told = dict(adapter.named_parameters()), adapter.arguments()
    h = x
    if told["norm"]:
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
        h = (h - mean) / (variance + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
    h = h @ p["down.weight"].T + p.get("down.bias", torch.zeros(1, dtype=F64))
    h = h if told["activation"] is None else ACTIVATIONS[told["activation"]](h)
    h = h @ p["up.weight"].T + p.get("up.bias", torch.zeros(1, dtype=F64))
    return x + (p["gate.alpha"].tanh() if told["gate"] == "tanh" else p["gate.alpha"]) * h


@every_kind
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_closed_gate_gives_the_input_bitwise(options: dict[str, Any], training: bool) -> None:
    """At alpha = 0 the output is bitwise the input, in training with dropout and in evaluation."""
    adapter, x = build(alpha=0.0, dropout=0.5, **options).train(training), torch.randn(5, D, dtype=F64)
    assert torch.equal(adapter(x), x)


@every_kind
@pytest.mark.parametrize("shape", [(D,), (5, D), (2, 3, D), (2, 3, 4, D)], ids=str)
def test_an_open_gate_gives_the_formula(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    """With an open gate output and all gradients are those of the formula, for any number of axes."""
    adapter, x = build(**options), torch.randn(shape, dtype=F64, requires_grad=True)
    results = [
        (y, torch.autograd.grad(y.square().sum(), [x, *adapter.parameters()])) for y in (adapter(x), twin(adapter, x))
    ]
    assert not torch.allclose(results[0][0], x)
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_its_formula(activation: str) -> None:
    """The branch has the activation that its name says."""
    adapter, x = build(activation=activation), torch.randn(5, D, dtype=F64)
    torch.testing.assert_close(adapter(x), twin(adapter, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("gate", ["linear", "tanh"])
def test_without_activation_and_norm_a_linear_layer_takes_it_in(gate: str) -> None:
    """The linear layer before it, multiplied by the adapter's matrix, gives what both give one after the other."""
    adapter, before = build(activation=None, norm=False, gate=gate), nn.Linear(6, D).double()
    x = torch.randn(5, 6, dtype=F64)
    with torch.no_grad():
        scale, eye = adapter.gate.scale, torch.eye(D, dtype=F64)
        matrix = eye + scale * adapter.up.weight @ adapter.down.weight
        offset = scale * (adapter.up.weight @ adapter.down.bias + adapter.up.bias)
        expected = adapter(before(x))
        before.bias.copy_(matrix @ before.bias + offset)
        before.weight.copy_(matrix @ before.weight)
        torch.testing.assert_close(before(x), expected, rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("alpha", [0.0, 0.75], ids=["closed", "open"])
def test_gradients_pass_gradcheck(options: dict[str, Any], alpha: float) -> None:
    """In float64 the gradients of input and parameters pass gradcheck."""
    adapter = build(alpha=alpha, **options)
    names = [name for name, _ in adapter.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(adapter, dict(zip(names, values, strict=True)), x)
        return y

    x = torch.randn(5, D, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *adapter.parameters()))


def test_a_large_one_keeps_no_branch() -> None:
    """An adapter that is large enough for one product keeps less than with a hook on its end, and gives the same."""
    width = 512
    adapter, x = GatedAdapter(width), torch.randn(2, 256, width)
    nn.init.constant_(adapter.gate.alpha, 0.5)
    own, y = bytes_kept(adapter, x, adapter), adapter(x)
    adapter.up.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(adapter(x), y, rtol=1e-4, atol=1e-4)
    assert own <= bytes_kept(adapter, x, adapter) - x.nbytes


def test_default_width_is_64() -> None:
    """Unless told the branch is 64 wide inside, whatever the width outside."""
    assert [GatedAdapter(dim).down.out_features for dim in (8, 1024)] == [64, 64]


def test_has_the_parameters_of_the_paper_and_a_gate() -> None:
    """Without its norm it has the 2 m d + d + m parameters of the paper, and one alpha."""
    adapter = GatedAdapter(100, 7, norm=False)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 7 * 100 + 100 + 7 + 1
    assert list(gates(adapter)) == ["gate"]


def test_state_dict_has_these_keys() -> None:
    """The names and shapes of all parameters, on which saved files rest."""
    assert {name: tuple(value.shape) for name, value in GatedAdapter(D, 3).state_dict().items()} == {
        "norm.weight": (8,),
        "norm.bias": (8,),
        "down.weight": (3, 8),
        "down.bias": (3,),
        "up.weight": (8, 3),
        "up.bias": (8,),
        "gate.alpha": (1,),
    }
    assert set(GatedAdapter(D, 3, norm=False, bias=False).state_dict()) == {"down.weight", "up.weight", "gate.alpha"}


def test_takes_device_and_dtype() -> None:
    """Parameters are made on the device and in the dtype asked for; the gate is at least float32."""
    for name, parameter in GatedAdapter(D, device="meta", dtype=torch.bfloat16).named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == (torch.float32 if name.endswith("alpha") else torch.bfloat16), name


def test_arguments_are_plain_values() -> None:
    """The arguments are what the adapter was built with, defaults included, without device and dtype."""
    adapter = GatedAdapter(D, activation=None, dtype=F64)
    expected = {"dim": 8, "bottleneck": 64, "activation": None, "norm": True, "gate": "linear"}
    expected |= {"dropout": 0.0, "bias": True}
    assert adapter.arguments() == json.loads(json.dumps(adapter.arguments())) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 0}, "dim must be at least 1: got 0"),
        ({"bottleneck": 0}, "bottleneck must be at least 1: got 0"),
        ({"activation": "mish"}, "no activation is called 'mish': choose from gelu, relu, silu, squared_relu"),
        ({"gate": "sigmoid"}, "gate must be 'tanh' or 'linear': got 'sigmoid'"),
        ({"dropout": -0.1}, "dropout must be a probability from 0 to 1: got -0.1"),
    ],
    ids=["dim", "bottleneck", "activation", "gate", "dropout"],
)
def test_refuses_arguments_out_of_range(changed: dict[str, Any], message: str) -> None:
    """An argument that is out of range or unknown is an error that names it."""
    with pytest.raises(ValueError, match=message):
        GatedAdapter(**{"dim": D} | changed)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, D + 1), r"x must be \(\*, D\) with D = 8: got \(2, 9\)"),
        (torch.zeros(()), r"x must be \(\*, D\) with D = 8: got \(\)"),
        (torch.zeros(2, D).half(), "x is torch.float16, the layer's weights are torch.float32: convert one of them"),
        (torch.zeros(2, D).to("meta"), "x is on meta, the layer's weights are on cpu: move one of them"),
    ],
    ids=["width", "no axes", "dtype", "device"],
)
def test_refuses_inputs_that_do_not_fit(x: Tensor, message: str) -> None:
    """A width, dtype or device that does not fit is an error that says what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        GatedAdapter(D)(x)
