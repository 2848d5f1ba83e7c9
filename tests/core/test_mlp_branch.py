"""A branch of two linear maps with a ReLU between them, as one operation: the same function as the gate written out."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rezero.kernels import linear, mlp, reference
from rezero.layers import TransformerDecoderLayer, TransformerEncoderLayer
from rezero.residual import ReZero
from tests.core.test_linear import bytes_kept, gradients, laid_out, learning

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it

# N rows, D features of the skip, K between the maps
NAMES = "x", "W1", "b1", "W2", "b2", "alpha"
written_out = reference.gated_mlp_residual


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors take the path of large ones."""
    monkeypatch.setattr(linear, "_LARGE", 0)
    monkeypatch.setattr(linear, "_FEW", 3)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """For which inputs the operation was taken."""
    found: list[torch.Size] = []
    take = mlp._Mlp.apply

    def note(x: Tensor, *others: Tensor) -> Tensor:
        found.append(x.shape)
        return take(x, *others)  # type: ignore[no-any-return]

    monkeypatch.setattr(mlp._Mlp, "apply", note)
    return found


def operands(
    batch: tuple[int, ...], d: int, k: int, *, alpha: float = 0.7, bias: bool = True, dtype: torch.dtype = torch.float64
) -> list[Any]:
    x, w1, w2 = (torch.randn(size, dtype=dtype) for size in ((*batch, d), (k, d), (d, k)))
    b1, b2 = (torch.randn(size, dtype=dtype) if bias else None for size in (k, d))
    return [x, w1, b1, w2, b2, torch.full((1,), alpha, dtype=torch.promote_types(dtype, torch.float32))]


@pytest.mark.parametrize("batch", [(9,), (3, 2), (2, 1, 4), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("long", [2048, 3], ids=["short", "long"])
def test_is_the_gate_written_out(
    batch: tuple[int, ...], bias: bool, alpha: float, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and all gradients are those of x + alpha * linear2(relu(linear1(x)))."""
    monkeypatch.setattr(linear, "LONG", long)
    inputs = learning(operands(batch, 4, 6, alpha=alpha, bias=bias))
    g = torch.randn_like(inputs[0])
    found, expected = (gradients(f, inputs, g) for f in (mlp.gated_mlp_residual, written_out))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_derivatives(alpha: float, bias: bool) -> None:
    """First and second derivatives pass gradcheck, at zero and away from it."""
    inputs = learning(operands((5,), 3, 4, alpha=alpha, bias=bias))
    assert torch.autograd.gradcheck(mlp.gated_mlp_residual, inputs)
    assert torch.autograd.gradgradcheck(mlp.gated_mlp_residual, inputs)


@pytest.mark.parametrize("rows", [9, 4])
def test_only_what_learns_has_a_gradient(rows: int) -> None:
    """Any of the six may be frozen: the others' gradients stay."""
    given = operands((rows,), 6, 5)
    g = torch.randn_like(given[0])
    everything = dict(zip(NAMES, gradients(written_out, learning(operands_like(given)), g)[1:], strict=True))
    for wanted in itertools.product([True, False], repeat=6):
        inputs = [each.requires_grad_(want) for each, want in zip(operands_like(given), wanted, strict=True)]
        if not any(wanted):
            assert not mlp.gated_mlp_residual(*inputs).requires_grad
            continue
        found = gradients(mlp.gated_mlp_residual, inputs, g)[1:]
        for name, want, mine in zip(NAMES, wanted, found, strict=True):
            assert (mine is not None) == want
            if want:
                torch.testing.assert_close(mine, everything[name])


def operands_like(given: list[Tensor]) -> list[Any]:
    return [each.clone() for each in given]


def test_a_second_backward_pass_finds_what_it_needs() -> None:
    """What is changed in place is the operation's own: the graph can be walked again."""
    inputs = learning(operands((6,), 4, 5))
    y = mlp.gated_mlp_residual(*inputs)
    first, second = (torch.autograd.grad(y.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    y += 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_closed_gate_returns_x_bitwise(dtype: torch.dtype) -> None:
    """In its dtype, beside a gate that is more precise; of the gradients only those of x and alpha are not zero."""
    inputs = learning(operands((5,), 4, 6, alpha=0.0, dtype=dtype))
    g = torch.randn(5, 4).to(dtype)
    y, dx, *rest, dalpha = gradients(mlp.gated_mlp_residual, inputs, g)
    assert torch.equal(y, inputs[0])
    assert torch.equal(dx, g)
    assert not any(each.any() for each in rest if each is not None)
    assert dalpha is not None
    assert dalpha.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_errors_are_those_of_the_plain_twin(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, output and gradients err at most twice as much as the plain twin's, over 500 random shapes.

    Which numbers the ReLU lets through is given, as it is rounded: a number near zero belongs to neither side.
    """
    monkeypatch.undo()
    monkeypatch.setattr(linear, "_LARGE", 0)
    random = Random(0)
    squares: dict[str, list[float]] = {}
    for _ in range(500):
        batch = tuple(random.randint(1, 12) for _ in range(random.randint(0, 3)))
        d, k = (random.randint(16, 96) for _ in range(2))
        alpha, strides = random.choice([0.0, 0.3, -1.7]), random.choice(["plain", "transposed", "strided"])
        given = operands(batch, d, k, alpha=alpha, bias=random.random() < 0.5, dtype=torch.float32)
        given[1], given[3] = given[1] / d**0.5, given[3] / k**0.5
        *tensors, gate = given
        inputs = learning([*(None if each is None else laid_out(each.to(dtype), strides) for each in tensors), gate])
        for name, (mine, twin, size) in errors(inputs, dtype).items():
            if size >= 256:
                assert mine <= 2 * twin, (name, batch, d, k, alpha, strides, mine, twin)
            sums = squares.setdefault(name, [0.0, 0.0])
            sums[0] += mine**2
            sums[1] += twin**2
    for name, (mine, twin) in squares.items():
        assert mine <= 4 * twin, name


def chosen(*given: Any) -> Tensor:
    return (mlp.gated_mlp_residual if mlp.serves(*given) else written_out)(*given)


def errors(inputs: list[Any], dtype: torch.dtype) -> dict[str, tuple[float, float, int]]:
    """Return the relative errors, normwise a tensor, of the operation and of its plain twin, and the tensor's size."""
    x, w1, b1 = inputs[:3]
    g = torch.randn_like(x).to(dtype)
    precise = learning([None if each is None else each.detach().double() for each in inputs])
    found = []
    # Two ways to call the first map, which round otherwise for inputs that do not lie in order.
    for f, given in ((chosen, linear.as_rows(x) if mlp.serves(*inputs) else x), (written_out, x)):
        passed = F.linear(given, w1, b1).detach().view(*x.shape[:-1], len(w1)) > 0

        def exactly(x: Tensor, w1: Any, b1: Any, w2: Any, b2: Any, alpha: Tensor, passed: Tensor = passed) -> Tensor:
            return x + alpha * F.linear(F.linear(x, w1, b1) * passed, w2, b2)

        exact = gradients(exactly, precise, g.double())
        scales = [1.0 if each is None else each.norm().item() or 1.0 for each in exact]
        open_gate = [*precise[:5], torch.ones(1, dtype=torch.float64)]
        scales[-1] = (g.double() * (exactly(*open_gate) - precise[0])).abs().sum().item()
        found.append(
            [
                None if mine is None or truth is None else (mine.double() - truth).norm().item() / scale
                for mine, truth, scale in zip(gradients(f, inputs, g), exact, scales, strict=True)
            ]
        )
    sizes = [x.numel(), *(0 if each is None else each.numel() for each in inputs)]
    return {
        name: (mine, twin, size)
        for name, mine, twin, size in zip(("y", *NAMES), *found, sizes, strict=True)
        if mine is not None and twin is not None
    }


def test_nothing_is_kept_for_the_gate() -> None:
    """Beside inputs and parameters autograd keeps what the second map reads, as it does without a gate."""
    inputs = learning(operands((64,), 16, 32, dtype=torch.float32))
    assert bytes_kept(mlp.gated_mlp_residual, inputs) == 64 * 32 * 4


def branch(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 4)).double()


BRANCHES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "MLP": (lambda: branch(nn.ReLU()), True),
    "in place": (lambda: branch(nn.ReLU(inplace=True)), True),
    "dropout that drops nothing": (lambda: branch(nn.ReLU(), nn.Dropout(0.0)), True),
    "dropout in evaluation": (lambda: branch(nn.ReLU(), nn.Dropout(0.5).eval()), True),
    "within": (lambda: nn.Sequential(branch(nn.ReLU())), True),
    "dropout": (lambda: branch(nn.ReLU(), nn.Dropout(0.5)), False),
    "another activation": (lambda: branch(nn.GELU()), False),
    "two": (lambda: branch(nn.ReLU(), nn.ReLU()), False),
    "none": (lambda: branch(), False),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(4), *branch(nn.ReLU())).double(), False),
    "another first layer": (lambda: nn.Sequential(nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 4)).double(), False),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_which_branches(name: str, taken: list[torch.Size]) -> None:
    """Two plain linear maps with a ReLU between them, and nothing else that does anything."""
    make, expected = BRANCHES[name]
    block, x = ReZero(make()), torch.randn(7, 4, dtype=torch.float64)
    nn.init.constant_(block.gate.alpha, 0.5)
    torch.manual_seed(1)
    y = block(x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, x + 0.5 * block.branch(x))
    assert taken == [x.shape] * expected


LOOKS: dict[str, Callable[[nn.Module], object]] = {
    "a hook": lambda module: module.register_forward_hook(lambda *_: None),
    "a hook before": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "a forward of its own": lambda module: setattr(module, "forward", module.forward),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("part", [0, 1, 2, 3])
def test_parts_that_somebody_looks_at_are_run(look: str, part: int, taken: list[torch.Size]) -> None:
    """A hook on any of them, or a method of its own, is called; so it is behind a parametrization."""
    inner = branch(nn.ReLU(), nn.Dropout(0.0))
    block, x = ReZero(inner), torch.randn(7, 4, dtype=torch.float64)
    nn.init.constant_(block.gate.alpha, 0.5)
    expected = block(x)
    LOOKS[look](inner[part])
    torch.testing.assert_close(block(x), expected)
    nn.utils.parametrizations.weight_norm(inner[0])
    torch.testing.assert_close(block(x), expected)
    assert len(taken) == 1


@pytest.mark.parametrize("kind", [TransformerEncoderLayer, TransformerDecoderLayer])
@pytest.mark.parametrize("activation", ["relu", F.relu, nn.ReLU()], ids=["name", "function", "module"])
def test_feed_forward_of_a_layer(kind: Any, activation: Any, taken: list[torch.Size]) -> None:
    """It is one operation without dropout, and the same function as with it."""
    layer = kind(8, 2, 16, dropout=0.1, batch_first=True, activation=activation, init_value=0.5).double().eval()
    x, memory = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    given = (x, memory) if kind is TransformerDecoderLayer else (x,)
    y = layer(*given)
    assert taken == [x.shape]
    layer.linear1.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer(*given), y)
    layer.train()(*given)
    assert taken == [x.shape]


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda f, x: torch.vmap(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "hessian": lambda f, x: torch.func.hessian(lambda each: f(each).pow(2).sum())(x),
    "forward mode": lambda f, x: torch.autograd.functional.jacobian(f, x, strategy="forward-mode", vectorize=True),
    "checkpoint": lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False),
    "compile": lambda f, x: torch.compile(f, backend="aot_eager", fullgraph=True)(x),
    "export": lambda f, x: torch.export.export(f, (x,)).module()(x),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_under_transforms(transform: str) -> None:
    """Under torch.func, forward mode, checkpointing, torch.compile and torch.export it is the gate written out."""

    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            f: Tensor = block.branch(x)
            return x + block.gate.alpha * f

    block, x = ReZero(branch(nn.ReLU())), torch.randn(6, 4, dtype=torch.float64)
    nn.init.constant_(block.gate.alpha, 0.5)
    found, expected = (TRANSFORMS[transform](f, x) for f in (block, Written()))
    torch.testing.assert_close(found, expected)


def test_under_autocast_the_skip_is_not_rounded() -> None:
    """In bfloat16 autocast the products are bfloat16's and x is added as it is."""
    block, x = ReZero(branch(nn.ReLU()).float()), torch.randn(64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(x), x)


def test_shapes_that_do_not_fit_are_refused_as_ever() -> None:
    """A branch that changes the width is told so."""
    block = ReZero(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))
    with pytest.raises(ValueError, match="must keep the shape"):
        block(torch.randn(7, 4))
