"""Lends donors: which peer may be asked for a blob now, so many streams in all, so many of one donor, the most urgent first.

A wish names the donors that could serve it; it gets the least busy of the best ones, or waits for its turn. Among equals a
donor is chosen by a hash that differs from node to node, so that many newcomers do not all hit one. Knows no stream and
nothing of blobs but their digests. Invariants: never more than `TOTAL` streams, nor `PER_DONOR` of one donor; a place is given
back whatever happens; a wish that nobody can serve is told so at once instead of waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from bisect import insort
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import Final

from node.errors_network import BlobMissing
from protocol.ids import Digest, PeerId

TOTAL: Final = 16
PER_DONOR: Final = 4
SPARE: Final = 4  # places that history leaves to whatever is urgent; of each donor one
SLOW: Final = 8.0  # times slower than the fastest, a donor comes last
_SMOOTH: Final = 0.3  # weight of the newest measurement of a donor's speed


class Rank(IntEnum):
    """How urgent a blob is: the lower, the earlier."""

    VOTE = 0  # a decision now under vote needs it
    PENDING = 1
    RELEASE = 2  # the newest release is made of it
    HISTORY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A donor that could serve a wish. `tier` 0: known or presumed to hold it, 1: not known."""

    peer: PeerId
    tier: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class _Wish:
    digest: Digest
    candidates: Callable[[], Sequence[Candidate]]
    order: Callable[[], tuple[int, ...]]
    number: int
    turn: tuple[int, ...]  # its place in the line: what `order` said when it came or was hurried, then its number
    waits_for: frozenset[PeerId] | None = None  # donors of which one has to be free; None: look again at any change
    lent: asyncio.Future[PeerId] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Donors:
    """The streams that may be open for blobs."""

    def __init__(self, salt: bytes) -> None:
        """`salt` makes the choice among equal donors our own."""
        self._salt = salt
        self._load: Counter[PeerId] = Counter()
        self._waiting: list[_Wish] = []  # in the order of their turns
        self._numbers = count()
        self._rates: dict[PeerId, float] = {}

    @property
    def open(self) -> int:
        """Places that are lent now."""
        return self._load.total()

    def load(self, peer: PeerId) -> int:
        """Places lent of one donor."""
        return self._load[peer]

    def rate(self, peer: PeerId) -> float | None:
        """How fast a donor gave lately, in bytes a second; None: not known."""
        return self._rates.get(peer)

    def measured(self, peer: PeerId, rate: float) -> None:
        """Note how fast a donor gave."""
        last = self._rates.pop(peer, rate)
        self._rates[peer] = last + _SMOOTH * (rate - last)
        while len(self._rates) > 1024:
            del self._rates[next(iter(self._rates))]

    @contextlib.asynccontextmanager
    async def lend(
        self, digest: Digest, order: Callable[[], tuple[int, ...]], candidates: Callable[[], Sequence[Candidate]]
    ) -> AsyncIterator[PeerId]:
        """A donor for the length of the block; `order` is a `Rank` and what decides inside it, asked now and by `hurry`.

        Raises:
            BlobMissing: there is no candidate now.
        """
        number = next(self._numbers)
        wish = _Wish(digest=digest, candidates=candidates, order=order, number=number, turn=(*order(), number))
        insort(self._waiting, wish, key=_turn)
        try:
            self._serve(wish)  # whoever waits already cannot be served now
            peer = await wish.lent
        except asyncio.CancelledError:
            if wish in self._waiting:
                self._waiting.remove(wish)
            elif not wish.lent.cancelled() and wish.lent.exception() is None:
                self._give_back(wish.lent.result())  # it came in the same moment
            raise
        try:
            yield peer
        finally:
            self._give_back(peer)

    def grant(self) -> None:
        """Let everybody who waits look again, the most urgent first: call it when other donors have come or gone."""
        for wish in list(self._waiting):
            self._serve(wish)

    def hurry(self, digest: Digest) -> None:
        """What wants this blob has become more urgent: ask for its order again."""
        for wish in [w for w in self._waiting if w.digest == digest]:
            self._waiting.remove(wish)
            wish.turn = (*wish.order(), wish.number)
            insort(self._waiting, wish, key=_turn)
            self._serve(wish)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _give_back(self, peer: PeerId) -> None:
        """One place is free again: the most urgent of those that it may serve gets it, if any."""
        self._load[peer] -= 1
        if not self._load[peer]:
            del self._load[peer]
        for wish in list(self._waiting):
            if (wish.waits_for is None or peer in wish.waits_for) and self._serve(wish):
                return

    def _serve(self, wish: _Wish) -> bool:
        """Whether a wish got a place; it is told when nobody can serve it, else it goes on waiting."""
        if wish.lent.done():
            return False  # given up in this moment
        history = wish.turn[0] >= Rank.HISTORY
        if self.open >= TOTAL - (SPARE if history else 0):
            wish.waits_for = None
            return False
        found = wish.candidates()
        if not found:
            self._waiting.remove(wish)
            wish.lent.set_exception(BlobMissing(f"couldn't fetch blob {wish.digest[:12]}: nobody connected gives it"))
            return False
        best = self._best(wish, [c for c in found if self._load[c.peer] < PER_DONOR - history])
        if best is None:
            wish.waits_for = frozenset(c.peer for c in found)
            return False
        self._waiting.remove(wish)
        self._load[best.peer] += 1
        wish.lent.set_result(best.peer)
        return True

    def _best(self, wish: _Wish, found: Sequence[Candidate]) -> Candidate | None:
        """Of the likeliest ones, not a slow one when there is a fast one, and the least busy."""
        fastest = max((self._rates.get(c.peer, 0.0) for c in found), default=0.0)

        def preference(candidate: Candidate) -> tuple[int, bool, int, bytes]:
            slow = self._rates.get(candidate.peer, fastest) < fastest / SLOW
            text = self._salt + wish.digest.encode() + candidate.peer.encode()
            return candidate.tier, slow, self._load[candidate.peer], hashlib.sha256(text).digest()

        return min(found, key=preference, default=None)


def _turn(wish: _Wish) -> tuple[int, ...]:
    return wish.turn
