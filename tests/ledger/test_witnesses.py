"""What a cosignature is worth: who counts, when a release may cover what is new, and that nothing waits for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper import Paper, PaperMember, charter_of, key, witness_key

from ledger import cosignature, events, keyring, rules, witnesses
from ledger.amending import amended
from ledger.cuts import Amendment, Cut
from ledger.errors import BadCharter
from ledger.rules import Fits, Unfit
from protocol import binding
from protocol.ids import digest
from protocol.keys import member_id

NAMES = ["ada", "bob", "cyd"]
NOW = 10_000


def paper(cosignatures: int = 1, **organisations: str) -> Paper:
    found = Paper.found(NAMES, cosignatures=cosignatures, organisations=organisations)
    for member in found.members.values():
        member.bind_keys(now=NOW)
    found.deliver_all()
    return found


def organisations(of: Paper, by: str = "ada") -> set[str]:
    """Who cosigned the first contribution of a member, as that member's own fold counts."""
    fold = of.members[by].fold
    return set(fold.witnesses.organisations(fold.contributions[of.members[by].id][0], fold.charter))


# -- releases --------------------------------------------------------------------------------------------------------
def test_a_contribution_waits_until_another_organisation_has_cosigned_it() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    draft = ada.draft()
    assert isinstance(draft, Cut)
    assert draft.last == (), "what nobody witnessed is not covered"
    bob.cosign(ada, now=NOW)
    table.deliver_all()
    draft = ada.draft()
    assert isinstance(draft, Cut)
    assert [x.member for x in draft.last] == [ada.id]
    assert rules.check(ada.fold, draft) == Fits()
    assert organisations(table) == {"bob"}


def test_a_cut_that_covers_what_nobody_cosigned_inside_its_head_vector_is_refused() -> None:
    table = paper()
    ada, bob, cyd = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    bob.cosign(ada, now=NOW)
    table.deliver_all()
    draft = ada.draft()
    assert isinstance(draft, Cut)
    heads = tuple(
        replace(h, size=h.size - 1, leaf=bob.feed[h.size - 2].entry.leaf) if h.member == bob.id else h
        for h in draft.place.heads
    )
    blind = replace(draft, place=replace(draft.place, heads=heads))
    assert rules.check(cyd.fold, draft) == Fits()
    assert rules.check(cyd.fold, blind) == Unfit(reason="unwitnessed")


def test_members_that_cosign_each_other_are_released_together() -> None:
    table = paper(2)
    for member in table.members.values():
        member.publish(NOW)
    table.cosign_all(NOW)
    table.run(1)
    cut = table.members["ada"].fold.cut
    assert cut is not None
    assert len(cut.last) == 3


def test_what_is_taken_off_one_feed_takes_off_what_only_it_had_witnessed() -> None:
    table = paper()
    ada, bob, cyd = table.members.values()
    bob.publish(NOW)  # nobody cosigns it
    ada.publish(NOW)
    table.deliver_all()
    bob.cosign(ada, now=NOW)  # but this stands after it
    table.deliver_all()
    reach = rules.within_reach(cyd.fold, cyd.fold.sizes)
    assert reach[bob.id] < len(bob.feed)
    assert reach[ada.id] < len(ada.feed), "its only cosignature is not covered"
    cyd.cosign(bob, now=NOW)
    table.deliver_all()
    assert rules.within_reach(cyd.fold, cyd.fold.sizes) == cyd.fold.sizes


def test_an_amendment_is_decided_though_nothing_is_witnessed() -> None:
    table = paper(2)
    for member in table.members.values():
        member.publish(NOW)
    table.amend({"op": "set", "field": "witness", "value": {"cosignatures": 0}})
    fold = table.members["ada"].fold
    assert fold.charter.witness.cosignatures == 0
    assert isinstance(fold.decisions[0].value, Amendment)
    assert len(table.decide().last) == 3


def test_an_author_is_not_blamed_for_omitting_what_nobody_had_cosigned_in_time() -> None:
    table = paper()
    ada, bob, cyd = table.members.values()
    ada.publish(NOW)
    bob.publish(NOW)
    table.deliver_all()
    cyd.cosign(ada, now=NOW)
    table.deliver_all()
    table.run(1)
    left = bob.fold.contributions[bob.id][0]
    ada.publish(NOW)
    table.deliver_all()
    draft = ada.draft()
    assert isinstance(draft, Cut)
    assert rules.omitted(cyd.fold, cyd.id, draft, {left.blob}) is None
    cyd.cosign(bob, ada, now=NOW)
    table.decide()
    assert cyd.fold.fate(left) == "released"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(1, 2), st.floats(0, 0.5))
def test_members_that_witness_each_other_agree_and_release_nothing_unwitnessed(
    seed: int, count: int, needed: int, slow: float
) -> None:
    table = Paper.found([f"m{i}" for i in range(count)], seed=seed, cosignatures=needed)
    table.slow = slow
    for member in table.members.values():
        member.bind_keys(now=NOW)
    for round_ in range(2):
        table.deliver_all()
        for member in table.members.values():
            member.publish(NOW)
        table.run(round_ + 1, ms=60_000)
        table.random.choice(table.alive()).restart()
        table.deliver_all()
    fold = table.members["m0"].fold
    assert len(fold.releases) >= 2
    for member in table.members.values():
        assert [d.digest for d in member.fold.decisions] == [d.digest for d in fold.decisions]
        assert not member.fold.flaws
        assert not member.fold.double_votes
    for decision in fold.releases:
        assert isinstance(decision.value, Cut)
        within = decision.value.place.size_of
        for taken in fold.in_cut(decision.value).values():
            for contribution in taken:
                assert len(fold.witnesses.organisations(contribution, decision.charter, within)) >= needed


def test_with_one_of_three_dead_the_other_two_witness_each_other() -> None:
    for dead in NAMES:
        table = paper()
        for member in table.members.values():
            member.publish(NOW)
        table.deliver_all()
        table.dead = {dead}
        table.run(1)
        assert all(len(m.fold.decisions) == 1 for m in table.alive()), f"{dead} is dead and nothing was decided"
        cut = table.alive()[0].fold.cut
        assert cut is not None
        assert len(cut.last) >= 2


# -- who counts ------------------------------------------------------------------------------------------------------
def test_organisations_count_once_and_the_authors_own_never() -> None:
    table = paper(1, ada="North", bob="North", cyd="South")
    ada, bob, cyd = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    bob.cosign(ada, now=NOW)
    table.deliver_all()
    assert organisations(table) == set(), "the author's own organisation"
    assert witnesses.due(bob.fold, bob.id) == [], "and it does not even try"
    for _ in range(2):
        cyd.cosign(ada, now=NOW)
    table.deliver_all()
    assert organisations(table) == {"South"}


def test_one_key_under_two_names_counts_once() -> None:
    table = paper(0)
    ada, bob, cyd = table.members.values()
    bound = keyring.make(witness_key("bob"), collective=cyd.collective, member=cyd.id, post_quantum=None, recovery=None)
    cyd.say(bound, NOW)
    ada.publish(NOW)
    table.deliver_all()
    bob.cosign(ada, now=NOW)
    head = bob.cosigned(ada, time=NOW // 1000)
    cyd.say(events.HeadWitnessed(heads=(head,)), NOW)
    table.deliver_all()
    assert not cyd.fold.flaws, "the same key made both"
    assert len(organisations(table)) == 1


def test_a_cosignature_of_a_stranger_or_a_former_member_counts_nothing() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    eve = table.guest("eve")
    eve.bind_keys(now=NOW)
    ada.publish(NOW)
    table.deliver_all()
    eve.cosign(ada, now=NOW)
    bob.cosign(ada, now=NOW)
    table.deliver_all()
    assert organisations(table) == {"bob"}
    table.amend({"op": "remove", "id": bob.id})
    assert "bob" not in organisations(table)


def test_a_cosignature_without_a_bound_key_or_from_the_future_or_of_another_root_counts_nothing() -> None:
    table = Paper.found(NAMES, cosignatures=1)
    ada, bob, cyd = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    bob.cosign(ada, now=NOW)
    assert [f.code for f in bob.fold.flaws] == ["bad-event"]
    bob.bind_keys(now=NOW)
    bob.say(events.HeadWitnessed(heads=(bob.cosigned(ada, time=NOW // 1000 + 1),)), NOW)
    assert [f.code for f in bob.fold.flaws] == ["bad-event"] * 2
    bob.say(events.HeadWitnessed(heads=(replace(bob.cosigned(ada), size=1),)), NOW)
    assert bob.fold.flaws[-1].code == "bad-signature"
    cyd.bind_keys(now=NOW)
    made = cosignature.make(
        witness_key("cyd"), None, witness=cyd.id, head=_head(ada, digest(b"another history")), time=1
    )
    row = events.Witnessed(member=ada.id, size=made.size, root=made.root, time=1, signature=made.signature)
    cyd.say(events.HeadWitnessed(heads=(row,)), NOW)
    table.deliver_all()
    assert len(cyd.fold.flaws) == 3, "a signature that is right is no flaw by itself"
    assert organisations(table) == set()
    assert [c.source.member for c in ada.fold.witnesses.contradicting()] == [cyd.id]
    bob.cosign(ada, now=NOW)
    table.deliver_all()
    assert organisations(table) == {"bob"}


def _head(of: PaperMember, root: str):  # type: ignore[no-untyped-def]
    from ledger import checkpoint

    return checkpoint.make(key(of.name), of.collective, of.id, len(of.feed), root)  # type: ignore[arg-type]


def test_a_head_before_the_contribution_does_not_cover_it() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    heads = (bob.cosigned(ada, len(ada.feed) - 1),)
    bob.say(events.HeadWitnessed(heads=heads), NOW)
    table.deliver_all()
    assert organisations(table) == set()
    assert witnesses.due(bob.fold, bob.id) == [ada.id]
    bob.cosign(ada, now=NOW)
    assert witnesses.due(bob.fold, bob.id) == []


def test_the_witness_key_may_not_be_a_transport_key_of_the_member_whichever_came_first() -> None:
    bob = Paper.found(NAMES).members["bob"]
    bob.say(events.PeerBound(binding=binding.make(key("bob"), witness_key("bob"))))
    bob.bind_keys()
    assert bob.fold.witnesses.bound == {}
    cyd = Paper.found(NAMES).members["cyd"]
    cyd.bind_keys()
    cyd.say(events.PeerBound(binding=binding.make(key("cyd"), witness_key("cyd"))))
    assert [f.code for f in (*bob.fold.flaws, *cyd.fold.flaws)] == ["bad-event"] * 2
    assert cyd.id not in cyd.fold.bound


def test_a_new_witness_key_counts_from_its_entry_on_and_the_first_recovery_commitment_stands() -> None:
    table = paper()
    ada, bob, _ = table.members.values()
    first, second = key("first recovery"), key("the thief's")
    bob.bind_keys(recovery=first)
    bob.bind_keys(recovery=second)
    assert bob.fold.witnesses.commitments[bob.id][1] == digest(bytes(first.verify_key))
    fresh = keyring.make(key("fresh"), collective=bob.collective, member=bob.id, post_quantum=None, recovery=None)
    old = bob.cosigned(ada)
    bob.say(fresh)
    bob.say(events.HeadWitnessed(heads=(old,)), NOW)
    assert bob.fold.flaws[-1].code == "bad-signature", "signed by the key before"


# -- no ping-pong ----------------------------------------------------------------------------------------------------
def test_cosignatures_and_signs_of_life_ask_for_no_cosignature() -> None:
    table = paper()
    ada, bob, cyd = table.members.values()
    ada.publish(NOW)
    table.deliver_all()
    assert witnesses.due(bob.fold, bob.id) == witnesses.due(cyd.fold, cyd.id) == [ada.id]
    assert witnesses.due(ada.fold, ada.id) == []
    bob.cosign(ada, now=NOW)
    cyd.cosign(ada, now=NOW)
    for member in (ada, bob, cyd):
        member.say(events.NodeAlive(), NOW)
    table.deliver_all()
    assert [witnesses.due(m.fold, m.id) for m in (ada, bob, cyd)] == [[], [], []]


# -- the charter -----------------------------------------------------------------------------------------------------
def test_a_charter_never_asks_for_more_organisations_than_there_are_besides_the_author() -> None:
    charter = charter_of(NAMES, cosignatures=2)
    with pytest.raises(BadCharter, match="cosignatures"):
        charter_of(NAMES, cosignatures=3)
    with pytest.raises(BadCharter, match="cosignatures"):
        charter_of(NAMES, cosignatures=2, organisations={"ada": "North", "bob": "North"})
    with pytest.raises(BadCharter, match="cosignatures"):
        amended(charter, {"op": "remove", "id": member_id(key("ada"))})
    fewer = amended(charter, {"op": "set", "field": "witness", "value": {"cosignatures": 1}})
    assert amended(fewer, {"op": "remove", "id": member_id(key("ada"))}).witness.cosignatures == 1


def test_a_seat_keeps_its_organisation_when_its_role_changes() -> None:
    charter = charter_of(NAMES, organisations={"ada": "North"})
    seat = {"id": member_id(key("ada")), "name": "Ada", "role": "endorser", "weight": 1}
    assert amended(charter, {"op": "role", "member": seat}).member(str(seat["id"])).organisation == "North"  # type: ignore[union-attr]
    moved = amended(charter, {"op": "role", "member": {**seat, "organisation": "South"}})
    assert moved.member(str(seat["id"])).organisation == "South"  # type: ignore[union-attr]
    new = {**seat, "id": member_id(key("dan")), "name": "dan"}
    assert amended(charter, {"op": "add", "member": new}).member(str(new["id"])).organisation == "dan"  # type: ignore[union-attr]
    with pytest.raises(BadCharter):
        amended(charter, {"op": "add", "member": {**new, "was": []}})
