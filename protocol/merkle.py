"""RFC 6962 / RFC 9162 hash tree over byte strings: leaf and node hashes, roots of a list of leaves.

Hashes are raw 32-byte strings here; callers turn them into hex where text is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

EMPTY_ROOT = hashlib.sha256(b"").digest()


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

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        n, carried = self.size, leaf
        while n & 1:
            carried = node_hash(self.peaks.pop(), carried)
            n >>= 1
        self.peaks.append(carried)
        self.size += 1

    def copy(self) -> Frontier:
        """An independent tree with the same leaves."""
        other = Frontier()
        other.size, other.peaks = self.size, self.peaks.copy()
        return other

    def root(self) -> bytes:
        """The tree head of all leaves so far (RFC 6962 section 2.1)."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The tree head over a list of leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()
