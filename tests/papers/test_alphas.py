"""The gates over depth and time, read from studies and put into numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rezero.diagnose import AlphaHistory
from rezero.papers.alphas import ALPHAS, describe, read, run
from rezero.papers.reproduction import Work
from rezero.papers.studies import Recipe

NAMES = ("Transformer of 4", "MLP of 4", "Transformer of 4, first steps")


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
    assert (found["early"], found["rise"], found["fallen"], found["small"]) == (0, 0, 0, 0)


def test_studies_are_read_with_their_signs(tmp_path: Path) -> None:
    """One history a seed, the numbers that the study holds, and pictures; a second run trains nothing."""
    settings = {"arms": "rezero", "depth": 4, "epochs": 2, "threads": 1}
    recipes = [Recipe(name, "fc-digits", settings, (), jobs=1) for name in NAMES]
    work = Work(tmp_path / "kept", tmp_path / "out", 2)
    summary = run(recipes, work)
    assert json.loads(json.dumps(summary)) == summary
    study = summary["studies"]["MLP of 4"]
    held = read(recipes[1].folder(work))
    assert [*study["alphas"]] == ["0", "1"]
    assert torch.tensor(study["alphas"]["0"]).shape == held[0].alphas.shape == (2, 4)
    torch.testing.assert_close(torch.tensor(study["alphas"]["1"]).double(), held[1].alphas, rtol=1e-3, atol=0)
    assert min(min(row) for rows in study["alphas"].values() for row in rows) < 0
    assert run(recipes, work) == summary
    pictures = ALPHAS.write(summary, tmp_path / "drawn")
    assert {f"{name}.svg" for name in pictures} <= {each.name for each in (tmp_path / "drawn").iterdir()}
    assert len(pictures) == 2 * len(ALPHAS.lines(summary)) == 6
    rise, fall = (claim.find(summary) for claim in ALPHAS.claims)
    assert rise is not None
    assert "Transformer of 4, first steps: " in rise.ours
    assert fall is not None
    assert "Transformer of 4: " in fall.ours


def test_the_claims_are_about_transformers() -> None:
    """Deep gates first means a negative correlation, falling that nine of ten end below half on each seed."""
    steps, zeros = [1, 2, 3, 4], [0.0, 0.0]
    deep_first = [zeros, [0.1, 0.9], [0.6, 1.0], [1.0, 1.0]]
    shallow_first = [row[::-1] for row in deep_first]
    fallen = [zeros, [1.0, 1.0], [0.9, 0.9], [0.7, 0.8]]
    gone = [zeros, [1.0, -1.0], [0.9, -0.9], [0.2, -0.1]]

    def verdicts(whole: list[Any], beginning: list[Any]) -> list[str]:
        runs = {"Transformer of 2": whole, "Transformer of 2, first steps": beginning, "MLP": [shallow_first]}
        studies = {
            name: {"settings": {"lr": 0.1}, "steps": steps, "alphas": dict(enumerate(each))}
            for name, each in runs.items()
        }
        findings = [claim.find({"studies": studies}) for claim in ALPHAS.claims]
        return [finding.verdict for finding in findings if finding is not None]

    assert verdicts([gone] * 2, [deep_first] * 2) == ["holds", "holds"]
    assert verdicts([fallen] * 2, [deep_first, shallow_first]) == ["cannot be told", "holds in part"]
    assert verdicts([fallen, gone], [deep_first]) == ["cannot be told", "holds in part"]
    assert verdicts([deep_first] * 2, [shallow_first] * 2) == ["does not hold", "does not hold"]
    assert ALPHAS.claims[0].find({"studies": {}}) is None
