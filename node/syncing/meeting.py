"""Decides whom to ask for heads, and when: a new peer at once, then a few drawn at random in each round.

Members come before strangers; a stranger is asked once in a while, few at a time, as it may have become a member. Pure but for
what it is told and the draw. Invariant: the cost of a round does not grow with the number of peers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Final

from protocol.ids import MemberId, PeerId

PER_ROUND: Final = 3
STRANGERS_AT_ONCE: Final = 4
STRANGER_EVERY_S: Final = 60.0


class Meeting:
    """What is known of the connected peers: who answered, as whom, and when a stranger was asked."""

    def __init__(
        self, *, rng: random.Random, clock: Callable[[], float], member_of: Callable[[PeerId], MemberId | None]
    ) -> None:
        """`member_of` says whom a peer speaks for, if it is one that we serve or follow."""
        self._rng, self._clock, self._member_of = rng, clock, member_of
        self._answered: set[PeerId] = set()
        self._strangers: dict[PeerId, float] = {}  # when it was asked last

    def gone(self, connected: Collection[PeerId]) -> set[PeerId]:
        """Forget whoever is not connected any more; who that was."""
        left = {peer for peer in (*self._answered, *self._strangers) if peer not in connected}
        self._answered -= left
        for peer in left:
            self._strangers.pop(peer, None)
        return left

    def asked(self, peer: PeerId) -> None:
        """A question to it begins."""
        if self._member_of(peer) is None:
            self._strangers[peer] = self._clock()

    def answered(self, peer: PeerId) -> None:
        """It has told who it is."""
        self._answered.add(peer)
        if self._member_of(peer) is not None:
            self._strangers.pop(peer, None)
        else:
            self._strangers[peer] = self._clock()

    def has_answered(self, peer: PeerId) -> bool:
        """Whether it answered, and speaks for somebody that we serve or follow."""
        return peer in self._answered and self._member_of(peer) is not None

    def is_stranger(self, peer: PeerId) -> bool:
        """Whether it answered, and speaks for nobody that we serve or follow."""
        return peer in self._answered and self._member_of(peer) is None

    def due(self, connected: Collection[PeerId], busy: Collection[PeerId]) -> list[PeerId]:
        """Whom to ask at once: who has not answered yet; strangers only some at a time, and each only now and then."""
        now = self._clock()
        strange = sum(self._member_of(peer) is None for peer in busy)
        found = []
        for peer in sorted(connected):
            if peer in self._answered or peer in busy:
                continue
            if self._member_of(peer) is None:
                if (
                    strange >= STRANGERS_AT_ONCE
                    or now - self._strangers.get(peer, -STRANGER_EVERY_S) < STRANGER_EVERY_S
                ):
                    continue
                strange += 1
            found.append(peer)
        return found

    def drawn(self, connected: Collection[PeerId], busy: Collection[PeerId]) -> list[PeerId]:
        """Whom to ask in this round besides: a few of those that answered before, and a stranger whose time has come."""
        members, strangers, now = [], [], self._clock()
        for peer in sorted(connected):
            if peer in busy or peer not in self._answered:
                continue
            if self._member_of(peer) is not None:
                members.append(peer)
            elif now - self._strangers.get(peer, -STRANGER_EVERY_S) >= STRANGER_EVERY_S:
                strangers.append(peer)
        few = self._rng.sample(members, min(PER_ROUND, len(members)))
        return [*few, *self._rng.sample(strangers, min(1, len(strangers)))]
