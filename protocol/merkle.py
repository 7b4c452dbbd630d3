"""RFC 6962 / RFC 9162 hash tree over byte strings: hashes, roots, inclusion and consistency proofs.

Hashes are raw 32-byte strings here; callers turn them into hex where text is needed. A proof is built from any source of
stored nodes: `nodes([(level, index), ...])` returns the roots of the perfect subtrees over the leaves
[index * 2^level, (index + 1) * 2^level). Knows no files. Law: what a builder makes, its verifier accepts for that tree and
for no other leaf, place, size or root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from protocol.errors import BadProof

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
HASH_BYTES: Final = 32

Place: TypeAlias = tuple[int, int]
"""(level, index) of a perfect subtree; level 0 is the leaves."""
Nodes: TypeAlias = Callable[[Sequence[Place]], Sequence[bytes]]
"""Reads many stored nodes at once, in the order of the places asked for."""


class Row(NamedTuple):
    """Neighbouring perfect subtrees of one level that are complete: they never change again, however the tree grows."""

    level: int
    first: int
    hashes: list[bytes]


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: O(log n) memory, amortised O(1) append.

    Invariant: `peaks` holds the roots of the perfect subtrees of `size` leaves, largest first.
    """

    def __init__(self) -> None:
        """Start an empty tree."""
        self.size = 0
        self.peaks: list[bytes] = []

    @classmethod
    def stored(cls, size: int, nodes: Nodes) -> Frontier:
        """The tree of the first `size` leaves of a stored one."""
        tree = cls()
        tree.size, tree.peaks = size, list(nodes(_perfect(0, size)))
        return tree

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        n, carried = self.size, leaf
        while n & 1:
            carried = node_hash(self.peaks.pop(), carried)
            n >>= 1
        self.peaks.append(carried)
        self.size += 1

    def extend(self, leaves: Sequence[bytes]) -> list[Row]:
        """Add leaf hashes, and return the inner nodes that they complete: a row for each level from 1 on that has some.

        Law: the same tree as `append` of each leaf.
        """
        sha, done = hashlib.sha256, list[Row]()
        bits = [level for level in reversed(range(self.size.bit_length())) if self.size >> level & 1]
        edge = dict(zip(bits, self.peaks, strict=True))  # level -> the peak there, if there is one
        row, first, level = list(leaves), self.size, 0
        while row:
            if first & 1:
                row.insert(0, edge.pop(level))
            if len(row) & 1:
                edge[level] = row.pop()
            first, level = first >> 1, level + 1
            row = [sha(b"\x01" + row[n] + row[n + 1]).digest() for n in range(0, len(row), 2)]
            if row:
                done.append(Row(level, first, list(row)))
        self.peaks = [edge[level] for level in sorted(edge, reverse=True)]
        self.size += len(leaves)
        return done

    def copy(self) -> Frontier:
        """An independent tree with the same leaves."""
        other = Frontier()
        other.size, other.peaks = self.size, self.peaks.copy()
        return other

    def root(self) -> bytes:
        """The tree head of all leaves so far (RFC 6962 section 2.1)."""
        return root_over(self.peaks)


def root_over(peaks: Sequence[bytes]) -> bytes:
    """The tree head over the roots of perfect subtrees, largest first."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


@lru_cache(maxsize=256)  # all proofs in the left part of a tree end in the root of its right part
def _root_again(peaks: tuple[bytes, ...]) -> bytes:
    return root_over(peaks)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The tree head over a list of leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


# -- proofs ------------------------------------------------------------------------------------------------------------
def root_at(size: int, nodes: Nodes) -> bytes:
    """The tree head of the first `size` leaves of a stored tree."""
    return Frontier.stored(size, nodes).root()


def inclusion(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """The proof that leaf `index` is in the tree of `size` leaves, lowest sibling first (RFC 9162 section 2.1.3.1).

    Raises:
        BadProof: there is no such leaf.
    """
    if not 0 <= index < size:
        raise BadProof(f"couldn't prove inclusion: leaf {index} is not one of {size}")
    edge = (
        index ^ size - 1
    ).bit_length()  # from this level on the leaf lies under the last node, which has no right sibling
    places, ragged, place = list[Place](), list[Place](), index
    for level in range(edge):
        places.append((level, place ^ 1))
        place >>= 1
    if edge and places[-1][1] + 1 << edge - 1 > size:  # the one sibling that may be no perfect subtree
        ragged = _perfect(places.pop()[1] << edge - 1, size)
    level = edge
    while place:
        if place & 1:
            places.append((level, place - 1))
        place, level = place >> 1, level + 1
    found = list(nodes(places + ragged))
    path = found[: len(places)]
    if ragged:
        path.insert(edge - 1, _root_again(tuple(found[len(places) :])))
    return path


def consistency(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """The proof that the tree of `old` leaves is a prefix of that of `new` (RFC 9162 section 2.1.4.1).

    Raises:
        BadProof: not 0 < old <= new; nothing can be said about the empty tree.
    """
    if not 0 < old <= new:
        raise BadProof(f"couldn't prove consistency: from size {old} to {new}")
    if old == new:
        return []
    ranges, begin, end, whole = [], 0, new, True
    while old != end:  # [0, old) ends inside [begin, end)
        split = begin + (1 << (end - begin - 1).bit_length() - 1)
        if old <= split:
            ranges.append((split, end))
            end = split
        else:
            ranges.append((begin, split))
            begin, whole = split, False
    if not whole:
        ranges.append((begin, end))
    return _hashes(ranges[::-1], nodes)


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Check that leaf hash `leaf` stands at `index` in the tree of `size` leaves under `root` (RFC 9162 section 2.1.3.2).

    Raises:
        BadProof: it does not, or the proof is too long, too short, or not of hashes.
    """
    if not 0 <= index < size:
        raise BadProof(f"couldn't verify inclusion: leaf {index} is not one of {size}")
    _sized((leaf, root, *proof), "inclusion")
    place, last, found = index, size - 1, leaf
    for item in proof:
        if last == 0:
            raise BadProof("couldn't verify inclusion: the proof is too long")
        if place & 1 or place == last:
            found = node_hash(item, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, item)
        place, last = place >> 1, last >> 1
    if last:
        raise BadProof("couldn't verify inclusion: the proof is too short")
    if found != root:
        raise BadProof("couldn't verify inclusion: the proof leads to another root")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree of `old` leaves is a prefix of that of `new` leaves (RFC 9162 section 2.1.4.2).

    Raises:
        BadProof: it is not, or a size is 0 or smaller than the other, or the proof is too long, too short, or not of hashes.
    """
    if not 0 < old <= new:
        raise BadProof(f"couldn't verify consistency: from size {old} to {new}")
    if old == new:
        if proof or old_root != new_root:
            raise BadProof("couldn't verify consistency: one size has one root and needs no proof")
        return
    _sized((old_root, new_root, *proof), "consistency")
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not proof:
        raise BadProof("couldn't verify consistency: the proof is too short")
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for item in path[1:]:
        if last == 0:
            raise BadProof("couldn't verify consistency: the proof is too long")
        if place & 1 or place == last:
            first, second = node_hash(item, first), node_hash(item, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, item)
        place, last = place >> 1, last >> 1
    if last:
        raise BadProof("couldn't verify consistency: the proof is too short")
    if (first, second) != (old_root, new_root):
        raise BadProof("couldn't verify consistency: the proof leads to other roots")


def _perfect(begin: int, end: int) -> list[Place]:
    """The perfect subtrees that make up [begin, end), largest first; `begin` is a multiple of the largest."""
    places = []
    for level in reversed(range((end - begin).bit_length())):
        if (end - begin) >> level & 1:
            places.append((level, begin >> level))
            begin += 1 << level
    return places


def _hashes(ranges: Iterable[tuple[int, int]], nodes: Nodes) -> list[bytes]:
    """The root of each range, read from the stored nodes in one go."""
    parts = [_perfect(begin, end) for begin, end in ranges]
    found = iter(nodes([place for part in parts for place in part]))
    return [root_over([next(found) for _ in part]) for part in parts]


def _sized(hashes: Iterable[bytes], what: str) -> None:
    if any(len(item) != HASH_BYTES for item in hashes):
        raise BadProof(f"couldn't verify {what}: a hash has {HASH_BYTES} bytes")
