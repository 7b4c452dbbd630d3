"""The RFC 6962 tree of one feed as it lies in the ledger file: a tile for every 64 leaves, and a row for each node above them.

A tile holds the leaf hashes and the five levels over them, 126 hashes in one page; it is written with the last of its leaves,
as each node above is (levels from 6 up, table `nodes`), and neither ever changes. What hangs over the leaves after the last tile
is nowhere stored: it follows from at most 63 of them. So an append writes no tree but each 64th time, and a proof reads one
tile, the few nodes above it, and perhaps the last leaves. Knows no signatures. Trusts what is stored; the audit does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ledger.errors import StoreBroken
from protocol.merkle import HASH_BYTES, Frontier, Place, Row, root_over

Query = Callable[..., list[Any]]
"""Runs one SQL text with its values, and returns the rows."""

LEVELS: Final = 6
WIDTH: Final = 1 << LEVELS
STARTS: Final = (0, 64, 96, 112, 120, 124)  # where each level begins in a tile, counted in hashes
TILE_BYTES: Final = 126 * HASH_BYTES
INSERT_TILE: Final = "INSERT INTO tiles (place, hashes) VALUES (?, ?)"
INSERT_NODE: Final = "INSERT INTO nodes VALUES (?, ?, ?, ?)"

_SIZE: Final = (
    "SELECT place - ?1 + 1 FROM entries WHERE place >= ?1 AND place < ?1 + (1 << 40) ORDER BY place DESC LIMIT 1"
)
_TILE: Final = "SELECT hashes FROM tiles WHERE place = ?"
_NODE: Final = "SELECT hash FROM nodes WHERE feed = ?1 AND level = ? AND idx = ?"
_LEAVES: Final = "SELECT leaf FROM entries WHERE place >= ? AND place < ? ORDER BY place"
_MISSING: Final = "couldn't read the hash tree of a feed: a node is missing; run the audit"
_BLOCK: Final = 64
_BLOCKS: Final = 2048  # 9 MB at most: enough for the upper levels of eight million entries


class Grown(NamedTuple):
    """What is complete now: tiles as (number, hashes), and nodes from level 6 up."""

    tiles: list[tuple[int, bytes]]
    nodes: list[Row]


class GrowingTree:
    """The right edge of a feed's tree: appends, the present root, and what there is to store. O(log n) memory, and 63 leaves.

    Law: the root is that of `protocol.merkle.Frontier` over the same leaves.
    """

    def __init__(self) -> None:
        """Start an empty tree."""
        self._upper = Frontier()  # its leaves are the roots of full tiles
        self._tail: list[bytes] = []  # leaves after the last full tile; replaced, never changed in place
        self._lower: Frontier | None = None  # over the first of these, as many as somebody asked a root for

    @classmethod
    def stored(cls, tree: Tree) -> GrowingTree:
        """The tree of what is stored now (raises StoreBroken: a node is missing)."""
        made, size = cls(), tree.size()
        made._upper = Frontier.stored(
            size // WIDTH, lambda places: tree.nodes([(level + LEVELS, idx) for level, idx in places])
        )
        made._tail = tree.leaves(size - size % WIDTH, size)
        return made

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return self._upper.size * WIDTH + len(self._tail)

    def extend(self, leaves: Sequence[bytes]) -> Grown:
        """Add leaf hashes; the tiles and nodes that they complete."""
        pending, number = [*self._tail, *leaves], self._upper.size
        if len(pending) < WIDTH:
            self._tail = pending
            return Grown([], [])
        whole = len(pending) - len(pending) % WIDTH
        tiles, roots = _tiles(pending[:whole])
        self._upper = self._upper.copy()  # a copy of this tree may share it
        above = self._upper.extend(roots)
        self._tail, self._lower = pending[whole:], None
        nodes = [
            Row(LEVELS, number, roots),
            *(Row(level + LEVELS, first, hashes) for level, first, hashes in above),
        ]
        return Grown(list(enumerate(tiles, number)), nodes)

    def root(self) -> bytes:
        """The tree head of all leaves so far."""
        lower = self._lower = self._lower or Frontier()
        for leaf in self._tail[lower.size :]:
            lower.append(leaf)
        return root_over([*self._upper.peaks, *lower.peaks])

    def copy(self) -> GrowingTree:
        """An independent tree with the same leaves."""
        other = GrowingTree.__new__(GrowingTree)  # an append makes a copy: none of the parts of a new tree are wanted
        other._upper, other._tail, other._lower = self._upper, self._tail, None
        return other


class Tree:
    """Reads the stored tree of the feed with row id `feed` through `query`.

    With `remember`, nodes from level 6 up stay in memory, 64 neighbours at a time, up to 2,048 such blocks: for who makes many
    proofs. None of them ever changes.
    """

    def __init__(self, query: Query, feed: int, *, remember: bool = False) -> None:
        """Nothing is read yet."""
        self._query, self._feed, self._base = query, feed, place_of(feed, 0)
        self._memory: dict[Place, list[bytes]] | None = {} if remember else None
        self._last = (-1, 0, b"")  # the tile that is not full: its number, the feed's size, its hashes then

    def size(self) -> int:
        """How many entries are stored."""
        found = self._query(_SIZE, self._base)
        return int(found[0][0]) if found else 0

    def leaves(self, first: int, end: int) -> list[bytes]:
        """The stored leaf hashes [first, end), as far as there are any."""
        return [leaf for (leaf,) in self._query(_LEAVES, self._base + first, self._base + end)]

    def nodes(self, places: Sequence[Place]) -> list[bytes]:
        """The hashes at `places`: a source for `protocol.merkle`. One query for each tile, one for all nodes above.

        Raises:
            StoreBroken: one of them is not stored.
        """
        tiles, found, memory = dict[int, bytes](), list[bytes](), self._memory
        above = self._read(places) if memory is None else {}
        for level, idx in places:
            if level < LEVELS:
                number = idx >> LEVELS - level
                if number not in tiles:
                    tiles[number] = self._tile(number, places)
                at = (STARTS[level] + (idx & (WIDTH - 1 >> level))) * HASH_BYTES
                found.append(tiles[number][at : at + HASH_BYTES])
            elif memory is None:
                found.append(above[level, idx])
            else:
                block, place = memory.get((level, idx // _BLOCK), ()), idx % _BLOCK
                found.append(block[place] if place < len(block) else self._remembered(level, idx, memory))
        return found

    def stored_tiles(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """The tiles [first, last) that are there, as (number, hashes); trusted for nothing."""
        sql = "SELECT place - ?1, hashes FROM tiles WHERE place >= ?1 + ?2 AND place < ?1 + ?3 ORDER BY place"
        return self._query(sql, self._base, first, last)

    def stored(self, level: int, first: int, last: int) -> list[tuple[int, bytes]]:
        """The nodes [first, last) of one level from 6 up that are there, as (index, hash); trusted for nothing."""
        return self._query(
            "SELECT idx, hash FROM nodes WHERE feed = ? AND level = ? AND idx >= ? AND idx < ? ORDER BY idx",
            self._feed,
            level,
            first,
            last,
        )

    def counts(self) -> tuple[int, int]:
        """How many tiles and how many nodes above them are stored."""
        tiles = self._query("SELECT count(*) FROM tiles WHERE place >= ?1 AND place < ?1 + (1 << 40)", self._base)
        nodes = self._query("SELECT count(*) FROM nodes WHERE feed = ?", self._feed)
        return int(tiles[0][0]), int(nodes[0][0])

    def _tile(self, number: int, places: Sequence[Place]) -> bytes:
        """One tile; the last one, which is not full, is made from its leaves."""
        found = self._query(_TILE, self._base + number)
        if found:
            if len(found[0][0]) != TILE_BYTES:
                raise StoreBroken(_MISSING)
            return bytes(found[0][0])
        asked = [place for place in places if place[0] < LEVELS and place[1] >> LEVELS - place[0] == number]
        size = max(idx + 1 << level for level, idx in asked)
        if self._last[0] != number or self._last[1] < size:
            leaves = self.leaves(number * WIDTH, (number + 1) * WIDTH)
            (made,), _ = _tiles(leaves + [bytes(HASH_BYTES)] * (WIDTH - len(leaves)))
            self._last = (number, number * WIDTH + len(leaves), made)
            if len(leaves) == WIDTH or self._last[1] < size:
                raise StoreBroken(_MISSING)
        return self._last[2]

    def _read(self, places: Sequence[Place]) -> dict[Place, bytes]:
        """The nodes among `places` that lie above the tiles."""
        high = [place for place in places if place[0] >= LEVELS]
        if not high:
            return {}
        # Every arm finds exactly one row by its primary key, and the arms of UNION ALL answer in their order.
        rows = self._query(_select(len(high)), self._feed, *[number for place in high for number in place])
        if len(rows) != len(high):
            raise StoreBroken(_MISSING)
        return {place: hash for place, (hash,) in zip(high, rows, strict=True)}

    def _remembered(self, level: int, idx: int, memory: dict[Place, list[bytes]]) -> bytes:
        """A node whose block is not in memory, or was read before the feed grew."""
        place = idx % _BLOCK
        first = idx - place
        rows = self.stored(level, first, first + _BLOCK)
        if [at for at, _ in rows] != list(range(first, first + len(rows))) or place >= len(rows):
            raise StoreBroken(_MISSING)
        if len(memory) >= _BLOCKS:
            del memory[next(iter(memory))]  # the oldest
        block = memory[level, idx // _BLOCK] = [hash for _, hash in rows]
        return block[place]


def place_of(feed: int, seq: int) -> int:
    """The key of entry `seq` (or of tile `seq`) of the feed with row id `feed`; those of one feed are neighbours."""
    return (feed << 40) + seq


def tile_rows(feed: int, tiles: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """What to write for tiles that are complete now."""
    return [(place_of(feed, number), hashes) for number, hashes in tiles]


def node_rows(feed: int, nodes: Iterable[Row]) -> list[tuple[int, int, int, bytes]]:
    """What to write for nodes that are complete now."""
    return [(feed, level, idx, hash) for level, first, hashes in nodes for idx, hash in enumerate(hashes, first)]


def _tiles(leaves: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The tiles over a multiple of 64 leaves, and the root of each."""
    sha, row, levels = hashlib.sha256, leaves, list[bytes]()
    for _ in range(LEVELS):
        levels.append(b"".join(row))
        one = iter(row)
        row = [sha(b"\x01" + left + right).digest() for left, right in zip(one, one, strict=True)]
    tiles = []
    for number in range(len(row)):
        parts = []
        for level, joined in enumerate(levels):
            wide = HASH_BYTES * WIDTH >> level
            parts.append(joined[number * wide : (number + 1) * wide])
        tiles.append(b"".join(parts))
    return tiles, list(row)


@lru_cache(maxsize=64)
def _select(count: int) -> str:
    return " UNION ALL ".join([_NODE] * count)
