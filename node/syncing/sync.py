"""Keeps every feed of one collective up to date: heads from peers, ranges for what is missing, blobs by digest.

Announcements and heads are hints; the pull is the truth, and a restarted, late or cut-off node uses the same pull as
everybody. Here the parts are put together: `desk` answers peers, `inquiring` asks them what they hold, `meeting` says when,
`feeds` pulls what is missing, `following` takes what is sent, `fetching` gets blobs. Knows neither what events mean nor how
bytes travel.
Invariant: with gossip lost, late or switched off, members that stay connected end up with the same feeds.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ledger import checkpoint
from ledger.store import Store
from node.finding.backoff import Backoff
from node.ports import Network
from node.syncing.announcing import Announcing
from node.syncing.blobs import BlobStore
from node.syncing.desk import Desk
from node.syncing.directory import Directory
from node.syncing.donors import Rank
from node.syncing.exchange import Asker
from node.syncing.failures import Failures
from node.syncing.feeds import Feeds
from node.syncing.fetching import Fetcher
from node.syncing.following import MOST, Following
from node.syncing.heads import Heads
from node.syncing.inquiring import Inquiring, InquiryParts, OwnHead
from node.syncing.meeting import Meeting
from node.syncing.neighbours import Neighbours
from node.syncing.rules import SyncRules
from node.syncing.taking import FeedParts
from protocol import binding as bindings
from protocol import fingerprints, wire
from protocol.binding import Binding
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

__all__ = ["OwnHead", "Sync", "SyncRules"]

HEADS_EVERY_S = 5.0
QUIET_ROUNDS = 3  # left out in a row while nothing happens
MAX_BLOB = 64 << 20


class Sync:
    """The anti-entropy of one collective over one network."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: BlobStore,
        network: Network,
        collective: CollectiveId,
        binding: Mapping[str, Json],
        rules: SyncRules,
        heads_every_s: float = HEADS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        """Register the handlers and the topic; nothing moves before `run`. `clock` in seconds."""
        self._store, self._network, self._collective = store, network, collective
        self._binding = bindings.verify(binding)
        self._rules, self._heads_every_s, self._clock = rules, heads_every_s, clock
        self._rng = rng or random.Random(secrets.randbits(64))  # noqa: S311 - a draw, no secret
        self._wants = rules.wants or rules.allowed
        me = self._binding.member
        self._neighbours = neighbours or Neighbours(collective, me, self._rng)
        self._backoff = Backoff(clock)
        self._failures = Failures(self._backoff, rules.faulty)
        self._asker = Asker(network, collective, self._binding, clock=clock)
        self._directory = Directory(network.peer)
        self._meeting = Meeting(rng=self._rng, clock=clock, member_of=self._known_member)
        self._fetcher = Fetcher(
            self._asker,
            blobs,
            self._backoff,
            self._holders,
            member_of=self._directory.member_of,
            fault=rules.fault,
            clock=clock,
            rng=random.Random(self._rng.getrandbits(64)),  # noqa: S311
        )
        self._feeds = Feeds(
            FeedParts(
                store=store,
                blobs=blobs,
                collective=collective,
                network=network,
                asker=self._asker,
                directory=self._directory,
                backoff=self._backoff,
                rules=rules,
                wants=self._wants,
                me=me,
                neighbours=self._neighbours,
                clock=clock,
                failures=self._failures,
            )
        )
        self._desk = Desk(
            store,
            blobs,
            collective=collective,
            binding=self._binding,
            rules=rules,
            met=self.met,
            coming=self._feeds.coming,
        )
        self._heads = Heads(
            store=store,
            collective=collective,
            asker=self._asker,
            feeds=self._feeds,
            me=me,
            wants=self._wants,
            salt=lambda: self._rng.randbytes(fingerprints.SALT),
            clock=clock,
        )
        self._inquiring = Inquiring(
            InquiryParts(
                network=network,
                meeting=self._meeting,
                heads=self._heads,
                feeds=self._feeds,
                directory=self._directory,
                backoff=self._backoff,
                rules=rules,
                rng=self._rng,
                clock=clock,
                me=me,
                met=self.met,
                failures=self._failures,
            )
        )
        self._following = Following(
            network=network,
            asker=self._asker,
            feeds=self._feeds,
            directory=self._directory,
            backoff=self._backoff,
            rules=rules,
            wants=self._wants,
            failures=self._failures,
            lost=self._inquiring.again,
        )
        self._announcing = Announcing(
            store,
            network,
            collective,
            me,
            clock=clock,
            rng=self._rng,
            members=lambda: len(self._directory.members()),
            told=self._told_all,
        )
        self._bound: Mapping[PeerId, MemberId] = {}
        self._left_out = 0  # rounds in a row
        self._at_last: object = None  # what was known at the last round
        self._desk.open(network)
        network.subscribe(wire.topic(collective), self._heard)
        network.on_peers(self._peers_changed)

    # -- surface -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Keep in step until cancelled.

        Raises:
            Fatal: the store is broken.
        """
        try:
            async with asyncio.TaskGroup() as jobs:
                self._inquiring.start(jobs)
                for head in self._store.heads(self._collective):
                    if self._wants(head.member) and head.size > self._feeds.size(head.member):
                        self._feeds.reach_for(head.member, head.size)  # a page was stored, the rest was not there yet
                self._feeds.start(jobs)
                while True:
                    self._introduce()
                    if not self._quiet():
                        self._inquiring.round()
                    self._asker.lines.expire()
                    self._following.tend(jobs, self._inquiring.answered())
                    await self._announcing.now(again=True)
                    await asyncio.sleep(self._heads_every_s)
        finally:
            self._inquiring.stop()
            self._feeds.stop()
            await self._fetcher.close()
            await self._asker.lines.close()

    async def announce(self) -> bool:
        """Tell of our own newest entries; call it after every append. False when the announcement was dropped.

        Who follows us gets them at once. When all members do, the announcement, which only strangers would hear then, waits.
        """
        self._desk.followers.tell()
        return await self._announcing.now(again=False)

    async def want_blob(
        self,
        digest: Digest,
        size: int,
        *,
        prefer: Sequence[MemberId] = (),
        max_bytes: int = MAX_BLOB,
        rank: Rank = Rank.PENDING,
    ) -> Path:
        """Wait until the blob is here and verified; cancel it (or set a deadline) to give up.

        Raises:
            BlobTooLarge: `size` is over `max_bytes`.
        """
        return await self._fetcher.want(digest, size, max_bytes=max_bytes, prefer=prefer, rank=rank)

    def hurry_blob(self, digest: Digest, rank: Rank) -> None:
        """A blob that is waited for is more urgent than it was."""
        self._fetcher.hurry(digest, rank)

    async def survey(self, digests: Collection[Digest]) -> Mapping[Digest, int | None]:
        """How many other members are known to hold each blob, of those that are asked now; None: nobody answered."""
        return await self._fetcher.survey(digests)

    async def own_head_from_peers(self, timeout_s: float) -> OwnHead:
        """Ask everybody we can reach for the longest head of our own feed; returns early when all we know answered.

        A member that is not connected is waited for during three seconds, so that a dead one does not hold up a start.
        Call it while `run` runs, before the first append after a start. If the head is beyond our own entries, they
        are being pulled already and the store refuses to append until they are here.
        """
        return await self._inquiring.own_head(timeout_s)

    def met(self, bound: Binding) -> None:
        """Note that a verified peer speaks for a member (from a request or an answer)."""
        if self._rules.known(bound.member) and self._directory.meet(bound.peer, bound.member, newest=True):
            self._want_neighbours()

    def asking(self) -> Mapping[MemberId, Binding]:
        """Non-members that asked lately: candidates for an invitation."""
        return self._desk.asking

    def member_of(self, peer: PeerId) -> MemberId | None:
        """Which member a peer speaks for, as far as it showed."""
        return self._directory.member_of(peer)

    def behind(self) -> Mapping[MemberId, int]:
        """How many entries of each feed are known to exist that are not here yet; feeds that are whole are not in it."""
        return self._feeds.behind()

    def status(self) -> dict[str, Json]:
        """What `fishernet status` shows of the sync."""
        feeds: dict[str, Json] = {
            member: {"size": (size := self._feeds.size(member)), "known": max(feed.target, size), "frozen": feed.frozen}
            for member, feed in self._feeds.items().items()
        }
        return {
            "feeds": feeds,
            "peers": {peer: self._directory.member_of(peer) for peer in sorted(self._network.peers())},
            "asking": sorted(self._desk.asking),
            **self._fetcher.status(),
            "quarantined": self._backoff.blocked_count(),
            "last_error": self._failures.last,
            "heads_asked": self._heads.asked,
            "heads_taken": self._heads.notes,
            "heads_sent": self._desk.notes_sent,
            "answers": self._desk.answers,
            "pages": self._feeds.pages,
            "following": len(self._following),
            "followers": len(self._desk.followers),
            "pages_followed": self._following.pages,
            "hedged": self._feeds.hedged,
            "attached": self._feeds.attached,
            "streams_opened": self._asker.lines.opened,
            "streams_reused": self._asker.lines.reused,
        }

    def _told_all(self) -> bool:
        """Whether every other member that has shown a peer follows us now."""
        return bool(len(self._desk.followers)) and self._all_in(self._desk.followers.all_of)

    def _all_in(self, holds: Callable[[Collection[MemberId]], bool]) -> bool:
        """Whether it holds for all other members that have shown a peer; False when they are many."""
        members = frozenset(self._directory.members()) | frozenset(self._bound.values())
        me, allowed = self._binding.member, self._rules.allowed
        return len(members) <= 2 * MOST and holds([m for m in members if m != me and allowed(m)])

    def _quiet(self) -> bool:
        """Whether this round may be left out: everybody sends us what is new, and nothing has happened since the last one."""
        peers = self._network.peers()
        known = (self._store.changes(self._collective, 1 << 62)[1], peers)
        calm = known == self._at_last and not self._meeting.due(peers, ())
        if calm and self._left_out < QUIET_ROUNDS and self._all_in(self._following.all_of):
            self._left_out += 1
            return True
        self._left_out, self._at_last = 0, known
        return False

    # -- peers -------------------------------------------------------------------------------------------------------
    def _introduce(self) -> None:
        """Whom the feeds name, when that has changed."""
        bound = self._rules.peers() if self._rules.peers is not None else {}
        if bound == self._bound:
            return
        self._bound = dict(bound)
        news = [
            self._directory.meet(peer, member, newest=False)
            for peer, member in self._bound.items()
            if self._rules.known(member)
        ]
        if any(news):
            self._want_neighbours()

    def _want_neighbours(self) -> None:
        """Keep a connection to the peers of everybody while they are few, of some that suffice when they are many."""
        chosen = self._neighbours.choose(self._directory.members())
        self._network.want(peer for member in sorted(chosen) for peer in self._directory.peers_of(member))

    def _known_member(self, peer: PeerId) -> MemberId | None:
        member = self._directory.member_of(peer)
        return member if member is not None and self._rules.known(member) else None

    def _peers_changed(self, peers: frozenset[PeerId]) -> None:
        for peer in sorted(self._meeting.gone(peers)):
            self._heads.forget(peer)
            self._feeds.forget_peer(peer)
            self._asker.forget(peer)
        self._inquiring.around()
        self._feeds.wake()
        self._fetcher.poke()

    # -- heads -------------------------------------------------------------------------------------------------------
    def _heard(self, note: bytes) -> None:
        """An announcement from anybody: looked at only when a wanted feed seems to have grown."""
        member = self._heads.named(note)
        if member is None or member == self._binding.member:
            return
        if self._heads.size_in(note) <= self._feeds.known(member):
            return  # before any signature is checked
        try:
            head = checkpoint.parse(note)
        except Refused:
            return  # gossip names no sender to blame
        self._feeds.heard(member, head.size)

    # -- small things ------------------------------------------------------------------------------------------------
    def _holders(self, prefer: Sequence[MemberId]) -> Sequence[PeerId]:
        """Connected member peers, those of the preferred members first."""
        banned, directory = self._rules.banned, self._directory
        ranked = directory.ranked(prefer, self._network.peers())
        return [peer for peer in ranked if not banned(peer, directory.member_of(peer))]
