"""The RFC 6962 tree of one feed as it lies in the ledger file: leaves in `entries`, inner nodes in `nodes`.

A node is written in the transaction that stores the last leaf under it, and never changes. Whatever is asked of the tree
(a root, a proof) is one query for the few nodes it needs. Knows no signatures. Trusts what is stored; the audit does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from ledger.errors import StoreBroken
from protocol.merkle import Place, Row

Query = Callable[..., list[Any]]
"""Runs one SQL text with its values, and returns the rows."""

SIZE: Final = "SELECT coalesce(max(seq) + 1, 0) FROM entries WHERE feed = ?"
INSERT: Final = "INSERT INTO nodes VALUES (?, ?, ?, ?)"
_NODE: Final = "SELECT hash FROM nodes WHERE feed = ?1 AND level = ? AND idx = ?"
_MISSING: Final = "couldn't read the hash tree of a feed: a node is missing; run the audit"
_REMEMBERED: Final = 6  # the lowest level that is kept in memory when that was asked for
_NO_LEVEL: Final = 64
_BLOCK: Final = 64
_LEAF: Final = "SELECT leaf FROM entries WHERE feed = ?1 AND ? = 0 AND seq = ?"


class Tree:
    """Reads the stored tree of the feed with row id `feed` through `query`.

    With `remember`, nodes from level 6 up stay in memory, 64 neighbours at a time: for who makes many proofs. There are at most
    N/32 of them in a feed of N entries, and none ever changes.
    """

    def __init__(self, query: Query, feed: int, *, remember: bool = False) -> None:
        """Nothing is read yet."""
        self._query, self._feed = query, feed
        self._memory: dict[Place, list[bytes]] = {}
        self._below = _REMEMBERED if remember else _NO_LEVEL

    def size(self) -> int:
        """How many entries are stored."""
        return int(self._query(SIZE, self._feed)[0][0])

    def nodes(self, places: Sequence[Place]) -> list[bytes]:
        """The hashes at `places`, all that are not remembered in one query: a source for `protocol.merkle`.

        Raises:
            StoreBroken: one of them is not stored.
        """
        below = self._below
        low = [place for place in places if place[0] < below]
        found = self._read(low) if low else []
        if len(low) == len(places):
            return found
        rest = iter(found)
        return [next(rest) if level < below else self._remembered(level, idx) for level, idx in places]

    def _read(self, places: Sequence[Place]) -> list[bytes]:
        # Every arm finds exactly one row by its primary key, and the arms of UNION ALL answer in their order.
        sql = _select(tuple([level > 0 for level, _ in places]))
        rows = self._query(sql, self._feed, *[number for place in places for number in place])
        if len(rows) != len(places):
            raise StoreBroken(_MISSING)
        return [hash for (hash,) in rows]

    def _remembered(self, level: int, idx: int) -> bytes:
        block, place = self._memory.setdefault((level, idx // _BLOCK), []), idx % _BLOCK
        if place >= len(block):  # not read yet, or the feed has grown since
            first = idx - place
            rows = self.stored(level, first, first + _BLOCK)
            if [at for at, _ in rows] != list(range(first, first + len(rows))) or place >= len(rows):
                raise StoreBroken(_MISSING)
            block[:] = [hash for _, hash in rows]
        return block[place]

    def stored(self, level: int, first: int, last: int) -> list[tuple[int, bytes]]:
        """The nodes [first, last) of one level that are there, as (index, hash); trusted for nothing."""
        return self._query(
            "SELECT idx, hash FROM nodes WHERE feed = ? AND level = ? AND idx >= ? AND idx < ? ORDER BY idx",
            self._feed,
            level,
            first,
            last,
        )

    def count(self) -> int:
        """How many inner nodes are stored."""
        return int(self._query("SELECT count(*) FROM nodes WHERE feed = ?", self._feed)[0][0])


def rows(feed: int, nodes: Iterable[Row]) -> list[tuple[int, int, int, bytes]]:
    """What to write for nodes that are complete now."""
    return [(feed, level, idx, hash) for level, first, hashes in nodes for idx, hash in enumerate(hashes, first)]


@lru_cache(maxsize=256)
def _select(inner: tuple[bool, ...]) -> str:
    # Every arm finds exactly one row by its primary key, and the arms of UNION ALL answer in their order.
    return " UNION ALL ".join(_NODE if each else _LEAF for each in inner)
