"""The page of the evidence is made of the results that are there."""

import json
from pathlib import Path

import pytest

from rezero.papers import REPRODUCTIONS
from rezero.papers.evidence import pages
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
    about = dict.fromkeys(("command", "versions", "machine", "date", "commit"), "told")
    (folder / "summary.json").write_text(json.dumps({**summary, **about}))
    text = pages(tmp_path)["evidence/flamingo.md"]
    verdicts = ["**does not hold**", "**holds in part**", "**holds**"]
    assert sorted(verdicts, key=text.index) == verdicts
    assert "`told`, 2 seeds, in about 25 minutes on two cores (" in text
    assert REPRODUCTIONS["flamingo"].scales["laptop"].about in text
    counts = "1 hold, 1 hold in part, 0 cannot be told, 1 do not hold"
    assert f"claims 3 were measured: {counts}." in pages(tmp_path)["evidence.md"]


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
