"""What is wrong with a study's database: it is damaged, or its disk is at fault."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rezero.errors import UsageError
from rezero.lab.place import DATABASE

__all__ = ["damage_named", "disk_error"]

_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY)  # no damage


@contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Say of what goes wrong in the block that the study is damaged, or what is wrong with its disk.

    Args:
        folder: The study's folder.

    Yields:
        Nothing.

    Raises:
        UsageError: In the place of errors of SQLite and of values that cannot have been written there.
    """  # noqa: DOC501 - what disk_error makes is a UsageError
    try:
        yield
    except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK:  # without the details that the higher bits hold
            raise disk_error(folder, error) from error
        detail = f"{type(error).__name__}: {error}"
        raise UsageError(f"{folder / DATABASE} is not a study, or is damaged: {detail}") from error


def disk_error(folder: Path, error: Exception) -> UsageError:
    """Return the error of a disk that is full, or fails.

    Args:
        folder: The study's folder.
        error: What SQLite says.

    Returns:
        One that says what to do.
    """
    return UsageError(
        f"cannot write to {folder / DATABASE} ({error}); what it holds is kept: make room, or mend what else is in the "
        "way, then give the same command again"
    )
