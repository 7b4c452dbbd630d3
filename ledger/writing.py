"""Writing to the ledger file: transactions that are all or nothing, state, and the erasure of bodies.

Writes rows of any table and knows what they cost: one commit is one `fdatasync`, into a log that is laid out ahead
(`ledger.log_room`). Knows nothing of chains, heads and signatures, which is the business of `ledger.store`. Invariant: outside
`erase_bodies` nothing that was written is changed, but for `state`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sqlite_utils import Database

from ledger import entry
from ledger.errors import EraseUnfinished, StoreBroken, StoreFull
from ledger.log_room import LogRoom
from ledger.reading import Reader
from ledger.schema import ERASABLE, ProcessLock, connect, guard, guarded
from ledger.tree import place_of
from protocol.errors import Malformed
from protocol.ids import CollectiveId, MemberId

STATE: Final = "INSERT OR REPLACE INTO state VALUES (?, ?)"
Rows = list[tuple[str, Sequence[Sequence[object]]]]
"""What one transaction writes: SQL texts, each with its rows."""

_UNFINISHED: Final = "erase.unfinished"  # state: bodies were deleted, and the file was not written anew since


class Writer(Reader):
    """The writing half of a store; a reader when it has no lock."""

    def __init__(self, database: Database, lock: ProcessLock | None, log: LogRoom | None) -> None:
        """Wrap an open database; `lock` and `log` are None for a reader."""
        super().__init__(database)
        self._process_lock = lock
        self._log = log

    @classmethod
    def open(cls, path: Path, *, writer: bool = True) -> Self:
        """Open the ledger; a writer creates it when missing and keeps every other writer out.

        Raises:
            StoreLocked: another process (or store) is the writer.
            StoreBroken, StoreFull: the file cannot be used.
        """
        if not writer:
            return cls(connect(path, writer=False), None, None)
        with contextlib.ExitStack() as undo:
            lock = ProcessLock(path.with_name(path.name + ".lock"))
            undo.callback(lock.release)
            database = connect(path, writer=True)
            undo.callback(database.close)
            with guard(f"open the log of {path.name}"):
                made = cls(database, lock, LogRoom(database.conn, path))
            undo.pop_all()
        return made

    def close(self) -> None:
        """Close the file and give up the writer's place."""
        with self._lock:
            if self._log is not None:
                self._log.close()
            self._database.close()
            if self._process_lock is not None:
                self._process_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def put_state(self, key: str, value: bytes) -> None:
        """Store a blob under `key`, replacing what was there."""
        self._write(f"store state {key}", [(STATE, [(key, value)])])

    def erase_bodies(
        self, collective: CollectiveId, events: Iterable[tuple[MemberId, int]], *, vacuum: bool = False
    ) -> int:
        """Delete the bodies and salts of entries (member, seq) for ever, and their bytes from file and log; how many went.

        Only types in `schema.ERASABLE` have such bodies; the lines stay, so every chain still verifies. `vacuum` rewrites the
        whole file too: without it, remains of rows that were once moved between pages may be left in free space.

        Raises:
            Malformed: an entry is not here, or its body may never be erased; nothing was erased.
            EraseUnfinished: the bodies are deleted, but a program that reads the ledger holds on to the log, or there is no
                room to write the file anew: call again, after a restart too.
            StoreFull, StoreBusy, StoreBroken: as for every write.
        """
        log = self._log_for("erase bodies")
        with self._lock:
            with self._writing("erase bodies") as write:
                gone = sum(self._erase(write, collective, member, seq) for member, seq in events)
                if gone and vacuum:
                    write.execute(STATE, (_UNFINISHED, b"1"))  # a stop before the rewriting must not make us forget it
            try:
                with guard("erase bodies", self._lock_file):
                    if vacuum or self.get_state(_UNFINISHED):
                        self._vacuum()
                        self.put_state(_UNFINISHED, b"")
                    busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    log.cut()
            except StoreFull as e:
                raise EraseUnfinished(
                    "couldn't erase bodies from the raw file: the disk is full (for a moment there must be room for a second"
                    " copy of the ledger); free some space and erase again"
                ) from e
        if busy:
            raise EraseUnfinished(
                "couldn't erase bodies from the raw file: another program reads the ledger; close it and erase again"
            )
        return gone

    def _write(self, verb: str, rows: Rows) -> None:
        """Write rows, all or nothing. One alone is a transaction by itself: that costs two statements less."""
        if len(rows) == 1 and len(rows[0][1]) == 1:
            log = self._log_for(verb)
            with self._lock, guard(verb, self._lock_file):
                log.ensure()
                self._connection.execute(rows[0][0], rows[0][1][0])
        else:
            with self._writing(verb) as write:
                for sql, many in rows:
                    write.executemany(sql, many)

    @contextlib.contextmanager
    def _writing(self, verb: str) -> Iterator[sqlite3.Connection]:
        log = self._log_for(verb)
        with self._lock, guard(verb, self._lock_file):
            log.ensure()
            # At once, not at the first write: a transaction that has read cannot wait for another program's short lock.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @property
    def _lock_file(self) -> Path | None:
        return self._process_lock.path if self._process_lock else None

    def _log_for(self, verb: str) -> LogRoom:
        """The log to write to; a reader has none."""
        if self._log is None:
            raise StoreBroken(f"couldn't {verb}: the ledger is open for reading only")
        return self._log

    def _erase(self, write: sqlite3.Connection, collective: CollectiveId, member: MemberId, seq: int) -> int:
        feed = self._feed(collective, member)
        if feed is None or not self._rows("SELECT 1 FROM entries WHERE place = ?", place_of(feed, seq)):
            raise Malformed(f"couldn't erase body of entry {seq} of {member[:12]}: the entry is not here")
        if self._rows("SELECT 1 FROM erased WHERE feed = ? AND seq = ?", feed, seq):
            return 0
        kind = entry.parse_stored(self._line(feed, seq)).header.type
        if kind not in ERASABLE:
            raise Malformed(f"couldn't erase body of entry {seq} of {member[:12]}: bodies of {kind} are kept for ever")
        write.execute("INSERT INTO erased VALUES (?, ?)", (feed, seq))
        guarded(self._connection, erasing=True)
        try:
            body = "UPDATE entries SET salt = NULL, data = NULL WHERE place = ? AND salt IS NOT NULL"
            return write.execute(body, (place_of(feed, seq),)).rowcount
        finally:
            guarded(self._connection)

    def _vacuum(self) -> None:
        """Write the file anew; for that moment the authorizer steps aside, because VACUUM attaches and creates."""
        self._connection.set_authorizer(None)
        try:
            self._connection.execute("VACUUM")
        finally:
            guarded(self._connection)
