"""Which peers speak for which members: a few per member, newest first.

Filled from verified bindings; knows neither networks nor who may be a member. Invariant: a peer speaks for one member, and at
most `MAX_MEMBERS` members with `PEERS_PER_MEMBER` peers each are remembered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.ids import MemberId, PeerId

MAX_MEMBERS = 1024
PEERS_PER_MEMBER = 4


class Directory:
    """Peers by member and members by peer."""

    def __init__(self, own: PeerId) -> None:
        """Leave our own peer out."""
        self._own = own
        self._peers: dict[MemberId, tuple[PeerId, ...]] = {}
        self._members: dict[PeerId, MemberId] = {}

    def meet(self, peer: PeerId, member: MemberId, *, newest: bool) -> bool:
        """Remember that `peer` speaks for `member`, in front of its other peers if `newest`; whether that is news."""
        known = self._peers.get(member, ())
        if peer == self._own or peer in known[:1] or (peer in known and not newest):
            return False
        if not known and len(self._peers) >= MAX_MEMBERS:
            return False
        former = self._members.get(peer, member)
        if former != member:
            self._peers[former] = tuple(other for other in self._peers[former] if other != peer)
        others = tuple(other for other in known if other != peer)
        fresh = ((peer, *others) if newest else (*others, peer))[:PEERS_PER_MEMBER]
        for other in known:
            self._members.pop(other, None)
        self._members.update(dict.fromkeys(fresh, member))
        self._peers[member] = fresh
        return peer in fresh

    def member_of(self, peer: PeerId) -> MemberId | None:
        """Whom `peer` speaks for."""
        return self._members.get(peer)

    def peers_of(self, member: MemberId) -> tuple[PeerId, ...]:
        """The peers of `member`, newest first."""
        return self._peers.get(member, ())

    def members(self) -> tuple[MemberId, ...]:
        """Every member that has shown a peer."""
        return tuple(self._peers)

    def peers(self) -> frozenset[PeerId]:
        """Every peer of every member."""
        return frozenset(self._members)

    def newest(self) -> frozenset[PeerId]:
        """The newest peer of each member."""
        return frozenset(peers[0] for peers in self._peers.values() if peers)

    def ranked(self, prefer: Sequence[MemberId], among: Iterable[PeerId]) -> list[PeerId]:
        """The members' peers that are `among` the given ones, those of preferred members first."""
        first = [peer for member in prefer for peer in self.peers_of(member)]
        present = frozenset(among)
        return [peer for peer in dict.fromkeys([*first, *self._members]) if peer in present]
