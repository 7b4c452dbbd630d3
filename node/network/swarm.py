"""The swarm: keeps p2pd alive, serves and opens streams, announces. `redialling` finds others, `presence` lets them find us.

One turn of the loop in `Swarm.run` is one life of p2pd: start it, register handlers, subscribe, dial, and when it dies, stops
answering, or is to run with other settings, kill it and begin again with the same identity and port.
Only bytes and peer ids cross the surface; all bytes that we author pass the tap. Knows nothing of feeds, members or blobs.
Invariant: when `run` has ended, no process and no task of ours is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable

from node.errors_network import BadTransport, PeerUnreachable, PortTaken, SwarmDown
from node.finding import rendezvous
from node.finding.addresses import AddressBook
from node.finding.circuits import HOP
from node.finding.contacts import Contacts
from node.finding.relays import Nat, merged
from node.guarding.guard import Guard
from node.network import endpoints
from node.network.p2pd import DaemonConfig, P2pd
from node.network.presence import Presence
from node.network.redialling import Redialling
from node.network.relaying import Relaying
from node.network.serving import Streams
from node.network.setup import SwarmConfig
from node.network.streams import PeerStream, Tap
from node.ports import Announced, Handler, PeersChanged
from protocol import addresses as multiaddrs
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import PeerId, peer_id

__all__ = ["MAX_ANNOUNCEMENT", "Swarm", "SwarmConfig"]

log = logging.getLogger(__name__)

MAX_ANNOUNCEMENT = 8 * 1024
_TROUBLE = (FishernetError, OSError, EOFError)  # a TimeoutError is an OSError
_SERVE_S, _HALT_S = 600.0, 0.8


class Swarm:
    """The node's `Network`: announcements, streams and connections over p2pd, healed for as long as `run` runs."""

    def __init__(self, config: SwarmConfig, *, tap: Tap | None = None) -> None:
        """Read the identity; nothing is started before `run`. `tap` sees all bytes that we author before they leave.

        Raises:
            BadTransport: the identity file or the socket directory is not usable.
            Malformed: an address is not one.
        """
        self._key = endpoints.read_identity(config.identity)
        self._me = peer_id(bytes(self._key.verify_key))
        self._config, self._tap = config, tap
        config.check()
        self.guard = config.guard or Guard()
        book = AddressBook(config.book)
        self._contacts = Contacts(self._me, book, clock=time.monotonic, banned=self.guard.banned)
        for full in config.known:
            self._note(full)
        self._redialling = Redialling(self._me, self._contacts, self._look)
        self._presence = Presence(self._me, config, self._contacts, out=self._out, woken=self._redialling.wake)
        self._charter_relays: tuple[str, ...] = ()
        self._handlers: dict[str, Handler] = {}
        self._topics: dict[str, list[Announced]] = {}
        self._watchers: list[PeersChanged] = []
        self._streams = Streams(self.guard, self._contacts.trusted, tap)
        self._daemon: P2pd | None = None
        self._relaying: Relaying | None = None
        self._jobs: asyncio.TaskGroup | None = None
        self._connected: frozenset[PeerId] = frozenset()
        self._renew = asyncio.Event()
        self._lives = self._dropped = 0
        self._last_error = ""
        self.ready = asyncio.Event()

    # -- surface -----------------------------------------------------------------------------------------------------
    @property
    def peer(self) -> PeerId:
        """Our own peer id."""
        return self._me

    def peers(self) -> frozenset[PeerId]:
        """Peers connected at the last look, at most a second ago, or one and a half while all are there."""
        return self._connected

    def rate(self, peer: PeerId) -> float | None:
        """Bytes a second that one stream of `peer` brought lately; None: not measured."""
        return self._streams.links.rate(peer)

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialled, with our peer id; empty before the first life."""
        return tuple(f"{address}/p2p/{self._me}" for address in self._presence.addresses())

    def status(self) -> dict[str, Json]:
        """What `fishernet status` shows of the network."""
        return {
            "peer": self._me,
            "up": self._daemon is not None,
            "pid": self._daemon.pid if self._daemon is not None else None,
            "peers": sorted(self._connected),
            "missing": sorted(self._contacts.missing(self._connected)),
            "addresses": list(self.addresses()),
            "streams": len(self._streams),
            "refused_streams": self.guard.refused,
            "lives": self._lives,
            "dropped": self._dropped,
            "handler_errors": self._streams.handler_errors,
            "last_error": self._last_error,
            "relays": len(self._nat.relays),
            **self._contacts.status(),
            **(self._relaying.status() if self._relaying is not None else {}),
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
        self._contacts.want(peers)
        self._redialling.wake()

    async def dial(self, full: str) -> PeerId:
        """Connect to `/ip4/.../tcp/.../p2p/...` and keep the connection.

        Raises:
            Malformed: not such an address.
            PeerUnreachable: nobody of that name answers there now; it is tried again.
        """
        address, peer = self._note(full)
        daemon = self._daemon
        try:
            if daemon is None:
                raise SwarmDown("the network is down")
            await self._redialling.dial(daemon, peer, [address])
            await self._look(daemon)
        except _TROUBLE as e:
            self._redialling.wake()
            raise PeerUnreachable(f"couldn't dial {full}: {_cause(e)}") from None
        return peer

    async def where(self, peer: PeerId) -> tuple[str, ...]:
        """Where the connections of `peer` come from; empty when there is none."""
        if self._daemon is not None:
            with contextlib.suppress(*_TROUBLE):
                return await self._daemon.where(peer)
        return ()

    def add_peer(self, full: str) -> PeerId:
        """Keep a connection to the peer at `/ip4/.../tcp/.../p2p/...` from now on; it is dialled at once.

        Raises:
            Malformed: not such an address.
        """
        _, peer = self._note(full)
        self._redialling.wake()
        return peer

    async def forget_peer(self, peer: PeerId) -> None:
        """Hang up, and know nothing of `peer` any more; a member is wanted again when the feeds are read again."""
        self._contacts.forget(peer)
        if self._daemon is not None:
            with contextlib.suppress(*_TROUBLE):
                await self._daemon.disconnect(peer)
                await self._look(self._daemon)

    def use_relays(self, relays: Iterable[str]) -> None:
        """These are the relays that the charter names now, besides those of the configuration."""
        wanted = merged(relays)
        if wanted != self._charter_relays:  # asked with every entry that arrives
            before, self._charter_relays = self._nat, wanted
            self._renew_if(self._nat != before)

    def reconfigure(self, config: SwarmConfig) -> frozenset[str]:
        """Go on with `config`: peers, announced addresses and mDNS at once, listening and relays with a new life of p2pd.

        Returns the names of fields that differ and count at the next start of the node only.

        Raises:
            Malformed: an address is not one; nothing has changed.
        """
        config.check()
        old, before = self._config, self._nat
        self._config, later = config.live(old)
        for full in set(old.known) - set(config.known):
            self._contacts.unname(multiaddrs.split(full)[1])
        for full in config.known:
            self._note(full)
        self._presence.use(self._config)
        self._renew_if(old.listen != config.listen or self._nat != before)
        self._redialling.wake()
        return later

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
        if self.guard.banned(peer):
            raise PeerUnreachable(f"couldn't open {protocol} to {peer[-6:]}: it is banned here")
        async with contextlib.AsyncExitStack() as stack:
            try:
                reader, writer = await stack.enter_async_context(self._daemon.open(peer, protocol))
            except _TROUBLE as e:
                raise PeerUnreachable(f"couldn't open {protocol} to {peer[-6:]}: {_cause(e)}") from None
            yield await stack.enter_async_context(self._streams.stream(peer, reader, writer))

    # -- one life of p2pd --------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Live until cancelled.

        Raises:
            PortTaken: somebody else listens on our port at the first start.
            BadTransport: p2pd took another identity than ours.
        """
        self._config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lan = asyncio.create_task(self._presence.tell_lan(self.ready.wait))
        try:
            await self._lives_on()
        finally:
            lan.cancel()
            await asyncio.wait({lan})

    async def _lives_on(self) -> None:
        configured, failed = self._config.listen, 0
        listen = configured
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
            if cause is not None and not self._renew.is_set():
                self._trouble("life", cause)
                if isinstance(cause, PortTaken | BadTransport) and not self._lives:
                    raise cause
            failed = 0 if self._renew.is_set() or time.monotonic() - began > 10 else failed + 1
            if configured != self._config.listen:
                configured = listen = self._config.listen
            else:
                listen = endpoints.with_port(configured, self._presence.visible) if failed < 3 else configured
            await asyncio.sleep(min(0.1 * 2**failed, 5.0) if failed else 0)

    async def _live(self, listen: tuple[str, ...]) -> None:
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()  # a task group of the life before leaves one behind
        self._renew.clear()
        self._redialling.nat = nat = self._nat
        daemon = await P2pd.start(
            DaemonConfig(
                identity=self._config.identity,
                listen=listen,
                run_dir=self._config.run_dir,
                seal=rendezvous.Seal(self._key),
                nat=nat,
                answers=lambda peer, protocol: self.guard.answers(peer, protocol, known=self._trusts(peer)),
            )
        )
        try:
            if daemon.peer != self._me:
                raise BadTransport("couldn't start p2pd: it took another identity")
            for protocol, handler in self._handlers.items():
                await daemon.serve(protocol, self._streams.served(protocol, handler))
            if nat.flags(self._me)["relay"]:
                self._relaying = Relaying(daemon, self.guard, self._trusts, serve=nat.serve)
                await daemon.serve(HOP, self._relaying.hop)
            if task is not None and task.cancelling() > cancelled:
                raise asyncio.CancelledError  # hivemind swallows one that comes while it connects
            async with asyncio.TaskGroup() as jobs:
                self._daemon, self._jobs, self._presence.visible = daemon, jobs, daemon.visible
                told = self._presence.tell_dht(daemon, relays=bool(nat.relays))
                for job in (daemon.died(), self._watch(daemon), self._redialling.run(daemon), told):
                    jobs.create_task(job)
                for topic in self._topics:
                    jobs.create_task(self._hear(daemon, topic))
                self._lives += 1
                log.info("event=swarm-up peer=%s life=%d", self._me[-6:], self._lives)
                self.ready.set()
        finally:
            self.ready.clear()
            self._daemon = self._jobs = None
            self._streams.abort()
            await daemon.end()
            await self._streams.end()
            self._see(frozenset())

    async def _watch(self, daemon: P2pd) -> None:
        """End the life when p2pd is seen stopped twice (once may be ourselves, stopped with it), or is to be another one."""
        before = False
        while not (before and daemon.halted()):
            before = daemon.halted()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HALT_S):
                    await self._renew.wait()
                    raise SwarmDown("couldn't go on with p2pd: its settings have changed")
        raise SwarmDown("couldn't ask p2pd: it was stopped")

    async def _look(self, daemon: P2pd) -> frozenset[PeerId]:
        """See who is connected, and hang up on whom we banned; a p2pd that does not answer is frozen, and the life ends."""
        connected = await daemon.connected()
        for peer in self.guard.unwelcome(connected, before=self._connected, known=self._trusts):
            with contextlib.suppress(*_TROUBLE):
                await daemon.disconnect(peer)
        welcome = frozenset(peer for peer in connected if not self.guard.banned(peer))
        if daemon is self._daemon:
            self._see(welcome)
        return welcome

    def _see(self, connected: frozenset[PeerId]) -> None:
        if connected == self._connected:
            return
        if connected - self._connected:
            self._presence.met()
        if self._daemon is not None:
            for peer in self._connected - connected:
                self._daemon.lost(peer)
        self._connected = connected
        for changed in self._watchers:
            changed(connected)

    async def _hear(self, daemon: P2pd, topic: str) -> None:
        async for origin, data in daemon.announcements(topic):
            if len(data) <= MAX_ANNOUNCEMENT and self.guard.hears(origin, known=self._trusts(origin)):
                for announced in self._topics[topic]:
                    announced(data)

    # -- small things ------------------------------------------------------------------------------------------------
    def _trusts(self, peer: PeerId) -> bool:
        return self._contacts.trusted(peer)

    @property
    def _nat(self) -> Nat:
        return self._config.nat(self._charter_relays)

    def _note(self, full: str) -> tuple[str, PeerId]:
        address, peer = multiaddrs.split(full)
        self._contacts.name(peer, [address])
        return address, peer

    def _renew_if(self, changed: bool) -> None:
        if changed:
            self._renew.set()

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
