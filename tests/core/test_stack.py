"""The stack of many equal blocks: what it computes, its derivatives, precision, memory and conversions."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import rezero
from rezero import DeepStack, Gate, ReZero
from rezero.kernels import native, reference_stack
from rezero.kernels.deep_stack import deep_stack
from rezero.layers import MLPBlock

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it

F64 = torch.float64
NAMES = ("x", "weight", "bias", "alpha")


def stack(depth: int = 5, dim: int = 4, *, alpha: float = 0.3, dtype: torch.dtype = F64, **options: Any) -> DeepStack:
    made = DeepStack(MLPBlock(dim, dtype=dtype), depth, **options)
    nn.init.normal_(made.alpha, std=alpha)
    return made


def operands(made: DeepStack, rows: int = 3) -> tuple[Tensor, ...]:
    x = torch.randn(rows, made.weight.shape[-1], dtype=made.weight.dtype)
    return tuple(each.detach().clone().requires_grad_() for each in (x, made.weight, made.bias, made.alpha))


def derive(call: Callable[..., Tensor], tensors: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of all operands for the gradient g of the output."""
    y = call(*tensors)
    return (y.detach(), *torch.autograd.grad(y, tensors, g.to(y.dtype)))


# What it computes


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (0, 6), (2, 0, 6)], ids=str)
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_is_the_identity_at_the_start(shape: tuple[int, ...], checkpoint: Any) -> None:
    """With every alpha 0 the output equals the input bitwise, with gradients and without, as does its gradient."""
    made = DeepStack(MLPBlock(6), 50, checkpoint=checkpoint)
    x = torch.randn(shape, requires_grad=True)
    y = made(x)
    assert torch.equal(y, x)
    assert torch.equal(made(x.detach()), x)
    with torch.no_grad():
        assert torch.equal(made(x), x)
    g = torch.randn(shape)
    y.backward(g)
    assert torch.equal(x.grad, g)
    assert made.weight.grad.shape == made.weight.shape
    assert not made.weight.grad.any()
    assert not made.bias.grad.any()
    assert bool(made.alpha.grad.any()) == bool(x.numel())


@pytest.mark.parametrize("depth", [1, 2, 5, 17])
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_equals_a_sequence_of_blocks(depth: int, checkpoint: Any) -> None:
    """Output and all gradients are those of ReZero(MLPBlock) one after the other."""
    made = stack(depth, checkpoint=checkpoint)
    blocks, x, g = made.to_modules(), torch.randn(2, 3, 4, dtype=F64, requires_grad=True), torch.randn(2, 3, 4)
    expected = derive(lambda x, *_: blocks(x), (x, *blocks.parameters()), g)
    got = derive(lambda x, *_: made(x), (x, *made.parameters()), g)
    roles = [torch.stack(expected[2 + role :: 3]) for role in range(3)]
    for ours, theirs in zip(got, (*expected[:2], *roles), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_takes_any_strides() -> None:
    """Inputs, gradients and parameters that are not contiguous give what their contiguous copies give."""
    made = stack(3, 4)
    x, w, b, a = operands(made, rows=6)
    g = torch.randn(6, 4, dtype=F64)
    expected = derive(deep_stack, (x, w, b, a), g)
    apart = [each.detach().mT.contiguous().mT.requires_grad_() for each in (x, w, b)]
    got = derive(deep_stack, (*apart, a), g.mT.contiguous().mT)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    spread = derive(lambda *t: deep_stack(*t).sum(), (x, w, b, a), torch.ones(()))  # a gradient of stride 0
    torch.testing.assert_close(spread[1:], derive(deep_stack, (x, w, b, a), torch.ones(6, 4))[1:], rtol=0, atol=0)


def test_nan_and_infinity_show() -> None:
    """A branch that is not finite shows behind closed gates, in the rows that it belongs to."""
    made = DeepStack(MLPBlock(4), 3)
    x = torch.randn(4, 4)
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    y = made(x)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert torch.equal(y[[0, 3]], x[[0, 3]])


# Derivatives


@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("segments", [False, True], ids=["all", "sqrt"])
def test_passes_gradcheck_twice(alpha: float, segments: bool) -> None:
    """First and second derivatives of x, weight, bias and alpha pass gradcheck in float64."""
    tensors = operands(stack(3, 3, alpha=alpha), rows=2)

    def call(*each: Tensor) -> Tensor:
        return deep_stack(*each, segments=segments)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize(
    "asked", range(1, 16), ids=lambda bits: "-".join(n for i, n in enumerate(NAMES) if bits >> i & 1)
)
def test_gives_the_gradients_that_are_asked_for(asked: int) -> None:
    """Whatever is frozen, the other gradients stay the same, and frozen operands get none."""
    tensors = operands(stack(7), rows=5)
    every = torch.autograd.grad(deep_stack(*tensors).sum(), tensors)
    for i, each in enumerate(tensors):
        each.requires_grad_(bool(asked >> i & 1))
    deep_stack(*tensors).sum().backward()
    for i, each in enumerate(tensors):
        assert torch.equal(each.grad, every[i]) if asked >> i & 1 else each.grad is None


def test_backward_twice_gives_the_same() -> None:
    """A graph that is retained gives the same gradients again."""
    made = stack(9, dtype=torch.float32, checkpoint="sqrt")
    for each in (made, stack(9, dtype=torch.float32)):
        y = each(torch.randn(3, 4)).sum()
        first, second = (torch.autograd.grad(y, list(each.parameters()), retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("segments", [False, True])
def test_derivatives_of_a_stack_in_a_loop(segments: bool) -> None:
    """Where its input comes out of its own parameters, gradients that can be differentiated are the others."""
    x, w, b, a = operands(stack(2, 3))

    def run(call: Callable[..., Tensor]) -> Tensor:
        return call(call(x @ w[0], w, b, a), w, b, a).square().sum()

    expected = torch.autograd.grad(run(reference_stack.deep_stack), (x, w, b, a))
    for again in (False, True):
        ours = run(lambda *tensors: deep_stack(*tensors, segments=segments))
        torch.testing.assert_close(torch.autograd.grad(ours, (x, w, b, a), create_graph=again), expected)


def test_tangents_of_a_gradient_pass_through() -> None:
    """Forward mode over the backward pass alone."""
    made, x = stack(3), torch.randn(4, 4, dtype=F64, requires_grad=True)
    tangents = []
    for model in (made, made.to_modules()):
        with torch.autograd.forward_ad.dual_level():
            y = model(x)
            g = torch.autograd.forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
            [found] = torch.autograd.grad(y, x, g)
            tangents.append(torch.autograd.forward_ad.unpack_dual(found).tangent)
    torch.testing.assert_close(*tangents)


def test_runs_on_the_meta_device() -> None:
    """Shapes alone; another device than the weights' is an error."""
    made = DeepStack(MLPBlock(4, device="meta"), 3)
    assert made(torch.randn(2, 4, device="meta")).device.type == "meta"
    with pytest.raises(ValueError, match="expected an input on meta, where the weights are: got one on cpu"):
        made(torch.randn(2, 4))


def test_transforms_of_torch_func_see_through() -> None:
    """vmap, jvp, grad, jacrev, jacfwd and forward-mode duals give what a sequence of blocks gives."""
    made = stack(3)
    blocks, x, v = made.to_modules(), torch.randn(3, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    func = torch.func
    ways: list[Callable[[nn.Module], Any]] = [
        lambda f: func.vmap(f)(x),
        lambda f: func.jvp(f, (x,), (v,)),
        lambda f: func.grad(lambda x: f(x).square().sum())(x),
        lambda f: func.jacrev(f)(x),
        lambda f: func.jacfwd(f)(x),
        lambda f: func.vmap(func.hessian(lambda x: f(x).square().sum()))(x),
        lambda f: torch.autograd.functional.jvp(f, x, v),
    ]
    for way in ways:
        torch.testing.assert_close(way(made), way(blocks), rtol=1e-10, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        tangents = [torch.autograd.forward_ad.unpack_dual(each(dual)).tangent for each in (made, blocks)]
    torch.testing.assert_close(*tangents)


def test_stacks_of_stacks_vmap_over_parameters() -> None:
    """torch.func.stack_module_state and vmap run an ensemble of stacks."""
    ensemble, x = [stack(3) for _ in range(2)], torch.randn(3, 4, dtype=F64)
    parameters, buffers = torch.func.stack_module_state(ensemble)
    y = torch.func.vmap(lambda p, b: torch.func.functional_call(ensemble[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([each(x) for each in ensemble]))


# Precision


def far_from_the_kink(tensors: tuple[Tensor, ...]) -> bool:
    """Tell whether no ReLU is so near its kink that rounding decides whether it passes."""
    x, *parameters = (each.double() for each in tensors)
    for w, b, a in zip(*parameters, strict=True):
        z = x @ w.t() + b
        scale = x.norm(dim=-1, keepdim=True) * w.norm(dim=-1) + b.abs()
        if (z.abs() < KINK[tensors[0].dtype] * scale).any():
            return False
        x = x + a * z.relu()
    return True


KINK = {torch.float32: 1e-6, torch.bfloat16: 0.02}


def alpha_scale(tensors: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """Norm over the layers of sum(abs(g * f)), what the error of alpha's gradient is relative to."""
    x, w, b, a = (each.detach() for each in tensors)
    kept = x.new_empty(2, len(w), *x.shape)
    reference_stack.forward(x, w, b, a, kept)
    sums = []
    for layer in reversed(range(len(w))):
        sums.append((g * kept[1, layer]).abs().sum())
        g = reference_stack.backward(g, kept[:, layer : layer + 1], w[layer : layer + 1], a[layer : layer + 1], None)
    return torch.stack(sums).norm()


def relative_errors(dtype: torch.dtype, depth: int, rows: int, dim: int, alpha: float, segments: bool) -> Tensor | None:
    """Relative errors against float64, ours and the twin's, of the output and each gradient, (2, 5)."""
    plain = operands(stack(depth, dim, alpha=alpha, dtype=torch.float32), rows)
    tensors = tuple(each.detach().to(dtype).requires_grad_() for each in plain[:3]) + plain[3:]  # alpha stays float32
    if not far_from_the_kink(tensors):
        return None
    g = torch.randn(rows, dim).to(dtype)
    wide = tuple(each.detach().double().requires_grad_() for each in tensors)
    exact = derive(reference_stack.deep_stack, wide, g)
    scales = torch.stack([*(each.norm() for each in exact[:-1]), alpha_scale(wide, g.double())]).clamp_min(1e-30)

    def of(call: Callable[..., Tensor]) -> Tensor:
        got = derive(call, tensors, g)
        return torch.stack([(each.double() - true).norm() for each, true in zip(got, exact, strict=True)]) / scales

    return torch.stack([of(lambda *t: deep_stack(*t, segments=segments)), of(reference_stack.deep_stack)])


@hypothesis.settings(max_examples=500, deadline=None, derandomize=True)
@hypothesis.given(
    depth=st.integers(1, 24),
    rows=st.integers(1, 140),
    dim=st.integers(1, 40),
    alpha=st.sampled_from([0.0, 0.05, 0.5]),
    segments=st.booleans(),
    is_half=st.sampled_from([False, False, True]),
    seed=st.integers(0, 10_000),
)
def test_is_at_most_twice_as_far_from_the_truth_as_the_plain_twin(
    depth: int, rows: int, dim: int, alpha: float, segments: bool, is_half: bool, seed: int
) -> None:
    """The error of each tensor against float64 is at most twice the twin's; of small tensors the median of draws."""
    dtype = torch.bfloat16 if is_half else torch.float32
    if is_half:  # larger ones have a ReLU near its kink
        depth, rows, dim = min(depth, 3), min(rows, 6), min(dim, 6)
    torch.manual_seed(seed)
    draws = 1 + 60 // (dim * min(rows, depth, dim))
    found = [relative_errors(dtype, depth, rows, dim, alpha, segments) for _ in range(draws)]
    known = [each for each in found if each is not None]
    hypothesis.assume(known)
    ours, twins = torch.stack(known).quantile(0.5, dim=0)  # in one of many draws a sum of few numbers cancels
    rounding = torch.finfo(dtype).eps / 2  # a twin that errs less was lucky
    assert (ours <= 2 * twins.clamp_min(rounding)).all(), dict(zip(("y", *NAMES), (ours / twins).tolist(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_as_a_sequence_of_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision without a loop the output is bitwise that of the blocks; gradients are of their own dtypes."""
    monkeypatch.setattr(native, "multiplies_half", lambda: False)
    made = stack(6, 8, dtype=torch.float32).to(dtype)
    x = torch.randn(5, 8, dtype=dtype)
    assert made.alpha.dtype == torch.float32
    assert torch.equal(made(x), made.to_modules()(x))
    made(x).float().square().sum().backward()
    assert [each.grad.dtype for each in made.parameters()] == [dtype, dtype, torch.float32]


needs_half = pytest.mark.skipif(not native.multiplies_half(), reason="the processor has no products of bfloat16")


@needs_half
def test_small_branches_add_up_in_bfloat16() -> None:
    """The loop keeps the sum over the layers in float32: what is below half a bfloat16 each time is not lost."""
    made = DeepStack(MLPBlock(8), 100, init_value=0.001).bfloat16()
    with torch.no_grad():
        made.weight.copy_(torch.eye(8))
        made.bias.zero_()
    x = torch.ones(5, 8, dtype=torch.bfloat16)
    assert made(x).dtype == torch.bfloat16
    torch.testing.assert_close(made(x).double(), torch.full((5, 8), 1.001**100, dtype=F64), rtol=2**-8, atol=0)
    assert torch.equal(made.to_modules()(x), x)
    made(x).sum().backward()
    assert [each.grad.dtype for each in made.parameters()] == [torch.bfloat16, torch.bfloat16, torch.float32]


@needs_half
@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize(("depth", "rows", "dim"), [(1, 1, 1), (30, 33, 17), (3, 8, 300), (100, 2, 64), (7, 100, 150)])
def test_bfloat16_is_no_further_from_the_truth_than_the_twin(depth: int, rows: int, dim: int, segments: bool) -> None:
    """Output and gradients against float64, and the same bits in a second run; on more threads than rows, too."""
    torch.manual_seed(0)
    plain = operands(stack(depth, dim, alpha=0.05, dtype=torch.float32), rows)
    tensors = tuple(each.detach().bfloat16().requires_grad_() for each in plain[:3]) + plain[3:]
    assert native.Loops.serves(*tensors)
    g = torch.randn(rows, dim).bfloat16()
    exact = derive(reference_stack.deep_stack, tuple(each.detach().double().requires_grad_() for each in tensors), g)
    twins = derive(reference_stack.deep_stack, tensors, g)
    ours, again = (derive(lambda *t: deep_stack(*t, segments=segments), tensors, g) for _ in range(2))
    for name, mine, same, twin, true in zip(("y", *NAMES), ours, again, twins, exact, strict=True):
        assert torch.equal(mine, same)
        least = torch.finfo(torch.bfloat16).eps / 2 * true.norm()  # a twin that errs less was lucky
        assert (mine.double() - true).norm() <= 2 * torch.maximum((twin.double() - true).norm(), least), name


@needs_half
def test_not_a_number_stays_one_in_bfloat16() -> None:
    """In x, in a weight, and in the gradient; infinity too."""
    made, x = stack(3, 8, alpha=0.5, dtype=torch.float32).bfloat16(), torch.ones(4, 8, dtype=torch.bfloat16)
    x[1, 2], x[2, 3] = torch.nan, torch.inf
    y = made(x)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[0].isfinite().all()


def test_autocast_is_that_of_a_sequence_of_blocks() -> None:
    """Under autocast output and gradients are bitwise those of the blocks."""
    made, x = stack(4, 8, dtype=torch.float32), torch.randn(5, 8)
    blocks = made.to_modules()
    for each in (made, blocks):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = each(x)
        y.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(x), blocks(x))
    assert torch.equal(made.alpha.grad, torch.stack([block.gate.alpha.grad for block in blocks]))


# Threads and memory


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("depth", "rows", "dim"), [(1, 7, 5), (10, 1, 8), (30, 33, 17), (3, 8, 300)])
def test_checkpointing_changes_no_bit(depth: int, rows: int, dim: int) -> None:
    """In float32 on two threads, gradients with checkpoint="sqrt" and those of a second run are bitwise the same."""
    tensors, g = operands(stack(depth, dim, dtype=torch.float32), rows), torch.randn(rows, dim)
    plain, again = (derive(deep_stack, tensors, g) for _ in range(2))
    frugal = derive(lambda *t: deep_stack(*t, segments=True), tensors, g)
    assert all(map(torch.equal, plain, again))
    assert all(map(torch.equal, plain, frugal))
    torch.set_num_threads(1)
    torch.testing.assert_close(plain, derive(deep_stack, tensors, g), rtol=1e-4, atol=1e-4)


def test_checkpointing_keeps_the_root_of_the_depth() -> None:
    """Kept for the backward pass are 2 L layers' activations, and sqrt(L) with checkpoint="sqrt"; none without grad."""

    def count(made: DeepStack) -> int:
        sizes: list[int] = []
        parameters = {each.data_ptr() for each in made.parameters()}
        with saved_tensors_hooks(
            lambda t: sizes.append(t.numel() * (t.data_ptr() not in parameters)) or t, lambda t: t
        ):
            made(torch.randn(3, 4))
        return sum(sizes) // 12

    assert count(stack(100, dtype=torch.float32)) == 200 + 1  # and the input, for second derivatives
    assert count(stack(100, dtype=torch.float32, checkpoint="sqrt")) == 10 + 1
    with torch.no_grad():
        assert count(stack(100, dtype=torch.float32)) == 0


# Compilers


def test_compiles_without_unrolling() -> None:
    """torch.compile makes one graph of one op, however deep the stack, with the eager gradients."""
    sizes = []

    def look(graph: torch.fx.GraphModule, _: object) -> Any:
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    for depth in (2, 300):
        torch._dynamo.reset()
        made, x = stack(depth), torch.randn(3, 4, dtype=F64)
        assert torch.equal(torch.compile(made, backend=look, fullgraph=True)(x), made(x))
    assert sizes[0] == sizes[1]


def test_compiled_transforms_see_through() -> None:
    """Under torch.compile too, jvp, grad and vmap of a stack are what they are without."""
    made, x, v = stack(2), torch.randn(3, 4, dtype=F64), torch.randn(3, 4, dtype=F64)
    func = torch.func
    ways: list[Callable[..., Any]] = [
        lambda x, v: func.jvp(made, (x,), (v,)),
        lambda x, v: func.grad(lambda x: (made(x) * v).sum())(x),
        lambda x, v: func.vmap(made)(x) * v,
    ]
    for way in ways:
        torch._dynamo.reset()
        compiled = torch.compile(way, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, v), way(x, v))


def test_its_ops_pass_the_checks_of_torch() -> None:
    """The custom op's schema, fake kernel and autograd registration pass torch.library.opcheck."""
    tensors = operands(stack(5), rows=3)
    for keep in ("nothing", "layers", "segments"):
        operator, arguments = torch.ops.rezero.deep_stack.default, (*tensors, keep)
        tests = ("test_schema", "test_faketensor") + ("test_autograd_registration",) * (keep != "nothing")
        torch.library.opcheck(operator, arguments, test_utils=tests)


# Conversions


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return list(states[0]) == list(states[1]) and all(map(torch.equal, states[0].values(), states[1].values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modules_survive_the_way_there_and_back(dtype: torch.dtype) -> None:
    """Blocks stacked and taken apart have the same state dict, bitwise; so has a stack, taken apart and stacked."""
    blocks = nn.Sequential(*(ReZero(MLPBlock(4, gain=0.7), gate=Gate(init_value=0.25)) for _ in range(3)))
    for each in blocks.parameters():
        nn.init.normal_(each)
    blocks = blocks.to(dtype).eval()
    blocks.requires_grad_(False)
    made = DeepStack.from_modules(blocks, checkpoint="sqrt")
    assert equal_states(made.to_modules(), blocks)
    assert equal_states(DeepStack.from_modules(made.to_modules()), made)
    assert str(made.to_modules()) == str(blocks)
    assert (made.to_modules()[0].branch.gain, made.init_value, made.training) == (0.7, 0.25, False)
    assert not any(each.requires_grad for each in made.parameters())
    assert {each.data_ptr() for each in made.parameters()}.isdisjoint(each.data_ptr() for each in blocks.parameters())
    x = torch.randn(2, 4, dtype=F64)
    torch.testing.assert_close(made.double()(x), blocks.double()(x), rtol=1e-12, atol=1e-12)


def twice(block: nn.Module) -> list[nn.Module]:
    return [block, block]


BAD_BLOCKS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "none": (list, ValueError, r"at least one block ReZero\(MLPBlock\(dim\)\) or .*, got none"),
    "no ReZero": (lambda: [MLPBlock(4)], TypeError, r"block 0 is MLPBlock; wrap it, ReZero\(MLPBlock"),
    "other branch": (lambda: [ReZero(nn.Linear(4, 4))], TypeError, "MLPBlock or .* so far: got torch.nn.Linear"),
    "dropout": (lambda: [ReZero(MLPBlock(4), dropout=0.1)], ValueError, "without dropout"),
    "tanh": (lambda: [ReZero(MLPBlock(4), gate=Gate(activation="tanh"))], ValueError, "without an activation"),
    "channels": (lambda: [ReZero(MLPBlock(4), gate=Gate(4))], ValueError, "one number"),
    "shared": (lambda: twice(ReZero(MLPBlock(4))), ValueError, "must not share parameters"),
    "widths": (
        lambda: [ReZero(MLPBlock(4)), ReZero(MLPBlock(5))],
        ValueError,
        r"weight.shape is torch.Size\(\[4, 4\]\) in block 0 and torch.Size\(\[5, 5\]\) in block 1",
    ),
    "frozen": (
        lambda: [ReZero(MLPBlock(4)), ReZero(MLPBlock(4)).requires_grad_(False)],
        ValueError,
        "weight.requires_grad is True in block 0 and False in block 1",
    ),
    "mode": (lambda: [ReZero(MLPBlock(4)), ReZero(MLPBlock(4)).eval()], ValueError, "training is True in block 0"),
}


@pytest.mark.parametrize(("make", "kind", "message"), BAD_BLOCKS.values(), ids=BAD_BLOCKS)
def test_blocks_that_cannot_be_stacked_are_refused(
    make: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    """from_modules says which block is not as the others, or can't be stacked at all."""
    with pytest.raises(kind, match=message):
        DeepStack.from_modules(make())


# The module


def test_each_layer_draws_a_start_of_its_own() -> None:
    """Layers start apart, as MLPBlock draws them: Xavier-normal weights with its gain, biases up to 1 / sqrt(dim)."""
    block = MLPBlock(64, gain=0.5)
    before = block.linear.weight.clone()
    made = DeepStack(block, 40)
    assert made.weight.std(dim=(1, 2)).sub(before.std()).abs().max() < 0.1 * before.std()
    assert made.bias.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert made.weight[0].ne(made.weight[1]).all()
    assert torch.equal(block.linear.weight, before)
    assert not made.alpha.any()


def test_is_one_gate_of_many_branches() -> None:
    """gates finds the stack, param_groups gives alpha the rate of its depth and decays the weights alone."""
    model = nn.Sequential(nn.Linear(4, 4), DeepStack(MLPBlock(4), 1000))
    assert rezero.gates(model) == {"1": model[1]}
    groups = {each["name"]: each for each in rezero.param_groups(model, lr=0.1, weight_decay=0.1)}
    assert groups["gates"]["params"] == [model[1].alpha]
    assert groups["gates"]["lr"] == 3 / 1000
    assert [each.shape for each in groups["decayed"]["params"]] == [(4, 4), (1000, 4, 4)]
    assert [each.shape for each in groups["undecayed"]["params"]] == [(4,), (1000, 4)]


def test_diagnoses_look_at_it() -> None:
    """check finds a stack healthy, and AlphaRecorder records the mean of its gates."""
    made = stack(4, alpha=0.1, dtype=torch.float32)
    assert list(rezero.diagnose.check(made, torch.randn(8, 4))) == []
    with rezero.diagnose.AlphaRecorder(made, every=1) as recorder:
        recorder.step()
    assert list(recorder.latest.values()) == [pytest.approx(made.alpha.mean().item())]


def test_learns() -> None:
    """A few steps of Adagrad, fused over its three parameters, lower the loss of a deep stack."""
    torch.manual_seed(1)
    made, x = DeepStack(MLPBlock(8), 300), torch.randn(16, 8)
    update = torch.optim.Adagrad(rezero.param_groups(made, lr=0.01, weight_decay=0.0), fused=True)
    target, losses = x.roll(1, dims=1), []
    for _ in range(30):
        loss = (made(x) - target).square().mean()
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "block": (lambda: DeepStack(nn.Linear(4, 4), 3), TypeError, "so far: got torch.nn.Linear"),  # type: ignore[arg-type]
    "gated block": (lambda: DeepStack(ReZero(MLPBlock(4)), 3), TypeError, "without ReZero around it"),  # type: ignore[arg-type]
    "depth": (lambda: DeepStack(MLPBlock(4), 0), ValueError, "depth must be at least 1: got 0"),
    "checkpoint": (lambda: DeepStack(MLPBlock(4), 3, checkpoint="all"), ValueError, "None or 'sqrt': got 'all'"),  # type: ignore[arg-type]
    "init_value": (lambda: DeepStack(MLPBlock(4), 3, init_value=float("nan")), ValueError, "must be a finite number"),
    "width": (lambda: DeepStack(MLPBlock(4), 3)(torch.ones(2, 5)), ValueError, r"width 4, \(\*, 4\): got \(2, 5\)"),
    "scalar": (lambda: DeepStack(MLPBlock(1), 3)(torch.ones(())), ValueError, r"width 1, \(\*, 1\): got \(\)"),
    "dtype": (lambda: stack()(torch.ones(2, 4)), ValueError, "torch.float64: got torch.float32; convert it"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_arguments_are_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    """What is wrong is said with what was expected and what came."""
    with pytest.raises(kind, match=message):
        call()


def test_runs_without_its_native_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no compiler the twin gives the same output and gradients, checkpointed or not."""
    tensors = operands(stack(7), rows=5)
    for segments in (False, True):

        def call(*each: Tensor, segments: bool = segments) -> Tensor:
            return deep_stack(*each, segments=segments)

        with monkeypatch.context() as patch:
            expected = derive(call, tensors, torch.ones(5, 4))
            patch.setattr(native, "find", lambda _: None)
            torch.testing.assert_close(derive(call, tensors, torch.ones(5, 4)), expected, rtol=1e-12, atol=1e-12)
