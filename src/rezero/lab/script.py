"""What a script or function of one's own says to the lab: a few lines, which do nothing when it runs by itself."""

# Torch is imported where it is used: what a script does not load it does not wait for.

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

import psutil

from rezero.errors import UsageError
from rezero.lab.parent import end_with
from rezero.lab.peak import peak_of_process

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

__all__ = ["ORDER", "arm", "compared", "log", "lr", "running", "seed"]

ORDER = "REZERO_TRIAL"  # the variable that names the file which says what trial a script runs as
M = TypeVar("M", bound="nn.Module")
Line = dict[str, Any]


def arm(model: M, *args: Any, arms: Mapping[str, Callable[[M], M]] | None = None, **kwargs: Any) -> M:
    """Apply the arm that this run is for; by itself a script's model stays as it is.

    ``original`` is the model itself. ``rezero`` converts it in place, with a gate on each of its residual branches,
    which needs an example of its input. Every other name is one of ``arms``.

    Args:
        model: The model, before its optimizer is made.
        args: Example inputs, as the model takes them.
        arms: Arms of one's own: name to a function of the model that returns a model.
        kwargs: Example inputs by name.

    Returns:
        The model of this arm.

    Raises:
        UsageError: If the arm is none of these, or the model can't be converted.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> arm(model, torch.zeros(1, 2)) is model  # nothing compares here
        True
    """
    run = _run()
    if run is None:
        return model
    own = dict(arms or {})
    if run.arm in own:
        model = own[run.arm](model)
    else:
        try:
            _apply(run.arm, model, args, kwargs, own)
        except UsageError as error:
            run.tell(refused=str(error))
            raise
    run.watch(model)
    return model


def _apply(
    name: str, model: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any], own: Mapping[str, Any]
) -> None:
    """Apply one of the arms that every script has."""
    if name == "rezero":
        from rezero.surgery.convert import convert_

        conversion = convert_(model, args, kwargs)
        if _running is None:  # what a script prints is kept with its trial
            print(conversion)
    elif name != "original":
        raise UsageError(f"expected an arm out of {', '.join(['original', 'rezero', *own])}: got {name!r}")


def seed(default: int = 0) -> int:
    """Return the seed of this run.

    Args:
        default: What a script that runs by itself uses.

    Returns:
        The seed. It decides weights and order of the data as far as the script lets it.
    """
    run = _run()
    if run is None:
        return default
    run.tell(read="seed")
    return run.seed


def compared() -> bool:
    """Return whether the lab has started this run.

    Returns:
        Whether it has; by itself a script goes its own way.
    """
    return _run() is not None


def lr(default: float) -> float:
    """Return the learning rate of this run: a multiple of the script's own.

    Args:
        default: The script's own rate.

    Returns:
        The rate.
    """
    run = _run()
    if run is None:
        return default
    run.tell(read="lr")
    return default * run.lr


def log(step: int, **metrics: Any) -> None:
    """Record what was measured; by itself a script records nothing.

    The time is recorded too: seconds since the first step of a torch optimizer ended, evaluations among them.

    Args:
        step: Optimizer steps done, 0 or more. A step that is logged again joins what it had.
        metrics: Name to number, or tensor of one number: ``train_loss=...``, ``val_accuracy=...``.

    Raises:
        UsageError: If a metric is no number, or called ``seconds`` or ``alpha_0``, which the lab measures.
    """
    run = _run()
    if run is None:
        return
    try:
        whole, numbers = _whole(step), {name: _number(value) for name, value in metrics.items()}
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UsageError(f"expected a step and metrics that are numbers, got step={step!r}, {metrics}") from error
    if taken := [name for name in metrics if re.fullmatch(r"seconds|alpha_\d+", name)]:
        raise UsageError(f"{taken[0]} is what the lab measures itself: log yours by another name")
    run.log(whole, numbers)


class _Run:
    """One run: what it is, and where its lines go; None keeps none, in all but the first process of a group."""

    def __init__(self, arm: str, lr: float, seed: int, write: Callable[[Line], object] | None) -> None:
        self.arm, self.lr, self.seed, self._write = arm, lr, seed, write
        self._models: list[nn.Module] = []
        self._told: list[Line] = []
        self._start, self._logging = time.perf_counter(), 0.0
        self._first: RemovableHandle | None = None
        self._strangers: WeakSet[threading.Thread] = WeakSet()

    def refuse_others(self) -> None:
        """Take nothing from the other threads that there are, which a run before this one may have left."""
        self._strangers = WeakSet(threading.enumerate()) - {threading.current_thread()}

    def check_thread(self) -> None:
        """Refuse a thread of another run."""
        if threading.current_thread() in self._strangers:
            raise UsageError(f"{threading.current_thread().name} is older than this run: let each run start its own")

    def await_step(self) -> None:
        """Let the clock start once a first step is over: it waits for what is loaded or compiled once."""
        if self._first is None and "torch" in sys.modules:
            from torch.optim.optimizer import register_optimizer_step_post_hook

            self._first = register_optimizer_step_post_hook(self._start_clock)

    def _start_clock(self, *_: object) -> None:
        self._start, self._logging = time.perf_counter(), 0.0
        self.close()

    def close(self) -> None:
        """Wait for a first step no longer."""
        if self._first is not None:
            self._first.remove()

    def watch(self, model: "nn.Module") -> None:
        """Record the gates of a model, from their start on."""
        self._models.append(model)
        start = [_finite(value) for value in _scales(self._models)] if _learns(model) else []
        self.tell(read="arm", alphas=start)

    def tell(self, **line: Any) -> None:
        """Tell the lab, once, what the script has read or could not do."""
        if self._write is not None and line not in self._told:
            self._told.append(line)
            self._write(line)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line."""
        began = time.perf_counter()
        line = {
            "step": step,
            "seconds": began - self._start - self._logging,
            "metrics": {name: _finite(value) for name, value in metrics.items()},
            "alphas": [_finite(value) for value in _scales(self._models)],
            "memory": _memory(),
        }
        if self._write is not None:
            self._write(line)
        self._logging += time.perf_counter() - began


def _whole(step: Any) -> int:
    if (whole := int(step)) != step or not 0 <= whole < 2**63:
        raise ValueError
    return whole


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError
    return float(value.detach() if hasattr(value, "detach") else value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _scales(models: list["nn.Module"]) -> list[float]:
    if not models:
        return []
    import torch

    from rezero.gate import gates

    scales = [gate.gate_scale.detach().mean().float() for model in models for gate in gates(model).values()]
    numbers: list[float] = torch.stack(scales).tolist() if scales else []
    return numbers


def _learns(model: "nn.Module") -> bool:
    """Tell whether a gate is to learn, of which it is odd that it does not."""
    from rezero.gate import gates

    return any(gate.gate_parameter.requires_grad for gate in gates(model).values())


def _memory() -> float | None:
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated())
    return peak_of_process()


_running: _Run | None = None


@contextmanager
def running(arm: str, lr: float, seed: int, write: Callable[[Line], object]) -> Iterator[None]:
    """Let the block be a run of the lab.

    Args:
        arm: Its arm.
        lr: What it multiplies its learning rate by.
        seed: Its seed.
        write: Gets each line.

    Yields:
        Nothing.
    """
    global _running  # what the block calls has to find it, in whichever thread
    before, _running = _running, _Run(arm, lr, seed, write)
    _running.refuse_others()
    try:
        yield
    finally:
        _running.close()
        _running = before


def _run() -> _Run | None:
    run = _running or _ordered()
    if run is not None:
        run.check_thread()
        run.await_step()
    return run


@cache
def _ordered() -> _Run | None:
    """Read what the lab that started this script wants of it."""
    if not (path := os.environ.get(ORDER)):
        return None
    try:
        order = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        os._exit(1)  # the lab that started it was killed, and its trial begun anew
    _end_with(order["lab"])
    if os.environ.get("RANK", "0") != "0":
        return _Run(order["arm"], order["lr"], order["seed"], None)
    return _Run(order["arm"], order["lr"], order["seed"], _writer(order["journal"]))


def _writer(journal: str) -> Callable[[Line], None]:
    """Return what writes a line in one call, which a kill leaves whole or out, unless the disk is full."""
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    left = b""  # of a line that a full disk has cut off, which goes on with the next one

    def write(line: Line) -> None:
        nonlocal left
        text, left = left + json.dumps(line).encode() + b"\n", b""
        try:
            while text:
                text = text[os.write(file, text) :]
        finally:
            left += text

    return write


def _end_with(lab: int) -> None:
    """End this process when the lab is gone, or is gone already; one that another process started ends with that."""
    if os.name == "posix" and os.getppid() == lab:
        end_with(lab)
    elif not psutil.pid_exists(lab):
        os._exit(1)
