"""Which models of timm and transformers are found, converted and verified: one row a model, in a CSV under results/.

    python -m tests.integration.coverage timm
    python -m tests.integration.coverage transformers

Each model runs in a process of its own with a limit on time and memory. Rows that are there already are kept, so the
sweep goes on where it was stopped. A JSON file beside the table says what it adds up to, with versions and machine.

``verified``: converted, and held against the original with real numbers. ``found``: traced on the meta device.
``none``: no residual additions, nothing to gate. ``no model`` (a part of other models, or a class without a forward
pass) and ``not installed`` (another package is needed) do not count. All else is a failure. ``expected`` are the
branches by the architecture, where a formula of its configuration is known; ``by_hand`` says what ungated parameters
do, where no rule but the source tells.
"""

import argparse
import csv
import json
import multiprocessing
import re
import resource
import signal
import statistics
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import tests.operators  # noqa: F401 - before anything imports torchvision
from rezero.provenance import provenance
from tests.integration import hf_models, timm_models
from tests.integration.measure import FIELDS

FOLDER = Path(__file__).parents[2] / "results" / "coverage"
LIBRARIES: dict[str, ModuleType] = {"timm": timm_models, "transformers": hf_models}
SECONDS, BYTES = 900, 14 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--only", default="", help="names that match this pattern")
    parser.add_argument("--limit", type=int, default=None, help="at most that many new rows")
    parser.add_argument("--again", default=None, help="make the rows again whose status matches this pattern")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the table")
    options = parser.parse_args()
    path = options.output / f"{options.library}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in read(path)} if path.exists() else {}
    names = LIBRARIES[options.library].names()
    done = {n for n, row in rows.items() if options.again is None or not re.search(options.again, row["status"])}
    wanted = [name for name in names if name not in done and re.search(options.only, name)][: options.limit]
    commit = provenance().get("commit", "")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.preload"])
    with ThreadPoolExecutor(options.workers) as pool:
        made = pool.map(lambda name: _in_process(context, options.library, name), wanted)
        for number, row in enumerate(made, 1):
            rows[row["name"]] = row | {"commit": commit}
            _write(path, [rows[name] for name in names if name in rows])
            text = f"{number}/{len(wanted)} {row['name']} {row['status']} {row['branches']} {row['reason'][:150]}"
            print(text, flush=True)
    told = {
        "models": summary(options.library, list(rows.values())),
        "seconds": timing(list(rows.values())),
        **provenance(),
        "command": f"python -m tests.integration.coverage {options.library} --workers {options.workers}",
    }
    told["versions"] += f", {options.library} {version(options.library)}"
    path.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n")
    print(told["models"], told["seconds"], sep="\n")


def read(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(library: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many models are found and verified, in two shares: of all, and of those that have residual additions."""
    statuses = Counter(row["status"] for row in rows)
    good = statuses["verified"] + statuses["found"]
    counted = len(rows) - statuses["no model"] - statuses["not installed"]
    residual = counted - statuses["none"]
    return (
        f"{library}: {good:,} of {counted:,} ({good / counted:.1%}), "
        f"{good / residual:.1%} of the {residual:,} that have residual additions"
    )


def timing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how long it takes to find the residual additions of those that are found and verified."""
    seconds = sorted(float(row["find_seconds"]) for row in rows if row["status"] in {"verified", "found"})
    short, late = sum(each < 2 for each in seconds) / len(seconds), seconds[len(seconds) * 9 // 10]
    return f"found in under 2 s: {short:.1%}; median {statistics.median(seconds):.2g} s, 90% in {late:.2g} s"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


def _in_process(context: Any, library: str, name: str) -> dict[str, Any]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_one, args=(library, name, sender))
    process.start()
    sender.close()
    row: dict[str, Any] = dict.fromkeys(FIELDS, "") | {"name": name}
    try:
        row |= receiver.recv() if receiver.poll(SECONDS + 30) else {"status": "time limit"}
    except EOFError:
        row |= {"status": "time limit" if process.join(5) or process.exitcode == -signal.SIGALRM else "crashed"}
    process.join(5)
    process.kill()
    row["reason"] = re.sub(r"(/[\w.+-]+)+/(?=[\w.+-]+)", "", row["reason"])  # no paths of a machine
    return row


def _one(library: str, name: str, sender: Any) -> None:
    warnings.simplefilter("ignore")
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    row: dict[str, Any] = {"options": "", "expected": ""}
    try:
        LIBRARIES[library].measure(name, row)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())[:300]
        row |= {
            "status": "error",
            "reason": f"{type(error).__name__}: {reason} ({Path(where.filename).name}:{where.lineno})",
        }
    sender.send(row)


if __name__ == "__main__":
    sys.exit(main())
