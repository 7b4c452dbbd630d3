"""Promises of pulling: nobody waits for a slow peer, bad bytes are blamed, blobs come with their entries, streams are kept."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from ether_nodes import Air, feeds_of, give, until, virtually
from peers import COLLECTIVE, homes

from node.errors_network import OverQuota, PeerRefused, PeerUnreachable, StreamEnded
from node.guarding.limits import fault_of
from node.syncing import lines
from node.syncing.exchange import to_wire
from node.syncing.lines import Lines
from protocol import binding, wire
from protocol.ids import Digest, digest

BLOB = random.Random(3).randbytes(64 << 10)


def named(record):
    """What an entry of these tests says of its blob."""
    body = record.body.value() if record.body is not None else {}
    return (Digest(body["blob"]), body["size"]) if "blob" in body else None


def late(handler, seconds):
    """The same answers, later."""

    async def wait(stream):
        await asyncio.sleep(seconds)
        await handler(stream)

    return wait


@virtually
async def test_announced_entry_is_pulled_at_once_and_not_at_the_next_round(tmp_path):
    members = homes(tmp_path, "abcd")
    async with Air() as air:
        nodes = [air.node(home, members, heads_every_s=1000.0) for home in members]
        await until(lambda: all(len(node.port.peers()) == 3 for node in nodes))
        await asyncio.sleep(20)
        for n in range(1, 4):
            for author in nodes:
                author.append(n=n)
                await author.sync.announce()
                took = await until(lambda who=author, n=n: all(node.size(who.home) == n for node in nodes), step_s=0.01)
                assert took < 1, "a few trips of at most 60 ms"
        rounds = nodes[0].sync.status()["heads_asked"]
        assert rounds <= 8, "what everybody asked whom it met, and no more"


@virtually
async def test_author_that_answers_slowly_is_not_waited_for_when_another_member_has_it(tmp_path):
    one, two, three = members = homes(tmp_path)
    async with Air() as air:
        a, c = air.node(one, members), air.node(three, members)
        a.append(n=0)
        await until(lambda: c.size(one) == 1)
        await asyncio.sleep(30)  # until no stream is kept
        for protocol in (wire.FEED, wire.RANGE):
            a.port._handlers[protocol] = late(a.port._handlers[protocol], 7.0)
        b = air.node(two, members)
        assert await until(lambda: b.size(one) == 1) < 4
        assert b.sync.status()["hedged"] <= 1
        a.append(n=1)  # nobody else has this one: both wait for the slow author, and get it
        assert 6 < await until(lambda: b.size(one) == 2 and c.size(one) == 2) < 30


@virtually
async def test_member_known_to_be_slow_is_asked_only_for_what_no_other_says_it_has(tmp_path):
    members = homes(tmp_path, "abcd")
    one, _, three, four = members
    async with Air() as air:
        nodes = [air.node(home, members) for home in members]
        await until(lambda: all(len(node.port.peers()) == 3 for node in nodes))
        slow = {one.peer}
        vars(nodes[1].port)["rate"] = lambda peer: 20_000.0 if peer in slow else 5e6
        feeds, member = nodes[1].sync._feeds, one.member

        def asked():
            return feeds._candidates(member, feeds.of(member))

        assert asked()[0] == one.peer, "nobody else is known to have it"
        feeds.claim(member, three.peer, 5)
        assert asked()[:2] == [three.peer, one.peer]
        slow.clear()
        assert asked()[:2] == [one.peer, three.peer], "the author has it for certain"
        feeds.claim(member, four.peer, 0)
        assert asked()[-1] == four.peer


@virtually
async def test_questions_to_a_silent_peer_hold_no_place_that_others_need(tmp_path):
    members = homes(tmp_path, "abcdefghijklmnopqrst")
    one, two, *rest = members
    async with Air() as air:
        node = air.node(two, members)
        for home in rest:  # 18 peers that take every question and never answer
            port = air.ether.port(home.peer)
            for protocol in wire.KINDS:
                port.add_handler(protocol, late(lambda _stream: asyncio.sleep(0), 3000.0))
        await asyncio.sleep(1)
        a = air.node(one, members)
        a.append(n=0)
        assert await until(lambda: node.size(one) == 1) < 8


@virtually
async def test_page_with_bad_bytes_is_the_peers_fault_and_another_is_asked(tmp_path):
    one, two, three = members = homes(tmp_path)
    feeds = feeds_of([one], tmp_path, entries=3)
    note = feeds.heads(COLLECTIVE, one.member)[0].note
    good = list(to_wire(feeds.records(COLLECTIVE, one.member)))
    line = good[1].line
    forged = wire.WireRecord(line=line[:-9] + bytes([line[-9] ^ 1]) + line[-8:], salt=good[1].salt, data=good[1].data)

    async def lie(stream):
        await stream.read(wire.frame_length(await stream.read(wire.HEADER), wire.MAX_REQUEST))
        await stream.write(wire.answer(wire.page_of(note, [good[0], forged]).to_bytes()))

    async with Air() as air:
        a = air.node(one, members)
        give(a, feeds, [one])
        a.port._handlers[wire.FEED] = lie
        b = air.node(two, members)
        await until(lambda: b.faults)
        assert b.size(one) == 0
        assert {(peer, fault_of(error).code) for peer, error in b.faults} == {(one.peer, "bad-signature")}
        c = air.node(three, members)
        give(c, feeds, [one])
        await until(lambda: b.size(one) == 3)
        assert len(b.faults) <= 4, "it is left alone for a growing time"
    feeds.close()


@virtually
async def test_banned_peer_is_neither_asked_nor_served(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    banned = set()
    async with Air() as air:
        a = air.node(one, members, gossip=False, banned=lambda peer, member: member in banned)
        b = air.node(two, members, gossip=False)
        a.append(n=0)
        await until(lambda: b.size(one) == 1)
        banned.add(two.member)
        a.append(n=1)
        b.append(n=0)
        with pytest.raises(PeerRefused, match="banned"):
            await b.sync._asker.page(one.peer, one.member, 1)
        await asyncio.sleep(120)
        assert (b.size(one), a.size(two)) == (1, 0)
        banned.clear()
        await until(lambda: b.size(one) == 2 and a.size(two) == 1)


@virtually
async def test_over_quota_is_said_before_the_next_request_is_read_and_no_more_is_taken_than_there_is_room(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    quota, room, took = [1000], [2], []

    def spend(_peer, _protocol, _kind, amount):
        quota[0] -= amount
        if quota[0] < 0:
            raise OverQuota("couldn't serve: used up")

    async with Air() as air:
        a = air.node(one, members, spend=spend)
        for n in range(5):
            a.append(n=n)
        b = air.node(
            two,
            members,
            room=lambda _member: room[0] - sum(entries for _, entries, _ in took),
            took=lambda member, entries, size: took.append((member, entries, size)),
        )
        await until(lambda: b.size(one) == 2)
        await asyncio.sleep(60)
        assert b.size(one) == 2
        room[0] = 100
        await until(lambda: b.size(one) == 5)
        assert all(member == one.member and size > entries * 100 for member, entries, size in took)
        quota[0] = 0
        asker = b.sync._asker
        with pytest.raises(PeerRefused, match="over-quota"):
            await asker.page(one.peer, one.member, 0)  # over the stream of the last page
        assert (
            len((await asker.page(one.peer, one.member, 0)).records) == 5
        )  # over a new one: it is the guard that counts those
        assert not b.faults


@virtually
async def test_small_blob_comes_with_its_entry_and_a_false_one_is_not_stored(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    here = []
    async with Air() as air:
        a = air.node(one, members, attached=named)

        def heard(_member, records):
            here.extend(b.blobs.has(named(record)[0]) for record in records if named(record))

        b = air.node(two, members, attached=named, on_records=heard)
        await until(a.port.peers)
        name = a.blobs.put(BLOB)
        a.append(blob=name, size=len(BLOB))
        await a.sync.announce()
        await until(lambda: b.size(one) == 1)
        assert here == [True]
        assert b.blobs.read(name, len(BLOB)) == BLOB
        other = digest(b"what it says")
        a.blobs.path(other).write_bytes(b"what it was")  # a damaged file
        a.append(blob=other, size=11)
        big = a.blobs.put(BLOB * 5)
        a.append(blob=big, size=5 * len(BLOB))  # over what comes along
        a.append(blob=digest(b"nowhere"), size=7)
        await a.sync.announce()
        await until(lambda: b.size(one) == 4)
        assert here == [True, False, False, False]
        assert b.blobs.digests() == [name]
        assert b.sync.status()["attached"] == 1
        assert not b.faults


@virtually
async def test_blobs_are_not_attached_for_one_who_may_not_fetch_them_nor_for_one_who_is_far_behind(tmp_path):
    one, two, three = members = homes(tmp_path)
    async with Air() as air:
        a = air.node(one, members, attached=named, serves=lambda member: member != three.member)
        name = a.blobs.put(BLOB)
        for n in range(8):
            a.append(blob=name, size=len(BLOB), n=n)
        b, c = air.node(two, members, attached=named), air.node(three, members, attached=named)
        await until(lambda: b.size(one) == c.size(one) == 8)
        assert b.blobs.digests() == [], "history has better to do first"
        a.append(blob=name, size=len(BLOB), n=8)
        await a.sync.announce()
        await until(lambda: b.blobs.has(name) and c.size(one) == 9)
        await asyncio.sleep(5)
        assert not c.blobs.has(name)


@virtually
async def test_peer_of_the_first_version_is_asked_with_it(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    async with Air() as air:
        a = air.node(one, members, attached=named)
        old = a.port._handlers
        for protocol in (wire.CHANGES, wire.RANGE, wire.FOLLOW, wire.PART, wire.HAVE):
            del old[protocol]
        opened = a.port.ether.ports[one.peer]
        assert set(opened._handlers) == {wire.HEADS, wire.FEED, wire.BLOB}
        b = air.node(two, members, attached=named)
        real = b.port.open

        @contextlib.asynccontextmanager
        async def as_p2pd_says(peer, protocol):
            if protocol not in old:
                raise PeerUnreachable(
                    f"couldn't open {protocol}: failed to negotiate protocol: protocols not supported"
                )
            async with real(peer, protocol) as stream:
                yield stream

        vars(b.port)["open"] = as_p2pd_says
        a.append(blob=a.blobs.put(BLOB), size=len(BLOB))
        await until(lambda: b.size(one) == 1)
        a.append(n=1)
        await until(lambda: b.size(one) == 2)
        assert not b.faults


@virtually
async def test_page_on_its_way_to_a_nearer_member_is_waited_for_and_not_missed(tmp_path):
    members = homes(tmp_path, "abcdefgh")
    async with Air() as air:
        nodes = [air.node(home, members) for home in members]
        await until(lambda: all(len(node.port.peers()) == 7 for node in nodes))
        await asyncio.sleep(10)
        author = nodes[0]
        for other in nodes[3:]:  # they hear of it, and do not reach its author
            vars(other.port)["peers"] = lambda port=other.port: frozenset(port.links) - {author.home.peer}
        before = sum(node.sync.status()["quarantined"] for node in nodes)
        author.append(n=0)
        await author.sync.announce()
        await until(lambda: all(node.size(author.home) == 1 for node in nodes), limit_s=3)
        assert sum(node.sync.status()["quarantined"] for node in nodes) <= before + 4


# -- kept streams ----------------------------------------------------------------------------------------------------
class Echo:
    """A peer that answers each frame with itself, and counts its streams."""

    def __init__(self, air, peer):
        self.port, self.streams, self.held = air.ether.port(peer), 0, asyncio.Event()
        self.held.set()
        self.port.add_handler("/echo", self.serve)

    async def serve(self, stream):
        self.streams += 1
        with contextlib.suppress(StreamEnded):
            while True:
                frame = await stream.read(wire.frame_length(await stream.read(4, within_s=15), 1000))
                await self.held.wait()
                await stream.write(wire.frame(frame))


async def said(kept, peer, text):
    async with kept.asked(peer, "/echo", wire.frame(text), 1000) as (frame, _):
        return frame


@virtually
async def test_stream_is_kept_for_the_next_question_and_replaced_when_the_peer_has_closed_it():
    async with Air() as air:
        echo, port = Echo(air, "peer-b"), air.ether.port("peer-a")
        kept = Lines(port, clock=port.loop.time)
        for n in range(20):
            assert await said(kept, "peer-b", b"%d" % n) == b"%d" % n
        assert (echo.streams, kept.opened, kept.reused) == (1, 1, 19)
        with pytest.raises(ZeroDivisionError):
            async with kept.asked("peer-b", "/echo", wire.frame(b"x"), 1000):
                1 / 0  # noqa: B018 - its answer may not have been read whole
        assert await said(kept, "peer-b", b"new") == b"new"
        assert echo.streams == 2
        echo.port._cut(port)  # the other side restarts
        for task in list(echo.port._tasks):
            task.cancel()
        await asyncio.sleep(1)
        assert await said(kept, "peer-b", b"again") == b"again"
        await asyncio.sleep(lines.KEEP_S + 1)
        kept.expire()
        assert await said(kept, "peer-b", b"late") == b"late"
        assert echo.streams == 4
        kept.drop("peer-b")
        await kept.close()
        assert not kept._idle
        assert not kept._by_key


@virtually
async def test_a_few_questions_to_one_peer_are_under_way_at_once_and_others_do_not_wait_for_them():
    async with Air() as air:
        slow, quick, port = Echo(air, "peer-s"), Echo(air, "peer-q"), air.ether.port("peer-a")
        kept = Lines(port, clock=port.loop.time)
        slow.held.clear()
        waiting = [asyncio.create_task(said(kept, "peer-s", b"%d" % n)) for n in range(10)]
        await asyncio.sleep(2)
        assert slow.streams == lines.PER_PEER
        assert kept.under_way("peer-s", "/echo") == 10
        assert await asyncio.wait_for(said(kept, "peer-q", b"now"), 1) == b"now"
        slow.held.set()
        assert await asyncio.gather(*waiting) == [b"%d" % n for n in range(10)]
        assert slow.streams == lines.PER_PEER
        assert kept.under_way("peer-s", "/echo") == 0
        assert quick.streams == 1
        await kept.close()


@virtually
async def test_no_more_idle_streams_are_kept_than_the_limit(monkeypatch):
    monkeypatch.setattr(lines, "KEPT", 5)
    async with Air() as air:
        port = air.ether.port("peer-a")
        kept = Lines(port, clock=port.loop.time)
        for n in range(9):
            Echo(air, f"peer-{n}")
            await said(kept, f"peer-{n}", b"x")
        assert len(kept._idle) == 5
        await kept.close()


@virtually
async def test_garbage_and_another_protocols_question_get_a_typed_no_and_are_blamed(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    bound = binding.verify(two.binding)
    async with Air() as air:
        a = air.node(one, members)
        port = air.ether.port(two.peer)
        part = wire.PartRequest(collective=COLLECTIVE, binding=bound, digest=digest(b"x"), offset=0, length=1)
        foreign = wire.ChangesRequest(collective=COLLECTIVE, binding=binding.verify(one.binding))
        for protocol, question, code in (
            (wire.CHANGES, b"{", "malformed"),
            (wire.HAVE, part.to_bytes(), "malformed"),
            (wire.CHANGES, foreign.to_bytes(), "wrong-peer"),
            (wire.PART, part.to_bytes(), "blob-missing"),
        ):
            async with port.open(one.peer, protocol) as stream:
                await stream.write(wire.frame(question))
                frame = await stream.read(wire.frame_length(await stream.read(wire.HEADER), 100))
                assert wire.open_answer(frame) == wire.Refusal(code=code)
        assert [fault_of(error).code for _, error in a.faults] == ["malformed", "malformed", "wrong-peer"]
