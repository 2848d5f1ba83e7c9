"""What the benchmarks share: how they are asked, what they measure with, and records."""

import argparse
import json
import sys
from pathlib import Path

import torch

from rezero.papers.timed import bytes_kept, interleave, peak_bytes, ratios
from rezero.provenance import provenance

__all__ = ["bytes_kept", "interleave", "make_parser", "peak_bytes", "ratios", "read_arguments", "write_result"]

RESULTS = Path(__file__).parents[1] / "results" / "bench"


def read_arguments(about: str, *, rounds: int, **more: tuple[float, str]) -> argparse.Namespace:
    """Read the device, the number of rounds, further numbers (name to default and meaning) and where to write."""
    parser = make_parser(about, rounds=rounds)
    parser.add_argument("--device", default="cpu", help="as torch names it")
    for name, (value, meaning) in more.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=meaning)
    return parser.parse_args()


def make_parser(about: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser that knows the number of rounds and where records are written."""
    parser = argparse.ArgumentParser(
        description=about.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=_several, default=rounds, help="interleaved, beside two that do not count")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the record")
    return parser


def _several(text: str) -> int:
    if (rounds := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"at least 2, as one has no quartiles: got {rounds}")
    return rounds


def write_result(name: str, tables: object, folder: Path) -> Path:
    """Write a benchmark's tables as JSON, with what is needed to make them again."""
    facts = provenance(" ".join(["python", *sys.argv]))
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    facts["machine"] = ", ".join([facts["machine"], f"{torch.get_num_threads()} threads", *gpu])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**facts, "tables": tables}, indent=1) + "\n", encoding="utf-8")
    return path
