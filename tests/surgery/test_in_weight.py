"""Gated layers whose gate is in their weights: the same numbers as a scaled output, and less that is kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rezero
from rezero.in_weight import scaled_output
from rezero.surgery import gated
from tests.kept import bytes_kept

D = 4


class Block(nn.Module):
    """A residual addition whose branch ends in any layer."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(x.sin())


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(D, D), (9, D)),
    "linear, no bias": (lambda: nn.Linear(D, D, bias=False), (3, 5, D)),
    "conv1d": (lambda: nn.Conv1d(D, D, 3, padding=1), (2, D, 9)),
    "conv2d": (lambda: nn.Conv2d(D, D, 3, padding="same", padding_mode="circular"), (2, D, 7, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(D, D, 3, padding=1, groups=2, bias=False), (2, D, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(D, D, 1), (2, D, 3, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(D), (2, 3, D)),
    "layer norm, two axes": (lambda: nn.LayerNorm((3, D)), (2, 3, D)),
    "layer norm, no bias": (lambda: nn.LayerNorm(D, bias=False), (2, 3, D)),
    "RMS norm": (lambda: nn.RMSNorm(D), (2, 3, D)),
    "group norm": (lambda: nn.GroupNorm(2, D), (2, D, 3, 3)),
    "batch norm": (lambda: nn.BatchNorm2d(D), (3, D, 3, 3)),
    "batch norm of rows": (lambda: nn.BatchNorm1d(D), (5, D)),
    "batch norm, mean of all": (lambda: nn.BatchNorm2d(D, momentum=None), (3, D, 3, 3)),
    "batch norm, no statistics": (lambda: nn.BatchNorm2d(D, track_running_stats=False), (3, D, 3, 3)),
}


def make(name: str, gate: str, dtype: torch.dtype = torch.float64) -> tuple[Any, nn.Module, Tensor]:
    """Return a block with an open gate, the same block before, and an input."""
    build, shape = LAYERS[name]
    block, x = Block(build()).to(dtype), torch.randn(shape, dtype=dtype)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    plain = copy.deepcopy(block)
    rezero.convert_(block, x, gate=gate, init_value=0.0)
    for each in rezero.gates(block).values():
        nn.init.normal_(each.gate_parameter)
    return block, plain, x


@pytest.mark.parametrize("gate", ["scalar", "channel"])
@pytest.mark.parametrize("name", LAYERS)
def test_is_the_scaled_output(name: str, gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output, gradients and what a batch norm has counted are those of an output that is scaled."""
    block, _, x = make(name, gate)
    other = copy.deepcopy(block)
    found = []
    for each, run in ((block, scaled_output), (other, lambda *_: None)):
        taken = []
        monkeypatch.setattr(
            gated, "scaled_output", lambda *given, run=run, taken=taken: taken.append(run(*given)) or taken[-1]
        )
        results = []
        for training in (True, True, False):
            given = x.clone().requires_grad_()
            y = each.train(training)(given)
            each.zero_grad()
            y.square().sum().backward()
            results += [y.detach(), given.grad, *(parameter.grad for parameter in each.parameters())]
        assert all((part is None) == (each is other) for part in taken)
        found.append([*results, *each.buffers()])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_keeps_no_output(name: str) -> None:
    """What is kept beside what the layer keeps without a gate is no larger than its weights, and a few numbers."""
    block, plain, x = make(name, "scalar")

    assert (
        bytes_kept(block, x, block) <= bytes_kept(plain, x, plain) + sum(each.nbytes for each in plain.parameters()) + 8
    )


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(D, D), torch.randn(D - 1, D)),  # each output has more weights than there are rows
        (nn.Conv2d(D, D, 3, padding=1), torch.randn(1, D, 2, 2)),
        (nn.Linear(D, D), torch.randn(3, D, 9).mT),
        (nn.LayerNorm(D, elementwise_affine=False), torch.randn(9, D)),
        (nn.BatchNorm1d(D, affine=False), torch.randn(9, D)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(D, D)), torch.randn(9, D)),
        (nn.Softmax(-1), torch.randn(9, D)),
    ],
    ids=[
        "few rows",
        "few pixels",
        "transposed",
        "no weight",
        "no weight of a batch norm",
        "parametrized",
        "another class",
    ],
)
def test_else_the_output_is_scaled(layer: nn.Module, x: Tensor) -> None:
    """Where the weights are more, or none, or computed, the layer runs as it is and its output is scaled."""
    assert scaled_output(type(layer), layer, x, torch.ones(1), (1,)) is None


@pytest.mark.parametrize("name", ["linear", "conv2d", "batch norm", "layer norm"])
def test_compiles_in_one_graph(name: str) -> None:
    """No graph break, and the same numbers."""
    block, _, x = make(name, "scalar", torch.float32)
    expected = copy.deepcopy(block)(x)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_half_precision_keeps_its_dtype() -> None:
    """A gate that is more precise than its layer's weights does not widen what the layer returns, autocast or not."""
    block, _, x = make("linear", "scalar", torch.bfloat16)
    assert block(x).dtype == torch.bfloat16
    block, _, x = make("linear", "scalar", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block.last(x).dtype == torch.bfloat16
