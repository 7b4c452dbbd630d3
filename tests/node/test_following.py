"""Promises of following: what a member writes is sent to it at once, one page at a time, and the pull stays the truth."""

from __future__ import annotations

import asyncio
import contextlib
import random

from ether_nodes import Air, feeds_of, give, until, virtually
from peers import COLLECTIVE, homes

from node.errors_network import PeerUnreachable, StreamEnded
from node.guarding.limits import fault_of
from node.syncing.exchange import read_frame, to_wire
from protocol import binding, wire
from protocol.ids import Digest

BLOB = random.Random(3).randbytes(64 << 10)


def named(record):
    """What an entry of these tests says of its blob."""
    body = record.body.value() if record.body is not None else {}
    return (Digest(body["blob"]), body["size"]) if "blob" in body else None


def all_follow(nodes):
    return all(len(node.sync._following) == len(nodes) - 1 for node in nodes)


async def together(air, members, **options):
    """Nodes of all members, each following all others."""
    nodes = [air.node(home, members, follows=True, attached=named, **options) for home in members]
    await until(lambda: all_follow(nodes))
    return nodes


@contextlib.asynccontextmanager
async def as_follower(port, home, author, *, start=0):
    """A stream on which `home` has asked to follow `author`."""
    request = wire.FollowRequest(
        collective=COLLECTIVE, binding=binding.verify(home.binding), start=start, attach=1 << 18
    )
    async with port.open(author.peer, wire.FOLLOW) as stream:
        await stream.write(wire.frame(request.to_bytes()))
        yield stream


async def page_from(stream):
    """The next page, or the refusal."""
    answer = wire.open_answer(await read_frame(stream, wire.MAX_PAGE + 1))
    if isinstance(answer, wire.Refusal):
        return answer
    await read_frame(stream, wire.max_attached(1 << 18))
    return wire.parse_page(answer)


@virtually
async def test_what_a_member_writes_comes_by_itself_with_its_blob_and_costs_no_question_and_no_announcement(tmp_path):
    members = homes(tmp_path, "abcd")
    async with Air() as air:
        nodes = await together(air, members, heads_every_s=10.0)
        await asyncio.sleep(40)  # whatever was to be announced before
        author, others = nodes[0], nodes[1:]
        name = author.blobs.put(BLOB)
        asked = [node.sync.status()["pages"] - node.sync.status()["pages_followed"] for node in others]
        gossip = sum(node.port.messages["gossip"] for node in nodes)
        author.append(blob=name, size=len(BLOB))
        await author.sync.announce()
        took = await until(lambda: all(node.size(author.home) == 1 for node in others), step_s=0.005)
        assert took < 0.3, "one way, with 64 KiB to each over one uplink"
        assert all(node.blobs.has(name) for node in others)
        assert [n.sync.status()["pages"] - n.sync.status()["pages_followed"] for n in others] == asked
        assert sum(node.port.messages["gossip"] for node in nodes) == gossip


@virtually
async def test_strangers_hear_of_it_a_little_later_and_members_at_once_while_one_does_not_follow(tmp_path):
    members = homes(tmp_path, "abc")
    async with Air() as air:
        nodes = await together(air, members[:2])
        heard = []
        stranger = air.ether.port("a stranger")
        stranger.subscribe(wire.topic(COLLECTIVE), heard.append)
        stranger.want([members[0].peer])
        await asyncio.sleep(40)
        before = len(heard)
        nodes[0].append(n=1)
        await nodes[0].sync.announce()
        await until(lambda: nodes[1].size(members[0]) == 1, limit_s=1)
        assert len(heard) == before
        assert await until(lambda: len(heard) > before) < 30
        for node in nodes:
            node.members.add(members[2].member)
        third = air.node(members[2], members, attached=named)  # it pulls only
        await until(lambda: third.size(members[0]) == 1)
        before = len(heard)
        nodes[0].append(n=2)
        await nodes[0].sync.announce()
        assert await until(lambda: len(heard) > before, limit_s=1) < 1


@virtually
async def test_members_that_follow_each_other_ask_seldom_while_nothing_happens_and_at_the_next_round_when_something_does(
    tmp_path,
):
    members = homes(tmp_path, "abc")
    async with Air() as air:
        nodes = await together(air, members, gossip=False, heads_every_s=5.0)
        for node in nodes:
            node.append(n=0)
            await node.sync.announce()
        await asyncio.sleep(60)

        def asked():
            return [node.sync.status()["heads_asked"] for node in nodes]

        before = asked()
        await asyncio.sleep(200)
        assert all(16 <= now - then <= 24 for now, then in zip(asked(), before, strict=True)), (
            "two every twenty seconds"
        )
        before = asked()
        nodes[0].append(n=1)
        await nodes[0].sync.announce()
        await asyncio.sleep(6)
        assert all(now > then for now, then in zip(asked(), before, strict=True))


@virtually
async def test_follower_that_takes_nothing_gets_one_page_and_holds_up_nobody(tmp_path):
    one, two, three = members = homes(tmp_path)
    async with Air() as air:
        a, b = await together(air, [one, two])
        a.members.add(three.member)
        port = air.ether.port(three.peer)
        async with as_follower(port, three, one) as stream:
            first = await until(lambda: len(a.sync._desk.followers) == 2)
            assert first < 5
            for n in range(5):
                a.append(n=n)
                await a.sync.announce()
                await until(lambda n=n: b.size(one) == n + 1, limit_s=1)
            assert len((await page_from(stream)).records) == 1
            assert not stream._buffer, "nothing more before it says that it took this"
            await stream.write(wire.go_on(1))
            assert len((await page_from(stream)).records) == 4, "all the rest at once"
            await asyncio.sleep(100)  # it is not heard of any more
            assert len(a.sync._desk.followers) == 1
    assert members


@virtually
async def test_quiet_author_sends_an_empty_page_now_and_then_and_is_followed_on_the_same_stream(tmp_path):
    members = homes(tmp_path, "ab")
    async with Air() as air:
        a, b = await together(air, members)
        a.append(n=0)
        await until(lambda: b.size(a.home) == 1)
        opened = a.port.messages[wire.FOLLOW], b.port.messages[wire.FOLLOW]
        await asyncio.sleep(600)
        assert all_follow([a, b])
        per_minute = (a.port.messages[wire.FOLLOW] - opened[0] + b.port.messages[wire.FOLLOW] - opened[1]) / 10
        assert per_minute <= 8, "two pages and two words to go on, in two writes or one"


@virtually
async def test_who_goes_on_too_early_is_no_member_or_comes_twice_loses_its_place(tmp_path):
    one, two, three = members = homes(tmp_path)
    async with Air() as air:
        a = air.node(one, members[:2], follows=True)
        port = air.ether.port(two.peer)
        async with as_follower(port, two, one) as stream:
            await stream.write(wire.go_on(0))
            assert await page_from(stream) == wire.Refusal(code="malformed")
        assert [fault_of(error).code for _, error in a.faults] == ["malformed"]
        async with as_follower(port, two, one) as first, as_follower(port, two, one) as second:
            await asyncio.sleep(1)
            assert len(a.sync._desk.followers) == 1
            a.append(n=0)
            await a.sync.announce()
            assert len((await page_from(second)).records) == 1
            with contextlib.suppress(StreamEnded):
                raise AssertionError(await page_from(first))
        async with as_follower(air.ether.port(three.peer), three, one) as stream:
            assert await page_from(stream) == wire.Refusal(code="not-a-member")
        async with as_follower(port, two, one, start=1) as stream:
            await asyncio.sleep(1)
            a.members.discard(two.member)
            a.append(n=1)
            await a.sync.announce()
            assert await page_from(stream) == wire.Refusal(code="not-a-member"), "its seat is gone"
        await until(lambda: not len(a.sync._desk.followers), limit_s=5)


@virtually
async def test_bad_page_of_an_author_is_its_fault_and_the_feed_comes_from_elsewhere(tmp_path):
    one, two, three = members = homes(tmp_path)
    feeds = feeds_of([one], tmp_path, entries=3)
    note = feeds.heads(COLLECTIVE, one.member)[0].note
    good = list(to_wire(feeds.records(COLLECTIVE, one.member)))
    line = good[1].line
    forged = wire.WireRecord(line=line[:-9] + bytes([line[-9] ^ 1]) + line[-8:], salt=good[1].salt, data=good[1].data)

    async def lie(stream):
        await stream.read(wire.frame_length(await stream.read(wire.HEADER), wire.MAX_REQUEST))
        page = wire.page_of(note, [good[0], forged])
        await stream.write(wire.answer(page.to_bytes()) + wire.attached([b"", b""]))

    async with Air() as air:
        a = air.node(one, members, gossip=False, heads_every_s=1000.0)
        a.port._handlers[wire.FOLLOW] = lie
        b = air.node(two, members, follows=True, heads_every_s=20.0)
        await until(lambda: b.faults)
        assert {(peer, fault_of(error).code) for peer, error in b.faults} == {(one.peer, "bad-signature")}
        assert b.size(one) == 0
        c = air.node(three, members, heads_every_s=20.0)
        give(c, feeds, [one])
        await until(lambda: b.size(one) == 3)
        assert len(b.faults) <= 4, "it is left alone for a growing time"
    feeds.close()


@virtually
async def test_author_that_is_followed_and_sends_nothing_is_asked_when_it_is_heard_of(tmp_path):
    one, two = members = homes(tmp_path, "ab")

    async def silent(stream):
        await asyncio.sleep(3600)

    async with Air() as air:
        a = air.node(one, members, heads_every_s=1000.0)
        a.port._handlers[wire.FOLLOW] = silent
        b = air.node(two, members, follows=True, heads_every_s=10.0)
        await until(lambda: len(b.sync._following) == 1)
        a.append(n=0)
        await a.sync.announce()
        assert await until(lambda: b.size(one) == 1) < 1.5


@virtually
async def test_member_of_an_older_version_is_pulled_from_and_not_asked_to_send_again_and_again(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    tried = []
    async with Air() as air:
        a = air.node(one, members)
        b = air.node(two, members, follows=True)
        real = b.port.open

        @contextlib.asynccontextmanager
        async def as_p2pd_says(peer, protocol):
            if protocol == wire.FOLLOW:
                tried.append(peer)
                raise PeerUnreachable(f"couldn't open {protocol}: protocols not supported")
            async with real(peer, protocol) as stream:
                yield stream

        vars(b.port)["open"] = as_p2pd_says
        await until(a.port.peers)
        for n in range(3):
            a.append(n=n)
            await a.sync.announce()
            await until(lambda n=n: b.size(one) == n + 1, limit_s=5)
        await asyncio.sleep(300)
        assert len(tried) == 1
        assert not b.faults


@virtually
async def test_member_that_comes_back_is_followed_again_and_nothing_is_missing(tmp_path):
    members = homes(tmp_path, "abc")
    async with Air(loss=0.05) as air:
        nodes = await together(air, members)
        a, b, _ = nodes
        await b.stop()
        for n in range(4):
            a.append(n=n)
            await a.sync.announce()
        again = air.node(members[1], members, follows=True, attached=named)
        await until(lambda: again.size(a.home) == 4)
        await until(lambda: all_follow([nodes[0], again, nodes[2]]), limit_s=120)
        a.append(n=4)
        await a.sync.announce()
        assert await until(lambda: again.size(a.home) == 5) < 2
