"""The command line."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest

from rezero.cli import run
from rezero.data.digits import load_digits
from rezero.data.sources import SOURCES, Source
from rezero.lab import (
    TASKS,
    OwnSettings,
    Point,
    Question,
    Settings,
    Store,
    Study,
    Trial,
    TrialResult,
    Watcher,
    find_task,
    run_study,
)
from rezero.progress import StudyProgress
from tests.forked import Forked, run_forked

MODULE = [sys.executable, "-m", "rezero"]
SCRIPT = [str(Path(sys.executable).with_name("rezero"))]
SMALL = ["--depth", "2", "--width", "8", "--epochs", "2", "--seeds", "1", "--batch-size", "500"]
TINY = ["--arms", "plain,rezero", *SMALL]
ONE = ["--arms", "plain", *SMALL]
LONG = ["--arms", "plain,rezero", "--depth", "2", "--width", "8", "--epochs", "60", "--seeds", "1"]
NAN = math.nan
TASK = find_task("fc-digits")
DATA = load_digits()


def tiny(**changes: Any) -> Study:
    """The study that the options in TINY ask for."""
    given = {"arms": ("plain", "rezero"), "depth": 2, "width": 8, "epochs": 2, "seeds": 1, "batch_size": 500}
    return Study("fc-digits", TASK.settings({**given, **changes}), {}, DATA.name)


def call(
    command: list[str], *arguments: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes, None for a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def numbers(folder: Path) -> list[Any]:
    """All results of a study but the times."""
    with Store.open(folder) as store:
        return [
            (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
            for r in store.results()
        ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty, in a terminal of no width of its own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("COLUMNS", raising=False)
    return folder


# Requests that cannot be carried out: the arguments, and what the one line says. Names in capitals are places that
# `furnish` makes. The first ones are those of the issue, point 3.
ISSUE: dict[str, tuple[list[str], str]] = {
    "unknown-task": (
        ["compare", "fc-digit"],
        r"no task is called 'fc-digit' \(did you mean 'fc-digits'\?\); choose from",
    ),
    "task-and-script": (
        ["compare", "fc-digits", "--script", "FILE"],
        "expected a task or --script, not both: got fc-digits",
    ),
    "unknown-arm": (["compare", "fc-digits", "--arms", "rezro"], r"called 'rezro' \(did you mean 'rezero'\?\); choose"),
    "unknown-value": (
        ["compare", "fc-digits", "--device", "tpu9"],
        r"device must be one that .* \(cpu.*\): got 'tpu9'",
    ),
    "no-arms": (["compare", "fc-digits", "--arms", ""], r"expected at least one arm, got ''; choose from plain"),
    "tune-text": (["compare", "fc-digits", "--tune", "yes"], r"tune must be off, or the number of rates .*: got 'yes'"),
    "tune-1": (["compare", "fc-digits", "--tune", "1"], r"tune must be off, or .*, 2 or more: got 1"),
    "tuned-and-given": (
        ["compare", "fc-digits", "--tune", "3", "--arms", "plain,rezero lr=0.1"],
        r"lr is tuned: leave it out of the arm 'rezero lr=0.1', or give --tune off",
    ),
    "arm-setting": (
        ["compare", "fc-digits", "--arms", "rezero momentum=0.9"],
        r"no arm .* called 'rezero momentum=0.9'.*; settings of an arm are lr, alpha-lr, warmup, weight-decay",
    ),
    "arm-number": (["compare", "fc-digits", "--arms", "rezero warmup=few"], r"warmup of an arm must be a whole number"),
    "baseline": (
        ["compare", "fc-digits", "--baseline", "skipinit"],
        r"baseline must be an arm of the study, plain, residual, post-norm, pre-norm, rezero: got 'skipinit'",
    ),
    "metric": (["compare", "fc-digits", "--metric", "f1"], r"metric must be val_accuracy, train_loss, val_loss: got"),
    "resolve": (["compare", "fc-digits", "--resolve", "-1"], r"resolve must be a finite number above 0"),
    "target": (["compare", "fc-digits", "--target", "nan"], r"target must be a finite number"),
    "jobs-0": (["compare", "fc-digits", "--jobs", "0"], r"jobs must be 1 or more: got 0"),
    "depth-0": (["compare", "fc-digits", "--depth", "0"], r"depth must be a whole number, 1 or more: got 0"),
    "width-negative": (["compare", "fc-digits", "--width", "-3"], r"width must be a whole number, 1 or more: got -3"),
    "seeds-0": (["compare", "fc-digits", "--seeds", "0"], r"seeds must be a whole number, 1 or more: got 0"),
    "lr-negative": (["compare", "fc-digits", "--lr", "-0.1"], r"lr must be a finite number above 0: got -0\.1"),
    "epochs-text": (["compare", "fc-digits", "--epochs", "many"], r"--epochs: .*whole number.*\"many\""),
    "output-not-writable": (
        ["compare", "fc-digits", "--output", "/proc/study"],
        r"cannot write to the output folder /proc",
    ),
    "output-below-file": (
        ["compare", "fc-digits", "--output", "FILE/study"],
        r"cannot write to the output folder .*FILE",
    ),
    "output-other-study": (
        ["compare", "fc-digits", *TINY, "--output", "STUDY"],
        r"STUDY holds another study \(depth 3 there, 2 asked\): choose another folder with --output",
    ),
}
MORE: dict[str, tuple[list[str], str]] = {
    "no-task": (["compare"], r"expected a task, such as fc-digits, or --script"),
    "unknown-command": (["train"], r'Unknown command "train"'),
    "unknown-option": (["compare", "fc-digits", "--momentum", "1"], r"Unknown option: .?--momentum"),
    "option-without-value": (["compare", "fc-digits", "--depth"], r"--depth requires an argument"),
    "two-tasks": (
        ["compare", "fc-digits", "fc-digits"],
        r"only a script takes fc-digits: got it for the task fc-digits",
    ),
    "arms-commas": (["compare", "fc-digits", "--arms", ","], r"expected at least one arm, got ','"),
    "arm-twice": (["compare", "fc-digits", "--arms", "plain,plain"], r"expected each arm once, got 'plain' 2 times"),
    "arm-undefined": (["compare", "fc-digits", "--arms", "fixup"], r"no arm of this task is called 'fixup'"),
    "depth-half": (
        ["compare", "fc-digits", "--depth", "2.5", "--epochs", "1", "--seeds", "1"],
        r"--depth: .*whole number.*\"2\.5\"",
    ),
    "depth-text": (["compare", "fc-digits", "--depth", "two"], r"--depth: .*whole number.*\"two\""),
    "epochs-half": (
        ["compare", "fc-digits", "--epochs", "1.5", "--depth", "1", "--width", "8"],
        r"--epochs: .*whole number.*\"1\.5\"",
    ),
    "epochs-0": (["compare", "fc-digits", "--epochs", "0"], r"epochs must be a whole number, 1 or more: got 0"),
    "steps-0": (["compare", "fc-digits", "--steps", "0"], r"steps must be a whole number, 1 or more: got 0"),
    "epochs-and-steps": (["compare", "fc-digits", "--epochs", "1", "--steps", "1"], r"once, as epochs or as steps"),
    "batch-size-0": (["compare", "fc-digits", "--batch-size", "0"], r"batch-size must be a whole number.*: got 0"),
    "lr-text": (["compare", "fc-digits", "--lr", "fast"], r"--lr: .*\"fast\""),
    "lr-0": (["compare", "fc-digits", "--lr", "0"], r"lr must be a finite number above 0: got 0\.0"),
    "lr-nan": (["compare", "fc-digits", "--lr", "nan"], r"lr must be a finite number above 0: got nan"),
    "lr-inf": (["compare", "fc-digits", "--lr", "inf"], r"lr must be a finite number above 0: got inf"),
    "threads-0": (["compare", "fc-digits", "--threads", "0"], r"threads must be a whole number, 1 or more: got 0"),
    "threads-many": (["compare", "fc-digits", "--threads", "100000"], r"threads must be at most .*: got 100000"),
    "device-meta": (["compare", "fc-digits", *TINY, "--device", "meta"], r"device must be .*: got 'meta'"),
    "device-hpu": (["compare", "fc-digits", *TINY, "--device", "hpu"], r"device must be .*: got 'hpu'"),
    "output-file": (["compare", "fc-digits", "--output", "FILE"], r"expected a folder for the study, got a file: FILE"),
    "output-full": (["compare", "fc-digits", "--output", "FULL"], r"expected an empty or new folder.*FULL holds other"),
    "output-garbage": (
        ["compare", "fc-digits", "-o", "GARBAGE"],
        r"GARBAGE.study\.sqlite is not a study, or is damaged",
    ),
    "warmup-negative": (
        ["compare", "fc-digits", "--warmup", "-1"],
        r"warmup must be a whole number of steps, 0 or more: got -1",
    ),
    "warmup-half": (["compare", "fc-digits", "--warmup", "1.5"], r"--warmup: .*whole number.*\"1\.5\""),
    "warmup-whole-run": (
        ["compare", "fc-digits", *TINY, "--warmup", "6"],
        r"warmup must be shorter than the run of 6 steps: got 6",
    ),
    "clip-0": (["compare", "fc-digits", "--clip", "0"], r"clip must be a finite number above 0: got 0\.0"),
    "clip-nan": (["compare", "fc-digits", "--clip", "nan"], r"clip must be a finite number above 0: got nan"),
    "alpha-lr-0": (["compare", "fc-digits", "--alpha-lr", "0"], r"alpha-lr must be a finite number above 0: got 0\.0"),
    "precision-fp8": (["compare", "fc-digits", "--precision", "fp8"], r"precision must be float32 or bf16: got 'fp8'"),
    "accumulate-0": (["compare", "fc-digits", "--accumulate", "0"], r"accumulate must be a whole number.*: got 0"),
    "accumulate-many": (
        ["compare", "fc-digits", "--accumulate", "9", "--batch-size", "8"],
        r"batch-size must be at least processes times accumulate, 9, .*: got 8",
    ),
    "measure-every-0": (["compare", "fc-digits", "--measure-every", "0"], r"measure-every must be .*1 or more: got 0"),
    "optimizer-nonsense": (
        ["compare", "fc-digits", "--optimizer", "nonsense"],
        r"no optimizer is called 'nonsense'; choose from .*Adagrad",
    ),
    "optimizer-near": (
        ["compare", "fc-digits", "--optimizer", "AdamV"],
        r"no optimizer is called 'AdamV' \(did you mean 'Adam",
    ),
    "optimizer-option": (
        ["compare", "fc-digits", "--optimizer", "SGD momentum=much"],
        r"optimizer 'SGD momentum=much': ",
    ),
    "optimizer-lr": (
        ["compare", "fc-digits", "--optimizer", "SGD lr=1"],
        r"the learning rate has an option of its own, --lr",
    ),
    "schedule-nonsense": (
        ["compare", "fc-digits", "--schedule", "nonsense"],
        r"no schedule is called 'nonsense'; choose from .*StepLR",
    ),
    "schedule-incomplete": (["compare", "fc-digits", "--schedule", "StepLR"], r"schedule 'StepLR': .*step_size"),
    "heads-of-digits": (
        ["compare", "fc-digits", "--heads", "2"],
        r"fc-digits has no option heads: leave --heads out",
    ),
    "context-of-digits": (["compare", "fc-digits", "--context", "8"], r"fc-digits has no option context"),
    "data-of-digits": (["compare", "fc-digits", "--data", "FILE"], r"fc-digits has no option data"),
    "data-of-enwik8": (["compare", "lm-enwik8", "--data", "FILE"], r"lm-enwik8 has no option data"),
    "width-and-heads": (
        ["compare", "lm-text", "--data", "TEXT", "--width", "10", "--heads", "4"],
        r"width must be a multiple of heads: got 10 and 4",
    ),
    "heads-odd": (
        ["compare", "lm-text", "--data", "TEXT", "--width", "6", "--heads", "2", "--context", "8"],
        r"even width.*3",
    ),
    "data-absent": (["compare", "lm-text", "--data", "nowhere.txt"], r"nowhere\.txt is not there: expected a file"),
    "data-empty": (["compare", "lm-text", "--data", "EMPTY"], r"EMPTY is empty: expected text"),
    "data-short": (
        ["compare", "lm-text", "--data", "FILE"],
        r"FILE has \d+ bytes, one window of context 128 needs 129",
    ),
    "data-folder": (["compare", "lm-text", "--data", "FULL"], r"FULL has no text: expected files that end in \.txt"),
    "resnet-arm": (["compare", "resnet-cifar10", "--arms", "deepnorm"], r"no arm of this task is called 'deepnorm'"),
    "checkpoint-every-0": (["compare", "fc-digits", "--checkpoint-every", "0"], r"--checkpoint-every.* 0"),
    "checkpoint-every-negative": (["compare", "fc-digits", "--checkpoint-every", "-1"], r"--checkpoint-every.* 0"),
    "newer-schema": (
        ["compare", "fc-digits", *TINY, "-o", "NEWER"],
        r"NEWER was written by a newer version of rezero: expected schema 4, got 99; update rezero",
    ),
    "report-newer-schema": (["report", "NEWER"], r"NEWER was written by a newer version of rezero"),
    "download-nothing": (["download"], r"requires an argument"),
    "report-nothing": (["report"], r"requires an argument"),
    "report-absent": (["report", "nowhere"], r"expected a study in nowhere, found no study\.sqlite"),
    "report-file": (["report", "FILE"], r"expected a study in FILE, found no study\.sqlite"),
    "report-full": (["report", "FULL"], r"expected a study in FULL, found no study\.sqlite"),
    "report-garbage": (["report", "GARBAGE"], r"GARBAGE.study\.sqlite is not a study, or is damaged"),
    "report-cut": (["report", "CUT"], r"CUT.study\.sqlite is not a study, or is damaged"),
    "compare-cut": (["compare", "fc-digits", *TINY, "-o", "CUT"], r"CUT.study\.sqlite is not a study, or is damaged"),
    "report-blocked": (["report", "BLOCKED"], r"BLOCKED"),
    "report-of-a-file": (
        ["report", "BLOCKED/study.sqlite"],
        r"expected a study in BLOCKED.study\.sqlite, found no study\.sqlite; give its folder, BLOCKED",
    ),
    "report-empty": (["report", ""], r'expected a path, got ""'),
    "output-empty": (["compare", "fc-digits", "--output", ""], r'--output: expected a path, got ""'),
    "data-no-path": (["compare", "lm-text", "--data", ""], r'--data: expected a path, got ""'),
    "data-pipe": (["compare", "lm-text", "--data", "PIPE"], r"PIPE is neither a file nor a folder: expected a file"),
    "data-device": (["compare", "lm-text", "--data", "/dev/zero"], r"zero is neither a file nor a folder"),
    "study-emptied": (
        ["compare", "fc-digits", *TINY, "-o", "EMPTIED"],
        r"expected an empty or new folder, .*EMPTIED holds other files beside an empty study\.sqlite",
    ),
    "warmup-by-default": (
        ["compare", "lm-text", "--data", "TEXT", "--context", "8", "--steps", "20"],
        r"warmup must be shorter than the run of 20 steps: got 100, the default of lm-text; give --warmup",
    ),
    "width-beyond-memory": (
        ["compare", "fc-digits", "--arms", "rezero", "--depth", "2", "--width", "1000000"],
        r"cpu has not the memory for depth 2, width 1000000 and batch-size 128: make them smaller",
    ),
    "last-batch": (
        ["compare", "fc-digits", "--depth", "2", "--width", "8", "--batch-size", "1499", "--accumulate", "2"],
        r"the last batch of an epoch has 1 examples for 2 parts .*: choose another batch-size",
    ),
    "schedule-fails-at-once": (
        ["compare", "fc-digits", *TINY, "--schedule", "CosineAnnealingLR T_max=0"],
        r"schedule 'CosineAnnealingLR T_max=0': .*zero",
    ),
    "schedule-fails-on-the-way": (
        ["compare", "fc-digits", *TINY, "--optimizer", "SGD momentum=0.9", "--schedule", "ConstantLR factor=0"],
        r"schedule 'ConstantLR factor=0': .*zero",
    ),
    "optimizer-fails": (
        ["compare", "fc-digits", *TINY, "--optimizer", "Adam differentiable=true"],
        r"optimizer 'Adam differentiable=true': ",
    ),
    "optimizer-boolean": (
        ["compare", "fc-digits", "--optimizer", "Adam amsgrad=abc"],
        r"amsgrad must be true or false, got 'abc'",
    ),
}


def stop_after_step(place: Path, arm: str, last: int) -> None:
    """Run the study that TINY asks for until a trial's checkpoint at a step is there, as Ctrl-C would leave it."""
    watcher = create_autospec(Watcher, instance=True)

    def step(number: int) -> None:
        if watcher.begin.call_args.args[0].arm == arm and number > last:
            raise KeyboardInterrupt

    watcher.step.side_effect = step
    with pytest.raises(KeyboardInterrupt), Store.open(place, tiny()) as store:
        run_study(store, TASK, DATA, watcher, checkpoint_every=1e-9)


def furnish(root: Path, wanted: list[str]) -> None:
    """Make the places that arguments name in capitals."""
    for name in {re.split(r"\W", argument)[0] for argument in wanted if argument[:1].isupper()}:
        place = root / name
        if name in ("FILE", "EMPTY", "TEXT"):
            place.write_text({"FILE": "text", "EMPTY": "", "TEXT": "some words of text " * 100}[name])
            continue
        if name == "PIPE":
            os.mkfifo(place)
            continue
        place.mkdir()
        if name == "FULL":
            (place / "thesis.tex").write_text("years of work")
        elif name == "GARBAGE":
            (place / "study.sqlite").write_bytes(b"no database\n" * 100)
        elif name == "STUDY":
            with Store.open(place, tiny(depth=3)):
                pass
        elif name == "NEWER":
            with Store.open(place, tiny()):
                pass
            with closing(sqlite3.connect(place / "study.sqlite")) as connection, connection:
                connection.execute("UPDATE study SET value = '99' WHERE key = 'schema'")
        else:
            with Store.open(place, tiny()) as store:
                run_study(store, TASK, DATA, create_autospec(Watcher, instance=True))
        if name == "CUT":  # as a full disk or a broken copy leaves it
            whole = (place / "study.sqlite").read_bytes()
            (place / "study.sqlite").write_bytes(whole[: len(whole) // 2])
        if name == "BLOCKED":
            (place / "report.html").mkdir()
        if name == "EMPTIED":
            (place / "study.sqlite").write_bytes(b"")
            (place / "report.html").write_text("results")


@pytest.mark.parametrize(("arguments", "message"), [*ISSUE.values(), *MORE.values()], ids=[*ISSUE, *MORE])
def test_bad_input_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """What cannot be carried out is one line that names the fault, exit code 2, and not a byte written."""
    furnish(here, arguments)
    before = tree(here)
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("rezero: ")
    assert re.search(message, line), line
    if "BLOCKED" not in arguments:  # a report may be half written where its place is taken
        assert tree(here) == before


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.parametrize(("arguments", "message"), ISSUE.values(), ids=ISSUE)
def test_bad_input_of_a_real_process(here: Path, arguments: list[str], message: str) -> None:
    """python -m rezero says the same: one line on stderr, no traceback, exit code 2, nothing written."""
    furnish(here, arguments)
    before = tree(here)
    done = run_forked([*MODULE, *arguments], cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"rezero: .*{message}.*\n", done.stderr), done.stderr
    assert tree(here) == before


def test_console_script_is_the_module(here: Path) -> None:
    """The command rezero and python -m rezero are one program."""
    for arguments in (["--version"], ["compare", "fc-digits", "--epochs", "many"], ["train"]):
        script, module = (call(command, *arguments, cwd=here) for command in (SCRIPT, MODULE))
        assert (script.returncode, script.stdout, script.stderr) == (module.returncode, module.stdout, module.stderr)
    assert tree(here) == {}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["compare", "--help"], ["report", "--help"], []],
    ids=["help", "version", "compare-help", "report-help", "nothing"],
)
def test_help_does_not_wait_for_torch(here: Path, arguments: list[str]) -> None:
    """Help and version exit with 0 and load neither torch nor any of the large packages of the lab."""
    done = call([sys.executable, "-X", "importtime", "-m", "rezero"], *arguments, cwd=here)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) == len(done.stderr.splitlines())
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "rezero" in loaded
    assert not loaded & {
        "torch",
        "numpy",
        "accelerate",
        "altair",
        "vl_convert",
        "sklearn",
        "scipy",
        "jinja2",
        "safetensors",
    }
    if arguments == ["--version"]:
        assert done.stdout == f"{version('rezero-torch')}\n"
    else:
        assert "Usage: rezero" in done.stdout
    assert tree(here) == {}


def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["compare", "--help"]) == 0
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_help_lists_the_tasks_and_arms_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The tasks and arms in the help are those of the registry, no more and no fewer."""
    text = help_text(capsys)
    (tasks,) = re.findall(r"TASK is one of (.*?) Options that are left out", text)
    assert re.findall(r"• ([\w-]+): \w", tasks) == [*TASKS]
    (arms,) = re.findall(r"separated by commas: ([^.]*)\.", text)
    assert {*arms.split(", ")} == {arm for task in TASKS.values() for arm in task.arms}
    assert len(arms.split(", ")) == len({*arms.split(", ")})


def test_help_has_an_option_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting has an option, but the processes, which torchrun has; beside them only what decides no number."""
    assert run(["compare", "--help"]) == 0
    options = set(re.findall(r"^│ \*? *(?:TASK )?--([a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    decides_nothing = {"output", "checkpoint-every", "jobs", "on", "retry", "log-with", *vars(Question())}
    every = [*fields(Settings), *fields(OwnSettings)]
    settings = {field.name.replace("_", "-") for field in every} - {"processes", "digest", "arguments"}
    assert options == settings | decides_nothing


def test_a_tuned_study_and_its_questions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table names the rates that were chosen, and the report can be asked something else and keeps that."""
    arguments = " ".join(["compare", "fc-digits", *TINY, "--tune", "2", "-o", "study"])
    arguments = arguments.replace("--seeds 1", "--seeds 2")
    assert run(arguments.split()) == 0
    out = capsys.readouterr().out
    assert re.search(r"^plain +lr [\d.e-]+ ", out, re.M)
    assert "rezero against plain, 2 paired seeds" in out
    assert run(["report", "study", "--baseline", "rezero", "--target", "12.5", "--resolve", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "plain against rezero, 2 paired seeds" in out
    assert "Both were at validation accuracy 12.5 % when they were first measured" in " ".join(out.split())
    assert run(["report", "study"]) == 0
    assert capsys.readouterr().out == out
    page = (here / "study" / "report.html").read_text(encoding="utf-8")
    assert "<dt>baseline</dt><dd>rezero</dd>" in page
    assert "<dt>target</dt><dd>0.125</dd>" in page
    assert run(["report", "study", "--metric", "train_loss"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "They were chosen by validation accuracy. plain against rezero, 2 paired seeds" in out
    assert "To training loss" in out
    assert "12.5 %" not in out  # a target of the other metric
    page = (here / "study" / "report.html").read_text(encoding="utf-8")
    assert "<dt>metric</dt><dd>train_loss</dd>" in page
    before = tree(here)
    assert run(["report", "study", "--metric", "f1"]) == 2
    assert "metric must be val_accuracy, train_loss, val_loss: got 'f1'" in capsys.readouterr().err
    assert run(["report", "study", "--goal", "max"]) == 2
    assert "goal is for metrics of one's own, of a task's it is known" in capsys.readouterr().err
    assert run(["report", "study", "--metric", "val_accuracy", "--target", "101"]) == 2
    assert "target must be in percent, from 0 to 100: got 101" in capsys.readouterr().err
    assert run(["report", "study", "--baseline", "skipinit"]) == 2
    assert "baseline must be an arm of the study, plain, rezero: got 'skipinit'" in capsys.readouterr().err
    assert tree(here) == before


@pytest.mark.parametrize(
    ("command", "argument"), [("compare", "task"), ("report", "folder"), ("download", "name")], ids=str
)
def test_what_has_a_place_is_no_option(capsys: pytest.CaptureFixture[str], command: str, argument: str) -> None:
    """The one argument that each command needs is given by its place, and is not offered as an option too."""
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert argument.upper() in text
    assert f"--{argument}" not in text
    assert run([command, f"--{argument}", "x"]) == 2
    assert "--" in capsys.readouterr().err


def test_help_says_whose_the_defaults_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Every group of options whose defaults differ between tasks says so."""
    text = help_text(capsys)
    for title in ("The network", "How long", "How it learns", "Where it runs"):
        assert f"{title} By default the task's own. --" in text
    assert "Number of paired seeds; by default the task's own, 5 for a script." in text


@pytest.mark.parametrize("set_to", [None, "", "elsewhere"], ids=["unset", "empty", "without-them"])
@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("fc-cifar10", "cifar10"),
        ("resnet-cifar10", "cifar10"),
        ("lm-enwik8", "enwik8"),
        ("lm-text", "tinyshakespeare"),
    ],
)
def test_missing_data_name_their_command(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    name: str,
    set_to: str | None,
) -> None:
    """Where a task's data are neither in REZERO_DATA nor in the cache one line says what to run to get them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.delenv("REZERO_DATA", raising=False)
    if set_to is not None:
        monkeypatch.setenv("REZERO_DATA", set_to and str(here / set_to))
    (here / "elsewhere").mkdir()
    assert run(["compare", task, "--threads", "1"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert re.search(rf"^rezero: no {name} here: .*; get it with `rezero download {name}`", line), line
    assert [*tree(here)] == ["elsewhere"]


def test_a_data_folder_that_is_none_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """REZERO_DATA that names no folder is an error of its own, not a reason to look elsewhere."""
    monkeypatch.setenv("REZERO_DATA", str(here / "nowhere"))
    assert run(["compare", "fc-cifar10", "--threads", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rezero: REZERO_DATA must name a folder .*, got '.*nowhere': .*", line), line
    assert tree(here) == {}


def test_data_are_loaded_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials of a study share one load of the data."""
    load = Mock(side_effect=TASK.load)
    monkeypatch.setitem(TASKS, "fc-digits", replace(TASK, load=load))
    assert run(["compare", "fc-digits", *TINY, "-o", "study"]) == 0
    assert len(numbers(here / "study")) == 2
    load.assert_called_once()


def test_a_checkpoint_says_where_it_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study that was stopped says what is there and from which step it goes on, and ends as if it had not been."""
    stop_after_step(here / "stopped", "rezero", 4)
    assert run(["compare", "fc-digits", *TINY, "-o", "stopped"]) == 0
    told, begun, ended = capsys.readouterr().err.splitlines()
    assert told == "1 of 2 trials are in stopped already"
    assert begun == "rezero  seed 0  goes on from step 4"
    assert ended.startswith("rezero  seed 0  6 steps  training loss ")
    assert run(["compare", "fc-digits", *TINY, "-o", "undisturbed"]) == 0
    assert numbers(here / "stopped") == numbers(here / "undisturbed")


def test_a_damaged_checkpoint_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that was cut is one line and exit code 2; nothing is lost, and what the line advises mends it."""
    assert run(["compare", "fc-digits", *TINY, "-o", "undisturbed"]) == 0
    stop_after_step(here / "study", "rezero", 4)
    kept = numbers(here / "study")
    (tensors,) = (here / "study").glob("checkpoints/*/step-*/tensors.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    checkpoints = tree(here / "study" / "checkpoints")
    capsys.readouterr()
    assert run(["compare", "fc-digits", *TINY, "-o", "study"]) == 2
    out, err = capsys.readouterr()
    told, *_, line = err.splitlines()
    assert (out, told) == ("", "1 of 2 trials are in study already")
    assert re.match(r"rezero: study.checkpoints.rezero-lr0\.01-seed0.step-000000004.tensors\.safetensors .*trunc", line)
    assert "Traceback" not in err
    assert numbers(here / "study") == kept
    assert tree(here / "study" / "checkpoints") == checkpoints
    assert not (here / "study" / "report.html").exists()

    (folder,) = re.findall(r"delete (\S+) to start this trial again$", line)
    shutil.rmtree(folder)
    assert run(["compare", "fc-digits", *TINY, "-o", "study"]) == 0
    assert "goes on" not in capsys.readouterr().err
    assert numbers(here / "study") == numbers(here / "undisturbed")


def test_a_study_of_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A language model on a text of one's own is compared in bits a byte, and the page shows what it writes."""
    (here / "my text.txt").write_text("to be or not to be, that is the question. " * 100)
    sizes = "--depth 1 --width 16 --heads 2 --context 16 --steps 4 --warmup 1 --measure-every 2 --threads 1"
    options = [*sizes.split(), "--arms", "pre-norm,rezero", "--data", "my text.txt", "-o", "study"]
    assert run(["compare", "lm-text", *options]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert re.findall(r"\w+ loss \(.*?\)", head) == ["training loss (bits a byte)", "validation loss (bits a byte)"]
    for arm, line, row in zip(("pre-norm", "rezero"), err.splitlines(), rows, strict=False):
        losses = re.fullmatch(
            rf"{arm} +seed 0 +4 steps +training loss +(\S+) bits a byte +validation loss +(\S+) bits a byte +\d+\.\d s",
            line,
        )
        assert losses is not None, line
        assert [arm, *losses.groups()] == row.split()[:3]  # the table's own numbers
    page = (here / "study" / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"^<pre>", page, re.MULTILINE)) == 2
    with Store.open(here / "study") as store:
        assert store.study.data.startswith("my text.txt")
        assert [[point.step for point in result.points] for result in store.results()] == [[2, 4], [2, 4]]


@pytest.fixture
def served(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """A text on a server of this machine, and an empty cache."""
    content = b"all the world's a stage. " * 1000

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.delenv("REZERO_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/input.txt"
        checksum = f"sha256:{sha256(content).hexdigest()}"
        source = Source("tinyshakespeare", url, {"tinyshakespeare/input.txt": checksum})
        monkeypatch.setitem(SOURCES, "tinyshakespeare", source)
        monkeypatch.setattr("rezero.data.text.TINY_SHAKESPEARE", source)
        yield source
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("served")
def test_what_is_downloaded_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """rezero download puts a data set where compare looks for it, says where, and the second time fetches nothing."""
    path = here / "cache" / "rezero" / "tinyshakespeare" / "input.txt"
    for _ in range(2):
        assert run(["download", "tinyshakespeare"]) == 0
        assert capsys.readouterr().out == f"tinyshakespeare: {path}\n"
        assert path.stat().st_size == 25_000
    sizes = "--depth 1 --width 8 --heads 2 --context 16 --steps 2 --warmup 0 --threads 1 --arms rezero"
    assert run(["compare", "lm-text", *sizes.split(), "-o", "study"]) == 0
    with Store.open(here / "study") as store:
        assert store.study.data == "tinyshakespeare"


@pytest.mark.parametrize("fault", ["other-bytes", "no-server"])
def test_a_download_that_fails_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, served: Source, fault: str
) -> None:
    """Where the address cannot be reached or gives other bytes the last line says so, and no data set is there."""
    changes: dict[str, Any] = {
        "other-bytes": {"files": {"tinyshakespeare/input.txt": f"sha256:{'0' * 64}"}},
        "no-server": {"url": "http://127.0.0.1:9/input.txt"},  # the discard port
    }[fault]
    monkeypatch.setitem(SOURCES, "tinyshakespeare", replace(served, **changes))
    assert run(["download", "tinyshakespeare"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = {"other-bytes": r"gave something else", "no-server": r"could not fetch"}[fault]
    assert re.search(rf"^rezero: .*{said}.*by hand", err.splitlines()[-1]), err
    assert "Traceback" not in err
    assert [path for path in here.rglob("*") if path.is_file()] == []


# A program that runs the command line as if a package were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

missing, find_spec = sys.argv.pop(1), PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if f"{name}.".startswith(f"{missing}.") else find_spec(name, path, target)

PathFinder.find_spec = find_others
from rezero.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "package", ["accelerate", "cyclopts", "rich", "altair", "vl_convert", "jinja2", "psutil", "sklearn"]
)
def test_a_missing_extra_is_one_line(here: Path, package: str) -> None:
    """Without a package of the lab extra a study is refused in one line that says what to install."""
    done = call([sys.executable, "-c", WITHOUT, package], "compare", "fc-digits", *TINY, cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"rezero: .*{package}.*pip install 'rezero-torch\[lab\]'\n", done.stderr), done.stderr
    assert tree(here) == {}


# A program that runs the command line as a user whom the system does not know, and who has no home.
HOMELESS = """
import os, pwd

def unknown(number):
    raise KeyError(number)

for name in ("HOME", "XDG_CACHE_HOME", "REZERO_DATA"):
    os.environ.pop(name, None)
pwd.getpwuid = unknown
from rezero.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_user_without_a_home_can_compare(here: Path) -> None:
    """Where there is no home folder a study whose data need none runs, and one that needs it says what to set."""
    done = call([sys.executable, "-c", HOMELESS], "compare", "fc-digits", *ONE, "-o", "study", cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "study" / "report.html").stat().st_size > 0
    for arguments in (["compare", "fc-cifar10", "--threads", "1"], ["download", "tinyshakespeare"]):
        done = call([sys.executable, "-c", HOMELESS], *arguments, cwd=here)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.search(r"^rezero: there is no home .*: set XDG_CACHE_HOME .* REZERO_DATA .*$", done.stderr, re.M)
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="closes descriptors in a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"], ids=["output", "errors", "all"])
def test_a_closed_stream_is_no_fault(here: Path, closed: str) -> None:
    """A study runs to its report where standard streams are closed, and what would go there goes nowhere else."""
    command = f"{shlex.join([*MODULE, 'compare', 'fc-digits', *ONE, '-o', 'study'])} {closed}"
    done = call(["sh", "-c", command], cwd=here)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert [status for _, status, _ in numbers(here / "study")] == ["finished"]
    assert (here / "study" / "report.html").stat().st_size > 0


PROCESSES: dict[str, tuple[dict[str, str], str]] = {
    "rank-alone": ({"RANK": "1"}, ""),
    "rank-of-one": ({"RANK": "abc", "WORLD_SIZE": "1"}, ""),
    "size-alone": ({"WORLD_SIZE": "2"}, r"got no RANK and .*: start the processes with torchrun, or unset WORLD_SIZE"),
    "size-text": ({"WORLD_SIZE": "abc"}, r"got no RANK .*unset WORLD_SIZE"),
    "local-rank-alone": ({"LOCAL_RANK": "1"}, r"got no WORLD_SIZE .*unset LOCAL_RANK"),
    "rank-too-large": (
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        r"a RANK from 0 and below WORLD_SIZE, got WORLD_SIZE=2, RANK=2",
    ),
}


@pytest.mark.parametrize(("environment", "message"), PROCESSES.values(), ids=PROCESSES)
def test_half_of_torchruns_variables_are_told(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    """A lone RANK means nothing; other variables of torchrun without the rest are one line, and nothing is written."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = run(["compare", "fc-digits", *ONE, "-o", "study"])
    out, err = capsys.readouterr()
    if not message:
        assert code == 0
        assert len(numbers(here / "study")) == 1
        return
    (line,) = err.splitlines()
    assert (code, out) == (2, "")
    assert re.search(rf"^rezero: expected .*{message}", line), line
    assert tree(here) == {}


def test_another_missing_module_is_not_hidden(here: Path) -> None:
    """A module that is missing through a fault of ours is a traceback, not a hint to install something."""
    done = call([sys.executable, "-c", WITHOUT, "rezero.errors"], "--help", cwd=here)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


def test_compare_tells_progress_and_results_apart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress is on stderr, a line a trial; the table, the verdict and the report's place are on stdout."""
    assert run(["compare", "fc-digits", *TINY, "--output", "study"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"plain +seed 0 +6 steps +training loss +\d\.\d+ nats +validation accuracy +\d+\.\d % +\d+\.\d s\n"
        r"rezero +seed 0 +6 steps +training loss +\d\.\d+ nats +validation accuracy +\d+\.\d % +\d+\.\d s\n",
        err,
    ), err
    head, *lines = out.splitlines()
    assert head.split("  ")[0] == "arm"
    assert [line.split()[0] for line in lines[:2]] == ["plain", "rezero"]
    verdict = (here / "study" / "verdict.txt").read_text(encoding="utf-8")
    assert "".join(verdict.split()) in "".join(out.split())
    assert lines[-1] == f"report: {Path('study', 'report.html')}"
    assert (here / "study" / "report.html").stat().st_size > 0

    assert run(["compare", "fc-digits", *TINY, "--output", "study"]) == 0
    again = capsys.readouterr()
    assert again.out == out
    assert again.err == "2 of 2 trials are in study already\n"

    assert run(["report", "study"]) == 0
    assert capsys.readouterr() == (out, "")


def test_default_folder_follows_the_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal options share a folder under rezero-studies, in any order and with defaults spelt out; others do not."""

    def folder(*options: str) -> str:
        assert run(["compare", "fc-digits", *options]) == 0
        return re.findall(r"report: (.*)\n", capsys.readouterr().out)[0]

    first = folder(*TINY)
    assert re.fullmatch(r"rezero-studies/fc-digits-[0-9a-f]{8}/report\.html", first)
    turned = [part for i in range(len(TINY) - 2, -1, -2) for part in TINY[i : i + 2]]
    assert folder(*turned, "--lr", "1e-2", "--device", "cpu", "--threads", "1") == first
    assert [path.name for path in (here / "rezero-studies").iterdir()] == [Path(first).parent.name]
    assert folder(*TINY, "--lr", "0.02") != first
    assert len([*(here / "rezero-studies").iterdir()]) == 2


def test_options_reach_the_study(here: Path) -> None:
    """Every option of the command line arrives in the study's settings."""
    options = (
        "--arms pre-norm --depth 3 --width 7 --steps 2 --batch-size 50 --lr 0.125 --seeds 1 --device cpu --threads 1 "
        "--alpha-lr 0.25 --warmup 1 --clip 0.5 --precision bf16 --accumulate 2 --measure-every 1 "
        "--optimizer 'SGD momentum=0.9' --schedule 'StepLR step_size=1' --checkpoint-every 5"
    )
    assert run(["compare", "fc-digits", *shlex.split(options), "--output", "study"]) == 0
    with Store.open(here / "study") as store:
        assert store.study.settings == Settings(
            arms=("pre-norm",),
            depth=3,
            width=7,
            epochs=None,
            steps=2,
            batch_size=50,
            accumulate=2,
            lr=0.125,
            alpha_lr=0.25,
            optimizer="SGD momentum=0.9",
            schedule="StepLR step_size=1",
            warmup=1,
            clip=0.5,
            precision="bf16",
            measure_every=1,
            seeds=1,
            device="cpu",
            threads=1,
        )
        (result,) = store.results()
    assert [(point.step, point.epoch) for point in result.points] == [(1, 1 / 30), (2, 2 / 30)]


@pytest.mark.parametrize("name", ["<b>&", "[/b]", "[red]x", "a 'é"], ids=str)
def test_odd_folder_names(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """A folder's name is shown as it is, when a study is made and when it goes on."""
    for _ in range(2):
        assert run(["compare", "fc-digits", *ONE, "--output", name]) == 0
    out, err = capsys.readouterr()
    assert err.endswith(f"1 of 1 trials are in {name} already\n")
    assert out.endswith(f"report: {Path(name, 'report.html')}\n")


def test_progress_lines_are_not_broken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal a trial has one line, however long, and so has the folder."""
    place = here / ("long-name-" * 12)
    study = tiny(arms=("post-norm", "layerscale"))
    with Store.open(place, study) as store:
        point = Point(
            120_000, 100.0, {"seconds": 1234.5, "train_loss": 1.234e-5, "val_accuracy": 1.0, "val_loss": 1.0}, ()
        )
        trials = [Trial(arm, 0.01, 0) for arm in study.settings.arms]
        with StudyProgress(store) as progress:
            for trial in trials:
                progress.begin(trial, 120_000, 0)
                progress.step(120_000)
                progress.point(point)
                progress.finish(TrialResult(trial, "finished", (point,)))
        assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["post-norm", "layerscale"]
        store.begin(trials[0])
        store.add(trials[0], point)
        store.finish(trials[0], "finished")
        with StudyProgress(store):
            pass
    assert capsys.readouterr().err == f"1 of 2 trials are in {place} already\n"


def test_trials_that_run_are_told_of_now_and_then(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stderr is no terminal a long trial has a line a minute: one alone its steps, several their share."""
    clock = iter((0.0, 59.0, 61.0, 62.0, 130.0))
    monkeypatch.setattr("rezero.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Store.open(here / "study", tiny(arms=("plain",), seeds=2)) as store, StudyProgress(store) as progress:
        progress.begin(Trial("plain", 0.01, 0), 2000, 0)
        for step in (10, 1010, 1020):
            progress.step(step)
        progress.several(2, 0.51)
    assert capsys.readouterr().err == "plain  seed 0  step 1,010 of 2,000, 1 min\n0.5 of 2 trials, 2 running, 2 min\n"


@pytest.mark.parametrize(
    ("task", "train_loss", "val_loss", "shown", "ended"),
    [
        ("fc-digits", 0.5, 0.7, "loss 0.500 nats", "training loss +0.500 nats +validation accuracy +75.0 %"),
        ("fc-digits", 0.5, NAN, "loss diverged", "training loss +diverged +validation accuracy +none"),
        (
            "lm-text",
            0.5,
            0.7,
            "loss 0.721 bits a byte",
            "training loss 0.721 bits a byte +validation loss 1.010 ",
        ),
        ("lm-text", 0.5, math.inf, "loss diverged", "training loss +diverged +validation loss +none "),
        ("lm-text", NAN, 0.7, "loss diverged", "training loss +diverged +validation loss +none "),
    ],
    ids=["nats", "validation-diverged", "bits", "bits-validation-diverged", "bits-training-diverged"],
)
def test_progress_shows_what_the_table_shows(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    train_loss: float,
    val_loss: float,
    shown: str,
    ended: str,
) -> None:
    """The bar and the line of a trial are in the task's unit, and a trial diverged if either of its losses did."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # a bar is drawn for a terminal only
    monkeypatch.setenv("COLUMNS", "200")
    accuracy = 0.75 if math.isfinite(val_loss) else NAN
    point = Point(6, 2.0, {"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": accuracy, "seconds": 1}, ())
    trial = Trial("plain", 0.01, 0)
    with Store.open(here / "study", replace(tiny(), task=task)) as store:
        with StudyProgress(store) as progress:
            progress.begin(trial, 6, 0)
            progress.point(point)
        assert shown in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
        with StudyProgress(store) as progress:
            progress.finish(TrialResult(trial, "diverged" if point.diverged else "finished", (point,)))
    assert re.search(rf"plain +seed 0  6 steps  {ended}", capsys.readouterr().err)


def test_report_names_its_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows the command as a shell takes it, in text that is escaped."""
    name = "<b>& 'x'"
    monkeypatch.setattr(sys, "argv", ["/somewhere/rezero", "compare", "fc-digits", *ONE, "--output", name])
    assert run(sys.argv[1:]) == 0
    text = (here / name / "report.html").read_text(encoding="utf-8")
    assert "<dd>rezero compare fc-digits --arms plain --depth 2" in text
    assert "<b>&" not in text
    assert "--output &#39;&lt;b&gt;&amp; " in text
    with Store.open(here / name) as store:
        facts = store.study.provenance
    assert shlex.split(facts["command"]) == ["rezero", "compare", "fc-digits", *ONE, "--output", name]
    assert version("rezero-torch") in facts["versions"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", facts["date"])
    assert facts["machine"]
    assert TASK.recipe.items() <= facts.items()


def stop_in_second_trial(folder: Path, stop: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str, str]:
    """Start a study as a user would and stop its process when its second trial has points of its own."""

    def ready() -> bool:
        if not (folder / "study.sqlite").exists():
            return False
        query = "SELECT status, count(step) FROM trial LEFT JOIN metric ON trial = id GROUP BY id ORDER BY id"
        try:
            with closing(sqlite3.connect(f"file:{folder / 'study.sqlite'}?mode=ro", uri=True)) as connection:
                rows = connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # the tables are not there yet
            return False
        assert len(rows) < 2 or rows[1][0] == "running", "the second trial ended before it could be stopped"
        return len(rows) == 2 and rows[1][1] > 0

    process = Forked(
        [*MODULE, "compare", "fc-digits", *LONG, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        stop(process)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def states(folder: Path) -> list[tuple[str, str, int]]:
    query = "SELECT arm, status, count(DISTINCT step) FROM trial LEFT JOIN metric ON trial = id GROUP BY id ORDER BY id"
    with closing(sqlite3.connect(folder / "study.sqlite")) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The numbers of the long study, run in this process without a stop."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Store.open(folder, tiny(epochs=60, batch_size=128)) as store:
        run_study(store, TASK, DATA, create_autospec(Watcher, instance=True))
    return numbers(folder)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_killed_study_goes_on_to_the_same_numbers(tmp_path: Path, undisturbed: list[Any]) -> None:
    """After kill -9 in a trial the same command ends with the numbers of a study that was never disturbed."""
    folder = tmp_path / "study"
    code, out, _ = stop_in_second_trial(folder, subprocess.Popen.kill)
    assert (code, out) == (-signal.SIGKILL, "")
    (first, second) = states(folder)
    assert first == ("plain", "finished", 60)
    assert second[:2] == ("rezero", "running")
    assert 0 < second[2] < 60
    kept = numbers(folder)

    done = run_forked([*MODULE, "compare", "fc-digits", *LONG, "--output", str(folder)], cwd=tmp_path)
    assert done.returncode == 0
    told, trial = done.stderr.splitlines()
    assert told.startswith("1 of 2 trials are in ")
    assert trial.startswith("rezero  seed 0  720 steps")
    assert numbers(folder)[:1] == kept
    assert numbers(folder) == undisturbed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<dd>rezero compare fc-digits {' '.join(LONG)} --output {folder}</dd>" in page
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert [(trial["arm"], trial["status"]) for trial in summary["results"]] == [
        ("plain", "finished"),
        ("rezero", "finished"),
    ]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, undisturbed: list[Any]) -> None:
    """Ctrl-C ends with code 130 and one line that says how to go on; the trial that had finished is kept."""
    folder = tmp_path / "study"
    code, out, err = stop_in_second_trial(folder, lambda process: process.send_signal(signal.SIGINT))
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert [(arm, status) for arm, status, _ in states(folder)] == [("plain", "finished"), ("rezero", "running")]
    assert numbers(folder) == undisturbed[:1]
    trial, *rest = [line for line in err.splitlines() if line]
    assert trial.startswith("plain   seed 0  720 steps")
    assert rest == ["rezero: stopped; what is done is kept, and the same command goes on from there"]


def test_ctrl_c_before_anything_runs(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is code 130 and one line also where it comes before the first trial."""
    monkeypatch.setattr("rezero.lab.sweep.run_study", Mock(side_effect=KeyboardInterrupt))
    assert run(["compare", "fc-digits", *TINY]) == 130
    assert capsys.readouterr().err == (
        "rezero: stopped; what is done is kept, and the same command goes on from there\n"
    )


def test_ctrl_c_ends_one_of_several_processes_at_once(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of a group says its line and ends without waiting for others; its study is closed by then."""
    group = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("rezero.lab.sweep.run_study", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(os, "_exit", Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        run(["compare", "fc-digits", *TINY, "-o", "study"])
    os._exit.assert_called_once_with(130)
    assert [*tree(here / "study")] == ["study.sqlite"]
    assert capsys.readouterr().err.startswith("rezero: stopped; what is done is kept")
