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


def test_undo_after_folding_keeps_the_folded_model() -> None:
    """Conversion.undo() finds nothing left to undo, and does not harm."""
    model, x = Block(nn.Linear(D, D)), torch.randn(B, D)
    conversion = rezero.convert_(model, x, init_value=0.5)
    rezero.fold_(model)
    expected = model(x)
    conversion.undo()
    assert torch.equal(model(x), expected)


def test_a_model_without_gates_is_refused() -> None:
    """fold_ of a plain model says what it expected."""
    with pytest.raises(UsageError, match=r"expected a model that rezero\.convert_ has gated"):
        rezero.fold_(nn.Linear(2, 2))
