"""Which models of timm and transformers are found, converted and verified: one row a model, in a CSV under results/.

    python -m tests.integration.coverage timm
    python -m tests.integration.coverage transformers

Each model runs in a process of its own with a limit on time and memory. Rows that are there already are kept, so the
sweep goes on where it was stopped. The smallest model of each family is converted and verified with real numbers
(status ``verified``), the others are traced on the meta device (``found``).
"""

import argparse
import csv
import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tests.operators  # noqa: F401 - before anything imports torchvision

FOLDER = Path(__file__).parents[2] / "results" / "coverage"
FIELDS = (
    *("name", "family", "status", "reason", "sites", "branches", "left_out"),
    *("branch", "shortcut", "trunk", "refused", "unread", "parameters"),  # parameters by place, by number
    *("find_seconds", "verify_seconds"),
)
SECONDS, BYTES = 300, 10 * 2**30
VERIFIED_BELOW = 60_000_000  # parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=["timm", "transformers"])
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--limit", type=int, default=None, help="at most that many new rows")
    parser.add_argument("--again", default="", help="drop rows whose status contains this, and make them again")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    path = FOLDER / f"{options.library}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {row["name"]: row for row in csv.DictReader(path.open())} if path.exists() else {}
    if options.again:
        rows = {name: row for name, row in rows.items() if options.again not in row["status"]}
    names = _timm_names() if options.library == "timm" else _transformers_names()
    wanted = [name for name in names if name not in rows and options.only in name][: options.limit]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.preload"])
    with ThreadPoolExecutor(options.workers) as pool:
        for done, row in enumerate(pool.map(lambda name: _in_process(context, options.library, name), wanted), 1):
            rows[row["name"]] = row
            _write(path, [rows[name] for name in names if name in rows])
            print(
                f"{done}/{len(wanted)} {row['name']} {row['status']} {row['branches']} {row['reason'][:150]}",
                flush=True,
            )
    statuses = Counter(row["status"] for row in rows.values())
    good = statuses["verified"] + statuses["found"]
    print(f"{good} of {len(rows)} ({good / max(1, len(rows)):.1%}): {dict(statuses)}")


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
        row |= {"status": "crashed"}
    process.join(5)
    process.kill()
    return row


def _one(library: str, name: str, sender: Any) -> None:
    warnings.simplefilter("ignore")
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    row: dict[str, Any] = {}
    try:
        (_timm if library == "timm" else _transformers)(name, row)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split())[:300]
        row |= {
            "status": "error",
            "reason": f"{type(error).__name__}: {reason} ({Path(where.filename).name}:{where.lineno})",
        }
    sender.send(row)


def _look(model: Any, args: Any, kwargs: Any, row: dict[str, Any]) -> bool:
    import rezero

    names = {name for name, _ in model.named_parameters()}
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    began = time.perf_counter()
    found = rezero.find_residuals(model, args, kwargs)
    row["find_seconds"] = round(time.perf_counter() - began, 2)
    row["sites"], row["branches"] = len(found), len(found.branches)
    row["left_out"] = json.dumps(Counter(each.reason for each in found.left_out))
    row |= {place: len(parameters) for place, parameters in found.parameters.items()}
    row["unread"] = len(names - frozenset().union(*found.parameters.values()))
    refused = [each for each in found.left_out if each.refused]
    if refused:
        row |= {"status": "refused", "reason": f"{refused[0].name}: {refused[0].reason}"}
    elif not len(found):
        row |= {"status": "none", "reason": "no residual additions"}
    else:
        row["status"] = "found"
    return row["status"] == "found"


def _verify(model: Any, args: Any, kwargs: Any, row: dict[str, Any]) -> None:
    import rezero

    began = time.perf_counter()
    try:
        conversion = rezero.convert_(model, args, kwargs)
        row["status"] = "verified" if len(conversion.residuals.branches) == row["branches"] else "differs"
    except Exception as error:
        row |= {"status": "not verified", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    row["verify_seconds"] = round(time.perf_counter() - began, 2)


# timm


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _smallest_timm() -> set[str]:
    """Name the model of each family that is verified: the one whose name suggests the least work."""
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    small = ("atto", "femto", "pico", "nano", "xxs", "tiny", "xs", "small", "_s", "18", "b0", "050")
    rank = {word: place for place, word in enumerate(small)}
    return {
        min(names, key=lambda name: (min((rank[w] for w in small if w in name), default=99), len(name)))
        for names in families.values()
    }


def _timm(name: str, row: dict[str, Any]) -> None:
    import timm
    import torch

    row["family"] = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    with torch.device("meta"):
        model = timm.create_model(name)
    shape = model.default_cfg["input_size"]
    if not _look(model, torch.empty(1, *shape, device="meta"), None, row):
        return
    if name in _smallest_timm() and row["parameters"] < VERIFIED_BELOW:
        model = timm.create_model(name)
        _verify(model, torch.randn(2, *shape), None, row)


# transformers


def _transformers_names() -> list[str]:
    import transformers

    return sorted(transformers.CONFIG_MAPPING)


SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "encoder_embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"), 64),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "vocab_size": 128,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "image_size": 64,
}


def _shrink(config: Any) -> Any:
    """Make a configuration small, with those inside it, as far as its class takes that."""
    for name, value in SMALL.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, value)
    for inner in vars(config).values():
        if hasattr(inner, "to_json_string"):
            _shrink(inner)
    return config


def _transformers(name: str, row: dict[str, Any]) -> None:
    import torch
    import transformers

    from rezero.integrations.models import example_inputs

    row["family"] = name
    config_class = transformers.CONFIG_MAPPING[name]
    torch.manual_seed(0)
    problems = []
    for small in (True, False):
        try:
            config = _shrink(config_class()) if small else config_class()
            model = transformers.AutoModel.from_config(config) if small else _on_meta(config)
            ready = _look(model, (), example_inputs(model), row)
        except Exception as error:
            problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        if ready and small:
            _verify(model, (), example_inputs(model), row)
        return
    row |= {"status": "not built", "reason": " | ".join(problems)}


def _on_meta(config: Any) -> Any:
    import torch
    import transformers

    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


if __name__ == "__main__":
    sys.exit(main())
