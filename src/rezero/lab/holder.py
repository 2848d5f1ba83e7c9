"""Who works on a study: one process at a time, and every other one is told which."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from rezero.errors import UsageError

__all__ = ["LOCK", "hold"]

LOCK = ".lock"  # held by the process that runs the study; the system lets it go with the process
_NAME = ".lock.json"  # says who holds it: filelock empties its own file when it opens it
_LOOKS, _EVERY = 20, 0.05  # a holder writes its name right after it has the lock; seconds between two looks


@dataclass(frozen=True)
class _Holder:
    """A process that works on a study.

    Attributes:
        pid: Its number.
        host: The machine it runs on.
        since: When it began, in UTC.
    """

    pid: int
    host: str
    since: str

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended; nothing is known of another host's, or another container's."""
        return self.host == socket.gethostname() and not psutil.pid_exists(self.pid)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Work on a study alone while the block runs, in the place of a process that is gone, if need be.

    Args:
        folder: The study's folder.

    Yields:
        Nothing.

    Raises:
        UsageError: If a process works on it.
    """
    lock, name = folder.absolute() / LOCK, folder.absolute() / _NAME
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout as error:
        raise UsageError(f"{_describe(folder)}: wait for it, or stop it") from error
    with held:
        try:
            _write(name, _Holder(os.getpid(), socket.gethostname(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
            yield
        finally:
            for path in (name, lock):
                path.unlink(missing_ok=True)


def _describe(folder: Path) -> str:
    for _ in range(_LOOKS):
        holder = _read(folder / _NAME)
        if holder is not None and not holder.gone:
            return f"process {holder.pid} on {holder.host} has worked on the study in {folder} since {holder.since}"
        time.sleep(_EVERY)
    return f"another process works on the study in {folder}"


def _write(path: Path, holder: _Holder) -> None:
    """Write a name, whole or not at all: it is a courtesy, which no full disk keeps a study from."""
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.write_text(json.dumps(asdict(holder)) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _read(path: Path) -> _Holder | None:
    if path.is_file():  # a pipe would be waited for
        with suppress(OSError, ValueError, KeyError, TypeError):
            read = json.loads(path.read_text(encoding="utf-8"))
            return _Holder(int(read["pid"]), str(read["host"]), str(read["since"]))
    return None
