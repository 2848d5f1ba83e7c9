"""Optimizers and schedules from a line of text, so that a study can say and store what it used."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from rezero.errors import UsageError, near
from rezero.optim import param_groups

__all__ = ["build_optimizer", "build_schedule", "check_recipe"]

_NEEDS_MORE = {"LBFGS", "SparseAdam"}  # a closure, sparse gradients
_NEEDS_OBJECTS = {"SequentialLR", "ChainedScheduler", "LambdaLR", "MultiplicativeLR", "ReduceLROnPlateau", "SWALR"}
_LENGTHS = ("T_max", "total_steps", "total_iters")  # what schedules call the number of steps
_REHEARSED = 100_000  # steps of a schedule, of some microseconds each


def build_optimizer(
    text: str, model: nn.Module, *, lr: float, alpha_lr: float | None = None, weight_decay: float | None = None
) -> Optimizer:
    """Build an optimizer whose gates have a rate of their own and are never decayed.

    Args:
        text: A class of ``torch.optim`` and its options, such as ``"SGD momentum=0.9 weight_decay=1e-4"``. The decay
            reaches the parameters with two or more axes.
        model: The model.
        lr: Learning rate.
        alpha_lr: Learning rate of the gates; None for ``lr``.
        weight_decay: Weight decay; None for that of the text.

    Returns:
        The optimizer.

    Raises:
        UsageError: If there is no such optimizer or it refuses the options.

    Example:
        >>> import rezero
        >>> optimizer = build_optimizer("AdamW betas=0.9,0.98", rezero.ReZero(nn.Linear(2, 2)), lr=0.1)
        >>> [group["name"] for group in optimizer.param_groups], optimizer.defaults["betas"]
        (['decayed', 'undecayed', 'gates'], (0.9, 0.98))
    """
    known = {name: kind for name, kind in _classes(torch.optim, Optimizer).items() if name not in _NEEDS_MORE}
    kind, options = _parse(text, known, "optimizer", per_epoch=1)
    if "lr" in options:
        raise UsageError(f"optimizer {text!r}: the learning rate has an option of its own, --lr")
    if weight_decay is not None and "weight_decay" not in inspect.signature(kind).parameters:
        raise UsageError(f"optimizer {text!r} has no weight decay: leave weight-decay out")
    decay = options.pop("weight_decay", 0.0) if weight_decay is None else weight_decay
    options.pop("weight_decay", None)
    if "foreach" in inspect.signature(kind).parameters:
        options.setdefault("foreach", not options.get("fused"))  # fewer and larger operations, on the CPU too
    with _faults_of("optimizer", text):
        groups = param_groups(model, lr=lr, weight_decay=decay, alpha_lr=lr if alpha_lr is None else alpha_lr)
        optimizer: Optimizer = kind(groups, lr=lr, **options)
    return optimizer


def build_schedule(text: str, optimizer: Optimizer, *, warmup: int, steps: int, per_epoch: int) -> LRScheduler | None:
    """Build the schedule of the learning rates, which is stepped after every optimizer step.

    Args:
        text: ``"constant"``, or a class of ``torch.optim.lr_scheduler`` and its options. Lengths count optimizer
            steps; with an ``e`` behind they count epochs, as in ``"MultiStepLR milestones=100e,150e"``. The length of
            the whole schedule (``T_max``, ``total_steps``, ``total_iters``) is filled in.
        optimizer: The optimizer.
        warmup: Steps over which every rate rises linearly before the schedule begins.
        steps: Optimizer steps of the whole run.
        per_epoch: Optimizer steps of an epoch.

    Returns:
        The schedule, or None where the rates never change.

    Raises:
        UsageError: If there is no such schedule, it refuses the options, or warm-up is not shorter than the run.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
        >>> schedule = build_schedule("StepLR step_size=1e", optimizer, warmup=0, steps=20, per_epoch=2)
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     schedule.step()
        >>> round(schedule.get_last_lr()[0], 6)
        0.1
    """
    if warmup >= steps and warmup:
        raise UsageError(f"warmup must be shorter than the run of {steps} steps: got {warmup}")
    main = None if text == "constant" else _main_schedule(text, optimizer, steps - warmup, per_epoch)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    if main is None:
        return rise
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


def _main_schedule(text: str, optimizer: Optimizer, steps: int, per_epoch: int) -> LRScheduler:
    known = {name: kind for name, kind in _classes(lr_scheduler, LRScheduler).items() if name not in _NEEDS_OBJECTS}
    kind, options = _parse(text, known, "schedule", per_epoch=per_epoch)
    for name in _LENGTHS:
        if name in inspect.signature(kind).parameters:
            options.setdefault(name, steps)
    for name in ("max_lr", "base_lr"):  # given for the model; every group keeps its share
        if isinstance(rate := options.get(name), int | float):
            options[name] = [rate * group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]
    with _faults_of("schedule", text):
        schedule: LRScheduler = kind(optimizer, **options)
    return schedule


def check_recipe(
    optimizer: str,
    schedule: str,
    *,
    warmup: int,
    lr: float,
    weight_decay: float | None = None,
    steps: int | None = None,
    per_epoch: int = 100,
    device: str = "cpu",
) -> None:
    """Refuse an optimizer or a schedule that could not be built or would fail on the way, before there is a model.

    Both are tried out on two numbers: the optimizer for two steps, the schedule for those of the whole run, or for its
    first 100,000 and its last.

    Args:
        optimizer: As for `build_optimizer`.
        schedule: As for `build_schedule`.
        warmup: Steps of warm-up.
        lr: Learning rate.
        weight_decay: As for `build_optimizer`.
        steps: Optimizer steps of the whole run; None as long as the length is unknown.
        per_epoch: Optimizer steps of an epoch.
        device: A torch device; some options need one that is no CPU.

    Raises:
        UsageError: If one of them cannot be built, or does not fit the length of the run.
    """
    model = nn.ParameterList([torch.zeros(1, 1, device=device), torch.zeros(1, device=device)])  # nothing is drawn
    tried = build_optimizer(optimizer, model, lr=lr, weight_decay=weight_decay)
    length = warmup + 1000 if steps is None else steps
    build_schedule(schedule, tried, warmup=warmup, steps=length, per_epoch=per_epoch)
    course = build_schedule(schedule, tried, warmup=0, steps=length - warmup, per_epoch=per_epoch)
    with _faults_of("optimizer", optimizer):
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            tried.step()
    last = 0 if steps is None else length - warmup - 1
    with _faults_of("schedule", schedule):
        for step in (*range(min(last, _REHEARSED)), last):
            if course is not None:
                course.last_epoch = step  # as it is already, but for a leap to the last one
                course.step()


@contextmanager
def _faults_of(what: str, text: str) -> Iterator[None]:
    """Turn whatever torch raises for options that it cannot use into one line."""
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what} {text!r}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _classes(module: Any, base: type) -> dict[str, Any]:
    classes = {name: kind for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base)}
    return {name: kind for name, kind in classes.items() if kind is not base and not name.startswith("_")}


def _parse(text: str, known: Mapping[str, Any], what: str, *, per_epoch: int) -> tuple[Any, dict[str, Any]]:
    """Read ``"Name key=value key=value"``; names are matched whatever their case."""
    name, *words = text.split() or [""]
    by_lower = {each.lower(): each for each in known}
    if name.lower() not in by_lower:
        offered = ", ".join(sorted(known))
        raise UsageError(f"no {what} is called {name!r}{near(name, known)}; choose from {offered}")
    kind = known[by_lower[name.lower()]]
    parameters = inspect.signature(kind).parameters
    takes = {key: each.default for key, each in parameters.items() if key not in ("params", "optimizer", "last_epoch")}
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in takes:
            raise UsageError(f"{what} {text!r}: expected key=value with a key out of {', '.join(takes)}, got {word!r}")
        parts = [_read(part, per_epoch) for part in value.split(",") if part]
        single = len(parts) == 1 and "," not in value and key != "milestones"
        options[key] = parts[0] if single else tuple(parts)
        if wanted := _misfit(options[key], takes[key]):
            raise UsageError(f"{what} {text!r}: {key} must be {wanted}, got {value!r}")
    return kind, options


def _misfit(value: Any, default: Any) -> str:
    """Say what an option takes, by its default, if that is not what was given; torch takes any text for true."""
    parts = value if isinstance(value, tuple) else (value,)
    match default:
        case bool():
            fits, wanted = isinstance(value, bool), "true or false"
        case str():
            fits, wanted = isinstance(value, str), "a word"
        case tuple():
            fits = isinstance(value, tuple) and len(value) == len(default) and not _has(parts, str, bool)
            wanted = f"{len(default)} numbers with commas between them"
        case None:
            fits, wanted = not _has(parts, str), "a number, true, false or none"
        case int() | float():
            fits, wanted = len(parts) == 1 and not _has(parts, str, bool, tuple, type(None)), "a number"
        case _:
            fits, wanted = bool(parts) and not _has(parts, str, bool, type(None)), "a number, or several with commas"
    return "" if fits else wanted


def _has(values: tuple[Any, ...], *kinds: type) -> bool:
    return any(isinstance(value, kinds) for value in values)


def _read(text: str, per_epoch: int) -> Any:
    constants: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for convert in (int, float, lambda digits: round(float(digits.removesuffix("e")) * per_epoch)):
        try:
            value = convert(text)
        except (ValueError, OverflowError):
            continue
        if not math.isfinite(value):
            raise UsageError(f"options of optimizers and schedules must be finite numbers: got {text!r}")
        return value
    return text
