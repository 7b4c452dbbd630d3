"""Asks connected peers what they hold: whom `meeting` names, a few at once, without letting a slow one hold up the others.

Knows neither pages nor blobs: `heads` asks and takes the answers in. Invariants: a peer is asked one question at a time; while
nothing runs (before `start`, after `stop`) nobody is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from ledger.checkpoint import Head
from node.errors_network import OutdatedPeer, PeerBanned
from node.finding.backoff import Backoff
from node.ports import Network
from node.syncing.directory import Directory
from node.syncing.failures import Failures
from node.syncing.feeds import Feeds
from node.syncing.heads import Heads
from node.syncing.meeting import PER_ROUND, Meeting
from node.syncing.rules import SyncRules
from protocol.binding import Binding
from protocol.errors import Refused, Retry
from protocol.ids import MemberId, PeerId

_AT_ONCE: Final = 16
_PATIENCE_S: Final = 2.0  # after that a question goes on, and its place is free for others
_MANY_NEW: Final = 8  # new peers at once: beyond that they are asked a few at a time, as long as we know nothing
_FAR_BEHIND: Final = 16  # feeds
_ABSENT_S: Final = 3.0
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnHead:
    """What peers say about our own feed: which members answered, and the longest signed head among their answers."""

    answered: frozenset[MemberId]
    head: Head | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InquiryParts:
    """What asking works with: whom there is, when to ask, how, and the rules; `met` hears of a verified peer."""

    network: Network
    meeting: Meeting
    heads: Heads
    feeds: Feeds
    directory: Directory
    backoff: Backoff
    rules: SyncRules
    rng: random.Random
    clock: Callable[[], float]
    me: MemberId
    met: Callable[[Binding], None]
    failures: Failures


class Inquiring:
    """The questions for heads that are under way, and who has answered."""

    def __init__(self, parts: InquiryParts) -> None:
        """Ask nobody before `start`."""
        self._parts = parts
        self._asked: dict[PeerId, None] = {}  # questions under way
        self._jobs: asyncio.TaskGroup | None = None
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._changed = asyncio.Event()

    def start(self, jobs: asyncio.TaskGroup) -> None:
        """Ask from now on, in tasks of `jobs`."""
        self._jobs = jobs

    def stop(self) -> None:
        """Ask nobody any more."""
        self._jobs = None

    def round(self) -> None:
        """Ask who has not told us yet, and some drawn of those who have."""
        self.around(new=PER_ROUND)
        for peer in self._parts.meeting.drawn(self._parts.network.peers(), self._asked):
            self._ask(peer)

    def around(self, new: int | None = None) -> None:
        """Ask peers that have not told us what they hold.

        Many of them would tell one who is far behind the same long story: then it is a few (`new`; without it as many as
        for a start, when nobody has been asked yet), and the others in later rounds or as soon as we are level.
        """
        parts = self._parts
        due = parts.meeting.due(parts.network.peers(), self._asked)
        if len(due) > _MANY_NEW:
            told = bool(self.answered())
            if new is None:
                new = 0 if told or self._asked else PER_ROUND
            if not told or len(parts.feeds.behind()) > _FAR_BEHIND:
                due = parts.rng.sample(due, new)
        for peer in due:
            self._ask(peer)

    def again(self, peer: PeerId) -> None:
        """Ask a peer whose news does not come by itself any more."""
        if peer in self._parts.network.peers():
            self._ask(peer)

    def answered(self) -> frozenset[PeerId]:
        """Connected peers that answered and speak for somebody that we serve or follow."""
        return frozenset(peer for peer in self._parts.network.peers() if self._parts.meeting.has_answered(peer))

    async def own_head(self, timeout_s: float) -> OwnHead:
        """Ask everybody for the longest head of our own feed; early when all we know answered, else after `timeout_s` seconds."""
        parts, began = self._parts, self._parts.clock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                self.around()
                while not ((answered := self.answered()) and self._expected(parts.clock() - began) <= answered):
                    self._changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_S):
                            await self._changed.wait()
                    self.around()
        answered = self.answered()
        heads = [head for peer in sorted(answered) if (head := parts.heads.own(peer)) is not None]
        speakers = {parts.directory.member_of(peer) for peer in answered}
        others = frozenset(member for member in speakers if member not in (None, parts.me))
        return OwnHead(answered=others, head=max(heads, key=lambda head: head.size, default=None))

    def _expected(self, waited_s: float) -> frozenset[PeerId]:
        """Peers whose answer is worth waiting for: connected ones that may be members, and for a while absent members."""
        parts = self._parts
        connected = frozenset(peer for peer in parts.network.peers() if not parts.meeting.is_stranger(peer))
        if waited_s >= _ABSENT_S:
            return connected
        of = {peer: parts.directory.member_of(peer) for peer in parts.directory.newest()}
        return connected | {peer for peer, member in of.items() if member is not None and parts.rules.allowed(member)}

    # -- one question --------------------------------------------------------------------------------------------------
    def _ask(self, peer: PeerId) -> None:
        parts = self._parts
        banned = parts.rules.banned(peer, parts.directory.member_of(peer))
        if self._jobs is None or peer in self._asked or banned or parts.backoff.blocked(peer):
            return
        self._asked[peer] = None
        parts.meeting.asked(peer)
        self._jobs.create_task(self._question(peer))

    async def _question(self, peer: PeerId) -> None:
        parts = self._parts
        try:
            await self._with_place(parts.heads.ask(peer, self._speaks))
            parts.meeting.answered(peer)
            parts.backoff.clear(peer)
        except (Refused, Retry) as e:
            parts.failures.note("heads", peer, peer, e)
        finally:
            self._asked.pop(peer, None)
            self._changed.set()
        self.around()

    async def _with_place(self, question: Coroutine[None, None, None]) -> None:
        """Ask when a place is free; a slow peer gives it back after a moment and is waited for without one."""
        task = asyncio.ensure_future(question)
        try:
            async with self._slots:
                await asyncio.wait({task}, timeout=_PATIENCE_S)
            await task
        finally:
            task.cancel()

    def _speaks(self, bound: Binding) -> None:
        """Whether the answer of a verified peer is looked at."""
        if self._parts.rules.outdated(bound):
            raise OutdatedPeer("couldn't take heads: this member speaks through another peer by now")
        if self._parts.rules.banned(bound.peer, bound.member):
            raise PeerBanned("couldn't take heads: this peer is banned here")
        self._parts.met(bound)
