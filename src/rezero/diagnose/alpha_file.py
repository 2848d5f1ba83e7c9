"""The file of an `AlphaRecorder`: lines of JSON that are only ever added to, and survive a killed process."""

import itertools
import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rezero.errors import UsageError

__all__ = ["FIELDS", "LAST_STEP", "AlphaFile", "Record", "read_records"]

FIELDS = ("alpha", "low", "high", "gradient", "ratio")
LAST_STEP = 2**63 - 1
_FORMAT, _VERSION = "rezero alphas", 1


@dataclass(frozen=True)
class Record:
    """What was seen after one step.

    Attributes:
        step: Number of the step.
        values: Some of `FIELDS`, each ``(L,)`` in float64, one number a gate.
    """

    step: int
    values: Mapping[str, Tensor]

    def line(self) -> bytes:
        """Return the record as it stands in the file; numbers that are not finite become null."""
        rows = {name: _plain(each.tolist()) for name, each in self.values.items()}
        return _encode({"step": self.step, **rows})


def _plain(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _encode(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode() + b"\n"


class AlphaFile:
    """A file of records that is open for more, and locked.

    Args:
        path: Where it is, or shall be; missing folders are made.
        sizes: Name of each gate to how many numbers it has.
        every: How many steps lie between two records; noted for the reader.

    Attributes:
        records: What the file holds.

    Raises:
        ImportError: If filelock is not installed.
        UsageError: If another recorder has the file, it holds something else, or it can't be written.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], every: int) -> None:
        try:
            from filelock import FileLock, Timeout
        except ImportError as error:
            raise ImportError("a recorder with a file needs filelock: pip install 'rezero-torch[lab]'") from error
        try:
            self._path = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, or a zero in the name
            raise UsageError(f"cannot write to {str(path)!r}: {error}; choose another place") from error
        self.records: list[Record] = []
        self._ends: list[int] = []  # the file's length after its header, and after each record
        header = _encode({"format": _FORMAT, "version": _VERSION, "every": every, "gates": dict(sizes)})
        with ExitStack() as stack:
            try:
                if self._path.exists() and not self._path.is_file():
                    raise UsageError(f"expected a file for the record of the gates, got something else: {path}")
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.open("ab").close()  # fails where nothing can be written; the lock would look taken there
                lock = self._path.with_name(f"{self._path.name}.lock")
                stack.enter_context(FileLock(lock, timeout=0, thread_local=False))
                stack.callback(lock.unlink, missing_ok=True)
                self._resume(stack, header, sizes)
            except Timeout as error:
                raise UsageError(
                    f"another recorder writes to {path}: close it, or choose another file; where several processes "
                    "train together, record in one of them"
                ) from error
            except (OSError, NotImplementedError) as error:
                raise UsageError(f"cannot write to {path}: {error}; choose another place") from error
            self._closing = stack.pop_all()

    def _resume(self, stack: ExitStack, header: bytes, sizes: Mapping[str, int]) -> None:
        """Open the file and cut off a line that was not written to its end."""
        content = self._path.read_bytes()
        torn_header = header.startswith(content)
        if not torn_header:
            held, self.records, self._ends = _parse(content, self._path)
            _check_same(held, sizes, self._path)
        self._file: FileIO = stack.enter_context(self._path.open("r+b", buffering=0))
        if torn_header:
            self._cut(0)
            self._write(header)
            self._ends = [len(header)]
        self._cut(self._ends[-1])
        self._before = bool(self.records)
        self._linked = os.fstat(self._file.fileno()).st_nlink > 0  # some file systems count no names

    def append(self, record: Record) -> None:
        """Write a record, and hand it to the operating system.

        Raises:
            UsageError: If it can't be written; the file then is as it was. If it was changed or deleted meanwhile.
        """
        line = record.line()
        self._check_there()
        try:
            self._write(line)
        except OSError as error:
            with suppress(OSError):
                self._cut(self._ends[-1])
            raise UsageError(
                f"cannot write to {self._path} ({error}); the {len(self.records)} records before are kept: make room, "
                "then go on"
            ) from error
        self.records.append(record)
        self._ends.append(self._ends[-1] + len(line))

    def keep(self, count: int) -> None:
        """Drop all records but the first ones: a kill leaves them all, or none of the dropped.

        Where that is every record of an earlier run, the file is copied aside before, for this may be no resumption.

        Args:
            count: How many stay.

        Raises:
            UsageError: If the file can't be cut, or was changed or deleted meanwhile.
        """
        self._check_there()
        try:
            if count == 0 and self._before:
                self._keep_aside()
            self._cut(self._ends[count])
        except OSError as error:
            raise UsageError(
                f"cannot write to {self._path} ({error}); it is as it was: mend that, then go on"
            ) from error
        del self.records[count:], self._ends[count + 1 :]

    def _keep_aside(self) -> None:
        places = (self._path.with_name(f"{self._path.name}.{number}") for number in itertools.count(1))
        aside = next(place for place in places if not place.exists())
        shutil.copyfile(self._path, aside)
        self._before = False
        warnings.warn(
            f"{self._path} held the record of an earlier run, steps {self.records[0].step} to {self.records[-1].step}, "
            f"and this one begins anew: that one is kept as {aside.name}",
            stacklevel=2,
        )

    def close(self) -> None:
        """Close the file and let others have it."""
        self._closing.close()

    def _check_there(self) -> None:
        """Refuse to go on with a file that others have changed: what is written would be lost, or could not be read."""
        now = os.fstat(self._file.fileno())
        if now.st_size != self._ends[-1] or (self._linked and not now.st_nlink):
            raise UsageError(
                f"{self._path} was {'changed' if now.st_nlink else 'deleted'} by something else since the last record; "
                f"the {len(self.records)} records are in the recorder's history: make a new recorder, with another file"
            )

    def _cut(self, length: int) -> None:
        self._file.truncate(length)
        self._file.seek(length)

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._file.fileno(), rest) :]


def read_records(path: Path) -> tuple[tuple[str, ...], list[Record]]:
    """Read a file of records, also one that is being written.

    Args:
        path: The file.

    Returns:
        The names of the gates, and the records.

    Raises:
        UsageError: If it can't be read, or is no such file.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a zero in the name is the latter
        raise UsageError(f"cannot read {path}: {error}") from error
    sizes, records, _ = _parse(content, path)
    return tuple(sizes), records


def _parse(content: bytes, path: Path) -> tuple[dict[str, int], list[Record], list[int]]:
    """Return the gates, the records, and where the header and each record end; a torn last line is left out."""
    *lines, _torn = content.split(b"\n")
    sizes = _read_header(lines[0] if lines else b"", path)
    records: list[Record] = []
    ends = [len(lines[0]) + 1]
    for number, line in enumerate(lines[1:], start=2):
        try:
            record = _record(json.loads(line), len(sizes))
            if records and record.step <= records[-1].step:
                raise ValueError(f"step {record.step} comes after {records[-1].step}")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{path} is damaged in line {number} ({error}): choose another file, or mend it"
            ) from error
        records.append(record)
        ends.append(ends[-1] + len(line) + 1)
    return sizes, records, ends


def _read_header(line: bytes, path: Path) -> dict[str, int]:
    try:
        header = json.loads(line)
        is_ours = header["format"] == _FORMAT
        version, sizes = header["version"], {str(name): int(size) for name, size in header["gates"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise UsageError(f"{path} is no record of gates, which AlphaRecorder writes: choose another file")
    if version != _VERSION:
        raise UsageError(
            f"{path} has version {version!r} of its format, expected {_VERSION}: use the rezero it is from"
        )
    return sizes


def _record(facts: Any, count: int) -> Record:
    values = {
        name: torch.tensor([math.nan if each is None else each for each in facts[name]], dtype=torch.float64)
        for name in FIELDS
        if name in facts
    }
    if any(each.shape != (count,) for each in values.values()) or "alpha" not in values:
        raise ValueError(f"expected {count} numbers of each kind")
    step = facts["step"]
    if type(step) is not int or not 0 <= step <= LAST_STEP:
        raise ValueError(f"expected the number of a step, got {step!r}")
    return Record(step, values)


def _check_same(held: Mapping[str, int], sizes: Mapping[str, int], path: Path) -> None:
    """Refuse the record of another model."""
    pairs = list(zip_longest(held.items(), sizes.items()))
    place = next((i for i, (there, here) in enumerate(pairs) if there != here), None)
    if place is not None:
        there, here = map(_show, pairs[place])
        raise UsageError(
            f"{path} is the record of another model: it has {len(held)} gates, this one {len(sizes)}, and the first "
            f"that differs is {there} there and {here} here; choose another file"
        )


def _show(gate: tuple[str, int] | None) -> str:
    return "none" if gate is None else f"{gate[0]!r} ({gate[1]} numbers)" if gate[1] > 1 else repr(gate[0])
