"""What tells one function from another: its text, and what it reaches in code of one's own."""

import sys
import sysconfig
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cache, cached_property, partial, partialmethod
from hashlib import sha256
from inspect import getsource
from pathlib import Path, PurePath
from tokenize import TokenError
from types import CodeType, EllipsisType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["MOST", "digest"]

MOST = 10_000  # entries of a collection; one of more is data
_DEEPEST = 50  # collections inside one another
_PLAIN = (
    int,
    float,
    complex,
    str,
    bytes,
    range,
    type(None),
    EllipsisType,
    Decimal,
    Fraction,
    PurePath,
    torch.dtype,
    torch.device,
)
_COLLECTIONS = (tuple, list, set, frozenset, dict)
_BROUGHT = ("rezero", "torch")  # packages, wherever they lie
_INTERNAL = vars(nn.Module()).keys() - {"_modules"}


def digest(*values: object) -> str:
    """Return the SHA-256 of functions, the same in any process: of their text, and of what they reach by name.

    That is the text of functions and classes of one's own, in whichever module, and numbers, texts and small
    collections of them, which they name, hold, have as defaults or as attributes. What packages bring counts by its
    name. Tensors, arrays, collections of more than `MOST` entries and objects of packages that nothing calls are data,
    and count for nothing.

    Args:
        values: The functions, or whatever else can be called.

    Returns:
        The digest, in hexadecimal.
    """
    reader = _Reader()
    total = sha256(_join(*map(reader.value, values)))
    for each in reader.found:  # grows on the way
        total.update(reader.describe(each))
    return total.hexdigest()


class _Reader:
    """Reads values into bytes; what may refer to itself is a number there, and is described on its own.

    Attributes:
        found: Functions, classes and objects, in the order in which they are come upon.
    """

    def __init__(self) -> None:
        self.found: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._inside: set[int] = set()  # collections that are being read

    def value(self, each: Any) -> bytes:
        """Return what stands for a value; nothing for data."""
        if isinstance(each, Enum):
            return _join(b"enum", self.value(type(each)), _plain(each.name), self.value(each.value))
        if isinstance(each, np.generic):
            each = each.item()
        if isinstance(each, _PLAIN):
            return _join(type(each).__name__.encode(), _plain(each))
        if isinstance(each, _COLLECTIONS):
            return self._collection(each)
        if isinstance(each, partial):
            return _join(b"partial", *map(self.value, (each.func, *each.args, each.keywords)))
        if isinstance(each, MethodType):
            return _join(b"method", self.value(each.__func__), self.value(each.__self__))
        if isinstance(each, property):
            return _join(b"property", *map(self.value, (each.fget, each.fset, each.fdel)))
        if isinstance(each, staticmethod | classmethod):
            return self.value(each.__func__)
        if isinstance(each, cached_property | partialmethod):
            return self.value(each.func)
        if isinstance(each, ModuleType):
            return _join(b"module", each.__name__.encode())
        return self._thing(each)

    def _thing(self, each: Any) -> bytes:
        """Return what stands for a function, a class or an object."""
        if _is_own(each) or isinstance(each, SimpleNamespace | Namespace):
            return self._refer(each)
        if not callable(each):
            return b""
        if isinstance(getattr(each, "__name__", None), str):
            return _join(b"brought", _name(each), self.value(getattr(each, "__wrapped__", None)))
        return self._refer(each)

    def _refer(self, each: Any) -> bytes:
        if id(each) not in self._numbers:
            if len(self.found) >= MOST:
                return b""
            self._numbers[id(each)] = len(self.found)
            self.found.append(each)
        return b"#%d" % self._numbers[id(each)]

    def _collection(self, each: Any) -> bytes:
        """Return what stands for the entries that are no data."""
        small = len(each) <= MOST if isinstance(each, dict) else _is_small(each)
        if not small or id(each) in self._inside or len(self._inside) >= _DEEPEST:
            return b""
        self._inside.add(id(each))
        if isinstance(each, dict):
            pairs = [(self.value(key), self.value(value)) for key, value in each.items()]
            parts = sorted(_join(*pair) for pair in pairs if all(pair))
        elif isinstance(each, set | frozenset):
            parts = sorted(filter(None, map(self.value, _ordered(each))))
        else:
            parts = list(filter(None, map(self.value, each)))
        self._inside.remove(id(each))
        kind = next(kind for kind in _COLLECTIONS if isinstance(each, kind))
        return _join(kind.__name__.encode(), *parts) if parts else b""  # a cache is the same, filled or not

    def describe(self, each: Any) -> bytes:
        """Return what a function, a class or an object is."""
        if isinstance(each, FunctionType):
            return self._function(each)
        return self._class(each) if isinstance(each, type) else self._object(each)

    def _function(self, function: FunctionType) -> bytes:
        text = _source(function.__code__)
        shared = function.__name__ == "<lambda>"  # a line can have several
        return _join(
            b"function",
            text,
            self._code(function.__code__, whole=not text) if shared or not text else b"",
            *map(self.value, function.__defaults__ or ()),
            self._named(function.__kwdefaults__ or {}),
            self._named(vars(function)),
            self._named(_variables(function)),
        )

    def _code(self, code: CodeType, *, whole: bool) -> bytes:
        """Return what compiled code names and holds, and all of it where there is no text."""
        parts = [
            self._code(each, whole=whole) if isinstance(each, CodeType) else self.value(each) for each in code.co_consts
        ]
        return _join(b"code", code.co_code if whole else b"", " ".join(code.co_names).encode(), *parts)

    def _class(self, kind: type) -> bytes:
        members = {
            name: value
            for name, value in vars(kind).items()
            if not _is_dunder(name) or isinstance(value, FunctionType | staticmethod | classmethod | property)
        }
        bases = map(self.value, (type(kind), *kind.__bases__))
        return _join(b"class", _source(kind), *bases, self._named(members))

    def _object(self, each: Any) -> bytes:
        kind, hidden = type(each), _INTERNAL if isinstance(each, nn.Module) else ()
        state = {
            name: value
            for name, value in _state(each).items()
            if name not in hidden and (_is_own(kind) or name == "_modules" or not name.startswith("_"))
        }
        return _join(b"object", self.value(kind), self._named(state))

    def _named(self, values: Mapping[str, Any]) -> bytes:
        pairs = [(name.encode(), self.value(value)) for name, value in sorted(values.items())]
        return _join(*(_join(*pair) for pair in pairs if pair[1]))


def _join(*parts: bytes) -> bytes:
    """Join bytes so that other parts are other bytes."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _plain(each: Any) -> bytes:
    if isinstance(each, bytes):
        return each
    text = f"{each:x}" if isinstance(each, int) else str(each)  # decimal digits of large numbers are refused
    return text.encode("utf-8", "surrogatepass")


def _name(each: Any) -> bytes:
    """Return the name that something of a package has there; what wraps a function bears that one's."""
    if isinstance(each, FunctionType):
        return f"{each.__globals__.get('__name__')}.{each.__code__.co_qualname}".encode()
    if hasattr(each, "__wrapped__"):
        each = type(each)
    return f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', each.__name__)}".encode()


def _ordered(entries: Any) -> list[Any]:
    """Return what a set has, in an order that is the same in any process; its objects of one's own have none."""
    ordered = [each for each in entries if isinstance(each, Enum) or not _is_own(type(each))]
    return sorted(ordered, key=lambda each: str(getattr(each, "__qualname__", type(each).__qualname__)))


def _is_small(collection: Any) -> bool:
    """Say whether a collection has few entries, those of collections inside it among them."""
    count, waiting = 0, [collection]
    while waiting:
        each = waiting.pop()
        count += len(each)
        if count > MOST:
            return False
        entries = each.values() if isinstance(each, dict) else each
        waiting += [entry for entry in entries if isinstance(entry, _COLLECTIONS)]
    return True


def _source(each: Any) -> bytes:
    """Return the text of a class or of code; nothing where there is none."""
    try:
        return getsource(each).encode("utf-8", "surrogatepass")
    except (OSError, TypeError, SyntaxError, TokenError):
        return b""


def _variables(function: FunctionType) -> dict[str, Any]:
    """Return what a function, and those inside it, may name outside of them, also in modules of one's own."""
    names = _names(function.__code__)
    found = {name: function.__globals__[name] for name in names & function.__globals__.keys()}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not bound yet
            found[name] = cell.cell_contents
    waiting, seen = [*found.values()], set[int]()
    while waiting:
        module = waiting.pop()
        if isinstance(module, ModuleType) and id(module) not in seen and _is_own(module):
            seen.add(id(module))
            inside = {f"{module.__name__}.{name}": vars(module)[name] for name in names & vars(module).keys()}
            found |= inside
            waiting += inside.values()
    return found


def _names(code: CodeType) -> set[str]:
    inside = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    return {name for name in code.co_names if not _is_dunder(name)}.union(*inside)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _state(each: Any) -> dict[str, Any]:
    """Return the attributes of an object, those in slots too."""
    try:
        state: Any = object.__getstate__(each)
    except TypeError:
        return {}
    parts = state if isinstance(state, tuple) else (state,)
    return {str(name): value for part in parts if part for name, value in part.items()}


def _is_own(each: Any) -> bool:
    """Say whether a module, a function, a class or the class of an object is one's own, and no package's."""
    if isinstance(each, ModuleType):
        return _is_own_module(each.__name__)
    if isinstance(each, FunctionType):
        return _is_own_module(str(each.__globals__.get("__name__")))
    return _is_own_module(str((each if isinstance(each, type) else type(each)).__module__))


@cache
def _is_own_module(name: str) -> bool:
    top = name.partition(".")[0]
    if top in ("__main__", *_BROUGHT):  # in the place of the first a profiler or a debugger may stand
        return top not in _BROUGHT
    module = sys.modules.get(name) or sys.modules.get(top)
    place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if place is None:  # built in, or of code that was executed
        return module is None and top not in sys.stdlib_module_names
    standard = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")]
    return not any(
        {"site-packages", "dist-packages"} & {*path.parts} or any(map(path.is_relative_to, standard))
        for path in (Path(place), Path(place).resolve())  # a package may be a link to a cache
    )
