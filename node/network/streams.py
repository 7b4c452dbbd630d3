"""One libp2p stream as the node sees it: exact reads and writes with a deadline each, every outgoing byte tapped.

Knows no protocol and no daemon: it wraps an asyncio reader and writer. `Slots` bounds how many streams are served at once.
Invariant: after a failed read or write the stream is dead, so nobody goes on with half a message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeAlias

from node.errors import StreamEnded
from protocol.ids import PeerId

Tap: TypeAlias = Callable[[bytes], None]

DEADLINE_S = 8.0  # for one read or write of at most 256 KiB; a slower link is as good as none
_CLOSE_S = 1.0


class PeerStream:
    """The `node.ports.Stream` of a live connection."""

    def __init__(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, tap: Tap | None
    ) -> None:
        """Wrap both halves; `tap` sees what is sent before anything else does."""
        self._peer, self._reader, self._writer, self._tap = peer, reader, writer, tap

    @property
    def peer(self) -> PeerId:
        """The authenticated other end."""
        return self._peer

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            StreamEnded: the stream ended before, or nothing came in time.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._reader.readexactly(size)
        except TimeoutError:
            self.abort()
            raise StreamEnded(f"couldn't read from {self._peer[-6:]}: nothing came for {DEADLINE_S:.0f} s") from None
        except (OSError, EOFError) as e:
            self.abort()
            raise StreamEnded(f"couldn't read from {self._peer[-6:]}: {type(e).__name__}") from None

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when the buffer in between has room again.

        Raises:
            StreamEnded: the peer does not take it.
        """
        if self._tap is not None:
            self._tap(data)
        try:
            async with asyncio.timeout(DEADLINE_S):
                self._writer.write(data)
                await self._writer.drain()
        except (OSError, EOFError) as e:  # a TimeoutError is an OSError
            self.abort()
            raise StreamEnded(f"couldn't write to {self._peer[-6:]}: {type(e).__name__}") from None

    def abort(self) -> None:
        """Drop the stream with whatever is still buffered."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Flush and close; a peer that does not read is dropped after a second."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._writer.wait_closed()
        except (OSError, EOFError):
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise


class Slots:
    """How many streams are served at once: so many in all, so many per peer, and strangers get at most half."""

    def __init__(self, *, total: int = 64, per_peer: int = 8) -> None:
        """Start with all slots free."""
        self._total, self._per_peer = total, per_peer
        self._taken: Counter[PeerId] = Counter()
        self._strangers = 0
        self.refused = 0

    @contextlib.contextmanager
    def take(self, peer: PeerId, *, known: bool) -> Iterator[bool]:
        """Yield whether a slot was free; it is given back at the end of the block."""
        full = self._taken.total() >= self._total or self._taken[peer] >= self._per_peer
        if full or (not known and self._strangers >= self._total // 2):
            self.refused += 1
            yield False
            return
        self._taken[peer] += 1
        self._strangers += not known
        try:
            yield True
        finally:
            self._strangers -= not known
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]
