"""What does the gate cost today? Gated blocks against the same block without a gate: time, and bytes kept.

    python benchmarks/block.py [--device cuda] [--rounds 40]

Forward and backward of one block, in float32 and bfloat16: a linear map, an MLP, a convolution with batch norm,
attention; then of stacks of MLP blocks. Peers: x + f(x) (ungated), the gate written out as x + alpha * f(x) (naive),
rezero.ReZero, and the ungated block after rezero.convert_. Ratios are to ungated; the bytes are what is kept for the
gradients beyond what the ungated block keeps.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import bytes_kept, interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

import rezero
from rezero.layers import MLPBlock, Residual

STACKS = {"32 x 256, batch 128": (32, 256, 128), "8 x 1024, batch 1024": (8, 1024, 1024)}
CALLS = {"cpu": 1, "cuda": 10}  # that wait in a GPU's queue
Table = dict[str, dict[str, float]]


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


class Attention(nn.Module):
    """Attention as a branch, its projection last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), width // 64

    def forward(self, x: Tensor) -> Tensor:
        """Return what each place reads."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        read: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return read


def mlp(width: int) -> nn.Module:
    """Return the feed-forward branch of a Transformer."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


def conv(channels: int) -> nn.Module:
    """Return a convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))


# A branch and the shape of its input
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear 64, 128 rows": (lambda: nn.Sequential(nn.Linear(64, 64)), (128, 64)),
    "linear 1024, 4096 rows": (lambda: nn.Sequential(nn.Linear(1024, 1024)), (4096, 1024)),
    "MLP 64, 128 rows": (lambda: mlp(64), (128, 64)),
    "MLP 512, 2048 rows": (lambda: mlp(512), (2048, 512)),
    "conv 16, 8 x 16 x 16": (lambda: conv(16), (8, 16, 16, 16)),
    "conv 64, 64 x 32 x 32": (lambda: conv(64), (64, 64, 32, 32)),
    "attention 64, 2 x 32": (lambda: Attention(64), (2, 32, 64)),
    "attention 512, 8 x 256": (lambda: Attention(512), (8, 256, 512)),
}


def build_peers(branch: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """Return the block in each form, with open gates."""
    ungated = Residual(branch).to(x)
    converted = copy.deepcopy(ungated)
    rezero.convert_(converted, x.detach(), verify=False)
    peers: dict[str, nn.Module] = {
        "ungated": ungated,
        "naive gate": Naive(copy.deepcopy(branch)).to(x),
        "ReZero": rezero.ReZero(copy.deepcopy(branch)).to(x),
        "convert_": converted,
    }
    for peer in peers.values():
        for name, parameter in peer.named_parameters():
            if "alpha" in name:
                nn.init.constant_(parameter, 0.1)
    return peers


def measure(branch: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, arguments: Any) -> Table:
    """Time the peers, and count what they keep."""
    device = arguments.device
    x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)
    peers = build_peers(branch, x)

    def step(peer: nn.Module) -> Callable[[], object]:
        leaves = (x, *peer.parameters())
        return lambda: torch.autograd.grad(peer(x), leaves, gradient)

    calls = {name: step(peer) for name, peer in peers.items()}
    table = ratios(interleave(calls, rounds=arguments.rounds, device=device, calls=CALLS[device]), to="ungated")
    least = bytes_kept(peers["ungated"], x)
    for name, row in table.items():
        row |= {"extra bytes": bytes_kept(peers[name], x) - least, "of x": x.nbytes}
    return table


def measure_stack(depth: int, width: int, batch: int, arguments: Any) -> Table:
    """Time stacks of MLP blocks, beside the three products of each layer alone (floor) and beside pre-norm."""
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "ungated": Residual,
        "naive gate": Naive,
        "ReZero": rezero.ReZero,
        "pre-norm": lambda f: Residual(f, pre_norm=nn.LayerNorm(width)),
    }
    calls = {"floor": build_floor(depth, width, batch, arguments.device)}
    calls |= {name: build_stack(make, depth, width, batch, arguments.device) for name, make in makers.items()}
    return ratios(interleave(calls, rounds=arguments.rounds, device=arguments.device), to="ungated")


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


def show(title: str, table: Table) -> None:
    """Print a table."""
    print(title)
    base = table["ungated"]["ms"]
    for name, row in table.items():
        spread = f"{row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f}) of ungated"
        kept = f"{row['extra bytes']:10,.0f} bytes more" if "extra bytes" in row else ""
        print(f"  {name:22} {row['ms']:8.3f} ms {1000 * (row['ms'] - base):+9.0f} us   {spread} {kept}", flush=True)


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=40)
    tables = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, (build, shape) in BLOCKS.items():
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            torch.manual_seed(0)
            tables[title] = measure(build(), shape, dtype, arguments)
            show(title, tables[title])
    for name, sizes in STACKS.items():
        tables[f"stack {name}"] = measure_stack(*sizes, arguments)
        show(f"stack {name}", tables[f"stack {name}"])
    print("written:", write_result(f"block-{arguments.device}", tables, arguments.output))
