"""A seat goes to another key of its owner: one register, one vote, and the owner's recovery key beats a thief."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import Paper, PaperMember, key
from states import state

from ledger import amending, events, rules, succession
from ledger.amending import MAX_ROTATIONS, amended
from ledger.charter import Former
from ledger.collective import Collective
from ledger.cuts import MAX_LIST, Amendment, Cut
from ledger.errors import BadCharter
from ledger.rules import Fits, Lacking, Unfit
from ledger.succession import Statement
from protocol import parcel, wire
from protocol.errors import BadKey, BadSignature, Malformed, Refused
from protocol.ids import ZERO, CollectiveId, Digest, MemberId, digest
from protocol.keys import SigningKey, member_id

NAMES = ["ada", "bob", "cyd"]
RECOVERY = key("recovery of bob")


def paper() -> Paper:
    found = Paper.found(NAMES)
    found.members["bob"].bind_keys(recovery=RECOVERY)
    found.release()
    return found


def said(old: PaperMember, new: str, owner: SigningKey | None = None, size: int | None = None) -> Statement:
    """The old key (or another owner's) gives the seat to `new`, trusting `size` entries."""
    count = len(old.feed) if size is None else size
    leaf = old.feed[count - 1].entry.leaf if count else ZERO
    return succession.make(
        owner or key(old.name), key(new), collective=old.collective, old=old.id, size=count, leaf=leaf
    )


def ask(by: PaperMember, statement: Statement) -> None:
    by.say(events.AmendmentProposed(change=statement.change()))


def joined(table: Paper, name: str) -> PaperMember:
    """A key that has no seat yet and so never votes."""
    guest = table.guest(name)
    table.dead.add(name)
    return guest


def seat(table: Paper, name: str) -> Any:
    return table.members["ada"].fold.charter.member(member_id(key(name)))


def rotated(table: Paper, old: str = "bob", new: str = "bob two") -> PaperMember:
    heir = joined(table, new)
    ask(table.members[old], said(table.members[old], new))
    table.decide()
    table.dead = {old}
    table.deliver_all()
    return heir


# -- what is inherited -----------------------------------------------------------------------------------------------
def test_an_owner_gives_its_seat_to_another_key_and_nobody_has_to_approve() -> None:
    table = paper()
    before = table.members["ada"].fold.charter.member(table.members["bob"].id)
    assert before is not None
    heir = rotated(table)
    after = seat(table, "bob two")
    size = len(table.members["bob"].feed)
    assert (after.name, after.role, after.weight, after.organisation) == (
        before.name,
        before.role,
        before.weight,
        before.organisation,
    )
    assert [(w.id, w.left) for w in after.was] == [(before.id, "rotation")]
    assert after.was[0].size <= size
    charter = table.members["ada"].fold.charter
    assert [charter.member(before.id), charter.seat_of(before.id)] == [None, after]
    assert len(charter.voters) == 3, "one vote"
    assert isinstance(table.members["ada"].fold.decisions[-1].value, Amendment)
    assert heir.fold.charter == charter


def test_contributions_of_both_keys_are_one_register_and_count_as_one_sender() -> None:
    table = paper()
    bob = table.members["bob"]
    heir = rotated(table)
    cut = table.release()
    fold = table.members["ada"].fold
    taken = fold.in_cut(cut)
    assert sorted(taken) == sorted([fold.charter.member(m.id).id for m in fold.charter.members])  # type: ignore[union-attr]
    assert [c.member for c in taken[heir.id]] == [bob.id, heir.id], "the earlier key's first"
    assert [c.number for c in taken[heir.id]] == [1, 1], "each feed counts for itself"
    (last,) = [x for x in cut.last if x.member == heir.id]
    assert last.event == taken[heir.id][-1].event
    assert bob.id not in fold.weights(fold.charter, taken)
    assert fold.weights(fold.charter, taken)[heir.id] == 1
    assert all(fold.fate(c) == "released" for c in taken[heir.id])


def test_the_register_of_an_earlier_release_is_still_under_the_key_of_then() -> None:
    table = paper()
    bob, first = table.members["bob"], table.members["ada"].fold.cut
    assert first is not None
    rotated(table)
    table.release()
    fold = table.members["ada"].fold
    assert sorted(fold.in_cut(first)) == [x.member for x in first.registers]
    assert bob.id in fold.in_cut(first)
    assert rules.check(fold.before(1), first) == Fits()


def test_what_was_pending_at_the_succession_and_named_as_good_is_released_later() -> None:
    table = paper()
    bob = table.members["bob"]
    bob.publish()
    kept = bob.fold.contributions[bob.id][-1]
    heir = rotated(table)
    fold = table.members["ada"].fold
    assert fold.fate(kept) == "pending"
    assert kept in fold.pending()
    cut = table.release()
    assert kept in fold.in_cut(cut)[heir.id]


def test_what_the_old_key_writes_past_its_end_counts_nothing_and_stays_in_the_feed() -> None:
    table = paper()
    bob = table.members["bob"]
    heir = rotated(table)
    bob.publish()
    late = bob.fold.contributions[bob.id][-1]
    bob.say(events.AmendmentProposed(change={"op": "set", "field": "name", "value": "bob's"}))
    table.deliver_all()
    for source in bob.feed:
        table.members["ada"].fold.apply(source)
    fold = table.members["ada"].fold
    assert fold.fate(late) == "refused"
    assert late not in fold.pending()
    assert fold.sizes[bob.id] == len(bob.feed)
    cut = table.release()
    assert late not in fold.in_cut(cut)[heir.id]
    assert fold.fate(late) == "refused"
    assert not [a for a in fold.ripe_amendments() if a.source.member == bob.id]


def test_the_old_feed_ends_with_its_rotation() -> None:
    table = paper()
    bob = table.members["bob"]
    statement = said(bob, "bob two")
    bob.say(events.KeyRotated(statement=statement.to_json()))
    bob.publish()
    assert bob.fold.ended[bob.id].seq == len(bob.feed) - 2
    assert bob.fold.flaws[-1].code == "feed-ended"
    assert len(bob.fold.contributions[bob.id]) == 1
    ada = table.members["ada"]
    ada.say(events.KeyRotated(statement=statement.to_json()))
    assert ada.fold.flaws[-1].code == "bad-event", "nobody ends another one's feed"
    assert ada.id not in ada.fold.ended


def test_a_seat_may_be_given_on_and_keeps_all_its_feeds_in_their_order() -> None:
    table = paper()
    bob = table.members["bob"]
    two = rotated(table)
    table.release()
    three = rotated(table, "bob two", "bob three")
    table.dead = {"bob", "bob two"}
    cut = table.release()
    assert [c.member for c in table.members["ada"].fold.in_cut(cut)[three.id]] == [bob.id, two.id, three.id]
    assert [w.id for w in seat(table, "bob three").was] == [bob.id, two.id]


def test_an_earlier_key_speaks_for_no_peer_any_more() -> None:
    from protocol import binding

    table = paper()
    bob = table.members["bob"]
    transport = key("transport of bob")
    bob.say(events.PeerBound(binding=binding.make(key("bob"), transport)))
    heir = rotated(table)
    heir.say(events.PeerBound(binding=binding.make(key("bob two"), transport)))
    table.dead = {"bob"}
    table.deliver_all()
    assert set(table.members["ada"].fold.peers.values()) == {heir.id}


# -- the recovery key ------------------------------------------------------------------------------------------------
def test_the_recovery_key_takes_the_seat_back_from_whoever_holds_the_ledger_key() -> None:
    table = paper()
    bob = table.members["bob"]
    good = len(bob.feed)
    bob.publish()  # the thief's
    joined(table, "bob safe")
    ask(table.members["ada"], said(bob, "bob safe", RECOVERY, good))  # anybody may hand it in
    table.decide()
    safe = seat(table, "bob safe")
    assert [(w.id, w.size, w.left) for w in safe.was] == [(bob.id, good, "recovery")]
    assert table.members["ada"].fold.fate(bob.fold.contributions[bob.id][-1]) == "refused"


def test_a_recovery_goes_before_a_rotation_by_the_thief() -> None:
    for first in ("thief", "owner"):
        table = paper()
        ada, bob, cyd = table.members.values()
        joined(table, "thief"), joined(table, "bob safe")
        statements = {"thief": said(bob, "thief"), "owner": said(bob, "bob safe", RECOVERY)}
        ask(bob if first == "thief" else ada, statements[first])
        ask(cyd, statements["owner" if first == "thief" else "thief"])
        table.deliver_all()
        assert [a.change["new"] for a in ada.fold.ripe_amendments()] == [member_id(key("bob safe"))]
        rotation = next(a for a in ada.fold.asked.values() if a.change["new"] == member_id(key("thief")))
        place = rules.place(ada.fold, ada.fold.sizes)
        value = Amendment(place=place, proposal=rotation.source.event, change=rotation.change)
        assert rules.check(ada.fold, value) == Unfit(reason="succession-outranked")
        table.decide()
        assert seat(table, "bob safe") is not None
        assert not ada.fold.ripe_amendments(), "the thief's comes too late for ever"


def test_a_thief_that_was_quicker_loses_the_seat_again_and_what_it_has_not_released_counts_nothing() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    good = len(bob.feed)
    thief = rotated(table, "bob", "thief")
    table.release()
    thief.publish()
    table.deliver_all()
    ask(ada, said(bob, "bob safe", RECOVERY, good))
    joined(table, "bob safe")
    table.dead |= {"thief"}
    table.decide()
    safe = seat(table, "bob safe")
    assert [(w.id, w.size, w.left) for w in safe.was] == [(bob.id, good, "recovery"), (thief.id, 0, "recovery")]
    released, late = ada.fold.contributions[thief.id]
    assert [ada.fold.fate(released), ada.fold.fate(late)] == ["released", "refused"]
    ask(thief, said(thief, "thief two"))
    table.deliver_all()
    ada.fold.apply_all(thief.feed)
    assert not ada.fold.ripe_amendments()
    table.dead = {"bob", "thief"}
    table.deliver_all()
    cut = table.release()
    assert {c.member for c in ada.fold.in_cut(cut)[safe.id]} == {bob.id, thief.id, safe.id}, (
        "no release is undone by it"
    )


def test_an_abandoned_recovery_cannot_be_handed_in_later() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    for name in ("bob safe", "bob forgotten"):
        joined(table, name)
    ask(ada, said(bob, "bob safe", RECOVERY))
    table.decide()
    ask(ada, said(bob, "bob forgotten", RECOVERY))
    table.deliver_all()
    assert not ada.fold.ripe_amendments()


def test_only_the_recovery_key_that_the_feed_committed_to_first_and_before_its_good_end_recovers() -> None:
    table = paper()
    ada, bob, cyd = table.members.values()
    other = key("another recovery key")
    bob.bind_keys(recovery=other)  # by a thief
    cyd.bind_keys(recovery=key("recovery of cyd"))
    table.deliver_all()
    for statement in (
        said(bob, "bob safe", other),
        said(bob, "bob safe", RECOVERY, 0),
        said(cyd, "cyd safe", RECOVERY),
        replace_leaf(bob),
    ):
        ask(ada, statement)
    table.deliver_all()
    assert not ada.fold.ripe_amendments()
    place = rules.place(ada.fold, ada.fold.sizes)
    for asked in ada.fold.asked.values():
        value = Amendment(place=place, proposal=asked.source.event, change=asked.change)
        assert rules.check(ada.fold, value) == Unfit(reason="succession-unproven")
    ask(ada, said(bob, "bob safe", RECOVERY))
    assert len(ada.fold.ripe_amendments()) == 1


def replace_leaf(bob: PaperMember) -> Statement:
    return succession.make(
        RECOVERY, key("bob safe"), collective=bob.collective, old=bob.id, size=len(bob.feed), leaf=digest(b"elsewhere")
    )


def test_a_succession_is_judged_within_the_head_vector() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    bob.publish()
    ask(bob, said(bob, "bob two"))
    table.deliver_all()
    (asked,) = ada.fold.ripe_amendments()
    sizes = dict(ada.fold.sizes)
    whole = Amendment(place=rules.place(ada.fold, sizes), proposal=asked.source.event, change=asked.change)
    assert rules.check(ada.fold, whole) == Fits()
    cyd = PaperMember("cyd", ada.collective)
    for member in (ada, table.members["cyd"]):
        cyd.fold.apply_all(member.feed)
    cyd.fold.apply_all(bob.feed[:-1])
    assert rules.check(cyd.fold, whole) == Lacking(feeds={bob.id: len(bob.feed)})
    short = {**sizes, bob.id: len(bob.feed) - 1}
    without = Amendment(place=rules.place(ada.fold, short), proposal=asked.source.event, change=asked.change)
    assert rules.check(ada.fold, without) == Unfit(reason="amendment-not-proposed")


# -- order ------------------------------------------------------------------------------------------------------------
def theft() -> Paper:
    """A thief rotates, releases, forks the old feed and writes on; the owner recovers; everybody's late entries come too."""
    table = paper()
    ada, bob, cyd = table.members.values()
    good = len(bob.feed)
    thief = rotated(table, "bob", "thief")
    table.release()
    thief.publish()
    joined(table, "bob safe")
    ask(thief, said(thief, "thief two"))
    ask(cyd, said(bob, "bob safe", RECOVERY, good))
    table.dead |= {"thief"}
    table.decide()
    bob.publish()
    bob.say(events.KeyRotated(statement=said(bob, "thief three").to_json()))
    bob.publish()
    ada.say(events.ForkFound(member=bob.id, proof="{}"))
    table.dead = {"bob", "thief"}
    table.deliver_all()
    table.release()
    for member in table.members.values():
        for source in table.members.values():
            member.fold.apply_all(source.feed)
    return table


THEFT = theft()
AFTER = state(THEFT.members["ada"].fold)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_after_a_theft_and_a_recovery_the_state_does_not_depend_on_how_the_feeds_interleave(random: Any) -> None:
    fold = Collective(THEFT.members["ada"].collective)
    left = [list(m.feed) for m in THEFT.members.values()]
    while any(left):
        fold.apply(random.choice([feed for feed in left if feed]).pop(0))
    assert state(fold) == AFTER
    assert len(AFTER["decisions"]) == 5
    assert len(AFTER["successions"]) == 3
    assert fold.charter.member(member_id(key("bob safe"))) is not None


# -- statements ------------------------------------------------------------------------------------------------------
OLD, NEW = key("old"), key("new")
COLLECTIVE = CollectiveId(digest(b"collective"))
ROTATION = succession.make(OLD, NEW, collective=COLLECTIVE, old=member_id(OLD), size=3, leaf=digest(b"leaf"))
TAKEN_BACK = succession.make(RECOVERY, NEW, collective=COLLECTIVE, old=member_id(OLD), size=3, leaf=digest(b"leaf"))


def test_statements_are_read_back() -> None:
    for statement in (ROTATION, TAKEN_BACK):
        assert succession.read(statement.to_json()) == statement
        assert succession.read_change(statement.change()) == statement
    assert (ROTATION.kind, ROTATION.commitment) == ("rotation", None)
    assert (TAKEN_BACK.kind, TAKEN_BACK.commitment) == ("recovery", digest(bytes(RECOVERY.verify_key)))


@pytest.mark.parametrize("statement", [ROTATION, TAKEN_BACK])
@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("kind", "rotation", Refused), ("kind", "recovery", Refused), ("kind", "theft", Malformed),
        ("collective", digest(b"elsewhere"), BadSignature), ("old", member_id(key("else")), BadSignature),
        ("new", member_id(key("else")), BadSignature), ("size", 4, BadSignature), ("size", 0, Malformed),
        ("size", -1, Malformed), ("size", True, Malformed), ("leaf", digest(b"other"), BadSignature),
        ("leaf", ZERO, Malformed), ("by_new", "A" * 86 + "==", BadSignature), ("by_owner", "A" * 86 + "==", BadSignature),
        ("by_owner", "", Malformed), ("new", member_id(OLD), Malformed), ("new", "01" + "00" * 31, BadKey),
        ("recovery", member_id(key("else")), Refused), ("recovery", None, Refused),
    ],
)  # fmt: skip
def test_a_statement_with_anything_changed_is_refused(
    statement: Statement, field: str, value: object, error: type
) -> None:
    whole = statement.to_json()
    if whole[field] == value:
        return
    with pytest.raises(error):
        succession.read({**whole, field: value})  # type: ignore[dict-item]


def test_a_statement_with_a_field_more_or_less_is_refused() -> None:
    whole = ROTATION.to_json()
    for bad in ({**whole, "x": 1}, {k: v for k, v in whole.items() if k != "size"}, None, []):
        with pytest.raises(Malformed):
            succession.read(bad)  # type: ignore[arg-type]


def test_a_change_that_says_something_else_than_its_statement_is_refused() -> None:
    change = ROTATION.change()
    for field, value in (("old", member_id(NEW)), ("new", member_id(OLD)), ("size", 4), ("leaf", digest(b"x"))):
        with pytest.raises(BadCharter):
            succession.read_change({**change, field: value})


def test_a_seat_goes_only_to_a_key_that_never_had_one_and_only_by_its_present_key() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    charter = ada.fold.charter
    once = amended(charter, said(bob, "bob two").change())
    for statement in (said(bob, "cyd"), said(bob, "bob two"), said(bob, "bob three")):
        with pytest.raises(BadCharter):
            amended(once, statement.change())
    with pytest.raises(BadCharter):
        amended(charter, said(PaperMember("eve", ada.collective), "x", size=0).change())
    assert amended(once, said(bob, "bob safe", RECOVERY).change()).member(member_id(key("bob safe"))) is not None


def test_a_thief_that_rotates_on_and_on_leaves_room_for_the_recovery() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    charter, at, turns = ada.fold.charter, "bob", 0
    while True:
        old, turns = PaperMember(at, bob.collective), turns + 1
        try:
            charter = amended(charter, said(old, f"thief {turns}", size=0).change())
        except BadCharter:
            break
        at = f"thief {turns}"
    assert len(charter.seat_of(bob.id).was) == MAX_ROTATIONS  # type: ignore[union-attr]
    back = amended(charter, said(bob, "bob safe", RECOVERY).change())
    assert back.seat_of(bob.id) == back.member(member_id(key("bob safe")))


def test_a_collective_whose_decisions_list_all_feeds_they_can_seats_no_other_key_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(amending, "MAX_KEYS", 5)
    monkeypatch.setattr(amending, "FOR_RECOVERIES", 1)
    table = paper()
    ada, bob, cyd = table.members.values()
    for name in ("dan", "eve"):
        table.guest(name)
        new: dict[str, Any] = {"id": member_id(key(name)), "name": name, "role": "auditor", "weight": 1}
        asked = ada.say(events.AmendmentProposed(change={"op": "add", "member": new}))
        for voter in (bob, cyd):
            voter.say(events.AmendmentApproved(proposal=asked.entry.event))
        table.deliver_all()
        if name == "dan":
            table.decide()
    ask(bob, said(bob, "bob two"))
    table.deliver_all()
    assert ada.fold.ripe_amendments() == []
    place, late = rules.place(ada.fold, ada.fold.sizes), list(ada.fold.asked.values())[1:]
    assert len(late) == 2
    for each in late:
        value = Amendment(place=place, proposal=each.source.event, change=each.change)
        assert rules.check(ada.fold, value) == Unfit(reason="amendment-invalid")
    joined(table, "bob safe")
    ask(ada, said(bob, "bob safe", RECOVERY))
    table.decide()
    assert seat(table, "bob safe") is not None, "the last place is for whoever lost a key"
    assert len(ada.fold.ever_members()) == amending.MAX_KEYS
    height = ada.fold.height
    ada.publish()
    table.dead |= {"bob"}
    table.release()
    assert ada.fold.height > height


def test_a_key_beyond_what_decisions_list_is_refused_with_what_to_do() -> None:
    known = {MemberId(digest(f"{n}".encode())) for n in range(amending.MAX_KEYS - amending.FOR_RECOVERIES)}
    bob = paper().members["bob"]
    guest: dict[str, Any] = {"op": "add", "member": {"id": member_id(key("new"))}}
    for change in (guest, said(bob, "bob two").change()):
        amending.check_keys(known - {min(known)}, change)
        with pytest.raises(BadCharter, match=r"960 have, or had, a seat here.*1024.*fishernet collective create"):
            amending.check_keys(known, change)
    amending.check_keys(known, {"op": "add", "member": {"id": min(known)}})
    amending.check_keys(known, {"op": "remove", "id": min(known)})
    recovery = said(bob, "bob safe", RECOVERY).change()
    amending.check_keys(known, recovery)
    full = known | {MemberId(digest(f"more {n}".encode())) for n in range(amending.FOR_RECOVERIES)}
    with pytest.raises(BadCharter, match="1024 have, or had"):
        amending.check_keys(full, recovery)
    assert min(MAX_LIST, wire.MAX_HEADS, parcel.MAX_FEEDS) >= amending.MAX_KEYS


def test_the_limits_of_a_seat_are_read_from_it() -> None:
    member = replace(
        Paper.found(NAMES).members["ada"].fold.charter.members[0],
        was=(Former(id=MemberId(member_id(OLD)), size=3, left="rotation"),),
    )
    assert [member.reach(member.id), member.reach(member_id(OLD)), member.reach(Digest(ZERO))] == [None, 3, 0]


def test_a_cut_may_not_take_the_old_and_the_new_key_for_two_members() -> None:
    table = paper()
    bob = table.members["bob"]
    heir = rotated(table)
    for member in (table.members["ada"], heir):
        member.publish()
    table.deliver_all()
    draft = table.members["ada"].draft()
    assert isinstance(draft, Cut)
    ids = {r.member for r in draft.registers}
    assert heir.id in ids
    assert bob.id not in ids
    split = replace(
        draft,
        registers=tuple(sorted((*draft.registers, replace(draft.registers[0], member=bob.id)), key=lambda r: r.member)),
    )
    assert rules.check(table.members["ada"].fold, split) == Unfit(reason="wrong-registers")
