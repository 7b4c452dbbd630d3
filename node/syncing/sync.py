"""Keeps every feed of one collective up to date: heads from peers, ranges for what is missing, blobs by digest.

Announcements and heads are hints; the pull is the truth, and a restarted, late or cut-off node uses the same pull as
everybody. Here the parts are put together: `desk` answers peers, `heads` asks them what they hold, `meeting` says when, `feeds`
pulls what is missing, `fetching` gets blobs. Knows neither what events mean nor how bytes travel.
Invariant: with gossip lost, late or switched off, members that stay connected end up with the same feeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ledger import checkpoint
from ledger.checkpoint import Head
from ledger.store import Store
from node.errors_network import OutdatedPeer, PeerBanned
from node.finding.backoff import HOSTILE_S, Backoff
from node.ports import Network
from node.syncing.announcing import Announcing
from node.syncing.blobs import BlobStore
from node.syncing.desk import Desk
from node.syncing.directory import Directory
from node.syncing.donors import Rank
from node.syncing.exchange import Asker
from node.syncing.feeds import Feeds
from node.syncing.fetching import Fetcher
from node.syncing.following import MOST, Following
from node.syncing.heads import Heads
from node.syncing.meeting import PER_ROUND, Meeting
from node.syncing.neighbours import Neighbours
from node.syncing.rules import SyncRules
from node.syncing.taking import FeedParts
from protocol import binding as bindings
from protocol import fingerprints, wire
from protocol.binding import Binding
from protocol.canon import Json
from protocol.errors import Refused, Retry
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

__all__ = ["OwnHead", "Sync", "SyncRules"]

log = logging.getLogger(__name__)

HEADS_EVERY_S = 5.0
MAX_BLOB = 64 << 20
_ASKS_AT_ONCE = 16
_PATIENCE_S = 2.0  # after that a question goes on, and its place is free for others
_MANY_NEW = 8  # new peers at once: beyond that they are asked a few at a time, as long as we know nothing
_FAR_BEHIND = 16  # feeds
_ABSENT_S = 3.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead:
    """What peers say about our own feed: which members answered, and the longest signed head among their answers."""

    answered: frozenset[MemberId]
    head: Head | None


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
                trouble=self._trouble,
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
        self._following = Following(
            network=network,
            asker=self._asker,
            feeds=self._feeds,
            directory=self._directory,
            backoff=self._backoff,
            rules=rules,
            wants=self._wants,
            trouble=self._trouble,
            lost=self._ask_again,
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
        self._asked: dict[PeerId, None] = {}  # questions under way
        self._bound: Mapping[PeerId, MemberId] = {}
        self._jobs: asyncio.TaskGroup | None = None
        self._slots = asyncio.Semaphore(_ASKS_AT_ONCE)
        self._changed = asyncio.Event()
        self._last_error = ""
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
                self._jobs = jobs
                for head in self._store.heads(self._collective):
                    if self._wants(head.member) and head.size > self._feeds.size(head.member):
                        self._feeds.reach_for(head.member, head.size)  # a page was stored, the rest was not there yet
                self._feeds.start(jobs)
                while True:
                    self._introduce()
                    self._ask_around(new=PER_ROUND)
                    connected = self._network.peers()
                    for peer in self._meeting.drawn(connected, self._asked):
                        self._ask(peer)
                    self._asker.lines.expire()
                    self._following.tend(jobs, self._members_answered())
                    await self._announcing.now(again=True)
                    await asyncio.sleep(self._heads_every_s)
        finally:
            self._jobs = None
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
        me, began = self._binding.member, self._clock()
        try:
            async with asyncio.timeout(timeout_s):
                self._ask_around()
                while not (
                    (answered := self._members_answered()) and self._expected(self._clock() - began) <= answered
                ):
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._changed.wait()
                    self._ask_around()
        except TimeoutError:
            pass
        answered = self._members_answered()
        heads = [head for peer in sorted(answered) if (head := self._heads.own(peer)) is not None]
        speakers = {self._directory.member_of(peer) for peer in answered}
        others = frozenset(member for member in speakers if member not in (None, me))
        return OwnHead(answered=others, head=max(heads, key=lambda head: head.size, default=None))

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
            "last_error": self._last_error,
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
        members = frozenset(self._directory.members()) | frozenset(self._bound.values())
        if not len(self._desk.followers) or len(members) > 2 * MOST:
            return False
        return self._desk.followers.all_of(
            [member for member in members if member != self._binding.member and self._rules.allowed(member)]
        )

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
        self._ask_around()
        self._feeds.wake()
        self._fetcher.poke()

    # -- heads -------------------------------------------------------------------------------------------------------
    def _ask_around(self, new: int | None = None) -> None:
        """Ask peers that have not told us what they hold.

        Many of them would tell one who is far behind the same long story: then it is a few (`new`; without it as many as
        for a start, when nobody has been asked yet), and the others in later rounds or as soon as we are level.
        """
        due = self._meeting.due(self._network.peers(), self._asked)
        if len(due) > _MANY_NEW:
            told = bool(self._members_answered())
            if new is None:
                new = 0 if told or self._asked else PER_ROUND
            if not told or len(self._feeds.behind()) > _FAR_BEHIND:
                due = self._rng.sample(due, new)
        for peer in due:
            self._ask(peer)

    def _ask_again(self, peer: PeerId) -> None:
        """What it has written meanwhile is not sent to us any more."""
        if peer in self._network.peers():
            self._ask(peer)

    def _ask(self, peer: PeerId) -> None:
        banned = self._rules.banned(peer, self._directory.member_of(peer))
        if self._jobs is None or peer in self._asked or banned or self._backoff.blocked(peer):
            return
        self._asked[peer] = None
        self._meeting.asked(peer)
        self._jobs.create_task(self._ask_heads(peer))

    async def _ask_heads(self, peer: PeerId) -> None:
        try:
            await self._with_place(self._heads.ask(peer, self._answered))
            self._meeting.answered(peer)
            self._backoff.clear(peer)
        except Refused as e:
            self._trouble("heads", peer, e)
            self._rules.faulty(peer, e)
            self._backoff.fail(peer, HOSTILE_S)
        except Retry as e:
            self._trouble("heads", peer, e)
            self._backoff.fail(peer)
        finally:
            self._asked.pop(peer, None)
            self._changed.set()
        self._ask_around()

    async def _with_place(self, question: Coroutine[None, None, None]) -> None:
        """Ask when a place is free; a slow peer gives it back after a moment and is waited for without one."""
        task = asyncio.ensure_future(question)
        try:
            async with self._slots:
                await asyncio.wait({task}, timeout=_PATIENCE_S)
            await task
        finally:
            task.cancel()

    def _answered(self, bound: Binding) -> None:
        if self._rules.outdated(bound):
            raise OutdatedPeer("couldn't take heads: this member speaks through another peer by now")
        if self._rules.banned(bound.peer, bound.member):
            raise PeerBanned("couldn't take heads: this peer is banned here")
        self.met(bound)

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
    def _members_answered(self) -> frozenset[PeerId]:
        """Connected peers that answered and speak for somebody that we serve or follow."""
        return frozenset(peer for peer in self._network.peers() if self._meeting.has_answered(peer))

    def _holders(self, prefer: Sequence[MemberId]) -> Sequence[PeerId]:
        """Connected member peers, those of the preferred members first."""
        banned, directory = self._rules.banned, self._directory
        ranked = directory.ranked(prefer, self._network.peers())
        return [peer for peer in ranked if not banned(peer, directory.member_of(peer))]

    def _expected(self, waited_s: float) -> frozenset[PeerId]:
        """Peers whose answer is worth waiting for: connected ones that may be members, and for a while absent members."""
        connected = frozenset(peer for peer in self._network.peers() if not self._meeting.is_stranger(peer))
        if waited_s >= _ABSENT_S:
            return connected
        of = {peer: self._directory.member_of(peer) for peer in self._directory.newest()}
        return connected | {peer for peer, member in of.items() if member is not None and self._rules.allowed(member)}

    def _trouble(self, what: str, peer: PeerId, error: Exception) -> None:
        self._last_error = f"{what} from {peer[-6:]}: {error}"
        log.debug("event=sync-trouble what=%s peer=%s error=%s", what, peer[-6:], error)
