"""What a node thinks of a proposal: the rules, the recomputed bytes, then its own losses; and what it would propose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seats import Sitter, Table

from ledger import events, rules
from ledger.charter_reading import MAX_MEMBERS
from ledger.cuts import MAX_LIST, Amendment, Cut, Exclusion, FeedHead, Last, Place, RegisterDigest
from ledger.entry import MAX_BODY
from ledger.votes import Judgement
from node.collective import allowance, judging
from node.collective.judging import Finding
from node.collective.replay import Model, Vector, completed
from protocol.canon import encode
from protocol.ids import CollectiveId, Digest, EventId, MemberId, digest

GOOD, BAD = 5, 60  # coordinates that help and that hurt


def loss(vector: Vector) -> float:
    """Base 4.00 nats; coordinate 5 helps, coordinate 60 hurts."""
    return 4.0 - float(vector[GOOD]) + 2.0 * float(vector[BAD])


LOSSES = dict.fromkeys(("ada", "bob", "cyd"), loss)
HELPS, HURTS = {GOOD: 0.5}, {BAD: 1.0, 7: 0.25}


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path, losses=LOSSES)
    yield found
    found.close()


def finding(found: Finding | None) -> Finding:
    assert found is not None, "something is missing here"
    return found


def judgement(sitter: Sitter, value: Any) -> tuple[bool, bool, str]:
    found = finding(sitter.judged(value)).judgement
    return found.sound, found.accept, found.reason


# -- losses ------------------------------------------------------------------------------------------------------------
def test_a_candidate_that_helps_is_accepted_with_what_it_gains(table: Table) -> None:
    for sitter in table:
        sitter.publish(HELPS)
    table.deliver()
    cut = table["ada"].cut()
    found = finding(table["bob"].judged(cut))
    assert found.judgement == Judgement(sound=True, accept=True, reason="")
    verdict = found.verdict
    assert verdict is not None
    assert (verdict.height, verdict.candidate, verdict.rows) == (1, cut.digest, 300)
    assert (verdict.versus_base, verdict.versus_parent) == (-50, -50)
    assert verdict.objections == ()
    assert events.parse(verdict.TYPE, verdict.to_json()) == verdict


def test_a_candidate_that_hurts_is_objected_to_and_its_author_named(table: Table) -> None:
    for name in ("ada", "bob"):
        table[name].publish(HELPS)
    bad = [table["cyd"].publish(HURTS), table["cyd"].publish({BAD: 0.5})]
    table.deliver()
    cut = table["ada"].cut()
    for name in ("ada", "bob"):
        found = finding(table[name].judged(cut))
        assert (found.judgement.sound, found.judgement.accept, found.judgement.reason) == (True, False, "worse")
        assert found.verdict is not None
        assert found.verdict.versus_base == found.verdict.versus_parent > table.charter.gate.tolerance_centinats
        assert [(o.event, o.reason) for o in found.verdict.objections] == [(c.event, "worse") for c in bad]


def test_the_tolerance_of_the_charter_decides_what_is_worse(table: Table) -> None:
    table["cyd"].publish({BAD: 0.01})  # two centinats
    table.deliver()
    assert judgement(table["bob"], table["bob"].cut()) == (True, True, "")
    table["cyd"].publish({BAD: 0.02})
    table.deliver()
    assert judgement(table["bob"], table["bob"].cut()) == (True, False, "worse")


def test_a_release_is_compared_with_the_release_before_and_not_with_the_base(table: Table) -> None:
    for sitter in table:
        sitter.publish({GOOD: 1.0})
    table.deliver()
    table.decide(table["ada"].cut())
    table["cyd"].publish({BAD: 0.25, GOOD: 0.25})
    table.deliver()
    found = finding(table["bob"].judged(table["bob"].cut()))
    assert found.verdict is not None
    assert found.verdict.versus_base is not None
    assert found.verdict.versus_base < 0 < (found.verdict.versus_parent or 0)
    assert found.judgement.reason == "worse"


def test_ones_own_contribution_is_never_blamed(table: Table) -> None:
    table["cyd"].publish(HURTS)
    table.deliver()
    found = finding(table["cyd"].judged(table["cyd"].cut()))
    assert found.verdict is not None
    assert (found.judgement.reason, found.verdict.objections) == ("worse", ())


def test_a_candidate_whose_loss_is_not_finite_is_the_worst_and_its_author_named(tmp_path: Path) -> None:
    def breaks(vector: Vector) -> float:
        return float("nan") if vector[BAD] else loss(vector)

    table = Table(tmp_path, losses=dict.fromkeys(LOSSES, breaks))
    for name in ("ada", "bob"):
        table[name].publish(HELPS)
    poison = table["cyd"].publish(HURTS)
    table.deliver()
    found = finding(table["bob"].judged(table["ada"].cut()))
    assert found.verdict is not None
    assert (found.judgement.accept, found.verdict.versus_base, found.verdict.rows) == (False, events.MAX_LOSS, 300)
    assert [o.event for o in found.verdict.objections] == [poison.event]
    table.close()


def test_two_objections_of_three_lead_to_a_draft_without_the_culprit(table: Table) -> None:
    for name in ("ada", "bob"):
        table[name].publish(HELPS)
    bad = table["cyd"].publish(HURTS)
    table.deliver()
    cut = table["ada"].cut()
    for name in ("ada", "bob"):
        verdict = finding(table[name].judged(cut)).verdict
        assert verdict is not None
        table[name].seat.append(verdict)
    table.deliver()
    again = table["bob"].cut()
    assert [(x.event, x.reason, len(x.evidence)) for x in again.excluded] == [(bad.event, rules.REFUSED, 2)]
    assert table["cyd"].id not in {r.member for r in again.registers}
    for name in ("ada", "bob", "cyd"):
        assert judgement(table[name], again) == (True, True, "")


def test_an_endorser_without_rows_accepts_what_is_sound_and_says_nothing(tmp_path: Path) -> None:
    table = Table(tmp_path, ("ada", "bob", "cyd", "eni"), eni="endorser", losses=LOSSES)
    table["eni"].sit(datasets=())
    table["cyd"].publish(HURTS)
    table.deliver()
    cut = table["ada"].cut()
    assert finding(table["eni"].judged(cut)) == Finding(judgement=Judgement(sound=True, accept=True), verdict=None)
    assert table["eni"].trainer.asked == []
    assert judgement(table["eni"], replace(cut, model=digest(b"x"))) == (False, False, "wrong-model")
    table.close()


@pytest.mark.parametrize(("committed", "told"), [((), False), ((9,), False), ((10,), True), ((4, 6), True)])
def test_losses_over_too_few_committed_rows_are_not_told(
    tmp_path: Path, committed: tuple[int, ...], told: bool
) -> None:
    gate = {"max_blob_bytes": 4096, "norm_cap_micro": 10**9, "tolerance_centinats": 2, "held_out_min": 10}
    table = Table(tmp_path, losses=LOSSES, rules={"gate": gate})
    bob = table["bob"]
    for n, rows in enumerate(committed):
        root = digest(b"root")
        bob.seat.append(
            events.DataCommitted(
                dataset=f"rows {n}", train_rows=1, held_out_rows=rows, train_root=root, held_out_root=root
            )
        )
    bob.sit(datasets=[f"rows {n}" for n in range(len(committed))] or ["none"])
    table["cyd"].publish(HURTS)
    table.deliver()
    found = finding(bob.judged(table["ada"].cut()))
    assert found.verdict is not None
    assert (found.verdict.versus_base is not None, found.verdict.versus_parent is not None) == (told, told)
    assert not found.judgement.accept
    table.close()


def test_two_that_send_the_same_harm_are_both_named(table: Table) -> None:
    """Leaving either out changes no mean: each alone shows what it does."""
    bad = [table[name].publish(HURTS) for name in ("bob", "cyd")]
    table["ada"].publish(HELPS)
    table.deliver()
    found = finding(table["ada"].judged(table["ada"].cut()))
    assert found.verdict is not None
    assert {o.event for o in found.verdict.objections} == {c.event for c in bad}


def test_blame_costs_one_measurement_for_all_authors_and_known_losses_none(table: Table) -> None:
    for name, at in (("ada", BAD), ("cyd", GOOD)):
        table[name].publish({at: 0.5})
    table.deliver()
    bob, cut = table["bob"], table["bob"].cut()
    verdict = finding(bob.judged(cut)).verdict
    assert verdict is not None
    assert bob.trainer.asked == [["base", "candidate"], ["without 0", "without 1"]]
    assert [o.event for o in verdict.objections] == [bob.fold.contributions[table["ada"].id][0].event]
    finding(bob.judged(cut))
    assert len(bob.trainer.asked) == 2


# -- soundness ---------------------------------------------------------------------------------------------------------
def test_a_cut_that_breaks_a_rule_is_unsound_with_its_reason(table: Table) -> None:
    table["ada"].publish(HELPS)
    table.deliver()
    cut = table["ada"].cut()
    assert judgement(table["bob"], replace(cut, number=2)) == (False, False, "wrong-parent-release")


def test_a_cut_with_other_bytes_than_it_says_is_unsound(table: Table) -> None:
    table["ada"].publish(HELPS)
    table.deliver()
    cut = table["ada"].cut()
    assert judgement(table["bob"], replace(cut, model=digest(b"x"))) == (False, False, "wrong-model")
    bent = (replace(cut.registers[0], digest=digest(b"x")),)
    assert judgement(table["bob"], replace(cut, registers=bent)) == (False, False, "wrong-model")
    assert table["bob"].trainer.asked == [], "nothing unsound is measured"


def test_a_cut_that_takes_in_what_fails_a_hard_check_is_unsound(table: Table) -> None:
    ada, cyd = table["ada"], table["cyd"]
    ada.publish(HELPS)
    bad = cyd.publish(blob=cyd.blob(HELPS, base=digest(b"other")))
    table.deliver()
    cut = ada.cut()
    (exclusion,) = cut.excluded
    assert (exclusion.event, exclusion.reason, exclusion.evidence) == (bad.event, "wrong-base", ())
    assert judgement(table["bob"], cut)[:2] == (True, True)
    registers = tuple(sorted((*cut.registers, replace(cut.registers[0], member=cyd.id)), key=lambda r: r.member))
    assert judgement(table["bob"], replace(cut, excluded=(), registers=registers)) == (False, False, "covers-rejected")
    other = replace(exclusion, reason="norm")
    assert judgement(table["bob"], replace(cut, excluded=(other,))) == (False, False, "exclusion-without-fault")


def test_a_contribution_without_a_fault_cannot_be_excluded_for_one(table: Table) -> None:
    good = table["cyd"].publish(HELPS)
    table["ada"].publish(HELPS)
    table.deliver()
    cut = table["ada"].cut()
    claim = Exclusion(event=good.event, reason="norm", evidence=())
    kept = tuple(r for r in cut.registers if r.member != table["cyd"].id)
    assert judgement(table["bob"], replace(cut, excluded=(claim,), registers=kept))[2] == "exclusion-without-fault"


def test_missing_blobs_and_entries_are_asked_for_and_judged_later(table: Table) -> None:
    ada, bob, cyd = table
    sent = cyd.publish(HELPS)
    table.carry(cyd, ada)
    ada.blobs.put(cyd.blobs.read(sent.blob, 1 << 20))
    cut = ada.cut()
    assert bob.judged(cut) is None, "the entries are missing"
    table.deliver(blobs=False)
    assert bob.wanted == []
    assert bob.judged(cut) is None, "the blob is missing"
    assert bob.wanted == [sent.blob]
    table.deliver()
    assert judgement(bob, cut) == (True, True, "")


def test_a_cut_that_leaves_out_what_i_had_recorded_is_objected_to(table: Table) -> None:
    ada, bob, cyd = table
    for sitter in table:
        sitter.publish(HELPS)
    table.carry(bob, ada)
    for name in bob.blobs.digests():
        ada.blobs.put(bob.blobs.read(name, 1 << 20))
    cut = ada.cut()  # before anything of cyd has come
    table.deliver()
    assert cyd.id not in {x.member for x in cut.last}
    table.decide(cut)
    ada.publish(HELPS)
    table.deliver()
    whole = ada.cut()
    assert cyd.id in {x.member for x in whole.last}
    place = replace(whole.place, heads=tuple(h for h in whole.place.heads if h.member != cyd.id))
    partial = replace(whole, place=place, last=rules.last_of(ada.fold, place), registers=())
    partial = replace(partial, registers=tuple(r for r in whole.registers if r.member != cyd.id))
    model = ada.replay.of_cut(ada.fold.charter, partial)
    assert isinstance(model, Model)
    assert judgement(bob, completed(partial, model)) == (True, False, "omitted")


# -- amendments --------------------------------------------------------------------------------------------------------
def asked(table: Table, change: dict[str, Any]) -> Amendment:
    proposal = table["ada"].seat.append(events.AmendmentProposed(change=change))
    table.deliver(blobs=False)
    table["bob"].seat.append(events.AmendmentApproved(proposal=proposal.entry.event))
    table.deliver(blobs=False)
    value = table["ada"].draft()
    assert isinstance(value, Amendment)
    return value


def test_an_approved_amendment_is_accepted_and_an_invented_one_is_not(table: Table) -> None:
    value = asked(table, {"op": "set", "field": "name", "value": "new"})
    assert judgement(table["cyd"], value) == (True, True, "")
    bent = replace(value, change={"op": "set", "field": "name", "value": "mine"})
    assert judgement(table["cyd"], bent) == (False, False, "amendment-differs")


def test_a_recipe_that_this_version_does_not_know_is_objected_to(table: Table) -> None:
    value = asked(table, {"op": "set", "field": "recipe", "value": "median/9"})
    assert judgement(table["cyd"], value) == (True, False, "unknown-recipe")


def test_an_amendment_over_a_blob_that_nobody_has_waits_for_it(table: Table) -> None:
    """Its head vector would bind every later cut to a blob that its author keeps back."""
    ada, bob, cyd = table
    kept = ada.publish(HELPS)
    table.deliver(blobs=False)
    value = asked(table, {"op": "set", "field": "name", "value": "new"})
    assert bob.judged(value) is None
    assert bob.wanted == [kept.blob]
    proposed = judging.draft(cyd.seat, cyd.replay)
    assert not isinstance(proposed, Amendment) or proposed.place.size_of(ada.id) <= kept.source.seq
    table.deliver()
    assert judgement(bob, value) == (True, True, "")


# -- what is proposed --------------------------------------------------------------------------------------------------
def test_a_draft_reaches_up_to_the_first_contribution_whose_blob_is_not_here(table: Table) -> None:
    ada, bob, _ = table
    first = ada.publish(HELPS)
    table.deliver()
    second, third = ada.publish(HELPS), ada.publish({GOOD: 0.25})
    table.deliver(blobs=False)
    bob.blobs.put(ada.blobs.read(third.blob, 1 << 20))
    assert judging.sizes(bob.seat, bob.replay)[ada.id] == second.source.seq
    assert judging.eligible(bob.seat, bob.replay) == [first], "what lies behind a gap is not covered either"
    assert [x.event for x in bob.cut().last] == [first.event]
    table.deliver()
    assert len(judging.eligible(bob.seat, bob.replay)) == 3
    assert rules.check(ada.fold, bob.cut()) == rules.Fits()


def test_a_draft_never_reaches_less_far_than_the_decision_before(table: Table) -> None:
    ada, bob, _ = table
    table.release()
    sent = ada.publish(HELPS)
    table.deliver()
    table.amend({"op": "set", "field": "name", "value": "new"})
    bob.blobs.remove(sent.blob)
    bob.sit()
    assert bob.replay.examine(sent) is None
    assert judging.sizes(bob.seat, bob.replay)[ada.id] >= bob.fold.decisions[-1].value.place.size_of(ada.id)


def test_a_member_that_floods_its_feed_with_rejected_contributions_stops_only_itself(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_LIST", 12)  # two exclusions for each of three contributors
    ada, bob, cyd = table
    flood = [cyd.publish(blob=cyd.blob(HELPS, base=digest(b"other"), tokens=n + 1)) for n in range(4)]
    bob.publish(HELPS)
    table.deliver()
    cut = ada.cut()
    assert [x.event for x in cut.excluded] == sorted(c.event for c in flood[:2])
    assert cut.place.size_of(cyd.id) == flood[2].source.seq
    assert judgement(bob, cut)[:2] == (True, True)
    table.decide(cut)
    bob.publish(HELPS)
    table.deliver()
    again = ada.cut()
    assert again.excluded == cut.excluded
    assert judgement(bob, again)[:2] == (True, True), "nobody misses the rest of the flood"


def test_refusals_whose_proof_no_longer_fits_into_an_entry_wait_uncovered(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob, cyd = table
    sent = [ada.publish(HELPS), bob.publish(HELPS), cyd.publish(HELPS)]
    table.deliver()
    cut = ada.cut()
    for voter in (ada, bob, cyd):
        against = sorted(c.event for c in sent[:2])
        objections = tuple(events.Objection(event=event, reason="worse") for event in against)
        voter.seat.append(
            events.Verdict(
                height=1, candidate=cut.digest, rows=9, versus_base=5, versus_parent=5, objections=objections
            )
        )
    table.deliver()
    assert {x.event for x in ada.cut().excluded} == {c.event for c in sent[:2]}
    monkeypatch.setattr(
        allowance, "ROOM", 4 * allowance.EVIDENCE
    )  # half of it for one of the two: three voters blame each
    short = ada.cut()
    assert len(short.excluded) == 1
    waiting = next(c for c in sent[:2] if c.event != short.excluded[0].event)
    assert short.place.size_of(waiting.member) == waiting.source.seq
    assert isinstance(rules.check(ada.fold, short), rules.Fits)
    assert judgement(cyd, short)[0]


def test_the_largest_cut_that_is_ever_drafted_fits_into_one_entry() -> None:
    most, ids = (1 << 53) - 1, [digest(f"{n}".encode()) for n in range(MAX_LIST)]
    proofs = allowance.ROOM // allowance.EVIDENCE
    exclusions = [Exclusion(event=EventId(i), reason="exclusion-of-a-reason", evidence=(EventId(i),)) for i in ids]
    exclusions[0] = replace(exclusions[0], evidence=(EventId(ids[0]), *[EventId(ids[0])] * proofs))
    place = Place(
        collective=CollectiveId(ids[0]),
        charter=ids[0],
        height=most,
        parent=ids[0],
        heads=tuple(FeedHead(member=MemberId(i), size=most, leaf=i) for i in ids),
    )
    cut = Cut(
        place=place,
        number=most,
        parent_release=ids[0],
        epoch=ids[0],
        last=tuple(Last(member=MemberId(i), number=most, event=EventId(i)) for i in ids[:MAX_MEMBERS]),
        excluded=tuple(exclusions),
        recipe="r" * 64,
        registers=tuple(RegisterDigest(member=MemberId(i), digest=i) for i in ids[:MAX_MEMBERS]),
        model=ids[0],
    )
    said = events.Proposed(height=most, attempt=most, valid_attempt=most, value=cut.to_json())
    assert len(encode(said.to_json(), max_bytes=MAX_BODY)) <= MAX_BODY


def test_what_voters_contest_without_agreeing_is_left_uncovered_and_not_left_out(table: Table) -> None:
    ada, bob, cyd = table
    sent = {s.name: s.publish(HELPS) for s in table}
    table.deliver()
    cut = ada.cut()
    for voter, culprit in ((ada, "bob"), (bob, "cyd")):
        objection = events.Objection(event=sent[culprit].event, reason="worse")
        verdict = events.Verdict(
            height=1, candidate=cut.digest, rows=9, versus_base=5, versus_parent=5, objections=(objection,)
        )
        voter.seat.append(verdict)
        voter.seat.append(events.Objected(height=1, attempt=0, digest=cut.digest, reason=rules.WORSE))
    table.deliver()
    again = cyd.cut()
    assert [x.member for x in again.last] == [ada.id]
    assert again.excluded == ()
    assert {c.event for c in judging.eligible(cyd.seat, cyd.replay)} == {sent["ada"].event}
    assert judgement(bob, again)[:2] == (True, True)


def test_drafts_of_all_members_are_the_same_when_they_hold_the_same(table: Table) -> None:
    for sitter in table:
        sitter.publish()
    table.deliver()
    assert len({s.cut().digest for s in table}) == 1
    table.release()
    assert len({judging.draft(s.seat, s.replay).digest for s in table}) == 1


@pytest.mark.parametrize("names", [("ada", "bob", "cyd"), ("ada", "bob")])
def test_a_release_goes_from_draft_to_decision(tmp_path: Path, names: tuple[str, ...]) -> None:
    table = Table(tmp_path, names, losses=LOSSES)
    cut = table.release()
    models: set[Digest] = {s.fold.cut.model for s in table}
    assert models == {cut.model}
    assert np.isfinite(table["ada"].replay.view(lambda _: True).vector).all()  # type: ignore[union-attr]
    table.close()
