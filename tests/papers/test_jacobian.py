"""The Jacobians of encoders at the start, as the paper measured them."""

from pathlib import Path
from statistics import mean, stdev

import pytest

from rezero.papers.jacobian import ARMS, JACOBIAN, PUBLISHED, lines, measure, run
from rezero.papers.reproduction import Work


def test_the_published_mean_squares_are_met() -> None:
    """At 12 layers each published value lies within the spread of 10 networks, and ReZero is the closest to 1."""
    squares = {arm: [measure(arm, 12, seed)["mean_squared"] for seed in range(10)] for arm in ARMS}
    for arm, values in squares.items():
        assert mean(values) == pytest.approx(PUBLISHED[arm, 12], abs=stdev(values))
    spread = {arm: max(abs(value - 1) for value in values) for arm, values in squares.items()}
    assert min(spread, key=spread.get) == "rezero"  # type: ignore[arg-type]


def test_every_singular_value_is_there() -> None:
    """16 features at 4 positions have 64, whose mean square is the one that is told, to the digits that are kept."""
    found = measure("rezero", 2, 0)
    assert len(found["singular_values"]) == 64
    assert mean(value**2 for value in found["singular_values"]) == pytest.approx(found["mean_squared"], rel=1e-5)


def test_what_is_told_is_what_was_measured(tmp_path: Path) -> None:
    """Rows, lines, a picture and the claim are of the networks that were measured; a second run measures none."""
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    found = run(work, (12,))
    assert [row["arm"] for row in found["rows"]] == list(ARMS)
    squares = [each["mean_squared"] for each in found["networks"] if each["arm"] == "rezero"]
    assert found["rows"][2]["mean_squared"] == pytest.approx(mean(squares))
    assert lines(found)[2].startswith("mean squared singular value,   12 layers, rezero     1.0")
    JACOBIAN.write(found, tmp_path)
    assert (tmp_path / "singular_values.svg").read_text(encoding="utf-8").startswith("<svg")
    assert "rezero 1.0" in JACOBIAN.claims[0].find(found).ours
    ages = {file: file.stat().st_mtime_ns for file in work.folder.iterdir()}
    assert run(work, (12,)) == found
    assert {file: file.stat().st_mtime_ns for file in work.folder.iterdir()} == ages


def test_one_network_has_no_spread(tmp_path: Path) -> None:
    """With one seed there is no standard deviation and no interval."""
    found = run(Work(tmp_path, tmp_path, 1), (12,))
    assert [row["deviation"] for row in found["rows"]] == [None] * 3
    assert JACOBIAN.claims[0].find(found).ours.count("(one seed)") == 3
    assert "±" not in lines(found)[0]
