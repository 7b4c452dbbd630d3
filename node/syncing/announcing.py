"""Announces our own newest head: at once when it is new, and now and then again for whoever missed it.

An announcement may be lost; whoever missed one learns of it by asking. So the same head is repeated seldom, and the more members
there are, the seldomer: what all of them together repeat stays the same. Members that start together do not repeat together: the
first repetition falls anywhere in its time. While all members follow us, only strangers would hear it: they can wait a little.
Knows no peers.
Invariant: nothing is announced before it is stored.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from ledger.store import Store
from node.ports import Network
from protocol import wire
from protocol.ids import CollectiveId, MemberId

AGAIN_S: Final = 60.0
STRANGERS_S: Final = 15.0  # between two that only strangers need
MANY: Final = 16  # members beyond which it is repeated seldomer


class Announcing:
    """The announcements of one member in one collective."""

    def __init__(
        self,
        store: Store,
        network: Network,
        collective: CollectiveId,
        me: MemberId,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        members: Callable[[], int],
        told: Callable[[], bool] = lambda: False,
    ) -> None:
        """`clock` in seconds; `members` is how many members are known, `told` whether all of them follow us."""
        self._store, self._network, self._collective, self._me = store, network, collective, me
        self._clock, self._rng, self._members = clock, rng, members
        self._told = told
        self._last, self._again_at, self._strangers_at = b"", 0.0, 0.0

    async def now(self, *, again: bool) -> bool:
        """Publish our newest head if it is new, or with `again` if its time has come. False when it was dropped."""
        if self._told() and not (again and self._clock() >= self._strangers_at):
            return True
        heads = self._store.heads(self._collective, self._me)
        if not heads:
            return False
        note, now = heads[0].note, self._clock()
        if note == self._last and not (again and now >= self._again_at):
            return True
        if not await self._network.publish(wire.topic(self._collective), note):
            return False
        self._strangers_at = now + STRANGERS_S
        every = AGAIN_S * max(1.0, self._members() / MANY)
        share = self._rng.uniform(0.8, 1.2) if self._last else self._rng.random()
        self._last, self._again_at = note, now + every * share
        return True
