"""Promises of the guard, by its clock and ours: what a peer may cost, who is banned, and that honest trouble bans nobody."""

from __future__ import annotations

import contextlib
import json
import random
import stat
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors_network import OverQuota, StreamEnded
from node.guarding import bans
from node.guarding import guard as guards
from node.guarding.buckets import Bucket
from node.guarding.growth import FeedRates, Growth
from node.guarding.guard import Fault, Guard, Limits, fault_of
from node.guarding.limits import Rate
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import MemberId, PeerId, digest, peer_id

BLOB, HEADS = "/fishernet/blob/2", "/fishernet/heads/1"
MIB = 1 << 20


def peer(n) -> PeerId:
    return peer_id(bytes.fromhex(digest(str(n).encode())))


ADA, BOB = peer("ada"), peer("bob")
ADA_ID, BOB_ID = MemberId(digest(b"ada")), MemberId(digest(b"bob"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def guard(clock=None, **more) -> tuple[Guard, Clock]:
    clock = clock or Clock()
    return Guard(**({"clock": clock, "wall": clock} | more)), clock


def served(g, who, protocol=HEADS, *, known) -> bool:
    with g.stream(who, protocol, known=known) as free:
        return free


# -- quotas --------------------------------------------------------------------------------------------------------------------
@given(
    st.floats(0.1, 1000),
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 500)), max_size=40),
)
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate(per_s, burst, steps):
    now, taken = 0.0, 0.0
    bucket = Bucket(Rate(per_s=per_s, burst=burst), now)
    for pause, amount in steps:
        now += pause
        if bucket.take(amount, now):
            taken += amount
        assert taken <= burst + per_s * now + 1e-6


def test_a_thousand_fresh_peer_ids_get_no_more_than_the_strangers_share_and_no_member_feels_it():
    g, clock = guard()
    answered = 0
    for _ in range(10):
        answered += sum(served(g, peer(n), known=False) for n in range(1000))
        assert all(served(g, ADA, known=True) for _ in range(10))
        clock.now += 1
    rate = Limits().strangers.other
    assert answered <= rate.burst + 10 * rate.per_s
    assert g.status()["refused_requests"] == 10_000 - answered


def test_one_stranger_cannot_use_up_what_is_there_for_all_of_them():
    g, _ = guard()
    greedy = sum(served(g, peer(0), known=False) for _ in range(1000))
    others = sum(served(g, peer(n), known=False) for n in range(1, 1000))
    assert 0 < greedy <= Limits().stranger.other.burst
    assert others >= Limits().strangers.other.burst / 2 - 1


def test_streams_are_bounded_for_a_peer_for_all_strangers_and_in_all():
    limits = Limits()
    g, _ = guard(limits=replace(limits, streams=60))
    with contextlib.ExitStack() as held:
        took = [held.enter_context(g.stream(ADA, BLOB, known=True)) for _ in range(100)]
        assert sum(took) == limits.streams_per_peer
        took = [held.enter_context(g.stream(peer(n // 10), BLOB, known=False)) for n in range(100)]
        assert sum(took) == limits.streams_strangers
        assert sum(took[:10]) == limits.streams_per_stranger
        took = [held.enter_context(g.stream(BOB, BLOB, known=True)) for _ in range(100)]
        assert sum(took) == 60 - limits.streams_per_peer - limits.streams_strangers
    assert (g.status()["streams"], g.status()["stranger_streams"]) == (0, 0)
    assert served(g, ADA, BLOB, known=True)


def test_a_stranger_that_turns_out_to_be_a_member_keeps_the_count_of_its_streams():
    g, _ = guard()
    with g.stream(ADA, HEADS, known=False), g.stream(ADA, HEADS, known=True):
        with contextlib.ExitStack() as held:
            took = [held.enter_context(g.stream(ADA, HEADS, known=True)) for _ in range(100)]
        assert sum(took) == Limits().streams_per_peer - 2
    assert g.status()["streams"] == g.status()["stranger_streams"] == 0


def test_bytes_of_a_stream_are_slowed_down_to_the_rate_and_strangers_share_one():
    g, clock = guard()
    sent = Limits().member.sent
    assert g.pace(ADA, "out", int(sent.burst), known=True) == 0
    assert g.pace(ADA, "out", int(sent.per_s), known=True) == pytest.approx(1.0)
    assert g.pace(BOB, "out", MIB, known=True) == 0
    waits = [g.pace(peer(n), "in", 100_000, known=False) for n in range(100)]
    assert waits[0] == 0 < waits[50] < waits[99]
    clock.now += 1000
    assert g.pace(ADA, "out", 1, known=True) == 0


def test_answers_that_nobody_reads_take_a_bounded_part_of_the_memory():
    g, _ = guard()
    with contextlib.ExitStack() as held:

        def hold(who):
            with contextlib.suppress(OverQuota):
                held.enter_context(g.hold(who, MIB))
                return True
            return False

        for who in (ADA, BOB):
            assert served(g, who, known=True)
        assert sum(hold(ADA) for _ in range(100)) == 8
        assert hold(BOB)
        assert sum(hold(peer(n)) for n in range(100)) == 1
        assert g.status()["bytes_held"] == 10 * MIB
    assert g.status()["bytes_held"] == 0


def test_whatever_number_of_peer_ids_comes_the_guard_stays_small(tmp_path, monkeypatch):
    for module, name in ((guards, "MAX_STRANGERS"), (guards, "MAX_MEMBERS"), (bans, "MAX_BANS")):
        monkeypatch.setattr(module, name, 64)
    g, clock = guard(book=tmp_path / "bans.json", limits=Limits(threshold=10))
    tracemalloc.start()
    for n in range(1_000):
        who = PeerId(f"12D3KooW{n:044d}".replace("0", "z"))
        served(g, who, known=False)
        g.pace(who, "in", 1000, known=False)
        if n % 2 == 0:
            g.fault(who, Fault.MALFORMED)
        clock.now += 0.001
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 2 * MIB
    assert g.status()["stranger_accounts"] <= 64
    assert len(g.bans()) <= 64 * 9 / 8
    for n in range(200):
        served(g, PeerId(str(n)), known=True)
    assert g.status()["member_accounts"] == 64


# -- faults and bans -------------------------------------------------------------------------------------------------------------
def test_enough_faults_are_a_ban_that_ends_and_each_further_one_lasts_longer():
    told = []
    g, clock = guard(told=told.append, member_of={ADA: ADA_ID}.get)
    lasted = []
    for _ in range(9):
        while not g.banned(ADA):
            g.fault(ADA, Fault.BAD_BLOB)
        assert not served(g, ADA, known=True)
        began = clock.now
        while g.banned(ADA):
            clock.now += 60
        lasted.append(clock.now - began)
        assert served(g, ADA, known=True)
    assert [round(s) for s in lasted[:4]] == [300, 1200, 4800, 19_200]
    assert lasted[-1] == lasted[-2] == Limits().longest_ban_s == 7 * 86_400
    assert [(ban.member, ban.code, ban.by) for ban in told] == [(ADA_ID, "bad-blob", "guard")] * 9
    clock.now += 8 * 86_400
    while not g.banned(ADA):
        g.fault(ADA, Fault.BAD_BLOB)
    assert told[-1].until - clock.now == Limits().first_ban_s  # a week without is forgiven


def test_points_fade_so_that_rare_faults_never_ban():
    g, clock = guard()
    for _ in range(500):
        g.fault(ADA, Fault.BAD_BLOB)
        clock.now += 1200
    assert not g.bans()
    assert g.status()["fault_bad_blob"] == 500


def test_trouble_that_links_crashes_and_restarts_cause_never_bans():
    g, _ = guard()
    for _ in range(10_000):
        for fault in (Fault.STALLED, Fault.UNREACHABLE, Fault.REPLAY):
            g.fault(ADA, fault)
        g.blame(ADA, StreamEnded("couldn't read: it ended"))
        g.blame(ADA, TimeoutError())
        g.blame(ADA, OverQuota("later"))
    assert not g.bans()
    assert g.score(ADA) == 0


def test_errors_are_blamed_by_their_code():
    assert fault_of(BadSignature("x")) is Fault.BAD_SIGNATURE
    assert fault_of(TooLarge("x")) is Fault.LYING_LENGTH
    assert fault_of(Malformed("x")) is Fault.MALFORMED
    assert fault_of(StreamEnded("x")) is None
    assert fault_of(ValueError()) is None


def test_a_member_with_half_of_the_points_gets_a_strangers_share():
    g, clock = guard()
    for _ in range(3):
        g.fault(ADA, Fault.BAD_SIGNATURE)
    assert sum(served(g, ADA, known=True) for _ in range(500)) <= Limits().strangers.other.burst
    clock.now += 3600
    assert sum(served(g, ADA, known=True) for _ in range(100)) == 100


def test_who_goes_on_after_thousands_of_refusals_is_banned_as_a_flood():
    g, clock = guard()
    asked = 0
    while not g.banned(ADA):
        served(g, ADA, known=True)
        asked += 1
        clock.now += 0.0005  # 2,000 a second
        assert asked < 20_000
    (ban,) = g.bans()
    assert ban.code == "flood"


@pytest.mark.parametrize("members", [1, 16])
def test_a_newcomer_that_catches_up_and_sixteen_after_a_partition_are_never_banned(members):
    """Each asks for 16 feeds and 800 blobs (50 releases of 16 members) as fast as it can, and waits when it is told no."""
    rng = random.Random(1)
    limits = Limits(
        member=replace(Limits().member, requests={}, other=Rate(per_s=20, burst=40))
    )  # far too few: many a no
    g, clock = guard(limits=limits)
    left = {(peer(m), n): 0.25 for m in range(members) for n in range(60)}
    due = dict.fromkeys(left, clock.now)
    while left:
        clock.now += 0.02
        for matter in [m for m in left if due[m] <= clock.now]:
            if rng.random() < 0.02:  # killed, or its link lost it
                g.fault(matter[0], Fault.STALLED)
            elif served(g, matter[0], BLOB, known=True):
                del left[matter]
                continue
            due[matter] = clock.now + left[matter] * rng.uniform(0.5, 1)
            left[matter] = min(left[matter] * 2, 10.0)
    assert g.status()["refused_requests"] > 20 * members
    assert not g.bans()


# -- bans by the operator, and the file ------------------------------------------------------------------------------------------
def test_a_ban_by_the_operator_stands_until_it_is_lifted_over_restarts_too(tmp_path):
    book = tmp_path / "bans.json"
    g, clock = guard(book=book, member_of={ADA: ADA_ID}.get)
    g.ban(ADA_ID, None, "its operator left\nus")
    g.ban(BOB, 60, "for a minute")
    assert stat.S_IMODE(book.stat().st_mode) == 0o600
    clock.now += 10 * 365 * 86_400
    again, _ = guard(clock, book=book, member_of={ADA: ADA_ID, peer("new"): ADA_ID}.get)
    assert again.banned(ADA)
    assert again.banned(peer("new"))  # another key of the same member
    assert again.banned_member(ADA_ID)
    assert not again.banned(BOB)
    assert [ban.why for ban in again.bans()] == ["its operator left us"]
    assert again.unban(ADA_ID)
    assert not again.unban(ADA_ID)
    assert not guard(clock, book=book, member_of={ADA: ADA_ID}.get)[0].banned(ADA)
    with pytest.raises(Malformed, match="peer id"):
        g.ban("somebody", None, "")


def test_bans_of_the_guard_are_kept_over_a_restart_and_strangers_displace_none(tmp_path, monkeypatch):
    book = tmp_path / "bans.json"
    g, clock = guard(book=book, member_of={ADA: ADA_ID}.get, limits=Limits(threshold=10))
    g.fault(ADA, Fault.MALFORMED)
    g.ban(BOB, None, "")
    monkeypatch.setattr(bans, "MAX_BANS", 64)
    for n in range(200):
        g.fault(peer(n), Fault.MALFORMED)
        clock.now += 0.01
    g.save()
    again, _ = guard(clock, book=book)
    assert again.banned(ADA)
    assert again.banned(BOB)
    assert bans.MAX_BANS < len(again.bans()) <= bans.MAX_BANS * 9 / 8 + 2
    g.fault(BOB, Fault.FLOOD)
    assert [ban.by for ban in g.bans() if ban.who == BOB] == ["operator"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"v":1}', b'{"v":2,"bans":[],"times":[]}', b"[" * 100_000])
def test_a_damaged_file_of_bans_is_put_aside_and_said(tmp_path, data, caplog):
    book = tmp_path / "bans.json"
    book.write_bytes(data)
    g, _ = guard(book=book)
    assert not g.bans()
    assert (tmp_path / "bans.json.bad").read_bytes() == data
    assert "bans-not-read" in caplog.text
    g.ban(ADA, None, "")
    assert json.loads(book.read_bytes())["bans"][0]["peer"] == ADA


# -- hanging up ----------------------------------------------------------------------------------------------------------------
def test_of_a_crowd_of_strangers_the_newest_are_hung_up_on_and_never_anybody_known():
    g, _ = guard()
    most = Limits().strangers_connected
    members = frozenset(peer(f"member {n}") for n in range(300))
    early = frozenset(peer(f"early {n}") for n in range(most - 8))
    assert g.unwelcome(members | early, before=frozenset(), known=members.__contains__) == []
    crowd = frozenset(peer(f"late {n}") for n in range(20))
    going = g.unwelcome(members | early | crowd, before=members | early, known=members.__contains__)
    assert len(going) == len(set(going)) == 12
    assert crowd.issuperset(going)
    left = (members | early | crowd) - set(going)
    assert g.unwelcome(left, before=left, known=members.__contains__) == []
    over = g.unwelcome(left | {ADA}, before=left | {ADA}, known=members.__contains__)
    assert len(over) == 1  # nobody is new: one of the strangers goes
    assert not members & set(over)


def test_the_banned_go_first_and_take_no_place_of_a_stranger_and_a_flood_is_hung_up_on_in_turns():
    g, _ = guard(limits=replace(Limits(), strangers_connected=3))
    g.ban(ADA, None, "")
    g.ban(BOB, None, "")
    three = [peer(n) for n in range(3)]
    assert set(g.unwelcome([*three, ADA, BOB], before=[], known={BOB}.__contains__)) == {ADA, BOB}
    flood = [peer(f"flood {n}") for n in range(1000)]
    going = g.unwelcome([*flood, *three, ADA], before=three, known=lambda _peer: False)
    assert going[0] == ADA
    assert len(going) == guards._HANG_UPS
    assert not set(three) & set(going)


# -- feeds that grow without end -------------------------------------------------------------------------------------------------
def test_a_feed_that_grows_a_thousand_entries_a_second_is_held_back_and_an_old_honest_one_is_taken_at_once():
    clock = Clock()
    born = 0
    old = Growth(
        FeedRates(), now_ms=lambda: int(clock.now * 1000), founded_ms=lambda: born, held=lambda _member: (0, 0)
    )
    clock.now = 30 * 86_400.0
    assert old.room(BOB_ID) > 500_000  # a month of feed: a newcomer takes it in one go
    young = Growth(
        FeedRates(),
        now_ms=lambda: int(clock.now * 1000),
        founded_ms=lambda: 30 * 86_400_000,
        held=lambda _member: (0, 0),
    )
    stored = waiting = 0
    for _ in range(600):  # ten minutes
        waiting += 1000
        taken = min(waiting, young.room(ADA_ID))
        young.took(ADA_ID, taken, 1000 * taken)
        stored, waiting, clock.now = stored + taken, waiting - taken, clock.now + 1
    assert stored <= 20_000 + 0.25 * 600
    assert young.held_back() == {ADA_ID}
    assert young.room(BOB_ID) >= 20_000
    clock.now += 4 * waiting
    assert young.room(ADA_ID) >= waiting  # nothing is lost: it is taken when there is room
    assert young.held_back() == frozenset()


def test_a_feed_of_large_bodies_is_held_back_by_its_bytes():
    growth = Growth(FeedRates(), now_ms=lambda: 0, founded_ms=lambda: None, held=lambda _member: (3, 64 * MIB - 1))
    assert growth.room(ADA_ID) == 20_000 - 3
    growth.took(ADA_ID, 1, 1)
    assert growth.room(ADA_ID) == 0
