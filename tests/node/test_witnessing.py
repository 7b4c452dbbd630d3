"""A node as a witness of the others, its signs of life, and what it does about forks; real ledgers, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from paper import key, witness_key
from seats import Sitter, Table

from ledger import cosignature, events, forks, rules
from ledger.cuts import Cut
from ledger.entry import make
from ledger.errors import FeedFrozen, ForkSeen
from ledger.store import Store
from node.collective import reports
from node.collective.seat import Seat, now_ms
from node.collective.witnessing import Witnessing
from node.errors import AppendPaused
from node.keys.identity import Identity
from protocol import binding
from protocol.ids import PeerId, peer_id

NAMES = ("ada", "bob", "cyd")


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path, rules={"witness": {"cosignatures": 1}})
    for sitter in found:
        sitter.seat.append(identity(sitter).bound(found.collective))
    found.deliver()
    yield found
    found.close()


def identity(sitter: Sitter, post_quantum: MLDSA44PrivateKey | None = None) -> Identity:
    transport = key(f"transport of {sitter.name}")
    return Identity(
        member=sitter.id,
        peer=PeerId(peer_id(bytes(transport.verify_key))),
        binding=binding.make(sitter.key, transport),
        key=sitter.key,
        transport=transport,
        witness=witness_key(sitter.name),
        post_quantum=post_quantum,
    )


def witness(sitter: Sitter, clock: Callable[[], float] = lambda: 0.0, **more: object) -> Witnessing:
    return Witnessing(sitter.seat, identity(sitter), heartbeat_s=600, clock=clock, **more)  # type: ignore[arg-type]


# -- cosigning -------------------------------------------------------------------------------------------------------
def test_a_release_waits_for_a_witness_and_then_comes(table: Table) -> None:
    ada, bob, _ = table
    ada.publish()
    table.deliver()
    draft = ada.draft()
    assert isinstance(draft, Cut)
    assert not draft.last
    assert witness(bob).cosign() == 1
    table.deliver()
    cut = ada.cut()
    assert [x.member for x in cut.last] == [ada.id]
    table.decide(cut)
    assert ada.fold.cut == cut
    (decision,) = reports.log(ada.seat)["decisions"]  # type: ignore[misc]
    assert decision["contributions"][0]["cosignatures"] == 1  # type: ignore[index, call-overload]


def test_what_was_cosigned_once_is_not_cosigned_again(table: Table) -> None:
    ada, bob, cyd = table
    ada.publish()
    table.deliver()
    for _ in range(3):
        for sitter in (ada, bob, cyd):
            witness(sitter).cosign()
            witness(sitter).beat()
        table.deliver()
    made = [c.source.member for by in ada.fold.witnesses.cosigned.values() for c in by]
    assert sorted(made) == sorted([bob.id, cyd.id])


def test_several_feeds_are_cosigned_in_one_entry(table: Table) -> None:
    ada, bob, cyd = table
    for sitter in (ada, bob):
        sitter.publish()
    table.deliver()
    before = cyd.fold.sizes[cyd.id]
    assert witness(cyd).cosign() == 2
    assert cyd.fold.sizes[cyd.id] == before + 1


def test_the_cosigned_head_is_a_note_that_tools_verify(table: Table) -> None:
    ada, bob, _ = table
    ada.publish()
    table.deliver()
    witness(bob).cosign()
    (item,) = bob.fold.witnesses.cosigned[ada.id]
    (head,) = bob.store.heads(table.collective, ada.id)
    note = cosignature.cosigned_note(head, [(item.cosignature, item.by)])
    assert cosignature.read_note(note, [item.by]) == (head, [item.cosignature])


def test_a_post_quantum_cosignature_stands_beside_the_other(table: Table) -> None:
    ada, bob, _ = table
    hybrid = identity(bob, MLDSA44PrivateKey.from_seed_bytes(bytes(32)))
    bob.seat.append(hybrid.bound(table.collective))
    ada.publish()
    table.deliver()
    assert Witnessing(bob.seat, hybrid, heartbeat_s=600).cosign() == 1
    table.deliver()
    (item,) = ada.fold.witnesses.cosigned[ada.id]
    assert item.cosignature.post_quantum is not None
    assert not ada.fold.flaws


def test_a_head_whose_entries_are_not_here_yet_is_not_cosigned(table: Table) -> None:
    ada, bob, _ = table
    ada.publish()
    table.deliver()
    ada.seat.append(events.NodeAlive())
    (ahead,) = ada.store.heads(table.collective, ada.id)
    bob.store.append_foreign(table.collective, ada.id, [], ahead.note)
    assert witness(bob).cosign() == 0
    table.carry(ada, bob)
    assert witness(bob).cosign() == 1


def test_a_paused_seat_cosigns_nothing_and_is_not_asked_to(table: Table) -> None:
    ada, bob, _ = table
    ada.publish()
    table.deliver()
    bob.seat.pause("peers were not asked")
    assert witness(bob).cosign() == 0
    assert witness(bob).due() == []


def test_the_task_cosigns_what_arrives_and_beats_when_nothing_does(table: Table) -> None:
    ada, bob, _ = table

    async def scenario() -> None:
        now = 0.0
        witnessing = witness(bob, lambda: now)
        task = asyncio.create_task(witnessing.run())
        await asyncio.sleep(0)
        ada.publish()
        table.deliver()
        for _ in range(6000):
            await asyncio.sleep(0.01)
            if bob.fold.witnesses.reached(bob.id, ada.id):
                break
        assert bob.fold.witnesses.reached(bob.id, ada.id)
        assert not alive(bob)
        now = 601.0
        bob.seat.receive(ada.id, [])  # anything wakes it
        for _ in range(6000):
            await asyncio.sleep(0.01)
            if alive(bob):
                break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert alive(bob) == 1


def alive(sitter: Sitter) -> int:
    found = sitter.store.records(sitter.collective, sitter.id)
    return sum(r.entry.header.type == events.NodeAlive.TYPE for r in found)


def test_a_sign_of_life_is_written_only_when_nothing_else_was(table: Table) -> None:
    ada = table["ada"]
    now = 0.0
    witnessing = witness(ada, lambda: now)
    assert not witnessing.beat()
    now = 599.0
    ada.seat.append(events.NodeStarted(versions={}, fork_risk_accepted=False))
    now = 1000.0
    assert not witnessing.beat(), "something was written 401 s ago"
    now = 1199.0
    assert witnessing.beat()
    assert not witnessing.beat()
    assert alive(ada) == 1


# -- forks -----------------------------------------------------------------------------------------------------------
def twin_page(table: Table, name: str):  # type: ignore[no-untyped-def]
    """A member's last entry as another one that it also signed, with a head over it."""
    sitter = table[name]
    last = sitter.store.records(table.collective, sitter.id)[-1].entry.header
    return make(
        sitter.key, collective=table.collective, seq=last.seq, prev=last.prev, ts=now_ms(), type=last.type, seen=[],
        body={}, salt=bytes(16),
    )  # fmt: skip


def convict(table: Table, by: str, culprit: str) -> forks.Fork:
    """A node receives the other history, and its sync tells the seat."""
    finder = table[by]
    with pytest.raises(ForkSeen) as caught:
        finder.store.append_foreign(table.collective, table[culprit].id, [twin_page(table, culprit)], None)
    finder.seat.fork_found(caught.value.fork)
    return caught.value.fork


def test_the_finder_of_a_fork_says_so_once_and_everybody_freezes_the_feed(table: Table) -> None:
    ada, bob, cyd = table
    bob.seat.append(events.NodeAlive())
    table.deliver()
    fork = convict(table, "ada", "bob")
    ada.seat.fork_found(fork)
    ada.seat.tell_forks()
    told = [r for r in ada.store.records(table.collective, ada.id) if r.entry.header.type == events.ForkFound.TYPE]
    assert len(told) == 1
    table.carry(ada, cyd)
    assert [f.member for f in cyd.store.forks(table.collective)] == [bob.id]
    assert cyd.fold.fork_known(bob.id)
    assert reports.status(cyd.seat)["forks"] == [bob.id]
    with pytest.raises(FeedFrozen):
        cyd.store.append_foreign(table.collective, bob.id, [], bob.store.heads(table.collective, bob.id)[0].note)
    cyd.seat.tell_forks()
    assert cyd.fold.forked[bob.id].keys() == {ada.id}, "who only learnt of it does not repeat it"


def test_a_proof_that_was_stored_just_before_a_stop_freezes_the_feed_at_the_next_start(table: Table) -> None:
    ada, bob, cyd = table
    bob.seat.append(events.NodeAlive())
    table.deliver()
    convict(table, "ada", "bob")
    news = ada.store.records(table.collective, ada.id, cyd.fold.sizes[ada.id])
    cyd.store.append_foreign(table.collective, ada.id, news, ada.store.heads(table.collective, ada.id)[0].note)
    assert not cyd.store.forks(table.collective), "the node stopped here"
    cyd.sit()
    assert [f.member for f in cyd.store.forks(table.collective)] == [bob.id]


def test_the_others_go_on_without_the_forked_feed(table: Table) -> None:
    ada, bob, cyd = table
    for sitter in table:
        sitter.publish()
    table.carry(bob, ada)
    convict(table, "ada", "bob")
    table.carry(ada, cyd)
    for to, source in ((ada, cyd), (cyd, ada)):
        table.carry(source, to)
        for name in source.blobs.digests():
            to.blobs.put(source.blobs.read(name, 1 << 20))
        witness(to).cosign()
    for to, source in ((ada, cyd), (cyd, ada)):
        table.carry(source, to)
    cut = ada.cut()
    assert rules.check(cyd.fold, cut) == rules.Fits()
    assert {x.member for x in cut.last} == {ada.id, cyd.id}
    assert not bob.seat.paused


def test_a_node_that_learns_that_its_own_feed_is_forked_stops_writing_and_says_why(table: Table) -> None:
    ada, bob, _ = table
    bob.seat.append(events.NodeAlive())
    table.deliver()
    convict(table, "ada", "bob")
    table.carry(ada, bob)
    assert bob.seat.paused is not None
    assert "fishernet key revoke" in bob.seat.paused
    bob.seat.pause(None)
    with pytest.raises(AppendPaused, match="frozen"):
        bob.seat.append(events.NodeAlive())
    again = Seat(bob.home, bob.id, bob.store, bob.collective, key=bob.key)
    assert again.paused == bob.seat.paused, "after a restart too"


def test_a_false_proof_freezes_nothing(table: Table) -> None:
    ada, bob, cyd = table
    line = bob.store.records(table.collective, bob.id)[-1].entry.line
    fork = forks.Fork(kind="entries", collective=table.collective, member=bob.id, at=1, evidence=(line, line))
    ada.seat.append(events.ForkFound(member=bob.id, proof=forks.encode(fork).decode()))
    table.carry(ada, cyd)
    assert cyd.store.forks(table.collective) == []
    assert cyd.fold.flaws[-1].source.member == ada.id


def test_a_fork_that_was_found_while_nothing_could_be_written_is_told_at_the_next_start(table: Table) -> None:
    ada, bob, _ = table
    bob.seat.append(events.NodeAlive())
    table.deliver()
    ada.seat.pause("peers were not asked")
    convict(table, "ada", "bob")
    assert not ada.fold.fork_known(bob.id)
    ada.store.close()
    ada.store = Store.open(ada.home.ledger_db)
    ada.sit()
    ada.seat.tell_forks()
    assert ada.fold.fork_known(bob.id)
