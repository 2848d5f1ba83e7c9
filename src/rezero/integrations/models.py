"""Build a model and its example input from a line of text, to look at it without its weights."""

import difflib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rezero.errors import UsageError
from rezero.integrations.examples import example_inputs

__all__ = ["build_model"]

_REBUILD = "install torchvision and torch from the same release and build"
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def build_model(spec: str) -> Built:
    """Build a model on the meta device, where it takes no memory.

    Args:
        spec: ``timm:NAME``, ``hf:TYPE`` for the default configuration of a model type of transformers, or
            ``package.module:function``, a function without arguments that returns a model, or a tuple of a model, its
            arguments and its keyword arguments.

    Returns:
        The model, example arguments and example keyword arguments.

    Raises:
        UsageError: If there is no such model, or its package is not installed.
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        raise UsageError(f"expected timm:NAME, hf:TYPE or package.module:function, got {spec!r}")
    if source == "timm":
        return _from_timm(name)
    if source == "hf":
        return _from_transformers(name)
    return _from_function(source, name)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} can't be imported ({error}): pip install {name}") from error
    except RuntimeError as error:  # torchvision's compiled part was built for another torch
        raise UsageError(f"{name} can't be imported ({error}): {_REBUILD}") from error


def _near(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    alike = [each for each in known if each.startswith(name)] or difflib.get_close_matches(name, known)
    return f"; did you mean {', '.join(alike[:5])}?" if alike else ""


def _from_timm(name: str) -> Built:
    timm = _package("timm")
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
    with torch.device("meta"):
        model = timm.create_model(name)
    return model, (torch.empty(1, *model.default_cfg["input_size"], device="meta"),), {}


def _from_transformers(name: str) -> Built:
    transformers = _package("transformers")
    if name not in transformers.CONFIG_MAPPING:
        raise UsageError(f"transformers has no model type {name!r}{_near(name, transformers.CONFIG_MAPPING)}")
    config = transformers.CONFIG_MAPPING[name]()
    try:
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config)
    except Exception as error:
        cause = error.__cause__ or error  # an import that failed hides the reason
        reason = " ".join(str(cause).split())[:300] + (f"; {_REBUILD}" if "torchvision::" in str(cause) else "")
        raise UsageError(f"transformers can't build {name!r} from its default configuration: {reason}") from error
    return model, (), example_inputs(model)


def _from_function(source: str, name: str) -> Built:
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        module = importlib.import_module(source)
    except ImportError as error:
        raise UsageError(f"{source} can't be imported from {Path.cwd()}: {error}") from error
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{source} has no function {name!r}")
    built = function()
    model, *rest = built if isinstance(built, tuple) else (built,)
    if not isinstance(model, nn.Module) or len(rest) > 2:
        raise UsageError(f"{source}:{name} must return a model, or (model, args) or (model, args, kwargs)")
    args = rest[0] if rest else ()
    return model, args if isinstance(args, tuple) else (args,), dict(rest[1]) if len(rest) > 1 else {}
