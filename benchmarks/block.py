"""What does the gate cost today? A gated block against the same block without a gate, and against the bare products.

    python benchmarks/block.py [--device cuda] [--rounds 60]

Forward and backward of a stack of equal blocks. Peers: the products alone (floor), x + f(x) (ungated), the gate written
out as x + alpha * f(x) (naive), rezero.ReZero, and x + f(norm(x)) (pre-norm). Ratios are to the ungated stack.
"""

from collections.abc import Callable

import torch
from timing import interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

import rezero
from rezero.layers import MLPBlock, Residual

SIZES = {"32 x 256, batch 128": (32, 256, 128), "8 x 1024, batch 1024": (8, 1024, 1024)}


class Naive(nn.Module):
    """The block as most people write it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + alpha * branch(x)``."""
        f: Tensor = self.branch(x)
        return x + self.alpha * f


def build_floor(depth: int, width: int, batch: int, device: str) -> Callable[[], object]:
    """Return the three products of each linear layer, on buffers that are there already."""
    x, w, y = (torch.randn(shape, device=device) for shape in ((batch, width), (width, width), (batch, width)))
    gradient = torch.empty(width, width, device=device)

    def products() -> None:
        for _ in range(depth):
            torch.mm(x, w, out=y)
            torch.mm(y, w.t(), out=x)
            torch.mm(x.t(), y, out=gradient)
            x.clamp_(-1, 1)

    return torch.no_grad()(products)


def build_stack(
    make: Callable[[nn.Module], nn.Module], depth: int, width: int, batch: int, device: str
) -> Callable[[], object]:
    """Return forward and backward of a stack of blocks."""
    torch.manual_seed(0)
    stack = nn.Sequential(*(make(MLPBlock(width, gain=0.5)) for _ in range(depth))).to(device)
    x = torch.randn(batch, width, device=device)

    def run() -> None:
        stack.zero_grad()
        stack(x).sum().backward()

    return run


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=60)
    tables = {}
    for title, (depth, width, batch) in SIZES.items():
        makers: dict[str, Callable[[nn.Module], nn.Module]] = {
            "ungated": Residual,
            "naive gate": Naive,
            "rezero": rezero.ReZero,
            "pre-norm": lambda f, width=width: Residual(f, pre_norm=nn.LayerNorm(width)),  # type: ignore[misc]
        }
        calls = {"floor": build_floor(depth, width, batch, arguments.device)}
        calls |= {name: build_stack(make, depth, width, batch, arguments.device) for name, make in makers.items()}
        tables[title] = ratios(interleave(calls, rounds=arguments.rounds, device=arguments.device), to="ungated")
        print(title)
        for name, row in tables[title].items():
            print(
                f"  {name:12} {row['ms']:8.2f} ms   {row['ratio']:.2f} ({row['q1']:.2f} to {row['q3']:.2f}) of ungated"
            )
    print("written:", write_result(f"block-{arguments.device}", tables))
