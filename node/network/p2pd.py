"""One life of hivemind's go-libp2p daemon: start it, talk to it, end it. The only door to hivemind.

GossipSub is switched on by flags that hivemind does not expose; each control call has its own connection and closes it.
`DHTNode` runs in our loop on the same daemon. Knows nothing of healing, redialling or what travels; peers and bytes only.
Invariant: after `end` no process is left, and nobody waits for an answer of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import node.network.light  # isort: skip  # before anything of hivemind, so that torch stays out
from hivemind.dht.node import DHTID, DHTNode
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, P2PDaemonError, PeerID, p2p_daemon
from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2 as pb
from hivemind.utils.logging import HandlerMode, use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

from node.errors_network import PeerUnreachable, SwarmDown
from node.finding import rendezvous
from node.finding.relays import Nat
from node.network.tied import tied
from protocol.addresses import CIRCUIT, is_circuit, split
from protocol.ids import PeerId

LIGHT = node.network.light.LIGHT
Serve = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CALL_S = 5.0
_START_S = 20.0
_TURN_S, _TURNS = 0.25, 12
_P2P, _CIRCUIT = b"\xa5\x03", b"\xa2\x02"  # the codes 421 and 290 of multiaddr's table as varints
_MAX_RECORDS = 4096  # of strangers, in our part of the DHT

use_hivemind_log_handler(HandlerMode.NOWHERE)  # its records go where ours go
p2p_daemon.path = lambda package, name: resources.as_file(resources.files(package) / name)  # its own is deprecated


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """The identity file, the addresses to listen on, the private directory for sockets, who signs our record; relays."""

    identity: Path
    listen: tuple[str, ...]
    run_dir: Path
    seal: rendezvous.Seal
    nat: Nat = field(default_factory=Nat)
    answers: Callable[[PeerId, str], bool] = lambda _peer, _protocol: True  # whether a call of the DHT may be looked at


class _Process(P2P):  # type: ignore[misc]
    """hivemind's P2P with gossip, tied to our life, its sockets in our directory."""

    _UNIX_SOCKET_PREFIX = "/unix"
    _daemon_listen_maddr: Any = None  # a start that fails early has none to remove
    _client_listen_maddr: Any = None
    born: list[_Process]
    flags: dict[str, str | int]
    answers: Callable[[PeerId, str], bool]

    def __init__(self) -> None:
        super().__init__()
        self.born.append(self)  # so that a start that is cut short leaves no process

    async def add_protobuf_handler(self, name: str, handler: Any, kind: Any, **kwargs: Any) -> None:
        """The handlers of the DHT pass the same gate as our own."""

        async def gated(request: Any, context: Any) -> Any:
            if not self.answers(PeerId(context.remote_id.to_base58()), name):
                raise P2PDaemonError("too many calls")
            return await handler(request, context)

        await super().add_protobuf_handler(name, gated, kind, **kwargs)

    @classmethod
    def _make_process_args(cls, *args: object, **kwargs: Any) -> list[str]:
        ours = {"pubsub": 1, "gossipsubHeartbeatInterval": "1s", **cls.flags}
        return tied(P2P._make_process_args(*args, **(kwargs | ours)))


class P2pd:
    """A running daemon. Every method raises `SwarmDown` or `PeerUnreachable` (or an OSError) when it cannot do it."""

    def __init__(self, process: _Process, dht: Any) -> None:
        """Wrap what `start` made."""
        self._process, self._dht = process, dht
        self.peer = PeerId(process.peer_id.to_base58())
        self.visible = tuple(str(address) for address in process._visible_maddrs)
        self.pid: int = process._child.pid
        self._stat = f"/proc/{self.pid}/stat"

    @classmethod
    async def start(cls, config: DaemonConfig) -> P2pd:
        """Start p2pd and the DHT on it; leaves nothing behind when it fails or is cancelled.

        Raises:
            SwarmDown: it does not start.
        """
        prefix = f"/unix{config.run_dir.absolute()}/"
        flags = config.nat.flags(config.seal.peer)
        own = {"_UNIX_SOCKET_PREFIX": prefix, "born": [], "flags": flags, "answers": staticmethod(config.answers)}
        kind = type("_Life", (_Process,), own)
        try:
            async with asyncio.timeout(_START_S):
                process: _Process = await kind.create(  # type: ignore[attr-defined]
                    identity_path=str(config.identity),
                    host_maddrs=list(config.listen),
                    check_if_identity_free=False,  # it reads RSA keys only
                    nat_port_map=False,
                    auto_nat=False,
                    use_relay=False,
                    idle_timeout=30,  # ends a p2pd whose parent died before it connected
                    startup_timeout=_START_S,
                )
                node_id = DHTID.generate(source=process.peer_id.to_base58())
                dht = await DHTNode.create(
                    p2p=process, node_id=node_id, record_validator=_Validator(config.seal), cache_size=_MAX_RECORDS
                )
                dht.protocol.storage.maxsize = _MAX_RECORDS
        except BaseException as e:
            for made in kind.born:  # type: ignore[attr-defined]
                await _end(made)
            if isinstance(e, (P2PDaemonError, TimeoutError)):
                raise SwarmDown(f"couldn't start p2pd: {str(e) or 'it does not answer'}") from None
            raise
        return cls(process, dht)

    async def died(self) -> None:
        """Wait until the process ends (its return code may be a guess of asyncio's), then raise SwarmDown."""
        await self._process._child.wait()
        raise SwarmDown("couldn't keep p2pd: it ended")

    def halted(self) -> bool:
        """Whether the kernel says that the process is stopped (SIGSTOP); False where it says nothing."""
        try:
            with open(self._stat, "rb", buffering=0) as file:  # looked at all the time: a Path would cost twice that
                stat = file.read(4096)
        except OSError:
            return False
        return stat.rpartition(b") ")[2][:1] in (b"T", b"t")

    async def end(self) -> None:
        """Kill the process and settle every task and call that hangs on it."""
        self._dht.is_alive = False  # its own shutdown() would wait for ever on a dead p2pd
        await _end(self._process)

    async def connected(self) -> frozenset[PeerId]:
        """Peers with a connection.

        Raises:
            SwarmDown: no answer in three seconds of our own loop: turns are counted, which a machine that has no time for us
                does not give, so that a p2pd is not taken for frozen where everything is slow.
        """
        asking = asyncio.ensure_future(self._peers())
        try:
            for _ in range(_TURNS):
                if (await asyncio.wait({asking}, timeout=_TURN_S))[0]:
                    return asking.result()
        finally:
            asking.cancel()
        raise SwarmDown(f"couldn't ask p2pd: no answer for {_TURNS * _TURN_S:.0f} s")

    async def _peers(self) -> frozenset[PeerId]:
        async with self._control("LIST_PEERS") as (response, _, _):
            return frozenset(name_of(peer.id) for peer in response.peers)

    async def where(self, peer: PeerId) -> tuple[str, ...]:
        """The far ends of our connections with `peer`, as we see them."""
        async with asyncio.timeout(CALL_S), self._control("LIST_PEERS") as (response, _, _):
            return tuple(a for found in response.peers if name_of(found.id) == peer for a in _texts(found.addrs))

    async def seen_at(self) -> tuple[str, ...]:
        """Where we can be dialled as p2pd knows by now: addresses it listens on, and circuits of its reservations."""
        async with self._control("IDENTIFY") as (response, _, _):
            return tuple(_texts(response.identify.addrs))

    def lost(self, peer: PeerId) -> None:
        """`peer` is gone: the DHT is not to ask it, which would dial it, and p2pd leaves alone whom it dialled in vain."""
        table = self._dht.protocol.routing_table
        node = table.get(peer_id=PeerID.from_base58(peer))
        if node is not None:
            with contextlib.suppress(KeyError):
                del table[node]

    async def find(self, peer: PeerId) -> tuple[str, ...]:
        """Where our neighbours (and theirs) are connected with `peer`, unsigned; empty when none is. p2pd may dial it."""
        request = pb.DHTRequest(
            type=pb.DHTRequest.FIND_PEER, peer=PeerID.from_base58(peer).to_bytes(), timeout=int(CALL_S)
        )
        async with asyncio.timeout(CALL_S), self._control("DHT", dht=request) as (response, _, _):
            return tuple(_texts(response.dht.peer.addrs))

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`."""
        request = pb.DisconnectRequest(peer=PeerID.from_base58(peer).to_bytes())
        async with asyncio.timeout(CALL_S), self._control("DISCONNECT", disconnect=request):
            pass

    async def connect(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Dial `peer` and put it into the DHT's routing table."""
        name, raw = PeerID.from_base58(peer), [_bytes_of(address) for address in addresses]
        request = pb.ConnectRequest(peer=name.to_bytes(), addrs=raw, timeout=int(CALL_S))
        async with asyncio.timeout(CALL_S + 1):
            async with self._control("CONNECT", connect=request):
                pass
            await self._dht.protocol.call_ping(name)

    async def publish(self, topic: str, data: bytes) -> None:
        """Announce `data`; over 1 MiB it would silently reach nobody."""
        request = pb.PSRequest(type=pb.PSRequest.PUBLISH, topic=topic, data=data)
        async with asyncio.timeout(CALL_S), self._control("PUBSUB", pubsub=request):
            pass

    async def announcements(self, topic: str) -> AsyncIterator[tuple[PeerId, bytes]]:
        """Every announcement on `topic` with the peer that made it (p2pd has checked its signature; others may have relayed it).

        The open connection is the subscription.
        """
        request = pb.PSRequest(type=pb.PSRequest.SUBSCRIBE, topic=topic)
        async with self._control("PUBSUB", pubsub=request) as (_, reader, _):
            while True:
                try:
                    await read_pbmsg_safe(reader, message := pb.PSMessage())
                except EOFError:
                    raise SwarmDown("couldn't hear announcements: p2pd hung up") from None
                yield name_of(getattr(message, "from")), message.data

    @contextlib.asynccontextmanager
    async def open(
        self, peer: PeerId, protocol: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A stream to `peer`."""
        name = PeerID.from_base58(peer).to_bytes()
        request = pb.StreamOpenRequest(peer=name, proto=[protocol], timeout=int(CALL_S))
        async with self._control("STREAM_OPEN", streamOpen=request) as (_, reader, writer):
            yield reader, writer

    async def serve(self, protocol: str, serve: Serve) -> None:
        """Hand every stream of `protocol` to `serve`, which closes it and raises nothing."""

        async def handler(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve(PeerId(info.peer_id.to_base58()), reader, writer)

        async with asyncio.timeout(CALL_S):
            await self._process.add_binary_stream_handler(protocol, handler)

    async def put_record(self, transport: str, value: bytes) -> None:
        """Store our own record at the nodes responsible for it."""
        async with asyncio.timeout(CALL_S):
            expires = time.time() + rendezvous.LIFETIME_S
            await self._dht.store(rendezvous.key(transport), value, expires, subkey=transport)

    async def get_record(self, transport: str) -> object:
        """The record of the peer with that transport key, its signature checked; None when there is none."""
        async with asyncio.timeout(CALL_S):
            found = await self._dht.get(rendezvous.key(transport), latest=True)
        record = found.value.get(transport) if found is not None and hasattr(found.value, "get") else None
        return None if record is None else record.value

    @contextlib.asynccontextmanager
    async def _control(
        self, kind: str, **fields: Any
    ) -> AsyncIterator[tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self._process._daemon_listen_maddr["unix"])
        try:
            try:
                async with asyncio.timeout(CALL_S + 1):
                    await write_pbmsg(writer, pb.Request(type=getattr(pb.Request, kind), **fields))
                    await read_pbmsg_safe(reader, response := pb.Response())
                raise_if_failed(response)
            except P2PDaemonError as e:
                raise PeerUnreachable(f"couldn't do {kind.lower()}: {str(e)[:200]}") from None
            except EOFError:
                raise SwarmDown("couldn't ask p2pd: it hung up") from None
            yield response, reader, writer
        finally:
            writer.close()


class _Validator(RecordValidatorBase):  # type: ignore[misc]
    """`rendezvous.Seal` in the form the DHT asks for."""

    def __init__(self, seal: rendezvous.Seal) -> None:
        self._seal = seal

    def validate(self, record: DHTRecord) -> bool:
        return self._seal.check(_entry(record), time.time())

    def sign_value(self, record: DHTRecord) -> bytes:
        return self._seal.sign(_entry(record))

    def strip_value(self, record: DHTRecord) -> bytes:
        return self._seal.strip(record.value)


@functools.lru_cache(4096)
def name_of(peer: bytes) -> PeerId:
    """The base58 name of a binary peer id; making it costs 50 us."""
    return PeerId(PeerID(peer).to_base58())


def binary(peer: PeerId) -> bytes:
    """The binary form of a peer id."""
    return bytes(PeerID.from_base58(peer).to_bytes())


def _bytes_of(address: str) -> bytes:
    """A checked address in binary; hivemind writes the relay of a circuit as a CID, which p2pd does not read."""
    if not is_circuit(address):
        return bytes(Multiaddr(address).to_bytes())
    machine, relay = split(address.removesuffix(CIRCUIT))
    name = binary(relay)
    return bytes(Multiaddr(machine).to_bytes()) + _P2P + bytes((len(name),)) + name + _CIRCUIT


def _texts(addresses: Iterable[bytes]) -> Iterable[str]:
    """Multiaddrs as text; those of a kind that hivemind does not know are left out."""
    for address in addresses:
        with contextlib.suppress(ValueError):
            yield str(Multiaddr(address))


def _entry(record: DHTRecord) -> rendezvous.Entry:
    return rendezvous.Entry(
        key=record.key, subkey=record.subkey, value=record.value, expires=float(record.expiration_time)
    )


async def _end(process: _Process) -> None:
    """SIGKILL: p2pd keeps no state, and a frozen one ignores SIGTERM."""
    for _ in range(4):
        await asyncio.sleep(0)  # a listening task that is cancelled in its first steps would leak its socket
    control = getattr(process._client, "control", None)
    tasks = [process._reader_task, process._listen_task]
    tasks += [getattr(control, "_read_task", None), getattr(control, "_write_task", None)]
    tasks += getattr(control, "_handler_tasks", {}).values()
    for call in list(getattr(control, "_pending_calls", {}).values()):
        if not call.done():
            call.set_exception(P2PDaemonError("p2pd ended"))  # it would wait for ever
            call.exception()
    process._terminate()
    if process._child is not None:
        with contextlib.suppress(ProcessLookupError):
            process._child.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_S):
                await process._child.wait()
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running, timeout=CALL_S)
    for task in running:
        if task.done() and not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it
