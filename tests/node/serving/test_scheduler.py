"""Who gets the next row: oldest first, no adapter starves another, organisations share, a full queue says when to return.

Everything runs on a simulated clock: `Sim` is a server whose answers take a given time each.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.serving.engine.scheduler import BASE, Entry, Limits, Scheduler

CYCLE = 2.0
NUMBERS = itertools.count(1)


def entry(version: str, at: float = 0.0, tenant: str = "", **more: float) -> Entry:
    return Entry(number=next(NUMBERS), version=version, tenant=tenant, arrived=at, cost=10, **more)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Sim:
    """Rows, slots and a clock; answers take `lasts[number]` seconds, versions are in memory from `ready[version]` on."""

    rows: int
    limits: Limits = field(default_factory=Limits)
    slots: int = 1000
    lasts: dict[int, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    bucket: dict[str, int] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    order: list[Entry] = field(default_factory=list)
    most_active: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)
        self.running: dict[int, tuple[float, Entry]] = {}

    def plan(self) -> list[Entry]:
        active = self.scheduler.active()
        used = {version: sum(e.version == version for _, e in self.running.values()) for version in active}
        starts = self.scheduler.plan(
            self.now,
            self.rows - len(self.running),
            lambda _bucket: self.slots - len(active),
            lambda version: self.bucket.get(version, 8) if self.ready.get(version, 0.0) <= self.now else None,
        )
        for start in starts:
            if start.evict is not None:
                assert not used.get(start.evict), "an adapter in use was evicted"
            assert start.activate == (start.entry.version not in active) or start.entry.version == BASE
            active = [v for v in active if v != start.evict]
            active += [start.entry.version] if start.activate else []
            used[start.entry.version] = used.get(start.entry.version, 0) + 1
            self.most_active = max(self.most_active, len(active))
            self.running[start.entry.number] = (self.now + self.lasts.get(start.entry.number, 1.0), start.entry)
            self.started[start.entry.number] = self.now
            self.order.append(start.entry)
        assert sorted(active) == sorted(self.scheduler.active())
        return [start.entry for start in starts]

    def finish(self) -> None:
        """Go on to the next end of an answer."""
        self.now, found = min(self.running.values(), key=lambda pair: (pair[0], pair[1].number))
        del self.running[found.number]
        self.scheduler.served(found.tenant, round(10 * self.lasts.get(found.number, 1.0)))
        self.scheduler.ended(found, self.now)

    def run(self, arrivals: Iterable[Entry], until: float = 1e9, tick: float = 0.1) -> None:
        """Play `arrivals` to the end."""
        left = [(e.arrived, e.number, e) for e in arrivals]
        heapq.heapify(left)
        while left or self.running or self.scheduler.waiting:
            while left and left[0][0] <= self.now:
                assert self.scheduler.offer(heapq.heappop(left)[2], self.now) is None
            self.plan()
            ends = min((end for end, _ in self.running.values()), default=float("inf"))
            following = min(
                ends, left[0][0] if left else float("inf"), self.now + tick if self.scheduler.waiting else ends
            )
            if following > until:
                return
            assert following < float("inf"), "something waits for nothing"
            self.now = following
            while self.running and min(end for end, _ in self.running.values()) <= self.now:
                self.finish()


def test_oldest_front_request_goes_first_among_versions() -> None:
    sim = Sim(rows=1)
    sim.run([entry("b", 0.0), entry("a", 0.1), entry("b", 0.2), entry(BASE, 0.3), entry("a", 0.4)])
    assert [e.arrived for e in sim.order] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_never_more_active_than_allowed_and_all_are_answered() -> None:
    sim = Sim(rows=4, limits=Limits(max_active=3))
    sim.run(entry(f"v{i % 11}", i * 0.01) for i in range(200))
    assert len(sim.order) == 200
    assert sim.most_active == 3


def test_version_that_is_not_ready_is_passed_over() -> None:
    """LoRAX stops at the first adapter whose download is unfinished (head-of-line blocking)."""
    slow, fast = entry("slow", 0.0), [entry(f"v{i}", 0.1) for i in range(5)]
    sim = Sim(rows=1, limits=Limits(max_active=2), ready={"slow": 100.0})
    sim.run([slow, *fast])
    assert sim.started[slow.number] == pytest.approx(100.0, abs=0.1)
    assert max(sim.started[e.number] for e in fast) < 6


def test_version_that_is_too_big_for_the_free_slots_is_passed_over() -> None:
    big, small = entry("big", 0.0), entry("small", 0.1)
    scheduler = Scheduler(Limits())
    for each in (big, small):
        assert scheduler.offer(each, 0.2) is None
    starts = scheduler.plan(
        0.2, 2, lambda bucket: 1 if bucket == 8 else 0, lambda version: 64 if version == "big" else 8
    )
    assert [start.entry for start in starts] == [small]


def test_alternating_versions_with_one_slot_do_not_starve_the_second() -> None:
    """SGLang with one slot never ran B in a queue of A, B, A, A, ..."""
    first, b = entry("a", 0.0), entry("b", 0.01)
    sim = Sim(rows=2, limits=Limits(max_active=1, cycle=CYCLE))
    sim.run([first, b, *(entry("a", 0.02 + i * 0.1) for i in range(300))])
    assert sim.started[b.number] - b.arrived <= CYCLE + 1.0 + 0.1


def test_version_that_always_has_a_row_is_drained_after_its_cycle() -> None:
    """In LoRAX an adapter with a row in every batch keeps its slot for ever."""
    sim = Sim(rows=3, limits=Limits(max_active=1, cycle=CYCLE))
    flood = [entry("a", 0.0) for _ in range(60)]
    for number, each in enumerate(flood):
        sim.lasts[each.number] = 0.7 + number % 3 * 0.3  # the rows never end together
    b = entry("b", 0.5)
    sim.run([*flood, b])
    assert sim.started[b.number] - b.arrived <= 2 * CYCLE + 1.3


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 4),
    max_active=st.integers(1, 3),
    flood=st.lists(st.tuples(st.floats(0, 8), st.floats(0.05, 3)), min_size=20, max_size=80),
    at=st.floats(0, 10),
    tenants=st.sampled_from([("x", "x"), ("x", "y"), ("", "")]),
    slots=st.sampled_from([1, 1000]),
)
def test_flooded_adapter_delays_another_by_at_most_two_cycles_and_the_longest_answer(
    rows: int,
    max_active: int,
    flood: list[tuple[float, float]],
    at: float,
    tenants: tuple[str, str],
    slots: int,
) -> None:
    sim = Sim(rows=rows, slots=slots, limits=Limits(max_active=max_active, cycle=CYCLE))
    entries = [entry("a", arrived, tenants[0]) for arrived, _ in flood]
    sim.lasts = {e.number: lasts for e, (_, lasts) in zip(entries, flood, strict=True)}
    b = entry("b", at, tenants[1])
    sim.run([*entries, b])
    assert sim.started[b.number] - b.arrived <= 2 * CYCLE + max(lasts for _, lasts in flood) + 0.1


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 4),
    max_active=st.integers(1, 3),
    flooded=st.integers(2, 5),
    lasts=st.floats(0.1, 2),
    at=st.floats(0, 6),
)
def test_several_flooded_adapters_take_turns(rows: int, max_active: int, flooded: int, lasts: float, at: float) -> None:
    sim = Sim(rows=rows, limits=Limits(max_active=max_active, cycle=CYCLE))
    entries = [entry(f"a{i % flooded}", 0.001 * i) for i in range(150)]
    b = entry("b", at)
    sim.lasts = {e.number: lasts for e in (*entries, b)}
    sim.run([*entries, b])
    assert sim.started[b.number] - b.arrived <= flooded * (CYCLE + lasts) + lasts + CYCLE


def test_free_slots_of_unused_versions_are_taken_oldest_use_first() -> None:
    sim = Sim(rows=1, limits=Limits(max_active=2))
    sim.run([entry("a", 0.0), entry("b", 1.0), entry("a", 2.0), entry("c", 3.0)])
    assert sorted(sim.scheduler.active()) == ["a", "c"]


def test_organisations_share_by_served_tokens() -> None:
    """One that asks seven times as often, for longer answers, gets no more than its half and what is left."""
    sim = Sim(rows=2)
    greedy = [entry(f"g{i % 5}", 0.0, "greedy") for i in range(200)]
    modest = [entry("m", 0.0, "modest") for _ in range(30)]
    for each in greedy:
        sim.lasts[each.number] = 2.0  # and its answers are longer
    sim.run([*greedy, *modest], until=40)
    time = {
        name: sum(sim.lasts.get(e.number, 1.0) for e in sim.order if e.tenant == name) for name in ("greedy", "modest")
    }
    assert time["modest"] == 30, "all of its answers"
    assert time["greedy"] >= 40, "and what it leaves is used"


def test_organisation_that_was_away_has_no_credit_and_no_debt() -> None:
    sim = Sim(rows=1)
    early = [entry("a", 0.0, "early") for _ in range(20)]
    late = [entry("b", 10.0, "late") for _ in range(20)]
    sim.run([*early, *late])
    mixed = [e.tenant for e in sim.order if sim.started[e.number] >= 11][:18]
    assert 8 <= mixed.count("late") <= 10, "from then on they alternate"


def test_many_small_organisations_come_in_the_order_they_asked() -> None:
    sim = Sim(rows=1)
    each = [entry(f"v{i % 3}", 0.01 * i, f"tenant-{(i * 7) % 40}") for i in range(40)]
    sim.run(each)
    assert [e.number for e in sim.order] == [e.number for e in each]


def test_full_queue_refuses_with_a_time_and_leaves_room_for_newcomers() -> None:
    scheduler = Scheduler(Limits(queue=100))
    refused = [scheduler.offer(entry("a", 0.0, "loud"), 0.0) for _ in range(100)]
    assert refused.count(None) == 50
    assert {r for r in refused if r is not None} == {1}, "nothing is known of the rate yet"
    assert [scheduler.offer(entry("b", 0.0, "second"), 0.0) for _ in range(40)].count(None) == 25
    assert scheduler.offer(entry("c", 0.0, "third"), 0.0) is None


def test_time_to_come_back_follows_the_rate() -> None:
    sim = Sim(rows=1, limits=Limits(queue=40))
    for _ in range(20):
        assert sim.scheduler.offer(entry("a"), 0.0) is None
    for _ in range(10):
        sim.plan()
        sim.finish()  # one a second
    while sim.scheduler.offer(entry("a"), sim.now) is None:
        pass
    assert 15 <= (sim.scheduler.offer(entry("a"), sim.now) or 0) <= 25


def test_deadlines_and_cancels_take_out_what_waits() -> None:
    scheduler = Scheduler(Limits())
    late, kept, gone = entry("a", deadline=1.0), entry("a", deadline=9.0), entry("b")
    for each in (late, kept, gone):
        assert scheduler.offer(each, 0.0) is None
    assert scheduler.cancel(gone.number) == gone
    assert scheduler.cancel(gone.number) is None
    assert scheduler.expired(0.5) == []
    assert scheduler.expired(1.0) == [late]
    assert scheduler.fail("a") == [kept]
    assert scheduler.idle
    assert scheduler.wanted() == []


def test_versions_come_into_memory_in_the_order_they_are_due() -> None:
    scheduler = Scheduler(Limits())
    for version, at in (("late", 3.0), ("first", 1.0), (BASE, 0.0), ("second", 2.0)):
        assert scheduler.offer(entry(version, at), 3.0) is None
    assert scheduler.wanted() == ["first", "second", "late"]


def test_short_memory_drains_and_frees_an_active_version() -> None:
    """A version that is not in memory for lack of room must not wait for ever behind a flooded one."""
    sim = Sim(rows=1, limits=Limits(max_active=8, cycle=CYCLE), ready={"b": 1e9})
    for each in (*(entry("a") for _ in range(50)), entry("b")):
        assert sim.scheduler.offer(each, 0.0) is None
    given_way = None
    while given_way is None and sim.now < 10:
        if not sim.running:
            starts = sim.scheduler.plan(sim.now, 1, lambda _b: 9, lambda v: 8 if v == "a" else None, {"b"})
            for start in starts:
                sim.running[start.entry.number] = (sim.now + 1, start.entry)
        if sim.running:
            sim.finish()
        given_way = sim.scheduler.give_way(sim.now, {"b"})
    assert given_way == "a"
    assert sim.now <= CYCLE + 1


def test_start_that_finds_no_slot_is_put_back_in_front() -> None:
    scheduler = Scheduler(Limits())
    first, second = entry("a", 0.0), entry("a", 1.0)
    for each in (first, second):
        assert scheduler.offer(each, 1.0) is None
    (start,) = scheduler.plan(1.0, 1, lambda _b: 1, lambda _v: 8)
    scheduler.undo(start)
    assert scheduler.active() == []
    assert [s.entry for s in scheduler.plan(1.0, 2, lambda _b: 1, lambda _v: 8)] == [first, second]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from("xy"), st.sampled_from(["go", "cancel", "end"])), max_size=80
    )
)
def test_nothing_is_lost_or_started_twice(moves: list[tuple[str, str, str]]) -> None:
    sim = Sim(rows=2, limits=Limits(max_active=2))
    offered, cancelled = dict[int, Entry](), set[int]()
    for version, tenant, move in moves:
        if move == "cancel" and offered:
            number = max(offered)
            if sim.scheduler.cancel(number) is not None:
                cancelled.add(number)
        elif move == "end" and sim.running:
            sim.finish()
        else:
            each = entry(version, sim.now, tenant)
            offered[each.number] = each
            assert sim.scheduler.offer(each, sim.now) is None
        sim.plan()
    while sim.running:
        sim.finish()
        sim.plan()
    assert sorted(e.number for e in sim.order) == sorted(set(offered) - cancelled)
    assert sim.scheduler.idle
