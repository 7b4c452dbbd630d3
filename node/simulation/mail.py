"""How a simulated member keeps in step: the node's three exchanges (news, feed ranges, blobs) over the fake swarm.

News is a hint and may be lost; the pull is the truth: a member asks a random other one from time to time what it holds, and
pulls what it lacks from whoever has it. Knows no votes. Invariant: nothing reaches the seat but through the store's own
checks, and every question that stays without an answer is asked again, of somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ledger.collective import Contribution
from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen
from node.simulation.feeds import wire_bytes
from node.simulation.member import Member
from node.simulation.swarm import Swarm
from protocol.errors import Refused
from protocol.ids import Digest, MemberId

HEAD_BYTES: Final = 330  # a signed head, as it is announced
ASK_BYTES: Final = 700  # a request with the binding of who asks
_PAGE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a member behaves on the network; times in simulated ms."""

    heads_every: float
    retry: float
    announce_to: int


class Mail:
    """The sync of one member."""

    def __init__(self, member: Member, swarm: Swarm, habits: Habits, wake: Callable[[], None]) -> None:
        """`wake` is called whenever something new has arrived."""
        self.member, self._swarm, self._habits, self._wake = member, swarm, habits, wake
        self._peers: Sequence[Mail] = ()
        self._number: Mapping[MemberId, int] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was in memory: a start of the node."""
        self._claims: dict[MemberId, tuple[int, int]] = {}  # feed -> size, who said so
        self._asked: set[MemberId] = set()
        self._fetching: set[Digest] = set()
        self._lacking: dict[Digest, Contribution] = {}
        self._announced = 0
        self._told: dict[MemberId, int] = {}

    def meet(self, everybody: Sequence[Mail]) -> None:
        """Know the others, and ask around from now on."""
        self._peers = everybody
        self._number = {each.member.id: each.member.number for each in everybody}
        self._later(self.member.random.uniform(0, self._habits.heads_every), self.look_around, forever=True)

    # -- news --------------------------------------------------------------------------------------------------------
    def announce(self) -> None:
        """Tell the others how long our feed is, when it has grown since."""
        size = self.member.store.size(self.member.id)
        if size > self._announced:
            self._announced = size
            self._spread(self.member.id, size)

    def _spread(self, feed: MemberId, size: int) -> None:
        me = self.member.number
        self._told[feed] = size
        count = self._habits.announce_to or len(self._peers)
        for other in self._swarm.others(me, count):
            peer = self._peers[other]
            self._swarm.send(me, other, HEAD_BYTES, "news", lambda peer=peer: peer.heard(me, feed, size))  # type: ignore[misc]

    def heard(self, teller: int, feed: MemberId, size: int) -> None:
        """Somebody says that a feed has so many entries."""
        if self._habits.announce_to and size > self._told.get(feed, 0):
            self._spread(feed, size)
        if size > self._claims.get(feed, (0, 0))[0]:
            self._claims[feed] = (size, teller)
        self._pull(feed, teller)

    def look_around(self) -> None:
        """Ask a random member what it holds, and again for blobs that are still lacking."""
        me = self.member.number
        for other in self._swarm.others(me, 1):
            peer = self._peers[other]
            self._swarm.send(me, other, ASK_BYTES, "heads", lambda peer=peer: peer.asked_heads(me))  # type: ignore[misc]
        for contribution in list(self._lacking.values()):
            self._fetch(contribution, None)

    def asked_heads(self, asker: int) -> None:
        """Answer what is held here."""
        sizes, me = self.member.store.sizes(), self.member.number
        peer = self._peers[asker]

        def told() -> None:
            for feed, size in sizes.items():
                peer.heard(me, feed, size)

        self._swarm.send(me, asker, HEAD_BYTES * len(sizes), "heads", told)

    # -- ranges --------------------------------------------------------------------------------------------------------
    def _pull(self, feed: MemberId, source: int) -> None:
        held = self.member.store.size(feed)
        if feed == self.member.id or feed in self._asked or self._claims.get(feed, (0, 0))[0] <= held:
            return
        self._asked.add(feed)
        me, peer = self.member.number, self._peers[source]
        self._swarm.send(me, source, ASK_BYTES, "feed", lambda: peer.asked_feed(me, feed, held))
        self._later(self._habits.retry, lambda: self._again(feed, held))

    def _again(self, feed: MemberId, held: int) -> None:
        """Nothing came for a while: ask somebody else."""
        if feed in self._asked and self.member.store.size(feed) == held:
            self._asked.discard(feed)
            author = self._number.get(feed)
            (other,) = self._swarm.others(self.member.number, 1)
            self._pull(feed, other if author is None or self.member.random.random() < 0.5 else author)

    def asked_feed(self, asker: int, feed: MemberId, start: int) -> None:
        """Answer with a page of a feed, empty when there is nothing after `start`."""
        records = self.member.store.records(self.member.kit.collective, feed, start, _PAGE)
        peer, me = self._peers[asker], self.member.number
        size = HEAD_BYTES + sum(wire_bytes(r) for r in records)
        self._swarm.send(me, asker, size, "feed", lambda: peer.take(me, feed, records))

    def take(self, source: int, feed: MemberId, records: Sequence[Record]) -> None:
        """A page has come."""
        member = self.member
        self._asked.discard(feed)
        try:
            fresh = member.store.append_foreign(member.kit.collective, feed, records, None)
        except ForkSeen as seen:
            member.seat.fork_found(seen.fork)
            self._wake()
            return
        except (FeedFrozen, Refused):
            return
        if not fresh:
            return
        before = len(member.fold.contributions.get(feed, ()))
        member.seat.receive(feed, fresh)
        for contribution in member.fold.contributions.get(feed, [])[before:]:
            self._fetch(contribution, source)
        self._pull(feed, source)
        self._wake()

    # -- blobs ---------------------------------------------------------------------------------------------------------
    def want(self, contributions: Sequence[Contribution]) -> None:
        """Blobs that a judgement waits for."""
        for contribution in contributions:
            self._fetch(contribution, None)

    def fetch_missing(self) -> None:
        """After a start: everything that is pending and not here."""
        if self.member.fold.known:
            self.want([c for taken in self.member.fold.contributions.values() for c in taken])

    def _fetch(self, contribution: Contribution, source: int | None) -> None:
        name, member = contribution.blob, self.member
        if member.blobs.has(name) or not member.fold.known:
            self._lacking.pop(name, None)
            return
        if contribution.size > member.fold.charter.gate.max_blob_bytes:
            return  # the event alone rules it out
        self._lacking[name] = contribution
        if name in self._fetching:
            return
        self._fetching.add(name)
        author = self._number.get(contribution.member, member.number)
        if source is None:
            (other,) = self._swarm.others(member.number, 1)
            source = author if author != member.number and member.random.random() < 0.5 else other
        me, peer = member.number, self._peers[source]
        self._swarm.send(me, source, ASK_BYTES, "blob", lambda: peer.asked_blob(me, name))
        self._later(self._habits.retry, lambda: self._fetching.discard(name))

    def asked_blob(self, asker: int, name: Digest) -> None:
        """Send a blob when it is here; a short no otherwise."""
        size, peer, me = self.member.blobs.size(name), self._peers[asker], self.member.number
        if size is None:
            self._swarm.send(me, asker, 16, "blob", lambda: peer.refused_blob(name))
            return
        data = self.member.kit.archive.blobs[name]
        self._swarm.send(me, asker, size, "blob", lambda: peer.take_blob(name, data))

    def refused_blob(self, name: Digest) -> None:
        """Whom we asked has it not; the next look around asks again."""
        self._fetching.discard(name)

    def take_blob(self, name: Digest, data: bytes) -> None:
        """A blob has come."""
        self._fetching.discard(name)
        self._lacking.pop(name, None)
        self.member.blobs.put(data)
        self._wake()

    # -- inside ------------------------------------------------------------------------------------------------------
    def _later(self, ms: float, action: Callable[[], None], *, forever: bool = False) -> None:
        """Do something in this life of the member; `forever`: in every life, again and again."""
        life = self.member.life

        def due() -> None:
            awake = self.member.number not in self._swarm.away
            if forever:
                self._later(self._habits.heads_every * self.member.random.uniform(0.8, 1.2), action, forever=True)
            if awake and (forever or self.member.life == life):
                action()

        self._swarm.clock.after(ms, due)
