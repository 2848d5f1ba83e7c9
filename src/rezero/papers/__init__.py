"""What papers say, tried again: one command each."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rezero.papers.reproduction import Reproduction

    REPRODUCTIONS: dict[str, Reproduction]

__all__ = ["REPRODUCTIONS"]

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


def __getattr__(name: str) -> Any:
    if name != "REPRODUCTIONS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {each: each.replace("-", "_") for each in _NAMES}
    return {each: getattr(import_module(f"rezero.papers.{name}"), name.upper()) for each, name in modules.items()}
