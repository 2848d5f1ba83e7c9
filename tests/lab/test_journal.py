"""The lines of a run of one's own."""

import math
from typing import Any

import pytest

from rezero.lab.journal import Journal


def line(step: int, **metrics: float | None) -> dict[str, Any]:
    return {"step": step, "seconds": 1.0, "metrics": metrics, "alphas": [], "memory": None}


@pytest.mark.parametrize("step", [2**63, 2**70, 10**5000], ids=["63 bits", "70 bits", "endless"])
def test_a_step_that_is_none_is_a_crash(step: int) -> None:
    """A number that no database holds is left out, and the run has crashed, whatever else it logs."""
    journal = Journal()
    assert journal.add(line(step, loss=1.0)) is None
    assert (journal.last, journal.status) == (None, "crashed")
    journal.add(line(2**63 - 1, loss=1.0))
    assert journal.last is not None
    assert (journal.last.step, journal.status) == (2**63 - 1, "crashed")
    assert journal.note == "a step was logged that is none: expected optimizer steps, below 2**63"


@pytest.mark.parametrize("value", [None, 1.1e300, -1.7e308], ids=str)
def test_a_value_that_cannot_be_reckoned_with_diverged(value: float | None) -> None:
    """What is not finite, or nearly so, is nan; another value of the metric at a later step mends it."""
    journal = Journal()
    journal.add(line(1, loss=value))
    assert journal.last is not None
    assert math.isnan(journal.last.metrics["loss"])
    assert journal.status == "diverged"
    journal.add(line(2, loss=1e300))
    assert journal.status == "finished"
