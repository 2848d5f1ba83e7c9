"""A gate in the weight of a branch's last linear map: the same function as the gate written out, at no cost."""

import itertools
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rezero.functional import gated_linear_residual
from rezero.kernels import linear, reference

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it

# N rows, K features into the linear map, D out of it
SHAPES = {
    "rows": (9, 3, 7),
    "fewer rows than features": (5, 3, 7),
    "too few": (2, 3, 4),
    "one": (1, 1, 1),
    "no rows": (0, 3, 4),
    "no features": (3, 0, 4),
}


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors take the path of large ones."""
    monkeypatch.setattr(linear, "_LARGE", 0)
    monkeypatch.setattr(linear, "_FEW", 3)


def operands(
    rows: int,
    k: int,
    d: int,
    *,
    alpha: float = 0.7,
    gate: int = 1,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> list[Any]:
    sizes = [(rows, d), (rows, k), (d, k), *[(d,)] * bias]
    x, h, weight, *b = (torch.randn(size, dtype=dtype) for size in sizes)
    return [x, h, weight, *(b or [None]), torch.full((gate,), alpha, dtype=torch.promote_types(dtype, torch.float32))]


def written_out(x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor) -> Tensor:
    return x + alpha * F.linear(h, weight, bias)


def gradients(f: Callable[..., Tensor], inputs: list[Any], g: Tensor) -> list[Tensor | None]:
    """Return the output and the gradients of all inputs that want one."""
    leaves = [None if each is None else each.detach().requires_grad_(each.requires_grad) for each in inputs]
    y = f(*leaves)
    y.backward(g)
    return [y.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


def learning(inputs: list[Any]) -> list[Any]:
    return [None if each is None else each.requires_grad_() for each in inputs]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("gate", [1, "D"], ids=["scalar", "channel"])
def test_is_the_gate_written_out(shape: tuple[int, int, int], bias: bool, alpha: float, gate: Any) -> None:
    """Output and gradients are those of x + alpha * linear(h), also where nothing is summed."""
    inputs = learning(operands(*shape, alpha=alpha, gate=shape[2] if gate == "D" else 1, bias=bias))
    g = torch.randn_like(inputs[0])
    torch.testing.assert_close(gradients(gated_linear_residual, inputs, g), gradients(written_out, inputs, g))


@pytest.mark.parametrize("shape", [(9, 3, 4), (4, 3, 6)], ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("gate", [1, "D"], ids=["scalar", "channel"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_derivatives(shape: tuple[int, int, int], alpha: float, gate: Any, bias: bool) -> None:
    """First and second derivatives pass gradcheck, backward and forward, at zero and away from it."""
    inputs = learning(operands(*shape, alpha=alpha, gate=shape[2] if gate == "D" else 1, bias=bias))
    assert torch.autograd.gradcheck(gated_linear_residual, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(gated_linear_residual, inputs)


@pytest.mark.parametrize(
    "wanted", [*itertools.product([True, False], repeat=5)], ids=lambda w: "".join("01"[b] for b in w)
)
@pytest.mark.parametrize("rows", [9, 4])
def test_only_what_learns_has_a_gradient(wanted: tuple[bool, ...], rows: int) -> None:
    """Any of the five may be frozen, as the base of a model that is fine-tuned: the others' gradients stay."""
    if not any(wanted):
        assert not gated_linear_residual(*operands(rows, 3, 6)).requires_grad
        return
    inputs = [each.requires_grad_(want) for each, want in zip(operands(rows, 3, 6), wanted, strict=True)]
    g = torch.randn_like(inputs[0])
    found = gradients(gated_linear_residual, inputs, g)
    assert [each is not None for each in found[1:]] == list(wanted)
    torch.testing.assert_close(found, gradients(written_out, inputs, g))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gate", [1, 4], ids=["scalar", "channel"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_closed_gate_returns_x_bitwise(dtype: torch.dtype, gate: int, bias: bool) -> None:
    """In every dtype, in its dtype, beside a gate that is more precise; the branch's gradients are zeros."""
    inputs = learning(operands(5, 3, 4, alpha=0.0, gate=gate, bias=bias, dtype=dtype))
    y, dx, dh, dweight, dbias, dalpha = gradients(gated_linear_residual, inputs, torch.ones(5, 4, dtype=dtype))
    assert y.dtype == dtype
    assert torch.equal(y, inputs[0])
    assert torch.equal(dx, torch.ones(5, 4, dtype=dtype))
    for each in (dh, dweight, *[dbias] * bias):
        assert each is not None
        assert each.dtype == dtype
        assert not each.any()
    assert dalpha.dtype == inputs[-1].dtype
    assert dalpha.any()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_output_may_be_changed_in_place(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of every operation that needs it no more, also where the sums are long."""
    inputs = learning(operands(9, 5, 4, bias=bias))
    for long in (2048, 3):
        monkeypatch.setattr(linear, "LONG", long)
        y = gated_linear_residual(*inputs)
        y += 1
        torch.testing.assert_close(y, written_out(*inputs) + 1)
        y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16], ids=str)
def test_other_dtypes_are_written_out(dtype: torch.dtype) -> None:
    """Complex gradients need conjugates; in float16 a product without alpha overflows where one with it does not."""
    x, h, weight, _, alpha = operands(32, 32, 32, bias=False, dtype=torch.float32)
    inputs = learning([x.to(dtype), (20 * h).to(dtype), weight.to(dtype), None, 1e-3 * alpha])
    g = torch.full_like(inputs[0], 16.0)
    found, expected = (gradients(call, inputs, g) for call in (gated_linear_residual, reference.gated_linear_residual))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True) if pair[0] is not None)


def laid_out(tensor: Tensor, strides: str) -> Tensor:
    """Return the same numbers with other strides."""
    if strides == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if strides == "strided":
        return torch.stack([tensor, tensor], -1)[..., 0]
    return tensor


SHAPES_TRIED = 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_are_those_of_the_plain_twin(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, output and gradients err at most twice as much as the plain twin's, over 500 random shapes.

    A single number, as alpha's gradient or what a small tensor has, is off by luck: those are taken together.
    """
    monkeypatch.undo()
    monkeypatch.setattr(linear, "_LARGE", 0)
    random = Random(0)
    squares: dict[str, list[float]] = {}
    for _ in range(SHAPES_TRIED):
        batch = [random.randint(1, 12) for _ in range(random.randint(0, 3))]
        k, d = (random.randint(16, 96) for _ in range(2))
        alpha, strides = random.choice([0.0, 0.3, -1.7]), random.choice(["plain", "transposed", "strided"])
        found = errors(batch, k, d, dtype, random.random() < 0.5, alpha, strides)
        for name, (mine, twin, size) in found.items():
            if size >= 256:
                assert mine <= 2 * twin, (name, batch, k, d, alpha, strides, mine, twin)
            sums = squares.setdefault(name, [0.0, 0.0])
            sums[0] += mine**2
            sums[1] += twin**2
    print({name: (mine / twin) ** 0.5 for name, (mine, twin) in squares.items() if twin})
    for name, (mine, twin) in squares.items():
        assert mine <= 4 * twin, name


def errors(
    batch: list[int], k: int, d: int, dtype: torch.dtype, bias: bool, alpha: float, strides: str
) -> dict[str, tuple[float, float, int]]:
    """Return the relative errors, normwise a tensor, of the function and of its plain twin, and the tensor's size."""
    x, h, g = (laid_out(torch.randn(*batch, n).to(dtype), strides) for n in (d, k, d))
    weight = laid_out((torch.randn(d, k) / k**0.5).to(dtype), strides)
    inputs = learning([x, h, weight, torch.randn(d).to(dtype) if bias else None, torch.tensor([alpha])])
    precise = learning([None if each is None else each.detach().double() for each in inputs])
    exact = gradients(written_out, precise, g.double())
    ours, plain = (gradients(f, inputs, g) for f in (gated_linear_residual, reference.gated_linear_residual))
    scales = [1.0 if each is None else each.norm().item() or 1.0 for each in exact]
    scales[-1] = (g.double() * F.linear(*precise[1:4])).abs().sum().item()
    return {
        name: (
            (mine.double() - truth).norm().item() / scale,
            (twin.double() - truth).norm().item() / scale,
            truth.numel(),
        )
        for name, mine, twin, truth, scale in zip(("y", *"xhWba"), ours, plain, exact, scales, strict=True)
        if mine is not None and twin is not None and truth is not None
    }


@pytest.mark.parametrize("alpha", [1.0, -1e-4, 1e-7, 1e-8, -1e-30, 1e-44])
@pytest.mark.parametrize("shape", [(32, 24, 16), (16, 24, 32)], ids=["rows", "fewer rows than features"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_small_gate_has_a_precise_gradient(alpha: float, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """It is taken from products that have the gate in them, unless they would vanish."""
    inputs = learning(operands(*shape, alpha=alpha, dtype=dtype))
    g = torch.randn_like(inputs[0])
    exact = gradients(written_out, learning([each.detach().double() for each in inputs]), g.double())
    found = gradients(gated_linear_residual, inputs, g)
    error = 1e-6 if dtype == torch.float32 else 2e-2
    for mine, truth in zip(found, exact, strict=True):
        assert mine is not None
        assert truth is not None
        smallest = 1e-45 * truth.numel() ** 0.5 if dtype == torch.float32 else 1e-40 * truth.numel() ** 0.5
        assert (mine.double() - truth).norm() <= error * truth.norm() + smallest


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_long_sum_is_formed_before_the_skip_is_added(bias: bool) -> None:
    """With 4,096 terms the output errs no more than the twin's, though each piece of the sum is small beside ``x``."""
    x, h, weight, b, alpha = operands(16, 4096, 16, bias=bias, dtype=torch.float32)
    given = [100 * x, h, weight / 64, b, alpha]
    exact = written_out(*(None if each is None else each.double() for each in given))
    ours, twin = ((f(*given) - exact).norm() for f in (gated_linear_residual, reference.gated_linear_residual))
    assert ours <= 1.2 * twin


def test_large_products_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 2^24 multiplications on, and no sooner, since a small one would lose more than it gains."""
    monkeypatch.undo()
    for rows, kept in ((256, 0), (255, 255 * 256 * 4)):
        inputs = learning(operands(rows, 256, 256, dtype=torch.float32))
        assert bytes_kept(gated_linear_residual, inputs) == kept


def bytes_kept(f: Callable[..., Tensor], inputs: list[Any]) -> int:
    """Count what autograd keeps beside the inputs themselves."""
    given_already = {each.untyped_storage().data_ptr() for each in inputs if each is not None}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given_already:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = f(*inputs)
    assert y.requires_grad
    return sum(kept.values())


def test_nothing_is_kept_for_the_gate() -> None:
    """Beside inputs and parameters autograd keeps no byte, where the gate written out keeps the branch's output."""
    inputs = learning(operands(64, 32, 16, dtype=torch.float32))
    assert bytes_kept(gated_linear_residual, inputs) == 0
    assert bytes_kept(written_out, inputs) == 64 * 16 * 4


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], list[Tensor]], Any]] = {
    "vmap": lambda f, inputs: torch.vmap(f, (0, 0, None, None, None))(*inputs),
    "vmap over weights": lambda f, inputs: torch.vmap(f, (None, None, 0, 0, 0))(
        *inputs[:2], *(torch.stack([each, 2 * each]) for each in inputs[2:])
    ),
    "jacrev": lambda f, inputs: torch.func.jacrev(f, tuple(range(5)))(*inputs),
    "jacfwd": lambda f, inputs: torch.func.jacfwd(f, tuple(range(5)))(*inputs),
    "jvp": lambda f, inputs: torch.func.jvp(f, tuple(inputs), tuple(torch.ones_like(each) for each in inputs)),
    "hessian": lambda f, inputs: torch.func.hessian(lambda *each: f(*each).pow(2).sum(), tuple(range(5)))(*inputs),
    "gradient an example": lambda f, inputs: torch.vmap(
        torch.func.grad(lambda alpha, x, h: f(x, h, *inputs[2:4], alpha).pow(2).sum()), (None, 0, 0)
    )(inputs[4], *inputs[:2]),
    "checkpoint": lambda f, inputs: torch.utils.checkpoint.checkpoint(f, *inputs, use_reentrant=False),
    "compile": lambda f, inputs: torch.compile(f, backend="aot_eager", fullgraph=True)(*inputs),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_transforms(transform: str) -> None:
    """Under torch.func, activation checkpointing and torch.compile it is the gate written out."""
    inputs = operands(6, 3, 4)
    found, expected = (TRANSFORMS[transform](f, inputs) for f in (gated_linear_residual, written_out))
    torch.testing.assert_close(found, expected)


class Branch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.alpha = torch.nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return gated_linear_residual(x, x.relu(), self.linear.weight, self.linear.bias, self.alpha)


def test_export_with_any_batch() -> None:
    """An exported program takes other numbers of rows than its example."""
    model, rows = Branch(), torch.export.Dim("rows", min=1)
    program = torch.export.export(model, (torch.randn(6, 4),), dynamic_shapes=({0: rows},)).module()
    for n in (1, 6, 50):
        x = torch.randn(n, 4)
        torch.testing.assert_close(program(x), model(x))


@pytest.fixture
def meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


def test_on_the_meta_device(meta: None) -> None:
    """Tensors without numbers have the output's shape and dtype."""
    y = Branch()(torch.randn(6, 4))
    assert (y.shape, y.device.type) == ((6, 4), "meta")


def test_under_autocast_the_skip_is_not_rounded() -> None:
    """In bfloat16 autocast the product is bfloat16's and x is added as it is."""
    model, x = Branch(), torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        with torch.no_grad():
            model.alpha.zero_()
        assert torch.equal(model(x), x)
    assert y.dtype == torch.float32
    difference = (y - x) - 0.5 * F.linear(x.relu(), model.linear.weight, model.linear.bias)
    assert 0 < difference.abs().max() < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"x": (5, 3)},
        {"h": (4, 3)},
        {"weight": (4,)},
        {"weight": (3, 4)},
        {"bias": (3,)},
        {"bias": (1, 4)},
        {"x": (1, 4)},
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]]) -> None:
    """The error has every shape, also where torch would broadcast."""
    shapes = {"x": (5, 4), "h": (5, 3), "weight": (4, 3), "bias": (4,)} | change
    with pytest.raises(ValueError, match=r"expected x \(\*, D\), h \(\*, K\), weight \(D, K\)") as error:
        gated_linear_residual(*(torch.zeros(shape) for shape in shapes.values()), torch.zeros(1))
    for shape in shapes.values():
        assert str(shape) in str(error.value)


@pytest.mark.parametrize("alpha", [(), (3,), (1, 1), (4, 1)], ids=str)
def test_a_gate_of_another_shape_is_refused(alpha: tuple[int, ...]) -> None:
    """One number, or one a feature."""
    x, h, weight, bias, _ = operands(5, 3, 4)
    with pytest.raises(ValueError, match="alpha must have shape"):
        gated_linear_residual(x, h, weight, bias, torch.zeros(alpha))
