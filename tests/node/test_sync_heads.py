"""Promises of head vectors: whatever was lost, members end up alike, and asking costs what changed, not how many there are."""

from __future__ import annotations

import asyncio
import random

import pytest
from ether_nodes import Air, feeds_of, give, until, virtually
from peers import COLLECTIVE, homes

from ledger.store import Store
from node.network.links import FLOOR_S, MAX_PEERS, SLACK_S, SLOWEST, Links
from node.syncing.meeting import PER_ROUND, STRANGER_EVERY_S, STRANGERS_AT_ONCE, Meeting
from protocol import wire

NAMES = "abcdefghijklmnopqrstuvwxyz0123456789"


async def idle_cost(tmp_path, authors_count, *, changing=0):
    """Bytes that asking for heads costs two nodes in 200 simulated seconds, when they hold feeds of so many members."""
    one, two, *authors = homes(tmp_path, NAMES[: 2 + authors_count])
    feeds = feeds_of(authors, tmp_path)
    async with Air() as air:
        a, b = (air.node(home, [one, two, *authors], gossip=False) for home in (one, two))
        for node in (a, b):
            give(node, feeds, authors)
        await until(lambda: a.sync.status()["heads_asked"] and b.sync.status()["heads_asked"])
        await asyncio.sleep(20)
        before = sum(node.port.sent[wire.CHANGES] for node in (a, b))
        for n in range(changing):
            a.append(n=n)
            await asyncio.sleep(10)
            assert b.size(one) == n + 1
        await asyncio.sleep(200 - 10 * changing)
        cost = sum(node.port.sent[wire.CHANGES] for node in (a, b)) - before
    feeds.close()
    return cost


@virtually
async def test_asking_for_heads_costs_what_changed_and_not_how_many_members_there_are(tmp_path):
    few = await idle_cost(tmp_path / "few", 2)
    many = await idle_cost(tmp_path / "many", 22)
    assert abs(many - few) < few * 0.02
    busy = await idle_cost(tmp_path / "busy", 22, changing=5)
    note = 430
    assert 5 * note <= busy - many <= 5 * 4 * note, "each change is told once to each, and told back once"


@virtually
async def test_nodes_that_hold_the_same_tell_each_other_no_heads_but_the_askers_own(tmp_path):
    one, two, *authors = homes(tmp_path, NAMES[:20])
    feeds = feeds_of(authors, tmp_path)
    async with Air() as air:
        a, b = (air.node(home, [one, two, *authors]) for home in (one, two))
        for node in (a, b):
            give(node, feeds, authors)
        await until(lambda: all(node.sync.status()["answers"] >= 3 for node in (a, b)))
        assert a.sync.status()["heads_sent"] == b.sync.status()["heads_sent"] == 0
        c = air.node(homes(tmp_path / "more", "9")[0], [one, two, *authors])
        await asyncio.sleep(30)
        assert c.heads() == {}, "nobody serves whoever is no member"
    feeds.close()


@virtually
async def test_everything_arrives_without_announcements_and_with_every_tenth_packet_lost(tmp_path):
    members = homes(tmp_path, "abcdef")
    async with Air(loss=0.1) as air:
        nodes = [air.node(home, members, gossip=False) for home in members]
        for n in range(12):
            nodes[n % len(nodes)].append(n=n)
            await asyncio.sleep(3)
        took = await until(lambda: all(node.size(home) == 2 for node in nodes for home in members))
        assert took < 30
        await asyncio.sleep(10)
        assert all(node.heads() == nodes[0].heads() for node in nodes)
        assert not any(node.forks or node.faults for node in nodes)


@virtually
async def test_who_was_away_gets_what_it_missed_and_gives_what_it_wrote_alone(tmp_path):
    members = homes(tmp_path, "abcd")
    async with Air() as air:
        nodes = [air.node(home, members, gossip=False) for home in members]
        alone, *rest = nodes
        await asyncio.sleep(20)
        alone.port.leave()
        for n in range(5):
            alone.append(n=n)
            rest[n % 3].append(n=n)
            await asyncio.sleep(7)
        assert not any(node.size(members[0]) for node in rest)
        alone.port.away = False
        for node in nodes:
            node.port.tidy()
        await until(lambda: all(node.heads() == alone.heads() and len(node.heads()) == 4 for node in nodes))
        assert all(node.size(members[0]) == 5 for node in rest)


@virtually
async def test_token_of_an_earlier_life_is_answered_with_all_that_differs(tmp_path):
    members = homes(tmp_path, "ab")
    one = members[0]
    async with Air() as air:
        a, b = (air.node(home, members, gossip=False) for home in members)
        a.append(n=0)
        await until(lambda: b.size(one) == 1)
        await a.stop()
        again = air.node(one, members, gossip=False)  # its change numbers begin anew
        again.append(n=1)
        b.port.tidy()
        await until(lambda: b.size(one) == 2)
        answer = await b.sync._asker.changes(one.peer, "another-1", b"")
        assert {wire_member(note) for note in answer.notes} == {one.member}
        assert await b.sync._asker.changes(one.peer, answer.token, b"") == wire.ChangesAnswer(
            binding=answer.binding, token=answer.token, notes=()
        )


def wire_member(note):
    return note.decode().split("\n")[0].rpartition("/")[2]


@virtually
async def test_head_that_was_not_wanted_is_asked_for_again_when_it_is(tmp_path):
    one, two, new = homes(tmp_path, "abn")
    feeds = feeds_of([new], tmp_path, entries=3)
    wanted = {one.member, two.member}
    async with Air() as air:
        a = air.node(one, [one, two, new], gossip=False)
        give(a, feeds, [new])
        b = air.node(two, [one, two], gossip=False, wants=wanted.__contains__)
        await asyncio.sleep(60)
        assert b.heads() == {}
        wanted.add(new.member)  # an amendment; nothing changes at `a`
        await until(lambda: b.size(new) == 3)
    feeds.close()


@virtually
async def test_more_changes_than_one_answer_holds_come_one_answer_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "MAX_HEADS", 4)
    one, two, *authors = homes(tmp_path, NAMES[:16])
    feeds = feeds_of(authors, tmp_path)
    members = [one, two, *authors]
    async with Air() as air:
        a, b = (air.node(home, members, gossip=False) for home in (one, two))
        await asyncio.sleep(20)
        give(a, feeds, authors)
        await until(lambda: len(b.heads()) == len(authors), limit_s=11)
    feeds.close()


@virtually
async def test_feed_that_was_left_half_pulled_is_finished_after_a_restart(tmp_path):
    one, two = members = homes(tmp_path, "ab")
    feeds = feeds_of([one], tmp_path, entries=9)
    note = feeds.heads(COLLECTIVE, one.member)[0].note
    async with Air() as air:
        air.node(one, members, gossip=False).store.append_foreign(
            COLLECTIVE, one.member, feeds.records(COLLECTIVE, one.member), note
        )
        half = Store.open(two.folder / "ledger.db")
        half.append_foreign(COLLECTIVE, one.member, feeds.records(COLLECTIVE, one.member, 0, 4), note)
        half.close()
        b = air.node(two, members, gossip=False)
        await until(lambda: b.size(one) == 9)
    feeds.close()


def test_changes_are_numbered_from_each_opening_and_the_newest_of_a_feed_counts(tmp_path):
    one, two = homes(tmp_path, "ab")
    with Store.open(tmp_path / "l.db") as store:
        assert store.changes(COLLECTIVE) == ([], 0)
        for home in (one, two, one):
            store.append(home.key, COLLECTIVE, "note.added", {}, now_ms=0, salt=bytes(16))
        assert store.changes(COLLECTIVE) == ([(two.member, 2), (one.member, 3)], 3)
        assert store.changes(COLLECTIVE, 2) == ([(one.member, 3)], 3)
        assert store.length(COLLECTIVE, one.member) == 2
        heads = store.heads(COLLECTIVE)  # signing is a change: what is told is new
        numbers = dict(store.changes(COLLECTIVE, 3)[0])
        assert set(numbers) == {one.member, two.member}
        assert store.heads(COLLECTIVE) == heads
        assert store.changes(COLLECTIVE, 5)[0] == []
    with Store.open(tmp_path / "l.db") as store:
        assert store.changes(COLLECTIVE) == ([], 0)
        assert store.length(COLLECTIVE, one.member) == 2
        assert store.length(COLLECTIVE, "00" * 32) == 0


# -- whom to ask, and how long to wait -------------------------------------------------------------------------------
def meeting(members, now):
    return Meeting(rng=random.Random(1), clock=lambda: now[0], member_of=lambda peer: peer if peer in members else None)


def test_a_round_asks_as_many_whether_there_are_ten_peers_or_a_thousand():
    for count in (10, 1000):
        peers = frozenset(f"p{n}" for n in range(count))
        meet = meeting(peers, [0.0])
        assert len(meet.due(peers, ())) == count, "whoever is new is asked at once"
        for peer in peers:
            meet.answered(peer)
        assert meet.due(peers, ()) == []
        assert len(meet.drawn(peers, ())) == PER_ROUND
    few = meeting({"a", "b"}, [0.0])
    for peer in "ab":
        few.answered(peer)
    assert sorted(few.drawn({"a", "b"}, ())) == ["a", "b"]
    assert few.drawn({"a", "b"}, {"a"}) == ["b"]
    assert few.gone({"b"}) == {"a"}
    assert few.due({"a", "b"}, ()) == ["a"]


def test_a_thousand_strangers_are_asked_a_few_at_a_time_and_each_once_a_minute():
    now = [0.0]
    strangers = frozenset(f"s{n}" for n in range(1000))
    meet = meeting({"m"}, now)
    first = meet.due(strangers | {"m"}, ())
    assert "m" in first
    assert len(first) == STRANGERS_AT_ONCE + 1
    for peer in first:
        meet.asked(peer)
    assert not set(meet.due(strangers, ())) & set(first)
    assert meet.due(strangers, first[1:]) == [], "as many are under way already"
    meet.answered("s0")
    assert meet.is_stranger("s0")
    assert not meet.has_answered("s0")
    assert meet.drawn({"s0"}, ()) == []
    now[0] = STRANGER_EVERY_S
    assert meet.drawn({"s0"}, ()) == ["s0"], "it may have become a member"


def test_deadline_follows_size_and_measured_speed_between_a_floor_and_a_lowest_rate():
    links = Links()
    kib = 1024
    assert links.deadline("new", 256 * kib) == SLACK_S + 256 * kib / SLOWEST
    assert links.rate("new") is None
    for _ in range(20):
        links.note("slow", 256 * kib, 256 * kib / (20 * kib))
        links.answered("slow", 0.7)
        links.note("fast", 256 * kib, 0.005)
        links.answered("fast", 0.002)
    assert links.rate("slow") == pytest.approx(20 * kib)
    assert links.rtt("slow") == pytest.approx(0.7)
    assert links.deadline("fast", 256 * kib) == FLOOR_S
    needed = 256 / 20
    assert 3 * needed < links.deadline("slow", 256 * kib) < 100
    assert links.deadline("slow", 4) == FLOOR_S
    for size in (4, 64 * kib, 16 << 20):
        for peer in ("new", "slow", "fast"):
            assert FLOOR_S <= links.deadline(peer, size) <= SLACK_S + size / SLOWEST


def test_link_that_became_slow_gets_more_time_after_each_miss_and_never_without_end():
    links = Links()
    links.note("p", 1 << 20, 0.01)
    size, waits = 256 * 1024, []
    for _ in range(20):
        waits.append(links.deadline("p", size))
        links.missed("p", size, waits[-1])
    assert waits == sorted(waits)
    assert waits[0] == FLOOR_S
    assert waits[-1] == SLACK_S + size / SLOWEST
    for n in range(MAX_PEERS + 10):
        links.answered(f"q{n}", 0.1)
    assert links.rate("p") is None, "the longest unused link is forgotten first"
