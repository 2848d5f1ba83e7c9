"""The page of the evidence is made of the results that are there."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from rezero.errors import UsageError
from rezero.papers import REPRODUCTIONS
from rezero.papers.evidence import main, pages
from tests.papers.test_flamingo import made_up

ROOT = Path(__file__).parents[2]


def test_the_pages_are_those_that_the_results_make() -> None:
    """Not a number of them was written by hand: python -m rezero.papers.evidence makes them again."""
    made = pages(ROOT / "results" / "papers")
    folder = ROOT / "docs" / "evidence"
    there = {"evidence.md", *(f"evidence/{file.name}" for file in folder.iterdir())}
    assert there == made.keys()
    for path, text in made.items():
        assert (ROOT / "docs" / path).read_text(encoding="utf-8") == text, path


def test_what_was_not_run_is_said_to_be_so(tmp_path: Path) -> None:
    """Every claim is there."""
    claims = sum(len(each.claims) for each in REPRODUCTIONS.values())
    made = pages(tmp_path)
    assert list(made) == ["evidence.md"]
    assert made["evidence.md"].count("| not yet run |") == claims > 0
    assert f"Of {claims} claims 0 were measured: 0 hold, " in made["evidence.md"]
    assert "At the scale *paper* nothing was run yet." in made["evidence.md"]


def test_what_contradicts_the_paper_comes_first(tmp_path: Path) -> None:
    """On the page of a reproduction and in the table, whatever the order of its claims."""
    folder = tmp_path / "flamingo"
    folder.mkdir()
    summary = {**made_up(2), "seeds": 2, "pictures": {}, "scale": "laptop"}
    summary["found"]["gates from 0"]["accuracy at the end"] |= {"low": 0.4, "high": 0.6}
    summary["found"]["gates from 1"]["change of plain loss at the start"] |= {"low": 0.4, "high": 0.6}
    about = {**dict.fromkeys(("command", "versions", "machine", "date", "commit"), "told"), "commits": ["a", "b"]}
    about |= {"reproduces": REPRODUCTIONS["flamingo"].source, "version": REPRODUCTIONS["flamingo"].version}
    (folder / "summary.json").write_text(json.dumps({**summary, **about}))
    text = pages(tmp_path)["evidence/flamingo.md"]
    verdicts = ["**does not hold**", "**holds in part**", "**holds**"]
    assert sorted(verdicts, key=text.index) == verdicts
    assert "`told`, 2 seeds, in about 25 minutes on two cores (" in text
    assert "; commit a and b)" in text
    assert REPRODUCTIONS["flamingo"].scales["laptop"].about in text
    counts = "1 hold, 1 hold in part, 0 cannot be told, 1 do not hold"
    assert f"claims 3 were measured: {counts}." in pages(tmp_path)["evidence.md"]


def record(**told: Any) -> str:
    """Write a record of grow, of which nothing is there but what says that it is."""
    grow = REPRODUCTIONS["grow"]
    about = {"reproduces": grow.source, "scale": "laptop", "version": grow.version, "pictures": {}}
    return json.dumps({**about, **told})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        (record(version=0), "is another's: expected"),
        (record(scale="paper"), "is another's: expected"),
        (record(reproduces="a rumour"), "is another's: expected"),
        (record(), "lacks what the pages need (KeyError"),
    ],
    ids=["cut", "list", "deep", "version", "scale", "source", "empty"],
)
def test_a_record_that_is_not_right_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, said: str
) -> None:
    """With what to do, and no stack trace."""
    file = tmp_path / "results" / "papers" / "grow" / "summary.json"
    file.parent.mkdir(parents=True)
    file.write_text(damage)
    assert main(tmp_path) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "summary.json" in told
    assert "make it again with `rezero reproduce grow`" in told
    assert not (tmp_path / "docs").exists()


def test_without_results_the_pages_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether their folder is missing or empty."""
    assert main(tmp_path) == 2
    assert "is no folder of results: run this in a clone of the project" in capsys.readouterr().err
    (tmp_path / "results" / "papers").mkdir(parents=True)
    assert main(tmp_path) == 2
    assert "has no results: make some with `rezero reproduce NAME`" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


def test_pages_of_what_is_gone_are_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A place that can't be written is told in a line."""
    copytree(ROOT / "results" / "papers" / "jacobian", tmp_path / "results" / "papers" / "jacobian")
    pages_of = tmp_path / "docs" / "evidence"
    pages_of.parent.mkdir()
    pages_of.write_text("")
    assert main(tmp_path) == 2
    assert str(pages_of) in capsys.readouterr().err
    pages_of.unlink()
    pages_of.mkdir()
    (pages_of / "grow.md").write_text("old")
    assert main(tmp_path) == 0
    assert sorted(file.name for file in pages_of.glob("*.md")) == ["jacobian.md"]
    assert "the laptop's `jacobian` is of the paper's size" in (tmp_path / "docs" / "evidence.md").read_text()


def test_a_picture_that_is_missing_is_named(tmp_path: Path) -> None:
    """As a record is."""
    results = tmp_path / "papers"
    copytree(ROOT / "results" / "papers" / "jacobian", results / "jacobian")
    picture = next((results / "jacobian").glob("*.svg"))
    picture.unlink()
    with pytest.raises(UsageError, match=picture.name):
        pages(results)


def test_what_a_scale_would_take_is_told_where_it_was_not_run() -> None:
    """With the command that does it."""
    command = "Not yet run: `rezero reproduce fc --scale paper`, an estimated 240 minutes on one H200."
    made = pages(ROOT / "results" / "papers")
    assert (command in made["evidence/fc.md"]) != ("## Paper scale" in made["evidence/fc.md"])
    assert "Not yet run" not in made["evidence/jacobian.md"]


@pytest.mark.parametrize("name", list(REPRODUCTIONS))
def test_a_claim_says_who_and_what(name: str) -> None:
    """Each has a source, and goes into a row of a table."""
    for claim in REPRODUCTIONS[name].claims:
        assert claim.source
        assert "|" not in claim.says + claim.source + claim.published


def test_how_many_rates_were_tried_is_counted() -> None:
    """From the fewest that a plan has to the most that a study came to, over all that is committed."""
    summaries = [
        json.loads(file.read_text(encoding="utf-8")) for file in (ROOT / "results" / "papers").glob("*/*.json")
    ]
    plans = {summary["plan"]["tune"] for summary in summaries if "tune" in summary.get("plan", {})}
    studies = [study for each in summaries for study in each.get("studies", {}).values() if "tried" in study]
    most = max(
        len({each["lr"] for each in study["tried"] if each["arm"] == arm}) for study in studies for arm in study["arms"]
    )
    assert plans == {3, 5}
    assert f", among 3 to {most}, as the table grows" in pages(ROOT / "results" / "papers")["evidence.md"]
