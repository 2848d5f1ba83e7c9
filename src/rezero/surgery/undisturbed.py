"""Let a model run without a trace: what a pass changes, in it and around it, is put back."""

import copy
import functools
import gc
import logging
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rezero.errors import UsageError
from rezero.surgery.state import State

__all__ = ["copied", "empty_caches", "quiet", "switched", "undisturbed", "unfused", "unwritten"]

_Example = TypeVar("_Example")
_CODE = (type, FunctionType, ModuleType, FrameType)  # which leads everywhere, and keeps no result


def copied(example: _Example) -> _Example:
    """Copy an example with all that is in it, for a model may write into its arguments and fill a cache.

    Args:
        example: Arguments, with tensors at any depth.

    Returns:
        The copy, its tensors detached.

    Raises:
        UsageError: If something in it can't be copied.
    """
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    memo: dict[int, Any] = {
        id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors
    }
    try:
        return copy.deepcopy(example, memo)
    except Exception as error:
        raise UsageError(f"the example can't be copied, and the model might change it: {error}") from error


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put everything back that a forward pass may change: attributes, buffers, memory, gradients, random numbers.

    Inside ``torch.autocast`` each pass casts the parameters anew: one on shapes alone makes casts without numbers, and
    one without gradients casts that let none through.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    state = State(model)
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
            state.put_gradients_aside()
            yield
    finally:
        state.put_back()
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)
        torch.set_autocast_cache_enabled(cached)
        torch.clear_autocast_cache()  # of a model that switches it on itself


@contextmanager
def unwritten(model: nn.Module) -> Iterator[None]:
    """Refuse a model that writes into its parameters, after they have been put back.

    It takes a copy of all of them, as their gradients do, and so it is for the first passes of a model only.

    Args:
        model: The model.

    Yields:
        Nothing.

    Raises:
        UsageError: If it does: into which.
    """
    before = [(name, parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()]
    written: list[str] = []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter, numbers in before:
                if not torch.equal(parameter, numbers):
                    written += [] if torch.allclose(parameter, numbers, rtol=0, atol=0, equal_nan=True) else [name]
                    parameter.copy_(numbers)
    if written:
        raise UsageError(
            f"the model writes into its parameter {written[0]!r} when it runs, so that no pass could be held against "
            "another: expected a forward that leaves parameters alone; move the update out of it, or where it happens "
            "once, as with the max_norm of an embedding, run the model on the example before"
        )


@contextmanager
def switched(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set every module's mode, and put each back."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = training
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing the stack of an error that is caught here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def empty_caches(tensors: Iterable[Tensor]) -> None:
    """Empty the caches of functions that hold any of these tensors.

    It walks over all objects that there are, and so it is for tensors that a pass has left behind.

    Args:
        tensors: Tensors without numbers, which no later call may be given.
    """
    kind: Any = functools._lru_cache_wrapper
    sought = {id(tensor) for tensor in tensors}
    without: set[int] = set()
    for cache in [each for each in gc.get_referrers(kind) if type(each) is kind]:  # a cache refers to its type
        if cache.cache_info().currsize and _leads_to(cache, sought, without):
            cache.cache_clear()


def _leads_to(start: Any, sought: set[int], without: set[int]) -> bool:
    """Return whether an object refers to one of those sought; if not, all that it refers to is noted."""
    seen = {id(start)}
    open_values = [start]
    while open_values:
        for value in gc.get_referents(open_values.pop()):
            place = id(value)
            if place in sought:
                return True
            if place not in seen and place not in without and not issubclass(type(value), _CODE):
                seen.add(place)
                open_values.append(value)
    without |= seen
    return False


@contextmanager
def unfused() -> Iterator[None]:
    """Switch off torch's fused Transformer layers, which show no addition and call no inner layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
