"""What a node serves stands in its feed: begun once, over all restarts, and ended when no engine can serve it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seats import Sitter, Table

from ledger import events
from node.collective.holdings import Holdings
from node.ports import ServedModel
from node.serving.models import Serving
from node.serving.shelf import Shelf
from protocol.ids import digest


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def shelf_of(sitter: Sitter) -> Shelf:
    """The shelf of a node that has just started; its engine process is never needed."""
    charter = sitter.fold.charter
    adapter = {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": digest(b"seed"), "coordinates": 64}
    serving = Serving(model=sitter.home.path, base=charter.base.digest, adapter=adapter, threads=1)
    nothing_to_fetch: Any = None
    return Shelf(
        sitter.seat, sitter.replay, serving, Holdings(sitter.seat, sitter.blobs, nothing_to_fetch, lambda: None)
    )


def served(sitter: Sitter) -> list[tuple[str, str]]:
    found = []
    for record in sitter.store.records(sitter.collective, sitter.id):
        if record.entry.header.type in {events.ModelServed.TYPE, events.ModelWithdrawn.TYPE} and record.body:
            found.append((record.entry.header.type, str(record.body.value()["release"])))
    return found


def test_a_release_that_is_served_is_an_event_once(table: Table) -> None:
    table.release()
    ada = table["ada"]
    first = ada.fold.releases[-1].digest
    shelf = shelf_of(ada)
    assert (f"release-{1}", first) in asyncio.run(shelf.update())
    assert served(ada) == [("model.served", first)]
    assert ada.seat.book.serving(ada.id) == {first: ada.fold.cut.model}
    asyncio.run(shelf.update())
    ada.sit()
    asyncio.run(shelf_of(ada).update())
    assert served(ada) == [("model.served", first)], "a restart serves it again, and says nothing new"


def test_while_nothing_may_be_written_it_is_served_and_told_later(table: Table) -> None:
    table.release()
    ada = table["ada"]
    shelf = shelf_of(ada)
    ada.seat.pause("our own feed may be longer elsewhere")
    assert asyncio.run(shelf.update())
    assert served(ada) == []
    ada.seat.pause(None)
    asyncio.run(shelf.update())
    assert len(served(ada)) == 1


def test_what_an_earlier_epoch_made_is_withdrawn_when_the_next_one_begins(table: Table) -> None:
    table.release()
    ada = table["ada"]
    first = ada.fold.releases[-1].digest
    asyncio.run(shelf_of(ada).update())
    adapter = {**ada.fold.charter.to_json()["adapter"], "seed": digest(b"another")}  # type: ignore[dict-item]
    table.amend({"op": "set", "field": "adapter", "value": adapter})
    asyncio.run(shelf_of(ada).update())
    assert served(ada) == [("model.served", first), ("model.withdrawn", first)]
    assert ada.seat.book.serving(ada.id) == {}


def names_of(shelf: Shelf) -> dict[str, ServedModel]:
    engine: Any = shelf._engine
    return {model.name: model for model in engine.models()}


def test_each_members_own_part_is_served_under_its_name(table: Table) -> None:
    table.release()
    ada, bob = table["ada"], table["bob"]
    shelf = shelf_of(ada)
    fresh = asyncio.run(shelf.update())
    assert {"member/ada", "member/bob", "member/cyd"} <= {name for name, _ in fresh}
    first = names_of(shelf)["member/bob"]
    (sent,) = bob.fold.contributions[bob.id]
    answer = ada.replay.examine(sent)
    wanted = np.zeros(64, dtype=np.float32)
    wanted[answer.update.indices] = answer.update.units / 2**24
    assert first.vector is not None
    np.testing.assert_array_equal(np.load(first.vector), wanted)
    assert first.owner == "bob"
    assert asyncio.run(shelf.update()) == [], "nothing new, nothing computed"

    table["bob"].publish()
    table.deliver()
    assert [name for name, _ in asyncio.run(shelf.update())] == ["view", "member/bob"]
    second = names_of(shelf)["member/bob"]
    assert second.digest != first.digest
    engine: Any = shelf._engine
    assert engine.find(f"member/bob@{first.digest}").vector == first.vector, "the one before is still found by digest"


def test_part_of_who_has_sent_nothing_is_not_served_and_of_who_left_no_longer_under_the_name(table: Table) -> None:
    table.release("ada", "bob")
    shelf = shelf_of(table["ada"])
    asyncio.run(shelf.update())
    assert {name for name in names_of(shelf) if name.startswith("member/")} == {"member/ada", "member/bob"}
    table.amend({"op": "remove", "id": table["bob"].id})
    asyncio.run(shelf.update())
    assert {name for name in names_of(shelf) if name.startswith("member/")} == {
        "member/ada",
        f"member/{table['bob'].id[:12]}",
    }


def test_what_a_member_declared_about_its_data_is_what_auto_goes_by(table: Table) -> None:
    table.release()
    table["bob"].seat.append(events.DataDescribed(dataset="films", tags=("actors", "reviews")))
    table["bob"].seat.append(events.DataDescribed(dataset="books"))
    table.deliver()
    shelf = shelf_of(table["ada"])
    asyncio.run(shelf.update())
    engine: Any = shelf._engine
    assert engine._router.domains["member/bob"].text == "books. films: actors, reviews"
    assert engine._router.domains["member/bob"].source == "declared"
