"""A member's seat: what it writes is durable before anybody hears of it, and the fold is a replay of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paper import charter_of, key
from seats import Sitter, Table

from ledger import charter as charters
from ledger import events
from ledger.collective import Collective
from ledger.entry import MAX_SEEN
from ledger.store import Store
from node.collective.seat import Seat, run_id
from node.errors import AppendPaused, PassphraseNeeded
from protocol.ids import MemberId, digest
from protocol.keys import member_id


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def started() -> events.NodeStarted:
    return events.NodeStarted(versions={}, fork_risk_accepted=False)


def same(sitter: Sitter) -> None:
    """The fold equals a replay of the store."""
    fresh = Seat(sitter.home, sitter.id, sitter.store, sitter.collective).fold
    live = sitter.fold
    for name in ("sizes", "leaves", "charters", "decisions", "contributions", "approvals", "data", "height"):
        assert getattr(fresh, name) == getattr(live, name), name


def test_what_is_appended_is_durable_before_anybody_hears_of_it(table: Table) -> None:
    ada = table["ada"]
    heard = []

    def listener(member: MemberId) -> None:
        with Store.open(ada.home.ledger_db, writer=False) as other:
            stored = other.head(table.collective, ada.id)
            assert stored is not None
            heard.append((member, stored.size, len(other.records(table.collective, ada.id)), ada.fold.sizes[ada.id]))

    ada.seat.listen(listener)
    record = ada.seat.append(started(), state={"mark": b"7"})
    assert heard == [(ada.id, 2, 2, 2)]
    assert ada.store.records(table.collective, ada.id)[-1].entry == record.entry
    assert ada.store.get_state("mark") == b"7"


def test_a_paused_seat_writes_nothing_and_says_why(table: Table) -> None:
    ada = table["ada"]
    ada.seat.pause("peers were not asked")
    with pytest.raises(AppendPaused, match="peers were not asked"):
        ada.seat.append(started(), state={"mark": b"1"})
    assert (ada.seat.paused, ada.fold.sizes[ada.id]) == ("peers were not asked", 1)
    assert ada.store.get_state("mark") is None
    ada.seat.pause(None)
    ada.seat.append(started())
    assert ada.fold.sizes[ada.id] == 2


def test_a_seat_that_was_opened_for_reading_signs_nothing(table: Table) -> None:
    ada = table["ada"]
    reader = Seat(ada.home, ada.id, ada.store, ada.collective)
    with pytest.raises(PassphraseNeeded):
        reader.append(started())
    assert reader.fold.charter == ada.fold.charter


def test_a_refused_append_changes_neither_fold_nor_feed(table: Table) -> None:
    ada = table["ada"]
    heard: list[MemberId] = []
    ada.seat.listen(heard.append)
    ada.store.close()
    with pytest.raises(Exception, match="couldn't"):
        ada.seat.append(started())
    assert (ada.fold.sizes[ada.id], heard) == (1, [])
    ada.store = Store.open(ada.home.ledger_db)
    ada.sit()
    assert ada.fold.sizes[ada.id] == 1


def test_a_restart_is_a_replay_of_the_store(table: Table) -> None:
    table.release()
    table.amend({"op": "set", "field": "name", "value": "new"})
    for sitter in table:
        same(sitter)
        sitter.sit()
        sitter.seat.append(started())
        same(sitter)


def test_pages_that_come_again_or_late_are_applied_once_and_in_order(table: Table) -> None:
    ada, bob = table["ada"], table["bob"]
    for _ in range(4):
        bob.seat.append(started())
    records = bob.store.records(table.collective, bob.id)
    (head,) = bob.store.heads(table.collective, bob.id)
    ada.store.append_foreign(table.collective, bob.id, records, head.note)
    heard: list[MemberId] = []
    ada.seat.listen(heard.append)
    ada.seat.receive(bob.id, records[2:])  # the page before it was stored and never told
    assert ada.fold.sizes[bob.id] == 4
    ada.seat.receive(bob.id, records)
    ada.seat.receive(bob.id, [])
    assert (ada.fold.sizes[bob.id], heard) == (4, [bob.id] * 3)
    same(ada)


def test_an_append_right_after_the_store_got_the_own_feed_back_finds_its_place(table: Table, tmp_path: Path) -> None:
    ada = table["ada"]
    for _ in range(3):
        ada.seat.append(started())
    (tmp_path / "restored").mkdir()
    restored = Sitter(tmp_path / "restored", "ada", table.charter)
    records = ada.store.records(table.collective, ada.id)
    (head,) = ada.store.heads(table.collective, ada.id)
    taken = restored.store.append_foreign(table.collective, ada.id, records, head.note)
    record = restored.seat.append(started())  # before the seat was told what the store has taken
    assert record.entry.header.seq == len(taken)
    restored.seat.receive(ada.id, taken)
    assert restored.fold.sizes[ada.id] == len(taken) + 1
    same(restored)
    restored.store.close()


def test_ones_own_feed_comes_back_after_a_restore(table: Table, tmp_path: Path) -> None:
    ada, bob = table["ada"], table["bob"]
    ada.publish()
    table.deliver()
    (tmp_path / "restored").mkdir()
    restored = Sitter(tmp_path / "restored", "ada", table.charter)
    records = bob.store.records(table.collective, ada.id)
    (head,) = bob.store.heads(table.collective, ada.id)
    taken = restored.store.append_foreign(table.collective, ada.id, records, head.note)
    restored.seat.receive(ada.id, taken)
    assert restored.fold.sizes[ada.id] == 2
    restored.seat.append(started())
    assert restored.store.head(table.collective, ada.id).size == 3  # type: ignore[union-attr]
    same(restored)
    restored.store.close()


def test_an_entry_names_the_feeds_that_moved_and_a_commit_names_all(table: Table) -> None:
    ada, bob, cyd = table
    bob.seat.append(started())
    table.deliver()
    assert [s.member for s in ada.seat.append(started()).entry.header.seen] == [bob.id]
    assert ada.seat.append(started()).entry.header.seen == ()
    cyd.seat.append(started())
    table.deliver()
    (seen,) = ada.seat.append(started()).entry.header.seen
    assert (seen.member, seen.seq, seen.leaf) == (cyd.id, 0, cyd.fold.leaves[cyd.id][0])
    commit = ada.seat.append(events.Committed(height=1, attempt=0, digest=None))
    assert {s.member for s in commit.entry.header.seen} == {bob.id, cyd.id}
    assert ada.fold.seen_by_commit[commit.entry.event] == {bob.id: 1, cyd.id: 1}


def test_no_entry_names_more_feeds_than_the_format_allows(table: Table) -> None:
    ada = table["ada"]
    for n in range(MAX_SEEN + 5):
        one = member_id(key(f"other {n}"))
        ada.fold.sizes[one], ada.fold.leaves[one] = 1, [digest(one.encode())]
    first = ada.seat.append(started()).entry.header.seen
    second = ada.seat.append(started()).entry.header.seen
    assert (len(first), len(second)) == (MAX_SEEN, 5)
    assert not {s.member for s in first} & {s.member for s in second}


def test_feeds_and_blobs_are_for_those_with_a_seat(tmp_path: Path) -> None:
    table = Table(tmp_path, ("ada", "bob", "aud"), aud="auditor")
    seat = table["ada"].seat
    assert all(seat.may_read(s.id) for s in table)
    assert not seat.may_read(member_id(key("sam")))
    other = charters.collective_id(charter_of(["ada"]))
    assert not Seat(table["ada"].home, seat.me, table["ada"].store, other).may_read(seat.me), (
        "before the charter is here"
    )
    table.amend({"op": "remove", "id": table["aud"].id})
    assert not seat.may_read(table["aud"].id)
    table.close()


def test_a_former_member_may_read_up_to_the_decision_that_took_its_seat_and_learns_of_it_from_that(
    table: Table,
) -> None:
    ada, bob = table["ada"], table["bob"]
    assert not ada.seat.farewell(bob.id, ada.id), "it has a seat and needs no farewell"
    table.amend({"op": "remove", "id": bob.id})
    ada.seat.append(started())
    far = {s.id: ada.seat.farewell(bob.id, s.id) for s in table}
    assert 0 < far[ada.id] < ada.fold.sizes[ada.id]
    late = Collective(ada.seat.collective)
    for s in table:
        late.apply_all(s.store.records(late.id, s.id)[: far[s.id]])
    assert late.charter.member(bob.id) is None
    assert not ada.seat.farewell(member_id(key("sam")), ada.id), "a stranger gets nothing"


def test_the_newest_commitment_to_a_data_set_is_known(table: Table) -> None:
    ada = table["ada"]
    assert ada.seat.dataset_root("notes") is None
    for n in (1, 2):
        event = events.DataCommitted(
            dataset="notes", train_rows=n, held_out_rows=n, train_root=digest(b"t"), held_out_root=digest(b"h")
        )
        ada.seat.append(event)
        assert ada.seat.dataset_root("notes") == event


def test_run_ids_are_fresh_and_sort_by_time() -> None:
    names = [run_id() for _ in range(3)]
    assert len(set(names)) == 3
    assert [n.split("-")[0] for n in names] == sorted(n.split("-")[0] for n in names)
