"""The Triton loops over a DeepStack's layers against the twin: on a GPU where there is one, else interpreted."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rezero import DeepStack
from rezero.kernels import fusing, reference_stack
from rezero.layers import MLPBlock

triton_stack = pytest.importorskip("rezero.kernels.triton_stack")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(5, 7, 9), (4, 33, 17), (1, 1, 1), (3, 0, 4), (3, 16, 64), (2, 5, 150), (2, 40, 256)]  # layers, rows, width


def draw(depth: int, rows: int, dim: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    sizes = {"x": (rows, dim), "weight": (depth, dim, dim), "bias": (depth, dim), "alpha": (depth, 1), "g": (rows, dim)}
    drawn = {name: torch.randn(size, device=DEVICE) for name, size in sizes.items()}
    drawn["weight"] /= dim**0.5
    return {name: each if name == "alpha" else each.to(dtype) for name, each in drawn.items()}


def run(loops: Any, depth: int, given: dict[str, Tensor]) -> list[Tensor]:
    """Return the output, what is kept, and all gradients."""
    x, weight, bias, alpha, g = given.values()
    kept = x.new_empty(2, depth, *x.shape)
    y = loops.forward(x, weight, bias, alpha, kept)
    assert torch.equal(loops.forward(x, weight, bias, alpha, None), y)
    out = tuple(torch.full_like(each, torch.nan) for each in (weight, bias, alpha))
    return [y, kept, loops.backward(g, kept, weight, alpha, out), *out]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_is_the_twin(sizes: tuple[int, int, int]) -> None:
    """Output, what is kept and the gradients, where rows and width fill no tile, one, or several."""
    given = draw(*sizes)
    torch.testing.assert_close(
        run(triton_stack, sizes[0], given), run(reference_stack, sizes[0], given), rtol=1e-4, atol=1e-4
    )


def test_chunks_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients summed for two layers at a time, and one that is left over, are those of all at once."""
    given = draw(5, 7, 9)
    expected = run(triton_stack, 5, given)
    monkeypatch.setattr(triton_stack, "_CHUNK", 2 * given["g"].nbytes)
    torch.testing.assert_close(run(triton_stack, 5, given), expected)


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_a_stack_runs_on_it(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A DeepStack trains by the loops, whatever it keeps."""
    called = []
    monkeypatch.setattr(fusing, "_DEVICES", {DEVICE})
    monkeypatch.setattr("rezero.kernels.native.Loops.serves", lambda *_: False)
    monkeypatch.setattr(
        triton_stack, "backward", lambda *given, real=triton_stack.backward: called.append(1) or real(*given)
    )
    stack, x = (
        DeepStack(MLPBlock(12), 7, init_value=0.3, checkpoint=checkpoint).to(DEVICE),
        torch.randn(2, 5, 12, device=DEVICE),
    )
    stack(x).sum().backward()
    assert called
    found = [each.grad.clone() for each in stack.parameters() if each.grad is not None]
    stack.zero_grad()
    reference_stack.deep_stack(x, *stack.parameters()).sum().backward()
    torch.testing.assert_close(found, [each.grad for each in stack.parameters()], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu  # the interpreter has no products of bfloat16
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """Each tensor's error against float64 is at most twice the twin's."""
    given = draw(20, 40, 150, dtype)
    exact = run(reference_stack, 20, {name: each.double() for name, each in given.items()})
    results = [run(loops, 20, given) for loops in (triton_stack, reference_stack)]
    for mine, twin, true in zip(*results, exact, strict=True):
        errors = [float((each.double() - true).norm() / true.norm()) for each in (mine, twin)]
        assert errors[0] <= 2 * errors[1]
