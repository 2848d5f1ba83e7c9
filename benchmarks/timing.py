"""What the benchmarks share: how they are asked, what they measure with, and records."""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from rezero.papers.timed import bytes_kept, interleave, peak_bytes, ratios

__all__ = ["bytes_kept", "interleave", "peak_bytes", "ratios", "read_arguments", "write_result"]

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
