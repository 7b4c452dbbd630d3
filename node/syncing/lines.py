"""Streams to peers that are kept open for the next question, a few per peer: opening one costs more than a small answer.

A stream is kept when its answer was read whole, for `KEEP_S` seconds, and used again newest first. One that the peer closed
meanwhile is replaced without a word. At most `PER_PEER` questions to one peer and protocol are under way at once, so that a
slow peer holds its own places and nobody else's. Knows no protocol and no members. Invariant: bytes of one answer are never
read as those of the next, and at most `KEPT` idle streams exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Final

from node.errors_network import StreamEnded
from node.ports import Network, Stream
from protocol import wire
from protocol.ids import PeerId

KEEP_S: Final = 10.0  # less than the other side's patience
KEPT: Final = 128
PER_PEER: Final = 4

_Key = tuple[PeerId, str]


async def read_frame(stream: Stream, limit: int) -> bytes:
    """One frame of at most `limit` bytes.

    Raises:
        TooLarge: it announces more; nothing was allocated.
        StreamEnded: it did not come whole or in time.
    """
    return await stream.read(wire.frame_length(await stream.read(wire.HEADER), limit))


class _Line:
    """One open stream, and what closes it."""

    __slots__ = ("_stack", "key", "stream", "until")

    def __init__(self, key: _Key, stack: contextlib.AsyncExitStack, stream: Stream) -> None:
        self.key, self._stack, self.stream, self.until = key, stack, stream, 0.0

    async def close(self) -> None:
        await self._stack.aclose()


class Lines:
    """The streams of one asker."""

    def __init__(self, network: Network, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Open streams over `network`; `clock` in seconds."""
        self._network, self._clock = network, clock
        self._idle: OrderedDict[_Line, None] = OrderedDict()  # longest idle first
        self._by_key: dict[_Key, list[_Line]] = {}
        self._places: dict[_Key, tuple[asyncio.Semaphore, int]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.opened = self.reused = 0

    @contextlib.asynccontextmanager
    async def asked(
        self, peer: PeerId, protocol: str, question: bytes, limit: int
    ) -> AsyncIterator[tuple[bytes, Stream]]:
        """Send `question`; the frame that answers it, and the stream with what may follow. A block that ends well keeps it.

        Raises:
            TooLarge, PeerUnreachable, StreamEnded.
        """
        async with self._place((peer, protocol)):
            line, frame = await self._answered((peer, protocol), question, limit)
            try:
                yield frame, line.stream
            except BaseException:
                self._end(line)
                raise
            self._keep(line)

    async def close(self) -> None:
        """End every idle stream."""
        for line in list(self._idle):
            self._forget(line)
            self._end(line)
        if self._ending:
            await asyncio.wait(self._ending)

    def drop(self, peer: PeerId) -> None:
        """End the idle streams to a peer: it is gone."""
        for line in [line for line in self._idle if line.key[0] == peer]:
            self._forget(line)
            self._end(line)

    def expire(self) -> None:
        """End those that were idle for too long: call it now and then."""
        now = self._clock()
        while self._idle and (len(self._idle) > KEPT or next(iter(self._idle)).until <= now):
            line = next(iter(self._idle))
            self._forget(line)
            self._end(line)

    def under_way(self, peer: PeerId, protocol: str) -> int:
        """Questions of that kind to a peer that are under way or wait for a place."""
        return self._places[peer, protocol][1] if (peer, protocol) in self._places else 0

    @contextlib.asynccontextmanager
    async def _place(self, key: _Key) -> AsyncIterator[None]:
        semaphore, users = self._places.get(key, (asyncio.Semaphore(PER_PEER), 0))
        self._places[key] = (semaphore, users + 1)
        try:
            async with semaphore:
                yield
        finally:
            semaphore, users = self._places.pop(key)
            if users > 1:
                self._places[key] = (semaphore, users - 1)

    async def _answered(self, key: _Key, question: bytes, limit: int) -> tuple[_Line, bytes]:
        """Ask over a kept stream, or over a new one when there is none or the peer has closed it."""
        kept = self._by_key.get(key)
        if kept:
            line = kept[-1]
            self._forget(line)
            with contextlib.suppress(StreamEnded):
                frame = await self._exchange(line, question, limit)
                self.reused += 1
                return line, frame
            for line in list(self._by_key.get(key, ())):  # they are most likely gone too
                self._forget(line)
                self._end(line)
        stack = contextlib.AsyncExitStack()
        line = _Line(key, stack, await stack.enter_async_context(self._network.open(*key)))
        self.opened += 1
        return line, await self._exchange(line, question, limit)

    async def _exchange(self, line: _Line, question: bytes, limit: int) -> bytes:
        try:
            await line.stream.write(question)
            return await read_frame(line.stream, limit)
        except BaseException:
            self._end(line)
            raise

    def _keep(self, line: _Line) -> None:
        line.until = self._clock() + KEEP_S
        self._idle[line] = None
        self._by_key.setdefault(line.key, []).append(line)
        self.expire()

    def _forget(self, line: _Line) -> None:
        del self._idle[line]
        left = self._by_key[line.key]
        left.remove(line)
        if not left:
            del self._by_key[line.key]

    def _end(self, line: _Line) -> None:
        """Close beside what goes on: closing waits for the peer."""
        task = asyncio.get_running_loop().create_task(line.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
