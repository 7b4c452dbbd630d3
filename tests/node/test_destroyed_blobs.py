"""A blob is deleted on its author's word alone, by every holder's own hand, and not before a release is without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seats import Sitter, Table, salted

from ledger import audit, events
from ledger.collective import Contribution
from node.audits import auditing, bundling, replaying
from node.collective import forgetting
from node.data import erasing
from node.errors import NotAllowed
from tests.node.test_erasing import session_of, tend


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    for sitter in found:
        sitter.publish(salted(sitter.name))
    found.deliver()
    found.decide(found["ada"].cut())
    yield found
    found.close()


def first(sitter: Sitter) -> Contribution:
    found: Contribution = sitter.fold.contributions[sitter.id][0]
    return found


def holders(table: Table, contribution: Contribution) -> list[str]:
    return [s.name for s in table if s.blobs.has(contribution.blob)]


def confirmed(sitter: Sitter) -> list[int]:
    records = sitter.store.records(sitter.collective, sitter.id)
    done = [r.body.value()["bodies"] for r in records if r.entry.header.type == events.ErasureDone.TYPE and r.body]
    return [int(str(n)) for n in done]


def test_every_holder_deletes_it_once_a_release_is_without_it_and_says_so(table: Table) -> None:
    ada, bob, cyd = table
    gone = first(ada)
    forgetting.ask(ada.seat, [gone.event], deadline=9, destroy=True)
    table.deliver(blobs=False)
    sessions = [session_of(sitter) for sitter in table]
    for session in sessions:
        tend(session)
    assert (holders(table, gone), confirmed(bob)) == (["ada", "bob", "cyd"], []), "a release still needs it"
    table.deliver(blobs=False)
    table.decide(cyd.cut())
    for session in sessions:
        tend(session)
        tend(session)
    assert holders(table, gone) == []
    assert [confirmed(sitter) for sitter in table] == [[1], [1], [1]]
    table.deliver(blobs=False)
    assert erasing.status(sessions[0], 1)["erasures"] == []
    bob.store.heads(bob.collective)
    old, new = (replaying.run(bob.home.ledger_db, bob.home.blobs, bob.collective, n) for n in ("1", "2"))
    assert (old.verdict, new.verdict) == ("could-not-check", "clean")
    assert "release 2 was made without" in next(s.text for s in old.steps if s.name == "blobs")
    found = auditing.run(bob.home.ledger_db, bob.home.blobs, bob.collective)
    assert [f["id"] for f in found["findings"] if f["id"] in {"superseded", "blob-damaged"}] == ["superseded"]  # type: ignore[index, call-overload, union-attr]
    assert audit.integrity(bob.store, bob.collective) == []
    _, shown = bundling.make(bob.home.ledger_db, bob.home.blobs, bob.collective, [gone.event], key=bob.key, ts=1)
    assert shown.bundle.logs["old"]["recomputed"] is False  # type: ignore[index]
    assert shown.bundle.releases[0].twice is False


def test_nobody_else_can_have_it_deleted(table: Table) -> None:
    ada, bob, _ = table
    gone = first(ada)
    with pytest.raises(NotAllowed, match="only their author's word"):
        forgetting.ask(bob.seat, [gone.event], deadline=9, destroy=True)
    bob.seat.append(
        events.ErasureRequested(
            dataset="x", scope="blob", rows=0, request=gone.blob, contributions=(gone.event,), entries=(), deadline=9
        )
    )
    table.amend({"op": "forget", "contributions": [gone.event], "deadline": 0})
    table.decide(ada.cut())
    for sitter in table:
        tend(session_of(sitter))
    assert holders(table, gone) == ["ada", "bob", "cyd"]
