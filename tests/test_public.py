"""The public door: what is exported, what an import costs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rezero
from rezero import (
    branch,
    functional,
    gate,
    in_weight,
    kernels,
    layers,
    optim,
    residual,
    stack,
    stackable,
    stacked,
    transformer,
    zero_last,
)
from rezero.kernels import (
    again,
    buffers,
    deep_stack,
    fusing,
    gated,
    linear,
    linear_gpu,
    native,
    reference,
    reference_stack,
)
from rezero.layers import (
    adapter,
    arguments,
    attention,
    cross_attention,
    decoder,
    feed_forward,
    kv_cache,
    language_model,
    media,
    mlp,
    network,
    positions,
    resampler,
    residuals,
    resnet,
)
from rezero.layers import transformer as layers_transformer

MODULES = [functional, gate, in_weight, kernels, reference, layers, attention, mlp, residuals, layers_transformer]
MODULES += [decoder, kv_cache, language_model, positions, resnet, optim, residual, transformer, zero_last]
MODULES += [stack, buffers, deep_stack, linear, native, reference_stack]
MODULES += [adapter, arguments, cross_attention, feed_forward, media, network, resampler]
MODULES += [stackable, stacked, again, branch, fusing, gated, linear_gpu]


def python(code: str) -> str:
    """Run code in a fresh interpreter that finds the same rezero."""
    source = str(Path(rezero.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path.insert(0, {source!r})\n{code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", rezero.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """Each name in __all__ is there, is documented and is listed by dir()."""
    assert getattr(rezero, name).__doc__
    assert name in dir(rezero)


def test_public_names_come_from_their_modules() -> None:
    """The door re-exports: each class and function is the one of its home module."""
    assert rezero.ReZero is residual.ReZero
    assert rezero.Gate is gate.Gate
    assert rezero.DeepStack is stack.DeepStack
    assert rezero.gates is gate.gates
    assert rezero.param_groups is optim.param_groups
    assert rezero.functional is functional
    assert rezero.layers is layers
    assert rezero.transformer is transformer


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_names_exist_and_are_documented(module: object) -> None:
    """A module's __all__ has no doubles, and each of its names exists and, if callable, has a docstring."""
    names = module.__all__  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)
    for name in names:
        value = getattr(module, name)
        assert not callable(value) or value.__doc__


def test_what_needs_other_packages_is_found_too() -> None:
    """Without an import of its own, and without being loaded before."""
    code = "import sys, rezero; before = 'altair' in sys.modules; print(before, rezero.charts.save.__name__)"
    assert python(code) == "False save"
    code = "import rezero; print(rezero.integrations.tensorboard.log_alphas.__name__)"
    assert python(code) == "log_alphas"
    with pytest.raises(AttributeError, match=r"no attribute 'tensorbord'; it has accelerate, lightning, tensorboard"):
        _ = rezero.integrations.tensorbord


def test_star_import_gives_the_public_names() -> None:
    """from rezero import * binds what __all__ lists."""
    bound = python("from rezero import *\nprint(*sorted(n for n in globals() if not n.startswith('_') and n != 'sys'))")
    assert bound.split() == sorted(rezero.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name says what there is."""
    with pytest.raises(AttributeError, match=r"module 'rezero' has no attribute 'Rezero'; it has ReZero, Gate"):
        _ = rezero.Rezero
    with pytest.raises(ImportError, match="cannot import name 'Rezero'"):
        exec("from rezero import Rezero")  # noqa: S102


def test_import_alone_does_not_load_torch() -> None:
    """import rezero, its version and its list of names leave torch unloaded, so that --help is quick."""
    code = "import rezero; rezero.__version__; dir(rezero); print('torch' in sys.modules)"
    assert python(code) == "False"


def test_the_core_imports_nothing_but_torch() -> None:
    """Every public name loaded, no top-level package is there that torch (with safetensors) does not load itself."""
    code = """
import importlib.util, torch
if importlib.util.find_spec("safetensors"):
    import safetensors
tops = lambda: {name.partition(".")[0] for name in sys.modules}
before = tops()
import rezero
for name in rezero.__all__:
    getattr(rezero, name)
print(*sorted(tops() - before - set(sys.stdlib_module_names)))
"""
    assert python(code) == "rezero"


def test_the_core_adds_little_to_torchs_import() -> None:
    """Once torch is there, rezero.ReZero is there within 0.1 s (best of three, in a fresh interpreter)."""
    code = """
import time, torch
start = time.perf_counter()
import rezero; rezero.ReZero
print(time.perf_counter() - start)
"""
    assert min(float(python(code)) for _ in range(3)) < 0.1


def test_version_is_a_version() -> None:
    """__version__ is three numbers, above the old package's 0.1.0."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", rezero.__version__)
    assert tuple(int(part) for part in rezero.__version__.split(".")[:2]) > (0, 1)


def test_the_package_is_typed() -> None:
    """py.typed is shipped beside the package."""
    assert Path(rezero.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize("name", rezero.__all__)
def test_names_are_resolved_when_first_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the package does not hold yet is found, and kept for the next time."""
    expected = getattr(rezero, name)
    monkeypatch.delattr(rezero, name)
    assert name not in vars(rezero)
    assert getattr(rezero, name) is expected
    assert vars(rezero)[name] is expected


def test_lazy_names_survive_a_reload() -> None:
    """Reloading the package resolves its names again."""
    assert importlib.reload(rezero).ReZero is residual.ReZero
