"""One process at a time works on a study: real processes, real locks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rezero.cli import run
from rezero.errors import UsageError
from rezero.lab.holder import hold

HOLDER = """
import sys
from pathlib import Path
from rezero.lab.holder import hold

with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that works on a study until it reads a line."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    """The error names process, host and time; once the first has ended its files are gone and the study is free."""
    with another_process(tmp_path) as process:
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
        who = re.escape(f"process {process.pid} on {socket.gethostname()} has worked on the study in {tmp_path} since ")
        with pytest.raises(UsageError, match=rf"^{who}{when}: wait for it, or stop it$"), hold(tmp_path):
            pass
        assert names(tmp_path) == [".lock", ".lock.json"]
        process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert names(tmp_path) == []
    with hold(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_study_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    """What a killed process leaves keeps nobody out, and the next one writes its own name in its place."""
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == process.pid
    with another_process(tmp_path) as second, pytest.raises(UsageError, match=f"^process {second.pid} on "):
        hold(tmp_path).__enter__()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 4194304, "since": "today"}'], ids=str)
def test_a_name_that_is_none_is_not_told(tmp_path: Path, text: str) -> None:
    """Where the file is damaged the second process is refused all the same, without a name."""
    with another_process(tmp_path):
        (tmp_path / ".lock.json").write_text(text)
        with pytest.raises(UsageError, match=f"^another process works on the study in {tmp_path}: wait for it"):
            hold(tmp_path).__enter__()


def test_a_pipe_is_no_name(tmp_path: Path) -> None:
    """Nobody waits for what it may say."""
    with another_process(tmp_path):
        (tmp_path / ".lock.json").unlink()
        os.mkfifo(tmp_path / ".lock.json")
        with pytest.raises(UsageError, match=r"^another process works on the study"):
            hold(tmp_path).__enter__()


def test_the_name_of_a_process_that_is_gone_is_not_told(tmp_path: Path) -> None:
    """A name that an earlier, killed process left is not given for that of the present one."""
    with another_process(tmp_path):
        gone = {"pid": 2**22 + 1, "host": socket.gethostname(), "since": "1970-01-01 00:00 UTC"}  # above all there are
        (tmp_path / ".lock.json").write_text(json.dumps(gone))
        with pytest.raises(UsageError, match=r"^another process works on the study"):
            hold(tmp_path).__enter__()
        (tmp_path / ".lock.json").write_text(json.dumps({**gone, "host": "elsewhere"}))
        with pytest.raises(UsageError, match=f"^process {gone['pid']} on elsewhere has worked on the study"):
            hold(tmp_path).__enter__()


def test_a_command_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second `rezero compare` ends with code 2 and one line, and leaves the study as it is."""
    study = tmp_path / "study"
    arguments = ["compare", "fc-digits", "--arms", "plain", "--depth", "2", "--epochs", "1", "--seeds", "1"]
    assert run([*arguments, "-o", str(study)]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in study.iterdir()}
    with another_process(study) as process:
        assert run([*arguments, "-o", str(study)]) == 2
        assert capsys.readouterr().err.startswith(f"rezero: process {process.pid} on ")
        process.communicate("\n", timeout=60)
    assert {path: path.read_bytes() for path in study.iterdir()} == before
