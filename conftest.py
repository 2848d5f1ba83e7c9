"""Runs the blocks of the README and of the documentation as tests, each page from top to bottom.

Python blocks run as they are. On the pages named in COMMANDS the console blocks run too: lines such as
``$ rezero ...`` and ``$ torchrun ...``, in one empty folder a page. They must succeed, and print what the block shows
below them, ``...`` standing for anything. Other commands (``pip``, ``make``) are left to the reader.
"""

import doctest
import os
import shlex
import subprocess
import sys
import tempfile
from typing import Any

import tests.operators  # noqa: F401 - before anything imports torchvision
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

PAGES = ["README.md", "docs/*.md", "docs/reference/*.md"]
COMMANDS = ["docs/quickstart.md", "docs/studies.md", "docs/honest.md", "docs/script.md"]
PROGRAMS = {"rezero": [sys.executable, "-m", "rezero"], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def enter_folder(namespace: dict[str, Any]) -> None:
    """Give the page an empty folder to work in."""
    namespace["_before"], namespace["_folder"] = os.getcwd(), tempfile.TemporaryDirectory()  # noqa: PTH109
    os.chdir(namespace["_folder"].name)


def leave_folder(namespace: dict[str, Any]) -> None:
    """Remove that folder."""
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


def run_commands(example: Example) -> str | None:
    """Run the commands of a console block; say what went wrong, if anything did."""
    for turn in ("\n" + example.parsed).split("\n$ ")[1:]:
        command, *shown = turn.rstrip().split("\n")
        program, *arguments = shlex.split(command, comments=True)
        if program not in PROGRAMS:
            continue
        call = [*PROGRAMS[program], *arguments]
        done = subprocess.run(call, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            return f"$ {command}\nexit code {done.returncode}\n{done.stderr}"
        expected = "\n".join(shown) + "\n"
        if shown and not doctest.OutputChecker().check_output(expected, done.stdout, FLAGS):
            return f"$ {command}\nexpected:\n{expected}\ngot:\n{done.stdout}"
    return None


only_python = Sybil([PythonCodeBlockParser(), SkipParser()], patterns=PAGES, excludes=COMMANDS)
commands_too = Sybil(
    [PythonCodeBlockParser(), CodeBlockParser("console", run_commands), SkipParser()],
    patterns=COMMANDS,
    setup=enter_folder,
    teardown=leave_folder,
)
pytest_collect_file = (only_python + commands_too).pytest()
