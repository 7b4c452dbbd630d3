"""Reads the ledger file: feeds, entries, bodies, signed heads, fork proofs, state. Writes nothing.

What lies in the file was verified when it was taken and is trusted here; the audit alone trusts it for nothing and uses
the `raw` methods. Knows no keys and no network. Threads may share a reader: one lock serialises them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlite_utils import Database

from ledger import checkpoint, entry, forks
from ledger.checkpoint import Head
from ledger.entry import Body, Record
from ledger.errors import StoreBroken
from ledger.forks import Fork
from ledger.schema import guard
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.merkle import Frontier

CHUNK: Final = 256
LEAVES: Final = "SELECT leaf FROM entries WHERE feed = ? AND seq >= ? ORDER BY seq LIMIT ?"


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
        self._lock = threading.RLock()
        self._trees: dict[int, Frontier] = {}

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
            tree = Frontier() if feed is None else self._tree(feed)
            if feed is None or tree.size == 0:
                return None
            leaf = self._leaf(feed, tree.size - 1)
            return StoredHead(size=tree.size, root=Digest(tree.root().hex()), leaf=leaf)

    def heads(self, collective: CollectiveId, member: MemberId | None = None) -> list[Head]:
        """The largest signed head held of each feed (of one `member`, if given); it may be ahead of the entries."""
        found = self._rows(
            "SELECT member, max(size), root, signature FROM heads JOIN feeds ON id = feed"
            " WHERE collective = ? AND (?2 IS NULL OR member = ?2) GROUP BY feed ORDER BY member",
            collective,
            member,
        )
        return [head_of(collective, *row) for row in found]

    def raw_heads(self, collective: CollectiveId, member: MemberId) -> list[tuple[int, bytes, bytes]]:
        """Every stored head of one feed as (size, root, signature), ascending by size; trusted for nothing."""
        return self._rows(
            "SELECT size, root, signature FROM heads JOIN feeds ON id = feed"
            " WHERE collective = ? AND member = ? ORDER BY size",
            collective,
            member,
        )

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

    def get_state(self, key: str) -> bytes | None:
        """The blob last stored under `key`."""
        found = self._rows("SELECT value FROM state WHERE key = ?", key)
        return found[0][0] if found else None

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._lock, guard("read ledger"):
            return self._database.execute(sql, values).fetchall()

    def _raw(self, collective: CollectiveId, member: MemberId, start: int, limit: int) -> list[StoredRow]:
        found = self._rows(
            "SELECT e.seq, e.line, e.leaf, b.salt, b.data FROM feeds f JOIN entries e ON e.feed = f.id"
            " LEFT JOIN bodies b ON b.feed = e.feed AND b.seq = e.seq"
            " WHERE f.collective = ? AND f.member = ? AND e.seq >= ? ORDER BY e.seq LIMIT ?",
            collective,
            member,
            start,
            limit,
        )
        return [
            StoredRow(seq=seq, line=line, leaf=leaf, body=None if salt is None else Body(salt=salt, data=data))
            for seq, line, leaf, salt, data in found
        ]

    def _feed(self, collective: CollectiveId, member: MemberId) -> int | None:
        found = self._rows("SELECT id FROM feeds WHERE collective = ? AND member = ?", collective, member)
        return found[0][0] if found else None

    def _tree(self, feed: int) -> Frontier:
        tree = self._trees.setdefault(feed, Frontier())
        while leaves := self._rows(LEAVES, feed, tree.size, 4096):
            for (leaf,) in leaves:
                tree.append(leaf)
        return tree

    def _leaf(self, feed: int, seq: int) -> Digest:
        return Digest(self._rows("SELECT leaf FROM entries WHERE feed = ? AND seq = ?", feed, seq)[0][0].hex())

    def _line(self, feed: int, seq: int) -> bytes:
        return bytes(self._rows("SELECT line FROM entries WHERE feed = ? AND seq = ?", feed, seq)[0][0])


def head_of(collective: CollectiveId, member: MemberId, size: int, root: bytes, signature: bytes) -> Head:
    """A head from its stored columns, unverified."""
    return checkpoint.assemble(collective, member, size, Digest(root.hex()), signature)
