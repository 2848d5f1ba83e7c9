"""The Triton kernels of the gate against the twin: on a GPU where there is one, else interpreted on the CPU."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rezero import kernels
from rezero.functional import gated_linear_residual, gated_residual
from rezero.kernels import fusing, gated, linear_gpu, reference

triton_gate = pytest.importorskip("rezero.kernels.triton_gate")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors take the path of large ones, also where there is no GPU."""
    monkeypatch.setattr(fusing, "_DEVICES", {DEVICE})
    monkeypatch.setattr(kernels, "_LARGE", 0)
    monkeypatch.setattr(linear_gpu, "_LARGE", 0)
    if DEVICE == "cpu":  # where a program takes as long as its tile is large
        monkeypatch.setattr(triton_gate, "_TILE", 256)


def draw(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def gate(*values: float, dtype: torch.dtype = F32) -> Tensor:
    return torch.tensor(values, device=DEVICE, dtype=dtype)


def derive(call: Callable[..., Tensor], inputs: list[Any], g: Tensor) -> list[Tensor | None]:
    """Return the output and the gradient of every input."""
    leaves = [None if each is None else each.detach().requires_grad_() for each in inputs]
    y = call(*leaves)
    y.backward(g)
    return [y.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def general(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    return gated_residual(x, f, alpha, bias=bias)


def written_out(x: Tensor, f: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    return x + alpha * (f if bias is None else f + bias)


SHAPES = [(7, 5), (3, 9), (1,), (0, 4), (5, 0), (2, 3, 4, 5), (300, 17), (2, 5000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("by_feature", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
def test_is_the_gate_written_out(shape: tuple[int, ...], by_feature: bool, bias: bool, alpha: float) -> None:
    """Output and gradients, where a program has a part of a tile, one tile or several."""
    numbers = gate(*[alpha] * (shape[-1] if by_feature else 1), dtype=F64)
    inputs = [draw(*shape), draw(*shape), numbers, draw(shape[-1]) if bias else None]
    if by_feature and not shape[-1]:
        return  # a gate of no numbers
    g = draw(*shape)
    torch.testing.assert_close(derive(general, inputs, g), derive(written_out, inputs, g))


def test_several_tiles_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tiles outnumber the programs, each takes several, and none is left out."""
    monkeypatch.setattr(triton_gate, "_PROGRAMS", 3)
    inputs = [draw(40, 300), draw(40, 300), draw(300), draw(300)]
    g = draw(40, 300)
    torch.testing.assert_close(derive(general, inputs, g), derive(written_out, inputs, g))


@pytest.mark.parametrize("by_feature", [False, True], ids=["scalar", "channel"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_derivatives(by_feature: bool, dropout: float) -> None:
    """First and second derivatives pass gradcheck, through the mask as well."""

    def call(*given: Tensor) -> Tensor:
        torch.manual_seed(1)
        return gated_residual(*given[:3], bias=given[3], dropout=dropout)

    inputs = [draw(3, 2), draw(3, 2), draw(2 if by_feature else 1), draw(2)]
    inputs = [each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize(
    ("alpha", "sizes", "bias", "dropout"),
    [
        (0.0, (5, 2, 3), True, 0.0),
        (1e-30, (2, 4, 3), False, 0.0),
        (0.7, (5, 2, 3), False, 0.0),
        (0.7, (2, 4, 3), True, 0.3),
        (1e-30, (4, 2, 2), True, 0.3),
    ],
)
def test_derivatives_of_a_linear_map(alpha: float, sizes: tuple[int, int, int], bias: bool, dropout: float) -> None:
    """The same with a map at the end of the branch, whose gate is divided out again, or was never multiplied in."""
    rows, k, d = sizes

    def call(*given: Tensor) -> Tensor:
        torch.manual_seed(1)
        b = given[4] if bias else None
        return gated_linear_residual(*given[:3], b, given[3], dropout=dropout)

    inputs = [draw(rows, d), draw(rows, k), draw(d, k), gate(alpha, dtype=F64), *[draw(d)] * bias]
    inputs = [each.requires_grad_() for each in inputs]
    assert linear_gpu.serves(*inputs[:3], inputs[4] if bias else None, inputs[3], dropout)
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("wanted", range(1, 32), ids=lambda bits: f"{bits:05b}")
def test_only_what_learns_has_a_gradient(wanted: int) -> None:
    """Any of the five of a linear map may be frozen: the others' gradients stay."""
    inputs = [draw(6, 4), draw(6, 3), draw(4, 3), draw(4), draw(1)]
    asked = [bool(wanted >> place & 1) for place in range(5)]
    results = []
    for call in (gated_linear_residual, reference.gated_linear_residual):
        leaves = [each.clone().requires_grad_(want) for each, want in zip(inputs, asked, strict=True)]
        call(*leaves).backward(torch.ones(6, 4, device=DEVICE, dtype=F64))
        results.append([leaf.grad for leaf in leaves])
    assert [each is not None for each in results[0]] == asked
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_closed_gate_returns_x_bitwise(dtype: torch.dtype, dropout: float) -> None:
    """In every dtype, with and without dropout; the branch's gradients are zeros and alpha's is not."""
    x, f, h, weight = draw(9, 4, dtype=dtype), draw(9, 4, dtype=dtype), draw(9, 3, dtype=dtype), draw(4, 3, dtype=dtype)
    alpha, bias, g = gate(0.0), draw(4, dtype=dtype), draw(9, 4, dtype=dtype)
    if dtype == F64:
        alpha = alpha.double()
    y, dx, df, dalpha, dbias = derive(
        lambda *each: gated_residual(*each[:3], bias=each[3], dropout=dropout), [x, f, alpha, bias], g
    )
    linear = derive(lambda *each: gated_linear_residual(*each, dropout=dropout), [x, h, weight, bias, alpha], g)
    for output, of_x, *others, of_alpha in ([y, dx, df, dbias, dalpha], linear):
        assert torch.equal(output, x)
        assert torch.equal(of_x, g)
        assert not any(each.any() for each in others)
        assert of_alpha.dtype == alpha.dtype
        assert of_alpha.any()


@pytest.mark.parametrize("x_dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("f_dtype", [BF16, F16, F32], ids=str)
def test_dtype_is_that_of_x_plus_f(x_dtype: torch.dtype, f_dtype: torch.dtype) -> None:
    """Output and gradients have the dtypes, and nearly the values, of the twin."""
    inputs = [draw(6, 5, dtype=x_dtype), draw(6, 5, dtype=f_dtype), gate(0.7), None]
    g = draw(6, 5, dtype=torch.promote_types(x_dtype, f_dtype))
    found, expected = derive(general, inputs, g), derive(written_out, [inputs[0], inputs[1], inputs[2], None], g)
    assert [each.dtype for each in found[:4]] == [g.dtype, x_dtype, f_dtype, F32]
    torch.testing.assert_close(
        found[1:3], [each.to(kind) for each, kind in zip(expected[1:3], (x_dtype, f_dtype), strict=True)]
    )


def test_dropout_is_a_dropout() -> None:
    """It zeroes the share asked for and scales the rest, follows the seed, and backward sees the same mask."""
    x, f, bias, alpha = draw(50, 80, dtype=F32), draw(50, 80, dtype=F32), draw(80, dtype=F32), gate(0.5)
    f.requires_grad_()
    torch.manual_seed(3)
    y = gated_residual(x, f, alpha, bias=bias, dropout=0.25)
    branch = (y - x) / 0.5
    mask = branch.abs() > 1e-6
    assert math.isclose(mask.float().mean().item(), 0.75, abs_tol=0.03)
    torch.testing.assert_close(branch[mask], ((f + bias) / 0.75)[mask], rtol=1e-4, atol=1e-5)
    y.sum().backward()
    torch.testing.assert_close(f.grad, mask * (0.5 / 0.75))
    torch.manual_seed(3)
    assert torch.equal(gated_residual(x, f, alpha, bias=bias, dropout=0.25), y)
    assert not torch.equal(gated_residual(x, f, alpha, bias=bias, dropout=0.25), y)
    assert torch.equal(gated_residual(x, f, alpha, dropout=1.0), x)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded", "mixed"])
def test_layouts(layout: str) -> None:
    """However the numbers lie, they are added to their own."""
    x, f, g = (draw(2, 6, 4, 5) for _ in range(3))
    change: Callable[[Tensor], Tensor] = {
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "transposed": lambda t: t.mT.contiguous().mT,
        "expanded": lambda t: t[:, :1].expand(2, 6, 4, 5),
        "mixed": lambda t: t,
    }[layout]
    inputs = [change(x), change(f), draw(1), None]
    g = change(g) if layout != "mixed" else g.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(derive(general, inputs, g), derive(written_out, inputs, g))
    if layout == "channels last":
        assert general(*inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_nothing_is_kept_but_what_a_linear_map_keeps(dropout: float) -> None:
    """Neither the branch nor a mask: h, W, the bias, the gate, and a seed."""
    inputs = [draw(50, 8), draw(50, 16), draw(8, 16), draw(8), draw(1)]
    kept: list[Tensor] = []
    inputs = [each.requires_grad_() for each in inputs]
    with saved_tensors_hooks(lambda each: (kept.append(each), each)[1], lambda each: each):
        gated_linear_residual(*inputs, dropout=dropout)
    known = {each.data_ptr() for each in inputs}
    assert sum(each.nbytes for each in kept if each.data_ptr() not in known) == (8 if dropout else 0)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """The map runs in the lower dtype, the skip keeps its own, and every gradient comes in its parameter's."""
    inputs = [draw(64, 32, dtype=F32), draw(64, 48, dtype=F32), draw(32, 48, dtype=F32), draw(32, dtype=F32), gate(0.3)]
    g = draw(64, 32, dtype=F32)
    with torch.autocast(DEVICE, dtype=dtype):
        found = derive(gated_linear_residual, inputs, g)
        expected = derive(lambda x, h, w, b, a: x + a * F.linear(h, w, b), inputs, g)
    for each, other in zip(found, expected, strict=True):
        assert each.dtype == F32
        assert (each - other).norm() <= 4 * torch.finfo(dtype).eps * other.norm()


def test_torch_func_and_forward_mode_see_plain_operations() -> None:
    """What looks into operations is given operations."""
    x, f, alpha = draw(3, 4), draw(3, 4), draw(1)
    tangents = (draw(3, 4), draw(3, 4), draw(1))
    expected = tangents[0] + alpha * tangents[1] + tangents[2] * f
    torch.testing.assert_close(torch.func.jvp(gated_residual, (x, f, alpha), tangents)[1], expected)
    batched = torch.vmap(gated_residual, (0, 0, None))(x, f, alpha)
    torch.testing.assert_close(batched, x + alpha * f)


def test_compiles_in_one_graph() -> None:
    """Both functions are traced as plain operations, for Inductor to fuse."""
    x, f, alpha, bias = draw(6, 4, dtype=F32), draw(6, 4, dtype=F32), gate(0.3), draw(4, dtype=F32)
    compiled = torch.compile(general, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, f, alpha, bias), general(x, f, alpha, bias))
    inputs = (x, draw(6, 3, dtype=F32), draw(4, 3, dtype=F32), bias, alpha)
    compiled = torch.compile(gated_linear_residual, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), gated_linear_residual(*inputs))


def test_without_triton_the_twin_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of a machine that has no Triton, nor of small tensors."""
    monkeypatch.setattr(gated, "gated_residual", lambda *_: pytest.fail("the kernel was called"))
    monkeypatch.setattr(kernels, "_LARGE", 1 << 22)
    x, f, alpha = draw(3, 4), draw(3, 4), draw(1)
    torch.testing.assert_close(gated_residual(x, f, alpha), x + alpha * f)
    monkeypatch.setattr(kernels, "_LARGE", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    fusing._works.cache_clear()
    torch.testing.assert_close(gated_residual(x, f, alpha), x + alpha * f)
    fusing._works.cache_clear()


def test_a_triton_that_does_not_work_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler, or on a GPU that Triton does not know, a warning says so, and the twin serves."""

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_gate, "forward", fail)
    fusing._works.cache_clear()
    x, f, alpha = draw(3, 4), draw(3, 4), draw(1)
    with pytest.warns(UserWarning, match="for want of its Triton kernels: Failed to find C compiler; .*gcc"):
        torch.testing.assert_close(gated_residual(x, f, alpha), x + alpha * f)
    torch.testing.assert_close(gated_residual(x, f, alpha), x + alpha * f)
    fusing._works.cache_clear()


def error(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    return float((found.double() - exact).norm() / scale.double().norm()) if exact.numel() else 0.0


@settings(
    max_examples=500 if DEVICE == "cuda" else 30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.integers(1, 40),
    k=st.integers(1, 40),
    d=st.integers(2, 40),
    dtype=st.sampled_from([F32, BF16]),
    alpha=st.sampled_from([0.0, 1e-9, 0.01, 0.7, -3.0]),
    bias=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_errors_are_at_most_twice_the_twins(
    rows: int, k: int, d: int, dtype: torch.dtype, alpha: float, bias: bool, strided: bool, seed: int
) -> None:
    """Against float64, normwise a tensor, as little as the twin or one rounding; alpha's is relative to sum |g f|."""
    torch.manual_seed(seed)
    h = draw(k, rows, dtype=dtype).t() if strided else draw(rows, k, dtype=dtype)
    x, weight, g = draw(rows, d, dtype=dtype), draw(d, k, dtype=dtype), draw(rows, d, dtype=dtype)
    f, b, a = draw(rows, d, dtype=dtype), draw(d, dtype=dtype) if bias else None, gate(alpha)
    exactly = [None if each is None else each.double() for each in (x, h, weight, b, a, f, g)]
    wide_x, wide_h, wide_w, wide_b, wide_a, wide_f, wide_g = exactly
    cases = {
        "linear": (gated_linear_residual, reference.gated_linear_residual, [x, h, weight, b, a], exactly[:5]),
        "general": (general, reference.gated_residual, [x, f, a, b], [wide_x, wide_f, wide_a, wide_b]),
    }
    for name, (fast, twin, inputs, wide) in cases.items():
        exact = derive(twin, wide, wide_g)
        place = 5 if name == "linear" else 3
        branch = F.linear(wide_h, wide_w, wide_b) if name == "linear" else wide_f + (0 if wide_b is None else wide_b)
        scales = list(exact)
        scales[place] = (wide_g * branch).abs().sum().view(1)
        errors = []
        for call in (fast, twin):
            found = derive(call, inputs, g)
            errors.append(
                [
                    error(*each)
                    for each in zip(found, exact, scales, strict=True)
                    if each[1] is not None and each[2].any()
                ]
            )
        unit = torch.finfo(dtype).eps
        for mine, plain in zip(*errors, strict=True):
            assert mine <= 2 * max(plain, unit), (name, errors)
