"""The swarm: keeps p2pd alive, redials peers, serves and opens streams, announces, and tells the DHT where we are.

One turn of the loop in `Swarm.run` is one life of p2pd: start it, register handlers, subscribe, dial, and when it dies or
stops answering, kill it and begin again with the same identity and port. Nobody redials a peer for us, so we do.
Only bytes and peer ids cross the surface; all bytes that we author pass the tap. Knows nothing of feeds, members or blobs.
Invariant: when `run` has ended, no process and no task of ours is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

from node.errors_network import BadTransport, PeerUnreachable, PortTaken, SwarmDown
from node.finding import addresses as multiaddrs
from node.finding import rendezvous
from node.finding.addresses import AddressBook
from node.finding.backoff import Backoff
from node.guarding.guard import Guard
from node.network import endpoints
from node.network.p2pd import CALL_S, DaemonConfig, P2pd, Serve
from node.network.links import Links
from node.network.streams import PeerStream, Tap
from node.ports import Announced, Handler, PeersChanged
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import PeerId, peer_id

log = logging.getLogger(__name__)

MAX_ANNOUNCEMENT = 8 * 1024
_TROUBLE = (FishernetError, OSError, EOFError)  # a TimeoutError is an OSError
_SOCKET_ROOM = 104 - 30  # for "p2pclient-", 11 random characters and ".sock"
_TICK_S, _PROBE_S, _RENDEZVOUS_S = 1.0, 4.0, 20.0
_REDIAL_S = (1.0, 5.0)
_DIALS_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """Where p2pd finds its identity, listens, keeps its sockets (a private, short path), and whom it knows."""

    identity: Path
    listen: tuple[str, ...]
    run_dir: Path
    known: tuple[str, ...] = ()  # /ip4/.../tcp/.../p2p/...
    announce: tuple[str, ...] = ()  # published instead of the listening addresses
    book: Path | None = None
    guard: Guard | None = None  # what each peer may cost us; None: one with the usual limits, whose bans nobody keeps


class Swarm:
    """The node's `Network`: announcements, streams and connections over p2pd, healed for as long as `run` runs."""

    def __init__(self, config: SwarmConfig, *, tap: Tap | None = None) -> None:
        """Read the identity; nothing is started before `run`. `tap` sees all bytes that we author before they leave.

        Raises:
            BadTransport: the identity file or the socket directory is not usable.
            Malformed: an address is not one.
        """
        self._key = endpoints.read_identity(config.identity)
        self._transport = bytes(self._key.verify_key).hex()
        self._me = peer_id(bytes(self._key.verify_key))
        self._config, self._tap = config, tap
        self._listen = tuple(multiaddrs.check_address(address) for address in config.listen)
        if len(str(config.run_dir.absolute())) > _SOCKET_ROOM:
            raise BadTransport(f"couldn't use {config.run_dir} for sockets: the path is too long")
        self._book = AddressBook(config.book)
        self._known: set[PeerId] = set()
        for address in config.announce:
            multiaddrs.check_address(address)
        for full in config.known:
            self._note(*multiaddrs.split(full))
        self._wanted: frozenset[PeerId] = frozenset()
        self._handlers: dict[str, Handler] = {}
        self._topics: dict[str, list[Announced]] = {}
        self._watchers: list[PeersChanged] = []
        self._redials = Backoff(time.monotonic)
        self._streams: set[PeerStream] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.guard = config.guard or Guard()
        self.links = Links()
        self._daemon: P2pd | None = None
        self._jobs: asyncio.TaskGroup | None = None
        self._connected: frozenset[PeerId] = frozenset()
        self._visible: tuple[str, ...] = ()
        self._wake = asyncio.Event()
        self._lives = self._dropped = self._handler_errors = 0
        self._last_error = ""
        self.ready = asyncio.Event()

    # -- surface -----------------------------------------------------------------------------------------------------
    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._me

    def peers(self) -> frozenset[PeerId]:
        """Peers connected at the last look, at most a second ago."""
        return self._connected

    def rate(self, peer: PeerId) -> float | None:
        """Bytes a second that one stream of `peer` brought lately; None: not measured."""
        return self.links.rate(peer)

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialled, with our peer id; empty before the first life."""
        return tuple(f"{address}/p2p/{self._me}" for address in self._reachable())

    def status(self) -> dict[str, Json]:
        """What `fishernet status` shows of the network."""
        return {
            "peer": self._me,
            "up": self._daemon is not None,
            "pid": self._daemon.pid if self._daemon is not None else None,
            "peers": sorted(self._connected),
            "missing": sorted(self._missing()),
            "addresses": list(self.addresses()),
            "streams": len(self._streams),
            "refused_streams": self.guard.refused,
            "lives": self._lives,
            "dropped": self._dropped,
            "handler_errors": self._handler_errors,
            "last_error": self._last_error,
        }

    def add_handler(self, protocol: str, handler: Handler) -> None:
        """Serve `protocol` in every life from now on; call it before `run`."""
        self._handlers[protocol] = handler

    def subscribe(self, topic: str, announced: Announced) -> None:
        """Call `announced` with every announcement on `topic` of at most 8 KiB, from the next moment on."""
        self._topics.setdefault(topic, []).append(announced)
        if len(self._topics[topic]) == 1 and self._jobs is not None and self._daemon is not None:
            self._jobs.create_task(self._hear(self._daemon, topic))

    def on_peers(self, changed: PeersChanged) -> None:
        """Call `changed` with the connected peers whenever the set changes."""
        self._watchers.append(changed)

    def want(self, peers: Iterable[PeerId]) -> None:
        """Keep a connection to each of these from now on, besides those of the configuration and of `dial`."""
        self._wanted = frozenset(peers)
        self._wake.set()

    async def dial(self, full: str) -> PeerId:
        """Connect to `/ip4/.../tcp/.../p2p/...` and keep the connection.

        Raises:
            Malformed: not such an address.
            PeerUnreachable: nobody of that name answers there now; it is tried again.
        """
        address, peer = multiaddrs.split(full)
        self._note(address, peer)
        daemon = self._daemon
        try:
            if daemon is None:
                raise SwarmDown("the network is down")
            await daemon.connect(peer, [address])
            await self._look(daemon)
        except _TROUBLE as e:
            self._wake.set()
            raise PeerUnreachable(f"couldn't dial {full}: {_cause(e)}") from None
        return peer

    async def publish(self, topic: str, data: bytes) -> bool:
        """Announce `data` (at most 8 KiB) to whoever listens; False when it was dropped and counted."""
        if len(data) > MAX_ANNOUNCEMENT:
            raise ValueError(f"couldn't announce {len(data)} bytes: the limit is {MAX_ANNOUNCEMENT}")
        if self._daemon is not None:
            self._out(data)
            try:
                await self._daemon.publish(topic, data)
            except _TROUBLE as e:
                self._trouble("publish", e)
            else:
                return True
        self._dropped += 1
        return False

    @contextlib.asynccontextmanager
    async def open(self, peer: PeerId, protocol: str) -> AsyncIterator[PeerStream]:
        """Open a stream to `peer`; it is closed at the end of the block.

        Raises:
            PeerUnreachable: no connection, or the peer does not serve `protocol`.
        """
        if self._daemon is None:
            raise PeerUnreachable(f"couldn't open {protocol}: the network is down")
        async with contextlib.AsyncExitStack() as stack:
            try:
                reader, writer = await stack.enter_async_context(self._daemon.open(peer, protocol))
            except _TROUBLE as e:
                raise PeerUnreachable(f"couldn't open {protocol} to {peer[-6:]}: {_cause(e)}") from None
            yield await stack.enter_async_context(self._stream(peer, reader, writer))

    # -- one life of p2pd --------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Live until cancelled.

        Raises:
            PortTaken: somebody else listens on our port at the first start.
            BadTransport: p2pd took another identity than ours.
        """
        self._config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        listen, pause, failed = self._listen, 0.1, 0
        while True:
            for stale in self._config.run_dir.glob("p2p*.sock"):  # a killed daemon leaves two
                stale.unlink(missing_ok=True)
            began = time.monotonic()
            cause: BaseException | None = None
            try:
                endpoints.check_ports(listen)
                await self._live(listen)
            except* _TROUBLE as group:
                cause = _first(group)
            if cause is not None:
                self._trouble("life", cause)
                if isinstance(cause, PortTaken | BadTransport) and not self._lives:
                    raise cause
            failed = 0 if time.monotonic() - began > 10 else failed + 1
            listen = endpoints.with_port(self._listen, self._visible) if failed < 3 else self._listen
            pause = min(0.1 * 2**failed, 5.0)
            await asyncio.sleep(pause)

    async def _live(self, listen: tuple[str, ...]) -> None:
        seal = rendezvous.Seal(self._key)
        daemon = await P2pd.start(
            DaemonConfig(identity=self._config.identity, listen=listen, run_dir=self._config.run_dir, seal=seal)
        )
        try:
            if daemon.peer != self._me:
                raise BadTransport("couldn't start p2pd: it took another identity")
            for protocol, handler in self._handlers.items():
                await daemon.serve(protocol, self._served(protocol, handler))
            async with asyncio.TaskGroup() as jobs:
                self._daemon, self._jobs, self._visible = daemon, jobs, daemon.visible
                for job in (daemon.died(), self._probe(daemon), self._redial(daemon), self._meet(daemon)):
                    jobs.create_task(job)
                for topic in self._topics:
                    jobs.create_task(self._hear(daemon, topic))
                self._lives += 1
                log.info("event=swarm-up peer=%s life=%d", self._me[-6:], self._lives)
                self.ready.set()
        finally:
            self.ready.clear()
            self._daemon = self._jobs = None
            for stream in list(self._streams):
                stream.abort()
            await daemon.end()
            if self._serving:
                await asyncio.wait(self._serving, timeout=CALL_S)
            self._see(frozenset())

    def _served(self, protocol: str, handler: Handler) -> Serve:
        async def serve(peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
            try:
                async with self._stream(peer, reader, writer) as stream:
                    with self.guard.stream(peer, protocol, known=self._trusts(peer)) as free:
                        if free:
                            await handler(stream)
            except _TROUBLE as e:
                log.debug("event=stream-ended protocol=%s peer=%s error=%s", protocol, peer[-6:], _cause(e))
            except Exception:  # a fault in one handler costs one stream, not the node
                self._handler_errors += 1
                log.exception("event=handler-error protocol=%s peer=%s", protocol, peer[-6:])

        return serve

    @contextlib.asynccontextmanager
    async def _stream(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[PeerStream]:
        stream = PeerStream(peer, reader, writer, tap=self._tap, links=self.links)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            await stream.close()

    async def _probe(self, daemon: P2pd) -> None:
        while True:
            await self._look(daemon)
            await asyncio.sleep(_TICK_S)

    async def _look(self, daemon: P2pd) -> None:
        """See who is connected; a p2pd that does not answer is frozen, and the life ends."""
        try:
            async with asyncio.timeout(_PROBE_S):
                connected = await daemon.connected()
        except TimeoutError:
            raise SwarmDown(f"couldn't ask p2pd: no answer for {_PROBE_S:.0f} s") from None
        if daemon is self._daemon:
            self._see(connected)

    def _see(self, connected: frozenset[PeerId]) -> None:
        if connected == self._connected:
            return
        self._connected = connected
        for changed in self._watchers:
            changed(connected)

    async def _hear(self, daemon: P2pd, topic: str) -> None:
        async for origin, data in daemon.announcements(topic):
            if len(data) <= MAX_ANNOUNCEMENT and self.guard.hears(origin, known=self._trusts(origin)):
                for announced in self._topics[topic]:
                    announced(data)

    # -- finding each other ------------------------------------------------------------------------------------------
    def _missing(self) -> frozenset[PeerId]:
        return (self._wanted | self._known) - self._connected - {self._me}

    async def _redial(self, daemon: P2pd) -> None:
        """Whoever comes back dials everybody at once; then each missing peer again, with a growing pause."""
        self._redials = Backoff(time.monotonic)
        while True:
            due = [peer for peer in self._missing() if not self._redials.blocked(peer)]
            for start in range(0, len(due), _DIALS_AT_ONCE):
                await asyncio.gather(*(self._reach(daemon, peer) for peer in due[start : start + _DIALS_AT_ONCE]))
            if due:
                await self._look(daemon)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _reach(self, daemon: P2pd, peer: PeerId) -> None:
        """Try the remembered addresses, then what the peer says about itself in the DHT."""
        known = self._book.addresses(peer)
        with contextlib.suppress(*_TROUBLE):
            if known:
                return await daemon.connect(peer, known)
        with contextlib.suppress(*_TROUBLE):
            record = await daemon.get_record(multiaddrs.transport(peer))
            fresh = rendezvous.unpack(record) if record is not None else ()
            if self._book.remember(peer, fresh):
                return await daemon.connect(peer, fresh)
        self._redials.fail(peer, _REDIAL_S)
        return None

    async def _meet(self, daemon: P2pd) -> None:
        """Keep our own addresses in the DHT; its memory is that of its nodes."""
        while True:
            with contextlib.suppress(*_TROUBLE):
                value = rendezvous.pack(self._reachable())
                self._out(value)
                await daemon.put_record(self._transport, value)
            await asyncio.sleep(_RENDEZVOUS_S)

    def _reachable(self) -> tuple[str, ...]:
        return tuple(address for address in self._config.announce or self._visible if endpoints.is_dialable(address))

    def _note(self, address: str, peer: PeerId) -> None:
        self._book.remember(peer, [address])
        self._known.add(peer)

    # -- small things ------------------------------------------------------------------------------------------------
    def _trusts(self, peer: PeerId) -> bool:
        return peer in self._wanted or peer in self._known

    def _out(self, data: bytes) -> None:
        if self._tap is not None:
            self._tap(data)

    def _trouble(self, what: str, error: BaseException) -> None:
        self._last_error = f"{what}: {_cause(error)}"
        log.warning("event=swarm-trouble what=%s error=%s", what, _cause(error))


def _cause(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
