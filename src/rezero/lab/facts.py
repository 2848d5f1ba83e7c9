"""What a study is, in the tables of its database: written, brought up to date, read, held against what is asked."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from rezero.errors import UsageError
from rezero.lab.damage import damage_named
from rezero.lab.design import Design, Question
from rezero.lab.own import OwnSettings
from rezero.lab.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from rezero.lab.settings import Settings
from rezero.lab.study import Study

__all__ = ["check_same", "is_empty", "migrate", "note_continuation", "of_kind", "read_study", "write_schema"]


def is_empty(connection: sqlite3.Connection, folder: Path) -> bool:
    """Say whether a database holds nothing yet.

    Args:
        connection: To it.
        folder: The study's, for what an error says.

    Returns:
        Whether it has no table.

    Raises:
        UsageError: If it is damaged.
    """
    with damage_named(folder):
        return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,))


def write_schema(connection: sqlite3.Connection, study: Study, folder: Path) -> None:
    """Write what the study is into a database that holds nothing yet, or a script's study that has no trial.

    Args:
        connection: To the database.
        study: What is written.
        folder: The study's.

    Raises:
        UsageError: If it is damaged.
    """
    facts = {
        "schema": SCHEMA_VERSION,
        "task": study.task,
        "data": study.data,
        "settings": asdict(study.settings),
        "question": asdict(study.question),
        **study.provenance,
    }
    rows = [(key, json.dumps(value)) for key, value in facts.items()]
    new = is_empty(connection, folder)
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
    held = read_study(connection, folder)
    with damage_named(folder):
        begun = connection.execute("SELECT count(*) FROM trial").fetchone()[0]
    return not begun and held.task == study.task and isinstance(study.settings, OwnSettings)


def migrate(connection: sqlite3.Connection, folder: Path) -> None:
    """Bring the tables of an older version up to this one's, in one transaction.

    Args:
        connection: To the database.
        folder: The study's.

    Raises:
        UsageError: If it is damaged.
    """
    if is_empty(connection, folder):
        return
    with damage_named(folder):
        (held,) = connection.execute("SELECT value FROM study WHERE key = 'schema'").fetchone() or ("0",)
        version = of_kind("schema", json.loads(held), int)
    if version + 1 not in MIGRATIONS:
        return  # this one's, or one that is refused
    with damage_named(folder), connection:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in filter(str.strip, MIGRATIONS[number].split(";")):
                connection.execute(statement)
        connection.execute("UPDATE study SET value = ? WHERE key = 'schema'", (json.dumps(SCHEMA_VERSION),))


def read_study(connection: sqlite3.Connection, folder: Path) -> Study:
    """Read what a study is.

    Args:
        connection: To the database.
        folder: The study's.

    Returns:
        The study.

    Raises:
        UsageError: If it is damaged, or of another version that can't be read.
    """
    with damage_named(folder):
        rows = connection.execute("SELECT key, value FROM study ORDER BY rowid").fetchall()
        facts: dict[str, Any] = {of_kind("key", key, str): json.loads(value) for key, value in rows}
        version = of_kind("schema", facts.pop("schema"), int)
    if version != SCHEMA_VERSION:
        whose, advice = ("an older", "use that one") if version < SCHEMA_VERSION else ("a newer", "update rezero")
        raise UsageError(
            f"{folder} was written by {whose} version of rezero: expected schema {SCHEMA_VERSION}, got {version}; "
            f"{advice}, or choose another folder"
        )
    with damage_named(folder):
        given = of_kind("settings", facts.pop("settings"), dict)
        settings = _read_settings(OwnSettings if "script" in given else Settings, given)
        asked = of_kind("question", facts.pop("question", {}), dict)
        question = Question(
            **{field.name: of_kind(field.name, asked.get(field.name), field.type) for field in fields(Question)}
        )
        texts = {name: of_kind(name, value, str) for name, value in facts.items()}
        task, data = texts.pop("task"), texts.pop("data")
        return Study(task, settings, texts, data, question)


def _read_settings(kind: type[Settings] | type[OwnSettings], given: Mapping[str, Any]) -> Design:
    kinds: dict[str, Any] = {each.name: each.type for each in fields(kind)}
    read: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("arms", "arguments"):
            read[name] = tuple(of_kind(name, each, str) for each in value)
        else:
            read[name] = of_kind(name, value, kinds[name])
    return kind(**read)


def note_continuation(connection: sqlite3.Connection, held: Study, asked: Study) -> Study:
    """Record that a study goes on under another version, commit or machine than it began with.

    Args:
        connection: To the database, in a transaction.
        held: The study that is there.
        asked: As the present command describes it.

    Returns:
        The study with what was noted.
    """
    changed = [
        name for name in ("commit", "versions", "machine") if held.provenance.get(name) != asked.provenance.get(name)
    ]
    if not changed or not held.provenance:
        return held
    note = "; ".join(f"{name}: {asked.provenance.get(name, 'unknown')}" for name in changed)
    title = f"continued {asked.provenance.get('date', '')}".strip()
    connection.execute("INSERT OR IGNORE INTO study VALUES (?, ?)", (title, json.dumps(note)))
    return replace(held, provenance={**held.provenance, title: note})


def check_same(connection: sqlite3.Connection, asked: Study, folder: Path) -> None:
    """Refuse to go on with a study that is another one.

    Args:
        connection: To the database.
        asked: As the present command describes it.
        folder: The study's.

    Raises:
        UsageError: If what decides its numbers differs: in what.
    """
    held = read_study(connection, folder)
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


def of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return a value that was read, if it is what is written there; whole numbers are numbers.

    Args:
        name: What it is called in an error.
        value: What was read.
        kind: Type, or union of types, that it should have.

    Returns:
        The value.

    Raises:
        TypeError: If it is of another.
    """
    wider = kind | int if isinstance(0.0, kind) else kind
    if isinstance(value, bool) or not isinstance(value, wider):
        raise TypeError(f"{name} is {value!r}")
    return value
