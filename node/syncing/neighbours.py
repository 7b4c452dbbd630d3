"""Whom a member keeps connections to: everybody while they are few, beyond that some that suffice.

Members stand on a ring by a hash that names the collective. Each keeps its next ones on both sides and some at doubling
distances (as in Chord, Stoica et al., SIGCOMM 2001; both ends choose alike, so it is one connection), which makes one component
with O(log N) hops between any two; and a few that it draws itself, which nobody can foresee. A page is asked of whoever is
nearest to its author on the ring: that way each author's news run down a tree and nobody is asked by all. Knows no peers, no
network and no clock. Invariant: pure but for what was drawn, which stays while its member does.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection

from protocol.ids import CollectiveId, MemberId

LIMIT = 24  # up to so many others, all are kept
BESIDE = 2  # next ones on each side
DRAWN = 4
_AROUND = 1 << 64


class Neighbours:
    """The neighbours of one member in one collective."""

    def __init__(
        self, collective: CollectiveId, me: MemberId, rng: random.Random, limit: int = LIMIT, drawn: int = DRAWN
    ) -> None:
        """Keep everybody up to `limit` other members; draw `drawn` with `rng` beyond that."""
        self._collective, self._me, self._random = collective, me, rng
        self._limit, self._count = limit, drawn
        self._drawn: dict[MemberId, None] = {}
        self._places: dict[MemberId, int] = {}

    def choose(self, members: Collection[MemberId]) -> frozenset[MemberId]:
        """Whom to keep a connection to, of `members`; O(members): call it when they change, not for each of them."""
        others = sorted({m for m in members if m != self._me})
        if len(others) <= self._limit:
            return frozenset(others)
        ring = sorted([*others, self._me], key=lambda m: (self.place(m), m))
        at, size = ring.index(self._me), len(ring)
        steps = [*range(1, BESIDE + 1)]
        while steps[-1] * 2 < size // 2:
            steps.append(steps[-1] * 2)
        fixed = {ring[(at + side * step) % size] for step in steps for side in (1, -1)} - {self._me}
        known = frozenset(others)
        self._drawn = {m: None for m in self._drawn if m in known and m not in fixed}
        rest = [m for m in others if m not in fixed and m not in self._drawn]
        for member in self._random.sample(rest, max(0, min(self._count - len(self._drawn), len(rest)))):
            self._drawn[member] = None
        return frozenset(fixed | self._drawn.keys())

    def nearness(self, author: MemberId, member: MemberId) -> int:
        """The distance of two members on the ring, from 0 on; the smaller, the sooner `member` has what `author` writes."""
        gap = abs(self.place(author) - self.place(member))
        return min(gap, _AROUND - gap)

    def place(self, member: MemberId) -> int:
        """Where a member stands on the ring, from 0 to 2^64-1."""
        found = self._places.get(member)
        if found is None:
            found = int.from_bytes(hashlib.sha256(f"{self._collective}/{member}".encode("ascii")).digest()[:8], "big")
            self._places[member] = found
        return found
