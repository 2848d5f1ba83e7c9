"""What one row of the table says about a model."""

import inspect
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.integration.places import places, read_by_hand, unread_by_module

__all__ = ["FIELDS", "look", "verify"]

FIELDS = (
    *("name", "family", "status", "reason", "model", "options", "parameters"),
    *("sites", "branches", "expected", "additions", "gated", "left_out", "reasons"),
    *("branch", "shortcut", "trunk", "refused", "unexplained", "unread"),  # parameters by place, by number
    *("unexplained_in", "by_hand", "unread_in", "find_seconds", "verify_seconds", "commit"),
)


def look(model: Any, args: Sequence[Any], kwargs: Any, row: dict[str, Any]) -> bool:
    """Find the additions of a model and fill its row; return whether there is something to verify."""
    from rezero.surgery.find import sort_additions, trace_learning
    from rezero.surgery.linear import is_addition
    from rezero.surgery.trace import trace

    row["model"] = type(model).__name__
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    began = time.perf_counter()
    traced = trace_learning(model, args, kwargs)
    found = sort_additions(traced)
    row["find_seconds"] = round(time.perf_counter() - began, 2)
    if any(" times" in each.reason for each in found.left_out if each.refused):
        row["options"] = "repeated='tie'"
        found = sort_additions(traced, repeated="tie")
    row["sites"], row["branches"] = len(found), len(found.branches)
    row["additions"] = sum(map(is_addition, traced.ops))
    row["left_out"], row["gated"] = len(found.left_out), row["additions"] - len(found.left_out)
    row["reasons"] = json.dumps(Counter(each.reason for each in found.left_out))
    if "use_cache" in inspect.signature(model.forward).parameters:  # what a cache keeps is no output
        traced = trace(model, args, {**(kwargs or {}), "use_cache": False})
    by_place = places(model, traced, found)
    row |= {place: len(names) for place, names in by_place.items()}
    row["unexplained_in"] = json.dumps(Counter(_owner(name) for name in by_place["unexplained"]))
    row["by_hand"] = read_by_hand(model, by_place["unexplained"])
    counts, stacks = unread_by_module(model, traced, by_place["unread"])
    row["unread_in"] = json.dumps(counts)
    row |= _status(found, row, stacks)
    return row["status"] == "found"


def _status(found: Any, row: dict[str, Any], stacks: set[str]) -> dict[str, str]:
    refused = [each for each in found.left_out if each.refused]
    added = {(site.name, *place[:2]) for site in found for place in site.added}
    inner = sum(max(0, len(site.branches) - len(site.added)) for site in found)  # sums of parallel branches
    if refused:
        return {"status": "refused", "reason": f"{refused[0].name}: {refused[0].reason}"}
    if not len(found) and row["expected"] in ("", 0):
        return {"status": "none", "reason": "no residual additions: nothing to gate"}
    if not len(added) <= row["gated"] <= len(added) + inner:
        return {
            "status": "not verified",
            "reason": f"{row['gated']} additions are gated, {len(added)} + {inner} listed",
        }
    if row["unexplained"] and not row["by_hand"]:
        return {"status": "not verified", "reason": f"parameters in layers but behind no gate: {row['unexplained_in']}"}
    if row["expected"] not in ("", len(found.branches)):
        return {"status": "differs", "reason": f"{row['expected']} branches by its paper, {len(found.branches)} found"}
    if stacks:
        return {"status": "not verified", "reason": f"the example does not reach {', '.join(sorted(stacks))}"}
    return {"status": "found", "reason": ""}


def verify(model: Any, args: Sequence[Any], kwargs: Any, row: dict[str, Any]) -> None:
    """Convert a model with all checks and fill its row."""
    import rezero

    began = time.perf_counter()
    try:
        conversion = rezero.convert_(model, args, kwargs, repeated="tie" if row["options"] else "refuse")
        row["status"] = "verified" if len(conversion.residuals.branches) == row["branches"] else "differs"
    except Exception as error:
        row |= {"status": "not verified", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    row["verify_seconds"] = round(time.perf_counter() - began, 2)


def _owner(name: str) -> str:
    """Name a parameter's module, with the same name for every layer."""
    return ".".join("*" if part.isdecimal() else part for part in name.split(".")[:-1])
