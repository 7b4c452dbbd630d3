"""Peers that mean harm, made of the node's own swarm and of raw sockets, and an honest node with its guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peers import COLLECTIVE, Home, Node, Running

from node.errors_network import PeerUnreachable, StreamEnded
from node.guarding.growth import Growth
from node.guarding.guard import Guard, Limits
from node.network.looking import LOOK, Looking
from node.syncing.exchange import read_frame
from protocol import binding, wire
from protocol.addresses import port
from protocol.errors import Refused
from protocol.ids import Digest, digest

# What p2pd itself serves to anybody: gossip, the DHT of IPFS, identify, ping, relaying; and hivemind's DHT.
LIBP2P = (
    "/meshsub/1.1.0", "/meshsub/1.0.0", "/floodsub/1.0.0", "/ipfs/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0", "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop", "/libp2p/autonat/1.0.0",
    "/libp2p/dcutr", "DHTProtocol.rpc_store", "DHTProtocol.rpc_find", "DHTProtocol.rpc_ping", LOOK,
)  # fmt: skip
_SOON_S = 0.3


def guarded(home: Home, members, *, limits: Limits | None = None, growth: Growth | None = None, **more) -> Node:
    """A node with the guard wired as `node.parts` does it."""
    guard = Guard(limits or Limits())
    rules = {"room": growth.room, "took": growth.took} if growth is not None else {}
    node = Node(
        home,
        members,
        guard=guard,
        fault=guard.fault,
        faulty=guard.blame,
        banned=lambda peer, member: guard.banned(peer) or (member is not None and guard.banned_member(member)),
        spend=guard.spend,
        hold=guard.hold,
        **rules,
        **more,
    )
    guard.member_of = node.sync.member_of

    async def nowhere(_peer):
        return ()

    mark = home.name.encode()
    Looking(node.swarm, home=mark, where=nowhere, allowed=lambda peer: node.sync.member_of(peer) is not None)
    return node


def requests(bound: binding.Binding, member: str, blob: str) -> dict[str, wire.Request]:
    """One request of each kind, by protocol."""
    who = {"collective": COLLECTIVE, "binding": bound}
    made = {
        wire.HEADS: wire.HeadsRequest(**who),
        wire.CHANGES: wire.ChangesRequest(**who, since="", have=b""),
        wire.FEED: wire.FeedRequest(**who, member=member, start=0),
        wire.RANGE: wire.RangeRequest(**who, member=member, start=0, attach=1 << 16),
        wire.FOLLOW: wire.FollowRequest(**who, start=0, attach=1 << 16),
        wire.BLOB: wire.BlobRequest(**who, digest=Digest(blob), offset=0),
        wire.PART: wire.PartRequest(**who, digest=Digest(blob), offset=0, length=10),
        wire.HAVE: wire.HaveRequest(**who, digests=(Digest(blob),)),
    }
    assert made.keys() == wire.KINDS.keys(), "a protocol that these tests do not know"
    return made


def garbage(rng: random.Random, bound: binding.Binding, foreign: binding.Binding, member: str) -> Iterator[bytes]:
    """What no honest node sends: lengths that lie, ranges without end, bindings of others, noise, half a frame."""
    good = [wire.frame(request.to_bytes()) for request in requests(bound, member, digest(b"none")).values()]
    replayed = [wire.frame(request.to_bytes()) for request in requests(foreign, member, digest(b"none")).values()]
    who = {"collective": COLLECTIVE, "binding": bound}
    endless = (
        wire.FeedRequest(**who, member=member, start=2**53 - 1),
        wire.BlobRequest(**who, digest=digest(b"none"), offset=2**53 - 1),
        wire.HeadsRequest(collective=digest(b"another"), binding=bound),
    )
    yield from (b"\xff\xff\xff\xff" + bytes(1000), b"\0\0\0\x05hell", b"\x7f" + bytes(70_000))
    yield from (wire.frame(rng.randbytes(n)) for n in (0, 1, 100, 8000))
    yield from replayed
    yield from (wire.frame(request.to_bytes()) for request in endless)
    for each in good:
        yield each[:-1] + bytes([each[-1] ^ 1])
        yield each[: len(each) // 2]
    yield rng.randbytes(100_000)


async def throw(attacker: Running, peer, protocol: str, piece: bytes, *, wait_s: float = _SOON_S) -> bytes:
    """Send it on a stream of its own; what came back, at most a frame."""
    with contextlib.suppress(PeerUnreachable, StreamEnded, Refused, TimeoutError):
        async with asyncio.timeout(wait_s + 5), attacker.swarm.open(peer, protocol) as stream:
            await stream.write(piece)
            async with asyncio.timeout(wait_s):
                return await read_frame(stream, wire.MAX_PAGE + 1)
    return b""


async def noise(port: int, count: int, *, size: int = 4096) -> None:
    """Raw connections to the listening port that send random bytes, half of them behind the hello of multistream."""
    hello = b"\x13/multistream/1.0.0\n"

    async def one(n: int) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write((hello if n % 2 else b"") + os.urandom(size))
                    await writer.drain()
                    await reader.read(1000)
                finally:
                    writer.close()

    await asyncio.gather(*(one(n) for n in range(count)))


# -- processes of their own, so that memory and processor time can be told apart -----------------------------------------------
async def stand(folder: Path) -> None:
    """A node to be attacked: prints its address and what it weighs, then serves until it is killed."""
    members = [Home(folder / "victim", name) for name in "abc"]
    async with guarded(members[0], members) as node:
        for n in range(300):
            node.append(n=n, text="x" * 500)
        blob = node.blobs.put(bytes(4 << 20))
        print(node.address, node.pid, blob, flush=True)
        while True:
            await asyncio.sleep(1)
            print(node.swarm.guard.status(), flush=True)


async def attack(folder: Path, address: str, blob: str, seconds: float) -> None:
    """Everything at once, for some seconds: a stranger, a member that turned, and noise on the port."""
    stranger, turned, own = Home(folder / "attack", "x"), Home(folder / "attack", "c"), Home(folder / "attack", "a")
    from peers import swarm_of

    x, c = swarm_of(stranger), swarm_of(turned)
    end, rng = time.monotonic() + seconds, random.Random(3)
    counts: dict[str, int] = dict.fromkeys(("thrown", "asked", "held", "gossip", "noise"), 0)
    async with x, c:
        peer = await x.swarm.dial(address)
        await c.swarm.dial(address)
        pieces = list(garbage(rng, binding.verify(stranger.binding), binding.verify(turned.binding), own.member))
        good = requests(binding.verify(turned.binding), own.member, blob)

        async def again(what: str, pause: float, do) -> None:
            while time.monotonic() < end:
                with contextlib.suppress(PeerUnreachable, StreamEnded, Refused, TimeoutError):
                    await do()
                counts[what] += 1
                await asyncio.sleep(pause)

        async def thrown() -> None:
            protocol = rng.choice((*wire.KINDS, *LIBP2P))
            await throw(x, peer, protocol, rng.choice(pieces), wait_s=0.1)

        async def asked() -> None:  # as a member may, as fast as it can
            kind = rng.choice(list(good))
            await throw(c, peer, kind, wire.frame(good[kind].to_bytes()), wait_s=1)

        async def held() -> None:  # asks for a whole page or blob and reads nothing of it
            async with c.swarm.open(peer, wire.BLOB) as stream:
                await stream.write(wire.frame(good[wire.BLOB].to_bytes()))
                await asyncio.sleep(5)

        async def gossip() -> None:
            await rng.choice((x, c)).swarm.publish(wire.topic(COLLECTIVE), rng.randbytes(1000))

        async with asyncio.TaskGroup() as jobs:
            for what, do, many, pause in (
                ("thrown", thrown, 16, 0.0),
                ("asked", asked, 16, 0.0),
                ("held", held, 40, 0.0),
                ("gossip", gossip, 2, 0.005),
                ("noise", lambda: noise(port(address.partition("/p2p/")[0]), 10), 2, 0.05),
            ):
                for _ in range(many):
                    jobs.create_task(again(what, pause, do))
    print(counts, flush=True)


if __name__ == "__main__":
    role, place, *rest = sys.argv[1:]
    with contextlib.suppress(KeyboardInterrupt):
        if role == "stand":
            asyncio.run(stand(Path(place)))
        else:
            asyncio.run(attack(Path(place), rest[0], rest[1], float(rest[2])))
