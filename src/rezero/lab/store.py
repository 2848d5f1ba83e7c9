"""A study on disk: one SQLite file in the study's folder."""

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rezero.errors import UsageError
from rezero.lab.damage import damage_named, disk_error
from rezero.lab.design import Question
from rezero.lab.facts import check_same, is_empty, migrate, note_continuation, of_kind, read_study, write_schema
from rezero.lab.holder import hold
from rezero.lab.own import OwnSettings
from rezero.lab.place import DATABASE, check_local, check_new_folder, check_writable
from rezero.lab.settings import Settings
from rezero.lab.study import Study, TrialResult, sound
from rezero.lab.trial import Point, Trial

__all__ = ["LONGEST_NOTE", "Store"]

WAIT = 60.0  # seconds for other writers
LONGEST_NOTE = 1_000  # characters
METRICS = {"train_loss", "val_loss", "val_accuracy", "seconds"}
ENDS = ("finished", "diverged", "crashed", "timed out", "silent")


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
                    if is_empty(connection, folder):
                        check_new_folder(folder)
                    else:
                        migrate(connection, folder)
                        check_same(connection, study, folder)
                    stack.enter_context(hold(folder))
                    write_schema(connection, study, folder)
            except (OSError, sqlite3.Error) as error:
                purpose = "read" if study is None else "write to"
                raise UsageError(f"cannot {purpose} the output folder {folder}: {error}") from error
            migrate(connection, folder)
            if study is not None:
                check_same(connection, study, folder)
            held = read_study(connection, folder)
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
        """Return the steps of a whole trial, 0 where no point tells them yet: of a script only one that has ended."""
        query = "SELECT coalesce(max(step), 0) FROM metric JOIN trial ON trial.id = trial WHERE status = 'finished'"
        scale = 1
        if isinstance(settings := self.study.settings, Settings):
            if settings.steps:
                return settings.steps
            query, scale = "SELECT coalesce(max(step / epoch), 0) FROM metric WHERE epoch > 0", settings.epochs or 0
        with damage_named(self.folder):
            return round(scale * float(next(self._rows(query, (), float))[0]))

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
                self.study = note_continuation(connection, self.study, self._asked)
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


def _of_column(name: str, value: Any, kind: Any) -> Any:
    """Return a value of a table, which holds no infinity."""
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{name} is {value!r}")
    return of_kind(name, value, kind)


_FIND = "SELECT id FROM trial WHERE (arm, lr, seed, tuned) = (?, ?, ?, ?)"


def _key(trial: Trial) -> tuple[str, float, int, str]:
    return trial.arm, trial.lr, trial.seed, json.dumps(dict(trial.tuned))


def _read_tuned(text: str) -> tuple[tuple[str, float], ...]:
    tuned = of_kind("tuned", json.loads(text), dict)
    return tuple((name, of_kind(name, value, float)) for name, value in tuned.items())


def _written(value: float) -> float | None:
    return None if math.isnan(sound(value)) else value


def _text(text: str) -> str:
    """Return a text with escapes for halves of characters, as Python reads bytes that are no text."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
