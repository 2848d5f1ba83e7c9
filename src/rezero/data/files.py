"""Read whole files, compressed or not, and tell the right ones by their checksums."""

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from gzip import open as open_gzip
from pathlib import Path

from rezero.errors import UsageError

__all__ = ["BROKEN", "check", "matches", "read_bytes", "read_tar", "read_zip"]

BROKEN = (
    *(EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError),
    *(lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)
"""What the standard library raises for archives that were cut or altered, need a password or an unknown method."""


def read_bytes(path: Path) -> bytes:
    """Read a file, decompressed if its name ends in .xz, .gz or .zip; the members of a .zip are joined in its order.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        UsageError: If it cannot be read, or is not the archive that its name says.
    """
    try:
        match path.suffix:
            case ".xz":
                with lzma.open(path) as file:
                    return file.read()
            case ".gz":
                with open_gzip(path) as file:
                    return file.read()
            case ".zip":
                return b"".join(read_zip(path).values())
            case _:
                return path.read_bytes()
    except (OSError, *BROKEN) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        kind = path.suffix.removeprefix(".")
        raise UsageError(f"{path} should be a whole {kind} archive, and is not ({error}): get it anew") from error


def read_zip(path: Path, names: Collection[str] | None = None) -> dict[str, bytes]:
    """Read members of a zip archive.

    Args:
        path: The archive.
        names: Members to read; all of them unless told.

    Returns:
        Name to content, in the order of the archive.
    """
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
        return {name: archive.read(name) for name in files if names is None or name in names}


def read_tar(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read regular files of a tar archive, into memory: where they go is not the archive's to say.

    Args:
        path: The archive, compressed or not.
        names: Members to read.

    Returns:
        Name to content, in the order of the archive.
    """
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg() and member.name in names and (file := archive.extractfile(member)):
                contents[member.name] = file.read()
    return contents


def matches(content: bytes, checksum: str) -> bool:
    """Tell whether a content has a checksum, such as ``md5:5ff9c542aee3614f3951f8cda6e48888``."""
    return _digest(content, checksum) == checksum


def check(content: bytes, checksum: str, what: str, advice: str = "") -> None:
    """Refuse a content that has not its checksum.

    Args:
        content: What was read.
        checksum: What it must have, such as ``md5:5ff9c542aee3614f3951f8cda6e48888``.
        what: Where it was read, for the message.
        advice: What to do about it, for the message.

    Raises:
        UsageError: If it has another.
    """
    got = _digest(content, checksum)
    if got != checksum:
        raise UsageError(f"{what} is not what it should be: expected {checksum}, got {got}{advice and f': {advice}'}")


def _digest(content: bytes, checksum: str) -> str:
    algorithm = checksum.partition(":")[0]
    # These tell damage and mix-ups apart, which md5 is good enough for.
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"
