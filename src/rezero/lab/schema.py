"""The tables of a study's database, and how older ones become these."""

__all__ = ["MIGRATIONS", "SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE trial (
    id INTEGER PRIMARY KEY, arm TEXT NOT NULL, lr REAL NOT NULL, seed INTEGER NOT NULL, tuned TEXT NOT NULL,
    status TEXT NOT NULL, memory REAL, note TEXT NOT NULL DEFAULT '', UNIQUE (arm, lr, seed, tuned));
CREATE TABLE metric (
    trial INTEGER NOT NULL REFERENCES trial, step INTEGER NOT NULL, epoch REAL NOT NULL, name TEXT NOT NULL, value REAL,
    PRIMARY KEY (trial, step, name));
CREATE TABLE alpha (
    trial INTEGER NOT NULL REFERENCES trial, step INTEGER NOT NULL, gate INTEGER NOT NULL, value REAL,
    PRIMARY KEY (trial, step, gate));
CREATE TABLE sample (trial INTEGER PRIMARY KEY REFERENCES trial, step INTEGER NOT NULL, value TEXT NOT NULL);
"""
MIGRATIONS = {  # to a version from the one before
    3: """
CREATE TABLE new_trial (
    id INTEGER PRIMARY KEY, arm TEXT NOT NULL, lr REAL NOT NULL, seed INTEGER NOT NULL, tuned TEXT NOT NULL,
    status TEXT NOT NULL, memory REAL, UNIQUE (arm, lr, seed, tuned));
INSERT INTO new_trial SELECT id, arm, lr, seed, '{}', status, NULL FROM trial;
DROP TABLE trial;
ALTER TABLE new_trial RENAME TO trial;
""",
    4: "ALTER TABLE trial ADD COLUMN note TEXT NOT NULL DEFAULT ''",
}
