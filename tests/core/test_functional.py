"""The mathematics of a gated residual."""

import math

import pytest
import torch
from torch import Tensor

from rezero.functional import gated_residual
from rezero.kernels import reference

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def operands(*shape: int, gate: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype), torch.randn(gate, dtype=dtype)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5), (2, 3, 1, 5)], ids=str)
@pytest.mark.parametrize("gate", [1, 5], ids=["scalar", "channel"])
def test_equals_its_formula(shape: tuple[int, ...], gate: int) -> None:
    """gated_residual is x + alpha * f, entry by entry, with alpha read along the last axis."""
    x, f, alpha = operands(*shape, gate=gate)
    expected = torch.empty_like(x)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).reshape(-1, len(shape)).tolist():
        i = tuple(index)
        expected[i] = x[i] + alpha[i[-1] % gate] * f[i]
    assert torch.equal(gated_residual(x, f, alpha), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("gate", [1, 4], ids=["scalar", "channel"])
def test_gradients_are_those_of_the_formula(alpha: float, gate: int) -> None:
    """First and second derivatives with respect to x, f and alpha pass gradcheck, at zero and away from it."""
    x, f, _ = operands(2, 3, 4)
    inputs = (x.requires_grad_(), f.requires_grad_(), torch.full((gate,), alpha, dtype=torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(gated_residual, inputs)
    assert torch.autograd.gradgradcheck(gated_residual, inputs)


@pytest.mark.parametrize("gate", [1, 4], ids=["scalar", "channel"])
def test_gradient_of_alpha_is_the_inner_product_with_the_branch(gate: int) -> None:
    """The gradient of alpha is sum(g * f), over everything or a channel."""
    x, f, alpha = operands(3, 2, 4, gate=gate)
    g = torch.randn(3, 2, 4, dtype=torch.float64)
    gated_residual(x, f, alpha.requires_grad_()).backward(g)
    products = (g * f).sum((0, 1))
    torch.testing.assert_close(alpha.grad, products if gate == 4 else products.sum(0, keepdim=True))


@pytest.mark.parametrize("alpha_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("f_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=name)
def test_dtype_is_that_of_x_plus_f(x_dtype: torch.dtype, f_dtype: torch.dtype, alpha_dtype: torch.dtype) -> None:
    """The output has the dtype of x + f, whatever alpha's, for tensors of every rank."""
    for shape in [(), (3,), (2, 3)]:
        x, f = torch.randn(shape).to(x_dtype), torch.randn(shape).to(f_dtype)
        y = gated_residual(x, f, torch.full((1,), 0.5, dtype=alpha_dtype))
        assert y.dtype == (x + f).dtype
        assert y.shape == x.shape


@pytest.mark.parametrize("alpha_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("f_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=name)
def test_is_formed_in_the_widest_dtype(x_dtype: torch.dtype, f_dtype: torch.dtype, alpha_dtype: torch.dtype) -> None:
    """Product and sum are formed in the widest of the three dtypes, and only the result is rounded."""
    widest = torch.promote_types(torch.promote_types(x_dtype, f_dtype), alpha_dtype)
    x, f = torch.randn(64).to(x_dtype), torch.randn(64).to(f_dtype)
    alpha = torch.tensor([0.3]).to(alpha_dtype)
    expected = (x.to(widest) + alpha.to(widest) * f.to(widest)).to(torch.promote_types(x_dtype, f_dtype))
    assert torch.equal(gated_residual(x, f, alpha), expected)


def test_a_float32_alpha_acts_with_its_own_precision_on_half_tensors() -> None:
    """Beside bfloat16 tensors neither a float32 alpha nor its product is rounded before the sum."""
    x, f = torch.full((1,), -256.0, dtype=torch.bfloat16), torch.full((1,), 256.0, dtype=torch.bfloat16)
    alpha = torch.tensor([1.005])  # as bfloat16: 1.0078, and the product would be 258
    assert gated_residual(x, f, alpha).item() == pytest.approx(256 * 0.005, rel=2**-8)


@pytest.mark.parametrize("f_scale", [1.0, 1e4], ids=["usual", "huge"])
@pytest.mark.parametrize("gate", [1, 7], ids=["scalar", "channel"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_a_closed_gate_returns_x_bitwise(dtype: torch.dtype, gate: int, f_scale: float) -> None:
    """With alpha = 0 the output is torch.equal to x in every dtype, for any finite branch."""
    x, f = torch.randn(4, 7).to(dtype), (f_scale * torch.randn(4, 7)).to(dtype)
    assert f.isfinite().all()
    for alpha in (torch.zeros(gate), -torch.zeros(gate), torch.zeros(gate, dtype=dtype)):
        y = gated_residual(x, f, alpha)
        assert y.dtype == dtype
        assert torch.equal(y, x)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan], ids=str)
def test_a_branch_that_is_not_finite_shows_behind_a_closed_gate(bad: float) -> None:
    """0 * inf is nan: a closed gate hides no overflow, and spoils no other entry."""
    x, f = torch.ones(3), torch.tensor([1.0, bad, 2.0])
    assert gated_residual(x, f, torch.zeros(1)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("x", "f"),
    [((2, 3), (2, 4)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((1, 3), (2, 3)), ((), (1,))],
    ids=["width", "rank", "broadcast f", "broadcast x", "0-d"],
)
def test_refuses_a_branch_of_another_shape(x: tuple[int, ...], f: tuple[int, ...]) -> None:
    """A branch that changed the shape is refused, even where it would broadcast, and both shapes are named."""
    with pytest.raises(ValueError, match=r"must keep the shape") as error:
        gated_residual(torch.zeros(x), torch.zeros(f), torch.zeros(1))
    assert f"expected {x}, got {f}" in str(error.value)


@pytest.mark.parametrize(
    ("x", "alpha"),
    [((2, 3), (2,)), ((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 3), ()), ((), (2,))],
    ids=["other width", "full", "extra axis", "0-d gate", "0-d branch"],
)
def test_refuses_a_gate_of_another_shape(x: tuple[int, ...], alpha: tuple[int, ...]) -> None:
    """A gate that is neither (1,) nor one entry a feature is refused, and both shapes are named."""
    with pytest.raises(ValueError, match=r"alpha must have shape \(1,\)") as error:
        gated_residual(torch.zeros(x), torch.zeros(x), torch.zeros(alpha))
    assert str(x[-1:]) in str(error.value)
    assert f"got {alpha}" in str(error.value)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 4)], ids=["0-d inside", "1-d inside", "2-d inside"])
def test_vmap_over_samples_equals_the_batch(shape: tuple[int, ...]) -> None:
    """torch.vmap over the batch gives the batched result, down to a 0-d sample, whose shape is kept."""
    x, f, alpha = operands(*shape)
    torch.testing.assert_close(torch.vmap(gated_residual, (0, 0, None))(x, f, alpha), x + alpha * f, rtol=0, atol=0)


def test_vmap_over_gates_makes_an_ensemble() -> None:
    """torch.vmap over alpha alone gives one output a gate."""
    x, f, _ = operands(2, 4)
    alphas = torch.randn(5, 1, dtype=torch.float64)
    y = torch.vmap(gated_residual, (None, None, 0))(x, f, alphas)
    torch.testing.assert_close(y, x + alphas[:, :, None] * f, rtol=0, atol=0)


def test_per_sample_gradients_add_up_to_the_gradient() -> None:
    """vmap(grad) gives alpha's gradient a sample, and their sum is the batch's gradient."""
    x, f, alpha = operands(6, 4)

    def loss(alpha: Tensor, x: Tensor, f: Tensor) -> Tensor:
        return gated_residual(x, f, alpha).square().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0, 0))(alpha, x, f)
    assert each.shape == (6, 1)
    torch.testing.assert_close(each.sum(0), torch.func.grad(loss)(alpha, x, f))


def test_strides_do_not_matter() -> None:
    """Transposed and sliced tensors give what their contiguous copies give."""
    x, f, alpha = torch.randn(4, 6)[:, ::2].T, torch.randn(3, 4), torch.randn(4)
    assert torch.equal(gated_residual(x, f, alpha), gated_residual(x.contiguous(), f, alpha))


def test_inputs_are_left_alone() -> None:
    """The operands are not changed in place, and the output does not alias x."""
    x, f, alpha = operands(2, 3)
    before = x.clone(), f.clone(), alpha.clone()
    gated_residual(x, f, torch.zeros_like(alpha)).add_(1)
    assert all(torch.equal(a, b) for a, b in zip((x, f, alpha), before, strict=True))


def test_the_cpu_takes_the_plain_torch_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch goes by x's device, and a device without a kernel of its own takes the reference."""
    calls: list[str] = []

    def spy(x: Tensor, *_: object) -> Tensor:
        calls.append(x.device.type)
        return x

    monkeypatch.setattr(reference, "gated_residual", spy)
    gated_residual(torch.ones(2), torch.ones(2), torch.ones(1))
    gated_residual(*(torch.ones(n, device="meta") for n in (2, 2, 1)))
    assert calls == ["cpu", "meta"]


@pytest.mark.parametrize("f_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_gate_twin_scales_in_the_wider_dtype(shape: tuple[int, ...], f_dtype: torch.dtype) -> None:
    """reference.gate multiplies in the wider of both dtypes and returns that of f, in f's shape."""
    f, alpha = torch.randn(shape).to(f_dtype), torch.tensor([1 + 2.0**-10])
    y = reference.gate(f, alpha)
    assert y.dtype == f_dtype
    assert y.shape == f.shape
    wide = torch.promote_types(f_dtype, torch.float32)
    assert torch.equal(y, (f.to(wide) * (1 + 2.0**-10)).to(f_dtype))


def test_refuses_a_gate_that_is_no_tensor() -> None:
    """A number is told what to become."""
    with pytest.raises(TypeError, match=r"alpha must be a tensor, such as torch.tensor\(\[0.5\]\): got float"):
        gated_residual(torch.zeros(2), torch.zeros(2), 0.5)  # type: ignore[arg-type]
