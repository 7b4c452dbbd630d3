"""The fold: one state for one set of entries, in whatever order the feeds arrive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import Paper, PaperMember, charter_of, key
from states import state

from ledger import charter as charters
from ledger import events, forks, succession
from ledger.collective import Collective, leaf_at
from ledger.cuts import Amendment, Exclusion
from ledger.entry import Record, make
from ledger.errors import BadChain, BadCharter
from protocol import binding
from protocol.ids import ZERO, Digest, digest
from protocol.keys import SigningKey, member_id

NAMES = ["ada", "bob", "cyd"]


def transport(n: int) -> SigningKey:
    return SigningKey(bytes([n]) * 32)


def history() -> tuple[Paper, list[list[Record]]]:
    """A collective with releases, amendments, a late member, a liar, a stranger, and entries of every kind."""
    paper = Paper.found(NAMES, seed=3)
    ada, bob, cyd = paper.members.values()
    for n, member in enumerate((ada, bob, cyd)):
        member.say(events.PeerBound(binding=binding.make(key(member.name), transport(n + 1))))
        member.say(
            events.DataCommitted(
                dataset="notes", train_rows=9, held_out_rows=1, train_root=digest(b"t"), held_out_root=digest(b"h")
            )
        )
    bob.say(events.PeerBound(binding=binding.make(key("bob"), transport(9))))
    cyd.say(events.PeerBound(binding=binding.make(key("cyd"), transport(9))))
    paper.release()
    dan = paper.guest("dan")
    dan.publish(number=7)
    dan.say(events.Accepted(height=2, attempt=0, digest=digest(b"?")))
    paper.deliver_all()
    seat = {"id": dan.id, "name": "dan", "role": "contributor", "weight": 3}
    paper.amend({"op": "add", "member": seat})
    cyd.write("grant.given", {"to": "ada"})
    bob.publish(number=9)  # skips: a flaw
    paper.release()
    height, attempt = ada.fold.height, 0
    bob.say(events.Committed(height=height, attempt=attempt, digest=digest(b"one")))
    bob.say(events.Committed(height=height, attempt=attempt, digest=digest(b"two")))
    paper.amend({"op": "set", "field": "recipe", "value": "sqrt-mean/1"})
    paper.amend({"op": "remove", "id": cyd.id})
    cyd.publish()  # without a seat
    paper.release()
    bob.bind_keys(recovery=key("recovery of bob"), now=5000)
    ada.bind_keys(now=5000)
    paper.amend({"op": "set", "field": "witness", "value": {"cosignatures": 1}})
    ada.publish(5000)
    bob.publish(5000)
    for author, witness in ((bob, ada), (ada, bob), (dan, ada)):
        paper.deliver_all()
        witness.cosign(author, now=6000)
    paper.decide()
    give_away(paper, bob, "bob again")
    paper.members["bob again"].bind_keys(now=7000)
    paper.members["bob again"].publish(7000)
    bob.publish(7000)  # past its end
    dan.publish(7000)
    twin = dan.say(events.NodeAlive(), 7000)
    other = make_twin(twin, dan)
    paper.deliver_all()
    proof = forks.Fork(
        kind="entries",
        collective=dan.collective,
        member=dan.id,
        at=twin.entry.header.seq,
        evidence=(twin.entry.line, other.entry.line),
    )
    ada.say(events.ForkFound(member=dan.id, proof=forks.encode(proof).decode()), 8000)
    ada.say(events.ForkFound(member=cyd.id, proof=forks.encode(proof).decode()), 8000)
    paper.deliver_all()
    return paper, [m.feed for m in paper.members.values()]


def give_away(paper: Paper, old: PaperMember, name: str) -> None:
    """The member rotates its key: a succession is decided, and the old feed ends."""
    heir = paper.guest(name)
    said = succession.make(
        key(old.name),
        key(name),
        collective=old.collective,
        old=old.id,
        size=len(old.feed),
        leaf=old.feed[-1].entry.leaf,
    )
    old.say(events.AmendmentProposed(change=said.change()), 7000)
    paper.dead.add(name)  # it has no vote yet
    paper.decide()
    paper.dead.discard(name)
    old.say(events.KeyRotated(statement=said.to_json()), 7000)
    paper.deliver_all()
    assert heir.fold.charter.member(heir.id) is not None


def make_twin(record: Record, by: PaperMember) -> Record:
    """Another entry by the same member at the same place."""
    header = record.entry.header
    return make(
        key(by.name),
        collective=header.collective,
        seq=header.seq,
        prev=header.prev,
        ts=header.ts + 1,
        type=header.type,
        seen=header.seen,
        body={},
        salt=bytes(16),
    )


PAPER, FEEDS = history()
WHOLE = state(PAPER.members["ada"].fold)


def folded(records: Iterable[Record]) -> Collective:
    fold = Collective(PAPER.members["ada"].collective)
    fold.apply_all(records)
    return fold


def test_the_history_has_something_of_everything() -> None:
    assert len(WHOLE["decisions"]) == 9
    assert WHOLE["forked"].keys() == {PAPER.members["dan"].id}
    assert WHOLE["ended"].keys() == {PAPER.members["bob"].id}
    assert len(WHOLE["successions"]) == 1
    assert set(WHOLE["fates"].values()) >= {"released", "refused"}
    assert WHOLE["flaws"]
    assert WHOLE["double"]
    assert WHOLE["unknown"] == {"grant.given": 1}
    assert all(state(m.fold) == WHOLE for m in PAPER.members.values())


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_state_depends_on_the_entries_and_not_on_how_the_feeds_interleave(random: Any) -> None:
    left = [list(feed) for feed in FEEDS]
    order = []
    while any(left):
        order.append(random.choice([feed for feed in left if feed]).pop(0))
    assert state(folded(order)) == WHOLE


def test_one_feed_after_the_other_gives_the_same_state_from_either_end() -> None:
    for feeds in (FEEDS, FEEDS[::-1]):
        assert state(folded(record for feed in feeds for record in feed)) == WHOLE


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 80), min_size=len(FEEDS), max_size=len(FEEDS)))
def test_a_restart_is_a_replay(cuts: list[int]) -> None:
    before = folded(record for feed, cut in zip(FEEDS, cuts, strict=True) for record in feed[:cut])
    before.apply_all(record for feed in FEEDS for record in feed)
    assert state(before) == WHOLE


def test_entries_applied_twice_change_nothing_and_a_gap_is_refused() -> None:
    fold = folded(record for _ in range(2) for feed in FEEDS for record in feed)
    assert state(fold) == WHOLE
    with pytest.raises(BadChain):
        Collective(fold.id).apply(FEEDS[0][1])


# -- the charter -----------------------------------------------------------------------------------------------------
def test_only_the_charter_that_the_collective_is_named_after_founds_it() -> None:
    right = charter_of(NAMES)
    id_ = charters.collective_id(right)
    for name, charter in [("ada", charter_of(["ada"])), ("eve", right)]:
        member = PaperMember(name, id_)
        member.say(events.Genesis(charter=charter.to_json()))
        assert not member.fold.known
        assert [f.code for f in member.fold.flaws] == ["bad-event"]
        with pytest.raises(BadCharter):
            _ = member.fold.charter
    late = PaperMember("ada", id_)
    late.say(events.NodeStarted(versions={}, fork_risk_accepted=False))
    late.say(events.Genesis(charter=right.to_json()))
    assert not late.fold.known, "the genesis is the first entry of its feed"


def test_a_second_genesis_changes_nothing() -> None:
    paper = Paper.found(NAMES)
    ada, bob, _ = paper.members.values()
    ada.say(events.Genesis(charter=charter_of(["ada"]).to_json()))
    bob.say(events.Genesis(charter=charter_of(NAMES).to_json()))
    paper.deliver_all()
    for member in paper.members.values():
        assert member.fold.charters == (charter_of(NAMES),)
        assert len(member.fold.flaws) <= 1


# -- contributions -----------------------------------------------------------------------------------------------------
def test_a_contribution_is_pending_until_a_cut_covers_it_and_stale_in_another_epoch() -> None:
    paper = Paper.found(NAMES)
    ada = paper.members["ada"]
    ada.publish()
    first = ada.fold.contributions[ada.id][0]
    assert ada.fold.fate(first) == "pending"
    assert ada.fold.pending() == [first]
    paper.decide()
    assert ada.fold.fate(first) == "released"
    assert not ada.fold.pending()
    ada.publish()
    paper.deliver_all()
    second = ada.fold.contributions[ada.id][1]
    assert ada.fold.fate(second) == "pending"
    base = {"name": "other", "digest": digest(b"other")}
    paper.amend({"op": "set", "field": "base", "value": base})
    assert {ada.fold.fate(first), ada.fold.fate(second)} == {"stale"}
    assert not ada.fold.pending()
    assert ada.fold.current_cut() is None
    ada.publish(number=1)
    assert [c.number for c in ada.fold.contributions[ada.id]] == [1, 2, 1], "numbers start anew in an epoch"


def test_an_excluded_contribution_is_refused_and_in_no_register() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    for member in (ada, bob, cyd):
        member.publish()
    paper.deliver_all()
    bad = cyd.fold.contributions[cyd.id][0]
    draft = ada.draft()
    assert not isinstance(draft, Amendment)
    cut = replace(draft, excluded=(Exclusion(event=bad.event, reason="norm", evidence=()),))
    cut = replace(cut, registers=tuple(r for r in cut.registers if r.member != cyd.id))
    decide_by_hand(paper, cut)
    assert [ada.fold.fate(c) for c in (bad, ada.fold.contributions[ada.id][0])] == ["refused", "released"]
    assert set(ada.fold.in_cut(cut)) == {ada.id, bob.id}
    assert not ada.fold.pending()


def decide_by_hand(paper: Paper, value: Any, names: Iterable[str] = NAMES) -> None:
    voters = [paper.members[n] for n in names]
    height = voters[0].fold.height
    voters[0].say(events.Proposed(height=height, attempt=0, valid_attempt=-1, value=value.to_json()))
    for voter in voters:
        voter.say(events.Committed(height=height, attempt=0, digest=value.digest))
    paper.deliver_all()


def test_a_contribution_whose_number_skips_is_flawed_and_counts_nothing() -> None:
    paper = Paper.found(NAMES)
    ada = paper.members["ada"]
    for number in (2, 1, 1, 3, 2):
        ada.publish(number=number)
    assert [c.number for c in ada.fold.contributions[ada.id]] == [1, 2]
    assert [f.source.seq for f in ada.fold.flaws] == [1, 3, 4]


def test_contributions_of_a_stranger_an_auditor_and_an_endorser_count_nothing() -> None:
    paper = Paper.found([*NAMES, "eni", "aud"], eni="endorser", aud="auditor")
    stranger = paper.guest("sam")
    for member in paper.members.values():
        member.publish(number=1)
    cut = paper.decide()
    fold = paper.members["ada"].fold
    contributors = {paper.members[n].id for n in NAMES}
    assert {x.member for x in cut.last} == {r.member for r in cut.registers} == contributors == set(fold.in_cut(cut))
    assert stranger.id not in {h.member for h in cut.place.heads}
    for name in ("eni", "aud"):
        (one,) = fold.contributions[paper.members[name].id]
        assert fold.fate(one) == "refused"


def test_what_a_member_published_before_and_after_its_seat_does_not_count() -> None:
    paper = Paper.found([*NAMES, "dan"])
    dan, fold = paper.members["dan"], paper.members["ada"].fold
    paper.release()
    dan.publish()
    paper.amend({"op": "remove", "id": dan.id})
    paper.release()
    kept, late = fold.contributions[dan.id]
    assert [fold.fate(kept), fold.fate(late)] == ["released", "refused"]
    cut = fold.cut
    assert cut is not None
    assert fold.in_cut(cut)[dan.id] == [kept], "the register of a former member stays as it was"
    paper.amend({"op": "add", "member": {"id": dan.id, "name": "dan", "role": "contributor", "weight": 1}})
    paper.release()
    assert fold.fate(late) == "refused", "a new seat does not bring back what was passed over"
    assert fold.fate(fold.contributions[dan.id][2]) == "released"


def test_a_former_members_register_weighs_what_its_last_seat_before_that_height_had() -> None:
    paper = Paper.found([*NAMES, "dan"])
    dan, fold = paper.members["dan"], paper.members["ada"].fold
    seat = {"id": dan.id, "name": "dan", "role": "contributor", "weight": 5}
    paper.amend({"op": "role", "member": seat})
    paper.release()
    paper.amend({"op": "remove", "id": dan.id})
    paper.release()
    without, height = fold.charter, fold.height
    assert fold.weights(without)[paper.members["ada"].id] == 1
    assert dan.id not in fold.weights(without)
    assert fold.weights(without, [dan.id])[dan.id] == 5
    paper.amend({"op": "add", "member": {**seat, "weight": 9}})
    assert fold.weights(without, [dan.id], height)[dan.id] == 5, "a later seat changes no earlier merge"
    assert fold.weights(fold.charter, [dan.id])[dan.id] == 9


def test_an_amended_gate_judges_what_comes_and_never_again_what_was_released() -> None:
    paper = Paper.found(NAMES)
    fold = paper.members["ada"].fold
    paper.release()
    paper.members["ada"].publish()
    before = fold.charter
    paper.amend({"op": "set", "field": "gate", "value": {**before.to_json()["gate"], "norm_cap_micro": 1}})  # type: ignore[dict-item]
    released, pending = fold.contributions[paper.members["ada"].id]
    assert fold.charter_for(released) == before
    assert fold.charter_for(pending) == fold.charter != before
    assert fold.charter_for(replace(released, epoch=digest(b"strange"))) is None


# -- votes -----------------------------------------------------------------------------------------------------------
def test_a_double_vote_is_kept_as_proof_and_never_counted() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    ada.publish()
    paper.deliver_all()
    cut = ada.draft()
    ada.say(events.Proposed(height=1, attempt=0, valid_attempt=-1, value=cut.to_json()))
    first = bob.say(events.Committed(height=1, attempt=0, digest=None))
    again = bob.say(events.Committed(height=1, attempt=0, digest=cut.digest))
    cyd.say(events.Committed(height=1, attempt=0, digest=cut.digest))
    paper.deliver_all()
    for member in paper.members.values():
        assert not member.fold.decisions, "one commit and one double vote are no quorum"
        (proof,) = member.fold.double_votes
        assert (proof.first.event, proof.second.event) == (first.entry.event, again.entry.event)
        assert (proof.height, proof.attempt) == (1, 0)
    for vote in (
        events.Accepted(height=1, attempt=0, digest=cut.digest),
        events.Objected(height=1, attempt=0, digest=cut.digest, reason="worse"),
    ):
        cyd.say(vote)
    ada.say(events.Proposed(height=1, attempt=0, valid_attempt=0, value=replace(cut, model=ZERO).to_json()))
    paper.deliver_all()
    assert {d.second.member for d in ada.fold.double_votes} == {ada.id, bob.id, cyd.id}
    assert ada.fold.tally.firsts[0][cyd.id].accepts


def test_the_same_vote_twice_is_no_double_vote() -> None:
    paper = Paper.found(NAMES)
    bob = paper.members["bob"]
    for _ in range(2):
        bob.say(events.Committed(height=1, attempt=0, digest=None))
    assert not bob.fold.double_votes


def test_votes_of_strangers_and_auditors_decide_nothing() -> None:
    paper = Paper.found([*NAMES, "aud"], aud="auditor")
    sam = paper.guest("sam")
    ada = paper.members["ada"]
    ada.publish()
    paper.deliver_all()
    cut = ada.draft()
    for member in (ada, paper.members["aud"], sam):
        member.say(events.Proposed(height=1, attempt=0, valid_attempt=-1, value=cut.to_json()))
        member.say(events.Accepted(height=1, attempt=0, digest=cut.digest))
        member.say(events.Committed(height=1, attempt=0, digest=cut.digest))
    paper.deliver_all()
    assert ada.fold.charter.quorum == 2
    assert not ada.fold.decisions
    assert ada.fold.tally.accepted(0, cut.digest, {m.id for m in ada.fold.charter.voters}) == 1
    paper.members["bob"].say(events.Committed(height=1, attempt=0, digest=cut.digest))
    paper.deliver_all()
    assert [c.member for c in ada.fold.decisions[0].commits] == sorted([ada.id, paper.members["bob"].id])


def test_a_certificate_names_every_commit_whichever_came_first() -> None:
    paper = Paper.found(NAMES)
    for member in paper.members.values():
        member.publish()
    paper.deliver_all()
    cut = paper.members["ada"].draft()
    decide_by_hand(paper, cut)
    for member in paper.members.values():
        (decision,) = member.fold.decisions
        assert len(decision.commits) == 3
        assert decision.proposal.member == paper.members["ada"].id


def test_commits_that_arrive_before_the_value_decide_when_it_comes() -> None:
    paper = Paper.found(NAMES)
    ada, bob, cyd = paper.members.values()
    ada.publish()
    paper.deliver_all()
    cut = ada.draft()
    for member in (bob, cyd):
        member.say(events.Committed(height=1, attempt=0, digest=cut.digest))
    bob.fold.apply_all(cyd.feed)
    assert not bob.fold.decisions
    ada.say(events.Proposed(height=1, attempt=0, valid_attempt=-1, value=cut.to_json()))
    bob.fold.apply_all(ada.feed)
    assert [d.digest for d in bob.fold.decisions] == [cut.digest]


def test_votes_for_a_later_height_wait_for_their_charter() -> None:
    paper, height = PAPER, len(WHOLE["decisions"])
    reversed_feeds = folded(record for feed in FEEDS[::-1] for record in feed)
    assert len(reversed_feeds.decisions) == height
    past = paper.members["ada"].fold.before(3)
    assert (past.height, len(past.charters)) == (3, 3)
    assert past.charter == paper.members["ada"].fold.charter_at(3)
    assert paper.members["ada"].fold.height == height + 1, "the past is a view of its own"


def test_a_second_approval_moves_nothing() -> None:
    paper = Paper.found(NAMES)
    ada, bob, _ = paper.members.values()
    asked = ada.say(events.AmendmentProposed(change={"op": "set", "field": "name", "value": "new"}))
    first = bob.say(events.AmendmentApproved(proposal=asked.entry.event))
    bob.say(events.AmendmentApproved(proposal=asked.entry.event))
    ada.say(events.AmendmentApproved(proposal=asked.entry.event))
    paper.deliver_all()
    approvals = ada.fold.approvals[asked.entry.event]
    assert {m: s.event for m, s in approvals.items()} == {ada.id: asked.entry.event, bob.id: first.entry.event}


# -- bodies and peers --------------------------------------------------------------------------------------------------
def test_a_withheld_body_is_remembered_unless_it_may_be_erased() -> None:
    paper = Paper.found(NAMES)
    bob = paper.members["bob"]
    bob.say(
        events.DataUsed(
            dataset="d", root=digest(b"r"), rows=1, action="train", purpose="x", run="1", decision=digest(b"d")
        )
    )
    bob.publish()
    fold = Collective(bob.collective)
    fold.apply_all(paper.members["ada"].feed)
    fold.apply_all([Record(entry=r.entry, body=None) for r in bob.feed])
    assert [s.event for s in fold.withheld] == [bob.feed[1].entry.event]
    assert fold.sizes[bob.id] == 2
    assert not fold.contributions


def test_the_newest_binding_counts_and_a_shared_peer_is_the_lower_members() -> None:
    paper = Paper.found(NAMES)
    bound = {
        name: [binding.make(key(name), transport(n)) for n in transports]
        for name, transports in {"ada": [1, 2], "bob": [3, 4], "cyd": [4]}.items()
    }
    for name, statements in bound.items():
        for statement in statements:
            paper.members[name].say(events.PeerBound(binding=statement))
    paper.deliver_all()
    low, high = sorted([member_id(key("bob")), member_id(key("cyd"))])
    peers = paper.members["ada"].fold.peers
    assert peers == {bound["ada"][1]["peer"]: member_id(key("ada")), bound["cyd"][0]["peer"]: low}
    assert bound["ada"][0]["peer"] not in peers
    assert high not in peers.values()


def test_leaves_are_found_by_size() -> None:
    fold = PAPER.members["ada"].fold
    ada = PAPER.members["ada"]
    assert leaf_at(fold, ada.id, 0) == ZERO
    assert leaf_at(fold, ada.id, 2) == Digest(ada.feed[1].entry.leaf)
    assert leaf_at(fold, ada.id, 10**6) is None
