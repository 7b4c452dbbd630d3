"""Promises of retention: what is needed stays, the rest goes in a fixed order, what only we hold last of all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.syncing.retention import KEPT, LOW, Held, Room, Why, plan, prune
from protocol.ids import digest

MIB = 1 << 20


def held(name, why, size=MIB, *, age=0, others=2):
    return Held(digest=digest(name.encode()), size=size, why=why, age=age, others=others)


blobs = st.builds(
    Held,
    digest=st.integers(0, 10**9).map(lambda n: digest(n.to_bytes(8, "big"))),
    size=st.integers(0, 50 * MIB),
    why=st.sampled_from(list(Why)),
    age=st.integers(0, 9),
    others=st.none() | st.integers(0, 3),
)
everything = st.lists(blobs, max_size=40, unique_by=lambda h: h.digest)
rooms = st.builds(
    Room, quota=st.integers(0, 900 * MIB), free=st.integers(0, 900 * MIB), least_free=st.integers(0, 500 * MIB)
)


@given(everything, rooms)
def test_what_is_needed_is_never_dropped_and_the_quota_is_met_or_said_not_to_be(lying, room):
    found = plan(lying, room)
    assert all(h.why > KEPT for h in found.drop)
    left = found.used - found.freed
    short = max(left - room.quota if room.quota else 0, room.least_free - room.free - found.freed, 0)
    assert found.unmet == short
    if found.unmet:
        assert {h.digest for h in lying if h.droppable} == {h.digest for h in found.drop}
    if not room.over(found.used):
        assert not found.drop


@given(everything, rooms)
def test_dropping_what_is_named_and_planning_again_names_nothing(lying, room):
    found = plan(lying, room)
    gone = {h.digest for h in found.drop}
    after = Room(quota=room.quota, free=room.free + found.freed, least_free=room.least_free)
    again = plan([h for h in lying if h.digest not in gone], after)
    assert not again.drop
    assert again.unmet == found.unmet


@given(everything, rooms)
def test_nothing_goes_before_what_should_go_earlier(lying, room):
    found = plan(lying, room)
    order = [(h.others is None, h.others == 0, -h.why, h.age) for h in found.drop]
    rarity = [2 if h.others == 0 else 1 if h.others is None else 0 for h in found.drop]
    assert rarity == sorted(rarity)
    for rare in (0, 1, 2):
        inside = [o[2:] for o, r in zip(order, rarity, strict=True) if r == rare]
        assert inside == sorted(inside)


def test_the_order_is_refused_stale_superseded_then_oldest_history():
    lying = [
        held("newer", Why.HISTORY, age=9),
        held("older", Why.HISTORY, age=3),
        held("stale", Why.STALE),
        held("refused", Why.REFUSED),
        held("superseded", Why.SUPERSEDED),
        held("nobody's", Why.UNKNOWN),
        held("live", Why.RELEASE, 10 * MIB),
    ]
    words = {
        h.digest: n
        for h, n in zip(lying, ["newer", "older", "stale", "refused", "superseded", "nobody", "live"], strict=True)
    }
    found = plan(lying, Room(quota=MIB))
    assert [words[h.digest] for h in found.drop] == ["nobody", "refused", "stale", "superseded", "older", "newer"]
    assert found.unmet == 9 * MIB


def test_what_only_we_hold_goes_last_and_unasked_ones_before_it():
    lying = [
        held("only us", Why.REFUSED, others=0),
        held("not asked", Why.REFUSED, others=None),
        held("many", Why.HISTORY),
    ]
    found = plan(lying, Room(quota=1))
    assert [h.others for h in found.drop] == [2, None, 0]
    assert [h.others for h in plan(lying, Room(quota=int(2.3 * MIB))).drop] == [2]


def test_history_is_fetched_only_below_the_low_mark_so_that_nothing_flaps():
    room = Room(quota=100 * MIB)
    full = [held(f"h{n}", Why.HISTORY) for n in range(101)]
    left = full[len(plan(full, room).drop) :]
    used = sum(h.size for h in left)
    assert used <= LOW * room.quota
    assert room.admits(used - MIB, MIB)
    assert not room.admits(int(LOW * room.quota), MIB)
    assert not plan([*left, held("more", Why.HISTORY, room.quota - used)], room).drop
    assert not Room(quota=0, free=10, least_free=20).admits(0, 1)


def test_prune_takes_all_that_may_go_but_rare_ones_only_when_told():
    lying = [
        held("a", Why.HISTORY),
        held("b", Why.STALE, others=0),
        held("c", Why.STALE, others=None),
        held("d", Why.VOTE),
    ]
    assert [h.why for h in prune(lying).drop] == [Why.HISTORY]
    assert len(prune(lying, rare=True).drop) == 3
    assert prune(lying).to_json()["rare"] == 2 * MIB
