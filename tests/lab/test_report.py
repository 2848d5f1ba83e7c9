"""The report of a study."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec
from xml.etree import ElementTree

import pytest
from rich.console import Console

from rezero.data.digits import load_digits
from rezero.errors import UsageError
from rezero.lab import (
    TASKS,
    OwnSettings,
    Point,
    Question,
    Store,
    Study,
    Trial,
    Watcher,
    find_task,
    run_study,
    write_report,
    write_verdict,
)
from rezero.lab.tables import summary_rows
from rezero.lab.tasks import SAMPLE_MARK
from rezero.progress import StudyProgress, print_table

TASK = find_task("fc-digits")
DATA = load_digits()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Attributes that a browser fetches from, or that lead away from the page.
REFERENCES = {"src", "href", "xlink:href", "srcset", "data", "poster", "action", "formaction", "background", "manifest"}


class Page(HTMLParser):
    """A page taken apart: elements with attributes and text, which ``find`` selects by name.

    Args:
        text: HTML.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def find(self, tag: str) -> list[str]:
        """The text of every element of that name."""
        return ["".join(text) for name, _, text in self.elements if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of that name."""
        return [attributes for name, attributes, _ in self.elements if name == tag]


def study(*arms: str, provenance: dict[str, str] | None = None, **changes: Any) -> Study:
    small = {"arms": arms, "depth": 2, "width": 8, "epochs": 2, "batch_size": 500, "seeds": 2}
    facts = {"command": "rezero compare"} | (provenance or {})
    return Study("fc-digits", TASK.settings({**small, **changes}), facts, DATA.name)


@contextmanager
def made(folder: Path, asked: Study) -> Iterator[Store]:
    """A study that has run, with its report."""
    with Store.open(folder, asked) as store:
        run_study(store, TASK, DATA, create_autospec(Watcher, instance=True))
        write_report(store)
        yield store


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the database, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith("study.")}


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def table_of(page: Page) -> list[dict[str, str]]:
    """The rows of the page's table, column title to text."""
    names = [name for name, _, _ in page.elements]
    texts = ["".join(text) for _, _, text in page.elements]
    rows: list[list[str]] = []
    for name, text in zip(names, texts, strict=True):
        if name == "tr":
            rows.append([])
        elif name in ("td", "th"):
            rows[-1].append(text)
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def specs_of(page: Page) -> dict[str, Any]:
    """The charts' specifications by the id of their place."""
    script = page.find("script")[-1]
    return {
        json.loads(name): json.loads(spec)
        for name, spec in re.findall(r'^vegaEmbed\("#" \+ CSS\.escape\((".*?")\), (\{.*\}), options\);$', script, re.M)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of three arms, one of them gated, on two seeds."""
    path = tmp_path_factory.mktemp("study")
    with made(path, study("plain", "rezero", "pre-norm")):
        return path


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two arms on a text, measured by steps."""
    path = tmp_path_factory.mktemp("text")
    (path / "text.txt").write_text("".join(f"{n} <b>and</b> {n + 1}; " for n in range(300)))
    task = find_task("lm-text")
    small: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "context": 16, "batch_size": 8, "threads": 1}
    small |= {"steps": 6, "warmup": 2, "measure_every": 2, "seeds": 2, "data": str(path / "text.txt")}
    settings = task.settings({**small, "arms": ("pre-norm", "rezero")})
    data = task.load(settings)
    with Store.open(path / "study", Study("lm-text", settings, {"command": "rezero compare"}, data.name)) as store:
        run_study(store, task, data, create_autospec(Watcher, instance=True))
        write_report(store)
    return path / "study"


def test_the_folder_holds_what_is_promised(folder: Path) -> None:
    """A report is one page, a verdict, a summary, and each chart as SVG and PNG."""
    charts = ["alpha_rezero", "arrivals", "seeds", "train_loss", "val_accuracy"]
    assert {*files(folder)} == {
        "report.html",
        "verdict.txt",
        "summary.json",
        *(f"{chart}.{ending}" for chart in charts for ending in ("svg", "png")),
    }
    assert page_of(folder).find("h1") == ["fc-digits: plain, rezero, pre-norm"]


@pytest.mark.parametrize("made_by", ["folder", "text_folder"], ids=["images", "text"])
def test_report_is_the_same_bytes_again(request: pytest.FixtureRequest, made_by: str) -> None:
    """Written twice more in this process and once in another, every file of the report has the same bytes."""
    folder: Path = request.getfixturevalue(made_by)
    first = files(folder)
    with Store.open(folder) as store:
        for _ in range(2):
            for name in first:
                (folder / name).unlink()
            write_report(store)
            assert files(folder) == first
    for name in first:
        (folder / name).unlink()
    command = [sys.executable, "-m", "rezero", "report", str(folder)]
    odd = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "COLUMNS": "40"}
    done = subprocess.run(command, cwd=folder.parent, env=odd, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {name: content == first[name] for name, content in files(folder).items()} == dict.fromkeys(first, True)


def test_what_a_killed_report_left_is_removed(folder: Path) -> None:
    """What no process is writing any more is gone after the next report; what another one writes stays."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale, busy = folder / f".report-{gone.pid}-abc", folder / f".report-{os.getppid()}-abc"
    for each in (stale, busy, folder / ".report-old"):
        each.mkdir()
        (each / "report.html").touch()
    with Store.open(folder) as store:
        write_report(store)
    assert [each.name for each in folder.glob(".report-*")] == [busy.name]
    (busy / "report.html").unlink()
    busy.rmdir()


def test_text_is_shown_in_bits_a_byte(text_folder: Path) -> None:
    """A study of text has its losses in bits a byte, in the table and the chart, and steps on its axes."""
    page = page_of(text_folder)
    with Store.open(text_folder) as store:
        results = store.results()
    (row, _) = table_of(page)
    assert [*row][:3] == ["arm", "training loss (bits a byte)", "validation loss (bits a byte)"]
    low, high = sorted(r.last.metrics["train_loss"] / math.log(2) for r in results if r.trial.arm == "pre-norm")
    assert row["training loss (bits a byte)"] == f"{(low + high) / 2:#.3g} ({low:#.3g} to {high:#.3g})"
    low, high = sorted(r.last.metrics["val_loss"] / math.log(2) for r in results if r.trial.arm == "pre-norm")
    assert row["validation loss (bits a byte)"] == f"{(low + high) / 2:.3f} ({low:.3f} to {high:.3f})"
    specs = specs_of(page)
    assert [*specs] == ["val_loss", "train_loss", "arrivals", "seeds", "alpha_rezero"]
    (rows,) = specs["val_loss"]["datasets"].values()
    assert {(row["arm"], row["x"]) for row in rows} == {(arm, x) for arm in ("pre-norm", "rezero") for x in (2, 4, 6)}
    for name in ("train_loss", "val_loss"):
        (rows,) = specs[name]["datasets"].values()
        for shown in rows:
            points = [p for r in results if r.trial.arm == shown["arm"] for p in r.points if p.step == shown["x"]]
            low, high = sorted(point.metrics[name] / math.log(2) for point in points)
            assert (shown["low"], shown["high"]) == pytest.approx((low, high), rel=1e-12)
    assert "training loss (bits a byte, log scale)" in json.dumps(specs["train_loss"])
    assert "nats" not in json.dumps(specs) + " ".join(page.find("p"))
    for name, spec in specs.items():
        assert ('"step"' in json.dumps(spec)) == (name != "seeds"), name
        assert '"epoch"' not in json.dumps(spec), name
    assert "validation loss (bits a byte)" in json.dumps(specs["val_loss"])
    assert "bits a byte" in page.find("p")[1]
    assert "accuracy" not in json.dumps(specs)


def test_samples_are_shown_as_they_are(text_folder: Path) -> None:
    """The page shows what the first seed of each arm wrote, markup and all, under the arm's name."""
    page = page_of(text_folder)
    with Store.open(text_folder) as store:
        first = [result for result in store.results() if result.trial.seed == 0]
    assert page.find("h3") == ["pre-norm, seed 0", "rezero, seed 0"]
    shown = page.find("pre")
    for text, result in zip(shown, first, strict=True):
        assert result.last.sample is not None
        assert "<b>" in result.last.sample[:64]
        given, _, written = result.last.sample.partition(SAMPLE_MARK)
        # HTML knows no carriage return of its own, and a page drops a line feed right behind <pre>.
        assert visible(text) == visible(given + written)
        assert page.find("span") == 2 * [visible(given)]
        assert len(given.encode()) == 64
    assert shown[0] != shown[1]
    assert page.find("b") == []


def visible(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\n")


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "</pre><img src=x onerror=alert(1)>", "&lt;&amp; {{ 7 * 7 }} <!--"], ids=str
)
def test_a_sample_full_of_markup_stays_text(tmp_path: Path, text: str) -> None:
    """What a model writes is shown as it is, adds no element to the page, and runs nothing."""
    asked = study("plain", "rezero", seeds=1)
    pages = []
    for name, sample in (("harmless", "words"), ("hostile", text)):
        with Store.open(tmp_path / name, asked) as store:
            for arm in ("plain", "rezero"):
                trial = Trial(arm, 0.01, 0)
                store.begin(trial)
                metrics = {"seconds": 1.0, "train_loss": 2.0, "val_accuracy": 0.5, "val_loss": 2.0}
                store.add(trial, Point(3, 1.0, metrics, (), sample if arm == "plain" else None))
                store.finish(trial, "finished")
            write_report(store)
        pages.append(page_of(tmp_path / name))
    harmless, hostile = pages
    assert [name for name, *_ in harmless.elements] == [name for name, *_ in hostile.elements]
    assert hostile.find("pre") == [text]
    assert hostile.find("h3") == ["plain, seed 0"]  # the other arm wrote nothing


def test_page_fetches_nothing(folder: Path) -> None:
    """No element, style or policy of the page lets a browser fetch anything."""
    page = page_of(folder)
    references = [(tag, key, v) for tag, attrs, _ in page.elements for key, v in attrs.items() if key in REFERENCES]
    assert references == []
    assert not {name for name, _, _ in page.elements} & {"link", "iframe", "frame", "object", "embed", "base", "img"}
    styles = page.find("style") + [a["style"] or "" for _, a, _ in page.elements if "style" in a]
    assert styles
    assert [style for style in styles if re.search(r"@import|url\s*\(|image-set\s*\(", style)] == []
    (policy,) = [
        a["content"] or "" for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    sources = {source for rule in rules.values() for source in rule.split()}
    assert sources <= {"'none'", "'unsafe-inline'", "'unsafe-eval'", "data:"}


def test_charts_carry_their_data(folder: Path) -> None:
    """Every chart's data are in the page, none is loaded from an address."""
    specs = specs_of(page_of(folder))
    assert [*specs] == ["val_accuracy", "train_loss", "arrivals", "seeds", "alpha_rezero"]
    for spec in specs.values():
        assert '"url"' not in json.dumps(spec)
        assert sum(len(rows) for rows in spec["datasets"].values()) > 0


def test_svg_files_fetch_nothing(folder: Path) -> None:
    """The SVG files refer to nothing outside themselves."""
    for path in folder.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - our own file
        values = [(key, value) for element in root.iter() for key, value in element.attrib.items()]
        assert [pair for pair in values if pair[0].endswith(("href", "src")) and not pair[1].startswith("#")] == []
        assert [value for _, value in values if re.search(r"url\((?!#)", value)] == []
        assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "style", "image"})


def test_charts_show_the_studys_numbers(folder: Path) -> None:
    """The curves are median and range over seeds of each arm at each epoch; the map has each gate at each epoch."""
    with Store.open(folder) as store:
        results = store.results()
    specs = specs_of(page_of(folder))
    for name in ("train_loss", "val_accuracy"):
        (rows,) = specs[name]["datasets"].values()
        assert len(rows) == 3 * 2
        for row in rows:
            points = [p for r in results if r.trial.arm == row["arm"] for p in r.points if p.epoch == row["x"]]
            low, high = sorted(point.metrics[name] for point in points)
            assert (row["low"], row["median"], row["high"]) == (low, (low + high) / 2, high)
    (cells,) = specs["alpha_rezero"]["datasets"].values()
    assert {(cell["x"], cell["gate"]) for cell in cells} == {(x, gate) for x in (1.0, 2.0) for gate in (1, 2)}
    for cell in cells:
        points = [p for r in results if r.trial.arm == "rezero" for p in r.points if p.epoch == cell["x"]]
        assert cell["size"] == sum(abs(point.alphas[cell["gate"] - 1]) for point in points) / 2
        assert cell["size"] > 0


def test_table_has_a_row_an_arm(folder: Path) -> None:
    """The page's table is summary_rows(): one row an arm in the study's order, with its formula and its numbers."""
    with Store.open(folder) as store:
        results = store.results()
        rows = summary_rows(store, results)
    assert [[*row.items()] for row in table_of(page_of(folder))] == [[*row.items()] for row in rows]
    assert [row["arm"] for row in rows] == ["plain", "rezero", "pre-norm"]
    for row in rows:
        assert row["formula"] == TASK.arms[row["arm"]]
        low, high = sorted(r.last.metrics["train_loss"] for r in results if r.trial.arm == row["arm"])
        assert row["training loss (nats)"] == f"{(low + high) / 2:#.3g} ({low:#.3g} to {high:#.3g})"
        low, high = sorted(100 * r.last.metrics["val_accuracy"] for r in results if r.trial.arm == row["arm"])
        assert row["validation accuracy"] == f"{(low + high) / 2:.1f} % ({low:.1f} to {high:.1f})"
        low, high = sorted(1000 * r.last.metrics["seconds"] / 6 for r in results if r.trial.arm == row["arm"])
        assert row["ms a step"] == f"{(low + high) / 2:.1f} ({low:.1f} to {high:.1f})"
        assert row["seeds"] == "2"


def test_verdict_is_in_the_page_and_in_its_file(folder: Path) -> None:
    """verdict.txt is write_verdict(), and the page has its paragraphs."""
    with Store.open(folder) as store:
        verdict = write_verdict(store.study, store.results())
    assert (folder / "verdict.txt").read_text(encoding="utf-8") == verdict + "\n"
    assert page_of(folder).find("p")[:4] == verdict.split("\n\n")


def test_page_says_how_to_make_it_again(folder: Path) -> None:
    """The page lists where the study comes from and every setting that has a value."""
    page = page_of(folder)
    facts = dict(zip(page.find("dt"), page.find("dd"), strict=True))
    assert facts == {
        "data set": "digits",
        "command": "rezero compare",
        "arms": "plain, rezero, pre-norm",
        "depth": "2",
        "width": "8",
        "epochs": "2",
        "batch size": "500",
        "accumulate": "1",
        "lr": "0.01",
        "optimizer": "Adagrad",
        "schedule": "constant",
        "warmup": "0",
        "precision": "float32",
        "seeds": "2",
        "device": "cpu",
        "threads": "1",
        "processes": "1",
    }


def test_only_gated_arms_have_a_map_of_alpha(tmp_path: Path) -> None:
    """Of all arms, those whose formula has an alpha have a map, and the others have none."""
    with made(tmp_path, study(*TASK.arms, seeds=1, epochs=1)):
        pass
    gated = {f"alpha_{arm}" for arm, formula in TASK.arms.items() if "alpha" in formula}
    assert gated == {"alpha_rezero", "alpha_skipinit"}
    assert {*specs_of(page_of(tmp_path))} == {"train_loss", "val_accuracy", "arrivals", "seeds", *gated}
    assert {path.stem for path in tmp_path.glob("alpha*")} == gated
    assert [row["arm"] for row in table_of(page_of(tmp_path))] == [*TASK.arms]


def test_every_chart_has_its_place(folder: Path) -> None:
    """Each chart's script finds an element with its name, and its caption names files that are there."""
    page = page_of(folder)
    places = [attributes["id"] for attributes in page.attributes("div") if attributes.get("class") == "chart"]
    assert places == [*specs_of(page)]
    for attributes in page.attributes("div"):
        if attributes.get("class") == "chart":
            assert attributes["role"] == "img"
            assert attributes["aria-label"] == specs_of(page)[attributes["id"] or ""]["description"]
    captions = page.find("figcaption")
    assert len(captions) == len(places)
    for place, caption in zip(places, captions, strict=True):
        assert caption.endswith(f"Files: {place}.svg, {place}.png.")
        assert (folder / f"{place}.svg").exists()
        assert (folder / f"{place}.png").exists()


HOSTILE = "</title></script></style><b>&amp;\"'{{ 7 * 7 }}<!--<script>alert(1)"


def test_what_a_user_types_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and commands full of markup change no element of the page and are shown as they are."""
    arms = {"plain": "f(x)", HOSTILE: f"f({HOSTILE})"}
    monkeypatch.setitem(TASKS, "fc-digits", replace(TASK, arms=arms))
    pages = []
    for name, arm, typed in (("plain", "other", "harmless"), ("hostile", HOSTILE, HOSTILE)):
        arms["other"] = "f(other)"
        facts = {"command": f"rezero compare -o {typed}", typed: "key"}
        with Store.open(tmp_path / name, study("plain", arm, provenance=facts)) as store:
            for each in ("plain", arm):
                trial = Trial(each, 0.01, 0)
                store.begin(trial)
                metrics = {"seconds": 1.0, "train_loss": 2.0, "val_accuracy": 0.5, "val_loss": 2.0}
                store.add(trial, Point(3, 1.0, metrics, ()))
                store.finish(trial, "finished")
            write_report(store)
        pages.append(page_of(tmp_path / name))
    harmless, hostile = pages
    names = [[(name, [*attributes]) for name, attributes, _ in page.elements] for page in pages]
    assert names[0] == names[1]
    assert hostile.find("title") == hostile.find("h1") == [f"fc-digits: plain, {HOSTILE}"]
    assert hostile.find("dd")[1] == f"rezero compare -o {HOSTILE}"
    assert HOSTILE in hostile.find("dt")
    assert [(row["arm"], row["formula"]) for row in table_of(hostile)][1:] == [(HOSTILE, f"f({HOSTILE})")]
    assert len(harmless.find("script")) == len(hostile.find("script")) == 2
    rows = [row for spec in specs_of(hostile).values() for data in spec["datasets"].values() for row in data]
    assert Counter(row["arm"] for row in rows) == {"plain": 6, HOSTILE: 6}


def own_study(folder: Path, ends: dict[str, dict[str, float]], *, seeds: int = 1, step: int = 10) -> Path:
    """The folder of a study of a script: arm to its metrics at the end, with two gates and a report."""
    settings = OwnSettings(arms=(*ends,), script="train.py", digest="", seeds=seeds, lr=1.0, metric=METRIC)
    with Store.open(folder, Study("train.py", settings, {}, "", Question(goal="min"))) as store:
        for arm, metrics in ends.items():
            for seed in range(seeds):
                trial = Trial(arm, 1.0, seed)
                store.begin(trial, -1)
                for at in sorted({0, step}):
                    store.add(trial, Point(at, float(at), {**metrics, "seconds": 1.0 + at}, (0.1 * at, 0.2)))
                store.finish(trial, "finished")
        write_report(store)
    return folder


EDGES = {
    "only-step-0": ({"original": 1.0, "rezero": 2.0}, 0),
    "edge-of-floats": ({"original": 1e300, "rezero": -1e300}, 10),
    "beyond": ({"original": 1.7e308, "rezero": -1.7e308}, 10),
    "last-step": ({"original": 1.0, "rezero": 2.0}, 2**63 - 1),
    "zero": ({"original": 0.0, "rezero": -0.0}, 10),
    "next-to-zero": ({"original": 5e-324, "rezero": -5e-324}, 10),
}


@pytest.mark.parametrize("name", EDGES)
def test_numbers_at_the_edges_have_a_report(tmp_path: Path, name: str) -> None:
    """A study that logged before its first step only, or numbers that floats hardly hold, has its pictures."""
    ends, step = EDGES[name]
    folder = own_study(
        tmp_path, {arm: {METRIC: end, "train_loss": abs(end)} for arm, end in ends.items()}, seeds=3, step=step
    )
    assert_pictures_are_whole(folder)
    assert "rezero against original, 3 paired seeds" in page_of(folder).find("p")[1]


@pytest.mark.parametrize("width", [200, 50])
def test_a_narrow_terminal_shows_no_formulas(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The numbers keep one line an arm for longer; what several seeds show is said to be their median."""
    monkeypatch.setattr("rezero.progress._plain", lambda: Console(width=width))
    print_table(
        [{"arm": "rezero", "loss": "1.00 (0.90 to 1.10)", "formula": "x + alpha * f(x), alpha = 0"}] * 2, medians=True
    )
    out = capsys.readouterr().out
    assert ("x + alpha" in out) == (width == 200)
    assert [line for line in out.splitlines() if "1.00 (0.90 to 1.10)" in line][1:]
    assert "Medians of the seeds and their range; the text compares seed by seed." in " ".join(out.split())


def test_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be markup, or a picture, to rich stays a name in the table and beside the bars."""
    ends = {"[/red]": {METRIC: 1.0, "val_loss[/b]": 1.0, "a[b]": 1.0, ":warning:": 2.0}}
    folder = own_study(tmp_path, ends)
    with Store.open(folder) as store:
        print_table(summary_rows(store, store.results()))
        with StudyProgress(store) as progress:
            progress.begin(Trial("[/red]", 1.0, 0), 10, 0)
            progress.point(Point(5, 5.0, {"a[/b]": 1.0}, ()))
            progress.finish(store.results()[0])
    out, err = capsys.readouterr()
    for name in ("[/red]", "validation loss[/b]", "a[b]", ":warning:"):
        assert name in out
    assert "[/red]" in err


METRIC = "val/loss"
NAMES = [
    "../../victim",
    "/etc/motd",
    "..",
    ".lock-x",
    "",
    "a" * 300,
    "字" * 300,
    "seeds",
    "Val/Loss",
    "a b",
    "a\0\n\u2028b",
    "x\"<'>&",
]


@pytest.mark.parametrize("name", NAMES, ids=[name[:12] for name in NAMES])
def test_names_of_metrics_and_arms_are_no_paths(tmp_path: Path, name: str) -> None:
    """Whatever metrics and arms are called, each chart has files of its own, in the study's folder."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    arm = name.replace(",", "") or "original"
    folder = own_study(tmp_path / "a" / "b" / "study", {"../../../../evil": {METRIC: 1.0}, arm: {METRIC: 2.0, name: 3}})
    specs = specs_of(page_of(folder))
    assert {*specs} >= {"val-loss", "arrivals", "alpha_..-..-..-..-evil"}
    assert len(specs) == len({each.casefold() for each in specs}) == 6
    assert all(re.fullmatch(r"[\w.=+-]{1,70}", each) for each in specs)
    assert (
        {path.stem for path in folder.glob("[!.]*.svg")} == {path.stem for path in folder.glob("[!.]*.png")} == {*specs}
    )
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["study"]
    captions = page_of(folder).find("figcaption")
    shown = name.replace("_", " ")
    assert any(caption.startswith(f"{shown[:1].upper()}{shown[1:]} of each arm.") for caption in captions)
    assert any(caption.startswith(f"Size of every gate of {arm} over") for caption in captions)


def test_a_report_is_made_again_beside_a_folder_of_charts(tmp_path: Path) -> None:
    """A study whose charts of val/loss lie in a folder of their own, as they did once, gets its report, every time."""
    folder = own_study(tmp_path, {"original": {METRIC: 1.0}})
    (folder / "val").mkdir()
    (folder / "val" / "loss.svg").write_text("old")
    for _ in range(2):
        with Store.open(folder) as store:
            write_report(store)
    assert (folder / "val" / "loss.svg").read_text() == "old"


def strict_json(path: Path) -> Any:
    """What a JSON file holds, which has no NaN and no infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_summary_is_the_study_for_programs(folder: Path) -> None:
    """summary.json has the task, the settings, where they come from, and the last numbers of every trial."""
    summary = strict_json(folder / "summary.json")
    assert (summary["task"], summary["data"]) == ("fc-digits", "digits")
    assert summary["settings"] == {**vars(study().settings), "arms": ["plain", "rezero", "pre-norm"]}
    assert summary["provenance"] == {"command": "rezero compare"}
    with Store.open(folder) as store:
        results = store.results()
    assert len(results) == 6
    assert summary["results"] == [
        {**vars(r.trial), "tuned": {}, "status": "finished", "memory": r.memory, "steps": 6, **r.last.metrics}
        for r in results
    ]


def test_report_of_a_study_without_results(tmp_path: Path) -> None:
    """A study that was stopped in its first trial has a report that says so."""
    with Store.open(tmp_path, study("plain", "rezero")) as store:
        store.begin(Trial("plain", 0.01, 0))
        write_report(store)
    page = page_of(tmp_path)
    assert page.find("p")[0].endswith("Only 0 of 4 trials have ended so far.")
    assert page.find("table") == []
    assert list(tmp_path.glob("*.svg")) == []


def test_report_of_an_unfinished_study(tmp_path: Path) -> None:
    """A study that was stopped shows the arms that it has, and says how many trials are missing."""
    metrics = {"seconds": 1.0, "train_loss": 2.0, "val_accuracy": 0.5, "val_loss": 2.0}
    with Store.open(tmp_path / "study", study("plain", "rezero")) as store:
        trial = Trial("plain", 0.01, 0)
        store.begin(trial)
        store.add(trial, Point(3, 1.0, metrics, ()))
        store.finish(trial, "finished")
        store.begin(Trial("rezero", 0.01, 0))
        write_report(store)
    page = page_of(tmp_path / "study")
    assert page.find("p")[0].endswith("Only 1 of 4 trials have ended so far.")
    (row,) = table_of(page)
    assert row["arm"] == "plain"
    assert row["training loss (nats)"] == "2.00"
    assert row["validation accuracy"] == "50.0 %"
    assert row["seeds"] == "1"


def test_report_of_arms_that_diverged(tmp_path: Path) -> None:
    """Where every arm diverged the report says so, counts the seeds, and its pictures are whole."""
    with made(tmp_path, study("residual", "rezero", lr=1e30)):
        pass
    page = page_of(tmp_path)
    assert page.find("p")[1] == "rezero against residual, 2 paired seeds: both diverged on every seed."
    assert [row["seeds"] for row in table_of(page)] == ["2, 2 diverged", "2, 2 diverged"]
    assert all(row["training loss (nats)"].startswith("diverged") for row in table_of(page))
    trials = strict_json(tmp_path / "summary.json")["results"]
    assert [(trial["status"], trial["train_loss"]) for trial in trials] == 4 * [("diverged", None)]
    assert_pictures_are_whole(tmp_path)


def test_report_of_one_arm_that_diverged(tmp_path: Path) -> None:
    """An arm that diverged is in the table and in the legend's order, and the others' curves are drawn."""
    with made(tmp_path, study("residual", "post-norm", depth=8, lr=1e6)) as store:
        results = store.results()
    assert {r.trial.arm: math.isfinite(r.last.metrics["train_loss"]) for r in results} == {
        "residual": False,
        "post-norm": True,
    }
    page = page_of(tmp_path)
    assert {row["arm"]: row["seeds"] for row in table_of(page)} == {"residual": "2, 2 diverged", "post-norm": "2"}
    (rows,) = specs_of(page)["train_loss"]["datasets"].values()
    assert {row["arm"] for row in rows} == {"post-norm"}
    assert {*specs_of(page)} == {"train_loss", "val_accuracy", "arrivals"}
    assert page.find("p")[1].startswith("post-norm against residual, 2 paired seeds: residual diverged on 2 of 2")
    assert_pictures_are_whole(tmp_path)


def test_report_of_one_arm_and_one_seed(tmp_path: Path) -> None:
    """A page of one arm and one seed speaks of no seeds, no range and no other arm."""
    with Store.open(tmp_path, study("rezero", seeds=1, epochs=1)) as store:
        record(store, Trial("rezero", 0.01, 0), (1.48151397705,), ((0.1, 0.2),))
        write_report(store)
    page = page_of(tmp_path)
    (row,) = table_of(page)
    assert (row["training loss (nats)"], row["ms a step"], row["seeds"]) == ("1.48", "333.3", "1")
    captions = [caption.partition(" Files: ")[0] for caption in page.find("figcaption")]
    assert captions == [
        "Validation accuracy of rezero.",
        "Training loss of rezero.",
        "Size of every gate of rezero over depth and time: |alpha|.",
    ]
    words = " ".join(page.find("p") + page.find("figcaption"))
    assert not re.search(r"median|range|lowest|the machine's|\barms\b|order", words.replace("no interval", ""))
    assert_pictures_are_whole(tmp_path)


def test_a_page_without_scripts_names_the_files(folder: Path) -> None:
    """Where JavaScript is off there is a sentence in place of each chart, with the name of its SVG file."""
    page = page_of(folder)
    said = page.find("noscript")
    assert "display: none" in said[0]
    assert [re.findall(r"\w+\.svg", text) for text in said[1:]] == [[f"{name}.svg"] for name in specs_of(page)]


def test_facts_have_names_of_their_own(text_folder: Path) -> None:
    """No two facts of a page have the same name, and names are words with spaces between them."""
    names = page_of(text_folder).find("dt")
    assert len({*names}) == len(names)
    assert {"data set", "data", "batch size", "measure every"} <= {*names}
    assert [name for name in names if "_" in name] == []


def test_a_failure_leaves_the_last_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a report cannot be written to its end the files of the last one keep their bytes, and nothing is left."""
    with Store.open(tmp_path, study("plain", "rezero", seeds=1)) as store:
        record(store, Trial("plain", 0.01, 0), (2.0, 1.0))
        write_report(store)
        before = files(tmp_path)
        record(store, Trial("rezero", 0.01, 0), (2.0, 0.5), ((0.1,), (0.2,)))
        write = Path.write_text

        def fill_the_disk(path: Path, text: str, **options: Any) -> int:
            write(path, text[:10], **options)
            raise OSError(28, "No space left on device")

        for name in ("report.html", "summary.json", "verdict.txt"):
            with monkeypatch.context() as patch:
                patch.setattr(
                    Path, "write_text", lambda p, t, n=name, **o: (fill_the_disk if p.name == n else write)(p, t, **o)
                )
                with pytest.raises(UsageError, match=r"^cannot write the report into .*No space left on device"):
                    write_report(store)
            assert files(tmp_path) == before
        write_report(store)
    assert files(tmp_path) != before


def test_a_path_that_is_not_utf8_is_written_with_escapes(tmp_path: Path) -> None:
    """A setting with bytes that are no text, as Python reads them from a command line, is in the page as an escape."""
    asked = study("plain", seeds=1)
    asked = replace(asked, settings=replace(asked.settings, data="F/\udcff.txt"))
    with Store.open(tmp_path, asked) as store:
        record(store, Trial("plain", 0.01, 0), (2.0, 1.0))
        write_report(store)
    assert r"F/\udcff.txt" in page_of(tmp_path).find("dd")


def record(store: Store, trial: Trial, losses: tuple[float, ...], alphas: tuple[tuple[float, ...], ...] = ()) -> None:
    """Put a trial with these losses, one an epoch, into a study."""
    store.begin(trial)
    for epoch, loss in enumerate(losses, 1):
        metrics = {"seconds": 1.0 * epoch, "train_loss": loss, "val_accuracy": 0.1 * epoch, "val_loss": loss}
        store.add(trial, Point(3 * epoch, float(epoch), metrics, alphas[epoch - 1] if alphas else ()))
    store.finish(trial, "finished" if math.isfinite(losses[-1]) else "diverged")


def test_a_seed_that_diverged_counts_to_the_end_of_the_curve(tmp_path: Path) -> None:
    """From where one seed of three diverged the curve is the median of all three, not of those that are left."""
    with Store.open(tmp_path, study("plain", seeds=3, epochs=3)) as store:
        for seed, losses in enumerate([(4.0, 2.0, 1.0), (5.0, math.nan), (6.0, 3.0, 1.5)]):
            record(store, Trial("plain", 0.01, seed), losses)
        write_report(store)
    (rows,) = specs_of(page_of(tmp_path))["train_loss"]["datasets"].values()
    assert [(row["x"], row["median"], row["low"]) for row in rows] == [
        (1.0, 5.0, 4.0),
        (2.0, 3.0, 2.0),
        (3.0, 1.5, 1.0),
    ]
    assert_pictures_are_whole(tmp_path)


def test_a_gate_that_diverged_does_not_blot_the_map(tmp_path: Path) -> None:
    """Gates that are no numbers at the end of a trial leave the colours of the earlier ones apart."""
    with Store.open(tmp_path, study("rezero", seeds=1)) as store:
        record(store, Trial("rezero", 0.01, 0), (1.0, math.nan), ((0.1, 0.5), (math.nan, math.nan)))
        write_report(store)
    assert_pictures_are_whole(tmp_path)
    svg = (tmp_path / "alpha_rezero.svg").read_text(encoding="utf-8")
    first = re.findall(r'aria-label="epoch: 1; block, from the input: [12];[^>]*fill="([^"]+)"', svg)
    assert len(first) == len({*first}) == 2
    assert "Infinity" not in json.dumps(specs_of(page_of(tmp_path)))


def assert_pictures_are_whole(folder: Path) -> None:
    """Every chart of the page has its files, and every coordinate in them is a number."""
    svgs = {path.stem: path for path in folder.glob("*.svg")}
    assert {*svgs} == {*specs_of(page_of(folder))}
    for path in svgs.values():
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314 - our own file
        geometry = [v for e in root.iter() for k, v in e.attrib.items() if k in {"d", "width", "height", "transform"}]
        assert [value for value in geometry if "NaN" in value or "Infinity" in value] == [], path.name
        assert path.with_suffix(".png").stat().st_size > 0


def test_report_does_not_touch_the_study(folder: Path) -> None:
    """Making the report again changes nothing in study.sqlite."""
    before = (folder / "study.sqlite").read_bytes()
    with Store.open(folder) as store:
        write_report(store)
    assert (folder / "study.sqlite").read_bytes() == before


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("width", [400, 1280], ids=str)
def test_browser_draws_every_chart(folder: Path, tmp_path: Path, width: int) -> None:
    """In headless Chromium every chart of the page is an SVG with marks, not wider than the window, and named."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    flags += [f"--disable-{name}" for name in ("gpu", "background-networking", "component-update", "sync")]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=8000"]
    command = [CHROMIUM, *flags, *where, "--dump-dom", (folder / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    page = Page(done.stdout)
    charts = specs_of(page_of(folder))
    assert len(charts) == 5
    for name, spec in charts.items():
        start = next(i for i, (_, attributes, _) in enumerate(page.elements) if attributes.get("id") == name)
        inside = page.elements[start + 1 :]
        svgs = [i for i, (tag, _, _) in enumerate(inside) if tag in ("svg", "figcaption")]
        tag, attributes, _ = inside[svgs[0]]
        assert tag == "svg", name
        assert 100 < float(attributes["width"] or 0) <= max(width, 500)
        marks = [
            a for _, a, _ in inside[svgs[0] : svgs[1]] if re.match(r"epoch: |step: |arm: ", a.get("aria-label") or "")
        ]
        assert len(marks) >= (3 if name == "arrivals" else 4), name
        assert spec["description"] in [a.get("aria-label") for _, a, _ in page.elements[start : start + svgs[1]]]
