"""The ledger's SQLite file: tables, append-only triggers, connection settings, process lock, and what its errors mean.

Written by one connection of one process (WAL, synchronous=FULL), read by anybody. Entries, bodies, heads and fork proofs
are only ever added; the `state` table alone is replaced. Triggers are a seat belt against accidents; what detects a
changed file are the hashes that the audit recomputes and the memory of other members.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlite_utils import Database

from ledger.errors import StoreBroken, StoreFull, StoreLocked

APPLICATION_ID: Final = 0x46495348  # "FISH"
VERSION: Final = 1

_TABLES: Final = (
    "CREATE TABLE feeds (id INTEGER PRIMARY KEY, collective TEXT NOT NULL, member TEXT NOT NULL,"
    " UNIQUE (collective, member)) STRICT",
    "CREATE TABLE entries (feed INTEGER NOT NULL, seq INTEGER NOT NULL, line BLOB NOT NULL, leaf BLOB NOT NULL,"
    " PRIMARY KEY (feed, seq)) STRICT, WITHOUT ROWID",
    "CREATE TABLE bodies (feed INTEGER NOT NULL, seq INTEGER NOT NULL, salt BLOB NOT NULL, data BLOB NOT NULL,"
    " PRIMARY KEY (feed, seq)) STRICT, WITHOUT ROWID",
    "CREATE TABLE heads (feed INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, signature BLOB NOT NULL,"
    " PRIMARY KEY (feed, size)) STRICT, WITHOUT ROWID",
    "CREATE TABLE forks (feed INTEGER PRIMARY KEY, proof BLOB NOT NULL) STRICT",
    "CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
)
# What must hold for a new row. INSERT OR REPLACE passes UPDATE and DELETE triggers, so each says "not there yet" too.
_INSERT_RULES: Final = {
    "feeds": "NOT EXISTS (SELECT 1 FROM feeds WHERE id = NEW.id"
    " OR (collective = NEW.collective AND member = NEW.member))",
    "entries": "EXISTS (SELECT 1 FROM feeds WHERE id = NEW.feed)"
    " AND NEW.seq = (SELECT coalesce(max(seq) + 1, 0) FROM entries WHERE feed = NEW.feed)",
    "bodies": "EXISTS (SELECT 1 FROM entries WHERE feed = NEW.feed AND seq = NEW.seq)"
    " AND NOT EXISTS (SELECT 1 FROM bodies WHERE feed = NEW.feed AND seq = NEW.seq)",
    "heads": "EXISTS (SELECT 1 FROM feeds WHERE id = NEW.feed)"
    " AND NOT EXISTS (SELECT 1 FROM heads WHERE feed = NEW.feed AND size = NEW.size)",
    "forks": "NOT EXISTS (SELECT 1 FROM forks WHERE feed = NEW.feed)",
}
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def connect(path: Path, *, writer: bool) -> Database:
    """Open the ledger at `path`; a writer creates it when it is missing.

    Raises:
        StoreBroken: not a ledger, damaged, of another version, or missing for a reader.
        StoreFull: no room to create it.
    """
    with guard(f"open ledger {path.name}"):
        if writer:
            path.touch(mode=0o600)
        mode = "rw" if writer else "ro"
        # One connection for all threads; the store serialises them with its own lock.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, check_same_thread=False)
        try:
            database = Database(connection, recursive_triggers=True, execute_plugins=False)
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA cell_size_check = ON")
            if writer:
                database.execute("PRAGMA journal_mode = WAL").fetchall()
                database.execute("PRAGMA synchronous = FULL")
            _settle(database, path, writer=writer)
        except BaseException:
            connection.close()
            raise
        return database


@contextlib.contextmanager
def guard(verb: str) -> Iterator[None]:
    """Turn errors of SQLite and the file system inside the block into `couldn't <verb>: ...` of the right kind.

    Raises:
        StoreFull: no room; the transaction was rolled back.
        StoreLocked: another program holds the database.
        StoreBroken: anything else.
    """
    try:
        yield
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StoreFull(f"couldn't {verb}: the disk is full; nothing was written, free some space") from e
        if code in _BUSY:
            raise StoreLocked(f"couldn't {verb}: another program is writing to the database") from e
        raise StoreBroken(f"couldn't {verb}: {e}") from e
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise StoreFull(f"couldn't {verb}: the disk is full; nothing was written, free some space") from e
        raise StoreBroken(f"couldn't {verb}: {e.strerror or e}") from e


class ProcessLock:
    """An exclusive lock on a file beside the database, held while this process may write; freed by the kernel on exit."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreLocked: somebody else has it.
            StoreBroken: the lock file cannot be made.
        """
        with guard(f"lock ledger {path.name}"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StoreLocked(
                f"couldn't open ledger {path.parent}: another daemon or command uses this home (process {holder})"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Give the lock back; calling twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _settle(database: Database, path: Path, *, writer: bool) -> None:
    application = _pragma(database, "application_id")
    version = _pragma(database, "user_version")
    empty = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if writer and empty and application == 0 and version == 0:
        _create(database)
    elif application != APPLICATION_ID or empty:
        raise StoreBroken(f"couldn't open ledger {path.name}: the file is not a ledger")
    elif version != VERSION:
        raise StoreBroken(f"couldn't open ledger {path.name}: version {version}, this program knows {VERSION}")


def _create(database: Database) -> None:
    with database.atomic():
        for table in _TABLES:
            database.execute(table)
        for name, rule in _INSERT_RULES.items():
            database.execute(_trigger(name, "insert", f"WHEN NOT ({rule})"))
            database.execute(_trigger(name, "update", ""))
            database.execute(_trigger(name, "delete", ""))
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {VERSION}")


def _trigger(table: str, event: str, when: str) -> str:
    stop = f"SELECT RAISE(ABORT, 'append-only: {event} on {table} is refused')"
    return f"CREATE TRIGGER {table}_{event} BEFORE {event.upper()} ON {table} {when} BEGIN {stop}; END"


def _pragma(database: Database, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
