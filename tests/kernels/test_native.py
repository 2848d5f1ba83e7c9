"""How the native loop is compiled, kept, and done without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rezero
from rezero.kernels import native

USE = """
import torch, rezero
from rezero.layers import MLPBlock
stack, x = rezero.DeepStack(MLPBlock(4), 9), torch.randn(3, 4)
assert torch.equal(stack(x), x)
from rezero.kernels import native
print(native.find() is not None)
"""


def start(code: str, **variables: str) -> subprocess.Popen[str]:
    """Run code in a fresh interpreter that finds the same rezero."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rezero.__file__).parents[1]), **variables}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_compile_at_once_and_a_third_finds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each says on stderr that it compiles, none is disturbed, one library is left; later processes are silent."""
    both = [start(USE, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    for process in both:
        output, said = process.communicate(timeout=120)
        assert output == "True\n", said
        assert said == "" or said.startswith("rezero: compiling the loop of DeepStack, once for this machine")
    assert [each.suffix for each in (tmp_path / "rezero").iterdir()] == [".so"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", None)
    assert native.load.__wrapped__("deep_stack") is not None
    assert capfd.readouterr().err == ""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return monkeypatch


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "No such file or directory: 'no-such-compiler'"),
        ("false", "exit status 1"),
    ],
    ids=["missing", "failing"],
)
def test_one_warning_says_what_to_install(
    fresh: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], compiler: str, reason: str
) -> None:
    """Without a compiler that works there are no loops, one warning that says why and what to do, and no litter."""
    fresh.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"layer by layer in Python.*{reason}; install a C\\+\\+ compiler"):
        assert native.load.__wrapped__("deep_stack") is None
    assert capfd.readouterr().err.startswith("rezero: compiling")
    assert list((tmp_path / "cache/rezero").iterdir()) == []


def test_a_library_of_which_a_part_is_missing_is_compiled_anew(tmp_path: Path) -> None:
    """To load one would end the process; an empty CXX is none."""
    for _ in range(2):
        output, said = start(USE, XDG_CACHE_HOME=str(tmp_path), CXX="").communicate(timeout=120)
        assert (output, said.count("rezero: compiling")) == ("True\n", 1), said
        [library] = (tmp_path / "rezero").iterdir()
        with library.open("r+b") as file:
            file.truncate(library.stat().st_size // 2)


def test_the_compilers_own_words_are_passed_on(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the compiler complains about is part of the warning."""
    (tmp_path / "deep_stack.cpp").write_text("#error out of order\n")
    (tmp_path / "rows.h").touch()
    fresh.setattr(native, "FOLDER", tmp_path)
    with pytest.warns(UserWarning, match="#error out of order"):
        assert native.load.__wrapped__("deep_stack") is None


def test_a_command_that_cannot_be_read_is_no_error(fresh: pytest.MonkeyPatch) -> None:
    """Such as one with half of its quotation marks."""
    fresh.setenv("CXX", "g++ '")
    with pytest.warns(UserWarning, match="No closing quotation"):
        assert native.load.__wrapped__("deep_stack") is None


def test_a_cache_that_cannot_be_written_is_no_error(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the library can't be kept, the twin serves."""
    (tmp_path / "file").touch()
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Not a directory"):
        assert native.load.__wrapped__("deep_stack") is None


def test_nothing_is_compiled_or_loaded_before_it_is_used(tmp_path: Path) -> None:
    """Importing rezero, and making a stack, starts no compiler."""
    code = "import rezero; from rezero.layers import MLPBlock; rezero.DeepStack(MLPBlock(4), 3); rezero.param_groups"
    assert start(code, XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler").communicate(timeout=120) == ("", "")
    assert list(tmp_path.iterdir()) == []
