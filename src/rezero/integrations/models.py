"""Build a model and its example input from a line of text, to look at it without its weights."""

import importlib
import inspect
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rezero.errors import UsageError, near
from rezero.integrations.examples import example_inputs
from rezero.integrations.extras import advice

__all__ = ["build_model"]

_PYTHON = tuple(sysconfig.get_paths()[each] for each in ("stdlib", "purelib", "platlib"))
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def build_model(spec: str, device: str = "meta") -> Built:
    """Build a model, by default on the meta device, where it takes no memory.

    Args:
        spec: ``timm:NAME``, ``hf:TYPE`` for the default configuration of a model type of transformers, or
            ``package.module:function``, a function without arguments that returns a model, or a tuple of a model, its
            arguments and its keyword arguments.
        device: Where timm's and transformers' models are built; a function decides for itself.

    Returns:
        The model, example arguments and example keyword arguments.

    Raises:
        UsageError: If there is no such model, its package is not installed, or the function fails; if the weights of a
            known model are larger than the memory that is free.
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        hint = f"; did you mean timm:{spec} or hf:{spec}?" if spec.replace("_", "").replace("-", "").isalnum() else ""
        raise UsageError(f"expected timm:NAME, hf:TYPE or package.module:function, got {spec!r}{hint}")
    if source == "timm":
        return _from_timm(name, device)
    if source == "hf":
        return _from_transformers(name, device)
    return _from_function(source, name)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        mismatch, wanted = advice(error)
        reason, wanted = mismatch or str(error), wanted or f"pip install {name}"
        raise UsageError(f"{name} can't be imported ({reason}): {wanted}") from error


def _from_timm(name: str, device: str) -> Built:
    timm = _package("timm")
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{near(name, timm.list_models(), count=5)}")
    model: Any = _built(lambda: timm.create_model(name), f"timm:{name}", device)
    return model, (torch.randn(1, *model.default_cfg["input_size"], device=device),), {}


def _from_transformers(name: str, device: str) -> Built:
    transformers = _package("transformers")
    known = transformers.CONFIG_MAPPING
    if "/" in name:
        alike = [each for each in known if each in name.rpartition("/")[2].lower()]
        raise UsageError(
            f"hf: takes a model type of transformers, not the name of a model on the hub, got {name!r}"
            + (f"; try hf:{max(alike, key=len)}" if alike else "")
        )
    if name not in known:
        raise UsageError(f"transformers has no model type {name!r}{near(name, known, count=5)}")
    try:
        config = known[name]()
        model = _built(lambda: transformers.AutoModel.from_config(config), f"hf:{name}", device)
    except UsageError:
        raise
    except Exception as error:
        mismatch, wanted = advice(error)
        cause = mismatch or str(error.__cause__ or error)  # an import that failed hides the reason
        reason = " ".join(cause.split())[:300] + (f"; {wanted}" if wanted else "")
        raise UsageError(f"transformers can't build {name!r} from its default configuration: {reason}") from error
    return model, (), example_inputs(model)


def _built(make: Callable[[], nn.Module], spec: str, device: str) -> nn.Module:
    if device != "meta":
        _check_fits(make, spec)
    with torch.device(device):
        return make()


def _check_fits(make: Callable[[], nn.Module], spec: str) -> None:
    """Refuse a model whose weights, counted without making them, are larger than the free memory."""
    free, needed = _free_memory(), 0
    with suppress(Exception), torch.random.fork_rng([]), torch.device("meta"):  # what fails there may not fail here
        needed = sum(each.numel() * each.element_size() for each in make().parameters())
    if needed > free:
        raise UsageError(
            f"the weights of {spec} take {needed / 2**30:.1f} GiB, with {free / 2**30:.1f} GiB of memory free: write a "
            "function that returns one of a smaller configuration, with its example, and give package.module:function"
        )


def _free_memory() -> float:
    """Return the bytes that can be had without swapping, as Linux tells; elsewhere it is not known to have an end."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def _from_function(source: str, name: str) -> Built:
    _check_is_module(source, name)
    sys.path.insert(0, str(Path.cwd()))  # as python -m does
    try:
        with _explained(f"{source} can't be imported from {Path.cwd()}"):
            module = importlib.import_module(source)
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        hint = near(name, functions, count=5) or (f"; it has {', '.join(functions[:5])}" if functions else "")
        raise UsageError(f"{source} has no function {name!r}{hint}")
    with _explained(f"{source}:{name} can't be called without arguments"):
        inspect.signature(function).bind()
    with _explained(f"{source}:{name} fails"):
        built = function()
    return _as_built(built, f"{source}:{name}")


def _check_is_module(source: str, name: str) -> None:
    """Refuse the path of a file, and say what its module is called."""
    path = Path(source.removesuffix(".py"))
    if not source.endswith(".py") and all(part.isidentifier() for part in source.split(".")):
        return
    parts = [part.strip(".") for part in path.parts if part.strip(".").isidentifier()]
    elsewhere = path.is_absolute() or ".." in path.parts
    dotted = ".".join(parts[-1:] if elsewhere else parts)
    advice = f": write {dotted}:{name}{' in the folder that holds it' if elsewhere else ''}" if dotted else ""
    raise UsageError(f"expected the name of a module before the colon, as in an import, got {source!r}{advice}")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Make one line, with its place, of anything that somebody's code raises."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
        theirs = [line for line in lines if not line.filename.startswith((*_PYTHON, __file__))]
        where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
        raise UsageError(f"{what}: {type(error).__name__}: {error}{where}") from error


def _as_built(built: Any, where: str) -> Built:
    model, *rest = built if isinstance(built, tuple) and built else (built,)
    args, kwargs = (*rest, *((), {})[len(rest) :])[:2]
    if not isinstance(model, nn.Module) or len(rest) > 2 or not isinstance(kwargs, Mapping):
        kinds = ", ".join(type(each).__name__ for each in (model, *rest))
        raise UsageError(f"{where} must return a model, or (model, args) or (model, args, kwargs), got {kinds}")
    return model, args if isinstance(args, tuple) else (args,), dict(kwargs)
