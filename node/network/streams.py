"""One libp2p stream as the node sees it: exact reads and writes with a deadline each, every outgoing byte tapped.

Deadlines follow the size and the measured speed of the link (`node.network.links`), and the stream tells it what it
measures. Knows no protocol and no daemon: it wraps an asyncio reader and writer.
Invariant: after a failed read or write the stream is dead, so nobody goes on with half a message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from node.errors_network import StreamEnded
from node.network.links import Links
from protocol.ids import PeerId

Tap: TypeAlias = Callable[[bytes], None]
Paced: TypeAlias = Callable[[Literal["in", "out"], int], float]

_CLOSE_S = 1.0
_LONGEST_PACE_S = 60.0


class PeerStream:
    """The `node.ports.Stream` of a live connection."""

    def __init__(
        self,
        peer: PeerId,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tap: Tap | None,
        links: Links,
        paced: Paced | None = None,
    ) -> None:
        """Wrap both halves; `tap` sees what is sent before anything else does, `links` what was measured.

        `paced` counts bytes and says how many seconds to wait then; None: this stream is as fast as it can be.
        """
        self._peer, self._reader, self._writer, self._tap, self._links = peer, reader, writer, tap, links
        self._paced = paced
        self._asked_at: float | None = None  # when we wrote last, until something came back

    @property
    def peer(self) -> PeerId:
        """The authenticated other end."""
        return self._peer

    async def read(self, size: int, *, within_s: float | None = None) -> bytes:
        """Exactly `size` bytes, in the time that the link needs for them, or `within_s` seconds.

        Raises:
            StreamEnded: the stream ended before, or they did not come in time.
        """
        limit = self._links.deadline(self._peer, size) if within_s is None else within_s
        began = time.monotonic()
        try:
            if self._is_here(size):
                data = await self._reader.readexactly(size)
            else:
                async with asyncio.timeout(limit):
                    data = await self._reader.readexactly(size)
        except TimeoutError:
            self.abort()
            if within_s is None:
                self._links.missed(self._peer, size, limit)
            raise StreamEnded(
                f"couldn't read from {self._peer[-6:]}: {size} bytes did not come within {limit:.0f} s"
            ) from None
        except (OSError, EOFError) as e:
            self.abort()
            raise StreamEnded(f"couldn't read from {self._peer[-6:]}: {type(e).__name__}") from None
        now = time.monotonic()
        if self._asked_at is not None and within_s is None:
            self._links.answered(self._peer, now - self._asked_at)
        self._asked_at = None
        self._links.note(self._peer, size, now - began)
        if self._paced is not None:
            await self._slow_down("in", size)
        return data

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when the buffer in between has room again.

        Raises:
            StreamEnded: the peer does not take it.
        """
        if self._paced is not None:
            await self._slow_down("out", len(data))
        if self._tap is not None:
            self._tap(data)
        limit = self._links.deadline(self._peer, len(data))
        transport = self._writer.transport
        try:
            if transport.is_closing():
                raise ConnectionResetError  # libuv's loop would call a write a RuntimeError
            self._writer.write(data)
            if transport.is_closing() or transport.get_write_buffer_size():  # else the system has taken all of it
                async with asyncio.timeout(limit):
                    await self._writer.drain()
        except (OSError, EOFError) as e:  # a TimeoutError is an OSError
            self.abort()
            if isinstance(e, TimeoutError):
                self._links.missed(self._peer, len(data), limit)
            raise StreamEnded(f"couldn't write to {self._peer[-6:]}: {type(e).__name__}") from None
        self._asked_at = time.monotonic()

    def _is_here(self, size: int) -> bool:
        """Whether that much was received already, so that reading it waits for nothing and needs no deadline."""
        return len(getattr(self._reader, "_buffer", b"")) >= size

    async def _slow_down(self, way: Literal["in", "out"], size: int) -> None:
        if self._paced is not None and (wait := self._paced(way, size)) > 0:
            await asyncio.sleep(min(wait, _LONGEST_PACE_S))

    def abort(self) -> None:
        """Drop the stream with whatever is still buffered."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Flush and close; a peer that does not take the rest in the time that its link needs is dropped."""
        left = self._writer.transport.get_write_buffer_size()
        self._writer.close()
        try:
            async with asyncio.timeout(self._links.deadline(self._peer, left) if left else _CLOSE_S):
                await self._writer.wait_closed()
        except (OSError, EOFError):
            self.abort()
        except asyncio.CancelledError:
            self.abort()
            raise
