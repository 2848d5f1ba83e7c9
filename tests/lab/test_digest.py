"""What tells one function of one's own from another."""

import importlib
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rezero.lab.digest import MOST, _is_own_module, digest

NUMBER = count()


def go() -> None: ...


def stay() -> None: ...


def about(value: object) -> Any:
    def train(_: object) -> object:
        return value

    return train


def default(value: object) -> Any:
    def train(_: object, held: object = value, *, other: object = None) -> object:
        return held, other

    return train


def keyword(value: object) -> Any:
    def train(_: object, *, held: object = value) -> object:
        return held

    return train


def nested(value: object) -> Any:
    def train(_: object) -> object:
        return [value for _ in range(3)], (value for _ in range(3)), lambda: value

    return train


def wrapped(value: object) -> Any:
    def plain(_: object) -> object:
        return value

    return plain


def attribute(value: object) -> Any:
    class Own:
        held = value

    return about(Own)


def slots(value: object) -> Any:
    @dataclass(slots=True)
    class Config:
        held: object

    return about(Config(value))


class Method:
    def __init__(self, value: object) -> None:
        self.value = value

    def train(self, _: object) -> object:
        return self.value

    @classmethod
    def build(cls) -> object:
        return cls(1)


class Called(Method):
    def __call__(self, _: object) -> object:
        return self.train(_)


class Color(Enum):
    RED = 1
    BLUE = 2


class Sub(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.layer = rate, nn.Dropout(rate)


def chain(value: object) -> Any:
    """Two functions that name each other."""

    def one(_: object) -> object:
        return two, value

    def two(_: object) -> object:
        return one

    return one


def loop(value: object) -> list[object]:
    own: list[object] = [value]
    own.append(own)
    return own


PAIRS: dict[str, tuple[Any, Any]] = {
    "number": (about(1), about(2)),
    "number's kind": (about(1), about(True)),
    "large number": (about(10**5000), about(10**5000 + 1)),
    "text": (about("a"), about("b")),
    "surrogate": (about("\ud800"), about("\ud801")),
    "bytes": (about(b"a"), about(b"b")),
    "path": (about(Path("a")), about(Path("b"))),
    "dtype": (about(torch.float32), about(torch.float64)),
    "device": (about(torch.device("cpu")), about(torch.device("cuda"))),
    "number of NumPy": (about(np.float32(0.5)), about(np.float32(0.25))),
    "enum": (about(Color.RED), about(Color.BLUE)),
    "tuple": (about((1, go)), about((2, go))),
    "list": (about([1, [2]]), about([1, [3]])),
    "list's order": (about([1, 2]), about([2, 1])),
    "dict": (about({"a": {"b": 1}}), about({"a": {"b": 2}})),
    "dict with data": (about({"lr": 1, "x": [0] * 20_000}), about({"lr": 2, "x": [0] * 20_000})),
    "set": (about({"a", "b"}), about({"a", "c"})),
    "function": (about(go), about(stay)),
    "function in a list": (about([go]), about([stay])),
    "function of a package": (about(F.relu), about(F.gelu)),
    "class of a package": (about(nn.ReLU), about(nn.GELU)),
    "compiled function": (about(torch.sin), about(torch.cos)),
    "module of a package": (about(nn.Dropout(0.1)), about(nn.Dropout(0.2))),
    "modules inside": (about(nn.Sequential(nn.Dropout(0.1))), about(nn.Sequential(nn.Dropout(0.2)))),
    "own module": (about(Sub(0.1)), about(Sub(0.2))),
    "class": (about(Method), about(Called)),
    "class attribute": (attribute(1), attribute(2)),
    "partial": (partial(go, 1), partial(go, 2)),
    "keyword": (partial(go, lr=1), partial(go, lr=2)),
    "list in a partial": (partial(go, [1]), partial(go, [2])),
    "default": (default(1), default(2)),
    "keyword's default": (keyword(1), keyword(2)),
    "inside": (nested(1), nested(2)),
    "lambda": (lambda _: 1, lambda _: 2),
    "bound method": (Method(1).train, Method(2).train),
    "method of a class": (Method.build, Called.build),
    "callable": (Called(1), Called(2)),
    "callable's list": (Called([1]), Called([2])),
    "object": (about(Method(1)), about(Method(2))),
    "slots": (slots(1), slots(2)),
    "namespaces": (about(SimpleNamespace(lr=1)), about(SimpleNamespace(lr=2))),
    "arguments": (about(Namespace(lr=1)), about(Namespace(lr=2))),
    "without gradients": (torch.no_grad()(wrapped(1)), torch.no_grad()(wrapped(2))),
    "cached": (lru_cache(wrapped(1)), lru_cache(wrapped(2))),
    "context": (contextmanager(wrapped(1)), contextmanager(wrapped(2))),
    "compiled": tuple(torch.compile(wrapped(each), backend="eager") for each in (1, 2)),
    "each other": (chain(1), chain(2)),
}
DATA: dict[str, tuple[Any, Any]] = {
    "tensor": (torch.zeros(2), torch.ones(3)),
    "array": (np.zeros(2), np.ones(2)),
    "large list": ([0] * (MOST + 1), [1] * (MOST + 1)),
    "large list of lists": ([[0, 0]] * MOST, [[1, 1]] * MOST),
    "list in itself": (loop(1), loop(2)),
    "loader": (torch.utils.data.DataLoader([1]), torch.utils.data.DataLoader([2, 3])),
    "weights": (nn.Linear(2, 2), nn.Linear(2, 2).eval()),
    "cache": ({}, {"x": torch.zeros(2)}),
    "hook": (nn.ReLU(), nn.Sequential(nn.ReLU())[0].requires_grad_(False)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_function_is_another(name: str) -> None:
    """So is one that reaches another number, text, function or class."""
    one, two = PAIRS[name]
    assert digest(one) != digest(two)
    assert digest(one) == digest(one)


@pytest.mark.parametrize("name", DATA)
def test_data_is_not_looked_at(name: str) -> None:
    """Neither by itself nor in a list or as an attribute of an object."""
    one, two = DATA[name]
    assert digest(about(one)) == digest(about(two))
    assert digest(about([one, 1])) == digest(about([two, 1]))
    assert digest(Called(one)) == digest(Called(two))


def test_the_order_of_names_in_a_dict_is_no_difference() -> None:
    """Nor is that in which the attributes of an object were set."""
    assert digest(about({"a": 1, "b": 2})) == digest(about({"b": 2, "a": 1}))
    assert digest(about(SimpleNamespace(a=1, b=2))) == digest(about(SimpleNamespace(b=2, a=1)))


def digests() -> list[list[str]]:
    sets = about({"a", "b", "c", ("d", 1), 2.0, Color.RED, Color.BLUE, go, stay, Method}), about(frozenset("abcdef"))
    return [[digest(each) for each in pair] for pair in (*PAIRS.values(), sets)]


def test_a_function_is_the_same_in_another_process() -> None:
    """Nothing of what tells functions apart is an address, or the order of a set."""
    lines = "from tests.lab import test_digest as here; print(here.digests())"
    command = [sys.executable, "-W", "ignore", "-c", lines]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == str(digests())


MAIN = """
import math
import helpers
import helpers as other
HEAD

def train(model):
    return BODY
"""
HELPERS = """
import torch
import helpers as here
RATE = 0.1
NAMES = ["a"]
UNUSED = 1
DATA = torch.zeros(3)

def go():
    return lambda: [RATE for _ in NAMES], here.go, DATA

def never():
    return UNUSED

class Own:
    rate = 0.2

    def run(self, other=RATE):
        return go()
"""
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return what writes two modules of one's own, and returns the digest of a function there."""

    def made(body: str, *changes: tuple[str, str], head: str = "") -> str:
        folder, helpers = tmp_path / str(next(NUMBER)), HELPERS
        folder.mkdir()
        for old, new in changes:
            assert old in helpers
            helpers = helpers.replace(old, new)
        (folder / "helpers.py").write_text(helpers)
        (folder / "main.py").write_text(MAIN.replace("HEAD", head).replace("BODY", body))
        monkeypatch.syspath_prepend(folder)
        for name in ("main", "helpers"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return digest(importlib.import_module("main").train)

    return made


REACHED = {
    "module's function": ("helpers.go()", ""),
    "module's other name": ("[other.go() for _ in model]", ""),
    "imported function": ("go()", "from helpers import go"),
    "imported class": ("Own().run()", "from helpers import Own"),
    "module's class": ("helpers.Own().run()", ""),
    "subclass": ("Sub().run()", "class Sub(helpers.Own): ..."),
    "object's method": ("run()", "run = helpers.Own().run"),
}


@pytest.mark.parametrize("name", REACHED)
def test_what_is_reached_in_another_module_counts(make: Make, name: str) -> None:
    """Its text does, and the numbers and names that it names there, however far; the rest of the module does not."""
    body, head = REACHED[name]
    first = make(body, head=head)
    assert make(body, head=head) == first
    assert make(body, ("= 0.1", "= 0.3"), head=head) != first
    assert make(body, ('"a"', '"b"'), head=head) != first
    assert make(body, ("return lambda", "return None, lambda"), head=head) != first
    assert make(body, ("zeros", "ones"), ("UNUSED = 1", "UNUSED = 2"), head=head) == first


NAMED = {
    "comprehension": "[{} for _ in model]",
    "generator": "sum({} for _ in model)",
    "lambda": "lambda: {}",
    "lambda's default": "lambda rate={}: rate",
    "function in a lambda": "lambda: [lambda: {} for _ in model]",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_global_name_counts_wherever_it_is_named(make: Make, name: str) -> None:
    """A number does that only a comprehension or an inner function names."""
    body = NAMED[name].format("RATE")
    assert make(body, head="RATE = 1") == make(body, head="RATE = 1; OTHER = 2")
    assert make(body, head="RATE = 1") != make(body, head="RATE = 2")


METHODS = {
    "named in a method": "RATE = {}\nclass Own:\n    def run(self): return RATE",
    "attribute": "RATE = {}\nclass Own:\n    rate = RATE",
    "default": "RATE = {}\nclass Own:\n    def run(self, rate=RATE): ...",
    "named in a property": "RATE = {}\nclass Own:\n    @property\n    def run(self): return RATE",
    "named in a base": "RATE = {}\nclass Base:\n    def run(self): return RATE\nclass Own(Base): ...",
    "text": "class Own:\n    def run(self): return {}",
    "static": "RATE = {}\nclass Own:\n    @staticmethod\n    def run(): return RATE",
    "cached": "RATE = {}\nfrom functools import *\nclass Own:\n    @cached_property\n    def run(self): return RATE",
}


@pytest.mark.parametrize("name", METHODS)
def test_all_of_a_class_counts(make: Make, name: str) -> None:
    """Its methods do with what they name, its attributes and its bases; so do those of an object's class."""
    head = METHODS[name]
    for body in ("Own()", "own"):
        heads = [head.format(rate) + ("\nown = Own()" if body == "own" else "") for rate in (0.1, 0.1, 0.2)]
        first, again, other = (make(body, head=each) for each in heads)
        assert first == again
        assert first != other


def test_the_text_of_call_counts(make: Make) -> None:
    """It does of an object that is called as a function."""
    head = "class Own:\n    def __call__(self, model): return {}\nown = Own()"
    first, other = (make("own(model)", head=head.format(rate)) for rate in (1, 2))
    assert first != other


def test_lambdas_on_a_line_are_told_apart() -> None:
    """Their text is the same, and what they name and hold is not."""
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert digest(one) != digest(two)


def test_functions_without_a_text_are_told_apart() -> None:
    """Their code is compared."""
    one, again, two = ({}, {}, {})
    for text, names in (("x + 1", one), ("x + 1", again), ("x - 1", two)):
        exec(f"def train(x): return [{text} for x in x]", names)  # noqa: S102
    assert digest(one["train"]) == digest(again["train"])
    assert digest(one["train"]) != digest(two["train"])


def test_what_packages_bring_is_not_ones_own() -> None:
    """No module of Python or of a package is read, and one that is written beside the tests is."""
    assert _is_own_module(__name__)
    packages = ("rezero", "torch", "numpy", "sklearn", "joblib", "scipy", "_cython", "os", "json", "builtins", "pytest")
    assert [name for name in [*sys.modules] if name.startswith(packages) and _is_own_module(name)] == []


def test_a_large_graph_ends() -> None:
    """Ten thousand objects that name each other are read, and no more."""
    first = last = SimpleNamespace(next=None)
    for _ in range(3 * MOST):
        last.next = SimpleNamespace(next=None)
        last = last.next
    assert digest(about(first)) == digest(about(first))
