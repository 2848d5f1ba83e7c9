"""A study on disk."""

import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from rezero.errors import UsageError
from rezero.lab import Point, Question, Settings, Store, Study, Trial, find_task

TASK = find_task("fc-digits")
PLAIN, REZERO = Trial("plain", 0.01, 0), Trial("rezero", 0.01, 0)


def tiny(**changes: Any) -> Settings:
    return TASK.settings({"arms": ("plain", "rezero"), "depth": 2, "width": 8, "epochs": 2, "seeds": 2, **changes})


def study(**changes: Any) -> Study:
    return Study("fc-digits", tiny(**changes), {"command": "rezero compare fc-digits", "date": "today"})


def point(step: int = 1, *, loss: float = 2.0, alphas: tuple[float, ...] = ()) -> Point:
    return Point(step, step / 12, {"seconds": 0.5, "train_loss": loss, "val_accuracy": 0.25, "val_loss": 2.5}, alphas)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes, None for a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A study that is closed and opened again has the same settings, provenance, trials and points, bit for bit."""
    points = (point(12, loss=0.1 + 0.2, alphas=(0.1, -1e-300)), point(24, loss=1 / 3, alphas=(5e-324, 1e300)))
    with Store.open(tmp_path / "a" / "b", study()) as store:
        store.begin(REZERO)
        for each in points:
            store.add(REZERO, each)
        store.finish(REZERO, "finished")
    for asked in (study(), None):
        with Store.open(tmp_path / "a" / "b", asked) as store:
            assert store.study == study()
            (result,) = store.results()
            assert (result.trial, result.status, result.points) == (REZERO, "finished", points)
            assert result.last == points[-1]


@pytest.mark.parametrize(
    "settings",
    [
        tiny(),
        tiny(arms=("rezero",), lr=0.1 + 0.2),
        TASK.settings({"steps": 7}),
        TASK.defaults,
        tiny(alpha_lr=1 / 3, clip=0.1, warmup=3, schedule="MultiStepLR milestones=1e,", measure_every=4),
        replace(find_task("lm-text").defaults, data="a 'b'/é.txt", processes=2),
    ],
    ids=["epochs", "float", "steps", "defaults", "recipe", "text"],
)
def test_settings_round_trip(tmp_path: Path, settings: Settings) -> None:
    """All settings come back equal, so that the same command finds the same study."""
    asked = Study("fc-digits", settings, {})
    with Store.open(tmp_path / "study", asked) as store:
        assert store.study == asked
    with Store.open(tmp_path / "study", asked) as store:
        assert store.study == asked


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file become larger than that."""
    import resource  # of POSIX

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("what", ["begin", "add", "finish"])
def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path: Path, what: str) -> None:
    """Where a record cannot be written the error names the file and says what to do, and the records before it stay."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, point(12))
        store.finish(REZERO, "finished")
        writes = {
            "begin": lambda: store.begin(PLAIN),
            "add": lambda: store.add(REZERO, point(24)),
            "finish": lambda: store.finish(REZERO, "diverged"),
        }
        with (
            full_disk((tmp_path / "study.sqlite-wal").stat().st_size),
            pytest.raises(UsageError, match=r"^cannot write to .*study\.sqlite \(.*make room.*the same command again$"),
        ):
            writes[what]()
        (result,) = store.results()
        assert (result.trial, result.status, result.points) == (REZERO, "finished", (point(12),))
        assert store.done() == {REZERO}
        writes[what]()  # there is room again


def test_provenance_names_each_machine_and_version(tmp_path: Path) -> None:
    """A study keeps how it came about, and says when it went on under another version, commit or machine."""
    first = {"command": "rezero compare", "versions": "1", "date": "Monday"}
    with Store.open(tmp_path, Study("fc-digits", tiny(), first)):
        pass
    with Store.open(tmp_path, Study("fc-digits", tiny(), {**first, "date": "Tuesday", "command": "other"})) as store:
        store.begin(REZERO)
        assert [*store.study.provenance.items()] == [*first.items()]
    continued = [*first.items(), ("continued Tuesday", "versions: 2")]
    with Store.open(tmp_path, Study("fc-digits", tiny(), {**first, "versions": "2", "date": "Tuesday"})) as store:
        store.begin(REZERO)
        assert [*store.study.provenance.items()] == continued
    with Store.open(tmp_path) as store:
        assert [*store.study.provenance.items()] == continued


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1e300, -1.7e308], ids=str)
def test_values_that_are_not_finite_come_back_as_nan(tmp_path: Path, value: float) -> None:
    """nan, infinities and what is close to them are kept as nan, losses and alphas alike, and the rest as it was."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, point(12, loss=value, alphas=(0.5, value)))
        store.finish(REZERO, "diverged")
    with Store.open(tmp_path) as store:
        (result,) = store.results()
    assert result.status == "diverged"
    assert math.isnan(result.last.metrics["train_loss"])
    assert result.last.metrics["val_loss"] == 2.5
    assert result.last.alphas[0] == 0.5
    assert math.isnan(result.last.alphas[1])
    assert result.last.diverged


def test_what_is_no_text_is_kept_as_an_escape(tmp_path: Path) -> None:
    """Halves of characters in names, notes and samples, which SQLite can't hold, are written out."""
    odd = replace(point(12), sample="é\udcff\n")
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, replace(odd, metrics={**odd.metrics, "é\ud800": 1.0}))
        store.finish(REZERO, "crashed", note="No such file: 'é\udcff'")
        names = [name for (name,) in store._connection.execute("SELECT name FROM metric")]
        samples = store._connection.execute("SELECT value FROM sample").fetchall()
        notes = store._connection.execute("SELECT note FROM trial").fetchall()
    assert "é\\ud800" in names
    assert samples == [("é\\udcff\n",)]
    assert notes == [("No such file: 'é\\udcff'",)]


@pytest.mark.parametrize(
    ("length", "kept"), [(1_000, "é" * 1_000), (1_001, "é" * 997 + "..."), (3_000_000, None)], ids=str
)
def test_of_a_long_note_the_beginning_is_kept(tmp_path: Path, length: int, kept: str | None) -> None:
    """1,000 characters of it, the last three of which say that there was more."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, point(12))
        store.finish(REZERO, "crashed", note="é" * length)
        (result,) = store.results()
    assert result.note == (kept or "é" * 997 + "...")


def test_a_running_trial_is_no_result(tmp_path: Path) -> None:
    """A trial counts as done, and appears among the results, when it has finished or diverged, not before."""
    with Store.open(tmp_path, study()) as store:
        for trial in (PLAIN, REZERO):
            store.begin(trial)
            store.add(trial, point())
        assert store.done() == set()
        assert store.results() == []
        store.finish(REZERO, "finished")
        assert store.done() == {REZERO}
        assert [result.trial for result in store.results()] == [REZERO]
        store.finish(PLAIN, "diverged")
        assert store.done() == {PLAIN, REZERO}


def test_begin_forgets_what_an_interrupted_trial_left(tmp_path: Path) -> None:
    """A trial that begins again has no point of its earlier run, and no other trial loses any."""
    with Store.open(tmp_path, study()) as store:
        store.begin(PLAIN)
        store.add(PLAIN, point(12, loss=1.0))
        store.finish(PLAIN, "finished")
        store.begin(REZERO)
        store.add(REZERO, point(12, alphas=(0.1, 0.2, 0.3)))
        store.add(REZERO, point(24, alphas=(0.1, 0.2, 0.3)))
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, point(12, loss=3.0, alphas=(0.4,)))
        store.finish(REZERO, "finished")
        plain, rezero = store.results()
    assert plain.points == (point(12, loss=1.0),)
    assert rezero.points == (point(12, loss=3.0, alphas=(0.4,)),)


def test_begin_at_a_checkpoint_keeps_what_came_before(tmp_path: Path) -> None:
    """A trial that goes on from step 12 keeps its points up to there and forgets the later ones, and no other's."""
    points = [replace(point(step, alphas=(0.1 * step,)), sample=f"at {step}") for step in (6, 12, 18, 24)]
    with Store.open(tmp_path, study()) as store:
        for trial in (PLAIN, REZERO):
            store.begin(trial)
            for each in points:
                store.add(trial, each)
        store.finish(PLAIN, "finished")
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO, 12)
        assert store.done() == {PLAIN}
        store.add(REZERO, point(20, loss=7.0))
        store.finish(REZERO, "finished")
        plain, rezero = store.results()
    assert [each.step for each in plain.points] == [6, 12, 18, 24]
    assert [each.step for each in rezero.points] == [6, 12, 20]
    assert [each.alphas for each in rezero.points] == [points[0].alphas, points[1].alphas, ()]


@pytest.mark.parametrize("text", ["", "two\nlines", "\x00\ufffd\U0001f600 <script>"], ids=["empty", "lines", "odd"])
def test_a_sample_is_kept(tmp_path: Path, text: str) -> None:
    """A text at the end of a trial comes back as it was, and a point without one has none."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, point(12))
        store.add(REZERO, replace(point(24), sample=text))
        store.finish(REZERO, "finished")
    with Store.open(tmp_path) as store:
        (result,) = store.results()
    assert [each.sample for each in result.points] == [None, text]


def test_a_sample_of_an_interrupted_trial_is_forgotten(tmp_path: Path) -> None:
    """A trial that begins again has no text of its earlier run."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, replace(point(24), sample="old"))
        store.begin(REZERO)
        store.add(REZERO, point(24))
        store.finish(REZERO, "finished")
        assert [each.sample for each in store.results()[0].points] == [None]


def test_results_are_ordered_by_arm_and_seed(tmp_path: Path) -> None:
    """Results come by arm in the study's order and then by seed, whenever they were run."""
    order = [("plain", 1), ("rezero", 0), ("post-norm", 1), ("plain", 0), ("rezero", 1), ("post-norm", 0)]
    with Store.open(tmp_path, study(arms=("rezero", "plain", "post-norm"))) as store:
        for arm, seed in order:
            trial = Trial(arm, 0.01, seed)
            store.begin(trial)
            store.add(trial, point())
            store.finish(trial, "finished")
        found = [(result.trial.arm, result.trial.seed) for result in store.results()]
    assert found == [(arm, seed) for arm in ("rezero", "plain", "post-norm") for seed in (0, 1)]


def test_a_point_is_on_disk_at_once(tmp_path: Path) -> None:
    """Another connection sees each point as soon as it is added."""
    with Store.open(tmp_path, study()) as store:
        store.begin(PLAIN)
        for step in (12, 24):
            store.add(PLAIN, point(step))
            with closing(sqlite3.connect(tmp_path / "study.sqlite")) as other:
                assert other.execute("SELECT max(step) FROM metric").fetchone() == (step,)


def test_closing_leaves_one_file(tmp_path: Path) -> None:
    """A study that is closed is one file, study.sqlite."""
    with Store.open(tmp_path, study()) as store:
        store.begin(PLAIN)
        store.add(PLAIN, point())
    assert [*tree(tmp_path)] == ["study.sqlite"]


def test_opening_a_study_changes_nothing(tmp_path: Path) -> None:
    """Opening a study to read it, or with the settings that it has, leaves every byte."""
    with Store.open(tmp_path, study()) as store:
        store.begin(PLAIN)
    before = tree(tmp_path)
    for asked in (None, study()):
        with Store.open(tmp_path, asked):
            pass
        assert tree(tmp_path) == before


def test_a_creation_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """An empty study.sqlite, which a kill during the creation leaves, becomes the study that is asked for."""
    (tmp_path / "study.sqlite").touch()
    with Store.open(tmp_path, study()) as store:
        assert store.study == study()
        assert store.done() == set()


@pytest.mark.parametrize("left", [b"", b"S"], ids=["nothing", "one-byte"])
def test_a_study_that_was_emptied_is_not_begun_anew(tmp_path: Path, left: bytes) -> None:
    """A study.sqlite that was truncated beside a report is refused, so that nothing is trained over old results."""
    with Store.open(tmp_path, study()):
        pass
    (tmp_path / "study.sqlite").write_bytes(left)
    (tmp_path / "report.html").write_text("results")
    before = tree(tmp_path)
    message = r"expected an empty or new folder, .* holds other files beside an empty study\.sqlite$"
    with pytest.raises(UsageError, match=message), Store.open(tmp_path, study()):
        pass
    assert tree(tmp_path) == before


def test_a_creation_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A creation that breaks off after some tables leaves none of them, and the study can be made afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr("rezero.lab.facts.SCHEMA", "CREATE TABLE study (key, value); CREATE TABLE study (key, value);")
        with pytest.raises(UsageError, match="table study already exists"), Store.open(tmp_path, study()):
            pass
    with closing(sqlite3.connect(tmp_path / "study.sqlite")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    with Store.open(tmp_path, study()) as store:
        assert store.study == study()


def test_two_commands_at_once_are_one_and_a_refusal(tmp_path: Path) -> None:
    """Where the same command starts twice at the same moment one makes the study and the other is told, every time."""
    start, end = Barrier(2), Barrier(2)

    def create(number: int) -> str:
        start.wait()
        try:
            with Store.open(tmp_path / str(number), study()) as store:
                end.wait()
                return store.study.task
        except UsageError as error:
            end.wait()
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            refused, made = sorted(pool.map(create, [number, number]), reverse=True, key=len)
            assert made == "fc-digits"
            assert refused.startswith(f"process {os.getpid()} on ")


def test_a_study_can_be_read_while_it_runs(tmp_path: Path) -> None:
    """The report of a study can be made while another process works on it."""
    with Store.open(tmp_path, study()), Store.open(tmp_path) as reader:
        assert reader.study == study()


# Places where no study can be: how each is made, and what is said of it. Each function returns the folder to open.


def another_study(root: Path) -> Path:
    with Store.open(root / "study", study(depth=3, arms=("plain",))):
        pass
    return root / "study"


def foreign_database(root: Path) -> Path:
    execute(root / "study.sqlite", "CREATE TABLE bookmarks (url TEXT)", "INSERT INTO bookmarks VALUES ('x')")
    return root


def foreign_study_table(root: Path) -> Path:
    execute(
        root / "study.sqlite", "CREATE TABLE study (participant TEXT, age INT)", "INSERT INTO study VALUES ('x', 5)"
    )
    return root


def foreign_key_value_table(root: Path) -> Path:
    execute(
        root / "study.sqlite", "CREATE TABLE study (key TEXT, value TEXT)", "INSERT INTO study VALUES ('a', '\"b\"')"
    )
    return root


def foreign_text_table(root: Path) -> Path:
    execute(
        root / "study.sqlite", "CREATE TABLE study (key TEXT, value TEXT)", "INSERT INTO study VALUES ('a', 'not json')"
    )
    return root


def garbage(root: Path) -> Path:
    (root / "study.sqlite").write_bytes(b"this is no database at all\n" * 100)
    return root


def newer_schema(root: Path) -> Path:
    with Store.open(root / "study", study()):
        pass
    execute(root / "study" / "study.sqlite", "UPDATE study SET value = '99' WHERE key = 'schema'")
    return root / "study"


def older_schema(root: Path) -> Path:
    with Store.open(root / "study", study()):
        pass
    execute(
        root / "study" / "study.sqlite",
        "UPDATE study SET value = '1' WHERE key = 'schema'",
        "DELETE FROM study WHERE key = 'data'",
        "UPDATE study SET value = json_remove(value, '$.optimizer', '$.clip') WHERE key = 'settings'",
        "DROP TABLE sample",
    )
    return root / "study"


def newer_settings(root: Path) -> Path:
    with Store.open(root / "study", study()):
        pass
    statement = "UPDATE study SET value = json_set(value, '$.momentum', 0.9) WHERE key = 'settings'"
    execute(root / "study" / "study.sqlite", statement, "UPDATE study SET value = '99' WHERE key = 'schema'")
    return root / "study"


def other_files(root: Path) -> Path:
    (root / "thesis.tex").write_text("years of work")
    return root


def hidden_file(root: Path) -> Path:
    (root / ".keep").touch()
    return root


def a_file(root: Path) -> Path:
    (root / "file").write_text("text")
    return root / "file"


def below_a_file(root: Path) -> Path:
    return a_file(root) / "study"


def far_below_a_file(root: Path) -> Path:
    return a_file(root) / "a" / "b"


def database_is_a_folder(root: Path) -> Path:
    (root / "study.sqlite").mkdir()
    return root


def below_proc(root: Path) -> Path:
    if sys.platform != "linux":
        pytest.skip("there is no /proc here")
    return Path("/proc/rezero-study")


NOT_A_STUDY = r"study\.sqlite is not a study, or is damaged"
PLACES: list[tuple[Callable[[Path], Path], str]] = [
    (
        another_study,
        r"holds another study \(arms plain there, plain,rezero asked; depth 3 there, 2 asked\): .*--output",
    ),
    (foreign_database, NOT_A_STUDY),
    (foreign_study_table, NOT_A_STUDY),
    (foreign_key_value_table, NOT_A_STUDY),
    (foreign_text_table, NOT_A_STUDY),
    (garbage, NOT_A_STUDY),
    (newer_schema, r"written by a newer version of rezero: expected schema 4, got 99; update rezero, or choose"),
    (newer_settings, r"written by a newer version of rezero: expected schema 4, got 99; update rezero, or choose"),
    (older_schema, r"written by an older version of rezero: expected schema 4, got 1; use that .*, or choose"),
    (other_files, r"expected an empty or new folder, or one that holds this study: .* holds other files"),
    (hidden_file, r"expected an empty or new folder, or one that holds this study: .* holds other files"),
    (a_file, r"expected a folder for the study, got a file: .*file"),
    (below_a_file, r"cannot write to the output folder .*study: .*file is not a folder"),
    (far_below_a_file, r"cannot write to the output folder .*b: .*file is not a folder"),
    (
        database_is_a_folder,
        r"cannot write to the output folder|cannot read the output folder|study\.sqlite is not a study",
    ),
    (below_proc, r"cannot write to the output folder /proc/rezero-study"),
]
NO_STUDY = r"expected a study in .*, found no study\.sqlite; `rezero compare` makes one"


@pytest.mark.parametrize(("make", "message"), PLACES, ids=[make.__name__ for make, _ in PLACES])
def test_a_place_that_cannot_be_used_stays_as_it_was(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    """Where no study can be made there is a UsageError of one line, and not a byte is written."""
    folder = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=message) as caught, Store.open(folder, study()):
        pass
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("make", "message"), PLACES[1:], ids=[make.__name__ for make, _ in PLACES[1:]])
def test_reading_what_is_no_study_leaves_it(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    """Where no study can be read there is a UsageError of one line, and not a byte is written."""
    folder = make(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=f"{message}|{NO_STUDY}") as caught, Store.open(folder):
        pass
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_reading_an_empty_database_is_an_error(tmp_path: Path) -> None:
    """An empty study.sqlite holds no study to report on, and stays empty."""
    (tmp_path / "study.sqlite").touch()
    with pytest.raises(UsageError, match=NOT_A_STUDY), Store.open(tmp_path):
        pass
    assert tree(tmp_path) == {"study.sqlite": b""}


def test_reading_nothing_creates_nothing(tmp_path: Path) -> None:
    """Opening a folder that does not exist, or is empty, without a study creates nothing."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        with pytest.raises(UsageError, match=NO_STUDY), Store.open(tmp_path / name):
            pass
    assert tree(tmp_path) == {"empty": None}


@pytest.mark.parametrize("name", ["report.html", "study.sqlite"])
def test_a_file_of_a_study_is_not_its_folder(tmp_path: Path, name: str) -> None:
    """Where a file of a study is given in place of the folder the error says which folder to give."""
    with Store.open(tmp_path, study()):
        pass
    (tmp_path / "report.html").touch()
    with pytest.raises(UsageError, match=f"found no study.sqlite; give its folder, {tmp_path}$"):
        Store.open(tmp_path / name).__enter__()


@pytest.mark.parametrize("asked", [None, study()], ids=["to-read", "to-run"])
@pytest.mark.parametrize("name", [".", "study.sqlite"], ids=["folder", "database"])
def test_a_study_without_permission_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: Study | None
) -> None:
    """A whole study that may only be read is refused for that, and not a byte is written."""
    with Store.open(tmp_path, study()):
        pass
    before = tree(tmp_path)
    locked = (tmp_path / name).resolve()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).resolve() != locked)  # root may write anywhere
    message = f"^cannot write to the output folder {tmp_path}: {locked} is not yours to write to; copy the study"
    with pytest.raises(UsageError, match=message), Store.open(tmp_path, asked):
        pass
    assert tree(tmp_path) == before


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be written to is refused before anything is tried, for the folder itself and one below."""
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    for folder in (tmp_path, tmp_path / "study"):
        with (
            pytest.raises(UsageError, match=r"cannot write to the output folder .* that you may write to"),
            Store.open(folder, study()),
        ):
            pass
    tmp_path.chmod(0o755)
    assert tree(tmp_path) == {}


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"depth": 5}, r"depth 2 there, 5 asked"),
    ({"width": 4}, r"width 8 there, 4 asked"),
    ({"epochs": 9}, r"epochs 2 there, 9 asked"),
    ({"batch_size": 5}, r"batch_size 128 there, 5 asked"),
    ({"lr": 0.011}, r"lr 0\.01 there, 0\.011 asked"),
    ({"seeds": 3}, r"seeds 2 there, 3 asked"),
    ({"arms": ("rezero", "plain")}, r"arms plain,rezero there, rezero,plain asked"),
    ({"alpha_lr": 0.5}, r"alpha_lr None there, 0\.5 asked"),
    ({"optimizer": "SGD momentum=0.9"}, r"optimizer Adagrad there, SGD momentum=0\.9 asked"),
    ({"schedule": "CosineAnnealingLR"}, r"schedule constant there, CosineAnnealingLR asked"),
    ({"warmup": 3}, r"warmup 0 there, 3 asked"),
    ({"clip": 1.0}, r"clip None there, 1\.0 asked"),
    ({"precision": "bf16"}, r"precision float32 there, bf16 asked"),
    ({"accumulate": 2}, r"accumulate 1 there, 2 asked"),
    ({"measure_every": 2}, r"measure_every None there, 2 asked"),
    ({"processes": 2}, r"processes 1 there, 2 asked"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[next(iter(change)) for change, _ in CHANGES])
def test_another_setting_is_another_study(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Every setting that decides numbers tells two studies apart, and the error names it with both values."""
    with Store.open(tmp_path, study()):
        pass
    with pytest.raises(UsageError, match=rf"holds another study \({message}\)"), Store.open(tmp_path, study(**change)):
        pass


def test_other_data_are_another_study(tmp_path: Path) -> None:
    """A study of other data with equal settings, such as a file that was changed meanwhile, is another study."""
    with Store.open(tmp_path, replace(study(), data="text.txt (sha256 1)")) as store:
        assert store.study.data == "text.txt (sha256 1)"
    other = replace(study(), data="text.txt (sha256 2)")
    message = r"holds another study \(data set text\.txt \(sha256 1\) there, text\.txt \(sha256 2\) asked\)"
    with pytest.raises(UsageError, match=message), Store.open(tmp_path, other):
        pass


def test_another_task_is_another_study(tmp_path: Path) -> None:
    """A study of another task with equal settings is another study."""
    with Store.open(tmp_path, study()):
        pass
    other = Study("fc-cifar10", tiny(), {})
    with (
        pytest.raises(UsageError, match=r"holds another study \(task fc-digits there, fc-cifar10 asked\)"),
        Store.open(tmp_path, other),
    ):
        pass


def test_a_study_can_be_read_where_it_could_not_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study made with more cores, or on a device that is not here, can still be opened to report on it."""
    with Store.open(tmp_path / "cores", study()):
        pass
    with Store.open(tmp_path / "device", study()):
        pass
    for name, key, value in (("cores", "threads", 10**6), ("device", "device", "cuda:99")):
        path = tmp_path / name / "study.sqlite"
        settings = json.dumps({**vars(tiny()), key: value})
        execute(path, f"UPDATE study SET value = '{settings}' WHERE key = 'settings'")  # noqa: S608 - our own text
        with Store.open(tmp_path / name) as store:
            assert getattr(store.study.settings, key) == value


# Values that are not what is written there: the statement that puts each into a whole study.
WRONG_VALUES: dict[str, str] = {
    "metric-text": "UPDATE metric SET value = 'abc'",
    "metric-blob": "UPDATE metric SET value = x'ff'",
    "metric-step-text": "UPDATE metric SET step = 'abc'",
    "metric-step-0": "UPDATE metric SET step = 0",
    "metric-step-negative": "UPDATE metric SET step = -5",
    "metric-epoch-text": "UPDATE metric SET epoch = 'abc'",
    "metric-epoch-0": "UPDATE metric SET epoch = 0",
    "metric-name-blob": "UPDATE metric SET name = x'ff' WHERE name = 'seconds'",
    "metric-infinite": "UPDATE metric SET value = 9e999",
    "metric-minus-infinite": "UPDATE metric SET value = -9e999",
    "metric-missing": "DELETE FROM metric WHERE name = 'seconds'",
    "alpha-text": "UPDATE alpha SET value = 'abc'",
    "alpha-step-text": "UPDATE alpha SET step = 'abc'",
    "sample-blob": "UPDATE sample SET value = x'ff'",
    "seed-text": "UPDATE trial SET seed = 'abc'",
    "lr-text": "UPDATE trial SET lr = 'abc'",
    "memory-infinite": "UPDATE trial SET memory = 9e999",
    "tuned-list": "UPDATE trial SET tuned = '[]'",
    "tuned-null": "UPDATE trial SET tuned = 'null'",
    "tuned-text": """UPDATE trial SET tuned = '{"warmup": "4"}'""",
    "arm-blob": "UPDATE trial SET arm = x'ff'",
    "arm-unknown": "UPDATE trial SET arm = 'abc'",
    "task-number": "UPDATE study SET value = '5' WHERE key = 'task'",
    "data-null": "UPDATE study SET value = 'null' WHERE key = 'data'",
    "command-list": "UPDATE study SET value = '[]' WHERE key = 'command'",
    "key-blob": "UPDATE study SET key = x'ff' WHERE key = 'command'",
    "schema-text": "UPDATE study SET value = '\"two\"' WHERE key = 'schema'",
    "schema-null": "UPDATE study SET value = 'null' WHERE key = 'schema'",
    "schema-half": "UPDATE study SET value = '2.0' WHERE key = 'schema'",
    "settings-list": "UPDATE study SET value = '[]' WHERE key = 'settings'",
    **{
        f"{name}={value}": f"UPDATE study SET value = json_set(value, '$.{name}', json('{value}')) "  # noqa: S608
        "WHERE key = 'settings'"
        for name, value in (
            *(("seeds", "1.5"), ("seeds", "true"), ("seeds", "0"), ("depth", "null"), ("width", '"8"')),
            *(("lr", '"fast"'), ("clip", "[]"), ("optimizer", "5"), ("arms", "[1, 2]"), ("arms", "5"), ("speed", "1")),
        )
    },
}


@pytest.mark.parametrize("statement", WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_a_wrong_value_is_damage(tmp_path: Path, statement: str) -> None:
    """A value that cannot have been written there is a UsageError of one line, wherever in the database it is."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.add(REZERO, replace(point(12, alphas=(0.5, 0.25)), sample="text"))
        store.finish(REZERO, "finished")
    execute(tmp_path / "study.sqlite", statement)
    with pytest.raises(UsageError, match=NOT_A_STUDY) as caught, Store.open(tmp_path) as store:
        store.results()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["seed-text", "lr-text", "arm-blob", "arm-unknown", "tuned-list"])
def test_a_damaged_trial_is_not_run_again(tmp_path: Path, name: str) -> None:
    """What is done is read with the same care, so that no damage has a trial trained anew."""
    with Store.open(tmp_path, study()) as store:
        store.begin(REZERO)
        store.finish(REZERO, "finished")
        store._connection.execute(WRONG_VALUES[name])
        with pytest.raises(UsageError, match=NOT_A_STUDY):
            store.done()


_OF_VERSION_2 = """
CREATE TABLE old (id INTEGER PRIMARY KEY, arm TEXT NOT NULL, lr REAL NOT NULL, seed INTEGER NOT NULL,
    status TEXT NOT NULL, UNIQUE (arm, lr, seed));
INSERT INTO old SELECT id, arm, lr, seed, status FROM trial;
DROP TABLE trial;
ALTER TABLE old RENAME TO trial;
DELETE FROM study WHERE key = 'question';
UPDATE study SET value = '2' WHERE key = 'schema';
UPDATE study SET value = json_remove(value, '$.tune', '$.tune_seeds', '$.tune_over', '$.metric', '$.weight_decay')
    WHERE key = 'settings';
"""


_OF_VERSION_3 = "ALTER TABLE trial DROP COLUMN note; UPDATE study SET value = '3' WHERE key = 'schema'"


def test_a_study_of_version_3_is_brought_up(tmp_path: Path) -> None:
    """Its trials are there, and none has a note yet."""
    with Store.open(tmp_path, study()) as store:
        store.begin(PLAIN)
        store.add(PLAIN, point(12))
        store.finish(PLAIN, "finished", 5e8)
        before = store.results()
    execute(tmp_path / "study.sqlite", *_OF_VERSION_3.split("; "))
    with Store.open(tmp_path) as store:
        assert store.study == study()
        assert store.results() == before
        assert store.results()[0].note == ""


@pytest.mark.parametrize("asked", [None, study()], ids=["to read", "to go on"])
def test_a_study_of_version_2_is_brought_up(tmp_path: Path, asked: Study | None) -> None:
    """Its trials, points and settings are there, untuned, and it goes on as if it had been written by this version."""
    with Store.open(tmp_path, study()) as store:
        for trial, status in ((PLAIN, "finished"), (REZERO, "diverged")):
            store.begin(trial)
            store.add(trial, point(12, alphas=(0.5,)))
            store.finish(trial, status)
        before = store.results()
    execute(tmp_path / "study.sqlite", *_OF_VERSION_2.strip().split(";\n"))
    with Store.open(tmp_path, asked) as store:
        assert store.study == study()
        assert store.results() == before
        store.finish(REZERO, "finished", 5e8)
        assert store.results()[1].memory == 5e8
    with closing(sqlite3.connect(tmp_path / "study.sqlite")) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("SELECT value FROM study WHERE key = 'schema'").fetchone() == ("4",)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A database of version 2 whose trials cannot be read stays as it was, and is refused by name."""
    with Store.open(tmp_path, study()):
        pass
    execute(tmp_path / "study.sqlite", *_OF_VERSION_2.strip().split(";\n"), "ALTER TABLE trial DROP COLUMN status")
    with pytest.raises(UsageError, match=r"study\.sqlite is not a study, or is damaged"), Store.open(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "study.sqlite")) as connection:
        assert connection.execute("SELECT value FROM study WHERE key = 'schema'").fetchone() == ("2",)
        assert {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
            "study",
            "trial",
            "metric",
            "alpha",
            "sample",
        }


def test_trials_that_were_tuned_are_told_apart(tmp_path: Path) -> None:
    """Two trials that differ only in what was chosen for them are two rows, and come back equal."""
    trials = [replace(PLAIN, tuned=(("alpha_lr", value),)) for value in (0.1, 0.3)]
    with Store.open(tmp_path, study()) as store:
        for trial in (*trials, PLAIN):
            store.begin(trial)
            store.add(trial, point())
            store.finish(trial, "finished", 1.5e8)
        assert {result.trial for result in store.results()} == {*trials, PLAIN} == store.done()
        assert {result.memory for result in store.results()} == {1.5e8}


def test_a_study_can_be_asked_something_else(tmp_path: Path) -> None:
    """Baseline, target and resolution are kept with a study and make it no other one."""
    with Store.open(tmp_path, study()) as store:
        assert store.study.question == Question()
        store.ask(Question(baseline="rezero", target=0.5))
    with Store.open(tmp_path, study()) as store:
        assert store.study.question == Question(baseline="rezero", target=0.5)
