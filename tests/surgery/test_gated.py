"""The classes that a conversion gives to layers: what they compute, and that they stay what they were."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rezero
from rezero.errors import UsageError
from rezero.gate import AnyGate

# Suffixes: B batch, T positions, D width.
D = 8


class Block(nn.Module):
    """``x + f(x)``, the branch being the first item where it comes with others."""

    def __init__(self, f: nn.Module, *, several: bool = False) -> None:
        super().__init__()
        self.f, self.several = f, several

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.f(x)[0] if self.several else self.f(x))


class Pair(NamedTuple):
    hidden: Tensor
    weights: Tensor


class Several(nn.Module):
    """Returns its hidden state and something else in a container of some kind."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.pack = nn.Linear(D, D), pack

    def forward(self, x: Tensor) -> Any:
        return self.pack(self.linear(x), 2 * x)


def as_tuple(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return f, g


def as_list(f: Tensor, g: Tensor) -> list[Tensor]:
    return [f, g]


class Crowded(nn.Linear):
    """A layer whose attributes have the names that a gate might be given."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.scale, self.activation, self.branches, self.init_value = 3.0, "relu", 7, "mine"
        self.gate = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        assert (self.scale, self.activation, self.branches, self.init_value) == (3.0, "relu", 7, "mine")
        return self.scale * super().forward(x) * self.gate(x)


class OwnsAlpha(nn.Module):
    """A layer with an ``alpha`` of its own, as a parameter or not."""

    def __init__(self, *, parameter: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.alpha: Any = nn.Parameter(torch.full((D,), 1.5)) if parameter else 1.5

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * self.linear(x).tanh()


def gate_of(model: nn.Module) -> Any:
    [gate] = rezero.gates(model).values()
    return gate


def set_(gate: AnyGate, value: float) -> None:
    with torch.no_grad():
        gate.gate_parameter.fill_(value)


X_BD = torch.randn(3, D, generator=torch.Generator().manual_seed(1))
X_BTD = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))

# What a gated layer computes


@pytest.mark.parametrize("pack", [as_tuple, as_list, Pair], ids=["tuple", "list", "named tuple"])
def test_the_first_item_is_scaled_and_the_container_kept(pack: Any) -> None:
    """Of several items the first is multiplied by the gate, the others and their container stay."""
    model = Block(Several(pack), several=True)
    twin = copy.deepcopy(model)
    rezero.convert_(model, X_BD, init_value=0.25)
    got, expected = model.f(X_BD), twin.f(X_BD)
    assert type(got) is type(expected)
    assert torch.equal(got[0], 0.25 * expected[0])
    assert torch.equal(got[1], expected[1])
    assert torch.equal(model(X_BD), X_BD + 0.25 * expected[0])


@pytest.mark.parametrize("gate", ["scalar", "channel", "tanh"])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_layer_is_scaled_as_it_says(gate: Any, start: float) -> None:
    """The block is x + scale * f(x) with the gate's own scale, a number a channel where asked, or through tanh."""
    model = Block(nn.Linear(D, D))
    twin = copy.deepcopy(model)
    rezero.convert_(model, X_BD, gate=gate, init_value=start)
    alpha = gate_of(model).gate_parameter
    assert torch.equal(alpha, torch.full((D if gate == "channel" else 1,), start))
    with torch.no_grad():
        alpha.add_(torch.linspace(0.1, 0.9, len(alpha)))
    scale = alpha.tanh() if gate == "tanh" else alpha
    assert torch.equal(gate_of(model).gate_scale, scale)
    torch.testing.assert_close(model(X_BD), X_BD + scale * twin.f(X_BD))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(lambda: nn.Conv1d(D, D, 3, padding=1), (2, D, 5), id="conv1d"),
        pytest.param(lambda: nn.Conv2d(D, D, 3, padding=1), (2, D, 5, 6), id="conv2d"),
        pytest.param(lambda: nn.Conv3d(D, D, 3, padding=1), (2, D, 2, 3, 4), id="conv3d"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(D, D, 1), nn.BatchNorm2d(D)), (2, D, 5, 6), id="batch norm"),
        pytest.param(lambda: nn.Sequential(nn.Conv2d(D, D, 1), nn.GroupNorm(2, D)), (2, D, 5, 6), id="group norm"),
        pytest.param(lambda: nn.ConvTranspose2d(D, D, 3, padding=1), (2, D, 5, 6), id="conv transpose"),
    ],
)
def test_channels_of_an_image_are_the_second_axis(layer: Any, shape: tuple[int, ...]) -> None:
    """With gate='channel' a convolution's or its norm's branch is scaled along its second axis."""
    model, x = Block(layer()).eval(), torch.randn(shape)
    twin = copy.deepcopy(model)
    rezero.convert_(model, x, gate="channel")
    alpha = gate_of(model).gate_parameter
    with torch.no_grad():
        alpha.copy_(torch.linspace(-1, 1, D))
    torch.testing.assert_close(model(x), x + alpha.view(-1, *[1] * (len(shape) - 2)) * twin.f(x))


def test_the_gate_forms_the_product_in_its_own_precision() -> None:
    """A float32 gate on a bfloat16 branch gives bfloat16, the product having been formed in float32."""
    model = Block(nn.Linear(D, D))
    rezero.convert_(model, X_BD, init_value=0.1234567)
    model.bfloat16()
    x = X_BD.bfloat16()
    f = F.linear(x, model.f.weight, model.f.bias)
    assert torch.equal(model.f(x), (f.float() * 0.1234567).bfloat16())


# What it stays


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_a_layer_is_still_an_instance_of_its_class(start: float) -> None:
    """A gated layer is an instance of its class and of AnyGate, keeps name and document, and prints as before."""
    model = Block(nn.Linear(D, D))
    rezero.convert_(model, X_BD, init_value=start)
    assert isinstance(model.f, nn.Linear)
    assert isinstance(model.f, AnyGate)
    assert type(model.f).__module__ == nn.Linear.__module__
    assert type(model.f).__doc__ == nn.Linear.__doc__
    assert f"in_features={D}, out_features={D}" in repr(model)


def test_two_layers_of_a_class_share_the_gated_class() -> None:
    """The gated class of nn.Linear is made once, so that a compiler sees one class and copies compare equal."""
    model = nn.Sequential(Block(nn.Linear(D, D)), Block(nn.Linear(D, D)))
    rezero.convert_(model, X_BD)
    assert type(model[0].f) is type(model[1].f)
    assert type(pickle.loads(pickle.dumps(model))[0].f) is type(model[0].f)  # noqa: S301


@pytest.mark.parametrize("gate", ["scalar", "channel", "tanh"])
def test_attributes_of_the_same_names_live_on(gate: Any) -> None:
    """A layer whose own attributes are called scale, activation, gate and branches keeps them, and is gated."""
    model = Block(Crowded())
    twin = copy.deepcopy(model)
    conversion = rezero.convert_(model, X_BD, gate=gate, init_value=0.5)
    assert conversion.gates == ("f.alpha",)
    scale = torch.tensor(0.5).tanh() if gate == "tanh" else 0.5
    torch.testing.assert_close(model(X_BD), X_BD + scale * twin.f(X_BD))
    conversion.undo()
    assert vars(model.f).keys() == vars(twin.f).keys()


@pytest.mark.parametrize("parameter", [True, False], ids=["parameter", "number"])
def test_a_layer_that_owns_alpha_gets_another_name(parameter: bool) -> None:
    """Beside an alpha of the layer's own the gate is called rezero_alpha, and both do what they are for."""
    model = Block(OwnsAlpha(parameter=parameter))
    twin = copy.deepcopy(model)
    conversion = rezero.convert_(model, X_BD, init_value=0.5)
    assert conversion.gates == ("f.rezero_alpha",)
    assert model.state_dict().keys() - twin.state_dict().keys() == {"f.rezero_alpha"}
    assert gate_of(model).gate_parameter is model.f.rezero_alpha
    assert torch.equal(model(X_BD), X_BD + 0.5 * twin.f(X_BD))
    clone = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(clone(X_BD), model(X_BD))
    conversion.undo()
    assert torch.equal(model(X_BD), twin(X_BD))
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_an_alpha_elsewhere_is_no_gate() -> None:
    """Gates are known by their class: a parameter called alpha in another layer is none."""
    model = nn.Sequential(OwnsAlpha(parameter=True), Block(nn.Linear(D, D)))
    rezero.convert_(model, X_BD)
    assert list(rezero.gates(model)) == ["1.f"]


def scaled(_: nn.Module, __: Any, y: Tensor) -> Tensor:
    return 3 * y


def shifted(_: nn.Module, __: Any, y: Tensor) -> Tensor:
    return y + 1


def test_a_hook_that_scales_is_gated_and_one_that_adds_is_refused() -> None:
    """A hook that replaces a layer's output comes after the gate: where it lets something past that, it is refused."""
    model = Block(nn.Linear(D, D))
    f = model.f(X_BD).detach()
    model.f.register_forward_hook(scaled)
    rezero.convert_(model, X_BD, init_value=0.5)
    torch.testing.assert_close(model(X_BD), X_BD + 0.5 * 3 * f)
    model = Block(nn.Linear(D, D))
    model.f.register_forward_hook(shifted)
    with pytest.raises(UsageError, match="does not return its skip"):
        rezero.convert_(model, X_BD)


class InPlace(Block):
    """Writes into what the layer returned before it is added."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.f(x)
        f *= 2
        return x + f


class CalledOtherwise(nn.Module):
    """A module whose work is done by another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def mix(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


class CallsOtherwise(Block):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + 2 * self.f.mix(x)
        return y


@pytest.mark.parametrize(
    "build", [lambda: InPlace(nn.Linear(D, D)), lambda: CallsOtherwise(CalledOtherwise())], ids=["in place", "method"]
)
def test_what_is_done_around_a_layer_stays(build: Callable[[], nn.Module]) -> None:
    """Layers whose output is written into, and those that a module calls outside its forward, are gated like others."""
    model = build()
    twin = copy.deepcopy(model)
    rezero.convert_(model, X_BD, init_value=0.5)
    torch.testing.assert_close(model(X_BD), X_BD + 0.5 * (twin(X_BD) - X_BD))


NOT_RETURNED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "forward of its own accord": lambda f, x: f.forward(x),
    "written to": lambda f, x: f(x).relu_(),
    "weight read": lambda f, x: F.linear(x, f.weight, f.bias),
}


class Custom(Block):
    """A block whose branch is what a function makes of a layer."""

    def __init__(self, branch: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(nn.Linear(D, D))
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.f, x)


@pytest.mark.parametrize("branch", NOT_RETURNED.values(), ids=NOT_RETURNED)
def test_a_branch_that_no_module_returns_is_refused(branch: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """A layer whose forward or whose weight is used without a call, or that is bent afterwards, is refused by name."""
    with pytest.raises(UsageError, match="no module returns the branch"):
        rezero.convert_(Custom(branch), X_BD)


# Initialisation


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_reset_parameters_resets_the_gate_too(start: float) -> None:
    """reset_parameters draws what the layer's class draws from the same seed, and sets the gate back."""
    model, twin = Block(nn.Linear(D, D)), nn.Linear(D, D)
    rezero.convert_(model, X_BD, init_value=start)
    set_(gate_of(model), 9.0)
    for layer in (model.f, twin):
        torch.manual_seed(3)
        layer.reset_parameters()
    assert torch.equal(model.f.weight, twin.weight)
    assert torch.equal(model.f.bias, twin.bias)
    assert torch.equal(model.f.alpha, torch.tensor([start]))
    set_(gate_of(model), 9.0)
    gate_of(model).reset_gate()
    assert torch.equal(model.f.alpha, torch.tensor([start]))


def test_a_layer_without_reset_parameters_can_reset_its_gate() -> None:
    """Where a module's class has no reset_parameters, a gated one has, for FSDP's deferred init: it sets the gate."""
    model = Block(nn.Sequential(nn.Linear(D, D), nn.Tanh()))
    rezero.convert_(model, X_BD, init_value=0.5)
    set_(gate_of(model), 9.0)
    gate_of(model).reset_parameters()
    assert torch.equal(gate_of(model).gate_parameter, torch.tensor([0.5]))


def by_init(weight: Tensor) -> None:
    nn.init.constant_(weight, 2.0)


def by_data(weight: Tensor) -> None:
    weight.data = torch.full_like(weight, 2.0)


def by_fill(weight: Tensor) -> None:
    weight.data.fill_(2.0)


@pytest.mark.parametrize("fill", [by_init, by_data, by_fill])
@pytest.mark.parametrize("leaf", ["linear2", "self_attn.out_proj"])
@pytest.mark.parametrize("share", ["sublayer", "layer"])
def test_foreign_initialisation_reaches_the_weights(leaf: str, fill: Any, share: Any) -> None:
    """What nn.init or .data writes to the weights of a layer whose weights are scaled reaches the parameters."""
    model = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    conversion = rezero.convert_(model, X_BTD, share=share)
    layer = model.get_submodule(leaf)
    for parameter in (layer.weight, layer.bias):
        fill(parameter)
        assert isinstance(parameter, nn.Parameter)
    assert layer.weight is model.get_parameter(f"{leaf}.weight")
    assert bool((model.state_dict()[f"{leaf}.weight"] == 2.0).all())
    layer.weight = nn.Parameter(torch.full_like(layer.weight, 3.0))
    conversion.undo()
    assert bool((layer.weight == 3.0).all())
    assert bool((layer.bias == 2.0).all())
    assert "weight" not in vars(type(layer))


def test_an_encoder_layer_resets() -> None:
    """reset_parameters of a layer whose weights are scaled draws them anew and sets the gate back."""
    model, twin = (nn.TransformerEncoderLayer(D, 2, 16, batch_first=True) for _ in range(2))
    rezero.convert_(model, X_BTD, init_value=0.5)
    for gate in rezero.gates(model).values():
        set_(gate, 9.0)
    for layer in (model.linear2, twin.linear2):
        torch.manual_seed(3)
        layer.reset_parameters()
    assert torch.equal(model.linear2.weight, twin.linear2.weight)
    assert torch.equal(model.linear2.alpha, torch.tensor([0.5]))


# torch's Transformer, whose evaluation is one fused function


def encoder_by_hand(layer: nn.Module, x: Tensor, a: Any, b: Any, *, norms: bool = True) -> Tensor:
    """What an encoder layer computes with its branches scaled by a and b."""
    attend: Any = lambda x: layer.self_attn(x, x, x, need_weights=False)[0]  # noqa: E731
    feed: Any = lambda x: layer.linear2(layer.activation(layer.linear1(x)))  # noqa: E731
    first, second = (layer.norm1, layer.norm2) if norms else (nn.Identity(), nn.Identity())
    if layer.norm_first:
        x = x + a * attend(first(x))
        return x + b * feed(second(x))
    x = first(x + a * attend(x))
    return second(x + b * feed(x))


LAYERS = {
    "post": {},
    "pre": {"norm_first": True},
    "gelu": {"activation": "gelu"},
    "no bias": {"bias": False},
    "own activation": {"activation": F.silu},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("norms", ["keep", "remove"])
@pytest.mark.parametrize(
    ("gate", "share"), [("scalar", "sublayer"), ("channel", "sublayer"), ("tanh", "layer"), ("channel", "layer")]
)
def test_an_encoder_layer_is_gated_on_every_path(options: dict[str, Any], norms: Any, gate: Any, share: Any) -> None:
    """In training and in evaluation, fused or not, an encoder layer computes the formula with its gates as factors."""
    model = nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True, **options)
    twin = copy.deepcopy(model)
    rezero.convert_(model, X_BTD, gate=gate, share=share, norms=norms)
    found = list(rezero.gates(model).values())
    assert len(found) == (1 if share == "layer" else 2)
    with torch.no_grad():
        for i, each in enumerate(found):
            each.gate_parameter.copy_(torch.linspace(0.5, 0.8 + i, len(each.gate_parameter)))
    scales = [each.gate_scale.detach() for each in found]
    with torch.no_grad():
        expected = encoder_by_hand(twin.train(), X_BTD, scales[0], scales[-1], norms=norms == "keep")
    padding = torch.zeros(2, 5, dtype=torch.bool)
    for training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(model.train(training)(X_BTD), expected)
                torch.testing.assert_close(model(X_BTD, src_key_padding_mask=padding), expected)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(X_BTD), expected)


def test_the_fused_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated encoder layer still evaluates through torch's fused function, with its scaled weights."""
    model = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True).eval()
    rezero.convert_(model, X_BTD, init_value=0.5)
    given: list[Any] = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: given.append(args) or fused(*args))
    with torch.no_grad():
        model(X_BTD)
    assert len(given) == 1
    assert any(isinstance(each, Tensor) and torch.equal(each, 0.5 * model.linear2.weight) for each in given[0])


def test_after_a_failed_call_the_weights_are_themselves() -> None:
    """When a layer that reads scaled weights raises, its weights are parameters again."""
    model = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    rezero.convert_(model, X_BTD, init_value=0.5)
    with pytest.raises((RuntimeError, AssertionError), match=r"shape|dimension|expecting"):
        model(torch.randn(2, 5, D + 1))
    assert isinstance(model.linear2.weight, nn.Parameter)
    assert isinstance(model.self_attn.out_proj.weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_nested_batch_is_gated() -> None:
    """An encoder that turns a padded batch into a nested one computes the same as with the fused path off."""
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    rezero.convert_(model, X_BTD, init_value=0.5)
    padding = torch.arange(5).expand(2, 5) >= torch.tensor([[5], [3]])
    with torch.no_grad():
        fused = model(X_BTD, src_key_padding_mask=padding)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = model(X_BTD, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fused[~padding], plain[~padding])


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])
def test_a_decoder_layer_is_gated_on_every_path(norm_first: bool) -> None:
    """In every mode a decoder layer's three branches are scaled by their gates."""
    model = nn.TransformerDecoderLayer(D, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    twin = copy.deepcopy(model)
    memory = X_BTD.flip(0)
    conversion = rezero.convert_(model, (X_BTD, memory))
    assert len(conversion.gates) == 3
    a, b, c = (0.5, 0.75, 1.25)
    for gate, value in zip(rezero.gates(model).values(), (a, b, c), strict=True):
        set_(gate, value)

    def by_hand(x: Tensor) -> Tensor:
        attend: Any = lambda x: twin.self_attn(x, x, x, need_weights=False)[0]  # noqa: E731
        look: Any = lambda x: twin.multihead_attn(x, memory, memory, need_weights=False)[0]  # noqa: E731
        feed: Any = lambda x: twin.linear2(twin.activation(twin.linear1(x)))  # noqa: E731
        for scale, f, norm in ((a, attend, twin.norm1), (b, look, twin.norm2), (c, feed, twin.norm3)):
            x = x + scale * f(norm(x)) if norm_first else norm(x + scale * f(x))
        return x

    for training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(model.train(training)(X_BTD, memory), by_hand(X_BTD))


class Attends(nn.Module):
    """``x + attention(x)``, which reads the weights of its out_proj itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": D, "vdim": D}], ids=["plain", "no bias", "kdim"])
@pytest.mark.parametrize("gate", ["scalar", "channel", "tanh"])
def test_attention_is_gated_on_every_path(options: dict[str, Any], gate: Any) -> None:
    """In every mode nn.MultiheadAttention returns its output times the gate, and where it looked as it was."""
    model = Attends(**options)
    twin = copy.deepcopy(model)
    rezero.convert_(model, X_BTD, gate=gate, init_value=0.5)
    scale = gate_of(model).gate_scale
    for training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                expected = twin.train(training).attention(X_BTD, X_BTD, X_BTD)
                torch.testing.assert_close(model.train(training)(X_BTD), X_BTD + scale * expected[0])
                torch.testing.assert_close(model.attention(X_BTD, X_BTD, X_BTD)[1], expected[1])


# Layers of unusual making


@pytest.mark.parametrize("way", ["weight_norm", "spectral_norm"])
def test_a_parametrised_layer_is_gated_and_restored(way: str) -> None:
    """A layer under torch's parametrisations is gated like any other, and undo gives its class back."""
    model = Block(getattr(nn.utils.parametrizations, way)(nn.Linear(D, D))).eval()
    kind, keys, expected = type(model.f), list(model.state_dict()), model(X_BD)
    f = model.f(X_BD)
    conversion = rezero.convert_(model, X_BD, init_value=0.5)
    torch.testing.assert_close(model(X_BD), X_BD + 0.5 * f)
    conversion.undo()
    assert type(model.f) is kind
    assert list(model.state_dict()) == keys
    assert torch.equal(model(X_BD), expected)


def by_parametrisation(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer)


def by_hook(layer: nn.Module) -> None:
    nn.utils.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "normed"),  # an attention never calls its out_proj, so that hooks there compute nothing
    [("linear2", by_parametrisation), ("linear2", by_hook), ("self_attn.out_proj", by_parametrisation)],
)
def test_a_computed_weight_is_gated_on_the_fused_path_too(name: str, normed: Callable[[nn.Module], None]) -> None:
    """In an encoder layer whose weight is computed from others, by torch's ways, the computed one is scaled."""
    model, twin = (nn.TransformerEncoderLayer(D, 2, 16, 0.0, batch_first=True) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    for each in (model, twin):
        normed(each.get_submodule(name))
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    conversion = rezero.convert_(model, X_BTD)
    for gate, value in zip(rezero.gates(model).values(), (0.5, 0.75), strict=True):
        set_(gate, value)
    with torch.no_grad():
        expected = encoder_by_hand(twin.train(), X_BTD, 0.5, 0.75)
    for training in (True, False):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(model.train(training)(X_BTD), expected)
    [(left, reason)] = rezero.fold_(copy.deepcopy(model)).left
    assert left == name
    assert reason.endswith("is computed from other parameters")
    conversion.undo()
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds


class Final(nn.Linear):
    """A class that allows no subclass."""

    def __init_subclass__(cls, **_: Any) -> None:
        raise TypeError("Final can't be subclassed")


def test_a_class_without_subclasses_leaves_the_model_untouched() -> None:
    """Where a layer's class can't be derived from, the error says so and the layers before it are put back."""
    model = nn.Sequential(Block(nn.Linear(D, D)), Block(Final(D, D)))
    keys, y = list(model.state_dict()), model(X_BD)
    with pytest.raises((TypeError, ValueError), match="Final can't be subclassed"):
        rezero.convert_(model, X_BD)
    assert list(model.state_dict()) == keys
    assert [type(block.f) for block in model] == [nn.Linear, Final]
    assert torch.equal(model(X_BD), y)


class Registered(nn.Linear):
    """A class whose subclasses must say something."""

    def __init_subclass__(cls, *, kind: str) -> None:
        raise AssertionError(kind)


def test_a_class_whose_subclasses_need_arguments_is_refused() -> None:
    """Where a gated class can't be made, the error says so and what can be done."""
    model = Block(Registered(D, D))
    with pytest.raises(UsageError, match=r"expected a class .*got Registered: .*'kind'; leave its branches out"):
        rezero.convert_(model, X_BD)
    assert type(model.f) is Registered


class Crammed(nn.Linear):
    """A layer that has the second name of a gate, too, and more."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.alpha, self.rezero_alpha, self.rezero_alpha_2 = 1.0, 2.0, 3.0

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * self.rezero_alpha * self.rezero_alpha_2 * super().forward(x).tanh()


class Wrapper(nn.Module):
    """A layer that has whatever it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return "anything"

    def forward(self, x: Tensor) -> Tensor:
        assert self.alpha == "anything"
        return self.linear(x).tanh()


class Notes(nn.Module):
    """A layer that sets an attribute in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        self.alpha = torch.softmax(self.linear(x), -1)
        return self.alpha * x


@pytest.mark.parametrize(
    ("layer", "name"), [(Crammed, "rezero_alpha_3"), (Wrapper, "rezero_alpha"), (Notes, "rezero_alpha")]
)
def test_a_gate_takes_a_name_that_is_free(layer: Callable[[], nn.Module], name: str) -> None:
    """A layer's own names stay its own, also one that only its forward sets or that its __getattr__ makes up."""
    model = Block(layer())
    keys, f = list(model.state_dict()), model.f(X_BD).detach()
    conversion = rezero.convert_(model, X_BD)
    assert conversion.gates == (f"f.{name}",)
    set_(rezero.gates(model)["f"], 0.5)
    with torch.no_grad():
        torch.testing.assert_close(model(X_BD), X_BD + 0.5 * f)
        torch.testing.assert_close(copy.deepcopy(model)(X_BD), X_BD + 0.5 * f)
    conversion.undo()
    assert list(model.state_dict()) == keys


class Scaled(nn.Linear):
    """A layer with a parameter whose name is that of a gate's face."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.gate_scale = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu() * self.gate_scale.abs()


class Resets(nn.Linear):
    """A layer with a method of that kind."""

    def reset_gate(self) -> str:
        return "mine"


@pytest.mark.parametrize(("layer", "name"), [(Scaled(), "gate_scale"), (Resets(D, D), "reset_gate")])
def test_a_layer_with_a_gate_of_its_own_kind_is_refused(layer: nn.Module, name: str) -> None:
    """What a gate is asked by must not hide what the layer has under that name."""
    model, kind = Block(layer), type(layer)
    with pytest.raises(UsageError, match=rf"'f' has a '{name}' of its own, under which its gate would be asked"):
        rezero.convert_(model, X_BD)
    assert type(model.f) is kind
    assert "alpha" not in dict(model.f.named_parameters())


def test_a_new_layer_of_a_gated_class_is_plain() -> None:
    """Code that makes a layer of the same class gets one of the original class, without a gate."""
    model = Block(nn.Linear(D, D))
    rezero.convert_(model, X_BD, init_value=0.5)
    kind = type(model.f)
    for layer in (kind(D, D), nn.utils.skip_init(kind, D, D)):
        assert type(layer) is nn.Linear
        assert list(dict(layer.named_parameters())) == ["weight", "bias"]
    assert type(model.f) is kind
    assert type(copy.deepcopy(model).f) is kind


class Remade(nn.Linear):
    """A class that makes its copies anew."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self)(self.in_features, self.out_features)
        twin.load_state_dict({name: self.state_dict()[name] for name in ("weight", "bias")})
        return twin


class Emptied(nn.Linear):
    """A class that fills its copies by itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = type(self).__new__(type(self))
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin


def test_no_copy_loses_its_gate_silently() -> None:
    """A copy that its class makes without the gate is an error; one that takes all attributes has the gate."""
    model = Block(Remade(D, D))
    rezero.convert_(model, X_BD, init_value=0.5)
    with pytest.raises(UsageError, match=r"Remade\.__deepcopy__ makes a Remade without what the conversion changed"):
        copy.deepcopy(model)
    model = Block(Emptied(D, D))
    rezero.convert_(model, X_BD, init_value=0.5)
    assert torch.equal(copy.deepcopy(model)(X_BD), model(X_BD))


def test_hooks_see_the_gated_branch() -> None:
    """A forward hook on the layer still runs, and sees the branch as it is added."""
    model, seen = Block(nn.Linear(D, D)), []
    model.f.register_forward_hook(lambda _, __, y: seen.append(y))
    rezero.convert_(model, X_BD, init_value=0.5)
    seen.clear()
    y = model(X_BD)
    assert torch.equal(y, X_BD + seen[0])


def test_a_removed_norm_is_still_one() -> None:
    """A removed norm keeps its class ancestry and its frozen parameters, and returns its input."""
    model = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    rezero.convert_(model, X_BTD, norms="remove")
    assert isinstance(model.norm1, nn.LayerNorm)
    assert model.norm1(X_BTD) is X_BTD
    assert model.norm1(X_BTD, None, eps=1.0) is X_BTD
    assert not any(p.requires_grad for p in model.norm1.parameters())
    assert {"norm1.weight", "norm1.bias"} <= model.state_dict().keys()


class Clipped(nn.Linear):
    """A layer that ends in something that is not linear."""

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h).clamp(-0.1, 0.1)


class Squashed(nn.MultiheadAttention):
    """An attention that ends in something that is not linear."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(*args, **kwargs)
        return torch.tanh(output), weights


@pytest.mark.parametrize("part", ["linear2", "self_attn"])
def test_a_part_of_an_encoder_layer_with_a_forward_of_its_own_is_gated_as_a_whole(part: str) -> None:
    """Where a layer's part is no plain linear or attention, the gate comes after it, not into its weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=True, activation=F.silu)
    setattr(layer, part, Clipped(16, D) if part == "linear2" else Squashed(D, 2, batch_first=True))
    original, x = copy.deepcopy(layer), torch.randn(2, 3, D)
    rezero.convert_(layer, x, init_value=1.0)
    factors = {"linear2": 1.0, "self_attn": 1.0, part: 2.0}
    with torch.no_grad():
        gate = next(gate for name, gate in rezero.gates(layer).items() if name.startswith(part))
        gate.gate_parameter.fill_(2.0)
        between = x + factors["self_attn"] * original._sa_block(original.norm1(x), None, None)
        expected = between + factors["linear2"] * original._ff_block(original.norm2(between))
    torch.testing.assert_close(layer(x), expected)


def sequence_block(last: nn.Module) -> nn.Module:
    return Block(nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), last))


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Dropout(0.1), nn.Identity()], ids=lambda last: type(last).__name__)
def test_channels_of_a_sequence_are_those_of_the_last_layer(last: nn.Module) -> None:
    """A branch that ends in a layer without channels has those of the layer before: any length can follow."""
    model = sequence_block(last)
    rezero.convert_(model, torch.randn(2, 6, 20), gate="channel", init_value=0.5)
    assert [tuple(gate.gate_parameter.shape) for gate in rezero.gates(model).values()] == [(6,)]
    assert model(torch.randn(2, 6, 21)).shape == (2, 6, 21)


def test_channels_as_many_as_positions_are_refused() -> None:
    """Where an example is as long as wide the axis can't be told: refused by name."""
    with pytest.raises(UsageError, match=r"which axis of 'f\.2' holds the channels is unknown"):
        rezero.convert_(sequence_block(nn.ReLU()), torch.randn(2, 6, 6), gate="channel")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"init_value": 0.05}, r"bias=True, alpha=0\.05\)"),
        ({"init_value": 0.5, "gate": "tanh"}, r"bias=True, tanh\(alpha\)=0\.462\)"),
        ({"gate": "channel"}, r"bias=True, alpha=0 to 2\)"),
        ({"share": "layer"}, r"alpha=0\)[\s\S]*Shared\w+\([^\n]*bias=True, gate of self_attn\.out_proj\)"),
    ],
    ids=["scalar", "tanh", "channel", "shared"],
)
def test_a_gate_is_shown(options: dict[str, Any], shown: str) -> None:
    """A printed model shows the factor of each branch, also where it has no numbers."""
    model = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    rezero.convert_(model, torch.randn(1, 3, D), **options)
    if options.get("gate") == "channel":
        for gate in rezero.gates(model).values():
            gate.gate_parameter.data[0] = 2.0
    assert re.search(shown, str(model))
    assert "alpha" in str(model.to("meta"))
