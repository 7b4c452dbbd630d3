"""Promises of a node under attack, over real p2pd: strangers get nothing, members are served, who must be is banned.

One node, one honest member and one stranger that means harm, for all tests here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import hostile
import psutil
import pytest
from hostile import LIBP2P, garbage, guarded, noise, requests, throw
from peers import COLLECTIVE, homes, swarm_of
from peers import until as until_in

from ledger import checkpoint
from ledger.events import PeerBanned, parse
from ledger.store import Draft, Store
from node.errors_network import PeerRefused, PeerUnreachable, StreamEnded
from node.finding.addresses import port
from node.guarding.growth import FeedRates, Growth
from node.guarding.guard import Fault, Limits
from node.guarding.limits import Rate
from node.network.looking import LOOK
from node.network.p2pd import PeerID
from node.syncing.exchange import Asker, read_frame
from protocol import binding, wire
from protocol.ids import digest

SECRET = b"a secret of the members"
until = functools.partial(until_in, limit_s=60.0)  # other things run on this machine, too
TOPIC = wire.topic(COLLECTIVE)


class Siege:
    """`a` with its guard, the honest member `b`, the stranger `x`, and the loop that they live on."""

    def __init__(self, folder) -> None:
        self.one, self.two, self.bad, self.flood = homes(folder, "abxc")
        self.growth = Growth(FeedRates(), now_ms=lambda: 0, founded_ms=lambda: None, held=lambda _member: (0, 0))
        members = [self.one, self.two, self.flood]
        self.a = guarded(self.one, members, growth=self.growth, heads_every_s=0.2)
        self.b = guarded(self.two, members, heads_every_s=0.2)
        self.x = swarm_of(self.bad)
        self.blob = self.a.blobs.put(SECRET)
        self.heard: list[bytes] = []
        self.x.swarm.subscribe(TOPIC, self.heard.append)
        self.runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()

    @property
    def guard(self):
        return self.a.swarm.guard

    async def begin(self):
        for each in (self.a, self.b, self.x):
            await self._stack.enter_async_context(each)
        await self.b.swarm.dial(self.a.address)
        await self.a.swarm.dial(self.b.address)
        self.a.append(secret=SECRET.decode())
        await until(lambda: self.b.size(self.one) == 1)

    async def end(self):
        await self._stack.aclose()

    def run(self, scene, limit_s=120.0):
        """One scene of the siege, which begins with everything forgiven and ends with everybody honest unharmed."""

        async def bounded():
            async with asyncio.timeout(limit_s):
                self.guard.unban(self.bad.peer)
                self.guard.use(Limits())
                await self.x.swarm.dial(self.a.address)
                await scene(self)
            assert not self.guard.banned(self.two.peer)
            assert self.guard.score(self.two.peer) == 0
            assert (self.a.swarm.status()["handler_errors"], self.a.swarm.status()["lives"]) == (0, 1)
            assert set(self.a.sync.status()["feeds"]) <= {h.member for h in (self.one, self.two, self.flood)}

        self.runner.run(bounded())

    async def served(self):
        """The honest member gets a new entry; the seconds it waited."""
        began = time.monotonic()
        self.a.append(n=1)
        size = self.a.size(self.one)
        await self.a.sync.announce()
        await until(lambda: self.b.size(self.one) >= size)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def siege(tmp_path_factory):
    found = Siege(tmp_path_factory.mktemp("siege"))
    try:
        found.runner.run(found.begin())
        yield found
        found.runner.run(found.end())
    finally:
        found.runner.close()


def test_whatever_a_stranger_asks_it_gets_the_public_checkpoint_and_nothing_else(siege):
    """Every protocol with every kind of request; and all it hears without asking are checkpoints."""

    async def scene(s):
        kinds = list(requests(binding.verify(s.bad.binding), s.one.member, s.blob).items())
        for number, (protocol, request) in enumerate(kinds):
            for asked in (request, kinds[number - 1][1]):  # of its own protocol, and of another
                reply = await throw(s.x, s.one.peer, protocol, wire.frame(asked.to_bytes()), wait_s=5)
                assert SECRET not in reply
                opened = wire.open_answer(reply) if reply else None
                if isinstance(opened, bytes):
                    assert protocol in (wire.HEADS, wire.CHANGES)
                    answer = wire.parse_heads(opened) if protocol == wire.HEADS else wire.parse_changes(opened)
                    assert answer.binding.member == s.one.member
                    assert [checkpoint.parse(note).member for note in answer.notes] == [s.one.member]
        async with s.x.swarm.open(s.one.peer, LOOK) as stream:
            await stream.write(b"\0")
            with pytest.raises(StreamEnded):
                await stream.read(1)
        async with s.x.swarm.open(s.one.peer, wire.HEADS) as stream:  # one question, and its place is free again
            await stream.write(wire.frame(kinds[0][1].to_bytes()))
            await read_frame(stream, wire.MAX_PAGE)
            with pytest.raises(StreamEnded):
                await stream.read(1, within_s=5)
        while not s.heard:
            await s.served()
            await asyncio.sleep(0.1)
        assert {checkpoint.parse(note).member for note in s.heard} <= {s.one.member, s.two.member}
        assert s.a.sync.asking().keys() == {s.bad.member}

    siege.run(scene)


def test_garbage_on_every_protocol_bans_its_sender_and_honest_peers_notice_nothing(siege):
    async def scene(s):
        rng = random.Random(7)
        pieces = list(garbage(rng, binding.verify(s.bad.binding), binding.verify(s.two.binding), s.one.member))
        s.guard.use(Limits(threshold=200.0))  # so that some of each is thrown before the ban
        waited, done = [], asyncio.Event()

        async def honest():
            while not done.is_set():
                waited.append(await s.served())

        serving = asyncio.create_task(honest())
        await asyncio.gather(
            noise(port(s.a.address.partition("/p2p/")[0]), 20),
            *(throw(s.x, s.one.peer, protocol, rng.randbytes(500), wait_s=0.1) for protocol in LIBP2P),
        )
        while not s.guard.banned(s.bad.peer):
            await s.x.swarm.publish(TOPIC, rng.randbytes(500))
            thrown = zip(pieces, itertools.cycle(wire.KINDS), strict=False)
            await asyncio.gather(*(throw(s.x, s.one.peer, kind, piece, wait_s=0.1) for piece, kind in thrown))
            rng.shuffle(pieces)
        done.set()
        await serving
        assert waited
        (ban,) = s.guard.bans()
        assert (ban.peer, ban.member) == (s.bad.peer, None)

    siege.run(scene)


def test_streams_that_say_nothing_are_few_and_members_are_served(siege):
    async def scene(s):
        async with contextlib.AsyncExitStack() as held:
            for protocol in [wire.FEED, wire.BLOB, wire.CHANGES] * 4:
                with contextlib.suppress(PeerUnreachable, StreamEnded):
                    stream = await held.enter_async_context(s.x.swarm.open(s.one.peer, protocol))
                    await stream.write(b"\0")
            assert s.guard.status()["stranger_streams"] <= Limits().streams_per_stranger
            await s.served()
        assert not s.guard.bans()  # silence is what a bad link sounds like, too

    siege.run(scene)


def test_replayed_and_forged_announcements_cost_no_signature_and_are_nobodys_fault(siege, monkeypatch):
    async def scene(s):
        checked, origins, hears, read = [], [], s.guard.hears, checkpoint.parse
        monkeypatch.setattr(checkpoint, "parse", lambda note: checked.append(note) or read(note))
        monkeypatch.setattr(s.guard, "hears", lambda o, known: origins.append(o) or hears(o, known=known))
        s.b.append(n=0)
        await s.b.sync.announce()
        await until(lambda: s.a.size(s.two) == s.b.size(s.two))
        notes = [
            s.b.store.heads(COLLECTIVE, s.two.member)[0].note,
            checkpoint.make(s.bad.key, COLLECTIVE, s.bad.member, 9, digest(b"root")).note,
        ]
        checked.clear()
        while origins.count(s.bad.peer) < 100 or s.guard.status()["refused_gossip"] <= 40:
            for note in notes * 10:
                await s.x.swarm.publish(TOPIC, note)
            await asyncio.sleep(0.05)
        assert sum(map(checked.count, notes)) <= 2  # as an answer to a question of our own, perhaps
        assert not s.guard.bans()
        await s.served()

    siege.run(scene)


def test_calls_of_the_dht_are_counted_like_any_others_and_nobody_is_displaced(siege):
    async def scene(s):
        name, dht = PeerID.from_base58(s.one.peer), s.x.swarm._daemon._dht
        before = s.guard.status()["refused_requests"]
        while s.guard.status()["refused_requests"] == before:
            await dht.protocol.call_ping(name)
        await s.served()
        contacts = s.a.swarm._contacts
        assert contacts.trusted(s.two.peer)
        assert contacts.addresses(s.two.peer)
        assert not contacts.trusted(s.bad.peer)  # it came by itself: not in the directory, not in the book
        assert not contacts.addresses(s.bad.peer)
        assert s.a.sync.member_of(s.bad.peer) is None

    siege.run(scene)


def test_a_feed_that_grows_without_end_is_held_back_and_no_other_feed_waits_for_it(siege, tmp_path):
    async def scene(s):
        s.growth.use(FeedRates(entries=Rate(per_s=0.001, burst=40), bytes=Rate(per_s=1, burst=1 << 30)))
        drafts = [Draft(type="note.added", body={"n": n}, salt=bytes(16)) for n in range(200)]
        with Store.open(tmp_path / "flood.db") as feed:
            feed.append_all(s.flood.key, COLLECTIVE, drafts, now_ms=0)
            records = feed.records(COLLECTIVE, s.flood.member)
            note = feed.heads(COLLECTIVE, s.flood.member)[0].note
        s.b.store.append_foreign(COLLECTIVE, s.flood.member, records, note)  # whoever relays it is not to blame
        await until(lambda: s.growth.held_back() == {s.flood.member})
        assert s.a.size(s.flood) == 40
        s.b.append(n=1)
        await s.b.sync.announce()
        await until(lambda: s.a.size(s.two) == s.b.size(s.two))
        assert s.a.size(s.flood) == 40

    siege.run(scene)


def test_who_is_banned_is_neither_served_nor_asked_nor_heard_nor_dialled_until_it_is_no_more(siege):
    async def scene(s):
        s.guard.ban(s.two.member, None, "by its operator")
        await until(lambda: s.two.peer not in s.a.swarm.peers())
        before = s.a.size(s.two)
        s.b.append(n=1)
        asker = Asker(s.b.swarm, COLLECTIVE, binding.verify(s.two.binding))
        for _ in range(3):
            with contextlib.suppress(PeerUnreachable):
                await s.b.swarm.dial(s.a.address)
            await s.b.sync.announce()
            with pytest.raises((PeerUnreachable, PeerRefused, StreamEnded)):
                await asker.heads(s.one.peer)
            with pytest.raises(PeerUnreachable, match="banned"):
                async with s.a.swarm.open(s.two.peer, wire.HEADS):
                    pass
            await asyncio.sleep(0.2)
            assert s.two.peer not in s.a.swarm.peers()
        assert s.a.size(s.two) == before
        assert s.guard.unban(s.two.member)
        await until(lambda: s.a.size(s.two) == s.b.size(s.two))

    siege.run(scene)


def test_every_fault_has_a_code_that_an_event_can_carry():
    for fault in Fault:
        event = PeerBanned(member=digest(b"m"), peer=None, reason=fault.code, until=None)
        assert parse(event.TYPE, event.to_json()) == event


# -- the node in a process of its own, and everything at once ------------------------------------------------------------------
ATTACK_S = 25.0


def megabytes(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_attacked_in_every_way_at_once_keeps_its_memory_and_its_members(tmp_path):
    support = Path(hostile.__file__)
    command = [sys.executable, str(support)]
    environment = {**os.environ, "PYTHONPATH": f"{support.parent}:{support.parents[2]}"}
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            child = subprocess.Popen(
                [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.enter_context(child)  # waits and closes
            stack.callback(child.kill)
            return child

        victim = start("stand", tmp_path)
        address, pid, blob = victim.stdout.readline().split()
        lines = []
        reading = threading.Thread(target=lambda: lines.extend(victim.stdout), daemon=True)
        reading.start()
        stack.callback(reading.join)
        stack.callback(victim.kill)
        sizes = {"python": victim.pid, "p2pd": int(pid)}
        most = {name: 0.0 for name in sizes}

        async def measured(asker, peer, seconds):
            """Latencies of an honest member that asks for heads, a page and a blob in turn."""
            took, failed, end = [], 0, time.monotonic() + seconds
            while time.monotonic() < end:
                began = time.monotonic()
                try:
                    await asker.changes(peer, "", b"")
                    await asker.page(peer, homes_of["a"].member, 0)
                except (PeerUnreachable, PeerRefused, StreamEnded):
                    failed += 1
                else:
                    took.append(time.monotonic() - began)
                for name, number in sizes.items():
                    most[name] = max(most[name], megabytes(number))
                await asyncio.sleep(0.05)
            return sorted(took), failed

        homes_of = {home.name: home for home in homes(tmp_path / "honest", "ab")}

        async def scene():
            async with swarm_of(homes_of["b"]) as b:
                peer = await b.swarm.dial(address)
                asker = Asker(b.swarm, COLLECTIVE, binding.verify(homes_of["b"].binding))
                calm = await measured(asker, peer, 4)
                before = dict(most)
                attack = start("attack", tmp_path, address, blob, ATTACK_S)
                stormy = await measured(asker, peer, ATTACK_S + 3)
                await asyncio.to_thread(attack.wait)
                after = await measured(asker, peer, 4)
                assert attack.returncode == 0
                return calm, stormy, after, before, attack.stdout.read()

        calm, stormy, after, before, counts = asyncio.run(scene())

    def told(name, found):
        took, failed = found
        p50, p95 = (1000 * took[int(part * (len(took) - 1))] for part in (0.5, 0.95))
        return f"{name}: {len(took)} answered, {failed} not, p50 {p50:.0f} ms, p95 {p95:.0f} ms"

    print(told("calm", calm), told("attacked", stormy), told("after", after), before, most, counts, lines[-1], sep="\n")
    assert most["python"] < 256
    assert most["p2pd"] < 384
    assert len(stormy[0]) > 20
    assert stormy[1] <= len(stormy[0]) / 10
    assert stormy[0][len(stormy[0]) // 2] < 2.0
    assert after[1] == 0
