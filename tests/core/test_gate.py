"""The learned scale alpha."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rezero
from rezero import Gate, ReZero, gates
from rezero.gate import gate_dtype, held


def test_alpha_has_an_axis() -> None:
    """alpha is (1,) or (dim,), never 0-d, starts at zero and learns."""
    assert Gate().alpha.shape == (1,)
    assert Gate(1).alpha.shape == (1,)
    assert Gate(5).alpha.shape == (5,)
    for gate in (Gate(), Gate(5)):
        assert [name for name, _ in gate.named_parameters()] == ["alpha"]
        assert torch.equal(gate.alpha, torch.zeros_like(gate.alpha))
        assert gate.alpha.requires_grad


@pytest.mark.parametrize("dim", [None, 4], ids=["scalar", "channel"])
@pytest.mark.parametrize("activation", [None, "tanh"], ids=str)
def test_forward_is_the_scaled_branch(activation: Any, dim: int | None) -> None:
    """forward(f) is alpha * f, or tanh(alpha) * f, and passes gradcheck."""
    gate = Gate(dim, activation=activation, dtype=torch.float64)
    nn.init.normal_(gate.alpha)
    f = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale = gate.alpha.tanh() if activation else gate.alpha
    assert torch.equal(gate(f), scale * f)
    assert torch.equal(gate.scale, scale)
    assert torch.autograd.gradcheck(
        lambda f, alpha: torch.func.functional_call(gate, {"alpha": alpha}, f), (f, gate.alpha)
    )


def test_tanh_bounds_the_scale() -> None:
    """A tanh gate cannot pass 1, and near zero moves as alpha itself does."""
    assert Gate(activation="tanh", init_value=50.0).scale.item() == pytest.approx(1.0)
    gate = Gate(activation="tanh")
    gate(torch.tensor([3.0])).backward()
    assert gate.alpha.grad is not None
    assert gate.alpha.grad.item() == 3.0


@pytest.mark.parametrize("init_value", [0.0, 0.5, -2.0], ids=str)
@pytest.mark.parametrize("dim", [None, 3], ids=["scalar", "channel"])
def test_reset_restores_init_value(init_value: float, dim: int | None) -> None:
    """alpha starts at init_value and returns there, in place."""
    gate = Gate(dim, init_value=init_value)
    start = torch.full((dim or 1,), init_value)
    assert torch.equal(gate.alpha, start)
    parameter = gate.alpha
    nn.init.normal_(gate.alpha)
    gate.reset_parameters()
    assert gate.alpha is parameter
    assert torch.equal(gate.alpha, start)


@pytest.mark.parametrize("init_value", [math.nan, math.inf, -math.inf], ids=str)
def test_refuses_a_start_that_is_not_finite(init_value: float) -> None:
    """nan and infinities are no start."""
    with pytest.raises(ValueError, match=f"init_value must be a finite number: got {init_value}"):
        Gate(init_value=init_value)


def test_refuses_a_start_that_its_dtype_cannot_hold() -> None:
    """A finite init_value that overflows alpha's dtype does not become an infinite alpha."""
    with pytest.raises((ValueError, RuntimeError), match=r"init_value|overflow"):
        Gate(init_value=1e5, dtype=torch.float16)


@pytest.mark.parametrize("dim", [0, -3], ids=str)
def test_refuses_an_empty_gate(dim: int) -> None:
    """A gate has at least one entry; 0 is not taken for None."""
    with pytest.raises(ValueError, match=f"dim must be at least 1, or None for a single scale: got {dim}"):
        Gate(dim)


def test_refuses_an_unknown_activation() -> None:
    """An activation other than tanh is an error, not ignored."""
    with pytest.raises(ValueError, match="activation must be None or 'tanh': got 'sigmoid'"):
        Gate(activation="sigmoid")  # type: ignore[arg-type]


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bfloat16()": lambda m: m.bfloat16(),
    "half()": lambda m: m.half(),
    "to(bfloat16)": lambda m: m.to(torch.bfloat16),
    "to(float16)": lambda m: m.to(dtype=torch.float16),
    "to(cpu, bfloat16)": lambda m: m.to("cpu", torch.bfloat16),
    "to(half tensor)": lambda m: m.to(torch.empty(0, dtype=torch.float16)),
    "type(bfloat16)": lambda m: m.type(torch.bfloat16),
    "to(float8)": lambda m: m.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_alpha_stays_float32_in_a_half_model(cast: Callable[[nn.Module], nn.Module]) -> None:
    """Casting a model to a short dtype casts its weights, and neither alpha nor its gradient nor its value."""
    model = nn.Sequential(ReZero(nn.Linear(4, 4), gate=Gate(4, init_value=0.3)), nn.Linear(4, 4))
    model(torch.randn(2, 4)).sum().backward()
    gate, weight = model.get_submodule("0.gate"), model.get_parameter("1.weight")
    assert isinstance(gate, Gate)
    parameter, gradient = gate.alpha, gate.alpha.grad
    assert gradient is not None
    before = gradient.clone()
    cast(model)
    assert weight.dtype.itemsize < 4
    assert gate.alpha is parameter
    assert gate.alpha.dtype == torch.float32
    assert torch.equal(gate.alpha, torch.full((4,), 0.3))
    assert gate.alpha.grad is not None
    assert gate.alpha.grad.dtype == torch.float32
    assert torch.equal(gate.alpha.grad, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_model_keeps_its_dtype_and_its_gate_learns(dtype: torch.dtype) -> None:
    """In a half model the block's output is half, and a step of 1e-4 moves an alpha of 0.5, which a half one cannot."""
    assert torch.tensor(0.5, dtype=dtype) - 1e-4 == torch.tensor(0.5, dtype=dtype)
    block = ReZero(nn.Linear(4, 4), gate=Gate(init_value=0.5)).to(dtype)
    y = block(torch.randn(2, 4, dtype=dtype))
    assert y.dtype == dtype
    y.sum().backward()
    assert block.gate.alpha.grad is not None
    block.gate.alpha.grad.fill_(1.0)
    torch.optim.SGD([block.gate.alpha], lr=1e-4).step()
    assert block.gate.alpha.item() == pytest.approx(0.4999, abs=1e-7)


def test_alpha_follows_double_and_comes_back() -> None:
    """alpha becomes float64 with its model, and float32 again."""
    gate = Gate(3, init_value=0.5)
    assert gate.double().alpha.dtype == torch.float64
    assert gate.float().alpha.dtype == torch.float32
    assert torch.equal(gate.alpha, torch.full((3,), 0.5))


def test_a_half_gate_can_be_asked_for() -> None:
    """The dtype argument is obeyed, and a half gate can be cast up."""
    gate = Gate(init_value=0.5, dtype=torch.bfloat16)
    assert gate.alpha.dtype == torch.bfloat16
    assert gate.half().alpha.dtype == torch.float16
    assert gate.float().alpha.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_gate_dtype_is_at_least_float32(dtype: torch.dtype, expected: torch.dtype) -> None:
    """Beside weights of a dtype, and under it as the default, a gate has that dtype or float32."""
    assert gate_dtype(dtype) == expected
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert gate_dtype() == expected
        assert Gate().alpha.dtype == expected
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_meta_gate_is_restored_by_reset(dtype: torch.dtype | None) -> None:
    """A gate built on the meta device, cast there, emptied to the CPU and reset, is at init_value in float32."""
    gate = Gate(3, init_value=0.25, device="meta")
    assert gate.alpha.is_meta
    if dtype is not None:
        gate.to(dtype)
        assert gate.alpha.is_meta
    gate.to_empty(device="cpu").reset_parameters()
    assert gate.alpha.device.type == "cpu"
    assert torch.equal(gate.alpha, torch.full((3,), 0.25))


def test_a_cast_that_moves_too_moves_alpha() -> None:
    """to(device, half dtype) moves alpha to the device although it keeps its dtype."""
    gate = Gate(3).to("meta", torch.bfloat16)
    assert gate.alpha.is_meta
    assert gate.alpha.dtype == torch.float32


class Scaled(nn.Module):
    """Another library's module, with a parameter that happens to be called alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        self.gate = nn.Linear(2, 2)


def test_gates_are_found_by_class() -> None:
    """gates() lists what is a Gate or a subclass of it, and no other module's alpha or gate."""

    class OwnGate(Gate):
        pass

    model = nn.ModuleDict(
        {
            "other": Scaled(),
            "block": ReZero(nn.Linear(2, 2)),
            "own": OwnGate(2),
            "deep": nn.Sequential(nn.ReLU(), ReZero(ReZero(nn.Linear(2, 2)))),
        }
    )
    found = gates(model)
    assert list(found) == ["block.gate", "own", "deep.1.branch.gate", "deep.1.gate"]
    assert all(model.get_submodule(name) is gate for name, gate in found.items())


def test_a_shared_gate_is_listed_once() -> None:
    """A gate of several blocks appears under its first name only."""
    tied = Gate()
    model = nn.Sequential(*(ReZero(nn.Linear(2, 2), gate=tied) for _ in range(3)))
    assert list(gates(model)) == ["0.gate"]
    assert gates(model)["0.gate"] is tied


def test_gates_of_odd_models() -> None:
    """A model without gates has none, and a gate itself is listed under the empty name."""
    assert gates(Scaled()) == {}
    gate = Gate()
    assert gates(gate) == {"": gate}


def test_copies_keep_ties_and_settings() -> None:
    """deepcopy keeps a tied gate tied, its start, its activation and its count of branches."""
    tied = Gate(2, init_value=0.5, activation="tanh")
    tied.branches = 2
    twin = copy.deepcopy(nn.Sequential(*(ReZero(nn.Linear(2, 2), gate=tied) for _ in range(2))))
    first, second = twin.get_submodule("0.gate"), twin.get_submodule("1.gate")
    assert isinstance(first, Gate)
    assert first is second
    assert first is not tied
    assert (first.init_value, first.activation, first.branches) == (0.5, "tanh", 2)


def test_print_shows_the_gate() -> None:
    """print(model) tells a gate's size, start and activation."""
    assert repr(Gate()) == "Gate(dim=1, init_value=0)"
    assert repr(Gate(3, init_value=0.5, activation="tanh")) == "Gate(dim=3, init_value=0.5, activation='tanh')"


@pytest.mark.parametrize("f_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_forward_keeps_the_dtype_of_the_branch(f_dtype: torch.dtype) -> None:
    """The scaled branch has the branch's dtype, whatever alpha's."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert Gate(dtype=dtype)(torch.ones(2, dtype=f_dtype)).dtype == f_dtype


def test_public_names_are_these() -> None:
    """rezero.Gate and rezero.gates are the ones tested here."""
    assert rezero.Gate is Gate
    assert rezero.gates is gates


def test_gate_is_vmappable() -> None:
    """A gate under torch.vmap scales 0-d samples without adding an axis."""
    gate = Gate(init_value=0.5)

    def scaled(f: Tensor) -> Tensor:
        return gate(f)

    assert torch.equal(torch.vmap(scaled)(torch.ones(3)), torch.full((3,), 0.5))


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_held_gates_scale_by_one_number(activation: Any, scale: float) -> None:
    """Through tanh too, and the very numbers are put back, also after an error."""
    owners = [Gate(3, init_value=0.7, activation=activation), Gate(init_value=-2.0, activation=activation)]
    before = [gate.alpha.detach().clone() for gate in owners]
    with held(owners, scale):
        for gate in owners:
            torch.testing.assert_close(gate.gate_scale, torch.full_like(gate.alpha, scale))
    with pytest.raises(KeyError, match="stop"), held(owners, scale):
        raise KeyError("stop")
    assert all(torch.equal(gate.alpha, numbers) for gate, numbers in zip(owners, before, strict=True))
    assert owners[0].gate_activation == activation
    assert owners[0].gate_init == 0.7
