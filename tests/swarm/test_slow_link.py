"""Promises of a swarm with a member on a bad line: it takes part, and nobody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import pytest
from namespaces import Lab, unavailable
from peers import Node, homes, until

from node.network import p2pd, redialling
from protocol.ids import Digest, digest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]
SIZE = 64 << 10
EACH = 12


def named(record):
    """What an entry of this test says of its blob."""
    body = record.body.value() if record.body is not None else {}
    return (Digest(body["blob"]), body["size"]) if "blob" in body else None


async def started(stack, monkeypatch, node, host):
    """Enter `node` with its p2pd at `host`: Python stays here and speaks to it over unix sockets."""
    tied = p2pd.tied
    with monkeypatch.context() as patch:
        patch.setattr(p2pd, "tied", lambda command: [*host.prefix, *tied(command)])
        return await stack.enter_async_context(node)


async def not_from_here(address):
    """Where p2pd is, an address may open; where this process is, it does not."""
    return address


def address_at(node, host):
    return next(address for address in node.swarm.addresses() if f"/ip4/{host.address}/" in address)


def publish(node, n):
    """A contribution as far as the sync knows it: a blob, and an entry that names it."""
    data = random.Random(f"{node.home.name} {n}").randbytes(SIZE)
    node.append(blob=node.blobs.put(data), size=SIZE, n=n)
    return digest(data)


def test_member_on_a_slow_and_lossy_line_takes_part_and_nobody_waits_for_it(tmp_path, monkeypatch):
    """256 kbit/s, 300 ms there and back, 2 % of the packets lost."""

    monkeypatch.setattr(redialling, "_knock", not_from_here)

    async def swarm(lab):
        hosts = lab.hosts("a", "b", "slow")
        lab.link(hosts[2], rate_bit=256_000, delay_ms=150, loss=0.02)
        members = homes(tmp_path)
        async with contextlib.AsyncExitStack() as stack:
            nodes, known = [], []
            for home, host in zip(members, hosts, strict=True):
                node = Node(home, members, known=known, listen="/ip4/0.0.0.0/tcp/0", attached=named)
                await started(stack, monkeypatch, node, host)
                known = [*known, address_at(node, host)]
                nodes.append(node)
            a, b, slow = nodes
            await until(lambda: all(len(node.swarm.peers()) == 2 for node in nodes), limit_s=60)
            blobs = []
            for n in range(EACH):
                for node in (a, b):
                    blobs.append(publish(node, n))
                    await node.sync.announce()
                if n == 0:
                    blobs.append(publish(slow, n))
                    await slow.sync.announce()
                await asyncio.sleep(0.05)
            fetching = [asyncio.create_task(slow.sync.want_blob(name, SIZE)) for name in blobs]
            for node in (a, b):
                fetching += [asyncio.create_task(node.sync.want_blob(name, SIZE)) for name in blobs]
            began = time.monotonic()
            await until(lambda: a.size(members[1]) == b.size(members[0]) == EACH, limit_s=30)
            await until(lambda: all(node.blobs.has(name) for node in (a, b) for name in blobs), limit_s=60)
            quick = time.monotonic() - began
            assert not all(slow.blobs.has(name) for name in blobs), "they did not wait for it"
            await until(lambda: all(slow.blobs.has(name) for name in blobs), limit_s=240)
            await until(lambda: all(slow.size(home) == EACH for home in members[:2]), limit_s=60)
            took = time.monotonic() - began
            await asyncio.gather(*fetching)
            rate = a.swarm.rate(slow.swarm.peer)
            assert rate is not None
            assert rate < 64_000
            assert not any(node.forks for node in nodes)
            assert all(node.swarm.status()["lives"] == 1 for node in nodes)
            print(f"others {quick:.1f} s, slow member {took:.1f} s, measured {rate / 1000:.0f} kB/s")

    with Lab() as lab:
        asyncio.run(asyncio.wait_for(swarm(lab), 400))
