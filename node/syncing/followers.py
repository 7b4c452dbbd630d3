"""Sends members that asked for it every new entry of our own feed, with its blob, as soon as it is written: one page at a time.

A follower says from which entry on. It gets what there is from there on once there is something, or an empty page when nothing
came for `QUIET_S`; the next page waits until it says that it has taken this one. So a slow follower gets more at once, later,
and holds up nobody. A page is made once for all that wait for the same entries. Knows no store and decides nothing about
members: it is told. Invariants: at most one answer to a follower is under way, a peer has one place here, and before each answer
it is asked anew whether the follower may have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractContextManager
from typing import Final

from node.errors_network import StreamEnded
from node.ports import Stream
from protocol import wire
from protocol.errors import Malformed
from protocol.ids import MemberId, PeerId

QUIET_S: Final = 60.0
TAKING_S: Final = 30.0  # how long a follower may take to store a page, and be silent beyond that
_KEPT_S: Final = 0.5
_EARLY_S: Final = 0.01  # an alarm may come a little before its time

Page = Callable[[int, int], Awaitable[bytes]]
"""The answer with the entries of our own feed from a number on, and with blobs of at most so many bytes."""


class _Follower:
    """One peer that waits for entries from `start` on, or (not `waits`) takes what it was sent; quiet: nothing came for long."""

    __slots__ = ("alarm", "member", "news", "quiet", "replaced", "start", "told_at", "waits")

    def __init__(self, member: MemberId, start: int) -> None:
        self.member, self.start = member, start
        self.waits, self.replaced, self.quiet = True, False, False
        self.news = asyncio.Event()
        self.news.set()  # it may be behind already
        loop = asyncio.get_running_loop()
        self.told_at = loop.time()
        self.alarm = loop.call_later(QUIET_S, self._ring)

    def told(self) -> None:
        """It is being sent something."""
        self.waits = self.quiet = False
        self.told_at = asyncio.get_running_loop().time()

    def _ring(self) -> None:
        """One alarm for all pages: most of them come long before it."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self.told_at + QUIET_S - _EARLY_S:
            self.quiet, self.told_at = True, loop.time()
            self.news.set()
        self.alarm = loop.call_at(self.told_at + QUIET_S, self._ring)


class Followers:
    """Those who follow our own feed."""

    def __init__(
        self,
        *,
        length: Callable[[], int],
        page: Page,
        spend: Callable[[PeerId], None],
        hold: Callable[[PeerId, int], AbstractContextManager[None]],
    ) -> None:
        """`length` is how many entries our feed has; `spend` takes one request of a peer's share, `hold` memory for an answer."""
        self._length, self._page, self._spend, self._hold = length, page, spend, hold
        self._open: dict[PeerId, _Follower] = {}
        self._made: tuple[tuple[int, int, int], bytes] | None = None  # the last page, for the others who want it now
        self.sent = 0

    def __len__(self) -> int:
        return len(self._open)

    def tell(self) -> None:
        """Our feed has grown."""
        for follower in self._open.values():
            follower.news.set()

    def all_of(self, members: Collection[MemberId]) -> bool:
        """Whether each of these members follows us now."""
        return frozenset(members) <= {follower.member for follower in self._open.values()}

    async def serve(
        self, stream: Stream, member: MemberId, start: int, attach: int, allowed: Callable[[], int]
    ) -> None:
        """Send what comes until the stream ends; `allowed` says how many bytes of blobs may go along, or raises.

        Raises:
            StreamEnded: always, in the end; another stream of the same peer takes the place of this one.
            Malformed: the follower goes on before it was answered.
            OverQuota, and what `allowed` raises.
        """
        follower = _Follower(member, start)
        before = self._open.pop(stream.peer, None)
        if before is not None:
            before.replaced = True
            before.news.set()
        self._open[stream.peer] = follower
        hearing = asyncio.ensure_future(self._hear(stream, follower))
        try:
            while not (hearing.done() or follower.replaced):
                await follower.news.wait()
                follower.news.clear()
                if hearing.done() or follower.replaced or not follower.waits:
                    continue
                if follower.quiet or self._length() > follower.start:
                    answer = await self._answer(follower.start, min(attach, allowed()))
                    follower.told()
                    with self._hold(stream.peer, len(answer)):
                        await stream.write(answer)
                    self.sent += 1
            if not follower.replaced:
                await hearing
            raise StreamEnded(f"couldn't go on telling {stream.peer[-6:]}: it follows on another stream")
        finally:
            follower.alarm.cancel()
            hearing.cancel()
            if self._open.get(stream.peer) is follower:
                del self._open[stream.peer]
            await asyncio.wait({hearing})
            if not hearing.cancelled():
                hearing.exception()  # it was raised above, or comes too late

    async def _hear(self, stream: Stream, follower: _Follower) -> None:
        """Read what the follower says, or that it is gone."""
        try:
            while True:
                start = wire.parse_go_on(await stream.read(wire.GO_ON, within_s=QUIET_S + TAKING_S))
                if follower.waits:
                    raise Malformed("couldn't serve follower: it goes on before it was answered")
                self._spend(stream.peer)
                follower.start, follower.waits = start, True
                if follower.quiet or self._length() > start:
                    follower.news.set()
        finally:
            follower.news.set()

    async def _answer(self, start: int, attach: int) -> bytes:
        key = (start, self._length(), attach)
        made = self._made
        if made is None or made[0] != key:
            made = self._made = (key, await self._page(start, attach))
            asyncio.get_running_loop().call_later(_KEPT_S, self._forget, made)
        return made[1]

    def _forget(self, made: tuple[tuple[int, int, int], bytes]) -> None:
        """Not kept for longer: what is erased meanwhile is not to be sent."""
        if self._made is made:
            self._made = None
