"""A simulated `node.ports.Network` for any number of nodes in one process: connections, streams, bytes, delays.

Time is the event loop's (see `node.simulation.virtual`). What a node sends leaves its uplink one after the other and arrives
after a drawn delay; what is lost on a stream is sent again (it costs time), what is lost of an announcement is gone. Handshakes
and headers are counted with round figures, stated below. p2pd, TCP windows and processors are not simulated. Invariants: every
byte is counted at its sender under what it was sent for; a node that is away neither sends nor hears; a stream's bytes arrive
in order or the stream ends; all draws come from one generator, so a seeded run repeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

from node.errors_network import PeerUnreachable, StreamEnded
from node.ports import Announced, Handler, PeersChanged
from node.simulation.gossip import Gossip, GossipRules
from protocol.ids import PeerId

HANDSHAKE_BYTES: Final = 1500  # of each side: TCP, noise, identify, multiplexer
STREAM_BYTES: Final = 160  # of each side: multiplexer frames and the name of the protocol
FRAME_BYTES: Final = 60  # of a write: TCP, IP, noise and multiplexer headers
AGAIN_S: Final = 0.2  # until a lost packet is sent again
PACKET: Final = 1400
STALLED_S: Final = 8.0  # a read that gets nothing for so long ends its stream
STREAMS: Final = 512  # served at once, idle ones among them, as the guard's own limit
TOLD_S: Final = 0.25  # how late a node learns that its connections changed
IDLE_S: Final = 30.0  # a connection that neither end wants to keep is closed after so long without a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """What all links have in common: one-way delay (ms, drawn for each message), uplink of a node, share of packets lost."""

    delay_ms: tuple[int, int] = (10, 60)
    uplink_kbit: float = 20_000.0
    loss: float = 0.0


class Ether:
    """All nodes and what lies between them."""

    def __init__(self, medium: Medium, rules: GossipRules, rng: random.Random) -> None:
        self.medium, self.rules, self.random = medium, rules, rng
        self.ports: dict[PeerId, Port] = {}
        self.quiet = False  # while it is, announcements are taken and go nowhere

    def port(self, peer: PeerId) -> Port:
        """A new node's network."""
        made = self.ports[peer] = Port(self, peer)
        return made

    def arrival(self, sender: Port, size: int, kind: str, *, reliable: bool) -> float | None:
        """When `size` bytes that leave now arrive, in loop time; None when they are lost. Counted either way."""
        medium, drawn, now = self.medium, self.random.random, sender.loop.time()
        sender.sent[kind] += size
        sender.messages[kind] += 1
        sender.free_at = max(now, sender.free_at) + size * 8 / (medium.uplink_kbit * 1000)
        low, high = medium.delay_ms
        at = sender.free_at + (low + (high - low) * drawn()) / 1000
        if medium.loss:
            whole = (1 - medium.loss) ** (1 + size // PACKET)
            while drawn() >= whole:
                if not reliable:
                    return None
                at += AGAIN_S
        return at


class Port:
    """One node's `Network`."""

    def __init__(self, ether: Ether, peer: PeerId) -> None:
        self.loop = asyncio.get_running_loop()
        self.ether, self._peer = ether, peer
        self.sent: Counter[str] = Counter()  # bytes by what they are for
        self.got: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()
        self.free_at = 0.0  # when the uplink has sent all that waits
        self.away = False
        self.serving = self.most_served = self.turned_away = 0
        self.links: dict[PeerId, float] = {}  # connected peers -> when a stream was last open
        self.gossip = Gossip(self)
        self._wanted: frozenset[PeerId] = frozenset()
        self._dialled: dict[PeerId, None] = {}
        self._handlers: dict[str, Handler] = {}
        self._watchers: list[PeersChanged] = []
        self._told: asyncio.TimerHandle | None = None
        self._peers: frozenset[PeerId] | None = frozenset()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- node.ports.Network ------------------------------------------------------------------------------------------
    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._peer

    def peers(self) -> frozenset[PeerId]:
        """Peers connected now."""
        if self._peers is None:
            self._peers = frozenset(self.links)
        return self._peers

    def rate(self, peer: PeerId) -> float | None:
        """Nothing is measured: all links are alike."""
        return None

    def add_handler(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol`."""
        self._handlers[protocol] = handler

    def subscribe(self, topic: str, announced: Announced) -> None:
        """Call `announced` with every announcement; there is one topic in a simulation."""
        self.gossip.listeners.append(announced)

    def on_peers(self, changed: PeersChanged) -> None:
        """Call `changed` soon after the set of connected peers has changed."""
        self._watchers.append(changed)

    async def publish(self, topic: str, data: bytes) -> bool:
        """Announce `data`."""
        return not self.away and (self.ether.quiet or self.gossip.publish(data))

    @contextlib.asynccontextmanager
    async def open(self, peer: PeerId, protocol: str) -> AsyncIterator[Wire]:
        """Open a stream, over a new connection where there is none (raises PeerUnreachable)."""
        other = self.ether.ports.get(peer)
        if other is None or other.away or self.away:
            raise PeerUnreachable(f"couldn't reach {peer[-6:]}: nobody is there")
        if peer not in self.links:
            await self._dial(other)
        await asyncio.sleep(self._trip(other, STREAM_BYTES, protocol))
        handler = other._handlers.get(protocol)
        if handler is None or other.away or other.serving >= STREAMS:
            other.turned_away += 1
            raise PeerUnreachable(f"couldn't open a stream to {peer[-6:]}: it serves no more, or not this")
        mine, theirs = pair(self, other, protocol)
        self.links[peer] = other.links[self._peer] = self.loop.time()
        other._serve(handler, theirs)
        try:
            yield mine
        finally:
            mine.close()

    def want(self, peers: Iterable[PeerId]) -> None:
        """Keep a connection to each of these."""
        before, self._wanted = self._wanted, frozenset(peers)
        for peer in sorted(self._wanted - before):
            self._keep(peer)

    # -- coming and going --------------------------------------------------------------------------------------------
    def leave(self) -> None:
        """The node is gone; whoever is connected finds out."""
        self.away = True
        for peer in list(self.links):
            self._cut(self.ether.ports[peer])

    def tidy(self) -> None:
        """Close connections that neither end wants, and make wanted ones that are missing."""
        now = self.loop.time()
        for peer, used in list(self.links.items()):
            other = self.ether.ports[peer]
            if peer not in self._wanted and self._peer not in other._wanted and now - used > IDLE_S:
                self._cut(other)
        for peer in sorted(self._wanted - self.links.keys()):
            self._keep(peer)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _keep(self, peer: PeerId) -> None:
        other = self.ether.ports.get(peer)
        if other is None or other.away or peer in self.links or self._peer in other._dialled or peer in self._dialled:
            return
        self._dialled[peer] = None
        took = self._trip(other, HANDSHAKE_BYTES, "connect") * 2
        self.loop.call_later(took, self._join, other)

    async def _dial(self, other: Port) -> None:
        await asyncio.sleep(self._trip(other, HANDSHAKE_BYTES, "connect") * 2)
        self._join(other)

    def _join(self, other: Port) -> None:
        self._dialled.pop(other._peer, None)
        if self.away or other.away or other._peer in self.links:
            return
        self.links[other._peer] = other.links[self._peer] = self.loop.time()
        for port in (self, other):
            port._changed()
        self.gossip.joined(other._peer)
        other.gossip.joined(self._peer)

    def _cut(self, other: Port) -> None:
        self.links.pop(other._peer, None)
        other.links.pop(self._peer, None)
        for port in (self, other):
            port._changed()
        self.gossip.parted(other._peer)
        other.gossip.parted(self._peer)

    def _changed(self) -> None:
        self._peers = None
        if self._told is None:
            self._told = self.loop.call_later(TOLD_S, self._tell)

    def _tell(self) -> None:
        self._told = None
        for watcher in self._watchers:
            watcher(self.peers())

    def _trip(self, other: Port, size: int, kind: str) -> float:
        """There and back: counts `size` bytes at both ends, returns the seconds that it takes."""
        now = self.loop.time()
        there = self.ether.arrival(self, size, kind, reliable=True) or now
        back = self.ether.arrival(other, size, kind, reliable=True) or now
        return there - now + back - now

    def _serve(self, handler: Handler, stream: Wire) -> None:
        async def served() -> None:
            self.serving += 1
            self.most_served = max(self.most_served, self.serving)
            try:
                with contextlib.suppress(StreamEnded):
                    await handler(stream)
            finally:
                self.serving -= 1
                stream.close()

        task = self.loop.create_task(served())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def pair(asker: Port, answerer: Port, kind: str) -> tuple[Wire, Wire]:
    """Both ends of a new stream."""
    mine, theirs = Wire(asker, answerer.peer, kind), Wire(answerer, asker.peer, kind)
    mine._other, theirs._other = theirs, mine
    return mine, theirs


class Wire:
    """One end of a stream."""

    def __init__(self, port: Port, peer: PeerId, kind: str) -> None:
        self._port, self._far, self._kind = port, peer, kind
        self._other: Wire = self
        self._buffer = bytearray()
        self._ended = self._closed = False
        self._last = 0.0  # when what we sent last arrives
        self._waiter: asyncio.Future[bool] | None = None  # True: look again, False: too late
        self._until = 0.0
        self._alarm: asyncio.TimerHandle | None = None  # one for all reads: most end long before

    @property
    def peer(self) -> PeerId:
        """The other end."""
        return self._far

    async def read(self, size: int, *, within_s: float | None = None) -> bytes:
        """Exactly `size` bytes (raises StreamEnded)."""
        while len(self._buffer) < size:
            if self._ended or self._closed:
                raise StreamEnded(f"couldn't read from {self._far[-6:]}: the stream ended")
            self._waiter = self._port.loop.create_future()
            self._until = self._port.loop.time() + (STALLED_S if within_s is None else within_s)
            if self._alarm is None:
                self._alarm = self._port.loop.call_at(self._until, self._ring)
            if not await self._waiter:
                self.close()
                raise StreamEnded(f"couldn't read from {self._far[-6:]}: nothing came")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when the uplink has taken it (raises StreamEnded)."""
        if self._closed or self._ended:
            raise StreamEnded(f"couldn't write to {self._far[-6:]}: the stream ended")
        port = self._port
        at = port.ether.arrival(port, len(data) + FRAME_BYTES, self._kind, reliable=True)
        self._last = max(self._last, at or 0.0)
        port.loop.call_at(self._last, self._other._arrived, data)
        waits = port.free_at - port.loop.time()
        if waits > 0.05:
            await asyncio.sleep(waits)

    def close(self) -> None:
        """No more from this end; the other one gets what is on its way, then the end."""
        if not self._closed:
            self._closed = True
            if self._alarm is not None:
                self._alarm.cancel()
            self._wake()
            at = max(self._last, self._port.loop.time() + self._port.ether.medium.delay_ms[0] / 1000)
            self._port.loop.call_at(at, self._other._end)

    def _arrived(self, data: bytes) -> None:
        self._port.got[self._kind] += len(data) + FRAME_BYTES
        self._buffer += data
        self._wake()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _ring(self) -> None:
        self._alarm = None
        if self._closed or self._waiter is None or self._waiter.done():
            return
        if self._port.loop.time() < self._until:
            self._alarm = self._port.loop.call_at(self._until, self._ring)
        else:
            self._waiter.set_result(False)
