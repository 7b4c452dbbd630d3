"""Reads the ledger file: feeds, entries, bodies, signed heads, fork proofs, state. Writes nothing.

What lies in the file was verified when it was taken and is trusted here; the audit alone trusts it for nothing and uses
the `raw` methods. Knows no keys and no network. Threads may share a reader: one lock serialises them.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final

from sqlite_utils import Database

from ledger import checkpoint, entry, forks
from ledger.checkpoint import Head
from ledger.entry import Body, Record
from ledger.errors import StoreBroken
from ledger.forks import Fork
from ledger.schema import meaning, sqlite_warning
from ledger.tree import GrowingTree, Tree, place_of
from protocol.canon import MAX_INT
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, EventId, MemberId, digest

CHUNK: Final = 256
LINES: Final = 1024
BODIES: Final = 16 << 20  # bytes of entries with bodies that are read at a time, and at most 16 entries more
_HEADS: Final = (
    "SELECT size, root, signature FROM heads JOIN feeds ON id = feed"
    " WHERE collective = ? AND member = ? AND size > ? AND size <= ?"
)
_BODY_TYPES: Final = {bytes, NoneType}  # there are none when a body was withheld or erased
_RANGE: Final = "FROM entries WHERE place >= ?1 + ?2 AND place < ?1 + (1 << 40) ORDER BY place LIMIT ?3"
_LINES: Final = f"SELECT place - ?1, line, leaf {_RANGE}"
_LINES_AND_BODIES: Final = f"SELECT place - ?1, line, leaf, salt, data {_RANGE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHead:
    """What the stored entries of a feed add up to: their number, their RFC 6962 root, the leaf hash of the last one."""

    size: int
    root: Digest
    leaf: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """One entry exactly as it lies in the file, trusted for nothing; `body` is None when there is none."""

    seq: int
    line: bytes
    leaf: bytes
    body: Body | None


class Reader:
    """The reading half of a store."""

    def __init__(self, database: Database) -> None:
        """Wrap an open database."""
        self._database = database
        self._connection = database.conn
        self._lock = threading.RLock()
        self._trees: dict[int, GrowingTree] = {}

    def collectives(self) -> list[CollectiveId]:
        """Every collective of which something is held, ascending."""
        return [row[0] for row in self._rows("SELECT DISTINCT collective FROM feeds ORDER BY collective")]

    def members(self, collective: CollectiveId) -> list[MemberId]:
        """Every member of whose feed something is held (entries, a head or a fork proof), ascending."""
        return [
            row[0] for row in self._rows("SELECT member FROM feeds WHERE collective = ? ORDER BY member", collective)
        ]

    def head(self, collective: CollectiveId, member: MemberId) -> StoredHead | None:
        """What the stored entries of a feed add up to; None without entries."""
        with self._lock:
            feed = self._feed(collective, member)
            grown = GrowingTree() if feed is None else self._grown(feed)
            if feed is None or grown.size == 0:
                return None
            return StoredHead(size=grown.size, root=Digest(grown.root().hex()), leaf=self._leaf(feed, grown.size - 1))

    def stored_bytes(self, collective: CollectiveId, member: MemberId) -> int:
        """Bytes of the lines and bodies that are held of a feed."""
        feed = self._feed(collective, member)
        if feed is None:
            return 0
        asked = "SELECT coalesce(sum(length(line) + coalesce(length(data), 0)), 0) FROM entries WHERE place >= ? AND place < ?"
        return int(self._rows(asked, place_of(feed, 0), place_of(feed + 1, 0))[0][0])

    def tree(self, collective: CollectiveId, member: MemberId, *, remember: bool = False) -> Tree:
        """The stored tree of one feed: a source of nodes for roots and proofs (empty for a feed that is not here).

        With `remember` it keeps high nodes in memory: for who makes many proofs.
        """
        feed = self._feed(collective, member)
        return Tree(self._rows, -1 if feed is None else feed, remember=remember)

    def sqlite_warning(self) -> str | None:
        """What an operator should know about the SQLite library that runs this store, if anything."""
        return sqlite_warning()

    def heads(self, collective: CollectiveId, member: MemberId | None = None) -> list[Head]:
        """The largest signed head held of each feed (of one `member`, if given); it may be ahead of the entries."""
        found = self._rows(
            "SELECT member, size, root, signature FROM feeds JOIN heads ON feed = id"
            " AND size = (SELECT max(size) FROM heads WHERE feed = id)"
            " WHERE collective = ? AND (?2 IS NULL OR member = ?2) ORDER BY member",
            collective,
            member,
        )
        return [head_of(collective, *row) for row in found]

    def raw_heads(
        self,
        collective: CollectiveId,
        member: MemberId,
        *,
        after: int = 0,
        upto: int = MAX_INT,
        newest: int | None = None,
    ) -> list[tuple[int, bytes, bytes]]:
        """Stored heads of one feed with `after` < size <= `upto` as (size, root, signature); trusted for nothing.

        Ascending by size, or, with `newest`, that many from the largest size down.
        """
        return self._rows(
            _HEADS + (" ORDER BY size LIMIT ?" if newest is None else " ORDER BY size DESC LIMIT ?"),
            collective,
            member,
            after,
            upto,
            -1 if newest is None else newest,
        )

    def raw_feeds(self) -> list[tuple[int, CollectiveId, MemberId]]:
        """Every feed that has a name, as (row id, collective, member), read past the index; trusted for nothing."""
        return self._rows("SELECT id, collective, member FROM feeds NOT INDEXED ORDER BY id")

    def raw_orphans(self) -> list[tuple[int, bytes]]:
        """The row id of every feed that has entries and no name, and its first line; trusted for nothing."""
        named, found, last = {row[0] for row in self.raw_feeds()}, [], -1
        first = "SELECT feed, line FROM entries WHERE place >= ? ORDER BY place LIMIT 1"
        while rows := self._rows(first, place_of(last + 1, 0)):
            last = rows[0][0]
            found += [rows[0]] if last not in named else []
        return found

    def raw_proofs(self, collective: CollectiveId, member: MemberId) -> list[bytes]:
        """The stored fork proof of one feed, if any; trusted for nothing."""
        found = self._rows(
            "SELECT proof FROM forks JOIN feeds ON id = feed WHERE collective = ? AND member = ?", collective, member
        )
        return [row[0] for row in found]

    def records(self, collective: CollectiveId, member: MemberId, start: int = 0, limit: int = CHUNK) -> list[Record]:
        """Entries `start .. start + limit - 1` of a feed with their bodies, as far as they are held.

        Raises:
            StoreBroken: a stored line is damaged; the audit says where.
        """
        records = []
        for row in self._raw(collective, member, start, limit):
            try:
                parsed = entry.parse_stored(row.line)
            except Refused as e:
                raise StoreBroken(f"couldn't read entry {row.seq} of {member[:12]}: {e}; run the audit") from e
            records.append(Record(entry=parsed, body=row.body))
        return records

    def find(self, collective: CollectiveId, prefix: str) -> list[tuple[MemberId, int, EventId]]:
        """Where the events whose id begins with `prefix` stand, as (member, seq, event)."""
        found = []
        for member in self.members(collective):
            for rows in self.raw_chunks(collective, member):
                events = ((seq, digest(entry.signed_part(line))) for seq, line, _ in rows)
                found += [(member, seq, EventId(event)) for seq, event in events if event.startswith(prefix)]
        return found

    def raw_chunks(
        self, collective: CollectiveId, member: MemberId, *, bodies: bool = False
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Every entry in order as (seq, line, leaf), some at a time; trusted for nothing.

        With `bodies` salt and data follow; those that are not here are None.
        """
        feed, start = self._feed(collective, member), 0
        sql, most = (_LINES_AND_BODIES, BODIES) if bodies else (_LINES, None)
        while feed is not None and (rows := self._entries(sql, feed, start, LINES, most)):
            yield rows
            start = rows[-1][0] + 1

    def is_erased(self, collective: CollectiveId, member: MemberId, seq: int) -> bool:
        """Whether a body was erased here, by a command of this node."""
        feed = self._feed(collective, member)
        return bool(self._rows("SELECT 1 FROM erased WHERE feed = ? AND seq = ?", feed, seq))

    def raw(self, collective: CollectiveId, member: MemberId) -> Iterator[StoredRow]:
        """Every row of a feed in order, unparsed, a chunk at a time."""
        start = 0
        while rows := self._raw(collective, member, start, CHUNK):
            yield from rows
            start = rows[-1].seq + 1

    def forks(self, collective: CollectiveId) -> list[Fork]:
        """The proofs against members of `collective`; their feeds are frozen."""
        found = self._rows(
            "SELECT proof FROM forks JOIN feeds ON id = feed WHERE collective = ? ORDER BY member", collective
        )
        return [forks.decode(row[0]) for row in found]

    def line(self, collective: CollectiveId, member: MemberId, seq: int) -> bytes:
        """The line of one entry that is here (raises StoreBroken when it is not)."""
        feed = self._feed(collective, member)
        found = [] if feed is None else self._rows("SELECT line FROM entries WHERE place = ?", place_of(feed, seq))
        if not found:
            raise StoreBroken(f"couldn't read entry {seq} of {member[:12]}: it is not here")
        return bytes(found[0][0])

    def get_state(self, key: str) -> bytes | None:
        """The blob last stored under `key`."""
        found = self._rows("SELECT value FROM state WHERE key = ?", key)
        return found[0][0] if found else None

    def _rows(self, sql: str, *values: object) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise meaning(e, "read ledger") from e

    def _up_to(self, most: int, sql: str, *values: object) -> list[Any]:
        """Like `_rows`, and an end to it after `most` bytes of blobs."""
        found = list[Any]()
        try:
            with self._lock, contextlib.closing(self._connection.execute(sql, values)) as cursor:
                while most > 0 and (some := cursor.fetchmany(16)):
                    found += some
                    most -= sum(len(value) for row in some for value in row if isinstance(value, bytes))
        except sqlite3.Error as e:
            raise meaning(e, "read ledger") from e
        return found

    def _entries(self, sql: str, feed: int, start: int, limit: int, most: int | None = None) -> list[tuple[Any, ...]]:
        """Rows of one feed from entry `start` on, `limit` of them or as many as have `most` bytes.

        Raises:
            StoreBroken: a column is not what the table says: one flipped bit of the file makes text or nothing of a blob.
        """
        values = (place_of(feed, 0), start, limit)
        rows = self._rows(sql, *values) if most is None else self._up_to(most, sql, *values)
        kinds = {type(row[1]) for row in rows} | {type(row[2]) for row in rows}
        bodies = {type(value) for row in rows for value in row[3:]} if rows and len(rows[0]) > 3 else set()
        if rows and (kinds != {bytes} or not bodies <= _BODY_TYPES):
            raise StoreBroken(f"couldn't read ledger: an entry from {start} on has a column of the wrong type")
        return rows

    def _raw(self, collective: CollectiveId, member: MemberId, start: int, limit: int) -> list[StoredRow]:
        feed = self._feed(collective, member)
        if feed is None:
            return []
        return [
            StoredRow(seq=seq, line=line, leaf=leaf, body=None if salt is None else Body(salt=salt, data=data))
            for seq, line, leaf, salt, data in self._entries(_LINES_AND_BODIES, feed, start, limit)
        ]

    def _feed(self, collective: CollectiveId, member: MemberId) -> int | None:
        found = self._rows("SELECT id FROM feeds WHERE collective = ? AND member = ?", collective, member)
        return found[0][0] if found else None

    def _grown(self, feed: int) -> GrowingTree:
        """The tree of what is stored now, from its few nodes on the right edge."""
        stored = Tree(self._rows, feed)
        if feed not in self._trees or self._trees[feed].size != stored.size():
            self._trees[feed] = GrowingTree.stored(stored)
        return self._trees[feed]

    def _leaf(self, feed: int, seq: int) -> Digest:
        return Digest(self._rows("SELECT leaf FROM entries WHERE place = ?", place_of(feed, seq))[0][0].hex())

    def _line(self, feed: int, seq: int) -> bytes:
        return bytes(self._rows("SELECT line FROM entries WHERE place = ?", place_of(feed, seq))[0][0])


def head_of(collective: CollectiveId, member: MemberId, size: int, root: bytes, signature: bytes) -> Head:
    """A head from its stored columns, unverified."""
    return checkpoint.assemble(collective, member, size, Digest(root.hex()), signature)
