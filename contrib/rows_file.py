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

from contrib.errors import RowsBusy, RowsDamaged, RowsFull

FORMAT: Final = 1  # PRAGMA user_version
BUSY_SECONDS: Final = 5.0

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE datasets (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, held_out_ppm INTEGER NOT NULL, duplicates INTEGER NOT NULL,
    train_rows INTEGER NOT NULL, held_out_rows INTEGER NOT NULL, characters INTEGER NOT NULL,
    train_root TEXT NOT NULL, held_out_root TEXT NOT NULL, labels TEXT
) STRICT;
CREATE TABLE rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset TEXT NOT NULL, part TEXT NOT NULL, digest TEXT NOT NULL,
    split_key TEXT NOT NULL, salt BLOB NOT NULL, content BLOB NOT NULL, UNIQUE (dataset, digest)
) STRICT;
CREATE INDEX rows_by_part ON rows (dataset, part, id);
CREATE INDEX rows_by_split_key ON rows (split_key);
PRAGMA user_version = {FORMAT};
COMMIT;
"""


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


def forget_deleted(connection: sqlite3.Connection) -> None:
    """Move the journal into the database, so that deleted rows are overwritten there too (once no reader holds it)."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


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
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if version == 0 and empty and not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        try:
            connection.executescript(_SCHEMA)
        except sqlite3.OperationalError:  # another process made the tables between our look and our lock
            connection.rollback()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != FORMAT:
                raise
        return
    if version != FORMAT:
        raise RowsDamaged(
            f"couldn't open row store {path}: it is not a row store of this version ({version}, not {FORMAT})"
        )
    connection.execute("PRAGMA synchronous = FULL")
