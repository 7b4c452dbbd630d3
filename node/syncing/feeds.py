"""Pulls feed ranges: one task per feed that is behind asks the peer most likely to have the rest, verifies, stores.

A peer that sends bad data is left alone in that matter for a growing time and others are asked; one that is slow is not waited
for: after a moment the next best one is asked as well, and whoever answers first has answered. Knows neither how a feed came
to be known to be longer nor what events mean; storing is `node.syncing.taking`. Invariant: at most one task pulls a feed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ledger.checkpoint import Head
from ledger.entry import Record
from ledger.errors import StoreFull
from node.errors_network import PeerRefused, UnknownHere
from node.finding.backoff import PASSING_S
from node.syncing.exchange import from_wire
from node.syncing.taking import Feed, FeedParts, Taking
from protocol.errors import Malformed, Refused, Retry
from protocol.ids import MemberId, PeerId
from protocol.merkle import root_at
from protocol.wire import FeedPage

MAX_FEEDS: Final = 1024
SLOW_RATE: Final = 64 * 1024  # bytes a second: who is slower is asked only for what nobody else has
_LONGEST_WAIT_S: Final = 30.0
_STORE_FULL_S: Final = 5.0
_NO_ROOM_S: Final = 5.0
_PUSHED_S: Final = 0.5  # an author that we follow sends what is new by itself: we ask after so long without it
_HEDGE_S: Final = 1.0  # who has not answered by then is not waited for alone
_HEDGE_NEAR_S: Final = 0.5  # the same for the newest few entries: it may be waiting for them itself
_COMING_S: Final = 0.8  # how long an asker may wait for what is coming: less than it waits for us
_WAITED_S: Final = (0.25, 0.25)
# Who is so many entries behind wants the blobs with them; who is further behind has better to do first.
_NEAR: Final = 4
ATTACH: Final = 256 * 1024  # bytes of blobs that come with entries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """An answer: records whose signatures nobody has checked, the blob of each, if it came along, and how long it took."""

    records: list[Record]
    note: bytes
    blobs: Sequence[bytes]
    took_s: float = 0.0


class Feeds:
    """The feeds of one collective, as far as they are wanted."""

    def __init__(self, parts: FeedParts) -> None:
        """Pull nothing before `start`."""
        self._parts = parts
        self._feeds: dict[MemberId, Feed] = {}
        self._jobs: asyncio.TaskGroup | None = None
        self._taking = Taking(parts)
        self.pages = self.hedged = 0

    def __contains__(self, member: MemberId) -> bool:
        return member in self._feeds

    def items(self) -> Mapping[MemberId, Feed]:
        """Every feed that was heard of."""
        return self._feeds

    def start(self, jobs: asyncio.TaskGroup) -> None:
        """Pull in tasks of `jobs` from now on."""
        self._jobs = jobs
        for member in self._feeds:
            self._begin(member)

    def stop(self) -> None:
        """Begin no more tasks, and let what is being stored come to its end."""
        self._jobs = None
        self._taking.stop()

    @property
    def attached(self) -> int:
        """Blobs that came along with entries."""
        return self._taking.attached

    def size(self, member: MemberId) -> int:
        """Entries that are here."""
        return self._parts.store.length(self._parts.collective, member)

    def known(self, member: MemberId) -> int:
        """Entries that are here or that its author's signed head speaks of."""
        feed = self._feeds.get(member)
        return self.size(member) if feed is None else max(feed.target, feed.pushed, self.size(member))

    def behind(self) -> dict[MemberId, int]:
        """How many entries of each feed are said to exist, by its author's signed head, and are not here."""
        missing = {m: feed.target - self.size(m) for m, feed in self._feeds.items() if not feed.frozen}
        return {member: count for member, count in missing.items() if count > 0}

    def room_for(self, member: MemberId) -> bool:
        """Whether one more feed may be followed."""
        return member in self._feeds or len(self._feeds) < MAX_FEEDS

    def is_level(self, member: MemberId) -> bool:
        """Whether a feed may be followed, and nothing of it is known to be missing here."""
        feed = self._feeds.get(member)
        if feed is None:
            return self.room_for(member)
        return not feed.frozen and feed.target <= self.size(member)

    def of(self, member: MemberId) -> Feed:
        """What is known of a feed, from now on."""
        found = self._feeds.get(member)
        if found is None:
            found = self._feeds[member] = Feed()
        return found

    def claim(self, member: MemberId, peer: PeerId, size: int) -> None:
        """`peer` itself says that it holds so many entries."""
        self.of(member).claims[peer] = size
        if size > (held := self.size(member)):
            self._parts.backoff.clear(_lacking(peer, member, held))

    def heard(self, member: MemberId, size: int) -> None:
        """Its author announces that a feed has so many entries: what peers said before says nothing about these."""
        feed, held = self.of(member), self.size(member)
        feed.claims = {peer: claimed for peer, claimed in feed.claims.items() if claimed > held}
        for peer in self._parts.directory.peers_of(member):
            feed.claims[peer] = size
        self.reach_for(member, size)

    def forget_peer(self, peer: PeerId) -> None:
        """A peer is gone, and its claims with it."""
        for feed in self._feeds.values():
            feed.claims.pop(peer, None)

    def wake(self) -> None:
        """Somebody came: look again who may have what is missing."""
        for feed in self._feeds.values():
            if feed.news is not None:
                feed.news.set()

    def reach_for(self, member: MemberId, size: int) -> None:
        """The feed has `size` entries at least: pull them."""
        feed = self.of(member)
        feed.target = max(feed.target, size)
        if feed.news is not None:
            feed.news.set()
        self._begin(member)

    async def learn(self, head: Head, peer: PeerId) -> None:
        """A verified head from a peer: a longer one is pulled, a shorter or equal one must fit what we hold."""
        self.claim(head.member, peer, head.size)
        feed, size = self.of(head.member), self.size(head.member)
        if head.size > size:
            if head.member == self._parts.me:  # we were set back: no append until these entries are here
                await self._taking.take(feed, head.member, [], head.note)
            self.reach_for(head.member, head.size)
        elif not feed.frozen and not self._fits(head):
            await self._taking.take(feed, head.member, [], head.note)

    def _fits(self, head: Head) -> bool:
        tree = self._parts.store.tree(self._parts.collective, head.member)
        return root_at(head.size, tree.nodes).hex() == head.root

    async def coming(self, member: MemberId, start: int, asker: MemberId) -> None:
        """Wait a moment for entry `start` of a feed if it is on its way to us; once for each asker and feed.

        So pages run down from the author as fast as the links are, and nobody has to come back for them. Two that wait for each
        other lose nothing: each asks a second one meanwhile, and the moment ends.
        """
        feed = self._feeds.get(member)
        if feed is None or feed.frozen or not feed.pulled or feed.target <= start or asker in feed.waiting:
            return
        feed.waiting.add(asker)
        try:
            async with asyncio.timeout(_COMING_S):
                while self.size(member) <= start and feed.pulled:
                    await feed.growth()
        except TimeoutError:
            pass
        finally:
            feed.waiting.discard(asker)

    # -- pulling -----------------------------------------------------------------------------------------------------
    def _begin(self, member: MemberId) -> None:
        feed = self._feeds[member]
        behind = feed.target > 0 and feed.target > self.size(member)
        if self._jobs is not None and behind and not (feed.pulled or feed.frozen):
            feed.pulled = True
            self._jobs.create_task(self._pull(member, feed))

    async def _pull(self, member: MemberId, feed: Feed) -> None:
        """Until the feed is level; then the task ends."""
        wait = 0.1
        news = feed.news = asyncio.Event()
        try:
            if feed.following:
                await self._pushed(member, feed)
            while not feed.frozen and feed.target > self.size(member):
                if member != self._parts.me and self._parts.rules.room(member) <= 0:
                    await asyncio.sleep(_NO_ROOM_S)
                    continue
                news.clear()
                peers = self._candidates(member, feed)
                if peers and await self._pull_page(peers[0], member, feed):
                    wait = 0.1
                elif not peers:
                    try:
                        async with asyncio.timeout(wait):
                            await news.wait()
                            wait = 0.1
                    except TimeoutError:
                        wait = min(wait * 2, _LONGEST_WAIT_S)
        finally:
            feed.pulled, feed.news = False, None
            feed.ring()

    async def _pushed(self, member: MemberId, feed: Feed) -> None:
        """Wait a moment for what its author sends by itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PUSHED_S):
                while feed.following and feed.target > self.size(member):
                    await feed.growth()

    def _candidates(self, member: MemberId, feed: Feed) -> list[PeerId]:
        """Whom to ask, best first: who claims more than we hold, the quick, the author, then the nearest to it."""
        parts, size = self._parts, self.size(member)
        authors = parts.directory.peers_of(member)

        def order(peer: PeerId) -> tuple[bool, bool, bool, bool, bool, bool, int, PeerId]:
            speaks, rate, claimed = parts.directory.member_of(peer), parts.network.rate(peer), feed.claims.get(peer)
            return (
                claimed is not None and claimed <= size,  # it had not got it when it was asked
                speaks in feed.waiting,  # it has not got it now
                claimed is None and peer not in authors,
                rate is not None and rate < SLOW_RATE,
                peer not in authors,
                speaks is None,
                0 if speaks is None else parts.neighbours.nearness(member, speaks),
                peer,
            )

        found = [
            peer
            for peer in parts.network.peers()
            if not (parts.backoff.blocked((peer, member)) or parts.backoff.blocked(_lacking(peer, member, size)))
            and not parts.rules.banned(peer, parts.directory.member_of(peer))
        ]
        return sorted(found, key=order)

    async def _pull_page(self, best: PeerId, member: MemberId, feed: Feed) -> bool:
        """Ask the best; if it takes long, another one too, who does not wait for us itself. Whether something was stored."""
        start = self.size(member)
        first = asyncio.ensure_future(self._ask(best, member, start))
        asked = {first: best}
        try:
            alone_s = _HEDGE_NEAR_S if feed.target - start <= _NEAR else _HEDGE_S
            done, _ = await asyncio.wait({first}, timeout=alone_s)
            others = () if done else [peer for peer in self._candidates(member, feed) if peer != best]
            if others:
                self.hedged += 1
                asked[asyncio.ensure_future(self._ask(others[0], member, start))] = others[0]
            waiting = set(asked)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if await self._took(task.result, asked[task], member, feed, start):
                        return True
            return False
        finally:
            for task in asked:
                if not task.done():
                    task.cancel()
            for task in asked:
                with contextlib.suppress(asyncio.CancelledError, Refused, Retry):
                    await task

    async def _ask(self, peer: PeerId, member: MemberId, start: int) -> _Page:
        parts, rate = self._parts, self._parts.network.rate(peer)
        feed, began = self._feeds[member], parts.clock()
        near = feed.target - start <= _NEAR and member != parts.me
        slow = rate is not None and rate < SLOW_RATE
        attach = ATTACH if parts.rules.attached is not None and near and not slow else 0
        blobs: Sequence[bytes] = ()
        page = FeedPage(records=(), note=b"")  # of who has not even the first entry
        try:
            if attach:
                page, blobs = await parts.asker.range(peer, member, start, attach)
            else:
                page = await parts.asker.page(peer, member, start)
        except PeerRefused as e:
            if e.reason != UnknownHere.code:
                raise
        return _Page(records=from_wire(page.records), note=page.note, blobs=blobs, took_s=parts.clock() - began)

    async def sent(self, peer: PeerId, member: MemberId, start: int, page: FeedPage, blobs: Sequence[bytes]) -> bool:
        """Take a page that `peer` sends by itself, as it was asked to from `start` on; whether it was stored."""
        feed = self.of(member)

        def answer() -> _Page:
            return _Page(records=from_wire(page.records), note=page.note, blobs=blobs)

        feed.pushed = start + len(page.records)
        try:
            return await self._took(answer, peer, member, feed, start)
        finally:
            feed.pushed = 0

    async def _took(self, answer: Callable[[], _Page], peer: PeerId, member: MemberId, feed: Feed, start: int) -> bool:
        parts, matter = self._parts, (peer, member)
        try:
            page = answer()
            records = page.records
            if not records or records[0].entry.header.seq != start:
                claimed = feed.claims.pop(peer, 0) > start
                if records:
                    raise Malformed(f"couldn't pull feed of {member[:12]}: the peer answers with other entries")
                waited = page.took_s >= _COMING_S / 2  # it pulls them itself, and let us wait for them
                if claimed and not waited:
                    raise UnknownHere(f"couldn't pull feed of {member[:12]}: the peer has nothing from {start} on")
                parts.backoff.fail(_lacking(peer, member, start), _WAITED_S if waited else PASSING_S)
                return False
            if member != parts.me:
                records = records[: parts.rules.room(member)]
            await self._taking.take(feed, member, records, page.note, page.blobs)
        except StoreFull as e:
            parts.failures.tell("feed", peer, e)
            await asyncio.sleep(_STORE_FULL_S)
        except (Refused, Retry) as e:
            parts.failures.note("feed", peer, matter, e)
        else:
            parts.backoff.clear(matter)
            self.pages += 1
            return True
        return False


def _lacking(peer: PeerId, member: MemberId, start: int) -> tuple[str, PeerId, MemberId, int]:
    """The matter that a peer had nothing of a feed from `start` on: no fault, and over once it says that it has, or we have."""
    return "lacking", peer, member, start
