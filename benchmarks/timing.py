"""What the benchmarks share: interleaved timing, so that a machine's drift falls on all alike, and records."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["bytes_kept", "interleave", "ratios", "read_arguments", "write_result"]

COMMIT = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
RESULTS = Path(__file__).parents[1] / "results" / "bench"


def read_arguments(about: str, *, rounds: int, **more: float) -> argparse.Namespace:
    """Read the device, the number of rounds and further numbers, all with their defaults, from the command line."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    for name, value in more.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, device: str, calls: int = 1
) -> dict[str, list[float]]:
    """Time each candidate once a round, after two rounds that do not count; seconds a call, in the order of rounds.

    With several ``calls`` it is called as often each time, so that a GPU need not wait for what is called.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append((time.perf_counter() - start) / calls)
        print(f"\r  round {turn + 1}/{rounds + 2}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def ratios(seconds: Mapping[str, list[float]], *, to: str) -> dict[str, dict[str, float]]:
    """Reduce to milliseconds (median) and the ratio to one candidate, round by round: quartiles."""
    table = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(values, seconds[to], strict=True)], n=4)
        table[name] = {"ms": 1000 * statistics.median(values), "ratio": middle, "q1": low, "q3": high}
    return table


def bytes_kept(layer: nn.Module, x: Tensor) -> int:
    """Count what autograd keeps of a forward pass, beside input and parameters."""
    known = {each.untyped_storage().data_ptr() for each in (x, *layer.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    del y
    return sum(kept.values())


def write_result(name: str, tables: object, *, folder: Path = RESULTS) -> Path:
    """Write a benchmark's tables as JSON, with what is needed to make them again."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": subprocess.run(COMMIT, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        "machine": ", ".join(
            [platform.machine(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads", *gpu]
        ),
        "tables": tables,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return path
