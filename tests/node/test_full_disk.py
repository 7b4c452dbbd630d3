"""A node whose disk is full: it says so, goes on living, and goes on writing when there is room; nothing is lost or half done.

The disk is a database that may not grow: SQLite answers as it does on a real one (`tests/ledger/test_disks.py` fills those).
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from circle import make_circle
from paper import key, witness_key
from rich.console import Console
from seats import Sitter, Table

from ledger import audit, entry, events
from ledger.errors import StoreFull
from ledger.store import Store
from ledger.votes import proposer
from node.cli import render
from node.collective import joining, reports
from node.collective.council import Council
from node.collective.joining import Joining
from node.collective.seat import Seat
from node.collective.witnessing import Witnessing
from node.errors import AppendPaused
from node.keys.identity import Identity
from protocol import binding
from protocol.ids import PeerId, peer_id

FULL = "the disk is full; nothing was written, free some space"


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def identity(sitter: Sitter) -> Identity:
    transport = key(f"transport of {sitter.name}")
    return Identity(
        member=sitter.id,
        peer=PeerId(peer_id(bytes(transport.verify_key))),
        binding=binding.make(sitter.key, transport),
        key=sitter.key,
        transport=transport,
        witness=witness_key(sitter.name),
        post_quantum=None,
    )


def stuff(seat: Seat) -> None:
    """No further page, and no free place inside the pages for even the smallest entry."""
    pages = seat.store._connection.execute("PRAGMA page_count").fetchone()[0]
    seat.store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull):  # noqa: PT012
        while True:
            seat.append(events.NodeAlive())


def make_room(store: Store) -> None:
    store._connection.execute("PRAGMA max_page_count = 1000000")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(90):
        while not holds():
            await asyncio.sleep(0.01)


def votes(sitter: Sitter) -> list[str]:
    kinds = {events.Proposed.TYPE, events.Accepted.TYPE, events.Objected.TYPE, events.Committed.TYPE}
    return [t for r in sitter.store.records(sitter.collective, sitter.id) if (t := r.entry.header.type) in kinds]


def warnings_of(sitter: Sitter) -> str:
    out = io.StringIO()
    render.status(Console(file=out, width=200), {"running": True, **reports.status(sitter.seat)})
    return out.getvalue()


def test_a_voter_and_witness_whose_disk_is_full_lives_on_says_it_and_takes_part_again_when_there_is_room(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    ada, bob, cyd = table
    for sitter in table:
        sitter.seat.append(identity(sitter).bound(table.collective))
    for sitter in (bob, cyd):
        sitter.publish()
    table.deliver()
    stuff(ada.seat)
    before = ada.fold.sizes[ada.id]

    async def scenario() -> None:
        council = Council(ada.seat, ada.replay, ada.judge)
        witnessing = Witnessing(ada.seat, identity(ada), heartbeat_s=600)
        tasks = [asyncio.create_task(job()) for job in (council.run, witnessing.run)]
        await until(lambda: {"vote-postponed", "not-cosigned"} <= {m.split()[0][6:] for m in caplog.messages})
        assert ada.seat.full is not None
        assert FULL in ada.seat.full
        assert FULL in warnings_of(ada)
        assert ada.fold.sizes[ada.id] == before == len(ada.store.records(table.collective, ada.id))
        make_room(ada.store)
        await until(lambda: votes(ada) and ada.fold.witnesses.reached(ada.id, bob.id))
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())
    assert all(FULL in m for m in caplog.messages if "code=store-full" in m)
    assert ada.seat.full is None
    assert FULL not in warnings_of(ada)
    table.deliver()
    for sitter in table:
        assert audit.integrity(sitter.store, table.collective) == []
        assert sitter.fold.sizes == ada.fold.sizes


def test_a_voter_whose_proposal_does_not_fit_into_an_entry_lives_on_and_proposes_when_it_does(
    table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for sitter in table:
        sitter.publish()
    table.deliver()
    charter = table.charter
    leader = next(s for s in table if s.id == proposer(charter, table.collective, 1, 0))
    monkeypatch.setattr(entry, "MAX_BODY", 1000)  # a proposal of three members has more

    async def scenario() -> None:
        task = asyncio.create_task(Council(leader.seat, leader.replay, leader.judge).run())
        await until(lambda: any("event=vote-postponed code=too-large" in m for m in caplog.messages))
        assert not votes(leader)
        assert not task.done()
        monkeypatch.undo()
        await until(lambda: votes(leader))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert votes(leader)[0] == events.Proposed.TYPE


def test_what_a_failed_append_would_have_named_as_seen_the_next_one_names(table: Table) -> None:
    ada, bob, _ = table
    bob.publish()
    table.deliver()
    ada.store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreFull):
        ada.seat.append(
            events.NodeStarted(versions={f"part {n}": "x" * 50 for n in range(200)}, fork_risk_accepted=False)
        )
    make_room(ada.store)
    record = ada.seat.append(events.NodeAlive())
    assert (bob.id, bob.fold.sizes[bob.id] - 1) in {(s.member, s.seq) for s in record.entry.header.seen}


def test_pages_of_others_are_taken_whole_or_not_at_all_and_come_again(table: Table) -> None:
    ada, bob, _ = table
    for _ in range(20):
        bob.publish()
    stuff(ada.seat)
    before = dict(ada.fold.sizes)
    with pytest.raises(StoreFull, match=f"couldn't store page of {bob.id[:12]}: {FULL}"):
        table.carry(bob, ada)
    assert ada.fold.sizes == before
    assert len(ada.store.records(table.collective, bob.id)) == before.get(bob.id, 0)
    make_room(ada.store)
    table.carry(bob, ada)
    assert ada.fold.sizes[bob.id] == bob.fold.sizes[bob.id]
    assert audit.integrity(ada.store, table.collective) == []


def test_a_node_that_starts_on_a_full_disk_begins_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joining, "_RETRY_S", 0.02)
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    with make_circle(tmp_path).open("ada") as session:
        seat = session.need_seat()
        stuff(seat)
        before = seat.fold.sizes[seat.me]

        async def scenario() -> None:
            begun = Joining(session, None, lambda: asyncio.sleep(0), accept_fork_risk=True)  # type: ignore[arg-type]
            with pytest.raises(AppendPaused):
                seat.append(events.NodeAlive())
            await begun.own_head()
            task = asyncio.create_task(begun.begin())
            await until(lambda: any("event=not-introduced code=store-full" in m for m in caplog.messages))
            assert not task.done()
            assert seat.fold.sizes[seat.me] == before
            make_room(session.store)
            await asyncio.wait_for(task, 90)

        asyncio.run(scenario())
        written = [r.entry.header.type for r in session.store.records(seat.collective, seat.me, before)]
        assert written == ["peer.bound", "node.started"]
        assert audit.integrity(session.store, seat.collective) == []
