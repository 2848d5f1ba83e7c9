"""Time and memory beside each other, and what is said of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from rezero.papers.memory import LAPTOP, MEMORY, PAPER, run
from rezero.papers.reproduction import Work
from rezero.papers.timed import bytes_kept, interleave, peak_bytes, ratios

TINY = replace(LAPTOP, layers=(64,), rows=1, tokens=4, mlp=(8, 2, 4), lm=(8, 2, 2, 4))


def test_networks_are_measured_told_and_drawn(tmp_path: Path) -> None:
    """Pre-norm is 1 of itself; a second run measures nothing anew."""
    work = Work(tmp_path / "kept", tmp_path / "out", 3)
    summary = run(TINY, work)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["networks"]) == ["layer of width 64", "step of an MLP 2 x 8", "step of a Transformer 2 x 8"]
    for network in summary["networks"].values():
        assert network["pre-norm"]["memory"] == 1
        assert math.exp(network["pre-norm"]["time"]["mean"]) == 1
        assert all(len(found["seconds"]) == 3 and found["bytes"] > 0 for found in network.values())
    assert summary["networks"]["layer of width 64"]["rezero"]["memory"] < 1
    assert run(TINY, work) == summary
    assert len(MEMORY.lines(summary)) == 6
    assert set(MEMORY.write(summary, tmp_path)) == {"time", "memory"}
    time, memory = (claim.find(summary) for claim in MEMORY.claims)
    assert time.ours.startswith("of pre-norm's time, asked is an interval below 1: layer of width 64 ")
    assert memory.ours.count(";") == 2


def test_a_claim_on_time_needs_its_interval_below_one() -> None:
    """A mean alone does not do."""
    network = {"rezero": {"time": {"mean": -0.1, "low": -0.3, "high": 0.1}, "memory": 0.9}}
    verdicts = [claim.find({"networks": {"one": network}}).verdict for claim in MEMORY.claims]
    assert verdicts == ["cannot be told", "holds"]
    network["rezero"] |= {"memory": 0.96}
    assert MEMORY.claims[1].find({"networks": {"one": network}}).verdict == "does not hold"


def test_the_papers_size_runs_where_it_is_made_small(tmp_path: Path) -> None:
    """In bfloat16, with the heads and branches that its widths give."""
    assert all(width % 64 == 0 for width in PAPER.layers)
    small = replace(PAPER, device="cpu", layers=(128,), rows=1, tokens=2, mlp=(8, 2, 2), lm=(16, 2, 1, 4))
    assert (PAPER.device, small.dtype) == ("cuda", torch.bfloat16)
    assert len(run(small, Work(tmp_path, tmp_path, 2))["networks"]) == 3


def test_what_is_kept_and_what_is_held_are_counted_in_bytes() -> None:
    """Of a linear layer nothing is kept beside its input; the peak of a call holds what it makes."""
    linear, x = nn.Linear(100, 100), torch.randn(1000, 100)
    assert bytes_kept(linear, x) == 0
    assert bytes_kept(nn.Sequential(linear, nn.ReLU()), x) == 400_000
    assert 400_000 <= peak_bytes(lambda: x * 2) < 400_100  # and the numbers that they are multiplied by
    assert 800_000 <= peak_bytes(lambda: (x * 2) * 3) < 800_100


def test_rounds_are_interleaved_after_two_that_do_not_count() -> None:
    """Each candidate once a round, which another one begins each time; ratios are taken round by round."""
    calls: list[str] = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, device="cpu")  # type: ignore[misc]
    assert calls == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert ratios({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0]}, to="a")["b"]["ratio"] == 2
