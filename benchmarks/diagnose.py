"""What does a diagnosis take? Each as a multiple of one training step of the same network, and one large Jacobian.

    python benchmarks/diagnose.py [--device cuda] [--rounds 5]

The network is the Transformer of ``training_step.py``. Beside it the 20 largest singular values of 12 layers of
torch's own encoder, width 512, on 128 tokens: a Jacobian of 65,536 x 65,536, which would take 16 GiB as a matrix.
"""

import resource
import time
from typing import Any

import torch
from timing import interleave, ratios, read_arguments, write_result
from torch import nn
from training_step import INPUTS, build_step

from rezero.diagnose import check, jacobian_spectrum, propagation
from rezero.lab import find_task
from rezero.layers import LanguageModel


def large_jacobian(device: str) -> dict[str, Any]:
    """Time the largest singular values of a Jacobian that is not made."""
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, norm_first=True) for _ in range(12)]
    model, x = nn.Sequential(*layers).to(device), torch.randn(1, 128, 512, device=device)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = jacobian_spectrum(model, x, k=20, which="largest")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "peak_gib": peak / 2**20,
        "before_gib": before / 2**20,
        "largest": found.singular_values[0].tolist(),
        "residual": float(found.residuals.max()),
        "mean_squared": float(found.mean_squared),
        "mean_squared_error": float(found.mean_squared_error),
    }


if __name__ == "__main__":
    options = read_arguments(__doc__, rounds=5)
    jacobian = large_jacobian(options.device)
    print("20 largest of 65,536: {seconds:.1f} s, {peak_gib:.2f} GiB at the peak".format(**jacobian))
    model = LanguageModel(128, 12, 4, share="layer").to(options.device)
    inputs, targets = (each.to(options.device) for each in INPUTS["lm-enwik8"]())
    step = build_step(model, find_task("lm-enwik8").defaults.optimizer, inputs, targets)
    one = inputs[:1]
    blocks = ("layers.0", "layers.11")
    seconds = interleave(
        {
            "training step": step,
            "check": lambda: check(model, inputs),
            "propagation": lambda: propagation(model, inputs),
            "jacobian, 5 largest": lambda: jacobian_spectrum(model, one, between=blocks, k=5, which="largest"),
        },
        rounds=options.rounds,
        device=options.device,
    )
    table = ratios(seconds, to="training step")
    for name, row in table.items():
        print(f"{name:20}  {row['ms']:9.1f} ms  {row['ratio']:6.1f} steps ({row['q1']:.1f} to {row['q3']:.1f})")
    print(
        write_result(
            f"diagnose-{options.device}", {"large Jacobian": jacobian, "in training steps": table}, options.output
        )
    )
