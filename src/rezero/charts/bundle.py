"""The JavaScript that draws charts in a page without a network."""

import os
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import vl_convert

from rezero.data.locate import cache_folder
from rezero.errors import UsageError

__all__ = ["javascript"]

_LARGEST = 20_000_000  # bytes, some twenty times what there is
_EMBED = "window.vegaEmbed = vegaEmbed;"  # all that a page calls


@cache
def javascript() -> str:
    """Return the JavaScript of Vega-Embed and what it needs.

    To put it together takes longer than all else of a report, so it is kept in the cache, under a name that follows
    from the versions and with its checksum. Where there is no cache, or none that can be used, it is made anew.

    Returns:
        Statements that define ``window.vegaEmbed``.
    """
    with suppress(OSError, UsageError, UnicodeDecodeError):
        place = _place()
        if place.is_file() and place.stat().st_size <= _LARGEST:  # a pipe would be waited for
            checksum, _, kept = place.read_bytes().decode().partition("\n")
            if checksum == _checksum(kept):
                return kept
    made = str(vl_convert.javascript_bundle(_EMBED))
    with suppress(OSError, UsageError):
        _keep(made, _place())
    return made


def _place() -> Path:
    key = _checksum(f"{version('vl-convert-python')}\n{_EMBED}")[:12]
    return cache_folder() / "charts" / f"{key}.js"


def _keep(made: str, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f"{place.name}.{os.getpid()}")
    try:
        beside.write_bytes(f"{_checksum(made)}\n{made}".encode())
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()
