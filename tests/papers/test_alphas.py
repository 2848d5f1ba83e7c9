"""The gates over depth and time, read from studies and put into numbers."""

import json
from pathlib import Path

import pytest
import torch

from rezero.cli import run
from rezero.diagnose import AlphaHistory
from rezero.papers.alphas import describe, read, write


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


def test_a_study_is_read_with_its_signs(tmp_path: Path) -> None:
    """One history a seed, the numbers that the study holds, and pictures."""
    command = "compare fc-digits --arms rezero --depth 4 --epochs 2 --seeds 2 -o"
    assert run([*command.split(), str(tmp_path / "study")]) == 0
    runs = read(tmp_path / "study")
    held = json.loads((tmp_path / "study/summary.json").read_text(encoding="utf-8"))
    assert [*runs] == [0, 1]
    assert runs[0].alphas.shape == (2, 4)
    assert float(runs[0].alphas.min()) < 0 or float(runs[1].alphas.min()) < 0
    assert held["provenance"]
    summary = write("digits", runs, {"command": command}, tmp_path / "out")
    assert summary["mean"]["largest"] == pytest.approx(
        (summary["seeds"][0]["largest"] + summary["seeds"][1]["largest"]) / 2
    )
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "digits-map.svg",
        "digits-profile.svg",
        "digits.json",
    ]
