"""Other packages, each imported only when it is asked for."""

from importlib import import_module
from typing import Any

_MODULES = ("accelerate", "lightning", "tensorboard", "transformers", "wandb")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rezero.integrations' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return import_module(f"rezero.integrations.{name}")
