"""A study on disk: one SQLite file in the study's folder."""

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rezero.errors import UsageError
from rezero.lab.damage import damage_named, disk_error
from rezero.lab.design import Design, Question
from rezero.lab.holder import LOCK, hold
from rezero.lab.own import OwnSettings
from rezero.lab.place import DATABASE, check_local, check_new_folder, check_writable
from rezero.lab.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from rezero.lab.settings import Settings
from rezero.lab.trial import Point, Trial

__all__ = ["LOCK", "LONGEST_NOTE", "Store", "Study", "TrialResult", "sound"]

WAIT = 60.0  # seconds for other writers
LONGEST_NOTE = 1_000  # characters
LARGEST = 1e300  # beyond it a sum or a difference may be none
METRICS = {"train_loss", "val_loss", "val_accuracy", "seconds"}
ENDS = ("finished", "diverged", "crashed", "timed out", "silent")


@dataclass(frozen=True)
class Study:
    """What a study is, apart from its results.

    Attributes:
        task: Name of the task; of a script or function of one's own its name.
        settings: Everything that decides its numbers.
        provenance: How it came about, as the report shows it: command, versions, machine, date.
        data: Name of the data; one that was given by path carries its checksum.
        question: What is asked of the results.
    """

    task: str
    settings: Design
    provenance: dict[str, str]
    data: str = ""
    question: Question = field(default_factory=Question)

    @property
    def task_settings(self) -> Settings:
        """The settings of a study of one of the lab's own tasks."""
        if not isinstance(self.settings, Settings):
            raise TypeError(f"{self.task} is no task of the lab")
        return self.settings


@dataclass(frozen=True)
class TrialResult:
    """A trial with all its points.

    Attributes:
        trial: Which one.
        status: ``finished``, ``diverged``, or, of a script, ``crashed``, ``timed out`` or ``silent``.
        points: What was measured, in the order of steps.
        memory: Bytes that its process, or its device, held at the peak; None if nobody looked.
        note: What is worth knowing of its end, in a line; empty if nothing is.
    """

    trial: Trial
    status: str
    points: tuple[Point, ...]
    memory: float | None = None
    note: str = ""

    @property
    def last(self) -> Point:
        """The last point; one of nothing for a trial that measured nothing."""
        return self.points[-1] if self.points else Point(0, 0.0, {"seconds": 0.0}, ())

    def final(self, metric: str) -> float:
        """Return the last value of a metric; nan for a trial that did not finish, whatever it had reached before."""
        if self.status != "finished":
            return math.nan
        return next((each.metrics[metric] for each in reversed(self.points) if metric in each.metrics), math.nan)


class Store:
    """The records of one study. Each point is committed as it comes, so a run that is killed loses only its last trial.

    Args:
        folder: The study's folder.
        connection: Connection to its database.
        study: What the study is.
        asked: The same study as the present command describes it, with its own provenance; None to read only.
    """

    def __init__(self, folder: Path, connection: sqlite3.Connection, study: Study, asked: Study | None = None) -> None:
        self.folder = folder
        self.study = study
        self._asked = asked
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, folder: Path, study: Study | None = None) -> Iterator["Store"]:
        """Open a study, creating it if ``study`` is given and there is none yet.

        Args:
            folder: The study's folder.
            study: What the folder must hold; None takes what is there.

        Yields:
            The store, open until the block ends.

        Raises:
            UsageError: If the folder cannot be used, holds something else, or holds another study.
        """
        path = folder.absolute() / DATABASE
        with ExitStack() as stack:
            try:
                if study is None and not path.exists():
                    inside = folder.is_file() and folder.with_name(DATABASE).exists()
                    advice = f"give its folder, {folder.parent}" if inside else "`rezero compare` makes one"
                    raise UsageError(f"expected a study in {folder}, found no study.sqlite; {advice}")
                check_local(folder, exists=path.exists())
                if not path.exists():
                    check_new_folder(folder)
                    folder.mkdir(parents=True, exist_ok=True)
                check_writable(folder)
                connection = stack.enter_context(closing(sqlite3.connect(path, timeout=WAIT)))
                if study is not None:
                    if _is_empty(connection, folder):
                        check_new_folder(folder)
                    else:
                        _migrate(connection, folder)
                        _check_same(connection, study, folder)
                    stack.enter_context(hold(folder))
                    _write_schema(connection, study, folder)
            except (OSError, sqlite3.Error) as error:
                purpose = "read" if study is None else "write to"
                raise UsageError(f"cannot {purpose} the output folder {folder}: {error}") from error
            _migrate(connection, folder)
            if study is not None:
                _check_same(connection, study, folder)
            held = _read_study(connection, folder)
            store = cls(folder, connection, held, asked=study)
            if study is not None and held.settings != study.settings:  # in what decides no number
                store._write_fact("settings", asdict(study.settings))
                store.study = replace(held, settings=study.settings)
            yield store

    def ask(self, question: Question) -> None:
        """Ask something else of the study from now on."""
        self._write_fact("question", asdict(question))
        self.study = replace(self.study, question=question)

    def _write_fact(self, key: str, value: Any) -> None:
        """Replace a fact about the study."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (key, json.dumps(value)))

    def done(self) -> set[Trial]:
        """Return the trials that need not be run again."""
        with damage_named(self.folder):
            return {trial for _, trial, *_ in self._ended()}

    def running(self) -> dict[Trial, int]:
        """Return the trials that have begun and not ended, with the step of their last point, 0 without one."""
        query = """SELECT arm, lr, seed, tuned, coalesce(max(step), 0) FROM trial LEFT JOIN metric ON trial = trial.id
                   WHERE status = 'running' GROUP BY trial.id"""
        with damage_named(self.folder):
            rows = self._rows(query, (), str, float, int, str, int)
            return {Trial(arm, lr, seed, _read_tuned(tuned)): step for arm, lr, seed, tuned, step in rows}

    def length(self) -> int:
        """Return the steps of the longest trial so far, 0 before the first has ended."""
        with damage_named(self.folder):
            query = "SELECT coalesce(max(step), 0) FROM metric JOIN trial ON trial.id = trial WHERE status = 'finished'"
            return int(next(self._rows(query, (), int))[0])

    def has_measured(self) -> bool:
        """Say whether any trial has a point."""
        with damage_named(self.folder):
            return self._connection.execute("SELECT 1 FROM metric LIMIT 1").fetchone() is not None

    def result(self, trial: Trial) -> TrialResult:
        """Return a trial that has ended."""
        with damage_named(self.folder):
            row, status, memory, note = self._connection.execute(
                "SELECT id, status, memory, note FROM trial WHERE (arm, lr, seed, tuned) = (?, ?, ?, ?)", _key(trial)
            ).fetchone()
            return TrialResult(trial, status, self._points(row), memory, note)

    def begin(self, trial: Trial, start: int = 0) -> None:
        """Record that a trial starts, forgetting what an interrupted one left after its checkpoint at ``start``."""
        with self._writing() as connection:
            if self._asked is not None:
                self.study = _note_continuation(connection, self.study, self._asked)
            found = connection.execute(_FIND, _key(trial)).fetchone()
            for table in ("metric", "alpha", "sample"):
                statement = f"DELETE FROM {table} WHERE trial = ? AND step > ?"  # noqa: S608 - constant
                connection.execute(statement, (*(found or (None,)), start))
            connection.execute(
                "INSERT INTO trial (arm, lr, seed, tuned, status) VALUES (?, ?, ?, ?, 'running') "
                "ON CONFLICT DO UPDATE SET status = 'running'",
                _key(trial),
            )

    def add(self, trial: Trial, point: Point) -> None:
        """Record a point. Values that are not `sound` are kept as NULL, and what is no text in names as escapes."""
        with self._writing() as connection:
            (row,) = connection.execute(_FIND, _key(trial)).fetchone()
            connection.executemany(
                "INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?, ?)",
                [(row, point.step, point.epoch, _text(name), _written(value)) for name, value in point.metrics.items()],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO alpha VALUES (?, ?, ?, ?)",
                [(row, point.step, gate, _written(value)) for gate, value in enumerate(point.alphas)],
            )
            if point.sample is not None:
                sample = (row, point.step, _text(point.sample))
                connection.execute("INSERT OR REPLACE INTO sample VALUES (?, ?, ?)", sample)

    def finish(self, trial: Trial, status: str, memory: float | None = None, note: str = "") -> None:
        """Record how a trial ended, the bytes that it held at the peak, and the beginning of what is worth knowing."""
        kept = note if len(note) <= LONGEST_NOTE else f"{note[: LONGEST_NOTE - 3]}..."
        with self._writing() as connection:
            statement = "UPDATE trial SET status = ?, memory = ?, note = ? WHERE (arm, lr, seed, tuned) = (?, ?, ?, ?)"
            connection.execute(statement, (status, memory, _text(kept), *_key(trial)))

    def forget(self, statuses: Sequence[str] = ("running", *ENDS)) -> int:
        """Forget the trials that ended in one of these ways, so that they are run again; return how many they were."""
        with self._writing() as connection:
            marks = ", ".join("?" * len(statuses))
            query = f"SELECT id FROM trial WHERE status IN ({marks})"  # noqa: S608 - question marks
            found = connection.execute(query, statuses).fetchall()
            for table, column in (("metric", "trial"), ("alpha", "trial"), ("sample", "trial"), ("trial", "id")):
                connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", found)  # noqa: S608 - constants
        return len(found)

    def results(self) -> list[TrialResult]:
        """Return the trials that ended, those of the tuning too, by arm in the study's order and then by seed."""
        with damage_named(self.folder):
            ended = [
                TrialResult(trial, status, self._points(row), memory, note)
                for row, trial, status, memory, note in self._ended()
            ]
            return self._sorted(ended)

    def records(self) -> list[TrialResult]:
        """Return what `results` does and the trials that run, ``running``, as far as they are: all of one moment."""
        own = isinstance(self.study.settings, OwnSettings)
        with self._connection:
            with damage_named(self.folder):
                self._connection.execute("BEGIN")
            running = [self.result(trial) for trial, step in self.running().items() if own or step]
            ended = self.results()
        with damage_named(self.folder):
            return self._sorted([*ended, *running])

    def _sorted(self, results: list[TrialResult]) -> list[TrialResult]:
        order = {arm: position for position, arm in enumerate(self.study.settings.arms)}
        return sorted(results, key=lambda result: (order[result.trial.arm], result.trial.seed, result.trial))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block writes, all or nothing."""
        try:
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")  # waits for other writers before it reads
                yield connection
        except sqlite3.Error as error:
            raise disk_error(self.folder, error) from error

    def _ended(self) -> Iterator[tuple[int, Trial, str, float | None, str]]:
        query = "SELECT id, arm, lr, seed, tuned, status, memory, note FROM trial WHERE status <> 'running'"
        for row, arm, lr, seed, tuned, status, memory, note in self._rows(
            query, (), int, str, float, int, str, str, float | None, str
        ):
            if arm not in self.study.settings.arms:
                raise ValueError(f"arm is {arm!r}")
            if status not in ENDS:
                raise ValueError(f"status is {status!r}")
            yield row, Trial(arm, lr, seed, _read_tuned(tuned)), status, memory, note

    def _points(self, row: int) -> tuple[Point, ...]:
        metrics: dict[tuple[int, float], dict[str, float]] = {}
        query = "SELECT step, epoch, name, value FROM metric WHERE trial = ? ORDER BY step, name"
        for step, epoch, name, value in self._rows(query, (row,), int, float, str, float | None):
            metrics.setdefault((step, epoch), {})[name] = sound(value)
        alphas: dict[int, list[float]] = {}
        query = "SELECT step, value FROM alpha WHERE trial = ? ORDER BY step, gate"
        for step, value in self._rows(query, (row,), int, float | None):
            alphas.setdefault(step, []).append(sound(value))
        self._check_points(metrics)
        samples = dict(self._rows("SELECT step, value FROM sample WHERE trial = ?", (row,), int, str))
        return tuple(
            Point(step, epoch, named, tuple(alphas.get(step, ())), samples.get(step))
            for (step, epoch), named in metrics.items()
        )

    def _check_points(self, metrics: Mapping[tuple[int, float], Mapping[str, float]]) -> None:
        """Refuse points that no trial of the study can have left."""
        own = isinstance(self.study.settings, OwnSettings)  # such a trial measures what and when it likes
        if own and any("seconds" not in named for named in metrics.values()):
            raise ValueError("a point lacks its seconds")
        if not own and (not metrics or any(named.keys() != METRICS for named in metrics.values())):
            raise ValueError(f"a trial that ended lacks some of {', '.join(sorted(METRICS))}")
        step, epoch = min(metrics, default=(1, 1.0))
        if step < 0 or (not own and (step < 1 or not epoch > 0)):
            raise ValueError(f"a point is at step {step}, epoch {epoch}")

    def _rows(self, query: str, values: tuple[int, ...], *kinds: Any) -> Iterator[tuple[Any, ...]]:
        """Read rows whose columns are of these kinds; a damaged column can hold anything, whatever it was made for."""
        cursor = self._connection.execute(query, values)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield tuple(map(_of_column, names, row, kinds))


def sound(value: float | None) -> float:
    """Return a number that can be reckoned with, nan in the place of every other.

    Args:
        value: What was measured; None if it was not finite.

    Returns:
        The value, if it is finite and not beyond 1e300, from where a sum or a difference may be infinite.
    """
    return value if value is not None and abs(value) <= LARGEST else math.nan


def _of_column(name: str, value: Any, kind: Any) -> Any:
    """Return a value of a table, which holds no infinity."""
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{name} is {value!r}")
    return _of_kind(name, value, kind)


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return a value that was read, if it is what is written there; whole numbers are numbers."""
    wider = kind | int if isinstance(0.0, kind) else kind
    if isinstance(value, bool) or not isinstance(value, wider):
        raise TypeError(f"{name} is {value!r}")
    return value


_FIND = "SELECT id FROM trial WHERE (arm, lr, seed, tuned) = (?, ?, ?, ?)"


def _key(trial: Trial) -> tuple[str, float, int, str]:
    return trial.arm, trial.lr, trial.seed, json.dumps(dict(trial.tuned))


def _read_tuned(text: str) -> tuple[tuple[str, float], ...]:
    tuned = _of_kind("tuned", json.loads(text), dict)
    return tuple((name, _of_kind(name, value, float)) for name, value in tuned.items())


def _written(value: float) -> float | None:
    return None if math.isnan(sound(value)) else value


def _text(text: str) -> str:
    """Return a text with escapes for halves of characters, as Python reads bytes that are no text."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _is_empty(connection: sqlite3.Connection, folder: Path) -> bool:
    with damage_named(folder):
        return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,))


def _write_schema(connection: sqlite3.Connection, study: Study, folder: Path) -> None:
    """Write what the study is into a database that holds nothing yet, or a script's study that has no trial."""
    facts = {
        "schema": SCHEMA_VERSION,
        "task": study.task,
        "data": study.data,
        "settings": asdict(study.settings),
        "question": asdict(study.question),
        **study.provenance,
    }
    rows = [(key, json.dumps(value)) for key, value in facts.items()]
    new = _is_empty(connection, folder)
    if not new and not _may_be_replaced(connection, study, folder):
        return
    with damage_named(folder), connection:
        if new:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        if new:
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement)
        connection.execute("DELETE FROM study")
        connection.executemany("INSERT INTO study VALUES (?, ?)", rows)


def _may_be_replaced(connection: sqlite3.Connection, study: Study, folder: Path) -> bool:
    """Say whether the study that is there is one of the same script, of which no trial has begun: it was mended."""
    held = _read_study(connection, folder)
    with damage_named(folder):
        begun = connection.execute("SELECT count(*) FROM trial").fetchone()[0]
    return not begun and held.task == study.task and isinstance(study.settings, OwnSettings)


def _migrate(connection: sqlite3.Connection, folder: Path) -> None:
    """Bring the tables of an older version up to this one's, in one transaction."""
    if _is_empty(connection, folder):
        return
    with damage_named(folder):
        (held,) = connection.execute("SELECT value FROM study WHERE key = 'schema'").fetchone() or ("0",)
        version = _of_kind("schema", json.loads(held), int)
    if version + 1 not in MIGRATIONS:
        return  # this one's, or one that is refused
    with damage_named(folder), connection:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in filter(str.strip, MIGRATIONS[number].split(";")):
                connection.execute(statement)
        connection.execute("UPDATE study SET value = ? WHERE key = 'schema'", (json.dumps(SCHEMA_VERSION),))


def _read_study(connection: sqlite3.Connection, folder: Path) -> Study:
    with damage_named(folder):
        rows = connection.execute("SELECT key, value FROM study ORDER BY rowid").fetchall()
        facts: dict[str, Any] = {_of_kind("key", key, str): json.loads(value) for key, value in rows}
        version = _of_kind("schema", facts.pop("schema"), int)
    if version != SCHEMA_VERSION:
        whose, advice = ("an older", "use that one") if version < SCHEMA_VERSION else ("a newer", "update rezero")
        raise UsageError(
            f"{folder} was written by {whose} version of rezero: expected schema {SCHEMA_VERSION}, got {version}; "
            f"{advice}, or choose another folder"
        )
    with damage_named(folder):
        given = _of_kind("settings", facts.pop("settings"), dict)
        settings = _read_settings(OwnSettings if "script" in given else Settings, given)
        asked = _of_kind("question", facts.pop("question", {}), dict)
        question = Question(
            **{field.name: _of_kind(field.name, asked.get(field.name), field.type) for field in fields(Question)}
        )
        texts = {name: _of_kind(name, value, str) for name, value in facts.items()}
        task, data = texts.pop("task"), texts.pop("data")
        return Study(task, settings, texts, data, question)


def _read_settings(kind: type[Settings] | type[OwnSettings], given: Mapping[str, Any]) -> Design:
    kinds: dict[str, Any] = {each.name: each.type for each in fields(kind)}
    read: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("arms", "arguments"):
            read[name] = tuple(_of_kind(name, each, str) for each in value)
        else:
            read[name] = _of_kind(name, value, kinds[name])
    return kind(**read)


def _note_continuation(connection: sqlite3.Connection, held: Study, asked: Study) -> Study:
    """Record that a study goes on under another version, commit or machine than it began with."""
    changed = [
        name for name in ("commit", "versions", "machine") if held.provenance.get(name) != asked.provenance.get(name)
    ]
    if not changed or not held.provenance:
        return held
    note = "; ".join(f"{name}: {asked.provenance.get(name, 'unknown')}" for name in changed)
    title = f"continued {asked.provenance.get('date', '')}".strip()
    connection.execute("INSERT OR IGNORE INTO study VALUES (?, ?)", (title, json.dumps(note)))
    return replace(held, provenance={**held.provenance, title: note})


def _check_same(connection: sqlite3.Connection, asked: Study, folder: Path) -> None:
    held = _read_study(connection, folder)
    if _may_be_replaced(connection, asked, folder):
        return
    old, new = ({"task": each.task, "data set": each.data, **each.settings.decides()} for each in (held, asked))
    differences = [
        _changed(str(new["script"]))
        if name == "digest"
        else f"{name} {_show(old[name])} there, {_show(new[name])} asked"
        for name in old
        if name in new and old[name] != new[name]
    ]
    if differences:
        raise UsageError(
            f"{folder} holds another study ({'; '.join(differences)}): choose another folder with --output"
        )


def _changed(script: str) -> str:
    return f"{script if Path(script).is_file() else 'build, train, an arm or what they use'} has changed since"


def _show(value: object) -> str:
    return (",".join(map(str, value)) or "nothing") if isinstance(value, tuple) else str(value)
