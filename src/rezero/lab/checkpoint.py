"""Checkpoints of one trial: safetensors and json, written whole or not at all, and never a pickle."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rezero.errors import UsageError

__all__ = ["Checkpoints"]

FORMAT = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
_SUM = "sha256"  # of everything else in the state
_WRITING = ".writing"
_PLAIN = (bool, int, float, str, type(None))
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save and pickle begin
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError)


class Checkpoints:
    """The newest state of one trial, in a folder of its own.

    A state is written beside the last one, flushed to the disk and renamed: whatever happens meanwhile, a whole one
    stays. It holds nested dicts, lists and tuples of tensors and plain values.

    Args:
        folder: The trial's folder; made when the first state is written.
        owner: What tells this trial from every other one; plain values.
    """

    def __init__(self, folder: Path, owner: Mapping[str, Any]) -> None:
        self.folder = folder
        self.owner = json.loads(json.dumps(owner))

    def latest(self) -> int:
        """Return the step of the newest state, 0 if there is none."""
        return max(self._states(), default=0)

    def check(self) -> None:
        """Refuse a place where no state can be written, before there is one.

        Raises:
            UsageError: If something that is no folder is in the way.
        """
        for place in (self.folder, self.folder.parent):
            if place.exists() and not place.is_dir():
                raise UsageError(f"{place} should become a folder for checkpoints, and is a file: move it away")

    def save(self, step: int, state: object) -> None:
        """Write a state, and drop the one before.

        Args:
            step: Optimizer steps done.
            state: What `load` shall give back.

        Raises:
            UsageError: If it cannot be written; the last state stays.
        """
        tensors: dict[str, torch.Tensor] = {}
        packed = _pack(state, tensors)
        writing = self.folder / _WRITING
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            save_file(tensors, writing / TENSORS)
            with (writing / TENSORS).open("rb") as file:
                os.fsync(file.fileno())
                digest = file_digest(file, "sha256").hexdigest()
            facts = {"format": FORMAT, "owner": self.owner, "step": step, TENSORS: digest, "state": packed}
            with (writing / STATE).open("w", encoding="utf-8") as file:
                json.dump({_SUM: _sum(facts), **facts}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            done = self._path(step)
            if not done.exists():  # the state of a step is always the same
                writing.rename(done)
            _flush_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(writing, ignore_errors=True)
            kept = f"the one of step {self.latest()} is kept" if self.latest() else "there was none before"
            raise UsageError(
                f"cannot write a checkpoint into {self.folder} ({error}); {kept}: make room, then give the same "
                "command again"
            ) from error
        for path in self._states().values():
            if path != done:
                shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int) -> Any:
        """Read a state.

        Args:
            step: One that `latest` named.

        Returns:
            The state, its tensors on the CPU.

        Raises:
            UsageError: If it is damaged, of another trial, or not a checkpoint.
        """
        path = self._path(step)
        advice = f"delete {self.folder} to start this trial again"
        try:
            facts = json.loads((path / STATE).read_bytes())
            version, owner = facts["format"], facts["owner"]
        except _DAMAGE as error:
            raise UsageError(
                f"{path / STATE} is not the state of a checkpoint ({_one_line(error)}): {advice}"
            ) from error
        if version != FORMAT:
            raise UsageError(
                f"{path} has checkpoint format {version}, expected {FORMAT}: use the version that wrote it, or {advice}"
            )
        if owner != self.owner:
            raise UsageError(f"{path} belongs to another trial ({_first_difference(self.owner, owner)}): {advice}")
        if facts.pop(_SUM, None) != _sum(facts):
            raise UsageError(f"{path / STATE} is not the file that was written: it is changed; {advice}")
        if (held := facts.get("step")) != step:
            raise UsageError(f"{path} holds the state of step {held!r}, expected that of step {step}: {advice}")
        try:
            with (path / TENSORS).open("rb") as file:
                start = file.read(2)
                file.seek(0)
                whole = file_digest(file, "sha256").hexdigest() == facts[TENSORS]
            state = _unpack(facts["state"], load_file(path / TENSORS)) if whole else None
        except _DAMAGE as error:
            raise UsageError(f"{path / TENSORS} cannot be used ({_one_line(error)}): {advice}") from error
        if not whole:
            found = (
                "it is a pickle, and pickles are never loaded" if start in _PICKLES else "it is truncated or changed"
            )
            raise UsageError(f"{path / TENSORS} is not the file that was written: {found}; {advice}")
        return state

    def clear(self) -> None:
        """Forget the trial, and the folder of all trials' checkpoints if it was the last one there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _states(self) -> dict[int, Path]:
        paths = (path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{9,}", path.name, re.ASCII))
        return {int(path.name.removeprefix("step-")): path for path in paths}


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn nested values into JSON, moving the tensors out; containers are tagged, so that they come back alike."""
    match value:
        case torch.Tensor():
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().clone().contiguous()  # safetensors refuses storage that is shared
            return {"tensor": name}
        case Counter() | dict():
            items = [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]
            return {"counter" if isinstance(value, Counter) else "dict": items}
        case list() | tuple():
            return {"list" if isinstance(value, list) else "tuple": [_pack(item, tensors) for item in value]}
        case _ if isinstance(value, _PLAIN):
            return value
    raise TypeError(f"a checkpoint holds tensors, containers and plain values: got {type(value).__name__}")


def _unpack(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((tag, value),) = packed.items()
    match tag:
        case "tensor":
            return tensors[value]
        case "dict" | "counter":
            pairs = {_unpack(key, tensors): _unpack(item, tensors) for key, item in value}
            return Counter(pairs) if tag == "counter" else pairs
        case "list" | "tuple":
            items = [_unpack(item, tensors) for item in value]
            return items if tag == "list" else tuple(items)
    raise ValueError(f"no value is tagged {tag!r}")


def _sum(facts: Mapping[str, Any]) -> str:
    return sha256(json.dumps(facts).encode()).hexdigest()


def _first_difference(expected: Mapping[str, Any], got: Any) -> str:
    if not isinstance(got, dict):
        return f"expected {dict(expected)}, got {got!r}"
    missing = "nothing"
    old, new = ({name: each.get(name, missing) for name in [*expected, *got]} for each in (expected, got))
    name = next(name for name in old if old[name] != new[name])
    return f"{name}: expected {old[name]!r}, got {new[name]!r}"


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
