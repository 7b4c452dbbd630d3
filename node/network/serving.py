"""The streams of one swarm: those that peers open, guarded before any work, and our own; all of them end with p2pd.

Knows no protocol: a handler is called with a stream. Invariant: a fault in one handler costs one stream, and `end` leaves none.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable

from node.guarding.guard import Guard
from node.network.links import Links
from node.network.p2pd import CALL_S, Serve
from node.network.streams import Paced, PeerStream, Tap
from node.ports import Handler
from protocol.errors import FishernetError
from protocol.ids import PeerId

log = logging.getLogger(__name__)


class Streams:
    """Open streams, and the tasks that serve peers."""

    def __init__(self, guard: Guard, trusted: Callable[[PeerId], bool], tap: Tap | None) -> None:
        """`guard` decides what is served; `trusted` says who is a member; `tap` sees what we author."""
        self._guard, self._trusted, self._tap = guard, trusted, tap
        self._open: set[PeerStream] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.links = Links()
        self.handler_errors = 0

    def __len__(self) -> int:
        return len(self._open)

    def served(self, protocol: str, handler: Handler) -> Serve:
        """What p2pd calls for each stream of `protocol`."""

        async def serve(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
            try:
                known = self._trusted(peer)
                paced = functools.partial(self._guard.pace, peer, known=known)
                async with self.stream(peer, reader, writer, paced) as stream:
                    with self._guard.stream(peer, protocol, known=known) as free:
                        if free:
                            await handler(stream)
            except (FishernetError, OSError, EOFError) as e:
                self._guard.blame(peer, e)  # a length that is a lie, bytes that are no request
                cause = str(e)[:200] or type(e).__name__
                log.debug("event=stream-ended protocol=%s peer=%s error=%s", protocol, peer[-6:], cause)
            except Exception:  # a fault in one handler costs one stream, not the node
                self.handler_errors += 1
                log.exception("event=handler-error protocol=%s peer=%s", protocol, peer[-6:])

        return serve

    @contextlib.asynccontextmanager
    async def stream(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, paced: Paced | None = None
    ) -> AsyncIterator[PeerStream]:
        """Both halves as one stream, closed at the end of the block."""
        stream = PeerStream(peer, reader, writer, tap=self._tap, links=self.links, paced=paced)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)
            await stream.close()

    def abort(self) -> None:
        """Drop every stream."""
        for stream in list(self._open):
            stream.abort()

    async def end(self) -> None:
        """Wait until nobody is served any more."""
        if self._serving:
            await asyncio.wait(self._serving, timeout=CALL_S)
