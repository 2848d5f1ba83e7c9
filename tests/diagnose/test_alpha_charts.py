"""The charts of an AlphaHistory show its numbers, however many there are."""

import builtins
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rezero.charts import save
from rezero.diagnose import AlphaHistory
from rezero.errors import UsageError


def history(alphas: Tensor, *, every: int = 10, **others: Tensor) -> AlphaHistory:
    records, gates = alphas.shape
    steps = every * torch.arange(1, records + 1)
    return AlphaHistory(tuple(f"{i}.gate" for i in range(gates)), steps, alphas.double(), **others)


def drawn(records: int, gates: int, seed: int = 0) -> AlphaHistory:
    generator = torch.Generator().manual_seed(seed)
    return history(torch.randn(records, gates, generator=generator) * torch.linspace(0, 1, records)[:, None])


def rows_of(chart: Any) -> list[dict[str, Any]]:
    """The table of a chart; another one is the line at zero."""
    [rows] = (table for table in chart.to_dict()["datasets"].values() if table != [{"zero": 0}])
    return rows  # type: ignore[no-any-return]


def test_a_map_has_the_values_with_their_signs() -> None:
    """A cell a gate and record; where none is negative, or on demand, it shows sizes."""
    some = drawn(5, 3)
    rows = rows_of(some.heat_map())
    assert [[row["gate"], row["x"], row["alpha"]] for row in rows] == [
        [gate + 1, step, alpha]
        for step, record in zip(some.steps.tolist(), some.alphas.tolist(), strict=True)
        for gate, alpha in enumerate(record)
    ]
    sizes = [row["size"] for row in rows_of(some.heat_map(signed=False))]
    assert sizes == [row["size"] for row in rows_of(history(some.alphas.abs()).heat_map())]
    assert sizes == some.alphas.abs().flatten().tolist()


def test_of_many_the_map_shows_the_largest() -> None:
    """At most 200 by 200 cells, each with the value of largest size among its neighbours, whatever its sign."""
    alphas = torch.full((1000, 500), 0.01)
    alphas[503, 100] = -3.0
    rows = rows_of(history(alphas).heat_map())
    assert len(rows) == 200 * 200
    [peak] = [row for row in rows if row["alpha"] != pytest.approx(0.01)]
    assert peak == {"gate": pytest.approx(101, abs=2), "x": pytest.approx(5040, abs=50), "alpha": -3.0}
    assert {row["gate"] for row in rows} >= {1, 100, 200, 500}
    assert {row["x"] for row in rows} >= {2000, 10000}


def test_lines_have_the_values() -> None:
    """Each gate over the steps; of many the first and the last are there, and 198 between."""
    some = drawn(4, 3)
    rows = rows_of(some.lines())
    assert [row["alpha"] for row in rows if row["gate"] == 2] == some.alphas[:, 1].tolist()
    many = drawn(999, 777)
    rows = rows_of(many.lines())
    assert len(rows) == 200 * 200
    assert (rows[0]["gate"], rows[0]["x"], rows[-1]["gate"], rows[-1]["x"]) == (1, 10, 777, 9990)
    assert rows[-1]["alpha"] == many.alphas[-1, -1].item()


def test_a_profile_is_the_last_record() -> None:
    """Of several runs it is their median, lowest and highest."""
    runs = [drawn(3, 4, seed) for seed in range(4)]
    ends = torch.stack([run.alphas[-1] for run in runs])
    rows = rows_of(runs[0].profile(*runs[1:]))
    middle = ends.sort(dim=0).values[1:3].mean(0)
    assert [row["median"] for row in rows] == pytest.approx(middle.tolist())
    assert [row["low"] for row in rows] == ends.amin(0).tolist()
    assert [row["high"] for row in rows] == ends.amax(0).tolist()
    sizes = rows_of(runs[0].profile(*runs[1:], signed=False))
    expected = torch.stack([run.alphas[-1].abs() for run in runs]).sort(dim=0).values[1:3].mean(0)
    assert [row["median"] for row in sizes] == pytest.approx(expected.tolist())
    [alone] = [rows_of(run.profile()) for run in runs[:1]]
    assert [(row["low"], row["median"], row["high"]) for row in alone] == [(a, a, a) for a in ends[0].tolist()]
    channels = history(runs[0].alphas, lows=runs[0].alphas - 1, highs=runs[0].alphas + 2)
    assert [row["high"] for row in rows_of(channels.profile())] == (runs[0].alphas[-1] + 2).tolist()


def test_what_is_not_finite_is_left_out() -> None:
    """A gap in the map and the profile, a break in the line."""
    alphas = torch.tensor([[0.1, math.nan], [0.2, 0.3], [0.4, math.nan]])
    some = history(alphas)
    assert len(rows_of(some.heat_map())) == 4
    assert [row["alpha"] for row in rows_of(some.lines()) if row["gate"] == 2] == [None, pytest.approx(0.3), None]
    assert [row["gate"] for row in rows_of(some.profile())] == [1]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (30, 70)], ids=str)
@pytest.mark.parametrize("zero", [False, True], ids=["values", "zeros"])
def test_charts_are_shown_and_saved(tmp_path: Path, size: tuple[int, int], zero: bool) -> None:
    """In a notebook, and in every format, whatever the size; also where all gates are at their start."""
    some = history(torch.zeros(size)) if zero else drawn(*size)
    for name, chart in {"map": some.heat_map(), "lines": some.lines(), "profile": some.profile()}.items():
        assert "vega" in " ".join(chart._repr_mimebundle_().keys()) + chart._repr_mimebundle_().get("text/html", "")
        assert chart.to_dict()["description"]
        for file in save(chart, tmp_path / name, ("svg", "png", "pdf", "html")):
            assert file.stat().st_size > 0
        assert "gate, from the input" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8") or size[1] == 1


def test_bad_input() -> None:
    """One clear line each."""
    nothing = AlphaHistory(("0.gate",), torch.empty(0, dtype=torch.int64), torch.empty(0, 1))
    for draw in (nothing.heat_map, nothing.lines, nothing.profile, lambda: drawn(1, 1).profile(nothing)):
        with pytest.raises(UsageError, match="there is nothing to draw: expected one record or more"):
            draw()
    with pytest.raises(UsageError, match="expected runs of one model, got one with 3 gates and one with 2"):
        drawn(1, 3).profile(drawn(1, 2))


def test_charts_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Altair the error says what to install; a history itself needs none."""
    load = builtins.__import__

    def without_altair(name: str, *rest: Any) -> Any:
        if name == "altair":
            raise ImportError(name)
        return load(name, *rest)

    for name in [each for each in sys.modules if each.startswith("rezero.charts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("rezero.charts", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_altair)
    some = drawn(2, 2)
    assert some.to_json()
    with pytest.raises(ImportError, match=r"charts need altair and vl-convert: pip install 'rezero-torch\[lab\]'"):
        some.lines()
