"""Let a model run without a trace: what a pass changes, in it and around it, is put back."""

import functools
import gc
import logging
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["clean_caches", "quiet", "switched", "undisturbed", "unfused"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put everything back that a forward pass may change: attributes, buffers, random numbers.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    modules = list(model.modules())
    before = [{name: _copied(value) for name, value in vars(module).items()} for module in modules]
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    python, numpy = random.getstate(), sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
            yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            _put_back(vars(module), attributes)
        with torch.no_grad():
            for buffer, numbers in buffers:
                if not torch.equal(buffer, numbers):
                    buffer.copy_(numbers)
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)


def _copied(value: Any) -> tuple[Any, Any]:
    """Keep an attribute and, where it is a container, what is in it."""
    return value, value.copy() if isinstance(value, dict | list | set) else None


def _put_back(attributes: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in attributes.keys() - before.keys():
        del attributes[name]
    for name, (value, content) in before.items():
        if attributes.get(name) is not value:
            attributes[name] = value
        if isinstance(value, dict | set):
            if value != content if isinstance(value, set) else not _same(value, content):
                value.clear()
                value.update(content)
        elif isinstance(value, list) and (
            len(value) != len(content) or any(a is not b for a, b in zip(value, content, strict=False))
        ):
            value[:] = content


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


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


@contextmanager
def clean_caches() -> Iterator[None]:
    """Empty the caches of functions that a pass without numbers has filled with tensors without numbers."""
    caches = [each for each in gc.get_objects() if type(each) is functools._lru_cache_wrapper]
    sizes = [cache.cache_info().currsize for cache in caches]
    try:
        yield
    finally:
        for cache, size in zip(caches, sizes, strict=True):
            if cache.cache_info().currsize > size:
                cache.cache_clear()


@contextmanager
def unfused() -> Iterator[None]:
    """Switch off torch's fused Transformer layers, which show no addition and call no inner layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
