"""A partition of any shape heals: equal records, equal views, no contribution lost; a minority goes on alone meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import shapes
from shapes import Cut, Links

NAMES = ("ada", "bob", "cyd", "dan", "eve")

SHAPES: dict[str, Callable[[], Links]] = {
    "two-halves": lambda: shapes.among(NAMES[:2], NAMES[2:]),
    "minority-of-one": lambda: shapes.among(NAMES[:1], NAMES[1:]),
    "nobody-hears-anybody": frozenset,
    "ring-of-pairs": lambda: shapes.pairs(NAMES),
    "star": lambda: shapes.star("cyd", NAMES),
    "one-way-minority-hears": lambda: shapes.one_way(NAMES[2:], NAMES[:2]),
    "one-way-minority-is-heard": lambda: shapes.one_way(NAMES[:2], NAMES[2:]),
    "one-way-ring": lambda: shapes.ring(NAMES),
    "three-parts": lambda: shapes.among(NAMES[:1], NAMES[1:3], NAMES[3:]),
}


# Every shape is tried by `make test-slow`, these ones always.
ALWAYS = ("two-halves", "one-way-minority-is-heard")


@pytest.fixture
def make(memory: Path) -> Iterator[Callable[[int], Cut]]:
    made: list[Cut] = []

    def cut(seed: int) -> Cut:
        made.append(Cut(memory, NAMES, seed))
        return made[-1]

    yield cut
    for each in made:
        each.close()


def healed(net: Cut) -> None:
    """Everybody hears everybody again: nothing may be missing or different after that."""
    net.links = shapes.among(NAMES)
    net.until(net.settled)
    assert len({tuple(net.decisions(n)) for n in NAMES}) == 1
    assert len(net.views()) == 1
    assert net.fates() == {event: {"released"} for event in net.wrote}
    assert not any(s.fold.double_votes or s.store.forks(net.collective) for s in net)


def connected(links: Links) -> set[str]:
    """Members that a quorum of four can be reached from, and can reach: those that may decide while it lasts."""

    def reach(start: str, step: Callable[[str, str], tuple[str, str]]) -> set[str]:
        found, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for other in NAMES:
                if other not in found and step(here, other) in links:
                    found.add(other)
                    todo.append(other)
        return found

    both = {n: reach(n, lambda a, b: (a, b)) & reach(n, lambda a, b: (b, a)) for n in NAMES}
    return {n for n in NAMES if len(both[n]) >= 4}


@pytest.mark.parametrize("shape", [pytest.param(s, marks=() if s in ALWAYS else pytest.mark.slow) for s in SHAPES])
def test_it_heals_with_equal_views_and_no_lost_contribution(make: Callable[[int], Cut], shape: str) -> None:
    net = make(len(shape))
    assert net["ada"].fold.charter.quorum == 4
    net.contribute(*NAMES)
    net.until(net.settled)
    before = len(net.decisions("ada"))
    net.links = SHAPES[shape]()
    able = connected(net.links)
    net.contribute(*NAMES)
    net.turns(16)
    if len(able) >= 4:  # a majority does not wait
        net.until(lambda: all(len(net.decisions(name)) > before for name in able))
    for name in NAMES:
        alone = name not in able and not any((other, name) in net.links for other in able)
        if alone:
            assert len(net.decisions(name)) == before, "no minority decides"
    net.contribute(*NAMES[:2])  # work goes on wherever one is
    net.turns(4)
    healed(net)
    assert len(net.decisions("ada")) > before


def test_a_minority_trains_on_alone_and_its_work_joins_the_next_release(make: Callable[[int], Cut]) -> None:
    net = make(1)
    net.contribute(*NAMES)
    net.until(net.settled)
    net.links = shapes.among(NAMES[:1], NAMES[1:])
    ada = net["ada"]
    for _ in range(3):
        net.contribute("ada")
        net.turns(8)
    assert [ada.fold.fate(c) for c in ada.fold.contributions[ada.id]] == ["released", "pending", "pending", "pending"]
    net.contribute(*NAMES[1:])
    net.until(lambda: len(net.decisions("bob")) > 1)
    healed(net)
    assert {ada.fold.fate(c) for c in ada.fold.contributions[ada.id]} == {"released"}


def test_votes_that_were_cast_before_weeks_away_harm_nothing(make: Callable[[int], Cut]) -> None:
    """One accepts a proposal, hears nothing more for many heights and comes back with its old vote and unsent work."""
    net = make(2)
    net.contribute("bob", "cyd")
    ada = net["ada"]

    net.until(lambda: ada.id in ada.fold.tally.firsts.get(0, {}))  # it has voted, and nothing is decided yet
    assert net.decisions("ada") == []
    net.links = shapes.among(NAMES[:1], NAMES[1:])
    net.contribute("ada")
    for _ in range(4):
        net.contribute(*NAMES[1:])
        count = len(net.decisions("bob"))
        net.until(lambda count=count: len(net.decisions("bob")) > count)  # type: ignore[misc]
    net.restart("ada")
    healed(net)
    assert len(net.decisions("ada")) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_any_graph_of_one_way_links_heals(make: Callable[[int], Cut], seed: int) -> None:
    """Three phases of drawn links, some with kills; then everybody hears everybody."""
    rng, net = random.Random(seed), make(seed)
    for _ in range(3):
        net.links = shapes.drawn(NAMES, rng, rng.choice((0.1, 0.3, 0.6)))
        net.contribute(*rng.sample(NAMES, rng.randint(1, 4)))
        net.away = set(rng.sample(NAMES, rng.choice((0, 0, 1, 2))))
        net.turns(rng.randint(4, 16))
        for name in net.away:
            net.restart(name)
        net.away = set()
    healed(net)
