"""One forward pass of any model, written down: which operation made which tensor inside which module."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_map_only

from rezero.errors import UsageError
from rezero.surgery.example import advice
from rezero.surgery.recorder import KEPT, Recorder, Way
from rezero.surgery.shapes import all_on_meta
from rezero.surgery.traced import Op, Trace
from rezero.surgery.undisturbed import copied, switched, undisturbed

__all__ = ["explain", "trace"]


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
    grad: bool = False,
    numbers: bool = False,
    on_add: Callable[[Op, list[Tensor]], object] | None = None,
) -> Trace:
    """Run a model and write down what happens; the model is left as it was.

    The pass computes shapes only, which needs no memory and not the time of a large model, even for one on the meta
    device. Where the model looks at numbers to decide what to do, it is run once more with real ones.

    Args:
        model: Any module.
        args: Its example arguments.
        kwargs: Its example keyword arguments.
        training: Whether to run it in training mode.
        grad: Whether to run it with gradients enabled.
        numbers: Whether to use real numbers from the start, if the model has any: for whoever runs it so anyway, since
            shapes alone take a millisecond an operation.
        on_add: Is shown every addition with its operands as they were before; the pass then uses real numbers from the
            start.

    Returns:
        The trace.

    Raises:
        UsageError: If the model can't be run on these arguments: why, and where.
    """
    given = (tuple(args), dict(kwargs or {}))
    device = _unreal_device(model)
    if device is not None:
        given = tree_map_only(Tensor, lambda tensor: tensor.to(device), given)
    problem: Exception | None = None
    for way in _ways(device, numbers=numbers, shown=on_add is not None):
        problem = None
        with ExitStack() as stack:
            stack.enter_context(undisturbed(model))
            stack.enter_context(switched(model, training=training))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # what a model compiles itself is seen too
            if device is not None:
                stack.enter_context(device)
                stack.enter_context(all_on_meta(model) if device.type == "meta" else nullcontext())
            recorder = Recorder(model, on_add)
            try:
                traced = recorder.run(*copied(given), way=way)
            except Exception as error:
                problem = error
        recorder.empty_caches()
        if problem is None:
            recorder.check_left()
            return traced
    raise UsageError(explain(model, problem) + advice(*given)) from problem


def _ways(device: torch.device | None, *, numbers: bool, shown: bool) -> tuple[Way, ...]:
    """Return how a model is run, one way after the other until it runs, on a device without numbers or with some."""
    if device is None:
        return ("real",) if numbers or shown else ("fake", "real")
    if shown:
        return ()  # there are no numbers to show
    # Torch's own tensors without numbers take a third of the time of fake ones, and know fewer functions.
    return ("meta", "fake") if device.type == "meta" else ("fake",)


def _unreal_device(model: nn.Module) -> torch.device | None:
    """Return the device of a model's parameters if they have no numbers: the meta device, or that of fake ones."""
    devices = [p.device for p in model.parameters() if p.is_meta or isinstance(p, FakeTensor)]
    return next((device for device in devices if device.type == "meta"), next(iter(devices), None))


def explain(model: nn.Module, error: Exception | None) -> str:
    """Say why a model can't be run, and in which module and line of its own code.

    Args:
        model: The model.
        error: What it raised.

    Returns:
        The reason.
    """
    frames = list(traceback.walk_tb(error.__traceback__ if error else None))
    where = ""
    names = {id(module): name for name, module in reversed(list(model.named_modules(remove_duplicate=False)))}
    for frame, line in reversed(frames):
        owner = frame.f_locals.get("self")
        if id(owner) in names and frame.f_code.co_filename != hooks.__file__:
            name = names[id(owner)] or "the model"
            where = f" in {name} ({type(owner).__name__}), {frame.f_code.co_filename}:{line}"
            break
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        on_meta = "it looks at numbers, and a model on the meta device has none; build it with some"
        reason += f": {on_meta if _unreal_device(model) is not None else KEPT}"
    return f"the model can't be run on the example input{where}: {reason[:500]}"
