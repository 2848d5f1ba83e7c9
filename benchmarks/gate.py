"""What does the gate alone cost on a GPU? x + alpha * f against a copy of as many bytes.

    python benchmarks/gate.py [--rounds 30]

Three tensors must be moved, x and f in and y out; with the backward pass six, the gradient and f in and the gradient of
f out. Twenty calls wait in the GPU's queue. Peers: the gate written out (naive), the same compiled, and a copy, whose
time for as many bytes is the floor. A share of 1 is the bandwidth of the copy.
"""

from collections.abc import Callable

import torch
from timing import interleave, ratios, read_arguments, write_result
from torch import Tensor

from rezero.functional import gated_residual

SIZES = {"2^22": 22, "2^24": 24, "2^26": 26, "2^28": 28}
Table = dict[str, dict[str, float]]


def naive(x: Tensor, f: Tensor, alpha: Tensor) -> Tensor:
    """The gate as most people write it."""
    return x + alpha * f


def forward(gate: Callable[..., Tensor], x: Tensor, f: Tensor, alpha: Tensor) -> Callable[[], object]:
    """Return a forward pass."""
    return torch.no_grad()(lambda: gate(x, f, alpha))


def both(gate: Callable[..., Tensor], x: Tensor, f: Tensor, alpha: Tensor) -> Callable[[], object]:
    """Return a forward and a backward pass."""
    gradient, leaves = torch.randn_like(x), [each.detach().clone().requires_grad_() for each in (x, f, alpha)]
    return lambda: torch.autograd.grad(gate(*leaves), leaves, gradient)


def measure(size: int, dtype: torch.dtype, passes: Callable[..., Callable[[], object]], rounds: int) -> Table:
    """Time the peers on tensors of 1024 features; a copy's time is scaled to the bytes that must be moved."""
    x, f, y = (torch.randn(size // 1024, 1024, device="cuda", dtype=dtype) for _ in range(3))
    alpha = torch.full((1,), 0.3, device="cuda")
    torch._dynamo.reset()
    calls = {
        "copy": lambda: y.copy_(x),
        "rezero": passes(gated_residual, x, f, alpha),
        "naive gate": passes(naive, x, f, alpha),
        "naive gate, compiled": passes(torch.compile(naive, dynamic=False), x, f, alpha),
    }
    seconds = interleave(calls, rounds=rounds, device="cuda", calls=20)
    moved = 3 if passes is forward else 6
    seconds["copy"] = [each * moved / 2 for each in seconds["copy"]]
    table = ratios(seconds, to="copy")
    for row in table.values():
        row |= {"share of copy bandwidth": 1 / row["ratio"]}
    return table


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=30)
    tables = {}
    for dtype in (torch.bfloat16, torch.float32):
        for what, passes in {"forward": forward, "forward and backward": both}.items():
            for name, exponent in SIZES.items():
                title = f"{str(dtype).removeprefix('torch.')}, {what}, {name} numbers"
                tables[title] = table = measure(1 << exponent, dtype, passes, arguments.rounds)
                print(title)
                for peer, row in table.items():
                    print(f"  {peer:20} {1000 * row['ms']:9.1f} us   {row['share of copy bandwidth']:.2f} of a copy")
    print("written:", write_result("gate-cuda", tables, arguments.output))
