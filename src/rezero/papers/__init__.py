"""What papers say, tried again: one command each."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rezero.errors import UsageError, near

if TYPE_CHECKING:
    from rezero.papers.reproduction import Reproduction

    REPRODUCTIONS: dict[str, Reproduction]

__all__ = ["REPRODUCTIONS", "check_name"]

_NAMES = (
    "fc",
    "fc-depth",
    "deep",
    "resnet",
    "transformer",
    "deep-transformer",
    "jacobian",
    "alphas",
    "memory",
    "generalization",
    "ablation",
    "superconvergence",
    "depth-recipe",
    "flamingo",
    "grow",
)


def check_name(name: str) -> None:
    """Refuse a name that there is none of, before anything large is loaded.

    Args:
        name: Of a reproduction, or all.

    Raises:
        UsageError: If that is so.
    """
    if name != "all" and name not in _NAMES:
        raise UsageError(f"nothing is called {name!r}{near(name, _NAMES)}; choose from {', '.join(_NAMES)}, or all")


def __getattr__(name: str) -> Any:
    if name != "REPRODUCTIONS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {each: each.replace("-", "_") for each in _NAMES}
    return {each: getattr(import_module(f"rezero.papers.{name}"), name.upper()) for each, name in modules.items()}
