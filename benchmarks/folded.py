"""What does a folded model cost? A model that was gated and folded against the same that never had a gate: inference.

    python benchmarks/folded.py [--device cuda] [--rounds 40]

Forward without gradients, at batches of 1 and more: pre-norm Transformer layers of torch, a ResNet, an MLP. Peers: the
model as it is (never gated), after rezero.convert_ with gates at 0.5 (gated), and that after rezero.fold_ (folded).
Ratios are to never gated. Folded models have the classes, parameters and operations of the first, so what is left is
the machine's noise, which a second copy of the model that never had a gate shows.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from block import mlp
from timing import interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

import rezero
from rezero.layers import Residual, ResNet

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "4 encoder layers, width 256": (
        lambda: nn.Sequential(
            *(nn.TransformerEncoderLayer(256, 4, 1024, 0.0, batch_first=True, norm_first=True) for _ in range(4))
        ),
        (128, 256),
    ),
    "ResNet-20": (lambda: ResNet(20, residual="residual"), (3, 32, 32)),
    "8 MLP blocks, width 256": (lambda: nn.Sequential(*(Residual(mlp(256)) for _ in range(8))), (256,)),
}
BATCHES = (1, 32)


def build_peers(make: Callable[[], nn.Module], x: Tensor) -> dict[str, nn.Module]:
    """Return the model never gated, twice, gated, and folded."""
    torch.manual_seed(0)
    model = make().to(x.device).eval()
    gated = copy.deepcopy(model)
    rezero.convert_(gated, x)
    for gate in rezero.gates(gated).values():
        nn.init.constant_(gate.gate_parameter, 0.5)
    folded = copy.deepcopy(gated)
    if left := rezero.fold_(folded).left:
        raise RuntimeError(f"gates that stay: {left}")
    return {"never gated": model, "again": copy.deepcopy(model), "gated": gated, "folded": folded}


@torch.inference_mode()
def run(model: nn.Module, x: Tensor) -> Tensor:
    """Run a model."""
    y: Tensor = model(x)
    return y


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=40)
    tables = {}
    for name, (make, shape) in MODELS.items():
        for batch in BATCHES:
            x = torch.randn(batch, *shape, device=arguments.device)
            peers = build_peers(make, x)
            torch.testing.assert_close(run(peers["folded"], x), run(peers["gated"], x), rtol=1e-4, atol=1e-5)
            calls = {peer: partial(run, model, x) for peer, model in peers.items()}
            often = 1 + 2000 // (batch * x[0].numel() // 16 + 100)  # so that a small model is timed over many calls
            seconds = interleave(calls, rounds=arguments.rounds, device=arguments.device, calls=often)
            tables[title := f"{name}, batch {batch}"] = table = ratios(seconds, to="never gated")
            print(title)
            for peer, row in table.items():
                print(f"  {peer:12} {row['ms']:8.3f} ms   {row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f})")
    print("written:", write_result(f"folded-{arguments.device}", tables, arguments.output))
