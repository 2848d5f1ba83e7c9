"""The ReZero block: identity, gradients at the start, what it passes on and what it refuses."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rezero import Gate, ReZero, gates
from rezero.layers import MLP, MLPBlock

F64 = torch.float64


def open_(model: nn.Module, value: float = 0.5) -> nn.Module:
    """Set every gate of a model to a value of its own around ``value``."""
    for i, gate in enumerate(gates(model).values()):
        nn.init.constant_(gate.alpha, value + 0.01 * i)
    return model


def rezero_stack(depth: int, *, width: int = 6, tied: Gate | None = None, dim: int | None = None) -> nn.Sequential:
    gate = (lambda: tied) if tied is not None else (lambda: Gate(dim))
    return nn.Sequential(*(ReZero(MLPBlock(width), gate=gate()) for _ in range(depth))).double()


# The formula


@pytest.mark.parametrize("alpha", [0.0, 0.7], ids=["closed", "open"])
@pytest.mark.parametrize("activation", [None, "tanh"], ids=str)
@pytest.mark.parametrize("dim", [None, 5], ids=["scalar", "channel"])
def test_equals_its_formula(dim: int | None, activation: Any, alpha: float) -> None:
    """The block is x + scale * branch(x), and passes gradcheck in x, alpha and the branch's parameters."""
    gate = Gate(dim, init_value=alpha, activation=activation, dtype=F64)
    block = ReZero(nn.Sequential(nn.Linear(5, 5), nn.Tanh()), gate=gate).double()
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    scale = math.tanh(alpha) if activation else alpha
    torch.testing.assert_close(block(x), x + scale * block.branch(x), rtol=1e-15, atol=1e-15)
    parameters = dict(block.named_parameters())

    def call(x: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(block, dict(zip(parameters, values, strict=True)), x)
        return result

    assert torch.autograd.gradcheck(call, (x, *parameters.values()))


def test_default_gate_is_one_closed_alpha() -> None:
    """Without a gate the block gets a scalar one of its own that starts at zero."""
    block, other = ReZero(nn.Linear(3, 3)), ReZero(nn.Linear(3, 3))
    assert torch.equal(block.gate.alpha, torch.zeros(1))
    assert block.gate is not other.gate
    assert set(block.state_dict()) == {"branch.weight", "branch.bias", "gate.alpha"}


def test_dropout_acts_on_the_branch_in_training_only() -> None:
    """Dropout zeroes entries of the branch and never of the skip, and rests in evaluation."""
    block = ReZero(nn.Identity(), gate=Gate(init_value=1.0), dropout=0.5)
    x = torch.ones(1000)
    assert sorted(set(block(x).tolist())) == [1.0, 3.0]
    assert 350 < (block(x) == 1.0).sum() < 650
    assert torch.equal(block.eval()(x), 2 * x)


@pytest.mark.parametrize("dropout", [-0.1, 1.5], ids=str)
def test_refuses_a_dropout_that_is_no_probability(dropout: float) -> None:
    """A dropout outside 0 to 1 is an error."""
    with pytest.raises(ValueError, match="dropout must be a probability from 0 to 1"):
        ReZero(nn.Linear(2, 2), dropout=dropout)


# The identity at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_starts_as_the_identity_bitwise(training: bool, dtype: torch.dtype) -> None:
    """At the start the output is torch.equal to the input, in training with dropout and in evaluation."""
    block = nn.Sequential(
        ReZero(nn.Linear(8, 8), dropout=0.5),
        ReZero(nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 8)), gate=Gate(8)),
        ReZero(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), gate=Gate(activation="tanh"), dropout=0.9),
    ).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    assert torch.equal(block.train(training)(x), x)
    assert not torch.equal(open_(block)(x), x)


def test_depth_does_not_show_at_the_start() -> None:
    """A 1-block and a 200-block network with the same ends have bitwise equal outputs, and not once gates open."""
    shallow, deep = MLP(7, 16, 1, 3), MLP(7, 16, 200, 3)
    ends = {k: v for k, v in shallow.state_dict().items() if k.startswith(("input", "output"))}
    deep.load_state_dict(ends, strict=False)
    x = torch.randn(5, 7)
    assert len(gates(deep)) == 200
    assert torch.equal(shallow(x), deep(x))
    assert not torch.equal(open_(shallow, 1e-2)(x), open_(deep, 1e-2)(x))


def test_jacobian_at_the_start_is_the_identity() -> None:
    """The input-output Jacobian of a 50-block stack is exactly I (dynamical isometry), and not once gates open."""
    stack, x = rezero_stack(50), torch.randn(6, dtype=F64)
    assert torch.equal(torch.func.jacrev(stack)(x), torch.eye(6, dtype=F64))
    assert not torch.allclose(torch.func.jacrev(open_(stack, 0.1))(x), torch.eye(6, dtype=F64))


def test_an_infinite_branch_shows_at_the_start() -> None:
    """0 * inf is nan: a closed gate does not hide a branch that overflows."""

    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    assert ReZero(Overflow())(torch.ones(2)).isnan().all()


# The first gradients


@pytest.mark.parametrize("activation", [None, "tanh"], ids=str)
@pytest.mark.parametrize("dim", [None, 6], ids=["scalar", "channel"])
def test_first_gradient_of_alpha_has_a_closed_form(dim: int | None, activation: Any) -> None:
    """At the start dL/dalpha_i = sum(g * F_i(x_0)) at every layer, with the same g = dL/dx_L and the same x_0."""
    stack = nn.Sequential(
        *(ReZero(MLPBlock(6), gate=Gate(dim, activation=activation)) for _ in range(30)), nn.Identity()
    ).double()
    x0 = torch.randn(4, 5, 6, dtype=F64)
    xl = stack(x0).detach().requires_grad_()
    head = nn.Sequential(nn.Linear(6, 3), nn.Tanh()).double()
    (g,) = torch.autograd.grad(head(xl).square().sum(), xl)
    head(stack(x0)).square().sum().backward()
    for name, gate in gates(stack).items():
        block = stack.get_submodule(name.removesuffix(".gate"))
        assert isinstance(block, ReZero)
        products = (g * block.branch(x0)).sum((0, 1))
        expected = products if dim else products.sum(0, keepdim=True)
        assert gate.alpha.grad is not None
        torch.testing.assert_close(gate.alpha.grad, expected, rtol=1e-12, atol=1e-14)
        assert gate.alpha.grad.abs().min() > 1e-6  # the check is not vacuous


def test_first_gradient_of_a_tied_alpha_is_the_sum_over_its_blocks() -> None:
    """With one alpha for all blocks the inner products add up."""
    tied = Gate()
    stack = rezero_stack(30, tied=tied)
    x0 = torch.randn(4, 6, dtype=F64)
    weights = torch.randn(4, 6, dtype=F64)  # g of the loss below
    (stack(x0) * weights).sum().backward()
    branches = [block.branch(x0) for block in stack if isinstance(block, ReZero)]
    assert tied.alpha.grad is not None
    torch.testing.assert_close(tied.alpha.grad, sum((weights * f).sum() for f in branches).view(1), rtol=1e-12, atol=0)


def test_first_gradients_of_the_branch_are_zero_tensors() -> None:
    """At the start every parameter of a branch has a gradient: a tensor of exact zeros, not None, as DDP needs."""
    stack = rezero_stack(3)
    stack(torch.randn(4, 6, dtype=F64)).square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == ("gate" in name), name


def test_the_first_step_opens_the_gate_and_the_second_trains_the_branch() -> None:
    """After one step the gates have moved and the branches have not; after two, both."""
    stack = rezero_stack(3)
    start = {name: p.detach().clone() for name, p in stack.named_parameters()}
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    x = torch.randn(4, 6, dtype=F64)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        stack(x).square().sum().backward()
        optimizer.step()
        moved.append({name for name, p in stack.named_parameters() if not torch.equal(p, start[name])})
    assert moved[0] == {name for name in start if "gate" in name}
    assert moved[1] == set(start)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.AdamW], ids=lambda c: c.__name__
)
def test_first_sign_like_step_moves_every_alpha_by_its_rate(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """The first step of Adam and Adagrad moves every alpha by its learning rate, against its gradient's sign."""
    stack = rezero_stack(20)
    stack(torch.randn(4, 6, dtype=F64)).square().sum().backward()
    signs = [gate.alpha.grad.sign().item() for gate in gates(stack).values() if gate.alpha.grad is not None]
    optimizer(stack.parameters(), lr=0.03).step()
    alphas = [gate.alpha.item() for gate in gates(stack).values()]
    assert alphas == pytest.approx([-0.03 * sign for sign in signs], rel=1e-6)  # eps / |gradient| < 1e-6


# What it passes on


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, other: Tensor, *, factor: float = 1.0) -> Tensor:
        return factor * self.linear(x) + other


def test_forwards_further_arguments() -> None:
    """Positional and keyword arguments after x reach the branch."""
    block = ReZero(TwoInputs(), gate=Gate(init_value=1.0))
    x, other = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.equal(block(x, other, factor=3.0), x + (3.0 * block.branch.linear(x) + other))
    assert torch.equal(block(x, other=other), x + (block.branch.linear(x) + other))


def test_gates_the_first_item_of_a_tuple() -> None:
    """Where the branch returns a tuple, its first item is gated and the others are passed on as they are."""
    block = ReZero(nn.GRU(4, 4, batch_first=True), gate=Gate(init_value=0.5))
    x = torch.randn(2, 3, 4)
    f, hidden = block.branch(x)
    output = block(x)
    assert type(output) is tuple
    assert len(output) == 2
    assert torch.equal(output[0], x + 0.5 * f)
    assert torch.equal(output[1], hidden)
    assert torch.equal(ReZero(nn.GRU(4, 4))(x)[0], x)


def test_multihead_attention_as_a_branch() -> None:
    """nn.MultiheadAttention takes key and value through the block and its weights come back."""
    block = ReZero(nn.MultiheadAttention(4, 2, batch_first=True), gate=Gate(init_value=0.5))
    x = torch.randn(2, 3, 4)
    y, weights = block(x, x, x, need_weights=True)
    assert torch.equal(y, x + 0.5 * block.branch(x, x, x)[0])
    assert weights.shape == (2, 3, 3)


class Output(NamedTuple):
    hidden: Tensor
    cache: str
    extra: Tensor | None = None


def test_keeps_a_named_tuple() -> None:
    """A namedtuple stays of its type, with only its first field gated."""

    class Named(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(2 * x, "cache")

    output = ReZero(Named(), gate=Gate(init_value=0.5))(torch.ones(3))
    assert isinstance(output, Output)
    assert torch.equal(output.hidden, torch.full((3,), 2.0))
    assert output[1:] == ("cache", None)


def test_dropout_and_dtype_rule_hold_for_tuples() -> None:
    """The first item of a tuple is dropped out and summed by the same rules as a bare tensor."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.bfloat16(), x

    block = ReZero(Pair(), gate=Gate(init_value=1.0), dropout=1.0)
    x = torch.ones(4, dtype=torch.float64)
    y, rest = block(x)
    assert rest is x
    assert y.dtype == torch.float64
    assert torch.equal(y, x)


@pytest.mark.parametrize(
    ("x", "branch", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_dtype_is_that_of_x_plus_branch(x: torch.dtype, branch: torch.dtype, expected: torch.dtype) -> None:
    """The output has the dtype of x + branch(x); a wider alpha does not widen it."""

    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(branch)

    for dtype in (torch.float32, torch.float64):
        assert ReZero(Cast(), gate=Gate(init_value=0.5, dtype=dtype))(torch.ones(2, dtype=x)).dtype == expected


def test_one_gate_may_serve_several_blocks() -> None:
    """A gate given to two blocks is one parameter, and moves both."""
    gate = Gate()
    stack = nn.Sequential(ReZero(nn.Identity(), gate=gate), ReZero(nn.Identity(), gate=gate))
    assert list(stack.parameters()) == [gate.alpha]
    nn.init.ones_(gate.alpha)
    assert torch.equal(stack(torch.ones(2)), torch.full((2,), 4.0))


@pytest.mark.parametrize(
    "branch",
    [nn.Conv1d(4, 4, 3, padding=1), nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1))],
    ids=["conv", "conv with batch norm"],
)
def test_convolutions_are_branches_too(branch: nn.Module) -> None:
    """A scalar gate scales a convolution, whose last axis is not its channels."""
    block, x = ReZero(branch), torch.randn(2, 4, 9)
    assert torch.equal(block(x), x)
    open_(block.eval(), 0.5)
    torch.testing.assert_close(block(x), x + 0.5 * branch(x))


# What it refuses


@pytest.mark.parametrize(
    ("branch", "shape"),
    [(nn.Linear(4, 5), (2, 5)), (nn.Linear(4, 1), (2, 1)), (nn.Flatten(0), (8,))],
    ids=["other width", "broadcastable", "other rank"],
)
def test_refuses_a_branch_that_changes_the_shape(branch: nn.Module, shape: tuple[int, ...]) -> None:
    """At the first call a branch that does not keep the shape is refused, and both shapes are named."""
    with pytest.raises(ValueError, match="must keep the shape of its input") as error:
        ReZero(branch)(torch.randn(2, 4))
    assert f"expected (2, 4), got {shape}" in str(error.value)


def test_refuses_a_gate_of_another_width() -> None:
    """A channel gate that does not fit the last axis is refused at the call, and both widths are named."""
    with pytest.raises(ValueError, match=r"alpha must have shape \(1,\), or .*\(4,\).*got \(3,\)"):
        ReZero(nn.Linear(4, 4), gate=Gate(3))(torch.randn(2, 4))


@pytest.mark.parametrize("branch", [F.relu, None, torch.ones(2)], ids=["function", "None", "tensor"])
def test_refuses_a_branch_that_is_no_module(branch: Any) -> None:
    """A branch must be a module, and the message names what came."""
    with pytest.raises(TypeError, match=f"branch must be an nn.Module: got {type(branch).__name__}"):
        ReZero(branch)


@pytest.mark.parametrize("gate", [0.5, nn.Identity(), nn.Parameter(torch.zeros(1))], ids=["float", "module", "tensor"])
def test_refuses_a_gate_that_is_none(gate: Any) -> None:
    """A gate must be a Gate, and the message names what came."""
    with pytest.raises(TypeError, match=f"a rezero.Gate: got {type(gate).__name__}; make one, such as rezero.Gate"):
        ReZero(nn.Linear(2, 2), gate=gate)


# What the constructor leaves alone


def zero_then(*more: nn.Module) -> nn.Sequential:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), layer, *more)


class Noise(nn.Module):
    """Adds noise, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    "branch",
    [nn.Linear(4, 4), zero_then(nn.Sigmoid()), zero_then(Noise())],
    ids=["not suspected", "suspected and run", "drawing when run"],
)
def test_constructor_draws_no_random_number(branch: nn.Module) -> None:
    """Building a block around a branch leaves torch's random state as it was."""
    before = torch.get_rng_state()
    ReZero(branch, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("refused", [False, True], ids=["accepted", "refused"])
def test_constructor_leaves_the_branch_as_it_was(refused: bool) -> None:
    """Building a block, or failing to, changes no mode, buffer, parameter, gradient or hook of the branch."""
    branch = zero_then() if refused else zero_then(nn.Sigmoid())
    branch[1].eval()  # a frozen batch norm in a training branch
    branch[0].weight.requires_grad_(False)
    modes = [module.training for module in branch.modules()]
    state = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    if refused:
        with pytest.raises(ValueError, match="the branch outputs only zeros"):
            ReZero(branch)
    else:
        ReZero(branch)
    assert [module.training for module in branch.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in branch.state_dict().items())
    assert all(p.grad is None for p in branch.parameters())
    assert [p.requires_grad for p in branch.parameters()] == [False] + [True] * 5


def test_constructor_leaves_counting_buffers_alone() -> None:
    """A branch that counts its calls in a buffer has counted none after construction."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = zero_then()[3]
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.zero(x).sigmoid()

    branch = Counting()
    ReZero(branch)
    assert branch.calls == 0


@pytest.mark.parametrize("mode", ["train", "no_grad"])
def test_refuses_a_branch_that_changes_its_input_in_place(mode: str) -> None:
    """An in-place first operation would change the skip as well, so it is an error and not another function."""
    block = ReZero(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)))
    with torch.set_grad_enabled(mode == "train"), pytest.raises(ValueError, match="changes its input in place"):
        block(torch.randn(3, 4))


@pytest.mark.parametrize("output", [[], {}, None, ()], ids=["list", "dict", "None", "empty tuple"])
def test_refuses_a_branch_that_returns_no_tensor(output: object) -> None:
    """What cannot be added is refused with its type."""

    class Odd(nn.Module):
        def forward(self, _: torch.Tensor) -> object:
            return output

    with pytest.raises(TypeError, match=f"must return a tensor.*got {type(output).__name__}"):
        ReZero(Odd())(torch.randn(3, 4))


@pytest.mark.parametrize("dim", [None, 4])
def test_refuses_a_branch_behind_a_closed_gate_of_its_own(dim: int | None) -> None:
    """A branch that ends in a closed gate is as dead as one that ends in a zero linear."""
    with pytest.raises(ValueError, match="outputs only zeros because of 1"):
        ReZero(nn.Sequential(nn.Linear(4, 4), Gate(dim)))


def test_the_gate_is_judged_by_its_value() -> None:
    """A gate that was opened by hand accepts a zero branch, and one that underflowed to zero does not."""
    zero = nn.Linear(4, 4)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    opened = Gate()
    nn.init.ones_(opened.alpha)
    ReZero(zero, gate=opened)
    with pytest.raises(ValueError, match="outputs only zeros"):
        ReZero(zero, gate=Gate(init_value=1e-60))


def test_is_built_and_run_on_fake_tensors() -> None:
    """Under FakeTensorMode, which plans memory without values, a block is built and keeps the shape."""
    with FakeTensorMode():
        assert ReZero(nn.Linear(4, 4))(torch.randn(2, 4)).shape == (2, 4)
