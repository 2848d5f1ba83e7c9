"""Charts with one look."""

import itertools
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import vl_convert

from rezero.charts import curves, density_line, gate_lines, gate_map, gate_profile, histogram, intervals, save
from rezero.charts.bundle import javascript
from rezero.charts.depth import Panel, depth_panels
from rezero.charts.look import COLOURS, OTHER_COLOURS, Ending
from rezero.layers.residuals import RESIDUALS

ARMS = ["plain", "rezero"]


ENDINGS: tuple[Ending, ...] = ("svg", "png", "html")


def rows(arms: list[str] = ARMS, *, scale: float = 1.0) -> list[dict[str, Any]]:
    medians = [(arm, epoch, scale * (i + 1) / epoch) for i, arm in enumerate(arms) for epoch in (1.0, 2.0, 3.0)]
    return [{"arm": arm, "x": x, "median": m, "low": 0.9 * m, "high": 1.1 * m} for arm, x, m in medians]


def loss_chart(arms: list[str] = ARMS, *, log: bool = True, points: list[dict[str, Any]] | None = None) -> Any:
    data = rows(arms) if points is None else points
    return curves(data, x="epoch", y="loss (nats)", arms=arms, log=log, percent=False, description="Loss of each arm.")


def alpha_chart() -> Any:
    cells = [{"gate": gate, "x": x, "size": gate * x} for gate in (1, 2, 3) for x in (1.0, 2.0)]
    return gate_map(cells, x="epoch", description="Size of every gate.")


def line_chart() -> Any:
    points = [{"gate": gate, "x": x, "alpha": gate * x - 3} for gate in (1, 2, 3) for x in (10, 20)]
    return gate_lines(points, x="step", description="Every gate.")


def profile_chart() -> Any:
    points = [{"gate": gate, "median": gate, "low": gate - 1, "high": gate + 1} for gate in (1, 2, 3)]
    return gate_profile(points, y="alpha", description="Every gate.")


def spectrum_chart() -> Any:
    sets = {"12 layers": [0.5, 1.0, 2.0], "24 layers": [0.0, 0.1, 1.0, 8.0]}
    return histogram({"pre-norm": sets, "rezero": {"12 layers": [1.0, 1.0]}}, description="Singular values.")


def density_chart() -> Any:
    return density_line([0.0, 1.0, 2.0], [0.1, 0.8, 0.1], [0.2, 0.1, 0.0], description="Their density.")


def interval_chart(names: tuple[str, ...] = ("wine", "iris")) -> Any:
    points = [
        {"name": name, "arm": arm, "middle": float(place), "low": place - 0.5, "high": place + 1.0}
        for name in names
        for place, arm in enumerate(ARMS)
    ]
    return intervals(points, x="points better", arms=ARMS, mark=0.0, description="Points better.")


CHARTS = {
    "intervals": interval_chart,
    "spectra": spectrum_chart,
    "density": density_chart,
    "log": loss_chart,
    "linear": lambda: loss_chart(log=False),
    "alpha": alpha_chart,
    "lines": line_chart,
    "profile": profile_chart,
}


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_saving_twice_gives_the_same_bytes(tmp_path: Path, make: Any) -> None:
    """The same chart is the same file the second time in a process, and after other charts were drawn."""
    files = save(make(), tmp_path / "first", ENDINGS)
    save(make(), tmp_path / "between")
    save(loss_chart(["residual"]), tmp_path / "other")
    again = save(make(), tmp_path / "second", ENDINGS)
    assert [file.name for file in files] == ["first.svg", "first.png", "first.html"]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]


def test_a_pdf_is_one_page_of_the_chart(tmp_path: Path) -> None:
    """With the shape of the PNG; its bytes may differ, for the renderer puts its resources in any order."""
    png, pdf = save(alpha_chart(), tmp_path / "alpha", ("png", "pdf"))
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    content = pdf.read_bytes()
    [box] = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert content.startswith(b"%PDF-")
    assert float(box[0]) / float(box[1]) == pytest.approx(width / height, rel=0.01)


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    """All scripts are in it."""
    [page] = save(alpha_chart(), tmp_path / "alpha", ("html",))
    assert re.findall(r"<script[^>]+src=", page.read_text(encoding="utf-8")) == []


def test_a_histogram_counts_every_value() -> None:
    """Bars are shares of all values, and what lies below the axis is told in the panel's title."""
    chart = spectrum_chart().to_dict()
    first, second = chart["vconcat"]
    assert first["title"]["text"] == "pre-norm (below 8e-06: 25.0% of 24 layers)"
    assert second["title"]["text"] == "rezero"
    for panel, expected in ((first, {"12 layers": 1, "24 layers": 0.75}), (second, {"12 layers": 1})):
        bins = chart["datasets"][panel["layer"][0]["data"]["name"]]
        width = math.log10(bins[1]["x"] / bins[0]["x"])
        for name, share in expected.items():
            assert sum(row["share"] for row in bins if row["set"] == name) * width == pytest.approx(share)


def test_a_histogram_fits_few_values_close_to_one() -> None:
    """A bin holds some of them, and the axis has three numbers or more."""
    chart = histogram({"": {"one": [0.8 * 1.016**i for i in range(32)]}}, description="Values.").to_dict()
    bins, layers = max(chart["datasets"].values(), key=len), chart["vconcat"][0]["layer"]
    assert len(layers[0]["encoding"]["x"]["axis"]["values"]) >= 3
    assert sum(row["share"] == 0 for row in bins) <= 4  # the edges, and the end of the steps


def test_files_go_where_a_text_says(tmp_path: Path) -> None:
    """Into a folder that is made; a format that is none is refused before."""
    with pytest.raises(ValueError, match="endings must be of svg, png, pdf, html: got jpg"):
        save(alpha_chart(), tmp_path / "none/alpha", ("jpg",))  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    [file] = save(alpha_chart(), str(tmp_path / "some/alpha"), ("svg",))
    assert file == tmp_path / "some/alpha.svg"


def test_other_data_give_other_bytes(tmp_path: Path) -> None:
    """A chart of other numbers is another file, so equal bytes mean something."""
    here, there = (save(loss_chart(points=rows(scale=s)), tmp_path / f"times{s}") for s in (1, 2))
    assert all(one.read_bytes() != two.read_bytes() for one, two in zip(here, there, strict=True))


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_svg_ids_count_from_zero_and_resolve(tmp_path: Path, make: Any) -> None:
    """The ids of an SVG are id0, id1, ... without a gap, and every reference has its target."""
    svg = save(make(), tmp_path / "chart")[0].read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids == [f"id{number}" for number in range(len(ids))]
    used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
    assert {*used} <= {*ids}


def test_the_charts_that_are_tested_have_ids(tmp_path: Path) -> None:
    """At least one chart has an id that is referred to, so that the renumbering is put to the test."""
    svgs = [save(make(), tmp_path / name)[0].read_text(encoding="utf-8") for name, make in CHARTS.items()]
    assert any("url(#id0)" in svg for svg in svgs)


@pytest.mark.parametrize("make", CHARTS.values(), ids=CHARTS)
def test_files_are_what_their_names_say(tmp_path: Path, make: Any) -> None:
    """The SVG is XML, 720 units wide unless its panels have widths of their own; the PNG has twice as many pixels."""
    svg, png = save(make(), tmp_path / "chart")
    root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314 - our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("width") == "720" or "vconcat" in make().to_dict()
    header = png.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", header[16:24])
    assert (width, height) == tuple(round(2 * float(root.attrib[name])) for name in ("width", "height"))


def test_every_arm_has_a_colour_of_its_own() -> None:
    """Each residual formula has its own colour, which no unknown arm can get."""
    assert {*COLOURS} == {*RESIDUALS}
    colours = [colour.upper() for colour in (*COLOURS.values(), *OTHER_COLOURS)]
    assert len({*colours}) == len(colours)


def colours_of(chart: Any) -> dict[str, str]:
    """Arm to colour, the same in every layer of a chart."""
    scales = [layer["encoding"]["color"]["scale"] for layer in chart.to_dict()["layer"]]
    maps = [dict(zip(scale["domain"], scale["range"], strict=True)) for scale in scales]
    assert all(found == maps[0] for found in maps)
    return maps[0]


@pytest.mark.parametrize("arms", [*itertools.permutations(["plain", "rezero", "pre-norm"], 2)], ids="-".join)
def test_an_arm_keeps_its_colour(arms: tuple[str, ...]) -> None:
    """An arm has the same colour whichever arms are beside it, in whatever order."""
    assert colours_of(loss_chart([*arms])) == {arm: COLOURS[arm] for arm in arms}


def test_an_unknown_arm_has_a_spare_colour() -> None:
    """Arms that the table does not know are told apart too."""
    found = colours_of(loss_chart(["mine", "rezero", "yours"]))
    assert found == {"mine": OTHER_COLOURS[0], "rezero": COLOURS["rezero"], "yours": OTHER_COLOURS[1]}


def test_arms_are_told_apart_without_colour() -> None:
    """Neighbours in the legend have different dashes."""
    layer = loss_chart(["plain", "residual", "post-norm", "rezero"]).to_dict()["layer"][1]
    dashes = [tuple(dash) for dash in layer["encoding"]["strokeDash"]["scale"]["range"]]
    assert len({*dashes}) == 4


@pytest.mark.parametrize("log", [True, False], ids=["log", "linear"])
def test_curves_show_median_and_range(tmp_path: Path, log: bool) -> None:
    """The chart has the medians as lines, low to high as bands, its titles, and the scale that was asked for."""
    spec = loss_chart(log=log).to_dict()
    band, line = spec["layer"]
    assert (band["mark"]["type"], line["mark"]["type"]) == ("area", "line")
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("low", "high")
    assert (line["encoding"]["x"]["field"], line["encoding"]["y"]["field"]) == ("x", "median")
    assert [*spec["datasets"].values()] == [rows()]
    assert {layer["encoding"]["y"]["scale"].get("type", "linear") for layer in spec["layer"]} == {
        "log" if log else "linear"
    }
    svg = save(loss_chart(log=log), tmp_path / "chart")[0].read_text(encoding="utf-8")
    assert spec["description"] == "Loss of each arm."
    for text in ("epoch", "loss (nats)", *ARMS):
        assert text in svg


def test_percent_axis(tmp_path: Path) -> None:
    """Fractions are shown in percent where that is asked for."""
    chart = curves(rows(scale=0.3), x="epoch", y="accuracy", arms=ARMS, log=False, percent=True, description="")
    svg = save(chart, tmp_path / "chart")[0].read_text(encoding="utf-8")
    assert re.search(r">\d+%<", svg)


def test_gate_map_has_a_cell_a_gate_and_time(tmp_path: Path) -> None:
    """The map has one cell for each gate at each time, of a colour for its size, the first gate lowest."""
    svg = save(alpha_chart(), tmp_path / "chart")[0].read_text(encoding="utf-8")
    label = r'aria-label="epoch: (\d); block, from the input: (\d); size: (\d)[^"]*"'
    cells = re.findall(rf'{label}[^>]* d="M([\d.]+),([\d.]+)h[^>]*fill="([^"]+)"', svg)
    found = {
        (int(x), int(gate)): (int(size), float(left), float(top), fill) for x, gate, size, left, top, fill in cells
    }
    assert len(cells) == len(found) == 6
    assert all(found[x, gate][0] == x * gate for x, gate in found)
    assert len({fill for *_, fill in found.values()}) == len({size for size, *_ in found.values()})
    assert found[1, 1][1] < found[2, 1][1]
    assert found[1, 1][2] > found[1, 2][2] > found[1, 3][2]


def test_cells_of_a_gate_map_leave_no_seams(tmp_path: Path) -> None:
    """Every cell has an outline of its own colour, which covers the gap that a renderer leaves between neighbours."""
    svg = save(alpha_chart(), tmp_path / "chart")[0].read_text(encoding="utf-8")
    cells = re.findall(r'aria-roledescription="rect mark"[^>]* fill="(rgb[^"]+)" stroke="([^"]+)"', svg)
    assert len(cells) == 6
    assert all(fill == stroke for fill, stroke in cells)


def test_signed_cells_part_at_zero(tmp_path: Path) -> None:
    """Values of one size and different signs have different colours, and the scale reaches as far on both sides."""
    cells = [{"gate": gate, "x": 1, "alpha": alpha} for gate, alpha in enumerate((-0.2, 0.0, 0.2, 0.5), 1)]
    chart = gate_map(cells, x="step", description="", signed=True, gate="gate")
    assert chart.to_dict()["encoding"]["color"]["scale"] == {"scheme": "blueorange", "domain": [-0.5, 0.5]}
    svg = save(chart, tmp_path / "chart")[0].read_text(encoding="utf-8")
    fills = re.findall(r'aria-roledescription="rect mark"[^>]* fill="rgb\((\d+), (\d+), (\d+)\)"', svg)
    (red, _, blue), middle, (warm, _, cold), _ = (tuple(map(int, fill)) for fill in fills)
    assert (blue > red, warm > cold) == (True, True)
    assert max(middle) - min(middle) < 10


@pytest.mark.parametrize("count", [20, 21, 100, 200], ids=str)
def test_of_many_times_round_ones_are_named(tmp_path: Path, count: int) -> None:
    """A map names at most ten of many, all of them multiples of one round step."""
    cells = [{"gate": 1, "x": 10 * (i + 1), "size": 0.1} for i in range(count)]
    svg = save(gate_map(cells, x="step", description=""), tmp_path / "chart")[0].read_text(encoding="utf-8")
    named = sorted(map(int, labels_of(svg, "x")))
    steps = {b - a for a, b in itertools.pairwise(named)}
    assert len(steps) == 1
    assert 3 <= len(named) <= (20 if count == 20 else 10)


@pytest.mark.parametrize("blocks", [1, 2, 12, 16, 17, 54, 61, 64, 110, 500, 1000], ids=str)
def test_first_and_last_block_are_named(tmp_path: Path, blocks: int) -> None:
    """A map names its first and its last block and up to sixteen between, whatever their number."""
    cells = [{"gate": gate, "x": 1.0, "size": 0.1} for gate in range(1, blocks + 1)]
    svg = save(gate_map(cells, x="epoch", description=""), tmp_path / "chart")[0].read_text(encoding="utf-8")
    named = sorted(map(int, labels_of(svg, "y")))
    assert (named[0], named[-1]) == (1, blocks)
    assert len(named) == blocks if blocks <= 16 else 9 <= len(named) <= 18


def test_a_dot_in_a_name_is_kept(tmp_path: Path) -> None:
    """Two charts whose names differ after a dot are two pairs of files."""
    names = [file.name for stem in ("lr0.1", "lr0.2") for file in save(alpha_chart(), tmp_path / stem)]
    assert names == ["lr0.1.svg", "lr0.1.png", "lr0.2.svg", "lr0.2.png"]


ONE = {"arm": "plain", "x": 1.0}
ODD: dict[str, tuple[list[str], list[dict[str, Any]]]] = {
    "no-point": (["plain"], []),
    "zero": (["plain"], [{**ONE, "median": 0.0, "low": 0.0, "high": 0.0}]),
    "falls-to-zero": (
        ["plain"],
        [{**ONE, "median": 1.0, "low": 0.5, "high": 2.0}, {**ONE, "x": 2.0, "median": 0.0, "low": 0.0, "high": 1.0}],
    ),
    "one-point": (["plain"], [{**ONE, "median": 2.0, "low": 2.0, "high": 2.0}]),
    "huge": (["plain"], [{**ONE, "median": 1e38, "low": 1e-38, "high": 3e38}]),
    "edge-of-floats": (["plain"], [{**ONE, "median": 1.0, "low": -1e300, "high": 1e300}]),
    "next-to-zero": (["plain"], [{**ONE, "median": 1e-323, "low": 5e-324, "high": 1e-310}]),
    "level-below-zero": (["plain"], [{**ONE, "median": -2.0, "low": -2.0, "high": -2.0}]),
    "level": (["plain"], [{**ONE, "x": x, "median": 2.0, "low": 2.0, "high": 2.0} for x in (1.0, 2.0)]),
    "hardly-apart": (["plain"], [{**ONE, "median": 2.0, "low": 1.9999999, "high": 2.0000001}]),
}


def labels_of(svg: str, axis: str) -> list[str]:
    """The labels of the x or the y axis, in the picture."""
    start = svg.index(f'aria-label="{axis.upper()}-axis')
    group = svg[svg.index('class="mark-text role-axis-label"', start) :]
    return re.findall(r">([^<>]+)</text>", group[: group.index("</g>")])


@pytest.mark.parametrize("name", ["zero", "one-point", "huge", "level", "level-below-zero", "hardly-apart"])
@pytest.mark.parametrize("log", [True, False], ids=["log", "linear"])
def test_values_lie_between_round_labels(tmp_path: Path, name: str, log: bool) -> None:
    """The lowest and the highest label are round numbers that enclose all values, and each label is another."""
    arms, points = ODD[name]
    svg = save(loss_chart(arms, log=log, points=points), tmp_path / "chart")[0].read_text(encoding="utf-8")
    labels = labels_of(svg, "y")
    shown = [float(label.replace("−", "-")) for label in labels]  # noqa: RUF001 - a true minus
    values = [row[key] for row in points for key in ("low", "high") if row[key] > 0 or not log]
    assert shown[0] <= min(values, default=1.0)
    assert max(values, default=0.1) <= shown[-1]
    assert len({*labels}) == len(labels) >= 2
    assert all(len(label.replace("e", "").strip("0.")) <= 6 for label in labels), labels


@pytest.mark.parametrize("odd", ["\0", "\x1b", "\v", "\ufffe", "\uffff", "\u2028", "\udcff"], ids=ascii)
def test_what_no_svg_holds_is_drawn_as_a_picture(tmp_path: Path, odd: str) -> None:
    """A name with a control character, of which the renderer would die, is drawn with another in its place."""
    name = f"a{odd}b"
    svg, png = save(loss_chart([name], points=rows([name])), tmp_path / "chart")
    ElementTree.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314 - our own file
    assert re.search(r">a[\u2400-\u241f\ufffd]b</text>", svg.read_text(encoding="utf-8"))
    assert png.stat().st_size > 0


@pytest.mark.parametrize("ends", [(0.00175, 27_000.0), (0.3, 2.2), (3.65, 5.52), (0.4, 15.0), (1.0, 10.0)], ids=str)
def test_curves_of_any_height_end_between_labels(tmp_path: Path, ends: tuple[float, float]) -> None:
    """Curves that fall through decades, through one, or hardly at all lie between the ends of a labelled axis."""
    points = [{"arm": "plain", "x": x, "median": m, "low": m, "high": m} for x, m in zip((2.0, 1.0), ends, strict=True)]
    svg = save(loss_chart(["plain"], points=points), tmp_path / "chart")[0].read_text(encoding="utf-8")
    shown = [float(label) for label in labels_of(svg, "y")]
    assert shown[0] <= ends[0] < ends[1] <= shown[-1]
    assert 3 <= len(shown) <= 11


def test_one_measurement_an_arm_is_a_point(tmp_path: Path) -> None:
    """Arms of one measurement are points in shapes of their own with a bar for the range, and no line is promised."""
    first = [row for row in rows() if row["x"] == 1.0]
    spec = loss_chart(points=first).to_dict()
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rule", "point"]
    assert "strokeDash" not in json.dumps(spec)
    shapes = spec["layer"][1]["encoding"]["shape"]["scale"]
    assert shapes["domain"] == ARMS
    assert len({*shapes["range"]}) == 2
    svg = save(loss_chart(points=first), tmp_path / "chart")[0].read_text(encoding="utf-8")
    assert labels_of(svg, "x") == ["1"]
    places = re.findall(r'aria-roledescription="point" transform="translate\(([\d.]+),', svg)
    assert all(200 < float(left) < 500 for left in places)


@pytest.mark.parametrize("epochs", [2, 3, 4, 10], ids=str)
def test_whole_epochs_have_whole_labels(tmp_path: Path, epochs: int) -> None:
    """Epochs that were all measured at their end are labelled one by one, with nothing between."""
    points = [{**ONE, "x": float(x), "median": 1 / x, "low": 1 / x, "high": 1 / x} for x in range(1, epochs + 1)]
    svg = save(loss_chart(["plain"], points=points), tmp_path / "chart")[0].read_text(encoding="utf-8")
    assert labels_of(svg, "x") == [str(x) for x in range(1, epochs + 1)]


def test_an_accuracy_axis_ends_at_all(tmp_path: Path) -> None:
    """No label of an axis of fractions is above 100%."""
    chart = curves(
        [{**ONE, "median": 1.0, "low": 0.99, "high": 1.0}],
        x="epoch",
        y="accuracy",
        arms=["plain"],
        log=False,
        percent=True,
        description="",
    )
    labels = labels_of(save(chart, tmp_path / "chart")[0].read_text(encoding="utf-8"), "y")
    assert labels[-1] == "100%"
    assert all(re.fullmatch(r"[\d.]{2,5}%", label) for label in labels)


@pytest.mark.parametrize(("arms", "points"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("log", [True, False], ids=["log", "linear"])
def test_odd_numbers_still_make_a_picture(
    tmp_path: Path, log: bool, arms: list[str], points: list[dict[str, Any]]
) -> None:
    """No data, one point, a loss of zero or a huge one give an SVG whose coordinates are numbers."""
    svg, png = save(loss_chart(arms, log=log, points=points), tmp_path / "chart")
    text = svg.read_text(encoding="utf-8")
    geometry = re.findall(r'\b(?:d|width|height|viewBox|transform|x|y|x1|x2|y1|y2)="([^"]*)"', text)
    assert geometry
    assert [value for value in geometry if "NaN" in value or "Infinity" in value] == []
    assert png.stat().st_size > 0


def test_a_loss_of_zero_does_not_flatten_the_others(tmp_path: Path) -> None:
    """On a logarithmic axis, which has no zero, the points above zero keep their heights and the axis its labels."""
    medians = (1.0, 0.1, 0.0)
    points = [{"arm": "plain", "x": float(x), "median": m, "low": m, "high": m} for x, m in enumerate(medians, 1)]
    svg = save(loss_chart(["plain"], points=points), tmp_path / "chart")[0].read_text(encoding="utf-8")
    marks = r'aria-label="epoch: (\d);[^"]*"[^>]*aria-roledescription="point" transform="translate\([\d.]+,([\d.]+)\)"'
    height = {int(x): float(top) for x, top in re.findall(marks, svg)}
    assert height[1] < height[2] - 10
    assert re.search(r">0\.1</text>", svg)


@pytest.mark.parametrize(
    "damage", ["none", "cut off", "bytes", "huge", "pipe", "no file", "no folder", "nothing may be written"]
)
def test_the_javascript_of_a_page_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """The next process reads what is whole, and makes it anew where it is not or nothing can be kept."""
    made: list[str] = []

    def bundle(snippet: str) -> str:
        made.append(snippet)
        return f"\r\n{snippet} // 1 \u2264 2"

    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = javascript.__wrapped__()
    (kept,) = tmp_path.rglob("*.js")
    if damage == "cut off":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif damage == "bytes":
        kept.write_bytes(b"\xff\n")
    elif damage == "huge":
        os.truncate(kept, 2**40)
    elif damage == "pipe":
        kept.unlink()
        os.mkfifo(kept)
    elif damage == "no file":
        kept.unlink()
        kept.mkdir()
    elif damage == "no folder":
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    elif damage == "nothing may be written":
        monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    assert javascript.__wrapped__() == first
    assert len(made) == 1 + (damage != "none")
    assert [each.name for each in kept.parent.iterdir()] == [kept.name]
    if damage in ("cut off", "bytes", "huge", "pipe"):
        assert javascript.__wrapped__() == first
        assert len(made) == 2


def test_intervals_name_each_thing_in_its_place(tmp_path: Path) -> None:
    """Things stand below each other in the order of the rows, each arm with a bar from end to end and a mark."""
    svg = save(interval_chart(), tmp_path / "chart")[0].read_text(encoding="utf-8")
    assert svg.index(">wine<") < svg.index(">iris<")
    spec = interval_chart().to_dict()
    assert [layer["mark"]["type"] for layer in spec["layer"]] == ["rule", "rule", "point"]
    ends = {
        (float(low), float(high))
        for low, high in re.findall(r"low: ([-\d.]+); high: ([-\d.]+)", svg.replace("\N{MINUS SIGN}", "-"))
    }
    assert ends >= {(-0.5, 1.0), (0.5, 2.0)}


def test_what_is_above_a_panel_is_marked_apart() -> None:
    """A median within stays on its line, its range ends at the top, and marks at one depth lie below each other."""
    values = {"a": (1.0, 2.0, math.inf), "b": (500.0, 500.0, 500.0), "c": (1.0, 1.5, 3.0)}
    rows = [
        {"line": line, "theory": False, "x": 8, "low": low, "median": median, "high": high}
        for line, (low, median, high) in values.items()
    ]
    panel = Panel("loss", rows, log=True, most=10.0)
    chart = depth_panels([panel], x="layers", lines=list(values), log=True, description="Losses.")
    [spec] = chart.concat
    within, _, marks = (layer.data.values for layer in spec.layer)
    assert [(row["line"], row["median"]) for row in within] == [("a", 2.0), ("c", 1.5)]
    assert [row["high"] for row in within] == [(top := marks[0]["median"]), 3.0]
    assert [row["line"] for row in marks] == ["a", "b"]
    assert marks[1]["median"] < top
    assert spec.title.text == "loss (▲ above 10)"
