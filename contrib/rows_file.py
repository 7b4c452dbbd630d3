"""The database file behind the row store: its schema, its opening, its transactions, and SQLite's errors as ours.

Knows nothing of what the rows mean. Invariants: the file is created with mode 0600 before SQLite sees it (the journal
files inherit it); deleted bytes are overwritten; a file of another program or of a newer version is refused, unchanged.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from contrib.errors import RowsBusy, RowsDamaged, RowsFull, RowsOutdated

FORMAT: Final = 2  # PRAGMA user_version
BUSY_SECONDS: Final = 5.0

# `sealed`: 1 when content, tags and labels are sealed, and digests, split keys and subjects are blinded by the data key.
# `history`: which row ids stood behind a commitment, so that a deleted row can be traced to the runs that read it.
_TABLES: Final = """
CREATE TABLE datasets (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, held_out_ppm INTEGER NOT NULL, duplicates INTEGER NOT NULL,
    train_rows INTEGER NOT NULL, held_out_rows INTEGER NOT NULL, characters INTEGER NOT NULL,
    train_root TEXT NOT NULL, held_out_root TEXT NOT NULL, columns TEXT NOT NULL, labels BLOB,
    oldest_ms INTEGER, description TEXT
) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset TEXT NOT NULL, part TEXT NOT NULL, digest TEXT NOT NULL,
    split_key TEXT NOT NULL, salt BLOB NOT NULL, content BLOB NOT NULL, tags BLOB NOT NULL, subject TEXT,
    filing TEXT NOT NULL, added_ms INTEGER, UNIQUE (dataset, digest, filing)
) STRICT;
CREATE TABLE history (
    dataset TEXT NOT NULL, train_root TEXT NOT NULL, held_out_root TEXT NOT NULL, last_id INTEGER NOT NULL
) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE INDEX rows_by_part ON rows (dataset, part, id);
CREATE INDEX rows_by_split_key ON rows (split_key);
CREATE INDEX rows_by_subject ON rows (dataset, subject) WHERE subject IS NOT NULL;
"""
_CREATE: Final = f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;"
# Version 1 knew no tags, subjects, sealing or history; when its rows came is not known.
_UPGRADE: Final = f"""
BEGIN IMMEDIATE;
DROP INDEX rows_by_part; DROP INDEX rows_by_split_key;
ALTER TABLE datasets RENAME TO datasets_1; ALTER TABLE rows RENAME TO rows_1;
{_TABLES}
INSERT INTO datasets SELECT name, kind, held_out_ppm, duplicates, train_rows, held_out_rows, characters, train_root,
    held_out_root, CASE kind WHEN 'text' THEN 'text' WHEN 'pair' THEN 'completion prompt' ELSE 'assistant system user' END,
    CAST(labels AS BLOB), NULL, NULL FROM datasets_1;
INSERT INTO rows SELECT id, dataset, part, digest, split_key, salt, content, CAST('[]' AS BLOB), NULL, '', NULL FROM rows_1;
INSERT INTO history SELECT name, train_root, held_out_root,
    (SELECT coalesce(max(id), 0) FROM rows WHERE dataset = name) FROM datasets;
DROP TABLE rows_1; DROP TABLE datasets_1;
PRAGMA user_version = {FORMAT};
COMMIT;
"""  # noqa: S608 - no value from outside


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the database at `path`; a writer creates it when it is missing.

    Raises:
        RowsDamaged: missing (read-only), not a row store, or of another version.
        RowsBusy: another process is creating it.
    """
    if not read_only:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as e:
            kind = RowsFull if e.errno == errno.ENOSPC else RowsDamaged
            raise kind(f"couldn't open row store {path}: {e.strerror}") from None
    with translated(f"open row store {path}"):
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
        try:
            _prepare(connection, path, read_only=read_only)
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside is kept, or nothing is; readers go on reading the state before."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def forget_deleted(connection: sqlite3.Connection, *, rewrite: bool = False) -> None:
    """Move the journal into the database and empty it, so that what was deleted stands in neither file any more.

    `rewrite` also writes the database anew without free pages. What a file system keeps of overwritten blocks (journals,
    snapshots, worn flash cells, backups) is out of reach: seal the rows and keep the key elsewhere against that.

    Raises:
        RowsBusy: a reader holds the journal; the rows are gone for every reader, their bytes are not: do it again.
    """
    if rewrite:
        connection.execute("VACUUM")
    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy and rewrite:
        raise RowsBusy(
            "couldn't overwrite deleted rows: a training run is reading the store; do it again when it ended"
        )


@contextmanager
def translated(task: str) -> Iterator[None]:
    """Turn errors of SQLite into ours; `task` completes "couldn't ...".

    Raises:
        RowsBusy, RowsFull, RowsDamaged: see `contrib.errors`.
    """
    try:
        yield
    except sqlite3.ProgrammingError:  # a closed store, another thread: the caller's mistake
        raise
    except sqlite3.DatabaseError as e:
        code = getattr(e, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the part without the extension
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise RowsBusy(f"couldn't {task}: another process is writing to the row store; try again") from e
        if code == sqlite3.SQLITE_FULL:
            raise RowsFull(f"couldn't {task}: the disk is full; nothing was stored") from e
        raise RowsDamaged(f"couldn't {task}: {e}") from e


def _prepare(connection: sqlite3.Connection, path: Path, *, read_only: bool) -> None:
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # no temporary file ever holds a row
    version = _version(connection)
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if not read_only and ((version == 0 and empty) or version == 1):
        connection.execute("PRAGMA journal_mode = WAL")
        try:
            connection.executescript(_UPGRADE if version else _CREATE)
        except sqlite3.OperationalError:  # another process made the tables between our look and our lock
            connection.rollback()
            if _version(connection) != FORMAT:
                raise
        return
    if version == 1:
        raise RowsOutdated(f"couldn't read row store {path}: it is of version 1; open it once for writing")
    if version != FORMAT:
        raise RowsDamaged(
            f"couldn't open row store {path}: it is not a row store of this version ({version}, not {FORMAT})"
        )
    connection.execute("PRAGMA synchronous = FULL")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
