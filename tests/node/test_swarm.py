"""Promises of the swarm over real p2pd daemons on loopback: it heals, it is bounded, it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from peers import LOOPBACK, Home, config_of, homes, live, swarm_of, until

from node.errors_network import BadTransport, PeerUnreachable, PortTaken, StreamEnded
from node.finding import rendezvous
from node.network import links, p2pd
from node.network.p2pd import DaemonConfig, P2pd
from node.network.swarm import MAX_ANNOUNCEMENT, Swarm, SwarmConfig
from protocol import addresses as multiaddrs
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


async def until_echo(a, b, limit_s=60.0):
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
            print(f"\np2pd killed: streams both ways again after {time.monotonic() - began:.2f} s")
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
        frozen, began = a.pid, time.monotonic()
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: a.pid not in (None, frozen))
        assert not alive(frozen)
        await until_echo(b, a)
        print(f"\np2pd stopped: the other end has a stream again after {time.monotonic() - began:.2f} s")
        assert "stopped" in a.swarm.status()["last_error"]


async def says_nothing(reader, writer):
    await reader.read()  # to the end
    writer.close()


@live
async def test_p2pd_that_runs_and_says_nothing_is_replaced(tmp_path):
    left, right = homes(tmp_path, "ab")
    a, b = swarm_of(left), swarm_of(right)
    a.swarm.add_handler(ECHO, echo)
    async with a, b:
        await b.swarm.dial(a.address)
        mute, began = a.pid, time.monotonic()
        (control,) = a.run_dir.glob("p2pd-*.sock")
        control.unlink()
        async with await asyncio.start_unix_server(says_nothing, control):
            await until(lambda: a.pid not in (None, mute))
        assert not alive(mute)
        await until_echo(b, a)
        print(f"\np2pd mute: the other end has a stream again after {time.monotonic() - began:.2f} s")


# -- one component -----------------------------------------------------------------------------------------------------
async def meet(folder, count, seed):
    """Swarms start in random order with the least addresses that connect them; once all met, p2pd of the middle one dies."""
    rng = random.Random(seed)
    circle = [swarm_of(home) for home in homes(folder, [f"m{n}" for n in range(count)])]
    everybody = frozenset(each.swarm.peer for each in circle)
    tree = [(n, rng.randrange(n)) for n in range(1, count)]  # who knows one address of whom, or the other way round
    edges = [edge if rng.random() < 0.5 else edge[::-1] for edge in tree]
    async with contextlib.AsyncExitStack() as up:
        for each in circle:
            each.swarm.want(everybody)
        up_now = {}
        for n in rng.sample(range(count), count):
            up_now[n] = await up.enter_async_context(circle[n])
            for knows, known in edges:
                if knows in up_now and known in up_now and n in {knows, known}:
                    circle[knows].swarm.add_peer(circle[known].address)
        for each in circle:
            await until(lambda each=each: each.swarm.peers() == everybody - {each.swarm.peer}, 60)
        middle = max(range(count), key=lambda n: sum(n in edge for edge in edges))
        os.kill(circle[middle].pid, signal.SIGKILL)
        for each in circle:
            await until(lambda each=each: each.swarm.peers() == everybody - {each.swarm.peer}, 60)


@live
async def test_any_start_order_and_any_spanning_set_of_addresses_gives_one_component(tmp_path):
    await meet(tmp_path, 4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_random_orders_and_addresses_of_nine_nodes_give_one_component(tmp_path, seed):
    live(meet)(tmp_path, 9, seed)


@live
async def test_a_neighbour_tells_where_a_peer_is_when_no_record_does(tmp_path):
    daemons = []
    try:
        for home in homes(tmp_path):
            folder = tmp_path / f"s{home.name}"
            folder.mkdir()
            config = DaemonConfig(
                identity=home.identity, listen=(LOOPBACK,), run_dir=folder, seal=rendezvous.Seal(home.transport)
            )
            daemons.append(await P2pd.start(config))
        a, b, c = daemons
        await a.connect(b.peer, b.visible)
        await c.connect(b.peer, b.visible)
        assert await a.get_record(multiaddrs.transport(c.peer)) is None  # nobody has told the DHT anything
        while c.visible != (found := await a.find(c.peer)):
            await asyncio.sleep(0.05)
        await a.connect(c.peer, found)
        assert await a.connected() == {b.peer, c.peer}
    finally:
        for daemon in daemons:
            await daemon.end()


# -- changes while it runs ---------------------------------------------------------------------------------------------
@live
async def test_peers_come_and_go_and_settings_change_without_a_restart(tmp_path):
    one, two, three = homes(tmp_path)
    a, b, c = swarm_of(one), swarm_of(two), swarm_of(three)
    a.swarm.add_handler(ECHO, echo)
    async with a, b, c:
        assert a.swarm.add_peer(b.address) == b.swarm.peer
        await until(lambda: a.swarm.peers() == {b.swarm.peer})
        assert a.swarm.status()["known"] == 1
        for _ in range(50):  # it may come again of its own accord, and is not missed if not
            await a.swarm.forget_peer(b.swarm.peer)
            if b.swarm.peer not in a.swarm.peers():
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("it is not hung up on")
        assert (a.swarm.status()["missing"], a.swarm.status()["known"]) == ([], 0)
        config, pid, lives = config_of(one, a.run_dir), a.pid, a.swarm.status()["lives"]
        told = "/ip4/192.0.2.9/tcp/4242"
        assert a.swarm.reconfigure(replace(config, known=(c.address,), announce=(told,))) == frozenset()
        await until(lambda: c.swarm.peer in a.swarm.peers())
        assert a.swarm.addresses() == (f"{told}/p2p/{one.peer}",)
        assert (a.pid, a.swarm.status()["lives"]) == (pid, lives)
        with pytest.raises(Malformed):
            a.swarm.reconfigure(replace(config, known=("nowhere",)))
        assert a.swarm.reconfigure(replace(config, identity=two.identity)) == {"identity"}
        await until_echo(c, a)  # whom the operator no longer names is not hung up on
        for change in ({"listen": ("/ip4/127.0.0.2/tcp/0",)}, {"listen": (LOOPBACK,), "relays": (c.address,)}):
            before = a.pid
            a.swarm.reconfigure(replace(config, known=(c.address,), **change))
            await until(lambda before=before: a.pid not in (None, before))
            assert change["listen"][0].rsplit("/", 1)[0] in a.address
            await until_echo(c, a)
        before = a.pid
        a.swarm.use_relays([c.address])  # the charter names the same one
        await asyncio.sleep(1.0)
        assert (a.pid, a.swarm.status()["relays"]) == (before, 1)


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


@live
async def test_a_node_stopped_while_a_library_swallows_it_ends_all_the_same(tmp_path, monkeypatch):
    (home,) = homes(tmp_path, "a")
    a, started, create = swarm_of(home), asyncio.Event(), p2pd.DHTNode.create

    async def deaf(*args, **kwargs):
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return await create(*args, **kwargs)

    monkeypatch.setattr(p2pd.DHTNode, "create", deaf)
    task = asyncio.create_task(a.swarm.run())
    await started.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=15)
    assert done
    assert task.cancelled()
    shutil.rmtree(a.run_dir)


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
    deadline = time.monotonic() + 60
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
