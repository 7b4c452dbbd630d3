"""A node that was away or is new: the newest release first, history after, and no work from a view that is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from keeper import Desk
from seats import Sitter, Table
from shapes import Cut

from node.collective.holdings import Holdings
from node.collective.pace import Pace
from node.errors import NotAllowed
from node.sections import Train
from node.serving import shelf as shelves
from node.serving.models import Serving
from node.serving.shelf import Shelf
from node.training import readiness
from protocol.ids import digest


@pytest.fixture
def table(memory: Path) -> Iterator[Table]:
    found = Table(memory)
    yield found
    found.close()


def shelf_of(sitter: Sitter) -> Shelf:
    """The shelf of a node that has just started; its engine process is never needed, and nobody sends it blobs."""
    adapter = {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": digest(b"seed"), "coordinates": 64}
    serving = Serving(model=sitter.home.path, base=sitter.fold.charter.base.digest, adapter=adapter, threads=1)
    return Shelf(sitter.seat, sitter.replay, serving, Holdings(sitter.seat, sitter.blobs, None, lambda: None))  # type: ignore[arg-type]


def releases_in(fresh: list[tuple[str, str]]) -> list[str]:
    return [name for name, _ in fresh if name.startswith("release-")]


def test_the_newest_release_is_served_first_and_history_after(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "_HISTORY_S", 0.0)  # no more than one old release at a time
    for _ in range(4):
        table.release()
    shelf = shelf_of(table["ada"])
    names = [name for name, _ in asyncio.run(shelf.update())]
    assert names[:2] == ["release-4", "view"]
    assert names[-1] == "release-3"
    assert shelf.behind
    later = [releases_in(asyncio.run(shelf.update())) for _ in range(3)]
    assert later == [["release-2"], ["release-1"], []]
    assert not shelf.behind


def test_nothing_older_is_looked_at_while_blobs_of_the_newest_are_coming(table: Table) -> None:
    for _ in range(3):
        table.release()
    ada = table["ada"]
    newest = [c for taken in ada.fold.in_cut(ada.fold.cut).values() for c in taken][-1]
    data = ada.read(newest.blob)
    assert data is not None
    ada.blobs.remove(newest.blob)
    ada.sit()
    shelf = shelf_of(ada)
    assert asyncio.run(shelf.update()) == []
    shelf._pace = Pace(stalled_s=0.0)  # nothing has come for a while: then what can be served is
    assert releases_in(asyncio.run(shelf.update())) == ["release-2", "release-1"]
    ada.blobs.put(data)
    assert releases_in(asyncio.run(shelf.update())) == ["release-3"]


def test_no_run_begins_before_the_newest_release_is_here(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templar's newcomers trained one window behind and were scored for it."""
    table.release("bob", "cyd")
    ada = table["ada"]
    kept = {name: ada.read(name) for name in ada.blobs.digests()}
    for name in kept:
        ada.blobs.remove(name)
    ada.sit()  # a start of the node: nothing is remembered
    desk = Desk(table)
    assert desk.rounds.readiness.lacking() == 2
    assert not desk.rounds.may_start(Train())
    monkeypatch.setattr(readiness, "_STALLED_S", 0.0)
    with pytest.raises(NotAllowed, match="2 contributions of the newest release are not here yet"):
        desk.run()
    for data in kept.values():
        ada.blobs.put(data or b"")
    assert desk.rounds.readiness.lacking() == 0
    assert desk.rounds.may_start(Train())
    desk.run()
    assert [c.number for c in ada.fold.contributions[ada.id]] == [1]


def test_one_member_alone_decides_its_releases(memory: Path) -> None:
    net = Cut(memory, ("ada",), 1)
    try:
        for number in (1, 2, 3):
            net.contribute("ada")
            net.until(lambda number=number: len(net.decisions("ada")) == number)  # type: ignore[misc]
        assert net.fates() == {event: {"released"} for event in net.wrote}
    finally:
        net.close()
