"""The other residual formulas, against the formulas written out."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero import Gate, ReZero, gates
from rezero.layers import LayerScale, Residual, ScalarBias, ScalarScale, residual_block
from rezero.layers.residuals import RESIDUALS

D = 5
F64 = torch.float64


def scramble_(module: nn.Module) -> nn.Module:
    """Give every parameter random values, so that no norm or gate is at its neutral start."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


# One formula an arm, from the block's parameters; f is the branch.
Parameters = dict[str, Tensor]
Branch = Callable[[Tensor], Tensor]


def norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), p[f"{name}.weight"], p[f"{name}.bias"])


FORMULAS: dict[str, Callable[[Parameters, Branch, Tensor, int], Tensor]] = {
    "plain": lambda _p, f, x, _depth: f(x),
    "residual": lambda _p, f, x, _depth: x + f(x),
    "post-norm": lambda p, f, x, _depth: norm(p, "post_norm", x + f(x)),
    "pre-norm": lambda p, f, x, _depth: x + f(norm(p, "pre_norm", x)),
    "rezero": lambda p, f, x, _depth: x + p["gate.alpha"] * f(x),
    "skipinit": lambda p, f, x, _depth: x + p["gate.alpha"] * f(x),
    "layerscale": lambda p, f, x, _depth: x + p["scale.scale"] * f(norm(p, "pre_norm", x)),
    "deepnorm": lambda p, f, x, depth: norm(p, "post_norm", depth**0.25 * x + f(x)),
}


@pytest.mark.parametrize("depth", [1, 12, 30], ids=str)
@pytest.mark.parametrize("residual", FORMULAS)
def test_each_block_is_its_formula(residual: str, depth: int) -> None:
    """residual_block joins branch and skip by the formula of its name, with every parameter away from its start."""
    branch = nn.Sequential(nn.Linear(D, D), nn.Tanh())
    block = scramble_(residual_block(residual, branch, D, depth=depth).double())
    x = torch.randn(3, 4, D, dtype=F64)
    expected = FORMULAS[residual](dict(block.named_parameters()), branch, x, depth)
    torch.testing.assert_close(block(x), expected, rtol=1e-14, atol=1e-14)


def test_the_table_of_formulas_is_complete() -> None:
    """Every name in RESIDUALS is tested as a block, or is more than an addition and refused as one."""
    assert set(RESIDUALS) == {*FORMULAS, "plain-norm", "fixup"}
    assert all(RESIDUALS.values())


@pytest.mark.parametrize("name", ["plain-norm", "fixup", "resnet", ""], ids=repr)
def test_refuses_names_that_are_no_block(name: str) -> None:
    """An unknown name is an error that lists the known ones."""
    with pytest.raises(ValueError, match=f"no residual block is called {name!r}") as error:
        residual_block(name, nn.Linear(D, D), D, depth=1)
    assert "pre-norm" in str(error.value)


def test_what_an_error_offers_is_accepted() -> None:
    """Every name that the error of an unknown block offers can be built."""
    with pytest.raises(ValueError, match="choose from") as error:
        residual_block("resnet", nn.Linear(D, D), D, depth=1)
    for name in str(error.value).split("choose from ")[1].split(", "):
        residual_block(name, nn.Linear(D, D), D, depth=1)


@pytest.mark.parametrize("residual", ["rezero", "skipinit"])
def test_gated_blocks_start_as_the_identity(residual: str) -> None:
    """The rezero and skipinit blocks are ReZero blocks with one closed scalar gate."""
    block = residual_block(residual, nn.Linear(D, D), D, depth=3)
    assert isinstance(block, ReZero)
    assert [gate.alpha.tolist() for gate in gates(block).values()] == [[0.0]]
    x = torch.randn(2, D)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("residual", FORMULAS)
def test_blocks_take_device_and_dtype(residual: str) -> None:
    """New parameters are made on the device and in the dtype asked for; gates are at least float32."""
    branch = nn.Linear(D, D, device="meta", dtype=torch.bfloat16)
    block = residual_block(residual, branch, D, depth=3, device="meta", dtype=torch.bfloat16)
    for name, parameter in block.named_parameters():
        assert parameter.is_meta, name
        assert parameter.dtype == (torch.float32 if name == "gate.alpha" else torch.bfloat16), name


@pytest.mark.parametrize("skip_scale", [1.0, 2.5], ids=str)
@pytest.mark.parametrize("parts", range(16), ids=lambda bits: f"parts {bits:04b}")
def test_residual_combines_its_parts(parts: int, skip_scale: float) -> None:
    """Residual is post_norm(skip_scale skip(x) + scale(branch(pre_norm(x)))) with any of the parts left out."""
    pre, scale, post, skip = (
        module if parts >> i & 1 else None
        for i, module in enumerate((nn.LayerNorm(D), LayerScale(D, depth=1), nn.RMSNorm(D), nn.Linear(D, D)))
    )
    branch = nn.Linear(D, D)
    block = Residual(branch, skip=skip, pre_norm=pre, scale=scale, post_norm=post, skip_scale=skip_scale)
    scramble_(block.double())
    x = torch.randn(3, D, dtype=F64)
    f = branch(x if pre is None else pre(x))
    y = skip_scale * (x if skip is None else skip(x)) + (f if scale is None else scale.scale * f)
    torch.testing.assert_close(block(x), y if post is None else post(y), rtol=1e-14, atol=1e-14)


class Shift(nn.Module):
    """A branch with arguments of its own."""

    def forward(self, x: Tensor, by: float, *, times: float = 1.0) -> Tensor:
        return x + by * times


@pytest.mark.parametrize("residual", FORMULAS)
def test_blocks_pass_arguments_on_to_the_branch(residual: str) -> None:
    """What a block is called with beside x goes to its branch, in every arm alike."""
    block = scramble_(residual_block(residual, Shift(), D, depth=3).double())
    x = torch.randn(3, D, dtype=F64)
    expected = FORMULAS[residual](dict(block.named_parameters()), lambda h: h + 6.0, x, 3)
    torch.testing.assert_close(block(x, 2.0, times=3.0), expected, rtol=1e-14, atol=1e-14)


def test_residual_changes_the_shape_with_its_branch() -> None:
    """A skip module lets a block lead from one shape to another."""
    block = Residual(nn.Linear(D, 2), skip=nn.Linear(D, 2))
    x = torch.randn(3, D)
    assert torch.equal(block(x), block.skip(x) + block.branch(x))


def test_residual_print_shows_the_skip_scale() -> None:
    """print(model) shows a skip scale other than 1."""
    assert "skip_scale=2.5" in repr(Residual(nn.Identity(), skip_scale=2.5))
    assert "skip_scale" not in repr(Residual(nn.Identity()))


@pytest.mark.parametrize(
    ("depth", "start"),
    [(1, 0.1), (12, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (36, 1e-6)],
    ids=lambda value: f"{value:g}",
)
def test_layer_scale_starts_by_depth(depth: int, start: float) -> None:
    """LayerScale starts at CaiT's 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond, and reset returns there."""
    scale = LayerScale(D, depth=depth)
    for _ in range(2):
        assert torch.equal(scale.scale, torch.full((D,), start))
        scramble_(scale)
        scale.reset_parameters()
    f = torch.randn(2, D)
    assert torch.equal(scale(f), start * f)
    assert repr(scale) == f"LayerScale(5, init_value={start:g})"


def test_layer_scale_is_no_gate() -> None:
    """A LayerScale is not listed among the gates, and scales channel by channel."""
    scale = LayerScale(3, depth=1)
    assert gates(scale) == {}
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert scale(torch.ones(2, 3)).tolist() == [[1.0, 2.0, 3.0]] * 2


def test_layer_scale_finds_its_axis() -> None:
    """With axis=-3 the channels of an image are scaled, in a batch and alone, and print(model) shows it."""
    scale = LayerScale(3, depth=1, axis=-3)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    image = torch.randn(2, 3, 4, 5)
    expected = torch.stack([(i + 1) * image[:, i] for i in range(3)], dim=1)
    assert torch.equal(scale(image), expected)
    assert torch.equal(scale(image[0]), expected[0])
    assert repr(scale) == "LayerScale(3, init_value=0.1, axis=-3)"


@pytest.mark.parametrize(
    ("dim", "axis", "message"), [(0, -1, "dim must be at least 1: got 0"), (2, 1, "axis must .* 1")]
)
def test_layer_scale_refuses(dim: int, axis: int, message: str) -> None:
    """A size below 1, or an axis counted from the front, is an error that names it."""
    with pytest.raises(ValueError, match=message):
        LayerScale(dim, depth=1, axis=axis)


def test_scalars_start_neutral() -> None:
    """Fixup's scalars are one number each, neutral at the start and after a reset, and no gates."""
    bias, scale, x = ScalarBias(), ScalarScale(), torch.randn(2, D)
    for _ in range(2):
        assert torch.equal(scale(bias(x)), x)
        scramble_(bias)
        scramble_(scale)
        assert torch.equal(bias(x), x + bias.bias.item())
        assert torch.equal(scale(x), x * scale.scale.item())
        bias.reset_parameters()
        scale.reset_parameters()
    assert bias.bias.shape == scale.scale.shape == (1,)
    assert gates(nn.Sequential(bias, scale)) == {}


def test_deepnorm_scales_the_skip_and_not_the_branch() -> None:
    """DeepNorm multiplies x by (2N)^(1/4) with 2N branches, and not f, as one well-known tutorial has it."""
    block = residual_block("deepnorm", nn.Identity(), D, depth=16)
    assert isinstance(block, Residual)
    assert math.isclose(block.skip_scale, 2.0)
    assert block.post_norm is not None


def test_plain_is_the_branch_itself() -> None:
    """The plain block adds nothing around the branch."""
    branch = nn.Linear(D, D)
    assert residual_block("plain", branch, D, depth=1) is branch


def test_gate_of_a_block_is_its_own() -> None:
    """Two blocks of a network have a gate each."""
    first, second = (residual_block("rezero", nn.Linear(D, D), D, depth=2) for _ in range(2))
    assert isinstance(first.get_submodule("gate"), Gate)
    assert first.get_submodule("gate") is not second.get_submodule("gate")
