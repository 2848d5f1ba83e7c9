"""The gates over depth and time, read from studies and put into numbers."""

import json
from pathlib import Path

import pytest
import torch

from rezero.diagnose import AlphaHistory
from rezero.papers.alphas import ALPHAS, describe, read, run
from rezero.papers.reproduction import Work
from rezero.papers.studies import Recipe


def history(alphas: torch.Tensor) -> AlphaHistory:
    steps, gates = alphas.shape
    return AlphaHistory(tuple(map(str, range(gates))), torch.arange(1, steps + 1) * 10, alphas.double())


def test_the_description_of_the_paper_is_recognised() -> None:
    """Deep gates that rise first and then fall have a rise of -1, and all are fallen."""
    time, depth = torch.arange(20.0)[:, None], torch.arange(6.0)
    peaks = 14 - 2 * depth  # the deepest first
    found = describe(history(-torch.exp(-(((time - peaks) / 3) ** 2))))
    assert found["rise"] == pytest.approx(-1)
    assert found["early"] == pytest.approx(1)
    assert found["fallen"] == 1
    assert found["largest"] == pytest.approx(1)
    assert found["first"] > found["last"]


def test_its_opposite_too() -> None:
    """Gates that grow to the end, the shallow ones sooner."""
    time, depth = torch.arange(1.0, 21)[:, None], torch.arange(6.0)
    found = describe(history(time ** (0.2 + 0.2 * depth)))
    assert found["rise"] == pytest.approx(1)
    assert found["fallen"] == 0


def test_gates_that_do_not_move_have_no_order() -> None:
    """And no correlation that is not a number."""
    found = describe(history(torch.ones(5, 4)))
    assert (found["early"], found["rise"], found["fallen"]) == (0, 0, 0)


def test_studies_are_read_with_their_signs(tmp_path: Path) -> None:
    """One history a seed, the numbers that the study holds, and pictures; a second run trains nothing."""
    settings = {"arms": "rezero", "depth": 4, "epochs": 2, "threads": 1}
    recipes = [Recipe(name, "fc-digits", settings, (), jobs=1) for name in ("Transformer of 4", "MLP of 4")]
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    summary = run(recipes, work)
    assert json.loads(json.dumps(summary)) == summary
    study = summary["studies"]["MLP of 4"]
    held = read(recipes[1].folder(work))
    assert [*study["alphas"]] == ["0", "1"]
    assert torch.tensor(study["alphas"]["0"]).shape == held[0].alphas.shape == (2, 4)
    torch.testing.assert_close(torch.tensor(study["alphas"]["1"]).double(), held[1].alphas, rtol=1e-3, atol=0)
    assert min(min(row) for rows in study["alphas"].values() for row in rows) < 0
    assert study["mean"]["largest"] == pytest.approx(
        (study["seeds"]["0"]["largest"] + study["seeds"]["1"]["largest"]) / 2
    )
    assert run(recipes, work) == summary
    pictures = ALPHAS.write(summary, tmp_path / "drawn")
    assert {f"{name}.svg" for name in pictures} <= {each.name for each in (tmp_path / "drawn").iterdir()}
    assert len(pictures) == len(ALPHAS.lines(summary)) + 2 == 4
    assert all("Transformer of 4: " in claim.find(summary).ours for claim in ALPHAS.claims)


def test_the_claims_are_about_transformers() -> None:
    """Deep gates first means a negative correlation, and most of them fallen."""
    means = {"Transformer of 2": {"rise": -0.5, "fallen": 0.2}, "MLP": {"rise": 0.5, "fallen": 0.9}}
    summary = {"studies": {name: {"mean": mean} for name, mean in means.items()}}
    assert [claim.find(summary).verdict for claim in ALPHAS.claims] == ["holds", "does not hold"]
