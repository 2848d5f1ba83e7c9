"""Speed against depth: what is declared, drawn and concluded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rezero.papers.fc_depth import FC_DEPTH, LAPTOP, _above
from rezero.papers.reproduction import Work
from rezero.papers.studies import run_all

pytestmark = pytest.mark.slow

TINY = {"width": 8, "steps": 4, "measure_every": 2, "threads": 1, "tune": 2}


def test_lines_claims_and_the_picture_are_made(tmp_path: Path) -> None:
    """Of small studies of the same arms and questions."""
    small = [replace(each, task="fc-digits", settings={**each.settings, **TINY}, jobs=1) for each in LAPTOP[:2]]
    summary = {"seeds": 2, **run_all(small, Work(tmp_path, tmp_path, 2))}
    assert list(summary["studies"]) == ["8 layers", "32 layers"]
    assert len(FC_DEPTH.lines(summary)) == 6
    assert [claim.find(summary).ours.partition(":")[0] for claim in FC_DEPTH.claims] == [
        f"times as fast as {arm}" for arm in ("plain", "residual", "pre-norm")
    ]
    FC_DEPTH.write(summary, tmp_path)
    assert (tmp_path / "speed.svg").stat().st_size > 1000


def lead(low: float | None, high: float | None, ours: int = 0, theirs: int = 0) -> dict[str, Any]:
    return {"lead": {"mean": 1.0, "low": low, "high": high}, "censored": [ours, theirs]}


@pytest.mark.parametrize(
    ("deep", "shallow", "above"),
    [
        (lead(1.5, 2.0), lead(0.5, 1.4), True),
        (lead(1.3, 2.0), lead(0.5, 1.4), False),
        (lead(None, None), lead(None, None), False),
        (lead(100.0, 200.0, theirs=5), lead(0.5, 1.4), True),
        (lead(-200.0, -100.0, ours=5), lead(0.5, 1.4), False),
        (lead(1.5, 2.0), lead(100.0, 200.0, theirs=5), False),
    ],
    ids=["apart", "overlap", "one-seed", "never", "rezero-never", "never-when-shallow"],
)
def test_more_is_gained_where_the_intervals_lie_apart(deep: Any, shallow: Any, above: bool) -> None:
    """Or where the other arm gets there when shallow and no longer when deep."""
    assert _above(deep, shallow) is above
