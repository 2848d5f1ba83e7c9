"""Branches whose last layer takes the gate into its product or weights: the block as it is written, with less kept."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rezero import Gate, ReZero
from rezero.branch import add_sequence
from tests.kept import bytes_kept

D = 4
BRANCHES: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(D, 6), nn.ReLU(), nn.Linear(6, D)), (9, D)),
    "linear alone": (lambda: nn.Sequential(nn.Linear(D, D, bias=False)), (2, 3, D)),
    "conv": (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(D, D, 3, padding=1)), (2, D, 5, 5)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(D, D, 3, padding=1), nn.BatchNorm2d(D)), (2, D, 5, 5)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D)), (9, D)),
    "nested": (
        lambda: nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(nn.Conv2d(D, D, 3, padding=1)))),
        (2, D, 5, 5),
    ),
    "few rows": (lambda: nn.Sequential(nn.Conv2d(D, D, 3, padding=1)), (1, D, 2, 2)),
}


class Written(nn.Module):
    """The block as most people write it."""

    def __init__(self, block: ReZero) -> None:
        super().__init__()
        self.block = copy.deepcopy(block)

    def forward(self, x: Tensor) -> Tensor:
        f: Tensor = self.block.dropout(self.block.branch(x))
        return x + self.block.gate(f)


def make(name: str, dim: int | None = None, dropout: float = 0.0) -> tuple[ReZero, Written, Tensor]:
    build, shape = BRANCHES[name]
    block = ReZero(build(), gate=Gate(dim, init_value=0.6), dropout=dropout).double()
    for parameter in block.branch.parameters():
        nn.init.normal_(parameter)
    return block, Written(block), torch.randn(shape, dtype=torch.float64)


def run(block: nn.Module, x: Tensor) -> list[Tensor | None]:
    """Return the output, all gradients, and what a batch norm has counted."""
    leaf = x.clone().requires_grad_()
    torch.manual_seed(1)
    y = block(leaf)
    y.square().sum().backward()
    return [y.detach(), leaf.grad, *(each.grad for each in block.parameters()), *block.buffers()]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    ("name", "dim"), [*((name, None) for name in BRANCHES), ("linear", D), ("linear alone", D), ("layer norm", D)]
)
@pytest.mark.parametrize("training", [True, False])
def test_is_the_block_written_out(name: str, dim: int | None, dropout: float, training: bool) -> None:
    """Output, gradients and counts are those of x + alpha * dropout(branch(x))."""
    block, written, x = make(name, dim, dropout)
    torch.testing.assert_close(run(block.train(training), x), run(written.train(training), x))


@pytest.mark.parametrize("name", ["conv", "nested", "batch norm", "layer norm"])
def test_keeps_no_branch(name: str) -> None:
    """Nothing of the size of the activations is kept beyond what the branch itself keeps."""
    block, written, x = make(name)
    x = x.repeat(8, *[1] * (x.ndim - 1))

    branch = written.block.branch
    weights = sum(each.nbytes for each in block.branch[-1].parameters())  # type: ignore[index]
    assert bytes_kept(block, x, block) <= bytes_kept(lambda x: x + branch(x), x, branch) + weights + 8
    assert bytes_kept(written, x, written) >= bytes_kept(lambda x: x + branch(x), x, branch) + x.nbytes


@pytest.mark.parametrize("where", ["last", "branch", "dropout"])
def test_hooks_see_the_branch(where: str) -> None:
    """Where somebody looks at the last layer's output, the branch's or the dropout's, it is there as ever."""
    block, written, x = make("batch norm")
    seen = []
    place = {"last": block.branch[-1], "branch": block.branch, "dropout": block.dropout}[where]  # type: ignore[index]
    place.register_forward_hook(lambda _, __, output: seen.append(output))
    torch.testing.assert_close(block(x), written(x))
    torch.testing.assert_close(seen, [written.block.branch(x)])


def test_what_a_branch_must_not_do_is_still_refused() -> None:
    """A branch of another shape, and one that changes its input in place."""
    x = torch.randn(2, D, 5, 5)
    with pytest.raises(
        ValueError, match=r"must keep the shape of its input: expected \(2, 4, 5, 5\), got \(2, 4, 3, 3\)"
    ):
        ReZero(nn.Sequential(nn.Conv2d(D, D, 3)))(x)
    with pytest.raises(ValueError, match=r"expected \(9, 4\), got \(9, 6\)"):
        ReZero(nn.Sequential(nn.Linear(D, 6)))(torch.randn(9, D))
    with pytest.raises(ValueError, match="changes its input in place"):
        ReZero(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(D, D, 1)))(x)


def test_branches_that_are_run_as_they_are() -> None:
    """An empty one, one that ends otherwise, one of a class of its own."""
    x, gate, idle = torch.randn(9, D), Gate(), nn.Dropout(0.0)
    empty, other = nn.Sequential(nn.Linear(D, D), nn.Sequential()), nn.Sequential(nn.Bilinear(D, D, D))
    for branch in (nn.Sequential(), empty, nn.Sequential(nn.Linear(D, D), nn.ReLU()), other):
        assert add_sequence(x, branch, idle, gate) is None
    assert add_sequence(x, nn.Sequential(nn.LayerNorm(D)), nn.Dropout(0.5), gate) is None
    assert add_sequence(x, nn.Sequential(nn.LayerNorm(D)), nn.Dropout1d(0.5), gate) is None


@pytest.mark.parametrize("name", ["linear", "conv", "batch norm", "layer norm"])
def test_compiles_in_one_graph(name: str) -> None:
    """No graph break, and the same numbers."""
    block, written, x = make(name)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), written(x))
