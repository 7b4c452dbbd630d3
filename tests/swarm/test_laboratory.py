"""Promises of the laboratory network: what it says of delay, loss, rate, cuts and NAT is what packets meet."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import namespaces
import pytest
from namespaces import Host, Lab, unavailable
from netns import existing, pids_in, sweep
from real_node import alive, until

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
PORT = 5000


@pytest.fixture(scope="module")
def lab():
    with Lab(seed=1) as lab:
        lab.hosts("a", "b", "c")
        yield lab


@pytest.fixture
def hosts(lab):
    """Three machines with plain cables and no cuts."""
    yield lab._hosts[:3]
    lab.heal()
    for host in lab._hosts[:3]:
        lab.link(host)


@contextlib.contextmanager
def mailbox(host: Host, timeout_s: float = 20.0):
    """A UDP socket at a host."""
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as box:
        box.bind((host.address, PORT))
        box.settimeout(timeout_s)
        yield box


def arrives(source: Host, target: Host, wait_s: float = 20.0) -> bool:
    """Whether a datagram comes through; one that does not is waited for during `wait_s`."""
    with mailbox(target, wait_s) as box, source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", (target.address, PORT))
        try:
            return box.recv(100) == b"hello"
        except TimeoutError:
            return False


def test_a_packet_on_a_link_takes_its_delay_in_each_direction(lab, hosts):
    a, b, _ = hosts
    lab.link(b, delay_ms=80)
    found = []
    with mailbox(a) as here, mailbox(b) as there:
        for _ in range(5):
            began = time.perf_counter()
            here.sendto(b"ping", (b.address, PORT))
            there.recv(100)
            half = time.perf_counter()
            there.sendto(b"pong", (a.address, PORT))
            here.recv(100)
            found.append((half - began, time.perf_counter() - half))
    assert all(
        0.079 <= there <= 10 and 0.079 <= back <= 10 for there, back in found[1:]
    )  # the first one asks for names
    assert min(there + back for there, back in found[1:]) < 0.5  # however busy this machine is


def test_a_link_loses_its_share_of_packets(lab, hosts):
    a, b, _ = hosts
    lab.link(b, loss=0.25)
    got = 0
    with mailbox(b, 0.5) as there, a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for n in range(400):
            sender.sendto(n.to_bytes(4, "big"), (b.address, PORT))
            if n % 20 == 19:
                time.sleep(0.005)
                there.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while there.recv(100):
                        got += 1
        there.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while there.recv(100):
                got += 1
    assert 240 <= got <= 360  # 300 and seven standard deviations


def test_a_link_carries_no_more_than_its_rate(lab, hosts):
    a, b, _ = hosts
    lab.link(b, rate_bit=400_000, queue_ms=10_000)
    with mailbox(b) as there, a.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(30):
            sender.sendto(bytes(1000), (b.address, PORT))
        there.recv(2000)
        began = time.perf_counter()
        for _ in range(29):
            there.recv(2000)
        took = time.perf_counter() - began
    least = 29 * (1000 + 42) * 8 / 400_000
    assert took > 0.85 * least  # the first one may have been read late
    assert took < 20 * least


def test_a_stream_over_a_bad_link_arrives_whole(lab, hosts):
    a, b, _ = hosts
    lab.link(a, rate_bit=8_000_000, delay_ms=5, loss=0.02)
    sent, got = os.urandom(200_000), bytearray()
    with b.socket(socket.AF_INET, socket.SOCK_STREAM) as server, a.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        server.bind((b.address, PORT))
        server.listen()
        client.settimeout(30)
        client.connect((b.address, PORT))
        there, _ = server.accept()
        with there:
            there.settimeout(30)
            sender = threading.Thread(target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR)))
            sender.start()
            while data := there.recv(65_536):
                got += data
            sender.join()
    assert bytes(got) == sent


def test_nothing_passes_between_groups_that_are_cut_and_everything_after_the_heal(lab, hosts):
    a, b, c = hosts
    lab.link(c, delay_ms=1)  # a shaped machine is cut like any other
    lab.cut([a, b], [c])
    assert arrives(a, b)
    assert not arrives(a, c, 0.3)
    assert not arrives(c, b, 0.3)
    lab.heal()
    assert all(arrives(x, y) for x in hosts for y in hosts if x is not y)


def test_a_block_stops_one_direction_only(lab, hosts):
    a, b, c = hosts
    lab.block([a], [b])
    assert not arrives(a, b, 0.3)
    assert arrives(b, a)
    assert arrives(a, c)


def test_machines_behind_nat_reach_out_and_are_not_reached(lab, hosts):
    outside = hosts[0]
    inside, neighbour = lab.hosts("inside", "neighbour")
    router = lab.nat(inside, neighbour)
    with mailbox(outside) as box, mailbox(inside) as home:
        home.sendto(b"out", (outside.address, PORT))
        _, (seen, port) = box.recvfrom(100)
        assert seen == router.address != inside.address
        box.sendto(b"back", (seen, port))
        assert home.recv(100) == b"back"
    assert arrives(inside, neighbour)
    with inside.socket(socket.AF_INET, socket.SOCK_STREAM) as server, outside.entered():
        server.bind((inside.address, PORT))
        server.listen()
        with pytest.raises(OSError, match=r"unreachable|refused|timed out"):
            socket.create_connection((inside.address, PORT), timeout=0.5)
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((router.address, PORT), timeout=0.5)


def test_a_laboratory_leaves_nothing_behind():
    with Lab() as lab:
        host = lab.host()
        process = host.popen("sleep", "60")
        lab.link(host, delay_ms=1)
        until(lambda: process.pid in host.pids(), what="it runs there")
        name = host.namespace
    assert process.wait(5) == -signal.SIGKILL
    assert name not in existing()


def test_what_a_killed_test_left_is_swept_by_the_next_one():
    program = (
        "import sys, time; from namespaces import Lab\n"
        "lab = Lab().__enter__(); host = lab.host()\n"
        "import subprocess; sleeper = subprocess.Popen([*host.prefix, 'sleep', '60'])\n"
        "print(host.namespace, sleeper.pid, flush=True); time.sleep(60)\n"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(namespaces.__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=path) as child:
        assert child.stdout is not None
        namespace, pid = child.stdout.readline().split()
        until(lambda: int(pid) in pids_in(namespace), what="it has entered")
        assert namespace not in sweep()  # its test still runs
        child.kill()
        child.wait()
    assert alive(int(pid))
    assert namespace in sweep()
    until(lambda: not alive(int(pid)), 10, what="the process it left is gone")
    assert namespace not in existing()
