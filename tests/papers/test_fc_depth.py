"""Speed against depth: what is declared, drawn and concluded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rezero.papers.fc_depth import FC_DEPTH, LAPTOP, METRICS
from rezero.papers.reproduction import Work
from rezero.papers.studies import run_all

pytestmark = pytest.mark.slow

TINY = {"width": 8, "steps": 4, "measure_every": 2, "threads": 1, "tune": 2}


def test_lines_claims_and_the_picture_are_made(tmp_path: Path) -> None:
    """Of small studies of the same arms and questions."""
    small = [replace(each, task="fc-digits", settings={**each.settings, **TINY}, jobs=1) for each in LAPTOP[:2]]
    summary = {"seeds": 2, **run_all(small, Work(tmp_path, tmp_path, 2))}
    assert list(summary["studies"]) == ["8 layers", "32 layers"]
    assert 8 <= len(said := FC_DEPTH.lines(summary)) <= 14
    assert sum(": rates: plain " in line for line in said) == 2
    ours = [claim.find(summary).ours for claim in FC_DEPTH.claims]
    assert all(each.startswith("By training loss, 8 layers: ") for each in ours)
    assert all(". By validation loss, 8 layers: " in each for each in ours)
    FC_DEPTH.write(summary, tmp_path)
    assert (tmp_path / "speed.svg").stat().st_size > 1000


def study(low: float | None, high: float | None, *, missed: tuple[int, int] = (0, 0), **end: float) -> dict[str, Any]:
    """Make up a study of an arm beside ReZero: the lead of ReZero, who never got there, and where both end."""
    known = {"arm": "rezero", "baseline": "plain", "target": 1.0, "censored": list(missed)}
    known |= {"lead": {"mean": 1.0, "low": low, "high": high, "n": 5}, "lead p": 0.01}
    return {
        "arms": {
            arm: {
                "status": {"0": "finished"},
                "points": {"0": [{"step": 1, **dict.fromkeys(METRICS, end.get(arm, 1.5))}]},
            }
            for arm in ("plain", "rezero")
        },
        "tried": [{"arm": "plain", "lr": lr} for lr in (0.01, 0.1, 0.1)],
        "asked": [{"baseline": "plain", "metric": metric, "target": None, "found": [known]} for metric in METRICS],
    }


@pytest.mark.parametrize(
    ("deep", "shallow", "verdict"),
    [
        (study(1.5, 2.0), study(0.5, 1.4), "holds"),
        (study(1.3, 2.0), study(0.5, 1.4), "cannot be told"),
        (study(0.1, 0.2), study(0.5, 1.4), "does not hold"),
        (study(0.1, 0.2, rezero=0.9), study(0.5, 1.4), "cannot be told"),
        (study(1.5, 2.0), study(0.5, 1.4, rezero=0.9), "cannot be told"),
        (study(None, None), study(None, None), "cannot be told"),
        (study(100.0, 200.0, missed=(0, 5)), study(0.5, 1.4), "holds"),
        (study(-200.0, -100.0, missed=(5, 0)), study(0.5, 1.4), "cannot be told"),
        (study(0.1, 0.2, plain=2.3), study(0.5, 1.4), "holds"),
        (study(1.5, 2.0), study(0.5, 1.4, plain=2.3), "does not hold"),
        (study(1.5, 2.0, plain=2.3), study(0.5, 1.4, plain=2.3), "cannot be told"),
        (study(1.5, 2.0, rezero=2.3), study(0.5, 1.4), "cannot be told"),
    ],
    ids=[
        "apart",
        "overlap",
        "below",
        "deep-earlier-yet",
        "shallow-earlier-yet",
        "one-seed",
        "never",
        "rezero-never",
        "flat-when-deep",
        "flat-when-shallow",
        "flat",
        "rezero-flat",
    ],
)
def test_more_is_gained_where_the_intervals_lie_apart(deep: Any, shallow: Any, verdict: str) -> None:
    """Or where the other arm learns when shallow and no longer when deep; who is there at first may be faster yet."""
    found = FC_DEPTH.claims[0].find({"studies": {"8 layers": shallow, "512 layers": deep}})
    assert found is not None
    assert found.verdict == verdict


def test_an_arm_that_diverges_is_not_one_that_learns_nothing() -> None:
    """It is told which of the two it does, at the best of how many rates."""
    flat, lost = study(1.5, 2.0, plain=2.3), study(1.5, 2.0, plain=2.3)
    lost["arms"]["plain"]["status"] = {"0": "diverged"}
    found = FC_DEPTH.claims[0].find({"studies": {"8 layers": flat, "512 layers": lost}})
    assert found is not None
    assert "8 layers: learns, plain nothing; 512 layers: learns, plain diverges at its best of 2 rates" in found.ours
