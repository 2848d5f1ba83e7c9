"""The Jacobians of encoders at the start, as the paper measured them."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from rezero.papers.isometry import ARMS, PUBLISHED, measure, write


def test_the_published_mean_squares_are_met() -> None:
    """At 12 layers each published value lies within the spread of 10 networks, and ReZero is the closest to 1."""
    found = list(measure((12,)))
    squares = {arm: [each.mean_squared for each in found if each.arm == arm] for arm in ARMS}
    for arm, values in squares.items():
        assert len(values) == 10
        assert mean(values) == pytest.approx(PUBLISHED[arm, 12], abs=stdev(values))
    spread = {arm: max(abs(value - 1) for value in values) for arm, values in squares.items()}
    assert min(spread, key=spread.get) == "rezero"  # type: ignore[arg-type]


def test_every_singular_value_is_there() -> None:
    """16 features at 4 positions have 64, whose mean square is the one that is told."""
    for each in measure((2,), range(2)):
        assert each.singular_values.shape == (64,)
        assert float(each.singular_values.square().mean()) == pytest.approx(each.mean_squared)


def test_what_is_written_is_what_was_measured(tmp_path: Path) -> None:
    """Numbers with how they came about, and a picture."""
    found = list(measure((2,), range(2)))
    write(found, tmp_path, {"command": "this test"})
    held = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert held["command"] == "this test"
    assert [row["arm"] for row in held["rows"]] == list(ARMS)
    assert held["rows"][2]["mean_squared"] == pytest.approx(mean(each.mean_squared for each in found[4:]))
    assert (tmp_path / "singular_values.svg").read_text(encoding="utf-8").startswith("<svg")
