"""Where data sets lie: the folder that REZERO_DATA names, then the cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from rezero.errors import UsageError

__all__ = ["cache_folder", "data_folders", "find"]


def cache_folder() -> Path:
    """Return the folder that downloads go to, ``$XDG_CACHE_HOME/rezero`` or ``~/.cache/rezero``; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rezero"


def data_folders() -> list[Path]:
    """Return the folders where data are looked for, the first one first.

    Returns:
        The folder that REZERO_DATA names, if it is set, and the cache.

    Raises:
        UsageError: If REZERO_DATA is set to something that is no folder.
    """
    given = os.environ.get("REZERO_DATA")
    if not given:
        return [cache_folder()]
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UsageError(f"REZERO_DATA must name a folder that holds data sets, got {given!r}: set it anew or unset it")
    return [folder, cache_folder()]


def find(name: str, candidates: Sequence[str], *, suffixes: Sequence[str] = ("",), is_folder: bool = False) -> Path:
    """Find a data set.

    Args:
        name: What ``rezero download`` calls it, for the message.
        candidates: Paths below a data folder that it may lie at, the first choice first.
        suffixes: What a path may have at its end, the first choice first.
        is_folder: It is a folder rather than a file.

    Returns:
        The first that is there, in the first data folder that has one.

    Raises:
        UsageError: If there is none, or REZERO_DATA is no folder.
    """
    folders = data_folders()
    is_there = Path.is_dir if is_folder else Path.is_file
    for folder in folders:
        for candidate in (candidate + suffix for suffix in suffixes for candidate in candidates):
            if is_there(folder / candidate):
                return folder / candidate
    wanted = " or ".join(candidates) + "".join(f", {suffix}" for suffix in suffixes if suffix)
    places = " and ".join(map(str, folders))
    advice = "" if len(folders) > 1 else ", or set REZERO_DATA to a folder that holds it"
    raise UsageError(f"no {name} here: looked for {wanted} in {places}; get it with `rezero download {name}`{advice}")
