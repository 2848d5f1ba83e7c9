"""What does a whole Transformer layer cost? Ours against torch's, in training: time, and bytes kept for the gradients.

    python benchmarks/layer.py [--device cuda] [--rounds 30] [--dropout 0.1] [--compiled 1] [--peers 1]

Forward and backward of one encoder layer, feed-forward 4 times as wide: 4 sequences in float32; on a GPU 16 in bfloat16
and 4 passes in the queue. Peers: nn.TransformerEncoderLayer with the norm before (pre-norm) and after (post-norm),
the pre-norm layer gated by hand with one alpha a branch (naive: x + alpha * f(x), no norms), the same without a gate
(ungated), and the layer's matrix products alone, on buffers that are there already (floor). With --compiled 1 the
pre-norm layer, the ungated one and ours are compiled. With --peers 1, in the environment of make peers, also the layer
of x-transformers, timm's with LayerScale, and that of the package rezero 0.1.0. Ratios are to pre-norm.
"""

import argparse
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import bytes_kept, interleave, ratios, read_arguments, write_result
from torch import Tensor, nn

from rezero.layers import TransformerEncoderLayer

SIZES = {"cpu": ((256, 512, 1024), (128, 512)), "cuda": ((1024, 2048, 4096), (512, 2048))}  # widths, lengths
BATCHES, DTYPES = {"cpu": 4, "cuda": 16}, {"cpu": torch.float32, "cuda": torch.bfloat16}
OLD = Path(__file__).parents[1] / ".venv-peers" / "rezero-0.1.0" / "rezero" / "transformer" / "rztx.py"
CALLS = {"cpu": 1, "cuda": 4}  # that wait in a GPU's queue, as those of the other layers do in training


class Written(nn.TransformerEncoderLayer):
    """torch's layer without its norms, and with a gate written out."""

    gated = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm1 = self.norm2 = nn.Identity()  # type: ignore[assignment]
        like = self.linear1.weight
        self.alphas = nn.Parameter(like.new_zeros(2, 1)) if self.gated else (1, 1)

    def forward(self, src: Tensor, *_: object) -> Tensor:
        """Add the two branches."""
        if not self.gated:
            x = src + self._sa_block(src, None, None)
            return x + self._ff_block(x)
        x = src + self.alphas[0] * self._sa_block(src, None, None)
        return x + self.alphas[1] * self._ff_block(x)


class Ungated(Written):
    """The same without a gate."""

    gated = False


class OldLayer(nn.Module):
    """The layer of the package rezero 0.1.0, whose sequences come first; its name is ours, so it is loaded by path."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.layer = runpy.run_path(str(OLD))["RZTXEncoderLayer"](width, heads, 4 * width, dropout)
        nn.init.constant_(self.layer.resweight, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Run it on ``(B, T, D)``."""
        y: Tensor = self.layer(x.transpose(0, 1)).transpose(0, 1)
        return y


def build_peers(width: int, dropout: float) -> dict[str, nn.Module]:
    """Return the layers of others, each as its package makes it."""
    from timm.models.vision_transformer import Block
    from x_transformers import Encoder

    heads = width // 64
    drops = {"attn_dropout": dropout, "ff_dropout": dropout}
    return {
        "x-transformers": Encoder(dim=width, depth=1, heads=heads, attn_dim_head=64, attn_flash=True, **drops),
        "timm, LayerScale": Block(width, heads, qkv_bias=True, init_values=0.1, proj_drop=dropout, attn_drop=dropout),
        "rezero 0.1.0": OldLayer(width, heads, dropout),
    }


def build_floor(x: Tensor) -> Callable[[], None]:
    """Return the products of a layer and of its backward pass, those of the attention one a head."""
    batch, length, width = x.shape
    rows, heads = batch * length, batch * (width // 64)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=x.device, dtype=x.dtype)

    sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))  # of what goes in and out
    maps = [(made(rows, k), made(d, k), made(rows, d), made(rows, d), made(rows, k), made(d, k)) for k, d in sizes]
    q, k, v, read, of_read = (made(heads, length, 64) for _ in range(5))
    scores, of_scores = (made(heads, length, length) for _ in range(2))

    def products() -> None:
        for h, weight, y, _, _, _ in maps:
            torch.mm(h, weight.t(), out=y)
        torch.bmm(q, k.mT, out=scores)
        torch.bmm(of_scores, v, out=read)
        torch.bmm(of_scores.mT, q, out=of_read)
        torch.bmm(q, v.mT, out=scores)
        torch.bmm(of_scores, k, out=read)
        torch.bmm(of_scores.mT, q, out=of_read)
        for h, weight, _, g, dh, dweight in maps:
            torch.mm(g, weight, out=dh)
            torch.mm(g.t(), h, out=dweight)

    return torch.no_grad()(products)


def measure(width: int, length: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the layers at one size."""
    device, dtype = arguments.device, DTYPES[arguments.device]
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "d_model": width,
        "nhead": width // 64,
        "dim_feedforward": 4 * width,
        "dropout": arguments.dropout,
    }
    given |= {"batch_first": True, "device": device, "dtype": dtype}
    layers: dict[str, Any] = {
        "pre-norm": nn.TransformerEncoderLayer(**given, norm_first=True),
        "post-norm": nn.TransformerEncoderLayer(**given),
        "naive gate": Written(**given),
        "ungated": Ungated(**given),
        "rezero": TransformerEncoderLayer(**given, init_value=0.1),
    }
    if arguments.peers:
        layers |= {name: layer.to(device, dtype) for name, layer in build_peers(width, arguments.dropout).items()}
    if arguments.compiled:
        torch._dynamo.reset()
        names = ("pre-norm", "ungated", "rezero")
        # Not by layer.compile(), which leaves a class of torch.nn as it is.
        layers = {name: torch.compile(layers[name], dynamic=False) for name in names}
    x = torch.randn(BATCHES[device], length, width, device=device, dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)

    def step(layer: nn.Module) -> Callable[[], None]:
        def run() -> None:
            layer.zero_grad()
            x.grad = None
            layer(x).backward(gradient)

        return run

    calls = {name: step(layer) for name, layer in layers.items()}
    seconds = interleave(
        {**calls, "floor": build_floor(x)},
        rounds=arguments.rounds,
        device=device,
        calls=CALLS[device],
    )
    table = ratios(seconds, to="pre-norm")
    kept = {name: bytes_kept(layer, x) for name, layer in layers.items()}
    for name, number in kept.items():
        table[name] |= {"bytes": number, "bytes ratio": number / kept["pre-norm"]}
    return table


def mean_ratio(tables: list[dict[str, dict[str, float]]], name: str) -> float:
    """Return the geometric mean of a layer's time ratios over the sizes."""
    return math.exp(sum(math.log(table[name]["ratio"]) for table in tables) / len(tables))


if __name__ == "__main__":
    arguments = read_arguments(
        __doc__,
        rounds=30,
        dropout=(0.0, "probability, of all layers"),
        compiled=(0, "1: each of three layers by torch.compile"),
        peers=(0, "1: also those of other packages, see `make peers`"),
    )
    tables = {}
    widths, lengths = SIZES[arguments.device]
    for width in widths:
        for length in lengths:
            title = f"d {width}, length {length}"
            tables[title] = measure(width, length, arguments)
            print(title)
            for name, row in tables[title].items():
                spread = f"{row['ratio']:.3f} ({row['q1']:.3f} to {row['q3']:.3f})"
                kept = f"{row['bytes'] / 1e6:7.1f} MB kept, {row['bytes ratio']:.3f}" if "bytes" in row else ""
                print(f"  {name:12} {row['ms']:8.2f} ms   {spread} of pre-norm   {kept}")
    means = {name: mean_ratio(list(tables.values()), name) for name in next(iter(tables.values()))}
    print("geometric means of time:", ", ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
    how = (f"-dropout-{arguments.dropout:g}" if arguments.dropout else "") + ("-compiled" if arguments.compiled else "")
    how += "-peers" if arguments.peers else ""
    record = {**tables, "geometric mean of time": means}
    print("written:", write_result(f"layer-{arguments.device}{how}", record, arguments.output))
