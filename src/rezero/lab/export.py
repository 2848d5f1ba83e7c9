"""All numbers of a study as one table, a row a number, for other programs."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rezero.errors import UsageError
from rezero.lab.holder import LOCK
from rezero.lab.place import DATABASE
from rezero.lab.store import Store

__all__ = ["FORMATS", "Row", "export", "kind_of", "rows"]

FORMATS = ("csv", "parquet", "json")


class Row(NamedTuple):
    """One number that was measured.

    Attributes:
        arm: Residual formula, and what else the arm has of its own.
        lr: Learning rate; of a script a multiple of its own.
        seed: Seed, from 1,000,000 on of a trial that chose rates.
        tuned: What else was chosen for the trial, name to number, as JSON.
        tuning: Whether the trial chose rates, and serves no comparison.
        status: How it ended, or ``running``.
        step: Optimizer steps done.
        epoch: The same in passes over the training set; of a script the steps again.
        metric: What was measured; ``alpha_0`` is the mean scale of the gate next to the input.
        value: The number; None if it was not finite.
    """

    arm: str
    lr: float
    seed: int
    tuned: str
    tuning: bool
    status: str
    step: int
    epoch: float
    metric: str
    value: float | None


def rows(store: Store) -> Iterator[Row]:
    """List every number of a study: by arm in the study's order, seed, step, and name; the gates by their depth.

    Args:
        store: The study's records.

    Yields:
        The rows; a trial that has measured nothing has none.
    """
    for result in store.records():
        trial = result.trial
        facts = (trial.arm, trial.lr, trial.seed, json.dumps(dict(trial.tuned)), trial.tuning, result.status)
        for point in result.points:
            alphas = {f"alpha_{gate}": value for gate, value in enumerate(point.alphas)}
            for metric, value in (*point.metrics.items(), *alphas.items()):
                yield Row(*facts, point.step, point.epoch, metric, value if math.isfinite(value) else None)


def kind_of(output: Path | None) -> str:
    """Tell the format by the ending of a file.

    Args:
        output: The file; None for stdout.

    Returns:
        The format; csv where no ending says.

    Raises:
        UsageError: If it has another ending.
    """
    ending = "" if output is None else output.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS:
        raise UsageError(f"expected a file that ends in {', '.join(FORMATS)}, or --format: got {output}")
    return ending or "csv"


def export(store: Store, kind: str, output: Path | None = None, *, force: bool = False) -> None:
    """Write all numbers of a study into a file, or to stdout. The same study gives the same bytes.

    Args:
        store: The study's records.
        kind: One of ``FORMATS``.
        output: The file, which is written whole or not at all; None writes to stdout.
        force: Whether a file that is there is replaced.

    Raises:
        UsageError: If the file is there, is one of the study or cannot be written, or the format needs a file or a
            package.
    """
    if output is None:
        if kind == "parquet":
            raise UsageError("expected --output FILE for parquet, which is no text for stdout: got none")
        sys.stdout.flush()
        sys.stdout.buffer.write(_encode(store, kind))
        sys.stdout.buffer.flush()
        return
    special = output.exists() and not output.is_file()  # a pipe or a device, which is written into
    if output.is_dir():
        raise UsageError(f"expected a file for the numbers, got a folder: {output}")
    if _is_of_study(output, store.folder):
        raise UsageError(f"{output} is a file of the study itself: choose another name")
    if output.exists() and not special and not force:
        raise UsageError(f"{output} is there already: choose another name, or give --force to replace it")
    data = _encode(store, kind)
    try:
        if special:
            output.write_bytes(data)
        else:
            _replace(output.resolve(), data)
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror or error}") from error


def _is_of_study(output: Path, folder: Path) -> bool:
    """Say whether a file is, behind whatever link, the study's database, one of SQLite's beside it, or a lock."""
    path = output.resolve()
    for own in (folder.resolve() / DATABASE, (folder / DATABASE).resolve()):
        beside = [f"{own.name}{end}" for end in ("", "-wal", "-shm", "-journal")]
        name = path.name.casefold()  # which is the same to some file systems
        if path.parent == own.parent and (name in map(str.casefold, beside) or name.startswith(LOCK)):
            return True
    return False


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _encode(store: Store, kind: str) -> bytes:
    if kind == "parquet":
        return _parquet(store)
    text = _csv(store) if kind == "csv" else _json(store)
    return text.encode("utf-8", errors="backslashreplace")  # a path that is not UTF-8 has such bytes


def _csv(store: Store) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(Row._fields)
    table.writerows((str(each).lower() if isinstance(each, bool) else each for each in row) for row in rows(store))
    return out.getvalue()


def _json(store: Store) -> str:
    """Write a list of objects, a line each."""
    lines = (json.dumps(row._asdict(), ensure_ascii=False, allow_nan=False) for row in rows(store))
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _parquet(store: Store) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"parquet needs pyarrow ({error}): pip install 'rezero-torch[parquet]'") from error
    kinds: dict[str, Any] = {
        **{name: pyarrow.string() for name in ("arm", "tuned", "status", "metric")},
        **{name: pyarrow.float64() for name in ("lr", "epoch", "value")},
        **{name: pyarrow.int64() for name in ("seed", "step")},
        "tuning": pyarrow.bool_(),
    }
    schema = pyarrow.schema([(name, kinds[name]) for name in Row._fields])
    found = list(rows(store))
    columns = {name: [row[place] for row in found] for place, name in enumerate(Row._fields)}
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns, schema=schema), out)
    return out.getvalue()
