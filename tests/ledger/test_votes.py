"""The two votes over real entries: agreement, liveness with one dead, locks, restarts between votes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paper import Paper, charter_of, key

from ledger import events, rules, votes
from ledger.cuts import Amendment, Cut
from protocol.ids import EventId
from protocol.keys import member_id

NAMES = ["ada", "bob", "cyd"]


def decided(paper: Paper) -> list[list[str]]:
    return [[d.digest for d in m.fold.decisions] for m in paper.alive()]


def test_three_members_release_what_all_three_published() -> None:
    paper = Paper.found(NAMES)
    for member in paper.members.values():
        member.publish()
    paper.deliver_all()
    paper.run(1)
    assert len({tuple(d) for d in decided(paper)}) == 1
    cut = paper.members["ada"].fold.cut
    assert isinstance(cut, Cut)
    assert len(cut.last) == 3


def test_with_one_of_three_dead_releases_go_on() -> None:
    for dead in NAMES:
        paper = Paper.found(NAMES, seed=7)
        for member in paper.members.values():
            member.publish()
        paper.deliver_all()
        paper.dead = {dead}
        paper.run(1)
        assert [len(d) for d in decided(paper)] == [1, 1], f"{dead} is dead and nothing was decided"


def test_two_of_three_dead_decide_nothing() -> None:
    paper = Paper.found(NAMES)
    paper.members["ada"].publish()
    paper.deliver_all()
    paper.dead = {"bob", "cyd"}
    paper.run(1, ms=60_000)
    assert decided(paper) == [[]]


def test_a_member_killed_between_its_votes_never_votes_twice_differently() -> None:
    for seed in range(12):
        paper = Paper.found(NAMES, seed=seed)
        for member in paper.members.values():
            member.publish()
        paper.deliver_all()
        for _ in range(40):
            paper.run(1, ms=paper.random.randint(1, 400))
            paper.random.choice(paper.alive()).restart()
        paper.run(1)
        for member in paper.alive():
            assert not member.fold.double_votes
        assert len({tuple(d) for d in decided(paper)}) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**6), st.integers(3, 5), st.floats(0, 0.6))
def test_no_two_members_ever_decide_differently(seed: int, count: int, slow: float) -> None:
    names = [f"m{i}" for i in range(count)]
    paper = Paper.found(names, seed=seed, timeout_ms=200)
    paper.slow = slow
    for round_ in range(2):
        paper.deliver_all()
        for member in paper.members.values():
            member.publish()
        paper.run(round_ + 1, ms=3_000)
        paper.random.choice(paper.alive()).restart()
    heights = max(len(d) for d in decided(paper))
    for height in range(heights):
        assert len({d[height] for d in decided(paper) if len(d) > height}) == 1
    for member in paper.alive():
        assert not member.fold.double_votes


def test_a_majority_that_objects_gives_the_attempt_up_and_the_next_proposer_tries() -> None:
    paper = Paper.found(NAMES)
    paper.members["ada"].publish()
    paper.deliver_all()
    paper.members["bob"].picky = paper.members["cyd"].picky = True
    paper.run(1, ms=20_000)
    assert decided(paper) == [[], [], []]
    tally = paper.members["ada"].fold.tally
    assert max(tally.firsts) >= 1
    assert {v.reason for v in tally.firsts[0].values() if not v.accepts} == {"worse"}


def test_an_amendment_needs_a_quorum_of_approvals_and_seats_the_new_member_at_the_next_height() -> None:
    paper = Paper.found(NAMES)
    ada = paper.members["ada"]
    new = {"id": "0" * 64, "name": "dan", "role": "auditor", "weight": 1}
    new["id"] = member_id(key("dan"))
    asked = ada.say(events.AmendmentProposed(change={"op": "add", "member": new}))
    paper.deliver_all()
    paper.run(1, ms=10_000)
    assert decided(paper) == [[], [], []], "one approval of three is no quorum"
    paper.members["bob"].say(events.AmendmentApproved(proposal=asked.entry.event))
    paper.deliver_all()
    paper.run(1)
    assert isinstance(ada.fold.decisions[0].value, Amendment)
    seat = ada.fold.charter.member(str(new["id"]))
    assert seat is not None
    assert seat.role == "auditor"
    assert ada.fold.charter.quorum == 2


def test_proposers_take_turns() -> None:
    paper = Paper.found(NAMES)
    charter = paper.members["ada"].fold.charter
    turns = [votes.proposer(charter, paper.members["ada"].collective, 5, a) for a in range(3)]
    assert sorted(turns) == sorted(m.id for m in charter.voters)


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_quorums_follow_the_charter(count: int) -> None:
    charter = charter_of([f"m{i}" for i in range(count)])
    assert (charter.faults, charter.quorum) == {3: (0, 2), 4: (1, 3), 7: (2, 5), 10: (3, 7)}[count]


def blame(paper: Paper, name: str, event: str) -> None:
    """A verdict against one contribution, then the first vote against the candidate."""
    member = paper.members[name]
    tally = member.fold.tally
    candidate = next(iter(tally.values))
    member.say(
        events.Verdict(
            height=1,
            candidate=candidate,
            rows=10,
            versus_base=5,
            versus_parent=5,
            objections=(events.Objection(event=EventId(event), reason=rules.WORSE),),
        )
    )
    member.say(events.Objected(height=1, attempt=0, digest=candidate, reason=rules.WORSE))


def test_members_who_blame_different_contributions_do_not_block_the_one_that_nobody_blames() -> None:
    paper = Paper.found(NAMES)
    published = {m.name: m.publish().entry.event for m in paper.members.values()}
    paper.deliver_all()
    leader = next(m for m in paper.members.values() if m.step(0))
    paper.deliver_all()
    others = [n for n in NAMES if n != leader.name]
    blame(paper, others[0], published[others[1]])
    paper.deliver_all()
    assert rules.contested(leader.fold) == set(), "one objector alone must not hold anything up"
    blame(paper, others[1], published[others[0]])
    paper.deliver_all()
    assert rules.contested(leader.fold) == {published[n] for n in others}
