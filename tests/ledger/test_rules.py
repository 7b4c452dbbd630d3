"""What makes a proposed decision wrong: every reason, from an honest decision with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from paper import Paper, PaperMember, key

from ledger import events, rules
from ledger.collective import Collective
from ledger.cuts import Amendment, Cut, Exclusion, FeedHead, Value
from ledger.rules import Fits, Lacking, Unfit
from protocol.ids import Digest, EventId, MemberId, digest
from protocol.keys import member_id

NAMES = ["ada", "bob", "cyd"]
STRANGER = MemberId(member_id(key("sam")))


def pending() -> Paper:
    """One release, one excluded contribution in it, and three contributions that wait for the next."""
    paper = Paper.found(NAMES)
    for member in paper.members.values():
        member.publish()
    object_to(paper, paper.members["cyd"], ["ada", "bob"])
    paper.decide()
    for member in paper.members.values():
        member.publish()
    paper.deliver_all()
    return paper


def object_to(paper: Paper, culprit: PaperMember, voters: list[str]) -> list[EventId]:
    """Verdicts at the next height against the last contribution of a member."""
    paper.deliver_all()
    found = []
    for name in voters:
        voter = paper.members[name]
        bad = voter.fold.contributions[culprit.id][-1]
        verdict = events.Verdict(
            height=voter.fold.height,
            candidate=digest(b"candidate"),
            rows=300,
            versus_base=5,
            versus_parent=5,
            objections=(events.Objection(event=bad.event, reason="worse"),),
        )
        found.append(voter.say(verdict).entry.event)
    paper.deliver_all()
    return sorted(found)


PAPER = pending()
ADA, BOB, CYD = PAPER.members.values()
FOLD: Collective = ADA.fold
HONEST = ADA.draft()
assert isinstance(HONEST, Cut)
SEATS = sorted(m.id for m in PAPER.members.values())


def heads(cut: Cut, change: Callable[[FeedHead], FeedHead | None]) -> Cut:
    kept = tuple(head for head in map(change, cut.place.heads) if head is not None)
    return replace(cut, place=replace(cut.place, heads=kept))


def first(head: FeedHead, **fields: Any) -> FeedHead:
    return replace(head, **fields) if head.member == SEATS[0] else head


def excluded(cut: Cut, *more: Exclusion) -> Cut:
    found = tuple(sorted((*cut.excluded, *more), key=lambda x: x.event))
    gone = {x.event for x in found}
    registers = tuple(
        r for r in cut.registers if {c.event for c in FOLD.covered(cut.place, cut.epoch).get(r.member, [])} - gone
    )
    return replace(cut, excluded=found, registers=registers)


def newest(member: PaperMember) -> EventId:
    return FOLD.contributions[member.id][-1].event


ZERO_HEX = Digest("0" * 64)
EMPTY = Exclusion(event=newest(BOB), reason="norm", evidence=())
STRANGE = FeedHead(member=STRANGER, size=1, leaf=ZERO_HEX)
SHORT = heads(HONEST, lambda h: first(h, size=1, leaf=FOLD.leaves[h.member][0]))
PREVIOUS = FOLD.current_cut()
assert PREVIOUS is not None
BARE = replace(HONEST, excluded=())

WRONG: list[tuple[str, Value]] = [
    ("wrong-place", replace(HONEST, place=replace(HONEST.place, collective="0" * 64))),
    ("wrong-place", replace(HONEST, place=replace(HONEST.place, charter=ZERO_HEX))),
    ("wrong-place", replace(HONEST, place=replace(HONEST.place, height=1))),
    ("wrong-place", replace(HONEST, place=replace(HONEST.place, height=3))),
    ("wrong-place", replace(HONEST, place=replace(HONEST.place, parent=ZERO_HEX))),
    ("stranger-in-heads", replace(HONEST, place=replace(HONEST.place, heads=(*HONEST.place.heads, STRANGE)))),
    ("wrong-head", heads(HONEST, lambda h: first(h, leaf=ZERO_HEX))),
    ("wrong-head", heads(HONEST, lambda h: first(h, size=h.size - 1))),
    ("cut-shrinks", SHORT),
    ("cut-shrinks", heads(HONEST, lambda h: None if h.member == SEATS[0] else h)),
    ("wrong-parent-release", replace(HONEST, number=1)),
    ("wrong-parent-release", replace(HONEST, number=3)),
    ("wrong-parent-release", replace(HONEST, parent_release=None)),
    ("wrong-parent-release", replace(HONEST, parent_release=ZERO_HEX)),
    ("wrong-epoch-or-recipe", replace(HONEST, epoch=ZERO_HEX)),
    ("wrong-epoch-or-recipe", replace(HONEST, recipe="member-mean/1")),
    ("wrong-last", replace(HONEST, last=HONEST.last[1:])),
    ("wrong-last", replace(HONEST, last=())),
    ("wrong-last", replace(HONEST, last=(replace(HONEST.last[0], number=9), *HONEST.last[1:]))),
    ("exclusion-forgotten", BARE),
    ("exclusion-outside-cut", excluded(HONEST, replace(EMPTY, event=EventId(ZERO_HEX)))),
    ("exclusion-outside-cut", excluded(HONEST, replace(EMPTY, event=ADA.feed[0].entry.event))),
    ("exclusion-with-evidence", excluded(HONEST, replace(EMPTY, evidence=(EventId(ZERO_HEX),)))),
    ("exclusion-without-evidence", excluded(HONEST, replace(EMPTY, reason=rules.REFUSED))),
    ("wrong-registers", replace(HONEST, registers=HONEST.registers[1:])),
    ("wrong-registers", replace(HONEST, registers=())),
]  # fmt: skip


def test_an_honest_cut_fits() -> None:
    assert rules.check(FOLD, HONEST) == Fits()
    assert all(rules.check(m.fold, HONEST) == Fits() for m in PAPER.members.values())
    assert len(HONEST.excluded) == 1, "the exclusion of the release before is carried on"


@pytest.mark.parametrize(("reason", "value"), WRONG)
def test_a_cut_with_one_thing_changed_is_unfit_and_says_why(reason: str, value: Value) -> None:
    assert rules.check(FOLD, value) == Unfit(reason=reason)


def test_verdicts_are_named_where_they_led_to_an_exclusion_and_later_cuts_may_do_without_them() -> None:
    (carried,) = HONEST.excluded
    assert (carried.reason, len(carried.evidence)) == (rules.REFUSED, 2)
    bare = replace(HONEST, excluded=rules.carried(HONEST))
    assert bare.excluded == (replace(carried, evidence=()),)
    assert rules.check(FOLD, bare) == Fits()
    part = replace(HONEST, excluded=(replace(carried, evidence=carried.evidence[:1]),))
    assert rules.check(FOLD, part) == Unfit(reason="exclusion-without-evidence")


def test_a_fault_of_the_blob_itself_is_left_to_those_who_have_it() -> None:
    assert rules.check(FOLD, excluded(HONEST, EMPTY)) == Fits(hard=(EMPTY,))


def test_a_cut_that_brings_nothing_new_is_unfit() -> None:
    paper = Paper.found(NAMES)
    ada = paper.members["ada"]
    empty = ada.draft()
    assert rules.check(ada.fold, empty) == Unfit(reason="nothing-new")
    paper.release()
    assert rules.check(ada.fold, ada.draft()) == Unfit(reason="nothing-new")
    ada.publish()
    assert rules.check(ada.fold, ada.draft()) == Fits()
    bob = paper.members["bob"]
    object_to(paper, ada, ["ada", "bob", "cyd"])
    paper.decide()
    again = bob.draft()
    assert isinstance(again, Cut)
    bare = replace(again, excluded=rules.carried(again))
    assert bare.excluded != again.excluded
    assert [rules.check(bob.fold, cut) for cut in (again, bare)] == [Unfit(reason="nothing-new")] * 2


def test_what_is_not_here_yet_is_named_with_the_size_that_is_needed() -> None:
    fold = Collective(FOLD.id)
    for member in (ADA, BOB):
        fold.apply_all(member.feed)
    fold.apply_all(CYD.feed[: HONEST.place.size_of(CYD.id) - 1])
    decided = fold.height == FOLD.height
    if not decided:
        pytest.fail("two of three have committed the first release")
    assert rules.check(fold, HONEST) == Lacking(feeds={CYD.id: HONEST.place.size_of(CYD.id)})


def test_entries_after_the_head_vector_change_no_answer() -> None:
    paper = pending()
    ada, bob, cyd = paper.members.values()
    cut = ada.draft()
    assert isinstance(cut, Cut)
    answer = rules.check(ada.fold, cut)
    object_to(paper, cyd, ["ada", "bob"])
    for member in (ada, bob, cyd):
        member.publish()
    paper.deliver_all()
    assert rules.check(ada.fold, cut) == answer == Fits()


# -- soft refusals ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "objecting", "enough"),
    [
        (3, 1, False),
        (3, 2, True),
        (5, 1, False),
        (5, 2, True),
        (7, 2, False),
        (7, 3, True),
        (10, 3, False),
        (10, 4, True),
    ],
)
def test_more_than_n_minus_q_objections_exclude_and_fewer_do_not(count: int, objecting: int, enough: bool) -> None:
    names = [f"m{n}" for n in range(count)]
    paper = Paper.found(names)
    culprit, *others = paper.members.values()
    for member in paper.members.values():
        member.publish()
    evidence = object_to(paper, culprit, names[1 : 1 + objecting])
    fold = culprit.fold
    bad = fold.contributions[culprit.id][0]
    claim = Exclusion(event=bad.event, reason=rules.REFUSED, evidence=tuple(evidence))
    assert rules.refused(fold, fold.sizes) == ((claim,) if enough else ())
    cut = others[0].draft()
    assert isinstance(cut, Cut)
    forced = replace(cut, excluded=(claim,), registers=tuple(r for r in cut.registers if r.member != culprit.id))
    assert rules.check(fold, forced) == (Fits() if enough else Unfit(reason="exclusion-without-evidence"))


def test_evidence_is_exactly_the_objections_inside_the_head_vector() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    for member in (ada, bob, cyd):
        member.publish()
    evidence = object_to(paper, cyd, ["ada", "bob", "cyd"])
    cut = ada.draft()
    assert isinstance(cut, Cut)
    (claim,) = cut.excluded
    assert list(claim.evidence) == evidence
    assert rules.check(bob.fold, cut) == Fits()
    for wrong in (claim.evidence[1:], (EventId(ZERO_HEX), *claim.evidence[1:])):
        bent = replace(cut, excluded=(replace(claim, evidence=wrong),))
        assert rules.check(bob.fold, bent) == Unfit(reason="exclusion-without-evidence")
    early = replace(cut, place=rules.place(bob.fold, {**bob.fold.sizes, ada.id: 2, bob.id: 1}))
    early = replace(early, excluded=(replace(claim, evidence=claim.evidence),))
    assert rules.check(bob.fold, early) == Unfit(reason="exclusion-without-evidence")


def test_objections_of_those_without_a_vote_are_no_evidence() -> None:
    paper = Paper.found([*NAMES, "aud"], aud="auditor")
    sam = paper.guest("sam")
    for name in NAMES:
        paper.members[name].publish()
    object_to(paper, paper.members["cyd"], ["ada", "aud", "sam"])
    fold = paper.members["bob"].fold
    assert not rules.refused(fold, fold.sizes)
    where = rules.place(fold, {m: n for m, n in fold.sizes.items() if m != sam.id})
    bad = fold.contributions[paper.members["cyd"].id][0].event
    assert list(rules.objections(fold, where, bad)) == [paper.members["ada"].id]


def test_a_smeared_member_is_not_held_back_by_the_noise_about_somebody_elses_harm() -> None:
    """Six feel the culprit and vote against; three hostile voters blame another one: only the culprit stays out."""
    names = [f"m{n}" for n in range(10)]
    paper = Paper.found(names)
    culprit, victim, *_ = paper.members.values()
    for member in paper.members.values():
        member.publish()
    paper.deliver_all()
    candidate = victim.draft()
    assert isinstance(candidate, Cut)
    victim.say(events.Proposed(height=1, attempt=0, valid_attempt=-1, value=candidate.to_json()))
    object_to(paper, culprit, names[1:7])
    object_to(paper, victim, names[7:])
    for name in names[1:]:
        said = events.Objected(height=1, attempt=0, digest=candidate.digest, reason=rules.WORSE)
        paper.members[name].say(said)
    paper.deliver_all()
    fold = victim.fold
    assert [x.event for x in rules.refused(fold, fold.sizes)] == [fold.contributions[culprit.id][0].event]
    assert rules.contested(fold) == set()


# -- copies ----------------------------------------------------------------------------------------------------------
def test_a_copy_is_left_out_on_the_evidence_of_one_kept_contribution_that_came_first() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    ada.publish()
    bob.publish()
    paper.deliver_all()
    cyd.publish()
    paper.deliver_all()
    fold, cut = bob.fold, bob.draft()
    assert isinstance(cut, Cut)
    first, late = fold.contributions[ada.id][0].event, fold.contributions[cyd.id][0].event
    other = fold.contributions[bob.id][0].event

    def said(*claims: Exclusion) -> Fits | Unfit | Lacking:
        gone = {x.event for x in claims}
        kept = tuple(r for r in cut.registers if fold.contributions[r.member][0].event not in gone)
        return rules.check(fold, replace(cut, excluded=claims, registers=kept))

    claim = Exclusion(event=late, reason=rules.COPIED, evidence=(first,))
    assert said(claim) == Fits(hard=(claim,)), "whoever has the blobs compares them"
    unproven = Unfit(reason="exclusion-without-evidence")
    assert said(replace(claim, evidence=())) == unproven
    assert said(replace(claim, evidence=tuple(sorted((first, other))))) == unproven
    assert said(replace(claim, evidence=(late,))) == unproven, "not by itself"
    assert said(replace(claim, event=first, evidence=(late,))) == unproven, "the original is no copy of the copy"
    assert said(replace(claim, event=other, evidence=(first,))) == unproven, "neither had seen the other"
    both = (claim, Exclusion(event=first, reason="norm", evidence=()))
    assert said(*sorted(both, key=lambda x: x.event)) == unproven, "what is left out itself is no evidence"


# -- growth ----------------------------------------------------------------------------------------------------------
def test_a_cut_never_shrinks_below_an_amendment_either() -> None:
    paper = pending()
    ada, bob, _ = paper.members.values()
    early = ada.draft()
    assert isinstance(early, Cut)
    paper.amend({"op": "set", "field": "name", "value": "new"})
    place = replace(rules.place(ada.fold, ada.fold.sizes), heads=early.place.heads)
    late = ada.draft()
    assert isinstance(late, Cut)
    assert rules.check(bob.fold, replace(late, place=place)) == Unfit(reason="cut-shrinks")
    assert rules.check(bob.fold, late) == Fits()


def test_a_contribution_recorded_before_the_parent_and_left_out_is_omitted() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    for member in (ada, bob, cyd):
        member.publish()
    paper.deliver_all()
    without = ada.draft()
    assert isinstance(without, Cut)
    sizes = {**ada.fold.sizes, cyd.id: 0}
    place = rules.place(ada.fold, sizes)
    keep = tuple(r for r in without.registers if r.member != cyd.id)
    without = replace(without, place=place, last=rules.last_of(ada.fold, place), registers=keep)
    assert rules.omitted(bob.fold, bob.id, without, []) is None, (
        "nothing is decided yet, so nothing was recorded before"
    )
    ada.say(events.Proposed(height=1, attempt=0, valid_attempt=-1, value=without.to_json()))
    for member in (ada, bob):
        member.say(events.Committed(height=1, attempt=0, digest=without.digest))
    paper.deliver_all()
    left = bob.fold.contributions[cyd.id][0]
    bob.publish()
    again_place = rules.place(bob.fold, {m: n for m, n in bob.fold.sizes.items() if m != cyd.id})
    again = bob.draft()
    assert isinstance(again, Cut)
    bent = replace(again, place=again_place)
    assert rules.omitted(bob.fold, bob.id, bent, [left.blob]) == left
    assert rules.omitted(bob.fold, bob.id, bent, []) is None, "without the blob it was not recorded"
    assert rules.omitted(bob.fold, cyd.id, bent, [left.blob]) is None, "who did not commit had recorded nothing"
    assert rules.omitted(bob.fold, bob.id, again, [left.blob]) is None


# -- amendments ------------------------------------------------------------------------------------------------------
def test_an_amendment_is_unfit_for_every_reason_of_its_own() -> None:
    paper = pending()
    ada, bob, cyd = paper.members.values()
    change: dict[str, Any] = {"op": "set", "field": "name", "value": "new"}
    asked = ada.say(events.AmendmentProposed(change=change))
    before = dict(ada.fold.sizes)
    bob.say(events.AmendmentApproved(proposal=asked.entry.event))
    broken = ada.say(events.AmendmentProposed(change={"op": "remove", "id": STRANGER}))
    for member in (bob, cyd):
        member.say(events.AmendmentApproved(proposal=broken.entry.event))
    paper.deliver_all()
    fold = cyd.fold
    value = ada.draft()
    assert isinstance(value, Amendment)
    assert rules.check(fold, value) == Fits()

    def reason(other: Value) -> str:
        answer = rules.check(fold, other)
        assert isinstance(answer, Unfit)
        return answer.reason

    assert reason(replace(value, proposal=EventId(ZERO_HEX))) == "amendment-not-proposed"
    assert (
        reason(replace(value, place=rules.place(fold, {**before, ada.id: before[ada.id] - 1})))
        == "amendment-not-proposed"
    )
    assert reason(replace(value, change={**change, "value": "old"})) == "amendment-differs"
    assert reason(replace(value, place=rules.place(fold, before))) == "amendment-not-approved"
    invalid = replace(value, proposal=broken.entry.event, change={"op": "remove", "id": STRANGER})
    assert reason(invalid) == "amendment-invalid"
    assert reason(replace(value, place=replace(value.place, height=9))) == "wrong-place"
    paper.decide()
    again = replace(value, place=rules.place(fold, fold.sizes))
    assert reason(again) == "amendment-repeated"
