"""The ledger's SQLite file: tables, append-only triggers, connection settings, process lock, and what its errors mean.

Written by one connection of one process (WAL, synchronous=FULL), read by anybody. Entries, tree, heads and fork proofs
are only ever added, the `state` table alone is replaced, and a body goes only when a row of `erased` says so. Triggers (in
the file) and the authorizer (in our connection) are seat belts against accidents; what detects a changed file are the
hashes that the audit recomputes and the memory of other members. A ledger of version 2 is brought up by `ledger.upgrade`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Final

from sqlite_utils import Database

from ledger import upgrade
from ledger.errors import StoreBroken, StoreBusy, StoreFull, StoreLocked
from ledger.log_room import PAGES

APPLICATION_ID: Final = 0x46495348  # "FISH"
VERSION: Final = 3
BUSY_SECONDS: Final = 5.0  # how long another program's write lock is waited for
ERASABLE: Final = ("access.decided", "data.used")  # DESIGN: only data-access bodies; all others are needed by the fold


_TABLES: Final = (
    "CREATE TABLE feeds (id INTEGER PRIMARY KEY, collective TEXT NOT NULL, member TEXT NOT NULL,"
    " UNIQUE (collective, member)) STRICT",
    # One integer (`tree.place_of`) is key and order, so an append writes one page. Line and body stand in one row: the body's
    # two columns are empty when it was withheld or erased. The last two columns take no room; they are for people.
    "CREATE TABLE entries (place INTEGER PRIMARY KEY, line BLOB NOT NULL, leaf BLOB NOT NULL, salt BLOB, data BLOB,"
    " feed INTEGER GENERATED ALWAYS AS (place >> 40) VIRTUAL,"
    " seq INTEGER GENERATED ALWAYS AS (place & 0xffffffffff) VIRTUAL) STRICT",
    # The lowest six levels of the RFC 6962 tree over a feed's leaves, 64 leaves a row (see `ledger.tree`).
    "CREATE TABLE tiles (place INTEGER PRIMARY KEY, hashes BLOB NOT NULL,"
    " feed INTEGER GENERATED ALWAYS AS (place >> 40) VIRTUAL,"
    " number INTEGER GENERATED ALWAYS AS (place & 0xffffffffff) VIRTUAL) STRICT",
    # Its nodes from level 6 up.
    "CREATE TABLE nodes (feed INTEGER NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL,"
    " PRIMARY KEY (feed, level, idx)) STRICT, WITHOUT ROWID",
    "CREATE TABLE erased (feed INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (feed, seq)) STRICT, WITHOUT ROWID",
    "CREATE TABLE heads (feed INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, signature BLOB NOT NULL,"
    " PRIMARY KEY (feed, size)) STRICT, WITHOUT ROWID",
    "CREATE TABLE forks (feed INTEGER PRIMARY KEY, proof BLOB NOT NULL) STRICT",
    "CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID",
)
# What must hold for a new row. INSERT OR REPLACE passes UPDATE and DELETE triggers, so each says "not there yet" too.
_INSERT_RULES: Final = {
    "feeds": "NOT EXISTS (SELECT 1 FROM feeds WHERE id = NEW.id"
    " OR (collective = NEW.collective AND member = NEW.member))",
    "entries": "NOT EXISTS (SELECT 1 FROM entries WHERE place = NEW.place)"
    " AND EXISTS (SELECT 1 FROM feeds WHERE id = NEW.place >> 40)"
    " AND (NEW.place & 0xffffffffff = 0 OR EXISTS (SELECT 1 FROM entries WHERE place = NEW.place - 1))"
    " AND (NEW.salt IS NULL) = (NEW.data IS NULL)",
    "tiles": "length(NEW.hashes) = 4032 AND NOT EXISTS (SELECT 1 FROM tiles WHERE place = NEW.place)"
    " AND EXISTS (SELECT 1 FROM entries"
    " WHERE place = ((NEW.place >> 40) << 40) + ((NEW.place & 0xffffffffff) + 1) * 64 - 1)",
    "nodes": "NEW.level > 5 AND length(NEW.hash) = 32"
    " AND EXISTS (SELECT 1 FROM entries WHERE place = (NEW.feed << 40) + ((NEW.idx + 1) << NEW.level) - 1)"
    " AND NOT EXISTS (SELECT 1 FROM nodes WHERE feed = NEW.feed AND level = NEW.level AND idx = NEW.idx)",
    "erased": "NOT EXISTS (SELECT 1 FROM erased WHERE feed = NEW.feed AND seq = NEW.seq)"
    " AND EXISTS (SELECT 1 FROM entries WHERE place = (NEW.feed << 40) + NEW.seq"
    # The end of a canonical header; the JSON functions are "unsafe" in a trigger while trusted_schema is off.
    """ AND (instr(CAST(line AS TEXT), '"type":"access.decided","v":1},"s":') > 0"""
    """ OR instr(CAST(line AS TEXT), '"type":"data.used","v":1},"s":') > 0))""",
    "heads": "EXISTS (SELECT 1 FROM feeds WHERE id = NEW.feed)"
    " AND NOT EXISTS (SELECT 1 FROM heads WHERE feed = NEW.feed AND size = NEW.size)",
    "forks": "NOT EXISTS (SELECT 1 FROM forks WHERE feed = NEW.feed)",
}
# The one lawful change of a row: its body goes, after `erased` said so.
_UPDATE_RULES: Final = {
    "entries": "NEW.place = OLD.place AND NEW.line = OLD.line AND NEW.leaf = OLD.leaf AND NEW.salt IS NULL AND NEW.data IS NULL"
    " AND EXISTS (SELECT 1 FROM erased WHERE feed = OLD.place >> 40 AND seq = OLD.place & 0xffffffffff)"
}
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_FULL: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)  # the latter: no room for the log's index
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_REFUSED_WRITES: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_APPEND_ONLY: Final = frozenset(_INSERT_RULES)
_BODY: Final = ("salt", "data")
# What the writing connection may still set once it is open; reading a pragma is always allowed.
_SETTABLE: Final = frozenset({"wal_checkpoint", "busy_timeout", "max_page_count", "integrity_check", "table_info"})
_READS: Final = frozenset(
    {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
_BAD_SQLITE: Final = ((3, 7, 0), (3, 51, 2))


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
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            check_same_thread=False,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin where we say so
            cached_statements=256,
        )
        try:
            database = Database(connection, recursive_triggers=True, execute_plugins=False)
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA cell_size_check = ON")
            if writer:
                database.execute("PRAGMA journal_mode = WAL").fetchall()
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA secure_delete = ON")
                database.execute(f"PRAGMA wal_autocheckpoint = {PAGES}").fetchall()  # 16 MB
            _settle(database, path, writer=writer)
            if writer:
                guarded(connection)
        except BaseException:
            connection.close()
            raise
        return database


def sqlite_warning(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str | None:
    """What an operator should know about this SQLite library; None when there is nothing to say.

    From 3.7.0 to 3.51.2 two connections that write or checkpoint at once can corrupt a write-ahead log (fixed in 3.51.3).
    """
    first, last = _BAD_SQLITE
    if not first <= version <= last:
        return None
    number = ".".join(str(part) for part in version)
    return (
        f"SQLite {number} can corrupt its write-ahead log when two programs write at once (fixed in 3.51.3); this node is"
        " the only writer of its ledger, which makes it safe: do not write to ledger.db with other programs"
    )


def guarded(connection: sqlite3.Connection, *, erasing: bool = False) -> None:
    """Let a connection only read and insert: what is append-only is not updated, deleted, dropped or altered through it.

    With `erasing`, the columns of a body may be emptied too (the trigger still asks for a row of `erased`). INSERT OR REPLACE
    cannot be told from INSERT here; the insert triggers refuse it, and they cannot be dropped.
    """

    def allow(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
        if action in _READS:
            loads = action == sqlite3.SQLITE_FUNCTION and second == "load_extension"
            return sqlite3.SQLITE_DENY if loads else sqlite3.SQLITE_OK
        if action in {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT}:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA:
            return sqlite3.SQLITE_OK if second is None or first in _SETTABLE else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_INSERT:
            return sqlite3.SQLITE_OK if first in _APPEND_ONLY or first == "state" else sqlite3.SQLITE_DENY
        if first == "state" and action in {sqlite3.SQLITE_DELETE, sqlite3.SQLITE_UPDATE}:
            return sqlite3.SQLITE_OK
        if erasing and first == "entries" and second in _BODY and action == sqlite3.SQLITE_UPDATE:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(allow)


class guard:
    """Turn errors of SQLite and the file system inside the block into `couldn't <verb>: ...` of the right kind.

    `lock` is the lock file beside the database: whether it can be opened tells a read-only file system from a broken one.

    Raises:
        StoreFull: no room; the transaction was rolled back.
        StoreBusy: another program kept the database locked for longer than we wait.
        StoreBroken: anything else.
    """

    __slots__ = ("_lock", "_verb")

    def __init__(self, verb: str, lock: Path | None = None) -> None:
        """`verb` says what is being done."""
        self._verb, self._lock = verb, lock

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (sqlite3.Error, OSError)):
            raise meaning(error, self._verb, self._lock) from error


def meaning(error: sqlite3.Error | OSError, verb: str, lock: Path | None = None) -> StoreBroken | StoreBusy | StoreFull:
    """The error of ours for one of SQLite or the file system, while we tried to `verb`; for `lock` see `guard`."""
    if isinstance(error, OSError):
        full, busy, cause = error.errno in _NO_ROOM, False, error.strerror or str(error)
        fixed = error.errno == errno.EROFS
    else:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        full, busy, cause = code in _FULL, code & 0xFF in _BUSY, str(error)
        fixed = code & 0xFF in _REFUSED_WRITES and lock is not None and _is_read_only(lock)
    if full:
        return StoreFull(f"couldn't {verb}: the disk is full; nothing was written, free some space")
    if busy:
        return StoreBusy(
            f"couldn't {verb}: another program is writing to the database; nothing was written, close it and try again"
        )
    if fixed:
        cause = "the file system is read-only; nothing was written, make it writable and start again"
    return StoreBroken(f"couldn't {verb}: {cause}")


def _is_read_only(lock: Path) -> bool:
    """Whether the file system takes no writes: asked of the lock file, as closing the database would drop SQLite's locks."""
    try:
        os.close(os.open(lock, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as e:
        return e.errno == errno.EROFS
    return False


class ProcessLock:
    """An exclusive lock on a file beside the database, held while this process may write; freed by the kernel on exit."""

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            StoreLocked: somebody else has it.
            StoreBroken: the lock file cannot be made.
        """
        self.path = path
        with guard(f"open ledger {path.parent}"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise StoreLocked(
                f"couldn't open ledger {path.parent}: another daemon or command uses this home (process {holder})"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk the next one reads "unknown": only a word for people
            os.ftruncate(self._file, os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0))

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
    elif version == upgrade.BEFORE and writer:
        _upgrade(database)
    elif version != VERSION:
        hint = (
            "start the node once, it brings the ledger up to date"
            if version == upgrade.BEFORE
            else "use the program that wrote it, or make a new home"
        )
        raise StoreBroken(f"couldn't open ledger {path.name}: version {version}, this program knows {VERSION}; {hint}")


def _create(database: Database) -> None:
    with database.atomic():
        for table in _TABLES:
            database.execute(table)
        _protect(database)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(database: Database) -> None:
    """Bring a ledger of version 2 up to this one, whole or not at all."""
    with database.atomic():
        tables = {text.split()[2]: text for text in _TABLES}
        upgrade.rebuild(database.conn, {name: tables[name] for name in ("entries", "tiles", "nodes")})
        _protect(database)
        database.execute(f"PRAGMA user_version = {VERSION}")


def _protect(database: Database) -> None:
    for name, rule in _INSERT_RULES.items():
        database.execute(_trigger(name, "insert", f"WHEN NOT ({rule})"))
        lawful = _UPDATE_RULES.get(name)
        database.execute(_trigger(name, "update", f"WHEN NOT ({lawful})" if lawful else ""))
        database.execute(_trigger(name, "delete", ""))


def _trigger(table: str, event: str, when: str) -> str:
    stop = f"SELECT RAISE(ABORT, 'append-only: {event} on {table} is refused')"
    return f"CREATE TRIGGER {table}_{event} BEFORE {event.upper()} ON {table} {when} BEGIN {stop}; END"


def _pragma(database: Database, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
