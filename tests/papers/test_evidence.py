"""The page of the evidence is made of the results that are there."""

from pathlib import Path

import pytest

from rezero.papers import REPRODUCTIONS
from rezero.papers.evidence import page

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_one_that_the_results_make() -> None:
    """Not a number of it was written by hand: python -m rezero.papers.evidence makes it again."""
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == page(ROOT / "results" / "papers")


def test_what_was_not_run_is_said_to_be_so(tmp_path: Path) -> None:
    """Every claim is there, at each of its scales."""
    claims = sum(len(each.scales) * len(each.claims) for each in REPRODUCTIONS.values())
    assert page(tmp_path).count("not yet run at") == claims > 0


@pytest.mark.parametrize("name", list(REPRODUCTIONS))
def test_a_claim_says_who_and_what(name: str) -> None:
    """Each has a source, and goes into a row of a table."""
    for claim in REPRODUCTIONS[name].claims:
        assert claim.source
        assert "|" not in claim.says + claim.source + claim.published
