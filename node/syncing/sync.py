"""Keeps every feed of one collective up to date: heads from peers, ranges for what is missing, verified before stored.

Announcements and heads are hints; the pull is the truth, and a restarted, late or cut-off node uses the same pull as
everybody. One task per feed pulls pages from the peer most likely to have them; a peer that sends bad data is left alone
in that matter for a growing time and others are asked. Knows neither what events mean nor how bytes travel.
Invariant: nothing reaches the store but through `Store.append_foreign`, and `on_records` sees only what it returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ledger import checkpoint
from ledger.checkpoint import Head
from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen, StoreFull
from ledger.forks import Fork
from ledger.store import Store
from node.errors_network import OutdatedPeer
from node.finding.backoff import HOSTILE_S, Backoff
from node.ports import Network
from node.syncing.blobs import BlobStore
from node.syncing.directory import Directory
from node.syncing.exchange import Asker, Desk, DeskRules, from_wire
from node.syncing.fetching import Fetcher
from protocol import binding as bindings
from protocol import wire
from protocol.binding import Binding
from protocol.canon import Json
from protocol.errors import Malformed, Refused, Retry
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

log = logging.getLogger(__name__)

HEADS_EVERY_S = 5.0
MAX_BLOB = 64 << 20
MAX_FEEDS = 1024
_ASKS_AT_ONCE = 16
_LONGEST_WAIT_S = 30.0
_STORE_FULL_S = 5.0
_ABSENT_S = 3.0
_LOOK_S = 0.5

_parse_head = functools.lru_cache(maxsize=4096)(checkpoint.parse)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRules:
    """What the node decides: whom we serve, whose feeds we take, and what happens with news.

    `wants` is `allowed` unless given (a joiner serves nobody yet, but takes the founder's feed). `peers` says which peer
    speaks for which member by the feeds, so that members find each other whom no configuration introduced. `farewell`
    says how many entries of a feed a former member may still read, `serves` which members may fetch blobs here, `outdated`
    whether a member has bound another transport key after the one of a binding.
    """

    allowed: Callable[[MemberId], bool]
    on_records: Callable[[MemberId, Sequence[Record]], None]
    wants: Callable[[MemberId], bool] | None = None
    on_fork: Callable[[Fork], None] | None = None
    farewell: Callable[[MemberId, MemberId], int] = lambda _reader, _feed: 0
    peers: Callable[[], Mapping[PeerId, MemberId]] | None = None
    serves: Callable[[MemberId], bool] = lambda _member: True
    outdated: Callable[[Binding], bool] = lambda _binding: False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead:
    """What peers say about our own feed: which members answered, and the longest signed head among their answers."""

    answered: frozenset[MemberId]
    head: Head | None


@dataclass(slots=True, kw_only=True)
class _Feed:
    """How far a feed is known to reach, who says so, and the task that pulls it."""

    target: int = 0
    frozen: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    claims: dict[PeerId, int] = field(default_factory=dict)


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
    ) -> None:
        """Register the handlers and the topic; nothing moves before `run`."""
        self._store, self._blobs, self._network, self._collective = store, blobs, network, collective
        self._binding = bindings.verify(binding)
        self._rules, self._heads_every_s = rules, heads_every_s
        self._wants = rules.wants or rules.allowed
        self._backoff = Backoff(time.monotonic)
        self._asker = Asker(network, collective, self._binding)
        desk = DeskRules(
            collective=collective,
            binding=self._binding,
            allowed=rules.allowed,
            met=self.met,
            farewell=rules.farewell,
            serves=rules.serves,
            outdated=rules.outdated,
        )
        self._desk = Desk(store, blobs, desk)
        self._fetcher = Fetcher(self._asker, blobs, self._backoff, self._holders)
        self._feeds: dict[MemberId, _Feed] = {}
        self._directory = Directory(network.peer)
        self._own: dict[PeerId, Head | None] = {}
        self._strangers: set[PeerId] = set()  # connected, and not members
        self._asked: set[PeerId] = set()
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
        async with asyncio.TaskGroup() as jobs:
            self._jobs = jobs
            for member, feed in self._feeds.items():
                jobs.create_task(self._pull(member, feed))
            try:
                while True:
                    self._introduce()
                    self._ask_around(self._network.peers())
                    await self.announce()
                    await asyncio.sleep(self._heads_every_s)
            finally:
                self._jobs = None

    async def announce(self) -> bool:
        """Publish our own newest head; call it after every append. False when it was dropped."""
        heads = self._store.heads(self._collective, self._binding.member)
        return bool(heads) and await self._network.publish(wire.topic(self._collective), heads[0].note)

    async def want_blob(
        self, digest: Digest, size: int, *, prefer: Sequence[MemberId] = (), max_bytes: int = MAX_BLOB
    ) -> Path:
        """Wait until the blob is here and verified; cancel it (or set a deadline) to give up.

        Raises:
            BlobTooLarge: `size` is over `max_bytes`.
        """
        return await self._fetcher.want(digest, size, max_bytes=max_bytes, prefer=prefer)

    async def own_head_from_peers(self, timeout_s: float) -> OwnHead:
        """Ask everybody we can reach for the longest head of our own feed; returns early when all we know answered.

        A member that is not connected is waited for during three seconds, so that a dead one does not hold up a start.
        Call it while `run` runs, before the first append after a start. If the head is beyond our own entries, they
        are being pulled already and the store refuses to append until they are here.
        """
        me, began = self._binding.member, time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                self._ask_around(self._network.peers())
                while not (self._own and self._expected(time.monotonic() - began) <= self._own.keys()):
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._changed.wait()
        except TimeoutError:
            pass
        heads = [head for head in self._own.values() if head is not None]
        answered = {self._directory.member_of(peer) for peer in self._own}
        others = frozenset(member for member in answered if member not in (None, me))
        return OwnHead(answered=others, head=max(heads, key=lambda head: head.size, default=None))

    def met(self, bound: Binding) -> None:
        """Note that a verified peer speaks for a member (from a request or an answer)."""
        self._meet(bound.peer, bound.member, newest=True)

    def asking(self) -> Mapping[MemberId, Binding]:
        """Non-members that asked lately: candidates for an invitation."""
        return self._desk.asking

    def member_of(self, peer: PeerId) -> MemberId | None:
        """Which member a peer speaks for, as far as it showed."""
        return self._directory.member_of(peer)

    def status(self) -> dict[str, Json]:
        """What `fishernet status` shows of the sync."""
        feeds: dict[str, Json] = {
            member: {"size": self._size(member), "known": max(feed.target, self._size(member)), "frozen": feed.frozen}
            for member, feed in self._feeds.items()
        }
        return {
            "feeds": feeds,
            "peers": {peer: self._directory.member_of(peer) for peer in sorted(self._network.peers())},
            "asking": sorted(self._desk.asking),
            "blobs_waiting": self._fetcher.waiting,
            "blobs_fetched": self._fetcher.fetched,
            "quarantined": self._backoff.blocked_count(),
            "last_error": self._last_error,
        }

    # -- peers -------------------------------------------------------------------------------------------------------
    def _introduce(self) -> None:
        for peer, member in (self._rules.peers() if self._rules.peers is not None else {}).items():
            self._meet(peer, member, newest=False)

    def _meet(self, peer: PeerId, member: MemberId, *, newest: bool) -> None:
        """Keep a connection to whoever speaks for somebody that we serve or follow."""
        known = self._wants(member) or self._rules.allowed(member)
        if known and self._directory.meet(peer, member, newest=newest):
            self._network.want(self._directory.peers())

    # -- heads -------------------------------------------------------------------------------------------------------
    def _peers_changed(self, peers: frozenset[PeerId]) -> None:
        self._ask_around(peers - self._own.keys())
        for peer in self._own.keys() - peers:
            del self._own[peer]
        self._strangers &= peers
        for feed in self._feeds.values():
            feed.news.set()

    def _ask_around(self, peers: frozenset[PeerId]) -> None:
        if self._jobs is None:
            return
        for peer in peers - self._asked:
            if not self._backoff.blocked(peer):
                self._asked.add(peer)
                self._jobs.create_task(self._ask_heads(peer))

    async def _ask_heads(self, peer: PeerId) -> None:
        try:
            async with self._slots:
                answer = await self._asker.heads(peer)
            if self._rules.outdated(answer.binding):
                raise OutdatedPeer("couldn't take heads: this member speaks through another peer by now")
            self.met(answer.binding)
            await self._take_heads(peer, answer)
            self._backoff.clear(peer)
        except Refused as e:
            self._trouble("heads", peer, e)
            self._backoff.fail(peer, HOSTILE_S)
        except Retry as e:
            self._trouble("heads", peer, e)
            self._backoff.fail(peer)
        finally:
            self._asked.discard(peer)
            self._changed.set()

    async def _take_heads(self, peer: PeerId, answer: wire.HeadsAnswer) -> None:
        own = None
        seen: set[MemberId] = set()
        for note in answer.notes:
            member = self._named(note)
            if member is None or member in seen:
                continue
            seen.add(member)
            head = _parse_head(note)
            if member == self._binding.member:
                own = head
            await self._learn(head, peer)
        if self._rules.allowed(answer.binding.member) or self._wants(answer.binding.member):
            self._own[peer] = own
        else:
            self._strangers.add(peer)

    def _heard(self, note: bytes) -> None:
        """An announcement from anybody: looked at only when a wanted feed seems to have grown."""
        member = self._named(note)
        if member is None or member == self._binding.member:
            return
        feed = self._feeds.get(member)
        try:
            head = _parse_head(note)
        except Refused:
            return  # gossip names no sender to blame
        if feed is None or head.size > feed.target:
            for peer in self._directory.peers_of(member):
                self._feed(member).claims[peer] = head.size
            self._reach_for(head)

    def _named(self, note: bytes) -> MemberId | None:
        """The member whose feed of our collective the note speaks of, when we want that feed; nothing is verified."""
        prefix = f"fishernet/{self._collective}/".encode("ascii")
        if not note.startswith(prefix) or len(note) > wire.MAX_NOTE:
            return None
        member = MemberId(note[len(prefix) : len(prefix) + 64].decode("ascii", errors="replace"))
        if member not in self._feeds and len(self._feeds) >= MAX_FEEDS:
            return None
        return member if member == self._binding.member or self._wants(member) else None

    async def _learn(self, head: Head, peer: PeerId) -> None:
        """A verified head from a peer: a longer one is pulled, a shorter or equal one must fit what we hold."""
        feed = self._feed(head.member)
        feed.claims[peer] = head.size
        if head.size > self._size(head.member):
            if head.member == self._binding.member:  # we were set back: no append until these entries are here
                await self._take(head.member, feed, [], head.note)
            self._reach_for(head)
        elif head not in self._store.heads(self._collective, head.member):
            await self._take(head.member, feed, [], head.note)

    def _reach_for(self, head: Head) -> None:
        feed = self._feed(head.member)
        feed.target = max(feed.target, head.size)
        feed.news.set()

    # -- feeds -------------------------------------------------------------------------------------------------------
    def _feed(self, member: MemberId) -> _Feed:
        feed = self._feeds.get(member)
        if feed is None:
            feed = self._feeds[member] = _Feed()
            if self._jobs is not None:
                self._jobs.create_task(self._pull(member, feed))
        return feed

    async def _pull(self, member: MemberId, feed: _Feed) -> None:
        wait = 0.1
        while not feed.frozen:
            if feed.target <= self._size(member):
                await feed.news.wait()
                feed.news.clear()
                wait = 0.1
                continue
            peer = self._best(member, feed)
            if peer is None:
                feed.news.clear()
                try:
                    async with asyncio.timeout(wait):
                        await feed.news.wait()
                except TimeoutError:
                    wait = min(wait * 2, _LONGEST_WAIT_S)
                continue
            if await self._pull_page(peer, member, feed):
                wait = 0.1

    def _best(self, member: MemberId, feed: _Feed) -> PeerId | None:
        """Who to ask: those that claim more than we hold, the author first; then those that claim nothing."""
        size, authors = self._size(member), self._directory.peers_of(member)
        candidates = [
            peer
            for peer in self._network.peers()
            if feed.claims.get(peer, size + 1) > size and not self._backoff.blocked((peer, member))
        ]
        return min(
            candidates,
            key=lambda peer: (peer not in feed.claims, peer not in authors, self._directory.member_of(peer) is None),
            default=None,
        )

    async def _pull_page(self, peer: PeerId, member: MemberId, feed: _Feed) -> bool:
        matter, start = (peer, member), self._size(member)
        try:
            page = await self._asker.page(peer, member, start)
            records = await asyncio.to_thread(from_wire, page.records)
            if not records or records[0].entry.header.seq != start:
                feed.claims[peer] = start  # until it says otherwise
                raise Malformed(f"couldn't pull feed of {member[:12]}: the peer has nothing from {start} on")
            await self._take(member, feed, records, page.note)
        except StoreFull as e:
            self._trouble("feed", peer, e)
            await asyncio.sleep(_STORE_FULL_S)
        except Refused as e:
            self._trouble("feed", peer, e)
            self._backoff.fail(matter, HOSTILE_S)
        except Retry as e:
            self._trouble("feed", peer, e)
            self._backoff.fail(matter)
        else:
            self._backoff.clear(matter)
            return True
        return False

    async def _take(self, member: MemberId, feed: _Feed, records: Sequence[Record], note: bytes) -> None:
        """Verify and store; a fork freezes the feed and is the author's fault, not the peer's."""
        try:
            fresh = await asyncio.to_thread(self._store.append_foreign, self._collective, member, records, note)
        except ForkSeen as e:
            feed.frozen = True
            log.error("event=fork member=%s kind=%s at=%d", member[:12], e.fork.kind, e.fork.at)
            if self._rules.on_fork is not None:
                self._rules.on_fork(e.fork)
            return
        except FeedFrozen:
            feed.frozen = True
            return
        if fresh:
            log.info("event=records member=%s from=%d count=%d", member[:12], fresh[0].entry.header.seq, len(fresh))
            self._rules.on_records(member, fresh)

    # -- small things ------------------------------------------------------------------------------------------------
    def _size(self, member: MemberId) -> int:
        head = self._store.head(self._collective, member)
        return 0 if head is None else head.size

    def _holders(self, prefer: Sequence[MemberId]) -> Sequence[PeerId]:
        """Connected member peers, those of the preferred members first."""
        return self._directory.ranked(prefer, self._network.peers())

    def _expected(self, waited_s: float) -> frozenset[PeerId]:
        """Peers whose answer is worth waiting for: connected ones that may be members, and for a while absent members."""
        connected = self._network.peers() - self._strangers
        if waited_s >= _ABSENT_S:
            return connected
        of = {peer: self._directory.member_of(peer) for peer in self._directory.newest()}
        return connected | {peer for peer, member in of.items() if member is not None and self._rules.allowed(member)}

    def _trouble(self, what: str, peer: PeerId, error: Exception) -> None:
        self._last_error = f"{what} from {peer[-6:]}: {error}"
        log.debug("event=sync-trouble what=%s peer=%s error=%s", what, peer[-6:], error)
