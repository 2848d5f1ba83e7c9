"""The gate on the CPU in one pass: the twin's function, derivatives and dtypes, no further from the truth."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rezero import functional
from rezero.kernels import gated_cpu, reference
from tests.kept import bytes_kept

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own forward mode uses it

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Small tensors take the path of large ones; returns what has taken it."""
    seen: list[Tensor] = []
    plain = gated_cpu.gated_residual

    def spy(x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
        seen.append(x)
        return plain(x, f, alpha)

    monkeypatch.setattr(gated_cpu, "_LARGE", 0)
    monkeypatch.setattr(gated_cpu, "_MIXED", 0)
    monkeypatch.setattr(gated_cpu, "gated_residual", spy)
    return seen


def operands(*shape: int, dtype: torch.dtype, alpha: float = 0.7) -> list[Tensor]:
    x, f = torch.randn(2, *shape, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return [each.requires_grad_() for each in (x.clone(), f.clone(), torch.tensor([alpha], dtype=wide))]


def gradients(call: Callable[..., Tensor], given: list[Tensor], g: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all three."""
    y = call(*given)
    return [y.detach(), *torch.autograd.grad(y, given, g.to(y.dtype))]


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_derivatives(calls: list[Tensor], alpha: float) -> None:
    """First and second derivatives, backward and forward, at zero and away from it, of each subset that learns."""
    given = operands(3, 4, dtype=torch.float64, alpha=alpha)
    for wanted in itertools.product([True, False], repeat=3):
        if any(wanted):
            some = [each.detach().requires_grad_(want) for each, want in zip(given, wanted, strict=True)]
            assert torch.autograd.gradcheck(functional.gated_residual, some, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(functional.gated_residual, some)
    assert calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_closed_gate_returns_x_bitwise(calls: list[Tensor], dtype: torch.dtype) -> None:
    """In its dtype, beside a float32 gate, whose gradient is there."""
    given = operands(5, 3, dtype=dtype, alpha=0.0)
    y, dx, df, dalpha = gradients(functional.gated_residual, given, torch.ones(5, 3, dtype=dtype))
    assert torch.equal(y, given[0])
    assert torch.equal(dx, torch.ones_like(y))
    assert (df.dtype, df.any()) == (dtype, False)
    assert (dalpha.dtype, bool(dalpha.any())) == (given[2].dtype, True)
    assert calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_errors_are_those_of_the_twin(dtype: torch.dtype) -> None:
    """Output and gradients err at most twice as much as the twin's, over 100 random shapes, all taken together."""
    errors = torch.zeros(2, 4, dtype=torch.float64)
    for _ in range(100):
        shape = torch.randint(1, 9, (int(torch.randint(1, 4, ())),)).tolist()
        given = operands(*shape, dtype=dtype)
        g = torch.randn(shape).to(dtype)
        exact = gradients(reference.gated_residual, [each.detach().double().requires_grad_() for each in given], g)
        scales = [*exact[:3], (g.double() * given[1].detach().double()).abs().sum()]
        for row, call in zip(errors, (functional.gated_residual, reference.gated_residual), strict=True):
            found = gradients(call, given, g)
            row += torch.stack(
                [((a.double() - b).norm() / c.norm()) ** 2 for a, b, c in zip(found, exact, scales, strict=True)]
            )
    ours, twins = errors.sqrt()
    assert (ours <= 2 * twins).all(), (ours / twins).tolist()


def test_keeps_the_branch_alone() -> None:
    """Nothing wider in half precision, and nothing of x."""
    x, f, alpha = operands(64, 8, dtype=torch.bfloat16)
    assert bytes_kept(lambda x: functional.gated_residual(x, f, alpha), x, nn.ParameterList([alpha])) == f.nbytes


@pytest.mark.parametrize(
    "given",
    [
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)),
        (torch.ones(2, 3), torch.ones(2, 3).double(), torch.ones(1)),
        (torch.ones(2, 3), torch.ones(2, 3), torch.ones(1).double()),
        (torch.ones(2, 3).cfloat(), torch.ones(2, 3).cfloat(), torch.ones(1)),
    ],
    ids=["channels", "mixed", "wider gate", "complex"],
)
def test_others_take_plain_operations(calls: list[Tensor], given: tuple[Tensor, ...]) -> None:
    """A scale a feature, several dtypes, a gate that asks for more precision than the rest, complex numbers."""
    assert torch.equal(functional.gated_residual(*given), reference.gated_residual(*given))
    assert not calls


def test_transforms_see_through(calls: list[Tensor]) -> None:
    """torch.func and torch.compile are given the plain operations."""
    given = [each.detach() for each in operands(4, 3, dtype=torch.float64)]
    expected = reference.gated_residual(*given)
    torch.testing.assert_close(torch.vmap(functional.gated_residual, (0, 0, None))(*given), expected)
    compiled = torch.compile(functional.gated_residual, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), expected)
    assert not calls


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1 << 18), (torch.bfloat16, 1 << 15)], ids=str)
def test_small_ones_are_plain(dtype: torch.dtype, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate of another dtype, as a float32 one in half precision, makes plain operations dear sooner."""
    monkeypatch.undo()
    for size in (least - 1, least):
        x, f, alpha = operands(size, dtype=dtype)
        assert gated_cpu.serves(x, f, alpha, None, 0.0) == (size == least)
