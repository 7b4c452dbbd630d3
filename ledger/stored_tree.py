"""Compares the tree of a feed as it is stored with the one that its entries make, for the audit.

Trusts nothing that is stored, and knows no signatures and no findings: it says at which entry what is wrong. Law: no fault and
nothing to spare means that the stored tiles and nodes are those of the entries, every one and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ledger.tree import LEVELS, STARTS, WIDTH, Grown, Tree
from protocol.merkle import HASH_BYTES, Row

Fault = tuple[int, str]
"""The last entry under a hash that is wrong, and what is wrong with it."""


class StoredTree:
    """One feed's tree in the file, compared with what grows from the entries, part by part from the first entry on."""

    def __init__(self, tree: Tree) -> None:
        """Nothing is read yet."""
        self.tree = tree
        self._absent = 0

    def faults(self, grown: Grown) -> Iterator[Fault]:
        """What is wrong with the stored tiles and nodes that should be these.

        Raises:
            StoreBroken: they cannot be read.
        """
        yield from self._tiles(grown.tiles)
        yield from self._nodes(grown.nodes)

    def spare(self, size: int) -> int:
        """How many more tiles and nodes are stored than `size` entries make, once all of them were compared."""
        tiles = size // WIDTH
        return sum(self.tree.counts()) + self._absent - (tiles + 2 * tiles - tiles.bit_count())

    def _tiles(self, tiles: Sequence[tuple[int, bytes]]) -> Iterator[Fault]:
        if not tiles or (held := self.tree.stored_tiles(tiles[0][0], tiles[-1][0] + 1)) == tiles:
            return
        found = dict(held)
        for number, hashes in tiles:
            stored = found.get(number)
            if stored is None:
                self._absent += 1
                yield (number + 1) * WIDTH - 1, f"tile {number} of the stored tree is missing"
            elif stored != hashes:
                yield from _tile(number, stored, hashes)

    def _nodes(self, nodes: Sequence[Row]) -> Iterator[Fault]:
        """The same for the nodes above the tiles."""
        for level, first, hashes in nodes:
            held = self.tree.stored(level, first, first + len(hashes))
            computed = list(enumerate(hashes, first))
            if held == computed:
                continue
            found = dict(held)
            for idx, hash in computed:
                if found.get(idx) != hash:
                    self._absent += idx not in found
                    yield _node(level, idx, "missing" if idx not in found else "another than its entries make")


def _tile(number: int, stored: bytes, hashes: bytes) -> Iterator[Fault]:
    """Which hashes of a tile are wrong."""
    for level, start in enumerate(STARTS):
        for place in range(WIDTH >> level):
            at = slice((start + place) * HASH_BYTES, (start + place + 1) * HASH_BYTES)
            if stored[at] != hashes[at]:
                yield _node(level, (number << LEVELS - level) + place, "another than its entries make")
    if len(stored) > len(hashes):
        yield (number + 1) * WIDTH - 1, f"tile {number} of the stored tree is too long"


def _node(level: int, idx: int, what: str) -> Fault:
    return (idx + 1 << level) - 1, f"node {idx} of level {level} of the stored tree is {what}"
