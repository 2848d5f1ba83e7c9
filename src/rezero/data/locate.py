"""Where data sets lie: the folder that REZERO_DATA names, then the cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from rezero.errors import MissingDataError, UsageError

__all__ = ["cache_folder", "data_folders", "find"]


def cache_folder() -> Path:
    """Return the folder that downloads go to; it may not exist.

    Returns:
        ``$XDG_CACHE_HOME/rezero``, or ``~/.cache/rezero``.

    Raises:
        UsageError: If XDG_CACHE_HOME is not set and there is no home folder, as for some services.
    """
    if (cache := _cache()) is None:
        raise UsageError(
            "there is no home folder to keep data sets in: set XDG_CACHE_HOME to a folder for them, or REZERO_DATA to "
            "one that holds them"
        )
    return cache


def _cache() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(given or "~").expanduser()
    except RuntimeError:  # a user whom the system does not know
        return None
    if given:
        return folder / "rezero"
    return folder / ".cache" / "rezero" if folder.is_dir() else None


def data_folders() -> list[Path]:
    """Return the folders where data are looked for, the first one first.

    Returns:
        The folder that REZERO_DATA names, if it is set, and the cache, if there can be one.

    Raises:
        UsageError: If REZERO_DATA is set to something that is no folder, or there is neither.
    """
    given = os.environ.get("REZERO_DATA")
    if not given:
        return [cache_folder()]
    try:
        folder = Path(given).expanduser()
    except RuntimeError:
        folder = Path(given)
    if not folder.is_dir():
        raise UsageError(f"REZERO_DATA must name a folder that holds data sets, got {given!r}: set it anew or unset it")
    return [place for place in (folder, _cache()) if place is not None]


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
        MissingDataError: If there is none.
        UsageError: If REZERO_DATA is no folder.
    """
    folders = data_folders()
    is_there = Path.is_dir if is_folder else Path.is_file
    for folder in folders:
        for candidate in (candidate + suffix for suffix in suffixes for candidate in candidates):
            if is_there(folder / candidate):
                return folder / candidate
    wanted = " or ".join(candidates) + "".join(f", {suffix}" for suffix in suffixes if suffix)
    places = " and ".join(map(str, folders))
    advice = "" if os.environ.get("REZERO_DATA") else ", or set REZERO_DATA to a folder that holds it"
    raise MissingDataError(
        f"no {name} here: looked for {wanted} in {places}; get it with `rezero download {name}`{advice}"
    )
