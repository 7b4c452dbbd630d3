"""A forked feed is frozen for everybody who holds the proof, nothing new of it counts, and the others go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paper import Paper, PaperMember, key

from ledger import checkpoint, events, forks, rules
from ledger.cuts import Cut, FeedHead
from ledger.entry import Record, make
from ledger.forks import Fork
from ledger.rules import Fits, Unfit
from protocol.ids import Digest, digest

NAMES = ["ada", "bob", "cyd"]


def twin(record: Record, by: PaperMember) -> Record:
    """Another entry by the same member at the same place."""
    h = record.entry.header
    return make(
        key(by.name), collective=h.collective, seq=h.seq, prev=h.prev, ts=h.ts + 1, type=h.type, seen=h.seen, body={},
        salt=bytes(16),
    )  # fmt: skip


def proof_of(first: Record, second: Record) -> Fork:
    header = first.entry.header
    return Fork(
        kind="entries",
        collective=header.collective,
        member=header.member,
        at=header.seq,
        evidence=(first.entry.line, second.entry.line),
    )


def found(fork: Fork) -> events.ForkFound:
    return events.ForkFound(member=fork.member, proof=forks.encode(fork).decode())


def forked(table: Paper, by: str = "ada") -> Fork:
    """Bob signs two entries at one place, and `by` says so."""
    bob = table.members["bob"]
    first = bob.publish()
    fork = proof_of(first, twin(first, bob))
    table.members[by].say(found(fork))
    table.deliver_all()
    return fork


def test_a_proven_fork_is_known_to_everybody_and_the_rest_goes_on_releasing() -> None:
    table = Paper.found(NAMES)
    table.release()
    bob = table.members["bob"]
    forked(table)
    assert all(m.fold.fork_known(bob.id) for m in table.members.values())
    table.dead = {"bob"}
    for _ in range(2):
        cut = table.release()
    fold = table.members["ada"].fold
    first = fold.releases[0].value
    assert isinstance(first, Cut)
    assert cut.place.size_of(bob.id) == first.place.size_of(bob.id), "its head is carried over"
    assert [c.number for c in fold.in_cut(cut)[bob.id]] == [1], "what was released stays"
    assert {x.member for x in cut.last} == {m.id for m in table.members.values()}


def test_a_fork_before_any_decision_leaves_the_feed_out() -> None:
    table = Paper.found(NAMES)
    forked(table)
    table.dead = {"bob"}
    cut = table.release()
    assert cut.place.size_of(table.members["bob"].id) == 0
    assert len(cut.last) == 2


def test_members_that_hold_different_histories_of_the_forked_feed_decide_the_same() -> None:
    table = Paper.found(NAMES)
    table.release()
    ada, bob, cyd = table.members.values()
    first = bob.publish()
    second = twin(first, bob)
    cyd.fold.apply(second)  # the other history
    cyd.say(found(proof_of(first, second)))
    table.dead = {"bob"}
    cut = table.release()
    assert ada.fold.decisions == cyd.fold.decisions
    assert ada.fold.leaves[bob.id] != cyd.fold.leaves[bob.id]
    assert rules.check(cyd.fold.before(cut.place.height), cut) == Fits()


def test_a_cut_that_takes_something_new_of_a_forked_feed_is_refused() -> None:
    table = Paper.found(NAMES)
    table.release()
    ada, bob, cyd = table.members.values()
    ada.publish()
    forked(table)
    draft = ada.draft()
    assert isinstance(draft, Cut)
    assert rules.check(cyd.fold, draft) == Fits()
    size = len(bob.feed)
    newer = FeedHead(member=bob.id, size=size, leaf=bob.feed[-1].entry.leaf)
    heads = tuple(newer if h.member == bob.id else h for h in draft.place.heads)
    assert rules.check(cyd.fold, replace(draft, place=replace(draft.place, heads=heads))) == Unfit(reason="forked-feed")


def test_a_proof_that_proves_nothing_or_is_of_another_feed_is_a_flaw_and_freezes_nothing() -> None:
    table = Paper.found(NAMES)
    ada, bob, cyd = table.members.values()
    first = bob.publish()
    fork = proof_of(first, twin(first, bob))
    ada.say(found(proof_of(first, first)))
    ada.say(events.ForkFound(member=cyd.id, proof=forks.encode(fork).decode()))
    ada.say(events.ForkFound(member=bob.id, proof="{}"))
    ada.say(found(replace(fork, collective=Digest(digest(b"elsewhere")))))  # type: ignore[arg-type]
    ada.say(found(replace(fork, evidence=(first.entry.line, first.entry.line.replace(b'"ts":0', b'"ts":1')))))
    assert len(ada.fold.flaws) == 5
    assert not ada.fold.forked


def test_a_proof_that_needs_entries_of_the_feed_is_left_to_the_stores() -> None:
    table = Paper.found(NAMES)
    ada, bob, _ = table.members.values()
    for _ in range(3):
        bob.say(events.NodeAlive())
    head = checkpoint.make(key("bob"), bob.collective, bob.id, 3, digest(b"wrong"))
    short = Fork(
        kind="root", collective=bob.collective, member=bob.id, at=3, evidence=(head.note, bob.feed[2].entry.line)
    )
    lines = tuple(r.entry.line for r in bob.feed)
    whole = replace(short, evidence=(head.note, *lines))
    assert [forks.self_contained(f) for f in (short, whole)] == [False, True]
    ada.say(found(short))
    assert (ada.fold.forked, ada.fold.flaws) == ({}, [])
    ada.say(found(whole))
    assert ada.fold.fork_known(bob.id)
    known = [bytes.fromhex(r.entry.leaf) for r in bob.feed]
    assert forks.completed(short, known, lines) == whole


def test_a_member_returns_with_a_new_key_after_its_feed_was_frozen() -> None:
    from ledger import succession

    table = Paper.found(NAMES)
    bob = table.members["bob"]
    recovery = key("recovery of bob")
    bob.bind_keys(recovery=recovery)
    table.release()
    good = len(bob.feed)
    forked(table)
    table.dead = {"bob", "bob safe"}
    heir = table.guest("bob safe")
    said = succession.make(
        recovery, key("bob safe"), collective=bob.collective, old=bob.id, size=good, leaf=bob.feed[good - 1].entry.leaf
    )
    table.members["cyd"].say(events.AmendmentProposed(change=said.change()))
    table.decide()
    table.dead = {"bob"}
    table.deliver_all()
    cut = table.release()
    fold = heir.fold
    assert [c.member for c in fold.in_cut(cut)[heir.id]] == [bob.id, heir.id]


@pytest.mark.parametrize("by", ["ada", "cyd"])
def test_who_tells_of_a_fork_makes_no_difference(by: str) -> None:
    table = Paper.found(NAMES)
    fork = forked(table, by)
    assert [set(m.fold.forked) for m in table.members.values()] == [{fork.member}] * 3
