"""What a model's code can change: all that is reached from the model, kept, and put back."""

import inspect
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from functools import cache, partial
from itertools import chain
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
_CONTAINERS = frozenset((dict, OrderedDict, list, tuple, set, frozenset, deque))
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
        self._steps: list[_Step] = []
        open_values: list[Any] = [model, *chain.from_iterable(map(_names, _hooks(model)))]
        while open_values:
            value = open_values.pop()
            if type(value) in _PLAIN or id(value) in self._reached or _is_foreign(value):
                continue
            self._reached[id(value)] = value
            step = _kept(value)
            self._steps += [] if step is None else [step]
            open_values += _parts(value)

    def put_gradients_aside(self) -> None:
        """Leave no gradient that a backward pass could add to."""
        for value in self._reached.values():
            if isinstance(value, Tensor) and value.is_leaf:
                value.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """Put all of it back."""
        for step in self._steps:
            step()


def _hooks(model: nn.Module) -> Iterable[Any]:
    kinds = [kind for kind in vars(model) if kind.endswith("_hooks")]
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


def _is_foreign(value: Any) -> bool:
    private = type(value).__module__.startswith("torch._") and not isinstance(value, Tensor | torch.Generator)
    return private or isinstance(value, _FOREIGN)


def _parts(value: Any) -> Iterable[Any]:
    """Return what an object holds: the items of a container, and the attributes of anything."""
    if isinstance(value, Tensor):
        return []
    if type(value) in _CONTAINERS:  # by far the most, without attributes
        return value.values() if isinstance(value, dict) else value
    parts: list[Any] = []
    if isinstance(value, dict):
        parts += value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts += value
    if isinstance(value, MethodType):
        parts.append(value.__self__)
    if isinstance(value, partial):
        parts += [value.func, *value.args, *value.keywords.values()]
    attributes = getattr(value, "__dict__", None)
    parts += [attributes] if type(attributes) is dict else []
    return [*parts, *_slots(value).values()]


def _kept(value: Any) -> _Step | None:
    """Return what puts the content of one object back."""
    if isinstance(value, Tensor):
        return _kept_tensor(value)
    if isinstance(value, dict):
        return partial(_put_back_dict, value, dict(value), _places(value))
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


def _places(value: dict[Any, Any]) -> list[int]:
    return [*map(id, value), *map(id, value.values())]


def _put_back_dict(value: dict[Any, Any], content: dict[Any, Any], places: list[int]) -> None:
    if _places(value) != places:
        value.clear()
        value.update(content)


def _put_back_set(value: set[Any], content: set[Any]) -> None:
    if value != content:
        value.clear()
        value.update(content)


def _put_back_list(value: list[Any] | deque[Any], content: list[Any]) -> None:
    if not _same(value, content):
        value.clear()
        value.extend(content)


def _same(one: Collection[Any], other: Collection[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


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
