"""Promises of looking: a peer tells its clock, where it sees us and what opens there; nobody else is probed for anybody."""

from __future__ import annotations

import asyncio
import socket

import pytest
from peers import homes, live, swarm_of, until

from node.errors_network import NetworkError
from node.network.looking import LOOK, MAX_PORTS, Looking, greets
from protocol.addresses import port as port_of


def looking_of(end, *, allowed=lambda _peer: True, home=b"a home", **more):
    return Looking(end.swarm, home=home, where=end.swarm.where, allowed=allowed, **more)


@live
async def test_two_nodes_tell_each_other_clock_address_and_open_ports(tmp_path):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)
    asking = looking_of(a)
    looking_of(b, wall_ms=lambda: asking._wall_ms() + 90_000)
    async with a, b:
        await a.swarm.dial(b.address)
        await until(lambda: a.swarm.peers() == {b.swarm.peer})
        mine = port_of(a.address.split("/p2p/")[0])
        seen = await asking.ask(b.swarm.peer, [mine, 1])
        assert seen.opens == (True, False)
        assert seen.address.startswith("/ip4/127.0.0.1/tcp/")
        assert abs(seen.offset_ms - 90_000) <= seen.rtt_ms / 2 + 2, "within half the round trip"
        again = await asking.ask(b.swarm.peer, [mine])
        assert again.opens == (None,), "not tried again at once"
        assert (again.connections, again.other_s) == (1, None)
        asking._home = b"a copy.."
        assert (await asking.ask(b.swarm.peer, ())).other_s == 0, "another home spoke as this peer just now"
        async with a.swarm.open(b.swarm.peer, LOOK) as stream:
            await stream.write(bytes(8) + bytes([MAX_PORTS + 1]))
            with pytest.raises(NetworkError):
                await stream.read(8)


@live
async def test_who_is_no_member_is_told_nothing(tmp_path):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)
    asking = looking_of(a)
    looking_of(b, allowed=lambda _peer: False)
    async with a, b:
        await a.swarm.dial(b.address)
        await until(lambda: a.swarm.peers() == {b.swarm.peer})
        with pytest.raises(NetworkError):
            await asking.ask(b.swarm.peer, [])


def test_a_server_that_is_no_libp2p_node_or_says_nothing_is_not_open():
    async def body():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 50, b""):
                asking = asyncio.create_task(greets("127.0.0.1", port, within_s=0.5))
                peer, _ = await asyncio.to_thread(server.accept)
                with peer:
                    peer.sendall(said)
                    assert not await asking
        assert not await greets("127.0.0.1", 70_000)

    asyncio.run(body())
