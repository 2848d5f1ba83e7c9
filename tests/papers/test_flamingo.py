"""Flamingo's story in small: what it begins with, what is kept of it, and what it says."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rezero.errors import UsageError
from rezero.papers.captions import DIGITS, IGNORED, TEMPLATES, WORDS, Captions, Pictures
from rezero.papers.flamingo import ARMS, FLAMINGO, PLAN, found, run
from rezero.papers.plain_text import load_plain_text
from rezero.papers.reproduction import Scale, Work

TINY = replace(PLAN, width=16, depth=2, batch=4, reading=3, looking=3, steps=4, every=2, questions=3, plain=4)


def test_numbers_are_in_words_and_in_the_handwriting_of_their_digits() -> None:
    """Every picture is one of its label; training and unseen pictures share none."""
    pictures, unseen = Pictures.load()
    pixels, words = unseen.numbers(5, random.Random(0))
    assert pixels.shape == (5, DIGITS, 64)
    for row, text in zip(pixels, words, strict=True):
        for image, word in zip(row, text.split(), strict=True):
            places = (unseen.pixels == image).all(1).nonzero().flatten()
            assert word in {WORDS[label] for label in unseen.labels[places].tolist()}
    assert not (unseen.pixels[:, None] == pictures.pixels[None, :200]).all(-1).any()


def test_a_row_names_its_number_and_a_question_asks_for_it_alone() -> None:
    """The targets of a question are the bytes of the number and the one behind it, each told by what is before."""
    captions = Captions(64)
    inputs, targets = captions.rows(["four seven"], random.Random(0))
    assert bytes(inputs[0].tolist()).count(b"four seven") >= 1
    assert torch.equal(inputs[0, 1:], targets[0, :-1])
    inputs, targets = captions.questions(["four seven", "one two"], random.Random(1))
    for row, number in enumerate(("four seven", "one two")):
        asked = (targets[row] != IGNORED).nonzero().flatten()
        told = bytes(targets[row, asked].tolist()).decode()
        assert told[:-1] == number
        start = int(asked[0])
        before = bytes(inputs[row, : start + 1].tolist()).decode()
        assert any(each.startswith(before + "{}" + told[-1]) for each in TEMPLATES)


def test_the_story_goes_on_where_it_was_stopped_and_starts_from_the_frozen_model(tmp_path: Path) -> None:
    """Gates from 0 leave all logits, gates from 1 do not; a second run trains nothing and finds the same."""
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    first = run(work, TINY)
    assert first["found"]["gates from 0"]["unchanged at the start"]
    assert not first["found"]["gates from 1"]["unchanged at the start"]
    points = first["runs"]["gates from 0"][0]["points"]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert points[0]["plain loss"] == first["base plain loss"]
    assert points[0]["gates"] == [0.0, 0.0]
    assert all(points[-1]["gates"])
    ages = {file: file.stat().st_mtime_ns for file in work.folder.iterdir()}
    assert run(work, TINY) == first
    assert {file: file.stat().st_mtime_ns for file in work.folder.iterdir()} == ages


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    """With what to do about them, also where they can be read."""
    work = Work(tmp_path, tmp_path, 1)
    assert work.part("a", lambda: [1]) == work.part("a", dict) == [1]
    (tmp_path / "a.json").write_text("[2]")
    with pytest.raises(UsageError, match=r"a.json is damaged: .*; remove it, and it is made again"):
        work.part("a", dict)
    first, again = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    work.weights("b", first, dict)
    work.weights("b", again, dict)
    assert torch.equal(again.weight, first.weight)
    (tmp_path / "b.safetensors").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"b.safetensors is damaged: .*; remove it, and it is made again"):
        work.weights("b", torch.nn.Linear(1, 1), dict)
    with pytest.raises(ValueError, match="not JSON compliant"):
        work.part("c", lambda: float("nan"))


def test_nothing_is_taken_over_from_another_plan_or_text(tmp_path: Path) -> None:
    """Parts lie in a folder of what they depend on."""
    work = Work(tmp_path, tmp_path, 1)
    text = load_plain_text(16)
    folders = {work.of(*each).folder for each in ((TINY, text.digest()), (PLAN, text.digest()), (TINY, "other"))}
    assert len(folders) == 3
    assert work.of(TINY, load_plain_text(16).digest()).folder in folders
    assert replace(text, val=text.train).digest() != text.digest()


def made_up(seeds: int = 2) -> dict[str, Any]:
    """Return a summary of a few seeds."""
    runs: dict[str, list[Any]] = {arm: [] for arm in ARMS}
    for arm, start in ARMS.items():
        for seed in range(seeds):
            points = [
                {
                    "step": step,
                    "plain loss": 2 + start + step / 100,
                    "accuracy": step / 10 + seed / 20,
                    "gates": [start],
                }
                for step in (0, 5)
            ]
            runs[arm].append({"unchanged at the start": not start, "points": points})
    return {"base plain loss": 2.0, "runs": runs, "found": found(2.0, runs)}


def test_the_numbers_are_means_with_intervals() -> None:
    """Of the change of the plain loss in the part of it, and of the accuracy."""
    rows = made_up()["found"]
    assert rows["gates from 1"]["change of plain loss at the start"]["mean"] == pytest.approx(0.5)
    assert rows["gates from 0"]["change of plain loss at the end"]["mean"] == pytest.approx(0.025)
    accuracy = rows["gates from 0"]["accuracy at the end"]
    assert accuracy["mean"] == pytest.approx(0.525)
    assert accuracy["low"] < 0.5 < 0.55 < accuracy["high"]
    assert FLAMINGO.lines(made_up())[2].startswith("gates from 0: plain loss bitwise unchanged at the start, +2.50%")


def test_one_seed_has_no_interval_and_is_told_all_the_same() -> None:
    """Lines and claims say that it is one."""
    said = " ".join(FLAMINGO.lines(made_up(1)))
    assert "numbers read right 50.00% (one seed)" in said
    verdicts = [claim.find(made_up(1)).verdict for claim in FLAMINGO.claims]
    assert verdicts == ["holds in part", "cannot be told", "cannot be told"]


def test_it_writes_numbers_and_pictures(tmp_path: Path) -> None:
    """The same bytes each time."""
    summary = made_up()
    for folder in (tmp_path / "a", tmp_path / "b"):
        FLAMINGO.write(summary, folder)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["story.png", "story.svg"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_reproduction_writes_how_it_came_about(tmp_path: Path) -> None:
    """Command, versions, machine and date stand in the summary; a folder that is a file is refused before."""
    (tmp_path / "file").write_text("")
    quick = replace(FLAMINGO, scales={"laptop": Scale(minutes=1, seeds=1, run=lambda _: made_up())})
    with pytest.raises(UsageError, match=r"cannot write into .*file: it is a file, or lies in one"):
        quick.reproduce("laptop", Work(tmp_path / "kept", tmp_path / "file", 2))
    found = quick.reproduce("laptop", Work(tmp_path / "kept", tmp_path / "out", 2))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"command", "versions", "machine", "date", "reproduces", "seeds", "found"} <= summary.keys()
    assert json.loads(json.dumps(found)) == summary
