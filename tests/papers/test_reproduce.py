"""The command that tries again what papers say."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import rezero.papers
from rezero.cli import run
from rezero.papers import command, reproduction
from rezero.papers.claims import Claim, Finding
from rezero.papers.flamingo import FLAMINGO
from rezero.papers.reproduction import Scale, Work
from rezero.papers.studies import Recipe


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """Put a quick one in the place of two; return what it is asked for."""
    monkeypatch.chdir(tmp_path)
    works: list[Work] = []

    def quick(work: Work) -> dict[str, Any]:
        works.append(work)
        return {"found": work.part("number", lambda: 7)}

    def write(_: Any, folder: Path) -> dict[str, str]:
        (folder / "picture.svg").write_text("<svg/>")
        return {"picture": "A picture."}

    size = Scale(minutes=1, seeds=3, run=quick)
    claims = (
        Claim("It is seven", "sec. 7", "7", lambda summary: Finding(f"{summary['found']} here", "holds")),
        Claim("It is larger", "sec. 8", "", lambda _: None),
    )
    lines = lambda summary: [f"found {summary['found']}"]  # noqa: E731
    made = replace(FLAMINGO, write=write, lines=lines, claims=claims, scales={"laptop": size})
    two = replace(made, name="two", scales={"laptop": size, "paper": size})
    monkeypatch.setattr(command, "REPRODUCTIONS", {"one": replace(made, name="one"), "two": two})
    monkeypatch.setattr(rezero.papers, "_NAMES", ("one", "two"))
    return works


def test_what_there_is_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """With its time, with --list or without a name."""
    assert run(["reproduce", "--list"]) == 0
    shown = capsys.readouterr().out
    assert run(["reproduce"]) == 0
    assert capsys.readouterr().out == shown
    head, *rows = shown.splitlines()
    assert head.split()[:4] == ["name", "time", "on", "two"]
    assert [line.split()[0] for line in rows] == list(rezero.papers.REPRODUCTIONS)
    assert all(line.split()[2] == "min" for line in rows)
    assert run(["reproduce", "grow", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["name", "grow"]
    assert run(["reproduce", "--list", "--scale", "paper"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        name for name, each in rezero.papers.REPRODUCTIONS.items() if "paper" in each.scales
    ]


@pytest.mark.skipif(shutil.which("sh") is None, reason="a shell")
def test_who_reads_the_list_may_have_enough() -> None:
    """Where the reader has ended first nothing is said of it."""
    shell = shutil.which("sh")
    assert shell is not None
    line = '{ "$0" -m rezero reproduce --list; echo $? >&2; } | true'
    done = subprocess.run([shell, "-c", line, sys.executable], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == "0\n"


def test_the_list_says_how_far_each_has_come(asked: list[Work], capsys: pytest.CaptureFixture[str]) -> None:
    """Not begun, begun, or done and when; results of another version are none."""
    begun = Path(f"rezero-studies/two-{FLAMINGO.version}/study/records")
    begun.parent.mkdir(parents=True)
    begun.write_text("")
    assert run(["reproduce", "one"]) == 0
    capsys.readouterr()
    assert run(["reproduce", "--list"]) == 0
    _, one, two = capsys.readouterr().out.splitlines()
    assert one.split()[3:5] == ["done", json.loads(Path("results/papers/one/summary.json").read_text())["date"][:10]]
    assert two.split()[3] == "begun"
    part = Path(f"rezero-studies/one-{FLAMINGO.version}/number.json")
    os.utime(part, (later := part.stat().st_mtime + 10, later))
    assert run(["reproduce", "one", "--list"]) == 0
    assert ", begun again  " in capsys.readouterr().out
    found = Path("results/papers/one/summary.json")
    found.write_text(found.read_text().replace('"version": 1', '"version": 0'))
    shutil.rmtree("rezero-studies")
    assert run(["reproduce", "--list"]) == 0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:]] == ["-", "-"]
    assert len(asked) == 1


def test_the_papers_size_goes_to_a_place_of_its_own(
    asked: list[Work], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the paper's size are those that have it; it does not replace the results of a laptop."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run(["reproduce", "all", "--scale", "paper"]) == 0
    assert [work.output for work in asked] == [Path("results/papers/two-paper")]
    assert asked[0].folder == Path(f"rezero-studies/two-paper-{FLAMINGO.version}")
    assert run(["reproduce", "one", "--scale", "paper"]) == 2
    assert "one has no scale 'paper', only laptop" in capsys.readouterr().err


def test_one_is_reproduced(asked: list[Work], capsys: pytest.CaptureFixture[str]) -> None:
    """Its parts are kept, its results written, and what came out is said, with the verdicts and where it lies."""
    assert run(["reproduce", "one"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("one: Alayrac et al. (2022)")
    told = ["  found 7", "It is seven: holds", "  published: 7", "  here: 7 here"]
    assert out.splitlines()[1:] == [*told, "results in results/papers/one"]
    assert sorted(file.name for file in Path("results/papers/one").iterdir()) == ["picture.svg", "summary.json"]
    assert Path(f"rezero-studies/one-{FLAMINGO.version}/number.json").read_text().splitlines()[0] == "7"
    assert asked[0].seeds == 3


def test_all_are_reproduced_with_other_seeds_elsewhere(asked: list[Work]) -> None:
    """Each in a folder of its own, which --output holds."""
    assert run(["reproduce", "all", "--seeds", "1", "-o", "out"]) == 0
    assert [work.seeds for work in asked] == [1, 1]
    assert sorted(file.parent.name for file in Path("out").glob("*/summary.json")) == ["one", "two"]
    assert run(["reproduce", "two", "-o", "alone"]) == 0
    assert Path("alone/summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tow"], "nothing is called 'tow' (did you mean 'two'?); choose from one, two, or all"),
        (["one", "--seeds", "0"], "seeds must be a whole number, 1 to 1,000: got 0"),
        (["one", "--seeds", "10000000"], "seeds must be a whole number, 1 to 1,000: got 10,000,000"),
        (["one", "--list", "--scale", "paper"], "one has no scale 'paper', only laptop"),
        (["one", "-o", "file"], "cannot write into file: it is a file, or lies in one"),
        (
            ["two", "--scale", "paper"],
            "--scale paper needs a CUDA device, torch finds none; --scale laptop takes two cores",
        ),
    ],
    ids=["name", "seeds", "too-many-seeds", "no-such-list", "file", "no-gpu"],
)
def test_bad_requests_write_nothing(
    asked: list[Work], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    Path("file").write_text("")
    assert run(["reproduce", *arguments]) == 2
    assert capsys.readouterr().err == f"rezero: {message}\n"
    assert not asked
    assert sorted(file.name for file in Path().iterdir()) == ["file"]


def test_what_can_not_be_written_is_told_before_the_work(asked: list[Work], capsys: pytest.CaptureFixture[str]) -> None:
    """A link to nowhere, a place without files, numbers whose name is taken."""
    Path("link").symlink_to("nowhere")
    Path("taken/summary.json").mkdir(parents=True)
    for output, message in (
        ("link", "cannot write into link: it is a file, or lies in one"),
        ("/proc/here", "cannot write into /proc/here: No such file or directory"),
        ("taken", "cannot write into taken: its summary.json is a folder"),
    ):
        assert run(["reproduce", "one", "-o", output]) == 2
        assert capsys.readouterr().err == f"rezero: {message}\n"
    assert not asked
    assert sorted(file.name for file in Path().iterdir()) == ["link", "taken"]


def test_a_name_of_a_result_that_is_taken_leaves_all_as_it_was(
    asked: list[Work], capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers and pictures are replaced together or not at all; the parts are kept."""
    assert run(["reproduce", "one"]) == 0
    folder = Path("results/papers/one")
    (folder / "picture.svg").unlink()
    (folder / "picture.svg").mkdir()
    before = (folder / "summary.json").read_bytes()
    capsys.readouterr()
    assert run(["reproduce", "one", "--seeds", "2"]) == 2
    assert "picture.svg is a folder there; move it away" in capsys.readouterr().err
    assert (folder / "summary.json").read_bytes() == before
    assert sorted(file.name for file in folder.iterdir()) == ["picture.svg", "summary.json"]
    assert len(asked) == 2


def test_data_that_are_missing_are_told_before_anything(
    asked: list[Work], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of one, and of the last of all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("REZERO_DATA", raising=False)
    monkeypatch.setitem(command.REPRODUCTIONS, "two", replace(command.REPRODUCTIONS["two"], data=("enwik8",)))
    for name in ("two", "all"):
        assert run(["reproduce", name]) == 2
        assert capsys.readouterr().err.startswith("rezero: two needs enwik8: no enwik8 here: looked for enwik8 or ")
    assert not asked
    assert not [*tmp_path.iterdir()]


def test_every_commit_that_worked_on_it_is_noted(asked: list[Work], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that are taken over may be of other code than the last."""
    for commit in ("old", "old", "new"):
        monkeypatch.setattr(reproduction, "provenance", lambda commit=commit: {"commit": commit, "date": "today"})
        assert run(["reproduce", "one"]) == 0
    found = json.loads(Path("results/papers/one/summary.json").read_text())
    assert (found["commit"], found["commits"]) == ("new", ["old", "new"])
    assert len(asked) == 3


def _recipes(module: ModuleType, size: str) -> list[Recipe]:
    found = getattr(module, size, ())
    return [each for each in found if isinstance(each, Recipe)] if isinstance(found, tuple) else []


@pytest.mark.parametrize("name", list(rezero.papers.REPRODUCTIONS))
def test_the_data_that_studies_name_are_said_to_be_needed(name: str) -> None:
    """Which is checked before the first of them."""
    module = import_module(f"rezero.papers.{name.replace('-', '_')}")
    recipes = [each for size in ("LAPTOP", "PAPER") for each in _recipes(module, size)]
    wanted = {"fc-cifar10": "cifar10", "resnet-cifar10": "cifar10", "lm-enwik8": "enwik8"}
    needed = {wanted[recipe.task] for recipe in recipes if recipe.task in wanted}
    needed |= {"cifar10" for recipe in recipes if str(recipe.settings.get("data", "")).startswith("cifar10")}
    assert needed <= set(rezero.papers.REPRODUCTIONS[name].data)


def test_what_is_told_again_has_its_own_date(
    asked: list[Work], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that measures nothing says so, and whose numbers it has; one that does has a date of its own."""
    summary, kept = Path("results/papers/one/summary.json"), Path("rezero-studies")
    for day in ("2026-01-01", "2026-01-02"):
        monkeypatch.setattr(reproduction, "provenance", lambda day=day: {"commit": "a", "date": f"{day} 10:00 UTC"})
        assert run(["reproduce", "one"]) == 0
        assert json.loads(summary.read_text())["date"] == "2026-01-01 10:00 UTC"
        told = capsys.readouterr().err
        assert ("one was done before: these are the numbers of 2026-01-01 10:00 UTC" in told) == (day == "2026-01-02")
    shutil.rmtree(kept)
    assert run(["reproduce", "one"]) == 0
    assert json.loads(summary.read_text())["date"] == "2026-01-02 10:00 UTC"
    assert "done before" not in capsys.readouterr().err
