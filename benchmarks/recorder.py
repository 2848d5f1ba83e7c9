"""What does recording the gates cost? Training steps with `AlphaRecorder` beside the same steps without.

    python benchmarks/recorder.py [--device cuda] [--rounds 20]

All recorders write a file. The ratio is that of a step with a record to one without, timed in turn, which a busy
machine blurs. What ``step()`` takes by itself, as a share of a bare step, is sharper, but lacks what it costs to watch
the forward pass for ratios. Steps between records cost next to nothing, so that at ``every=10`` a tenth is left.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleave, ratios, read_arguments, write_result
from torch import nn
from training_step import INPUTS, build_step

from rezero.diagnose import AlphaRecorder
from rezero.lab import find_task
from rezero.layers import MLP, LanguageModel

NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Transformer 12 x 128, 16 x 128 bytes": ("lm-enwik8", lambda: LanguageModel(128, 12, 4, share="layer")),
    "fully connected 64 x 256, batch 100": ("fc-cifar10", lambda: MLP(3072, 256, 64, 10)),
}
OPTIONS: dict[str, dict[str, bool]] = {
    "alphas": {},
    "gradients": {"gradients": True},
    "ratios": {"ratios": True},
    "all": {"gradients": True, "ratios": True},
}


def with_recorder(step: Callable[[], object], recorder: AlphaRecorder) -> Callable[[], object]:
    """Return a training step with a call of the recorder."""

    def recorded() -> None:
        step()
        recorder.step()

    return recorded


def own_seconds(recorder: AlphaRecorder, every: int, *, blocks: int = 100) -> float:
    """Time ``step()`` alone, a call: the median over blocks in which one call records."""
    seconds = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(every):
            recorder.step()
        seconds.append((time.perf_counter() - start) / every)
    return statistics.median(seconds)


if __name__ == "__main__":
    arguments = read_arguments(__doc__, rounds=20)
    tables = {}
    for title, (task, build) in NETWORKS.items():
        torch.manual_seed(0)
        inputs, targets = (part.to(arguments.device) for part in INPUTS[task]())
        optimizer, bare = find_task(task).defaults.optimizer, build().to(arguments.device)
        calls = {"bare": build_step(bare, optimizer, inputs, targets)}
        own: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, options in OPTIONS.items():
                model = copy.deepcopy(bare)
                recorder = AlphaRecorder(model, Path(folder, f"{name}.jsonl"), every=1, **options)
                calls[name] = with_recorder(build_step(model, optimizer, inputs, targets), recorder)
            table = ratios(interleave(calls, rounds=arguments.rounds, device=arguments.device), to="bare")
            for name in ("alphas", "gradients"):
                for every in (1, 10):
                    path = Path(folder, f"{name}-{every}.jsonl")
                    with AlphaRecorder(bare, path, every=every, **OPTIONS[name]) as recorder:
                        own[f"{name}, every={every}"] = own_seconds(recorder, every)
        print(title)
        for name, row in table.items():
            print(f"  {name:22} {row['ms']:9.2f} ms   {row['ratio']:.4f} ({row['q1']:.4f} to {row['q3']:.4f}) of bare")
        shares = {name: 1000 * seconds / table["bare"]["ms"] for name, seconds in own.items()}
        for name, share in shares.items():
            print(f"  {name:22} {1000 * own[name]:9.3f} ms   {share:.3%} of bare, step() alone")
        tables[title] = {"steps": table, "step() alone, share of bare": shares}
    print("written:", write_result(f"recorder-{arguments.device}", tables, arguments.output))
