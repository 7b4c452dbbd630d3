"""Follows the members that are connected: each sends us, on a stream that stays open, what it writes to its own feed.

That saves the announcement, the question and their way; it takes away nothing: whoever cannot be followed, falls silent or sends
what is not right is pulled from like everybody, and so is everybody else's feed. A member is followed once we are level with it,
and from then on gets the next page out only when we stored the one before. Knows neither how pages are checked nor how bytes
travel. Invariant: at most `MOST` members are followed, each on one stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from node.errors_network import PeerRefused, PeerUnreachable
from node.finding.backoff import HOSTILE_S, Backoff
from node.ports import Network
from node.syncing.directory import Directory
from node.syncing.exchange import NOT_SPOKEN, Asker
from node.syncing.failures import Failures
from node.syncing.feeds import ATTACH, SLOW_RATE, Feeds
from node.syncing.rules import SyncRules
from protocol.errors import Refused, Retry
from protocol.ids import MemberId, PeerId

MOST: Final = 32
_REFUSED_S: Final = (5.0, 60.0)  # who says no may say yes when we have a seat


class Following:
    """The members that we follow."""

    def __init__(
        self,
        *,
        network: Network,
        asker: Asker,
        feeds: Feeds,
        directory: Directory,
        backoff: Backoff,
        rules: SyncRules,
        wants: Callable[[MemberId], bool],
        failures: Failures,
        lost: Callable[[PeerId], None],
    ) -> None:
        """Follow nobody before `tend`; `lost` hears of a peer that is not followed any more."""
        self._network, self._asker, self._feeds, self._directory = network, asker, feeds, directory
        self._backoff, self._rules, self._wants, self._failures = backoff, rules, wants, failures
        self._lost = lost
        self._open: dict[PeerId, MemberId] = {}
        self._older: set[PeerId] = set()  # connected peers that speak only older versions
        self.pages = 0

    def __len__(self) -> int:
        return len(self._open)

    def all_of(self, members: Collection[MemberId]) -> bool:
        """Whether we follow each of these members now."""
        return frozenset(members) <= frozenset(self._open.values())

    def tend(self, jobs: asyncio.TaskGroup, among: Collection[PeerId]) -> None:
        """Begin to follow whoever of these can be followed now."""
        if not self._rules.follows:
            return
        self._older &= self._network.peers()
        for peer in sorted(among):
            member = self._directory.member_of(peer)
            if member is None or peer in self._open or len(self._open) >= MOST:
                continue
            newest = self._directory.peers_of(member)[:1] == (peer,)
            if newest and self._feeds.is_level(member) and self._may(peer, member):
                self._open[peer] = member
                jobs.create_task(self._follow(peer, member))

    def _may(self, peer: PeerId, member: MemberId) -> bool:
        rules = self._rules
        return (
            self._wants(member)
            and rules.room(member) > 0
            and not rules.banned(peer, member)
            and peer not in self._older
            and not self._backoff.blocked(("follow", peer))
        )

    async def _follow(self, peer: PeerId, member: MemberId) -> None:
        matter, feed = ("follow", peer), self._feeds.of(member)
        feed.following += 1
        lost = True
        try:
            await self._pages(peer, member)
        except PeerRefused as e:
            lost = False
            self._failures.note("follow", peer, matter, e, _REFUSED_S)
        except (Refused, Retry) as e:
            if isinstance(e, PeerUnreachable) and NOT_SPOKEN in str(e):
                lost = False
                self._older.add(peer)
            else:
                self._failures.note("follow", peer, matter, e)
        finally:
            feed.following -= 1
            del self._open[peer]
        if lost:
            self._lost(peer)

    async def _pages(self, peer: PeerId, member: MemberId) -> None:
        """Take what comes, until the stream ends or the feed is not to be taken from it any more (raises what the asker does)."""
        feeds = self._feeds
        rate, start = self._network.rate(peer), feeds.size(member)
        attach = 0 if self._rules.attached is None or (rate is not None and rate < SLOW_RATE) else ATTACH
        async with self._asker.follow(peer, start, attach) as followed:
            while True:
                page, blobs = await followed.page()
                if page.records:
                    if not await feeds.sent(peer, member, start, page, blobs):
                        self._backoff.fail(("follow", peer), HOSTILE_S)
                        return
                    self.pages += 1
                if feeds.of(member).frozen or not self._may(peer, member):
                    return
                start = feeds.size(member)
                await followed.go_on(start)
                self._backoff.clear(("follow", peer))
