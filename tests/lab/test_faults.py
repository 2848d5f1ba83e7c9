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


def on_a_disk(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    """Run lines of a shell that may mount; ``rezero`` is the command line."""
    if not namespaces():
        pytest.skip("no file systems may be mounted here")
    rezero = f'rezero() {{ "{sys.executable}" -m rezero "$@"; }}\n'
    return subprocess.run(
        [*namespaces(), "sh", "-c", rezero + script],
        cwd=folder,
        env={**os.environ, "COMMAND": " ".join(COMMAND), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def numbers(folder: Path) -> list[Any]:
    """All results of a study but the times."""
    with Store.open(folder) as store:
        return [
            (r.trial, r.status, [(p.step, p.epoch, {**p.metrics, "seconds": 0}, p.alphas) for p in r.points])
            for r in store.results()
        ]


FULL = """
mkdir disk && mount -t tmpfs -o size=8m tmpfs disk
head -c $((8 * 1024 * 1024 - ROOM * 1024)) /dev/zero >disk/filler
rezero $COMMAND -o disk/study; echo "code $?"
rm disk/filler
cp -r disk/study study
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    assert run([*COMMAND, "-o", str(folder)]) == 0
    return numbers(folder)


@pytest.mark.parametrize("room", [0, 20, 60, 120, 300], ids=["nothing", "log", "tables", "points", "report"])
def test_a_full_disk_is_one_line_and_the_study_goes_on(tmp_path: Path, undisturbed: list[Any], room: int) -> None:
    """However little room (KiB) there is, one line says so; with more, the same command ends as if nothing had been."""
    done = on_a_disk(tmp_path, f"ROOM={room}\n{FULL}")
    assert done.stdout.splitlines()[-1] == "code 2", done.stderr
    first = [line for line in done.stderr.splitlines() if line.startswith("rezero: ")]
    assert len(first) == 1, done.stderr
    assert re.match(r"rezero: cannot write .*(full|disk I/O error|No space left on device)", first[0]), first
    assert "Traceback" not in done.stderr
    assert run([*COMMAND, "-o", str(tmp_path / "study")]) == 0
    assert numbers(tmp_path / "study") == undisturbed
    assert not [each.name for each in (tmp_path / "study").iterdir() if each.name.startswith(".")]


READ_ONLY = """
mkdir disk && mount -t tmpfs -o size=8m tmpfs disk && cp -r study disk/study && mount -o remount,ro disk
for words in "$COMMAND -o disk/study" "$COMMAND -o disk/other" "report disk/study" "export disk/study"; do
    rezero $words; echo "code $?"
done
ls -A disk disk/study
"""


def test_a_disk_that_may_only_be_read_is_refused(tmp_path: Path) -> None:
    """A study there is refused in one line by every command, and a new one too."""
    assert run([*COMMAND, "-o", str(tmp_path / "study")]) == 0
    done = on_a_disk(tmp_path, READ_ONLY)
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 2"] * 4
    lines = done.stderr.splitlines()
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
