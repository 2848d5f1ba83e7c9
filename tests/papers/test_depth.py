"""The depth check of plain, pre-norm and ReZero networks."""

import json
from pathlib import Path

import pytest

from rezero.papers.depth import RULES, measure, write


def test_both_rates_of_alpha_are_one_up_to_a_hundred_layers(tmp_path: Path) -> None:
    """Where 1 / L is above the common rate nothing differs; past it the gates move by 1 / L, and files tell it all."""
    found = measure((8, 16, 128), (0,), steps=1)
    assert found.rules == tuple(RULES)
    shared, own = "rezero, alpha at lr", "rezero"
    for depth in (8, 16):
        assert found.values("change", shared, depth, 1) == found.values("change", own, depth, 1)
    assert found.values("gate_update", shared, 128, 1) == pytest.approx([0.01])
    assert found.values("gate_update", own, 128, 1) == pytest.approx([1 / 128])
    assert found.values("change", own, 128, 1) < found.values("change", shared, 128, 1)
    write(found, tmp_path / "made", {"command": "as told"})
    summary = json.loads((tmp_path / "made/summary.json").read_text(encoding="utf-8"))
    assert summary["command"] == "as told"
    assert [each["rule"] for each in summary["verdicts"]] == list(RULES)
    assert len(summary["measurements"]) == 4 * 3 * 2
    assert (tmp_path / "made/depth_check.svg").exists()
