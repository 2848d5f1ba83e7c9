"""Studies on disks and clocks that fail: real file systems, real processes."""

import os
import re
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from rezero.cli import run
from rezero.data.digits import load_digits
from rezero.lab import Settings, Store, Study, Watcher, find_task, run_study

pytestmark = pytest.mark.slow

TASK = find_task("fc-digits")
OPTIONS = {"arms": "plain,rezero", "depth": 2, "width": 8, "epochs": 4, "seeds": 1, "batch-size": 500}
COMMAND = ["compare", "fc-digits", *(word for name, value in OPTIONS.items() for word in (f"--{name}", str(value)))]
GIVEN = {name.replace("-", "_"): value for name, value in OPTIONS.items()} | {"arms": ("plain", "rezero")}


@cache
def namespaces() -> list[str]:
    """The command that lets a process mount file systems of its own; nothing where that is not allowed."""
    command = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
    try:
        probe = [*command, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        done = subprocess.run(probe, capture_output=True, timeout=60, check=False)
    except OSError:
        return []
    return command if done.returncode == 0 else []


# Carries out lines of a shell that may mount; those that begin with "rezero" in forks, so that it is imported once.
SHELL = """
import gc, os, runpy, subprocess, sys
import altair, scipy.stats, sklearn.datasets, vl_convert
import rezero.cli, rezero.comparing, rezero.lab.one

gc.freeze()
for line in sys.argv[1].splitlines():
    program, *words = line.split()
    if program != "rezero":
        subprocess.run(line, shell=True, check=True)
    elif child := os.fork():
        print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.argv = [program, *words]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    print("-", file=sys.stderr, flush=True)
"""


def on_a_disk(folder: Path, lines: str) -> "subprocess.CompletedProcess[str]":
    """Run lines of a shell that may mount; ``rezero`` is the command line."""
    if not namespaces():
        pytest.skip("no file systems may be mounted here")
    return subprocess.run(
        [*namespaces(), sys.executable, "-c", SHELL, lines.strip()],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )


def numbers(folder: Path) -> list[Any]:
    """All results of a study but the times."""
    with Store.open(folder) as store:
        return [
            (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
            for r in store.results()
        ]


ROOMS = {"nothing": 0, "log": 20, "tables": 60, "points": 120, "report": 300}  # KiB that are left
FULL = """
mkdir NAME && mount -t tmpfs -o size=8m tmpfs NAME
head -c $((8 * 1024 * 1024 - ROOM * 1024)) /dev/zero >NAME/filler
rezero COMMAND -o NAME/study
rm NAME/filler && cp -r NAME/study study-NAME
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[str, list[str]]]]:
    """A folder with a study that had each of the rooms; the codes of the commands and what they printed."""
    folder, command = tmp_path_factory.mktemp("full"), " ".join(COMMAND)
    lines = [
        FULL.replace("NAME", name).replace("ROOM", str(room)).replace("COMMAND", command).strip()
        for name, room in ROOMS.items()
    ]
    done = on_a_disk(folder, "\n".join(lines))
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    printed = [each.splitlines() for each in done.stderr.split("-\n")[2::4]]
    return folder, dict(zip(ROOMS, zip(codes, printed, strict=True), strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    assert run([*COMMAND, "-o", str(folder)]) == 0
    return numbers(folder)


@pytest.mark.xdist_group("full-disk")
@pytest.mark.parametrize("room", ROOMS)
def test_a_full_disk_is_one_line_and_the_study_goes_on(
    stopped: tuple[Path, dict[str, tuple[str, list[str]]]], undisturbed: list[Any], room: str
) -> None:
    """However little room there is, one line says so; with more, the same command ends as if nothing had been."""
    folder, ends = stopped
    code, printed = ends[room]
    assert code == "code 2", printed
    first = [line for line in printed if line.startswith("rezero: ")]
    assert len(first) == 1, printed
    assert re.match(r"rezero: cannot write .*(full|disk I/O error|No space left on device)", first[0]), first
    assert "Traceback" not in "".join(printed)
    study = folder / f"study-{room}"
    assert run([*COMMAND, "-o", str(study)]) == 0
    assert numbers(study) == undisturbed
    assert not [each.name for each in study.iterdir() if each.name.startswith(".")]


READ_ONLY = """
mkdir disk && mount -t tmpfs -o size=8m tmpfs disk && cp -r study disk/study && mount -o remount,ro disk
rezero COMMAND -o disk/study
rezero COMMAND -o disk/other
rezero report disk/study
rezero export disk/study
ls -A disk disk/study
"""


def test_a_disk_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    """A study there is refused in one line by every command, and a new one too."""
    assert run([*COMMAND, "-o", str(tmp_path / "study")]) == 0
    done = on_a_disk(tmp_path, READ_ONLY.replace("COMMAND", " ".join(COMMAND)))
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 2"] * 4
    lines = [line for line in done.stderr.splitlines() if line != "-"]
    assert len(lines) == 4, done.stderr
    assert all(line.startswith("rezero: cannot write to the output folder disk/") for line in lines)
    assert "other" not in done.stdout.split()
    assert {*done.stdout.split()} >= {each.name for each in (tmp_path / "study").iterdir()}


def study(date: str) -> Study:
    settings = TASK.settings(GIVEN)
    assert isinstance(settings, Settings)
    return Study("fc-digits", settings, {"command": "rezero", "date": date}, "digits")


def test_a_clock_that_runs_backwards_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: list[Any]
) -> None:
    """Where each look at the clock shows an hour less, a study that was stopped once comes to the same numbers."""
    data, watcher = load_digits(), create_autospec(Watcher, instance=True)
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: next(hours) * 3600.0)
    stopped = create_autospec(Watcher, instance=True)
    stopped.step.side_effect = [*[None] * 5, KeyboardInterrupt]
    with pytest.raises(KeyboardInterrupt), Store.open(tmp_path / "study", study("Tuesday")) as store:
        run_study(store, TASK, data, stopped, checkpoint_every=1e-9)
    with Store.open(tmp_path / "study", study("Monday")) as store:
        run_study(store, TASK, data, watcher, checkpoint_every=1e-9)
        assert all(point.metrics["seconds"] > 0 for result in store.results() for point in result.points)
    resumed = [call.args[2] for call in watcher.begin.call_args_list]
    assert 0 < max(resumed) < 12
    assert numbers(tmp_path / "study") == undisturbed


def test_the_clock_decides_only_the_date(tmp_path: Path) -> None:
    """Two studies that were made on different days differ in their date and in nothing else."""
    for date in ("1999-12-31 23:59 UTC", "2026-11-29 10:03 UTC"):
        with Store.open(tmp_path / date[:4], study(date)):
            pass
    tables = []
    for year in ("1999", "2026"):
        with Store.open(tmp_path / year) as store:
            lines = list(store._connection.iterdump())
            tables.append([line for line in lines if "'date'" not in line])
            assert len(lines) == len(tables[-1]) + 1
    assert tables[0] == tables[1]
