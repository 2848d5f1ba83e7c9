"""All numbers of a study as one table."""

import csv
import io
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rezero.cli import run
from rezero.lab import OwnSettings, Point, Store, Study, Trial, find_task
from rezero.lab.export import Row, rows
from rezero.lab.trial import TUNING_SEEDS

HEADER = "arm,lr,seed,tuned,tuning,status,step,epoch,metric,value"
PLAIN, REZERO = Trial("plain", 0.01, 0), Trial("rezero warmup=4", 0.1 + 0.2, 0, (("alpha_lr", 1 / 3),))


def point(step: int, *, loss: float = 2.0, alphas: tuple[float, ...] = ()) -> Point:
    return Point(step, step / 12, {"seconds": 0.5, "train_loss": loss, "val_accuracy": 0.25, "val_loss": 2.5}, alphas)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with trials that finished, diverged, chose a rate and run, and one that has just begun."""
    settings = find_task("fc-digits").settings({"arms": (REZERO.arm, "plain"), "depth": 2, "epochs": 2, "seeds": 2})
    tuning = replace(PLAIN, seed=TUNING_SEEDS)
    with Store.open(tmp_path / "study", Study("fc-digits", settings, {"date": "today"})) as store:
        for trial, points, status in (
            (PLAIN, (point(12), point(24, loss=1 / 3)), "finished"),
            (REZERO, (replace(point(12, loss=math.nan, alphas=(1e-300, math.inf)), sample="text"),), "diverged"),
            (tuning, (point(12),), "finished"),
            (replace(PLAIN, seed=1), (point(12, loss=0.125),), ""),
            (replace(REZERO, seed=1), (), ""),
        ):
            store.begin(trial)
            for each in points:
                store.add(trial, each)
            if status:
                store.finish(trial, status)
    return tmp_path / "study"


def stdout_of(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> bytes:
    assert run(["export", *arguments]) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    return out


def test_every_number_is_a_row(folder: Path) -> None:
    """All numbers of all trials are there, bit for bit, by arm in the study's order, seed, step and name."""
    with Store.open(folder) as store:
        found = list(rows(store))
        expected = {
            (each.trial.arm, each.trial.seed, at.step, name): value
            for each in store.results()
            for at in each.points
            for name, value in [
                *at.metrics.items(),
                *((f"alpha_{gate}", alpha) for gate, alpha in enumerate(at.alphas)),
            ]
        }
    kept = {(row.arm, row.seed, row.step, row.metric): row.value for row in found if row.status != "running"}
    assert kept == {key: value if math.isfinite(value) else None for key, value in expected.items()}
    assert len(found) == len({(*row[:7], row.metric) for row in found}) == 6 + 8 + 4 + 4
    assert found[0] == Row(*REZERO_FACTS, "diverged", 12, 1.0, "seconds", 0.5)
    assert [row.metric for row in found[:6]] == [
        *("seconds", "train_loss", "val_accuracy", "val_loss"),
        *("alpha_0", "alpha_1"),
    ]
    assert [row.value for row in found[:6]] == [0.5, None, 0.25, 2.5, 1e-300, None]
    assert [(row.seed, row.status, row.tuning) for row in found[6::4]] == [
        *((0, "finished", False), (0, "finished", False)),
        *((1, "running", False), (TUNING_SEEDS, "finished", True)),
    ]


REZERO_FACTS = (REZERO.arm, REZERO.lr, 0, '{"alpha_lr": 0.3333333333333333}', False)


def test_csv(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The first line names the columns, numbers read back bit for bit, and one that is not finite is empty."""
    out = stdout_of(capfdbinary, str(folder))
    assert out == stdout_of(capfdbinary, str(folder), "--format", "csv")
    text = out.decode()
    lines = text.split("\n")
    assert lines[0] == HEADER == ",".join(Row._fields)
    tuned = '"{""alpha_lr"": 0.3333333333333333}"'
    assert lines[1] == f"rezero warmup=4,0.30000000000000004,0,{tuned},false,diverged,12,1.0,seconds,0.5"
    assert lines[2].endswith(",train_loss,")
    read = list(csv.DictReader(io.StringIO(text)))
    assert json.loads(read[0]["tuned"]) == dict(REZERO.tuned)
    with Store.open(folder) as store:
        assert [(float(row["lr"]), int(row["step"]), row["value"]) for row in read] == [
            (row.lr, row.step, "" if row.value is None else repr(row.value)) for row in rows(store)
        ]


def test_json(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """It is a list of objects of these columns, and a number that is not finite is null."""
    read = json.loads(stdout_of(capfdbinary, str(folder), "--format", "json"))
    with Store.open(folder) as store:
        assert [Row(**each) for each in read] == list(rows(store))
    assert read[1]["value"] is None


def test_an_empty_study_is_an_empty_table(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Before the first measurement there are columns and no rows."""
    settings = find_task("fc-digits").settings({"arms": ("plain",)})
    with Store.open(tmp_path / "study", Study("fc-digits", settings, {})):
        pass
    assert stdout_of(capfdbinary, str(tmp_path / "study")).decode() == HEADER + "\n"
    assert json.loads(stdout_of(capfdbinary, str(tmp_path / "study"), "--format", "json")) == []


def test_metrics_of_a_script(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A script's own metrics are rows where it logged them; a name that needs quotes is quoted, whatever it is."""
    settings = OwnSettings(arms=("original", "zwölf"), script="train.py", digest="", arguments=(), seeds=1, lr=1.0)
    with Store.open(tmp_path / "study", Study("train.py", settings, {})) as store:
        for trial, name in ((Trial("original", 1.0, 0), "a,b"), (Trial("zwölf", 1.0, 0), 'f1 "é"')):
            store.begin(trial, -1)
            store.add(trial, Point(0, 0.0, {"seconds": 0.0}, ()))
            store.add(trial, Point(7, 7.0, {"seconds": 0.5, name: 2.0}, ()))
            store.finish(trial, "finished")
        store.begin(replace(trial, seed=1), -1)
    out = stdout_of(capfdbinary, str(tmp_path / "study")).decode()
    assert out.splitlines()[1:] == [
        "original,1.0,0,{},false,finished,0,0.0,seconds,0.0",
        'original,1.0,0,{},false,finished,7,7.0,"a,b",2.0',
        "original,1.0,0,{},false,finished,7,7.0,seconds,0.5",
        "zwölf,1.0,0,{},false,finished,0,0.0,seconds,0.0",
        'zwölf,1.0,0,{},false,finished,7,7.0,"f1 ""é""",2.0',
        "zwölf,1.0,0,{},false,finished,7,7.0,seconds,0.5",
    ]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_is_what_stdout_is(folder: Path, capfdbinary: pytest.CaptureFixture[bytes], form: str) -> None:
    """The file has the same bytes, every time, its ending chooses the format, and the study stays as it was."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    out = stdout_of(capfdbinary, str(folder), "--format", form)
    file = folder.with_name(f"table.{form.upper()}")
    assert stdout_of(capfdbinary, str(folder), "-o", str(file)) == b""
    assert file.read_bytes() == out == stdout_of(capfdbinary, str(folder), "--format", form)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["study", file.name]


def test_a_file_is_only_replaced_with_force(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A file that is there is refused and kept; with --force it is replaced, also behind a link, which stays one."""
    file, link = folder.with_name("table.csv"), folder.with_name("link.csv")
    file.write_text("years of work")
    link.symlink_to(file)
    for path in (file, link):
        assert run(["export", str(folder), "-o", str(path)]) == 2
        message = f"rezero: {path} is there already: choose another name, or give --force to replace it\n"
        assert capfdbinary.readouterr().err.decode() == message
        assert file.read_text() == "years of work"
    assert stdout_of(capfdbinary, str(folder), "-o", str(link), "--force") == b""
    assert file.read_text().startswith(HEADER)
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["study.sqlite", "STUDY.sqlite", "study.sqlite-wal", "study.sqlite-shm", ".lock.json"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "link"])
def test_the_study_is_not_replaced_by_its_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, linked: bool
) -> None:
    """No file of the study is written over, there or not, behind a link or not, with --force either."""
    link = folder.with_name("table.csv")
    link.symlink_to(folder / name)
    path = link if linked else folder / name
    before = {each: each.read_bytes() for each in folder.iterdir()}
    for force in ([], ["--force"]):
        assert run(["export", str(folder), "--format", "csv", "-o", str(path), *force]) == 2
        err = capsys.readouterr().err
        assert err == f"rezero: {path} is a file of the study itself: choose another name\n"
    assert {each: each.read_bytes() for each in folder.iterdir()} == before


def test_a_study_behind_a_link_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where study.sqlite is a link it is the file behind it that is kept."""
    file = (folder / "study.sqlite").rename(folder.with_name("numbers.csv"))
    (folder / "study.sqlite").symlink_to(file)
    before = file.read_bytes()
    assert run(["export", str(folder), "-o", str(file), "--force"]) == 2
    assert capsys.readouterr().err == f"rezero: {file} is a file of the study itself: choose another name\n"
    assert file.read_bytes() == before


def test_damage_is_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A study that is damaged is said to be, and why, in one line that says it once."""
    with closing(sqlite3.connect(folder / "study.sqlite")) as connection, connection:
        connection.execute("UPDATE trial SET status = 'abc'")
    assert run(["export", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("is damaged") == err.count("\n") == 1


BAD: dict[str, tuple[list[str], str]] = {
    "no-study": (["EMPTY"], "expected a study in .*, found no study.sqlite"),
    "format": (["STUDY", "--format", "xml"], "--format"),
    "folder": (["STUDY", "-o", "EMPTY"], "expected a file for the numbers, got a folder"),
    "nowhere": (["STUDY", "-o", "EMPTY/a/b.csv"], "cannot write .*b.csv: No such file or directory$"),
    "parquet-stdout": (["STUDY", "--format", "parquet"], "expected --output FILE for parquet"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_exported_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """It is exit code 2 and one line, and nothing is written."""
    (empty := folder.with_name("empty")).mkdir()
    words = [each.replace("STUDY", str(folder)).replace("EMPTY", str(empty)) for each in arguments]
    assert run(["export", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err.strip()), err
    assert list(empty.iterdir()) == []


@pytest.mark.skipif(shutil.which("sh") is None or not Path("/dev/stdout").exists(), reason="a shell, pipes and devices")
@pytest.mark.parametrize("arguments", ["", "-o /dev/stdout", "-o pipe"])
def test_a_pipe_stays_one(folder: Path, arguments: str) -> None:
    """What is no regular file is written into, never replaced."""
    os.mkfifo(folder.with_name("pipe"))
    end = "& head -1 pipe; wait" if "pipe" in arguments else "| head -1"
    done = in_shell(f'"$0" -m rezero export study {arguments} {end}', folder.parent)
    assert (done.stdout, done.stderr) == (f"{HEADER}\n", "")
    assert folder.with_name("pipe").is_fifo()


MANY = """
import sys
from rezero.cli import run
from rezero.lab import export
export._csv = lambda store: "line\\n" * 10**6
sys.exit(run(["export", "study"]))
"""


@pytest.mark.skipif(shutil.which("sh") is None, reason="a shell")
def test_a_reader_that_has_had_enough_is_no_fault(folder: Path) -> None:
    """Where the reader ends first the command ends too, without a word."""
    folder.with_name("many.py").write_text(MANY)
    done = in_shell('{ "$0" many.py; echo $? >code; } | head -1', folder.parent)
    assert (done.stdout, done.stderr) == ("line\n", "")
    assert folder.with_name("code").read_text() == "0\n"


def in_shell(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    shell = shutil.which("sh")
    assert shell is not None
    return subprocess.run(
        [shell, "-c", line, sys.executable], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_parquet_without_pyarrow_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow can't be imported the line says what to install, and nothing is written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = folder.with_name("table.parquet")
    assert run(["export", str(folder), "-o", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rezero: parquet needs pyarrow (")
    assert err.endswith("): pip install 'rezero-torch[parquet]'\n")
    assert err.count("\n") == 1
    assert not file.exists()


def test_parquet(folder: Path) -> None:
    """The file reads back to the same rows, typed, with null for what is not finite."""
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    file = folder.with_name("table.parquet")
    assert run(["export", str(folder), "-o", str(file)]) == 0
    first = file.read_bytes()
    assert run(["export", str(folder), "-o", str(file), "--force"]) == 0
    assert file.read_bytes() == first
    with Store.open(folder) as store:
        assert [Row(**each) for each in parquet.read_table(file).to_pylist()] == list(rows(store))
