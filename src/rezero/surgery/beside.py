"""Files that are written beside those that they replace, so that these are kept if the writing fails."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from rezero.errors import UsageError

__all__ = ["replacing"]


@contextmanager
def replacing(folder: Path, names: Sequence[str], *, what: str, stale: Sequence[str] = ()) -> Iterator[Path]:
    """Write files of a folder, all of them or none.

    Args:
        folder: The folder, made if it is not there.
        names: The files, in the order in which they are replaced.
        what: What is written, for errors.
        stale: Files that are taken away before the first is replaced.

    Yields:
        A folder on the same disk to write them in.

    Raises:
        UsageError: If the folder can't be written.
    """
    if taken := [name for name in names if (folder / name).is_dir()]:
        raise UsageError(f"{what} can't be written to {folder}: {taken[0]} is a folder there; move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".saving-") as beside:
            yield Path(beside)
            for name in names:
                (Path(beside) / name).chmod(0o666 & ~_umask())  # safetensors makes files for their owner alone
            for name in stale:
                (folder / name).unlink(missing_ok=True)
            for name in names:
                (Path(beside) / name).replace(folder / name)
    except FileExistsError as error:
        raise UsageError(f"expected a folder to save in, or a path that is free, got a file: {folder}") from error
    except (SafetensorError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{what} can't be written to {folder}: {error!r}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
