"""Whom this node wants to be connected with, why, and where each was seen; and who is to be tried now.

Three kinds: *wanted* ones (members, as their feeds say), *known* ones (named by the operator) and *nearby* ones (heard on the
LAN; few, and forgotten when they go). A missing peer is tried again for ever, after pauses with full jitter; one that was seen
at a new address is tried at once. Knows no network. Invariant: nobody is to be dialled who is connected, banned, or us.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from node.finding.addresses import MAX_ADDRESSES, AddressBook
from node.finding.backoff import Backoff
from protocol.ids import PeerId

MAX_NEARBY = 64
REDIAL_S = (1.0, 10.0)  # bounds of the pause before a missing peer is tried again; it is drawn from nothing to there


class Contacts:
    """The peers of one node."""

    def __init__(
        self,
        me: PeerId,
        book: AddressBook,
        *,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        banned: Callable[[PeerId], bool] = lambda _peer: False,
    ) -> None:
        """Measure pauses with `clock` in seconds, draw them from `rng`; whoever is `banned` is left alone."""
        self._me, self._book, self._banned = me, book, banned
        self._clock, self._rng = clock, rng or random.Random()  # noqa: S311 - spreads load, hides nothing
        self._wanted: frozenset[PeerId] = frozenset()
        self._known: set[PeerId] = set()
        self._nearby: dict[PeerId, tuple[str, ...]] = {}
        self._fresh: dict[PeerId, None] = {}
        self.begin()

    def begin(self) -> None:
        """Whoever comes back dials everybody at once."""
        self._pauses = Backoff(self._clock, self._rng)

    # -- who -----------------------------------------------------------------------------------------------------------
    def want(self, peers: Iterable[PeerId]) -> None:
        """Be connected with these members from now on, besides those that the operator named."""
        self._wanted = frozenset(peers)

    def name(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """The operator wants `peer`, who is at these addresses."""
        self._known.add(peer)
        self.learn(peer, addresses)

    def unname(self, peer: PeerId) -> None:
        """The operator no longer names `peer`; a member stays wanted."""
        self._known.discard(peer)

    def forget(self, peer: PeerId) -> None:
        """Know nothing of `peer` any more, not even where it was."""
        self._known.discard(peer)
        self._wanted -= {peer}
        self._nearby.pop(peer, None)
        self._fresh.pop(peer, None)
        self._pauses.clear(peer)
        self._book.forget(peer)

    def trusted(self, peer: PeerId) -> bool:
        """Whether `peer` is a member or was named by the operator; to be heard on the LAN is not enough."""
        return peer in self._wanted or peer in self._known

    def missing(self, connected: frozenset[PeerId]) -> frozenset[PeerId]:
        """Who should be connected and is not."""
        everybody = self._wanted | self._known | self._nearby.keys()
        return frozenset(peer for peer in everybody - connected - {self._me} if not self._banned(peer))

    def due(self, connected: frozenset[PeerId]) -> list[PeerId]:
        """Who is to be tried now, those with a new address first, the others in random order."""
        missing = self.missing(connected)
        waiting = sorted(peer for peer in missing if peer not in self._fresh and not self._pauses.blocked(peer))
        self._rng.shuffle(waiting)
        return [peer for peer in self._fresh if peer in missing] + waiting

    # -- where ---------------------------------------------------------------------------------------------------------
    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where `peer` was seen, newest first."""
        return tuple(dict.fromkeys(self._nearby.get(peer, ()) + self._book.addresses(peer)))[:MAX_ADDRESSES]

    def learn(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Remember where `peer` is said to be; True when something of it is new, and then it is tried at once."""
        new = peer != self._me and self._book.remember(peer, addresses)
        if new:
            self._try_at_once(peer)
        return new

    def nearby(self, seen: Mapping[PeerId, tuple[str, ...]]) -> bool:
        """Who is on the LAN now, and where; more than `MAX_NEARBY` are not listened to. True when somebody is new."""
        before, self._nearby = self._nearby, dict(list(seen.items())[:MAX_NEARBY])
        new = [peer for peer, where in self._nearby.items() if set(where) - set(before.get(peer, ()))]
        for peer in new:
            self._try_at_once(peer)
        return bool(new)

    def _try_at_once(self, peer: PeerId) -> None:
        self._pauses.clear(peer)
        self._fresh[peer] = None
        while len(self._fresh) > MAX_NEARBY:
            del self._fresh[next(iter(self._fresh))]

    # -- how it went ---------------------------------------------------------------------------------------------------
    def trying(self, peer: PeerId) -> None:
        """It is being dialled."""
        self._fresh.pop(peer, None)

    def failed(self, peer: PeerId) -> None:
        """Nobody of that name answered anywhere."""
        self._pauses.fail(peer, REDIAL_S)

    def reached(self, peer: PeerId) -> None:
        """It is connected; when it is lost again, it is tried at once."""
        self._pauses.clear(peer)

    def status(self) -> dict[str, int]:
        """Counts for metrics."""
        return {
            "wanted": len(self._wanted),
            "known": len(self._known),
            "nearby": len(self._nearby),
            "waiting": self._pauses.blocked_count(),
        }
