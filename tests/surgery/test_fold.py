"""fold_ writes the gates into the weights and leaves nothing of them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rezero
from rezero.errors import UsageError

B, D = 2, 8


class Block(nn.Module):
    """A block whose branch ends with a given layer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(D, D, 1) if not isinstance(last, nn.Linear | nn.LayerNorm) else nn.Linear(D, D)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + last(relu(first(x)))``."""
        y: Tensor = x + self.last(self.first(x).relu())
        return y


class Scale(nn.Module):
    """One number a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(D))

    def forward(self, f: Tensor) -> Tensor:
        """Return the branch, scaled."""
        return f * self.factor.view(-1, 1, 1)


class OnePlus(nn.LayerNorm):
    """A norm that multiplies by ``1 + weight``, as Gemma's does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input."""
        return nn.functional.layer_norm(x, (D,), 1 + self.weight, self.bias)


LAYERS = {
    "linear": lambda: nn.Linear(D, D),
    "linear-without-bias": lambda: nn.Linear(D, D, bias=False),
    "conv": lambda: nn.Conv2d(D, D, 3, padding=1),
    "grouped-conv": lambda: nn.Conv2d(D, D, 3, padding=1, groups=4),
    "conv-transpose": lambda: nn.ConvTranspose2d(D, D, 3, padding=1),
    "grouped-conv-transpose": lambda: nn.ConvTranspose2d(D, D, 3, padding=1, groups=4),
    "batch-norm": lambda: nn.BatchNorm2d(D),
    "group-norm": lambda: nn.GroupNorm(2, D),
    "layer-norm": lambda: nn.LayerNorm(D),
    "layer-scale": Scale,
}


def example(last: nn.Module) -> Tensor:
    """Return an input for a block with that last layer."""
    return torch.randn(B, 5, D) if isinstance(last, nn.Linear | nn.LayerNorm) else torch.randn(B, D, 6, 6)


def opened(model: nn.Module, x: Any, **options: Any) -> nn.Module:
    """Convert a model and open its gates by different amounts, some of them negative."""
    rezero.convert_(model, x, **options)
    for gate in rezero.gates(model).values():
        nn.init.uniform_(gate.gate_parameter, -1.5, 1.5)
    return model.eval()


CASES = [
    (layer, gate)
    for layer in LAYERS
    for gate in ("scalar", "channel", "tanh")
    if (layer, gate) != ("layer-scale", "channel")  # refused, see below
]


@pytest.mark.parametrize(("layer", "gate"), CASES)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)
def test_the_outputs_stay(layer: str, gate: str, dtype: torch.dtype, error: float) -> None:
    """A folded layer of every kind gives the gated outputs, to rounding, from its own class and keys."""
    last = LAYERS[layer]()
    model = nn.Sequential(Block(last), Block(copy.deepcopy(last))).to(dtype)
    x = example(last).to(dtype)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    opened(model, x, gate=gate)
    expected = model(x)
    folded = rezero.fold_(model)
    assert folded.folded == ("0.last", "1.last")
    assert folded.left == ()
    assert (model(x) - expected).abs().max() <= error * expected.abs().max()
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes


def test_a_gate_a_channel_is_refused_where_the_channels_are_unknown() -> None:
    """A class of somebody's own on images does not say which axis holds its channels."""
    with pytest.raises(UsageError, match="which axis of 'last' holds the channels is unknown"):
        rezero.convert_(Block(Scale()), torch.randn(B, D, 6, 6), gate="channel")


@pytest.mark.parametrize("options", [{}, {"share": "layer"}, {"gate": "channel"}], ids=str)
def test_attention_and_its_fused_path_fold(options: dict[str, Any]) -> None:
    """Torch's Transformer layers fold too, and evaluation on the fused path gives the gated outputs."""
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 16, batch_first=True), 2)
    x = torch.randn(B, 5, D)
    classes = [type(module) for module in layers.modules()]
    opened(layers, x, **options)
    with torch.no_grad():
        expected = layers(x)
        assert len(rezero.fold_(layers).folded) == 4
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)
    assert [type(module) for module in layers.modules()] == classes


@pytest.mark.parametrize("norm_first", [False, True])
def test_norms_that_were_removed_stay_away_on_the_fused_path(norm_first: bool) -> None:
    """After folding a layer without norms, evaluation gives what it gave with gates, with gradients and without."""
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=norm_first)
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    for parameter in layers.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)  # norms that do something
    x = torch.randn(B, 5, D)
    opened(layers, x, norms="remove")
    expected = layers(x)
    assert len(rezero.fold_(layers).folded) == 4
    torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)


def test_attention_alone_folds_into_its_output_projection() -> None:
    """The gate on nn.MultiheadAttention goes into out_proj."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(D, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.attention(x, x, x)[0]
            return y

    model, x = Attend(), torch.randn(B, 5, D)
    opened(model, x)
    expected = model(x)
    rezero.fold_(model)
    torch.testing.assert_close(model(x), expected)
    assert type(model.attention) is nn.MultiheadAttention


def test_a_layer_that_is_not_linear_in_its_weight_stays_gated_and_is_named() -> None:
    """A norm that multiplies by 1 + weight is left as it is."""
    model, x = Block(OnePlus(D)), torch.randn(B, D)
    model.first = nn.Linear(D, D)
    opened(model, x)
    expected = model(x)
    folded = rezero.fold_(model)
    assert folded.folded == ()
    assert [name for name, _ in folded.left] == ["last"]
    assert torch.equal(model(x), expected)
    assert "last.alpha" in model.state_dict()
    assert "1 left" in str(folded)


def test_a_shared_weight_stays_gated_and_its_places_are_named() -> None:
    """A weight that another layer uses is not scaled."""
    model, x = nn.Sequential(Block(nn.Linear(D, D)), nn.Linear(D, D)), torch.randn(B, D)
    model[1].weight = model[0].last.weight
    opened(model, x)
    expected = model(x)
    folded = rezero.fold_(model)
    assert folded.left == (("0.last", "its parameter is shared: 0.last.weight, 1.weight"),)
    assert torch.equal(model(x), expected)


def test_layers_that_share_a_gate_are_folded_together_or_not_at_all() -> None:
    """If one of two layers under a gate can't be folded, both keep it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Block(nn.Linear(D, D)), Block(OnePlus(D))
            self.b.first = nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = x + self.a.last(self.a.first(x))
            z: Tensor = y + self.b.last(self.b.first(y))
            return z

    model, x = Two(), torch.randn(B, D)
    opened(model, x, share="layer")
    expected = model(x)
    folded = rezero.fold_(model)
    assert folded.folded == ()
    assert len(folded.left) == 2
    assert torch.equal(model(x), expected)


def test_a_moved_activation_stays_gated() -> None:
    """A branch into which an activation was moved can't be folded: alpha may be negative."""

    class After(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.relu = nn.Linear(D, D), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.relu(x + self.f(x))
            return y

    model, x = After(), torch.randn(B, D)
    opened(model, x, activation_after="move")
    assert rezero.fold_(model).left == (("f", "an activation was moved into its branch"),)


@pytest.mark.parametrize("options", [{"init_value": 0.5}, {"init_value": 0.5, "norms": "remove"}, {}], ids=str)
def test_undo_after_folding_is_refused(options: dict[str, Any]) -> None:
    """Once a gate is in its weights Conversion.undo() can't take it out: it says so, and the folded model stays."""
    model = nn.Sequential(nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, norm_first=True)).eval()
    x = torch.randn(B, 3, D)
    conversion = rezero.convert_(model, x, **options)
    rezero.fold_(model)
    expected = model(x)
    with pytest.raises(UsageError, match="folded into the weights since, and folding stays"):
        conversion.undo()
    assert torch.equal(model(x), expected)


def test_a_model_without_gates_is_refused() -> None:
    """fold_ of a plain model says what it expected, of one built with gates that they stay."""
    with pytest.raises(UsageError, match=r"expected a model that rezero\.convert_ has gated"):
        rezero.fold_(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="its 2 gates of ReZero blocks and layers stay what they are"):
        rezero.fold_(nn.Sequential(*(rezero.ReZero(nn.Linear(2, 2)) for _ in range(2))))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got NoneType"):
        rezero.fold_(None)  # type: ignore[arg-type]


# Layers whose parameters are not all there is


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def computed_bias() -> nn.Module:
    """Return a linear layer whose bias is computed from another parameter."""
    layer = nn.Linear(D, D)
    nn.utils.parametrize.register_parametrization(layer, "bias", Exponential())
    return layer


class Bounded(nn.Module):
    """A scale behind an activation, which is linear in positive numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.factor).relu()


class TwoScales(nn.Module):
    """Is linear in one of its two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.power = nn.Parameter(torch.rand(D)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor * self.power.exp()


class Gain(nn.Module):
    """One number for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


class LowRank(nn.Linear):
    """A linear layer with a low-rank update beside its weight, as LoRA has it."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.down, self.up = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.up @ self.down, self.bias)


class Fixed(nn.Module):
    """A layer whose weights are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("weight")


UNFOLDED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, D)),
        {},
        "computed from other parameters",
    ),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(D, D)),
        {},
        "computed from other parameters",
    ),
    "computed bias": (computed_bias, {}, "does not scale with its parameters"),
    "behind an activation": (Bounded, {}, "does not scale with its parameters"),
    "two scales": (TwoScales, {}, "does not scale with its parameters"),
    "one gain": (Gain, {"gate": "channel"}, "does not scale with its parameters"),
    "low rank": (LowRank, {}, "is not known to be affine with weights of its own"),
    "buffers": (Fixed, {}, "is not known to be affine with weights of its own"),
    "layer norm without weights": (
        lambda: nn.LayerNorm(D, elementwise_affine=False),
        {},
        "is not known to be affine with weights of its own",
    ),
    "batch norm without weights": (
        lambda: nn.BatchNorm1d(D, affine=False),
        {},
        "is not known to be affine with weights of its own",
    ),
}


class Line(nn.Module):
    """A block on vectors whose branch ends with a given layer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), last

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.last(self.first(x).relu())
        return y


def negative(model: nn.Module, x: Any, **options: Any) -> nn.Module:
    """Convert a model and set its gates to different numbers below zero."""
    rezero.convert_(model, x, **options)
    for gate in rezero.gates(model).values():
        nn.init.uniform_(gate.gate_parameter, -1.5, -0.5)
    return model.eval()


@pytest.mark.parametrize(("last", "options", "reason"), UNFOLDED.values(), ids=UNFOLDED)
def test_what_does_not_scale_with_its_parameters_stays_gated(last: Any, options: Any, reason: str) -> None:
    """A layer whose output does not scale with weights of its own keeps its gate and its output, with the reason."""
    model, x = Line(last()), torch.randn(B, D)
    negative(model, x, **options)
    expected = model(x)
    folded = rezero.fold_(model)
    assert folded.folded == ()
    [(name, why)] = folded.left
    assert name == "last"
    assert reason in why
    assert torch.equal(model(x), expected)


class Borrows(nn.Module):
    """Uses the weight of its block's branch as its head, without calling that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Line(nn.Linear(D, D))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.block(x), self.block.last.weight)


def test_a_weight_that_other_code_reads_stays_gated() -> None:
    """A layer whose weight another module's code reads is not scaled, in a copy of the model neither."""
    model, x = Borrows(), torch.randn(B, D)
    negative(model, x)
    for each in (model, copy.deepcopy(model)):
        expected = each(x)
        assert rezero.fold_(each).left == (("block.last", "its parameters are read by the code of the model too"),)
        assert torch.equal(each(x), expected)


class SharesMemory(nn.Module):
    """The head's parameter is another one, on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Line(nn.Linear(D, D)), nn.Linear(D, D)
        self.head.weight = nn.Parameter(self.block.last.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.block(x))
        return y


def test_parameters_on_the_same_memory_stay_gated() -> None:
    """Parameters that are different objects on one memory are shared as well."""
    model, x = SharesMemory(), torch.randn(B, D)
    negative(model, x)
    expected = model(x)
    assert rezero.fold_(model).left == (("block.last", "its parameter is shared: block.last.weight, head.weight"),)
    assert torch.equal(model(x), expected)


class Extra(nn.Linear):
    """A linear layer that keeps something else too."""

    def __init__(self) -> None:
        super().__init__(D, D)
        self.temperature = nn.Parameter(torch.ones(1))


def test_other_parameters_of_a_known_layer_stay() -> None:
    """Of a linear layer with a parameter more, weight and bias are scaled and the other one is not."""
    model, x = Line(Extra()), torch.randn(B, D)
    negative(model, x)
    expected = model(x)
    assert rezero.fold_(model).folded == ("last",)
    torch.testing.assert_close(model(x), expected)
    assert model.get_parameter("last.temperature").item() == 1.0


SQUARES = {
    "layer norm over two axes": (lambda: nn.LayerNorm((D, D)), nn.Linear, (B, D, D)),
    "convolution without a batch": (lambda: nn.Conv2d(D, D, 3, padding=1), lambda *_: nn.Conv2d(D, D, 1), (D, D, D)),
    "one axis without a batch": (lambda: nn.Conv1d(D, D, 3, padding=1), lambda *_: nn.Conv1d(D, D, 1), (D, D)),
    "instance norm": (lambda: nn.InstanceNorm2d(D, affine=True), lambda *_: nn.Conv2d(D, D, 1), (B, D, D, D)),
}


@pytest.mark.parametrize(("last", "first", "shape"), SQUARES.values(), ids=SQUARES)
def test_channels_are_told_from_other_axes_of_their_size(last: Any, first: Any, shape: tuple[int, ...]) -> None:
    """A gate a channel goes along the channels, and folds along them, where all axes are equally long."""
    model, x = Line(last()), torch.randn(shape)
    model.first = first(D, D)
    twin = copy.deepcopy(model).eval()
    negative(model, x, gate="channel")
    branch = twin(x) - x
    scale = model.get_parameter("last.alpha")
    along = scale if isinstance(model.last, nn.LayerNorm) else scale.view(-1, *[1] * (2 if len(shape) > 2 else 1))
    expected = x + along * branch
    torch.testing.assert_close(model(x), expected)
    assert rezero.fold_(model).folded == ("last",)
    torch.testing.assert_close(model(x), expected)


def test_trying_a_fold_calls_no_hooks_and_changes_no_statistics() -> None:
    """A layer is tried on a copy without its hooks: nobody is called, and batch statistics stay."""
    model, x, calls = Block(nn.BatchNorm2d(D)), torch.randn(B, D, 6, 6), []
    opened(model, x)
    model.last.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(dict(model.named_buffers()))
    random = torch.get_rng_state()
    model.train()
    assert rezero.fold_(model).folded == ("last",)
    assert calls == []
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_folded_norm_trains_like_the_gated_one() -> None:
    """In training, too, a folded batch norm gives the gated output, from the batch's statistics."""
    model, x = Block(nn.BatchNorm2d(D)), torch.randn(B, D, 6, 6)
    opened(model, x)
    twin = copy.deepcopy(model)
    rezero.fold_(model)
    torch.testing.assert_close(model.train()(x), twin.train()(x))


def test_a_model_without_numbers_is_refused() -> None:
    """On the meta device there is nothing to fold into."""
    with torch.device("meta"):
        model = Line(nn.Linear(D, D))
    rezero.convert_(model, torch.randn(B, D))
    with pytest.raises(UsageError, match="on the meta device and has no numbers: load them before folding"):
        rezero.fold_(model)


def test_a_low_precision_fold_rounds_once() -> None:
    """In bfloat16 each folded weight is the exact product, rounded once."""
    model, x = Line(nn.Linear(D, D)), torch.randn(B, D)
    opened(model, x)
    model.bfloat16()
    exact = model.get_parameter("last.weight").double() * model.get_parameter("last.alpha").double()
    rezero.fold_(model)
    assert torch.equal(model.get_parameter("last.weight"), exact.bfloat16())
