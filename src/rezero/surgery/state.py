"""What a model's code can change: all that is reached from the model, kept, and put back."""

import inspect
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from functools import cache, partial
from itertools import chain
from operator import is_
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.data import DataLoader, Dataset

__all__ = ["State"]

_Step = Callable[[], object]

_PLAIN = frozenset((bool, int, float, complex, str, bytes, NoneType, torch.dtype, torch.device, torch.Size))
_CONTAINERS = frozenset((list, tuple, set, frozenset, deque))
_HOLDERS = (Tensor, dict, *_CONTAINERS, MethodType, partial, random.Random, torch.Generator)
# What a model may refer to but does not own.
_FOREIGN = (type, FunctionType, ModuleType, logging.Logger, torch.optim.Optimizer, Dataset, DataLoader)


class State:
    """The attributes, containers, tensors and random generators that a model and its hooks reach, as they are now.

    Of parameters their memory is kept, not their numbers, which would be a copy of the whole model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._reached: dict[int, Any] = {}  # which keeps each alive, so that no other gets its id
        self._empty: list[dict[Any, Any]] = []  # as most of a module's are
        self._dicts: list[tuple[dict[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._tensors: list[Tensor] = []
        self._steps: list[_Step] = []
        open_values: list[Any] = [model, *chain.from_iterable(map(_names, _hooks(model)))]
        while open_values:
            value = open_values.pop()
            kind: Any = type(value)
            if kind in _PLAIN or id(value) in self._reached or _is_foreign(kind):
                continue
            self._reached[id(value)] = value
            if kind is dict or kind is OrderedDict:  # by far the most
                open_values += self._keep_dict(value)
            elif _has_only_attributes(kind):
                open_values += _attributes(value)
            else:
                self._keep(value)
                open_values += _parts(value)

    def holds(self, value: Any) -> bool:
        """Return whether an object was reached."""
        return id(value) in self._reached

    def put_gradients_aside(self) -> None:
        """Leave no gradient that a backward pass could add to."""
        for tensor in self._tensors:
            if tensor.is_leaf:
                tensor.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """Put all of it back."""
        for value in self._empty:
            if value:
                value.clear()
        for value, keys, values in self._dicts:
            if not (len(value) == len(keys) and all(map(is_, value, keys)) and all(map(is_, value.values(), values))):
                value.clear()
                value.update(dict(zip(keys, values, strict=True)))
        for step in self._steps:
            step()

    def _keep_dict(self, value: dict[Any, Any]) -> tuple[Any, ...]:
        values = tuple(value.values())
        if values:
            self._dicts.append((value, tuple(value), values))
        else:
            self._empty.append(value)
        return values

    def _keep(self, value: Any) -> None:
        if isinstance(value, dict):
            self._keep_dict(value)
            return
        self._tensors += [value] if isinstance(value, Tensor) else []
        step = _kept(value)
        self._steps += [] if step is None else [step]


def _hooks(model: nn.Module) -> Iterable[Any]:
    kinds = [kind for kind, hooks in vars(model).items() if kind.endswith("_hooks") and isinstance(hooks, dict)]
    return [hook for module in model.modules() for kind in kinds for hook in vars(module).get(kind, {}).values()]


def _names(hook: Any) -> Iterable[Any]:
    """Return what a hook writes to by name, as one that records outputs in a list of its script."""
    function = inspect.unwrap(hook)
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    if not isinstance(function, FunctionType):
        return []
    names = inspect.getclosurevars(function)
    return [*names.nonlocals.values(), *names.globals.values()]


@cache
def _is_foreign(kind: Any) -> bool:
    private = kind.__module__.startswith("torch._") and not issubclass(kind, Tensor | torch.Generator)
    return private or issubclass(kind, _FOREIGN)


@cache
def _has_only_attributes(kind: Any) -> bool:
    """Return whether all that an object of a type holds is in its ``__dict__``, as it is of a module."""
    own = issubclass(kind, _HOLDERS) or kind.__module__.startswith("numpy.random")
    return not (own or _slot_names(kind))


def _attributes(value: Any) -> list[Any]:
    attributes = getattr(value, "__dict__", None)
    return [attributes] if type(attributes) is dict else []


def _parts(value: Any) -> Iterable[Any]:
    """Return what an object holds: the items of a container, and the attributes of anything."""
    if isinstance(value, Tensor):
        return []
    if type(value) in _CONTAINERS:  # without attributes
        return value  # type: ignore[no-any-return]
    parts: list[Any] = []
    if isinstance(value, dict):
        parts += value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts += value
    if isinstance(value, MethodType):
        parts.append(value.__self__)
    if isinstance(value, partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    return [*parts, *_attributes(value), *_slots(value).values()]


def _kept(value: Any) -> _Step | None:
    """Return what puts the content of one object back."""
    if isinstance(value, Tensor):
        return _kept_tensor(value)
    if isinstance(value, set):
        return partial(_put_back_set, value, set(value))
    if isinstance(value, list | deque):
        return partial(_put_back_list, value, list(value))
    if type(value) in _CONTAINERS:
        return None
    return _kept_random(value) or _kept_slots(value)


def _kept_random(value: Any) -> _Step | None:
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return partial(value.setstate, value.getstate())
    if not (isinstance(value, torch.Generator) or type(value).__module__.startswith("numpy.random")):
        return None
    if hasattr(value, "set_state"):
        return partial(value.set_state, value.get_state())
    source = getattr(value, "bit_generator", value)
    return partial(setattr, source, "state", source.state) if hasattr(source, "random_raw") else None


def _kept_slots(value: Any) -> _Step | None:
    slots = _slots(value)
    return partial(_put_back_slots, value, slots) if slots else None


def _kept_tensor(tensor: Tensor) -> _Step | None:
    if isinstance(tensor, FakeTensor | UninitializedBuffer | UninitializedParameter):
        return None
    copied = not (isinstance(tensor, nn.Parameter) or tensor.is_meta)
    content = tensor.detach().clone() if copied else None
    return partial(_put_back_tensor, tensor, tensor.data, content, tensor.grad if tensor.is_leaf else None)


def _put_back_tensor(tensor: Tensor, data: Tensor, content: Tensor | None, gradient: Tensor | None) -> None:
    if _memory(tensor) != _memory(data):
        tensor.data = data
    if content is not None and not torch.equal(tensor, content):
        tensor.copy_(content)
    if tensor.is_leaf and tensor.grad is not gradient:
        tensor.grad = gradient


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return ()
    return tensor.untyped_storage()._cdata, tensor.shape, tensor.stride(), tensor.storage_offset()


def _put_back_set(value: set[Any], content: set[Any]) -> None:
    if value != content:
        value.clear()
        value.update(content)


def _put_back_list(value: list[Any] | deque[Any], content: list[Any]) -> None:
    if not _same(value, content):
        value.clear()
        value.extend(content)


def _same(one: Collection[Any], other: Collection[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _slots(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _slot_names(kind) if hasattr(value, name)}


@cache
def _slot_names(kind: Any) -> tuple[str, ...]:
    own = (vars(each) for each in kind.__mro__ if "__slots__" in vars(each))
    return tuple(name for each in own for name, what in each.items() if isinstance(what, MemberDescriptorType))


def _put_back_slots(value: Any, content: dict[str, Any]) -> None:
    kind: Any = type(value)
    for name in _slot_names(kind):
        if name not in content and hasattr(value, name):
            object.__delattr__(value, name)
        elif name in content and getattr(value, name, content) is not content[name]:
            object.__setattr__(value, name, content[name])
