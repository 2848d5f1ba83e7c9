"""Zero twice never learns: which branches a block that starts at zero refuses, and which it must not."""

import copy
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from rezero import Gate, ReZero
from rezero.layers import Attention
from rezero.zero_last import find_zero_last

Layer = TypeVar("Layer", bound=nn.Module)


def zero(layer: Layer) -> Layer:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def zero_output_attention(attention: nn.Module) -> nn.Module:
    zero(attention.get_submodule("out_proj"))
    return attention


class SelfAttention(nn.Module):
    """An attention branch that takes one input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        zero(self.attention.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return y


class Gated(nn.Module):
    """A gated linear unit whose gate is a zero linear layer: no gradient reaches anything."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value = zero(nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gate(x) * self.value(x)
        return y


class FirstOfTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = zero(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), x


DEAD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: zero(nn.Linear(4, 4)), (2, 4), "Linear"),
    "linear without bias": (lambda: zero(nn.Linear(4, 4, bias=False)), (2, 4), "Linear"),
    "last linear": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), zero(nn.Linear(8, 4))), (2, 4), "2: Linear"),
    "linear and dropout": (lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Dropout(0.5)), (2, 4), "0: Linear"),
    "linear and tanh": (lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Tanh()), (2, 4), "0: Linear"),
    "half linear": (lambda: zero(nn.Linear(4, 4, dtype=torch.bfloat16)), (2, 4), "Linear"),
    "conv1d": (lambda: zero(nn.Conv1d(4, 4, 3, padding=1)), (2, 4, 9), "Conv1d"),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), zero(nn.Conv2d(4, 4, 1))), (2, 4, 9, 9), "1: Conv2d"),
    "conv2d dilated": (
        lambda: zero(nn.Conv2d(4, 4, (3, 5), dilation=(7, 3), padding="same")),
        (2, 4, 9, 9),
        "Conv2d",
    ),
    "conv2d in groups": (lambda: zero(nn.Conv2d(4, 4, 3, padding=1, groups=4)), (2, 4, 9, 9), "Conv2d"),
    "conv3d": (lambda: zero(nn.Conv3d(4, 4, 3, padding=1)), (2, 4, 5, 5, 5), "Conv3d"),
    "transposed conv1d": (lambda: zero(nn.ConvTranspose1d(4, 4, 1)), (2, 4, 9), "ConvTranspose1d"),
    "transposed conv2d": (lambda: zero(nn.ConvTranspose2d(4, 4, 1)), (2, 4, 9, 9), "ConvTranspose2d"),
    "transposed conv3d": (lambda: zero(nn.ConvTranspose3d(4, 4, 1)), (2, 4, 5, 5, 5), "ConvTranspose3d"),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(4, 4), zero(nn.BatchNorm1d(4))), (2, 4), "1: BatchNorm1d"),
    "batch norm 2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), zero(nn.BatchNorm2d(4))), (2, 4, 9, 9), "1: BatchNorm"),
    "batch norm 3d": (
        lambda: nn.Sequential(nn.Conv3d(4, 4, 1), zero(nn.BatchNorm3d(4))),
        (2, 4, 5, 5, 5),
        "1: BatchNorm3d",
    ),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), zero(nn.GroupNorm(2, 4))), (2, 4, 9, 9), "1: GroupNorm"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 4), zero(nn.LayerNorm(4))), (2, 4), "1: LayerNorm"),
    "rms norm": (lambda: nn.Sequential(nn.Linear(4, 4), zero(nn.RMSNorm(4))), (2, 4), "1: RMSNorm"),
    "zero conv before batch norm": (
        lambda: nn.Sequential(zero(nn.Conv2d(4, 4, 3, padding=1, bias=False)), nn.BatchNorm2d(4)),
        (2, 4, 9, 9),
        "0: Conv2d",
    ),
    "zero linear before layer norm": (
        lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.LayerNorm(4)),
        (2, 4),
        "0: Linear",
    ),
    "multi-head attention": (SelfAttention, (2, 3, 4), "attention.out_proj: NonDynamicallyQuantizableLinear"),
    "our attention": (lambda: zero_output_attention(Attention(4, 2)), (2, 3, 4), "out_proj: Linear"),
    "zero gate of a gated unit": (Gated, (2, 4), "gate: Linear"),
    "first of a tuple": (FirstOfTuple, (2, 4), "linear: Linear"),
}


@pytest.mark.parametrize(("build", "shape", "culprit"), DEAD.values(), ids=DEAD)
def test_refuses_a_branch_that_can_never_learn(
    build: Callable[[], nn.Module], shape: tuple[int, ...], culprit: str
) -> None:
    """A branch that outputs only zeros behind a closed gate is refused, and the layer to blame is named."""
    with pytest.raises(ValueError, match="the branch outputs only zeros because of") as error:
        ReZero(build())
    assert f"because of {culprit}" in str(error.value)
    assert "gate=Gate(init_value=1.0)" in str(error.value)


@pytest.mark.parametrize(("build", "shape", "culprit"), DEAD.values(), ids=DEAD)
def test_what_is_refused_really_never_learns(
    build: Callable[[], nn.Module], shape: tuple[int, ...], culprit: str
) -> None:
    """Behind a closed gate the refused branches leave every gradient at exactly zero: the refusal is right."""
    block = ReZero(build(), gate=Gate(init_value=1.0))
    nn.init.zeros_(block.gate.alpha)
    x = torch.randn(shape, dtype=next(block.branch.parameters()).dtype)
    y = block(x)
    y = y[0] if isinstance(y, tuple) else y
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in block.parameters())


def test_multihead_attention_itself_is_refused() -> None:
    """A bare nn.MultiheadAttention with a zero output projection is judged without being run."""
    with pytest.raises(ValueError, match="because of out_proj: "):
        ReZero(zero_output_attention(nn.MultiheadAttention(4, 2)))


@pytest.mark.parametrize(("build", "shape", "culprit"), DEAD.values(), ids=DEAD)
def test_an_open_gate_may_have_a_zero_branch(
    build: Callable[[], nn.Module], shape: tuple[int, ...], culprit: str
) -> None:
    """With init_value other than 0 the branch may start at zero, and gets a gradient."""
    block = ReZero(build(), gate=Gate(init_value=1.0))
    x = torch.randn(shape, dtype=next(block.branch.parameters()).dtype)
    y = block(x)
    y = y[0] if isinstance(y, tuple) else y
    assert torch.equal(y, x)
    (y * torch.randn_like(y)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in block.branch.parameters())


class GemmaNorm(nn.Module):
    """A norm that multiplies by 1 + weight, so that zero is its neutral start (Gemma)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight)


class RMSNormPlusOne(nn.RMSNorm):
    """The same as a subclass of torch's norm, whose parameters alone look like a dead layer."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        zero(self)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight, 1e-6)


class LoRA(nn.Module):
    """A frozen linear layer with a low-rank correction in parallel whose second factor starts at zero."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.base = nn.Linear(dim, dim)
        self.down, self.up = nn.Linear(dim, 2, bias=False), zero(nn.Linear(2, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


class SequenceLoRA(LoRA):
    """The same, for sequences only."""

    def forward(self, x: Tensor) -> Tensor:
        _batch, _length, _width = x.shape
        return super().forward(x)


class ContextLoRA(LoRA):
    """The same, with a second input."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        y: Tensor = self.base(context) + self.up(self.down(x))
        return y


class StrictLoRA(LoRA):
    """The same, with an assertion on its input, as nn.MultiheadAttention has them."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 3, "expected a batch of sequences"
        return super().forward(x)


class UnusualError(Exception):
    pass


class UnusualLoRA(LoRA):
    """The same, with an exception of its own for inputs that it does not like."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise UnusualError("expected a batch of sequences")
        return super().forward(x)


class ZeroInside(nn.Module):
    """A zero layer that is added to something alive, registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.zero = nn.Linear(4, 4), zero(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.alive(x) + self.zero(x)
        return y


class RandomInEval(nn.Module):
    """A zero layer in a branch that draws random numbers in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = zero(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.zero(x) + torch.randn_like(x)
        return y


ALIVE: dict[str, Callable[[], nn.Module]] = {
    "usual linear": lambda: nn.Linear(4, 4),
    "no parameters": nn.Tanh,
    "norm by 1 + weight": lambda: nn.Sequential(nn.Linear(4, 4), GemmaNorm(4)),
    "torch's norm by 1 + weight": lambda: nn.Sequential(nn.Linear(4, 4), RMSNormPlusOne(4)),
    "norm without parameters": lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False)),
    "zero linear before sigmoid": lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Sigmoid()),
    "zero linear before linear": lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Linear(4, 4)),
    "zero weight with a bias": lambda: nn.Sequential(nn.Linear(4, 4), only_bias(nn.Linear(4, 4))),
    "zero norm weight with a bias": lambda: nn.Sequential(nn.Linear(4, 4), only_bias(nn.LayerNorm(4))),
    "low-rank correction": lambda: LoRA(4),
    "zero layer in parallel": ZeroInside,
    "random in evaluation": RandomInEval,
}


def only_bias(layer: nn.Linear | nn.LayerNorm) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer


@pytest.mark.parametrize("build", ALIVE.values(), ids=ALIVE)
def test_accepts_a_branch_that_is_alive(build: Callable[[], nn.Module]) -> None:
    """A branch whose output is not zero is accepted, and alpha gets a gradient, whatever its parameters look like."""
    block = ReZero(build())
    y = block(torch.randn(8, 4))
    (y * torch.randn_like(y)).sum().backward()
    assert block.gate.alpha.grad is not None
    assert block.gate.alpha.grad.any()


@pytest.mark.parametrize(
    "build", [SequenceLoRA, StrictLoRA, UnusualLoRA], ids=["cannot unpack", "asserts", "raises its own error"]
)
def test_accepts_an_alive_branch_for_sequences(build: Callable[[int], nn.Module]) -> None:
    """A live branch that takes only (B, T, D) is judged by its output too, whatever it raises on other inputs."""
    block = ReZero(build(4))
    y = block(torch.randn(2, 3, 4))
    (y * torch.randn_like(y)).sum().backward()
    assert block.gate.alpha.grad is not None
    assert block.gate.alpha.grad.any()


def test_a_branch_that_cannot_be_run_is_judged_by_its_last_layer() -> None:
    """A branch that needs a second input is refused if its last layer is zero, and accepted if that is alive."""
    with pytest.raises(ValueError, match="because of up: "):
        ReZero(ContextLoRA(4))
    branch = ContextLoRA(4)
    zero(branch.base)
    nn.init.ones_(branch.up.weight)
    ReZero(branch)


@pytest.mark.parametrize("norm", [GemmaNorm, RMSNormPlusOne], ids=["own", "torch's"])
def test_a_norm_by_1_plus_weight_is_not_blamed_where_the_branch_cannot_be_run(norm: Callable[[int], nn.Module]) -> None:
    """A last layer whose zero parameters do not make its output zero is no reason to refuse, without a run either."""

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), norm(4)

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            y: Tensor = self.norm(self.linear(x) + other)
            return y

    block = ReZero(TwoInputs())
    y = block(torch.randn(2, 4), torch.randn(2, 4))
    (y * torch.randn_like(y)).sum().backward()
    assert block.gate.alpha.grad is not None
    assert block.gate.alpha.grad.any()


def test_an_error_of_the_branch_does_not_escape() -> None:
    """A branch that fails on the probe is judged by its last layer: refused if that is zero, never with its error."""

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = zero(nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            raise UnusualError(f"no {x.ndim}-d input")

    with pytest.raises(ValueError, match="because of linear: "):
        ReZero(Picky())


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LazyLinear(4),
        lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(4)),
        lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), zero(nn.Linear(8, 4)), nn.Sigmoid()),
        lambda: nn.Sequential(zero(nn.Linear(4, 8)), nn.Sigmoid(), nn.LazyLinear(4)),
    ],
    ids=["linear", "two linears", "before a zero layer", "after a zero layer"],
)
def test_lazy_modules_are_not_judged_and_stay_lazy(build: Callable[[], nn.Module]) -> None:
    """A branch with lazy layers is accepted, takes its sizes from the first real input, and starts as the identity."""
    block = ReZero(build())
    assert any(isinstance(p, nn.parameter.UninitializedParameter) for p in block.parameters())
    x = torch.randn(2, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    "build",
    [
        lambda: zero(nn.Linear(4, 4, device="meta")),
        lambda: nn.Sequential(nn.Linear(4, 4, device="meta"), nn.BatchNorm1d(4, device="meta")),
        lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Linear(4, 4, device="meta")),
    ],
    ids=["linear", "batch norm", "zero layer before"],
)
def test_the_meta_device_is_not_judged(build: Callable[[], nn.Module]) -> None:
    """Parameters without values are no evidence: a branch on the meta device is accepted."""
    assert find_zero_last(build()) is None
    ReZero(build())


@pytest.mark.parametrize(
    ("build", "dead"),
    [
        (lambda: nn.Linear(4, 4), False),
        (lambda: nn.Sequential(zero(nn.Linear(4, 4)), nn.Sigmoid()), False),
        (lambda: zero(nn.Linear(4, 4)), True),
    ],
    ids=["usual", "zero and sigmoid", "zero"],
)
def test_the_verdict_does_not_hang_on_the_default_device(build: Callable[[], nn.Module], dead: bool) -> None:
    """A real branch is judged as usual where another device is the default for new tensors."""
    branch = build()
    with torch.device("meta"):
        verdict = find_zero_last(branch)
    assert (verdict is not None) == dead


def test_the_verdict_is_the_same_every_time() -> None:
    """The probe is seeded by itself: other seeds and the order of calls do not change a verdict."""
    branch = nn.Sequential(zero(nn.Linear(4, 4)), nn.Sigmoid())
    verdicts = []
    for seed in range(3):
        torch.manual_seed(seed)
        verdicts.append(find_zero_last(branch))
    assert verdicts == [None] * 3


def test_names_the_layer() -> None:
    """The verdict is the qualified name and the layer, or the layer alone where it is the branch itself."""
    layer = zero(nn.Linear(4, 4))
    assert find_zero_last(layer) == "Linear(in_features=4, out_features=4, bias=True)"
    nested = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), copy.deepcopy(layer)))
    assert find_zero_last(nested) == "1.1: Linear(in_features=4, out_features=4, bias=True)"


def test_a_branch_without_a_tensor_is_not_judged_by_running() -> None:
    """A branch that returns no tensor is judged by its last layer."""

    class Wrapped(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": self.layer(x)}

    assert find_zero_last(Wrapped(nn.Linear(4, 4))) is None
    assert find_zero_last(Wrapped(zero(nn.Linear(4, 4)))) == "layer: Linear(in_features=4, out_features=4, bias=True)"
