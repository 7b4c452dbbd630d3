"""A network in memory, in simulated time: streams with a delay and a rate, peers that die, stall, come back or refuse protocols.

The ends are real (`Desk`, `Asker`, `Fetcher`, blob stores on disk); only what lies between them is simulated. Use it inside
`node.simulation.virtual.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from peers import COLLECTIVE, Home

from ledger.store import Store
from node.errors_network import PeerUnreachable, StreamEnded
from node.finding.backoff import Backoff
from node.syncing.blobs import BlobStore
from node.syncing.desk import Desk
from node.syncing.exchange import Asker
from node.syncing.fetching import Fetcher
from node.syncing.rules import SyncRules
from protocol import binding, wire
from protocol.ids import digest

DEADLINE_S = 20.0
UNIT = 16 * 1024


def now():
    return asyncio.get_running_loop().time()


class _Flow:
    """One direction of a stream."""

    def __init__(self):
        self.data, self.ended, self.news = bytearray(), False, asyncio.Event()

    def end(self):
        self.ended = True
        self.news.set()


class End:
    """One end of a stream, as `node.ports.Stream` has it."""

    def __init__(self, peer, owner, inward, outward, heard=None):
        self.peer, self._owner, self._in, self._out, self._heard = peer, owner, inward, outward, heard

    async def read(self, size, *, within_s=None):
        try:
            async with asyncio.timeout(within_s or DEADLINE_S):
                while len(self._in.data) < size:
                    if self._in.ended:
                        raise StreamEnded(f"couldn't read from {self.peer[-6:]}: EOFError")
                    self._in.news.clear()
                    await self._in.news.wait()
        except TimeoutError:
            self.close()
            raise StreamEnded(f"couldn't read from {self.peer[-6:]}: nothing came") from None
        data = bytes(self._in.data[:size])
        del self._in.data[:size]
        return data

    async def write(self, data):
        if self._heard is not None:
            self._heard(data)
        for start in range(0, len(data), UNIT):
            piece = data[start : start + UNIT]
            await self._owner.sending(len(piece))
            if self._out.ended:
                raise StreamEnded(f"couldn't write to {self.peer[-6:]}: it is closed")
            self._out.data += piece
            self._out.news.set()
            self._owner.sent += len(piece)

    def close(self):
        self._in.end()
        self._out.end()


class Port:
    """The network as one member sees it. `rate` is what it can send in bytes a second, `delay` what each opening takes."""

    def __init__(self, net, home, *, rate=50e6, delay=0.002):
        self.net, self.home, self.peer = net, home, home.peer
        self.rate, self.delay, self.up, self.stalled, self.dies_after = rate, delay, True, False, None
        self.heard = lambda _protocol, _frame: None
        self.handlers, self.refuses, self.ends, self.sent, self.opened = {}, set(), set(), 0, Counter()
        self._line = asyncio.Lock()
        net.ports[self.peer] = self

    def peers(self):
        return (
            frozenset(p for p, port in self.net.ports.items() if port.up and p != self.peer) if self.up else frozenset()
        )

    def add_handler(self, protocol, handler):
        self.handlers[protocol] = handler

    async def sending(self, count):
        while self.stalled:
            await asyncio.sleep(0.1)
        async with self._line:
            await asyncio.sleep(count / self.rate)
        if self.dies_after is not None and self.sent >= self.dies_after:
            self.kill()

    def kill(self):
        """The process is gone; whoever reads from it sees the end of the stream."""
        self.up, self.dies_after = False, None
        for end in list(self.ends):
            end.close()

    def revive(self):
        self.up = True

    @contextlib.asynccontextmanager
    async def open(self, peer, protocol):
        other = self.net.ports.get(peer)
        await asyncio.sleep(self.delay)
        if other is None or not (other.up and self.up) or protocol in other.refuses or protocol not in other.handlers:
            raise PeerUnreachable(f"couldn't open {protocol} to {peer[-6:]}")
        other.opened[protocol] += 1
        there, back = _Flow(), _Flow()
        heard = lambda frame: other.heard(protocol, frame)  # noqa: E731
        mine, theirs = End(peer, self, back, there, heard), End(self.peer, other, there, back)
        other.ends.add(theirs)
        task = asyncio.create_task(self._serve(other, protocol, theirs))
        try:
            yield mine
        finally:
            mine.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            other.ends.discard(theirs)

    @staticmethod
    async def _serve(other, protocol, end):
        with contextlib.suppress(StreamEnded):
            await other.handlers[protocol](end)
        end.close()


class Net:
    """All members, with a seat each."""

    def __init__(self, folder: Path):
        self.folder, self.ports, self.members, self.order = folder, {}, {}, []
        self._store = Store.open(folder / "feeds.db")
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._store.close)

    def member(self, name, **link):
        home = Home(self.folder, name)
        port = Port(self, home, **link)
        self.members[home.peer] = home.member
        return Member(self, home, port, self._store)

    def close(self):
        self._stack.close()


@dataclass
class Asked:
    """What a donor was asked for."""

    parts: list = field(default_factory=list)  # (digest, offset, length)
    whole: list = field(default_factory=list)  # digests, by the older protocol
    have: int = 0


class Member:
    """A member that serves its blobs, and fetches those of others."""

    def __init__(self, net, home, port, store):
        self.net, self.home, self.port = net, home, port
        self.blobs, self.faults, self.asked = BlobStore(home.folder / "blobs"), [], Asked()
        rules = SyncRules(
            allowed=lambda member: member in net.members.values(), on_records=lambda _member, _records: None
        )

        async def coming(_feed, _start, _asker):
            """No feeds move here."""

        self.desk = Desk(
            store,
            self.blobs,
            collective=COLLECTIVE,
            binding=binding.verify(home.binding),
            rules=rules,
            met=lambda _binding: None,
            coming=coming,
        )
        self.desk.open(port)
        port.heard = self._heard
        self.start()

    @property
    def peer(self):
        return self.port.peer

    @property
    def member(self):
        return self.home.member

    def start(self, seed=1):
        """A new life of the fetching half: nothing is remembered but the disk."""
        self.backoff = Backoff(now)
        self.asker = Asker(self.port, COLLECTIVE, binding.verify(self.home.binding))
        self.fetcher = Fetcher(
            self.asker,
            self.blobs,
            self.backoff,
            self._holders,
            member_of=self.net.members.get,
            fault=lambda peer, fault: self.faults.append((peer, fault)),
            clock=now,
            rng=random.Random(f"{self.home.name} {seed}"),
        )

    def _holders(self, prefer):
        known = [peer for peer in self.port.peers() if peer in self.net.members]
        return sorted(known, key=lambda peer: (self.net.members[peer] not in prefer, peer))

    def _heard(self, protocol, frame):
        """Write down what somebody asks here."""
        request = wire.parse_request(frame[wire.HEADER :], max_bytes=wire.max_request(protocol))
        match request:
            case wire.PartRequest():
                self.asked.parts.append((request.digest, request.offset, request.length))
                self.net.order.append(request.digest)
            case wire.HaveRequest():
                self.asked.have += 1
            case wire.BlobRequest():
                self.asked.whole.append(request.digest)

    def lie(self, data, at=0):
        """Hold other bytes of the right length under the digest of `data`: one byte at `at` differs."""
        name = self.blobs.put(data)
        self.blobs.path(name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        return name

    async def want(self, data, **more):
        """Fetch the blob of `data`, and check it."""
        path = await self.fetcher.want(digest(data), len(data), max_bytes=1 << 30, **more)
        assert path.read_bytes() == data
