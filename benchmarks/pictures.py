"""Draws what the benchmarks have written: each table of ratios as points and quartiles, beside its record.

python benchmarks/pictures.py [results/bench/layer-cpu.json ...]
"""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import altair as alt
from timing import RESULTS

from rezero.charts.look import dress_panels, save

OURS = ("rezero", "DeepStack", "DeepStack, sqrt")
COLUMNS = 2
TICKS = alt.Axis(format="~g", tickCount=6, labelOverlap="greedy", labelSeparation=6)


def draw(record: dict[str, Any]) -> alt.ConcatChart | None:
    """Draw a record's tables of ratios, a panel each; None if it has none."""
    tables = {title: table for title, table in record["tables"].items() if is_ratios(table)}
    if not tables:
        return None
    ends = [row[end] for table in tables.values() for row in table.values() for end in ("q1", "q3")]
    kind: Literal["log", "linear"] = "log" if max(ends) > 4 * min(ends) else "linear"
    scale = alt.Scale(type=kind, zero=False, domain=[0.97 * min(ends), 1.03 * max(ends)], nice=False)
    base = next(name for name, row in next(iter(tables.values())).items() if row["q1"] == row["q3"] == 1)
    about = f"Time over that of {base}, median and quartiles"
    made = f"{record['command']} ({record['machine']}, {record['date']})"
    chart: alt.ConcatChart = dress_panels(
        alt.concat(
            *(draw_table(title, table, scale) for title, table in tables.items()),
            columns=COLUMNS,
            title=alt.Title(about, subtitle=made, anchor="start", fontWeight="normal", fontSize=14),
        ),
        f"{about}. {made}",
    )
    return chart


def is_ratios(table: Any) -> bool:
    """Tell whether a table has a ratio and its quartiles for each peer."""
    return isinstance(table, dict) and all(
        isinstance(row, dict) and {"ratio", "q1", "q3"} <= {*row} for row in table.values()
    )


def draw_table(title: str, table: dict[str, dict[str, float]], scale: alt.Scale) -> Any:
    """Draw one table: a line a peer, ours in a colour of its own."""
    rows = [{"peer": name, "ours": name in OURS, **row} for name, row in table.items()]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("peer:N", sort=list(table), title=None, axis=alt.Axis(grid=False, ticks=False, labelPadding=8)),
        color=alt.Color("ours:N", scale=alt.Scale(domain=[False, True], range=["#333333", "#D55E00"]), legend=None),
    )
    one = alt.Chart(alt.InlineData(values=[{"one": 1}])).mark_rule(strokeDash=[4, 3], color="#7F7F7F").encode(x="one:Q")
    spread = base.mark_rule(strokeWidth=2.5).encode(x=alt.X("q1:Q", scale=scale, title=None, axis=TICKS), x2="q3:Q")
    point = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("ratio:Q", scale=scale))
    return alt.layer(one, spread, point).properties(
        width=250, height=26 * len(table), title=alt.Title(title, fontSize=13, fontWeight="normal", anchor="start")
    )


if __name__ == "__main__":
    paths = [Path(given) for given in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    for path in paths:
        picture = draw(json.loads(path.read_text(encoding="utf-8")))
        if picture is not None:
            print("written:", *save(picture, path.with_suffix(""), ("svg",)))
