"""What papers say, tried again: one command each."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rezero.papers.reproduction import Reproduction

    REPRODUCTIONS: dict[str, Reproduction]

__all__ = ["REPRODUCTIONS"]

_NAMES = ("fc", "jacobian", "flamingo", "grow")


def __getattr__(name: str) -> Any:
    if name != "REPRODUCTIONS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return {each: getattr(import_module(f"rezero.papers.{each}"), each.upper()) for each in _NAMES}
