"""Serving as a relay: hop of circuit relay v2, in place of p2pd's own, which cuts every circuit after 128 KiB and refuses nobody.

p2pd has flags for larger limits, but starts a second relay with the small ones behind them. So we take the protocol over: a node
that does not serve refuses it, one that does joins the streams of two peers. What passes is encrypted between them. Knows no
members. Invariant: `MAX_PLACES` peers have a reservation at most, and a peer `PER_PEER` circuits, `MAX_CIRCUITS` exist in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable

from node.errors_network import NetworkError
from node.finding import circuits
from node.guarding.guard import Guard
from node.network.p2pd import P2pd, binary, name_of
from protocol.errors import Malformed
from protocol.ids import PeerId

log = logging.getLogger(__name__)

MAX_PLACES, MAX_CIRCUITS, PER_PEER = 256, 512, 64
_PLACE_S = 3600.0
_MESSAGE_S, _IDLE_S = 10.0, 600.0
_COPY = 64 * 1024


class Relaying:
    """The relay of one life of p2pd."""

    def __init__(self, daemon: P2pd, guard: Guard, trusted: Callable[[PeerId], bool], *, serve: bool) -> None:
        """Join peers when `serve`, else refuse; `guard` bounds who asks how often, and keeps the banned out."""
        self._daemon, self._guard, self._trusted, self._serves = daemon, guard, trusted, serve
        self._places: dict[PeerId, float] = {}
        self._circuits: Counter[PeerId] = Counter()

    def status(self) -> dict[str, int]:
        """Counts for metrics."""
        return {"relay_places": len(self._places), "relay_circuits": self._circuits.total() // 2}

    async def hop(self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what `peer` asks, and stay for as long as its circuit lasts."""
        try:
            with self._guard.stream(peer, circuits.HOP, known=self._trusted(peer)) as free:
                if not free:
                    return
                async with asyncio.timeout(_MESSAGE_S):
                    asked = circuits.read_asked(await _read(reader))
            if not self._serves:
                _tell(writer, circuits.status(circuits.PERMISSION_DENIED))
            elif asked.kind == circuits.RESERVE:
                _tell(writer, self._reserve(peer))
            else:
                await self._connect(peer, name_of(asked.peer), reader, writer)
        except Malformed:
            _tell(writer, circuits.status(circuits.MALFORMED))
        except (NetworkError, OSError, EOFError) as e:
            log.debug("event=circuit-ended peer=%s error=%s", peer[-6:], str(e)[:200] or type(e).__name__)
        finally:
            writer.close()

    def _reserve(self, peer: PeerId) -> bytes:
        now = time.time()
        self._places = {who: until for who, until in self._places.items() if until > now}
        if peer not in self._places and len(self._places) >= MAX_PLACES:
            return circuits.status(circuits.RESOURCE_LIMIT)
        self._places[peer] = now + _PLACE_S
        return circuits.reserved(int(now + _PLACE_S))

    async def _connect(
        self, source: PeerId, target: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._places.get(target, 0.0) < time.time():
            _tell(writer, circuits.status(circuits.NO_RESERVATION))
            return
        full = self._circuits.total() >= 2 * MAX_CIRCUITS
        if full or source == target or max(self._circuits[source], self._circuits[target]) >= PER_PEER:
            _tell(writer, circuits.status(circuits.RESOURCE_LIMIT))
            return
        ends = Counter((source, target))
        self._circuits += ends
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(_MESSAGE_S):
                        far = await stack.enter_async_context(self._daemon.open(target, circuits.STOP))
                        far[1].write(circuits.stop_connect(binary(source)))
                        answer = circuits.read_stop_status(await _read(far[0]))
                except (NetworkError, OSError, EOFError, Malformed):
                    answer = circuits.CONNECTION_FAILED
                if answer != circuits.OK:
                    _tell(writer, circuits.status(circuits.CONNECTION_FAILED))
                    return
                _tell(writer, circuits.status(circuits.OK))
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(reader, far[1]))
                    both.create_task(_copy(far[0], writer))
        except* (NetworkError, OSError, EOFError):
            pass  # one end has gone, and with it the circuit
        finally:
            self._circuits -= ends


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One message behind its length."""
    length = 0
    for shift in (0, 7):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        if byte < 128:
            break
    else:
        raise Malformed("couldn't read a relay's message: it is too long")
    if length > circuits.MAX_MESSAGE:
        raise Malformed("couldn't read a relay's message: it is too long")
    return await reader.readexactly(length)


def _tell(writer: asyncio.StreamWriter, answer: bytes) -> None:
    """Write to who may have gone; libuv's loop would call that a RuntimeError."""
    if not writer.is_closing():
        writer.write(answer)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Hand on what comes, as fast as it is taken; raises EOFError at the end or after ten idle minutes (TimeoutError)."""
    while True:
        async with asyncio.timeout(_IDLE_S):
            data = await source.read(_COPY)
            if not data:
                raise EOFError
            if target.is_closing():
                raise EOFError
            target.write(data)
            await target.drain()
