"""The depth check of plain, pre-norm and ReZero networks."""

import json
from pathlib import Path

import pytest

from rezero.papers.depth import RULES, measure, write


def test_the_rate_of_alpha_is_that_of_param_groups(tmp_path: Path) -> None:
    """Shallow gates move by three times the common rate, deep ones by 3 / L, and files tell it all."""
    found = measure((8, 16, 512), (0,), steps=1)
    assert found.rules == tuple(RULES)
    shared, own = "rezero, alpha at lr", "rezero"
    for depth, rate in ((8, 0.03), (16, 0.03), (512, 3 / 512)):
        assert found.values("gate_update", shared, depth, 1) == pytest.approx([0.01])
        assert found.values("gate_update", own, depth, 1) == pytest.approx([rate])
    assert found.values("change", own, 512, 1) < found.values("change", shared, 512, 1)
    write(found, tmp_path / "made", {"command": "as told"})
    summary = json.loads((tmp_path / "made/summary.json").read_text(encoding="utf-8"))
    assert summary["command"] == "as told"
    assert [each["rule"] for each in summary["verdicts"]] == list(RULES)
    assert len(summary["measurements"]) == 4 * 3 * 2
    assert (tmp_path / "made/depth_check.svg").exists()
