"""What a node writes about bans: one entry a day and member, nothing about strangers; and false proofs are cheap."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from paper import key
from seats import Sitter, Table

from ledger import collective, events
from ledger.entry import make
from ledger.events import PeerBanned
from node.collective.banning import DAY_MS, Banning
from node.guarding.bans import Ban
from node.guarding.guard import Fault, Guard
from protocol.ids import MemberId, PeerId, digest, peer_id
from protocol.keys import member_id


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def ban(member: MemberId | None, peer: PeerId | None = None, until: float | None = 5.0) -> Ban:
    return Ban(peer=peer, member=member, by="guard", code="flood", why="too many", since=1.0, until=until)


def told(sitter: Sitter) -> list[PeerBanned]:
    records = sitter.store.records(sitter.collective, sitter.id)
    found = [r for r in records if r.entry.header.type == PeerBanned.TYPE and r.body is not None]
    return [events.parse(PeerBanned.TYPE, r.body.value()) for r in found]  # type: ignore[misc, union-attr]


def test_a_member_is_told_of_once_a_day_over_restarts_too_and_a_stranger_never(table):
    ada, bob, cyd = table
    clock = [10 * DAY_MS]
    peer = peer_id(bytes(32))

    def seated() -> Banning:
        ada.seat._clock = lambda: clock[0]
        return Banning(ada.seat)

    banning = seated()
    assert banning.tell(ban(bob.id, peer))
    assert not banning.tell(ban(bob.id, peer))
    assert not seated().tell(ban(bob.id, peer))
    assert not banning.tell(ban(None, peer))
    assert not banning.tell(ban(MemberId(digest(b"no member")), peer))
    assert not banning.tell(ban(ada.id))
    assert banning.tell(ban(cyd.id, until=None))
    clock[0] += DAY_MS
    assert seated().tell(ban(bob.id, peer))
    expected = [(bob.id, peer, 5000), (cyd.id, None, None), (bob.id, peer, 5000)]
    assert [(said.member, said.peer, said.until) for said in told(ada)] == expected
    table.deliver()
    assert not bob.fold.flaws


def test_nothing_is_written_while_nothing_may_be_and_it_is_said_later(table):
    ada, bob, _ = table
    banning = Banning(ada.seat)
    ada.seat.pause("our own feed may be longer elsewhere")
    assert not banning.tell(ban(bob.id))
    ada.seat.pause(None)
    assert banning.tell(ban(bob.id))


def test_a_ban_by_the_guard_reaches_the_feed_with_its_reason(table):
    ada, bob, _ = table
    peer = peer_id(bytes(32))
    banning = Banning(ada.seat)
    guard = Guard(told=banning.tell, member_of={peer: bob.id}.get)
    while not guard.banned(peer):
        guard.fault(peer, Fault.BAD_BLOB)
    (said,) = told(ada)
    assert (said.member, said.peer, said.reason) == (bob.id, peer, "bad-blob")
    assert said.until is not None


def test_a_flood_of_false_proofs_of_forks_costs_a_bounded_number_of_checks_and_a_true_one_still_counts(
    table, monkeypatch
):
    ada, bob, cyd = table
    monkeypatch.setattr(collective, "MAX_TOLD", 16)
    checks: list[object] = []
    verify = collective.forks.verify
    monkeypatch.setattr(collective.forks, "verify", lambda *said: checks.append(said) or verify(*said))
    line = bob.store.records(bob.collective, ada.id)[0].entry.line
    false = collective.forks.Fork(kind="entries", collective=bob.collective, member=ada.id, at=0, evidence=(line, line))
    proof = collective.forks.encode(false).decode()
    for _ in range(3 * collective.MAX_TOLD):
        bob.seat.append(events.ForkFound(member=ada.id, proof=proof))
    checks.clear()
    table.carry(bob, cyd)
    assert 0 < len(checks) <= collective.MAX_TOLD
    assert not cyd.store.forks(cyd.collective)
    assert len(cyd.fold.flaws) == 3 * collective.MAX_TOLD
    twin = twins(ada)
    ada.seat.append(events.NodeAlive())
    table.carry(ada, cyd)
    cyd.store.add_fork(twin)
    cyd.seat.fork_found(twin)
    checks.clear()
    table.carry(cyd, bob)
    assert [fork.member for fork in bob.store.forks(bob.collective)] == [ada.id]
    assert len(checks) <= 2


def twins(sitter: Sitter) -> collective.forks.Fork:
    """A proof that the sitter signed two first entries."""
    first = sitter.store.records(sitter.collective, sitter.id)[0].entry
    other = make(
        key(sitter.name), collective=sitter.collective, seq=0, prev=first.header.prev, ts=1, type="node.alive", seen=(),
        body={}, salt=bytes(16),
    )  # fmt: skip
    assert member_id(key(sitter.name)) == sitter.id
    return collective.forks.Fork(
        kind="entries",
        collective=sitter.collective,
        member=sitter.id,
        at=0,
        evidence=(first.line, other.entry.line),
    )
