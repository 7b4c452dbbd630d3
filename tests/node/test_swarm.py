"""Promises of the swarm over real p2pd daemons on loopback: it heals, it is bounded, it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from peers import Home, homes, live, swarm_of, until

from node.errors_network import BadTransport, PeerUnreachable, PortTaken, StreamEnded
from node.network import links
from node.network.swarm import MAX_ANNOUNCEMENT, Swarm, SwarmConfig
from protocol.errors import Malformed

ECHO = "/test/echo/1"


async def echo(stream):
    await stream.write(await stream.read(5))


async def echoes(a, b):
    """Whether `b` answers `a` on a stream."""
    with contextlib.suppress(PeerUnreachable, StreamEnded):
        async with a.swarm.open(b.swarm.peer, ECHO) as stream:
            await stream.write(b"hello")
            return await stream.read(5) == b"hello"
    return False


async def until_echo(a, b, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not await echoes(a, b):
        assert time.monotonic() < deadline, "no stream in time"
        await asyncio.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that nobody has reaped yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_daemon_side_import_has_no_torch():
    parts = "node.syncing.sync, node.network.swarm, node.network.p2pd"
    script = f"import {parts}, sys; print(node.network.p2pd.LIGHT, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


@live
async def test_streams_and_announcements_flow_and_all_of_it_passes_the_tap(tmp_path):
    left, right = homes(tmp_path, "ab")
    tapped, heard = [], []
    a, b = swarm_of(left, tap=tapped.append), swarm_of(right)
    for end in (a, b):
        end.swarm.add_handler(ECHO, echo)
    a.swarm.subscribe("t", heard.append)
    b.swarm.subscribe("t", heard.append)
    async with a, b:
        assert await b.swarm.dial(a.address) == a.swarm.peer
        await until(lambda: a.swarm.peers() == {b.swarm.peer})
        await until_echo(a, b)
        await until_echo(b, a)
        while len(heard) < 2:  # both ends, once the mesh knows them
            assert await a.swarm.publish("t", b"announced")
            await asyncio.sleep(0.2)
        late = []
        b.swarm.subscribe("late", late.append)  # while it runs
        while not late:
            await a.swarm.publish("late", b"later")
            await asyncio.sleep(0.1)
        assert {b"hello", b"announced", b"later"} <= set(tapped)
        assert any(b'"addresses"' in piece for piece in tapped)  # the rendezvous record
        with pytest.raises(ValueError, match="limit"):
            await a.swarm.publish("t", b"x" * (MAX_ANNOUNCEMENT + 1))
        await a.swarm._daemon.publish("late", b"x" * 100_000)  # a stranger has no such scruples
        await a.swarm.publish("late", b"after")
        await until(lambda: b"after" in late)
        assert max(map(len, late)) <= MAX_ANNOUNCEMENT


@live
async def test_p2pd_killed_is_healed(tmp_path):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)
    for end in (a, b):
        end.swarm.add_handler(ECHO, echo)
    async with a, b:
        await b.swarm.dial(a.address)
        await a.swarm.dial(b.address)  # whoever comes back dials
        for turn in range(2):
            address, pid = a.address, a.pid
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: a.pid not in (None, pid))
            await until_echo(a, b)
            await until_echo(b, a)
            assert time.monotonic() - began < 10
            assert a.address == address  # others remember the port
            assert a.swarm.status()["lives"] == turn + 2


@live
async def test_frozen_p2pd_is_healed(tmp_path):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)
    a.swarm.add_handler(ECHO, echo)
    async with a, b:
        await b.swarm.dial(a.address)
        frozen = a.pid
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: a.pid not in (None, frozen))
        assert not alive(frozen)
        await until_echo(b, a)


@live
async def test_no_process_is_left(tmp_path):
    (home,) = homes(tmp_path, "a")
    a = swarm_of(home)
    async with a:
        pid, run_dir = a.pid, a.run_dir
        assert alive(pid)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert not alive(pid)
    assert not run_dir.exists()
    for delay in (0.01, 0.05, 0.15, 0.3, None):  # stopped while it starts
        b = swarm_of(home)
        b.swarm.add_handler(ECHO, echo)
        task = asyncio.create_task(b.swarm.run())
        if delay is None:
            await until(lambda b=b: any(b.run_dir.glob("p2pclient-*.sock")), step_s=0.0)
        else:
            await asyncio.sleep(delay)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        shutil.rmtree(b.run_dir)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"p2pd" in Path(f"/proc/{pid}/cmdline").read_bytes() and alive(int(pid))]


def test_killed_node_leaves_no_process(tmp_path):
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
from pathlib import Path
from peers import Home, swarm_of
async def main():
    async with swarm_of(Home(Path({str(tmp_path)!r}), "a")) as a:
        print(a.pid, a.run_dir, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        number, run_dir = child.stdout.readline().decode().split()
        pid = int(number)
        assert alive(pid)
        child.kill()
    deadline = time.monotonic() + 5
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shutil.rmtree(run_dir)


@live
async def test_port_in_use_is_said_and_nothing_starts(tmp_path):
    (home,) = homes(tmp_path, "a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        a = swarm_of(home, listen=f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
        with pytest.raises(PortTaken) as caught:
            await a.swarm.run()
        assert "node.toml" in caught.value.hint
    a.run_dir.rmdir()


def test_unusable_identity_path_or_address_is_said_before_anything_starts(tmp_path):
    (home,) = homes(tmp_path, "a")
    good = {"identity": home.identity, "listen": ("/ip4/127.0.0.1/tcp/0",), "run_dir": tmp_path}
    (tmp_path / "short.key").write_bytes(home.identity.read_bytes()[:36])
    for wrong, kind in (
        ({"identity": tmp_path / "none.key"}, BadTransport),
        ({"identity": tmp_path / "short.key"}, BadTransport),
        ({"run_dir": tmp_path / ("x" * 90)}, BadTransport),
        ({"listen": ("/ip4/127.0.0.1/udp/1",)}, Malformed),
        ({"known": ("/ip4/127.0.0.1/tcp/1",)}, Malformed),
        ({"announce": ("/ip4/999.0.0.1/tcp/1",)}, Malformed),
    ):
        with pytest.raises(kind):
            Swarm(SwarmConfig(**{**good, **wrong}))


@live
async def test_peer_that_moved_is_found_by_what_it_signed_in_the_dht(tmp_path):
    one, two, three = homes(tmp_path)
    a, c = swarm_of(one), swarm_of(three)
    a.swarm.add_handler(ECHO, echo)
    async with a:
        b = swarm_of(two, known=[a.address])
        async with b:
            first = b.address
            await until(lambda: b.swarm.peer in a.swarm.peers())
            await a.swarm.dial(b.address)  # from now on a wants b, at this address
        await until(lambda: not a.swarm.peers())
        async with c:
            await c.swarm.dial(a.address)
            again = swarm_of(two, known=[c.address])
            again.swarm.add_handler(ECHO, echo)
            async with again:
                assert again.address != first
                await until(lambda: again.swarm.peer in a.swarm.peers())
                await until_echo(a, again)


@live
async def test_addresses_are_remembered_over_a_restart(tmp_path):
    one, two = homes(tmp_path, "ab")
    book = tmp_path / "addresses.json"
    a = swarm_of(one)
    async with a:
        b = swarm_of(two, book=book)
        async with b:
            await b.swarm.dial(a.address)
        again = swarm_of(two, book=book)
        again.swarm.want([one.peer])
        async with again:
            await until(lambda: again.swarm.peers() == {one.peer})


@live
async def test_handler_that_fails_costs_one_stream(tmp_path, caplog):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)

    async def fails(stream):
        raise RuntimeError("a fault of ours")

    a.swarm.add_handler("/test/fails/1", fails)
    a.swarm.add_handler(ECHO, echo)
    async with a, b:
        await b.swarm.dial(a.address)
        async with b.swarm.open(a.swarm.peer, "/test/fails/1") as stream:
            with pytest.raises(StreamEnded):
                await stream.read(1)
        with pytest.raises(PeerUnreachable):
            async with b.swarm.open(a.swarm.peer, "/test/unknown/1"):
                pass
        await until_echo(b, a)
        assert a.swarm.status()["handler_errors"] == 1


@live
async def test_one_peer_cannot_take_every_slot_and_a_stalled_one_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "SLACK_S", 1.5)  # of a peer that nothing is known of
    one, two, three = homes(tmp_path)
    a, greedy, other = swarm_of(one), swarm_of(two), swarm_of(three)
    a.swarm.add_handler(ECHO, echo)
    async with a, greedy, other:
        await greedy.swarm.dial(a.address)
        await other.swarm.dial(a.address)
        async with contextlib.AsyncExitStack() as held:
            for _ in range(12):  # opened and never written to
                await held.enter_async_context(greedy.swarm.open(a.swarm.peer, ECHO))
            await until(lambda: a.swarm.status()["refused_streams"] >= 4)
            await until_echo(other, a, 1.0)
            await until(lambda: a.swarm.status()["streams"] == 0, 5)
        await until_echo(greedy, a)


@live
async def test_what_cannot_be_sent_is_dropped_and_counted(tmp_path):
    (home,) = homes(tmp_path, "a")
    a = swarm_of(home)
    assert not await a.swarm.publish("t", b"nobody is there")
    assert a.swarm.status()["dropped"] == 1
    with pytest.raises(PeerUnreachable):
        await a.swarm.dial(f"/ip4/127.0.0.1/tcp/1/p2p/{Home(tmp_path, 'b').peer}")
    with pytest.raises(PeerUnreachable):
        async with a.swarm.open(home.peer, ECHO):
            pass
    a.run_dir.rmdir()
