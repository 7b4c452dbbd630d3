"""No row is read without a decision in the feed, and what a grant does not cover is never shown to a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keeper import Desk
from seats import Table

from ledger import events
from ledger.access import egress
from ledger.access.decision import decide
from ledger.events import AccessDecided, DataUsed
from node.audits import auditing
from node.collective.seat import now_ms
from node.data.permits import PURPOSE, Permits, describe, self_grant
from node.errors import AccessDenied, AppendPaused
from node.sections import Train
from protocol.ids import EventId

HOUR = 3_600_000


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


# -- a run -----------------------------------------------------------------------------------------------------------
def test_a_run_is_decided_logged_and_linked_from_grant_to_contribution(table: Table) -> None:
    desk = Desk(table)
    result = desk.run()
    allowed, measured = desk.said(AccessDecided)
    used, held_out = desk.said(DataUsed)
    (published,) = desk.said(events.Published)
    assert (allowed.verdict, allowed.request.action, allowed.request.run) == ("allow", "train", result["run"])
    assert (measured.verdict, measured.request.action) == ("allow", "evaluate")
    assert allowed.grants == tuple(desk.seat.book.grants)
    assert allowed.policy == egress.DEFAULT.digest
    assert (used.run, used.action, used.purpose) == (result["run"], "train", PURPOSE)
    assert desk.seat.fold.sources[used.decision].event == used.decision
    assert used.root == desk.seat.fold.data[desk.seat.me]["notes"].train_root
    assert held_out.root == desk.seat.fold.data[desk.seat.me]["notes"].held_out_root
    assert published.run == result["run"]


def test_without_a_grant_no_row_is_read_and_the_refusal_is_in_the_feed(table: Table) -> None:
    """Attack 61: a denied request that is not logged."""
    desk = Desk(table, grant=False)
    with pytest.raises(AccessDenied) as refused:
        desk.run()
    assert refused.value.reasons == ("no-grant",)
    assert "notes" in str(refused.value)
    (denied,) = desk.said(AccessDecided)
    assert (denied.verdict, denied.reasons, denied.grants) == ("deny", ("no-grant",), ())
    assert desk.said(DataUsed) == []
    assert desk.pupil.trained == []
    assert not desk.rounds.may_start(Train()), "the same refusal is not asked for again and again"
    desk.issue()
    assert desk.rounds.may_start(Train())
    desk.run()


def test_what_a_grant_does_not_select_never_reaches_the_trainer(table: Table) -> None:
    desk = Desk(table, grant=False)
    desk.issue(columns=("completion",), tags_all=("consented",), tags_none=("minor",))
    desk.run()
    (seen,), (measured,) = desk.pupil.trained, desk.pupil.measured
    assert seen
    assert measured
    assert all(row.startswith("|answer 0") or row.startswith("|answer 1") for row in [*seen, *measured])


def test_rows_for_training_and_for_measuring_need_their_own_action(table: Table) -> None:
    desk = Desk(table, grant=False)
    desk.issue(actions=("train",))
    assert desk.measure() == {}
    assert desk.pupil.measured == []
    assert not desk.scales.active
    desk.run()
    assert len(desk.pupil.trained) == 1
    (refused,) = [d for d in desk.said(AccessDecided) if d.verdict == "deny"]
    assert (refused.request.action, refused.reasons) == ("evaluate", ("action",))


def test_another_purpose_in_the_configuration_needs_another_grant(table: Table) -> None:
    desk = Desk(table)
    desk.permits.purpose = "advertising"
    with pytest.raises(AccessDenied) as refused:
        desk.run()
    assert refused.value.reasons == ("purpose",)
    assert "advertising" in refused.value.hint


def test_of_several_data_sets_the_permitted_ones_are_used_unless_all_were_named(table: Table) -> None:
    desk = Desk(table, datasets=("diary", "notes"), grant=False)
    desk.issue("notes")
    desk.run()
    assert {row.split()[0] for row in desk.pupil.trained[0]} == {"notes"}
    assert not desk.rounds.may_start(Train(datasets=("diary", "notes"))), "the refusal of the diary is on record"
    with pytest.raises(AccessDenied, match="diary"):
        desk.run(datasets=("diary", "notes"))
    assert len(desk.pupil.trained) == 1
    assert desk.seat.book.spent(*_root(desk), desk.seat.past()) == (2, 0), "a run that was refused used no grant"


def test_a_budget_of_uses_ends_after_as_many_runs(table: Table) -> None:
    desk = Desk(table, grant=False)
    desk.issue(actions=("train",), uses=2)
    desk.run()
    desk.run()
    with pytest.raises(AccessDenied) as refused:
        desk.run()
    assert refused.value.reasons == ("uses-exhausted",)
    assert len(desk.pupil.trained) == 2


def test_nothing_is_read_while_nothing_may_be_written(table: Table) -> None:
    desk = Desk(table)
    desk.seat.pause("our own feed may be longer elsewhere")
    with pytest.raises(AppendPaused):
        desk.run()
    with pytest.raises(AppendPaused):
        desk.measure()
    assert desk.pupil.trained == desk.pupil.measured == []


# -- revoked ---------------------------------------------------------------------------------------------------------
def test_a_revoked_grant_stops_the_next_run_and_the_next_measurement_at_once(table: Table) -> None:
    desk = Desk(table)
    desk.run()
    desk.revoke()
    with pytest.raises(AccessDenied) as refused:
        desk.run()
    assert refused.value.reasons == ("revoked",)
    desk.scales.use(("notes",))
    assert desk.measure() == {}
    assert (len(desk.pupil.trained), len(desk.pupil.measured)) == (1, 1)


def test_a_run_whose_grant_is_revoked_while_it_trains_is_not_published_and_leaves_nothing(table: Table) -> None:
    desk = Desk(table)
    desk.pupil.on_train = desk.revoke
    with pytest.raises(AccessDenied, match="publish"):
        desk.run()
    assert desk.said(events.Published) == []
    assert [d.reasons for d in desk.said(AccessDecided) if d.verdict == "deny" and d.request.action == "train"] == [
        ("revoked",)
    ]
    assert desk.rounds.unpublished() is None
    desk.pupil.on_train, desk.pupil.step = (lambda: None), 0.0
    desk.issue()
    assert desk.run()["sent"] == 0 or not desk.sent().any(), "what was learnt from withdrawn rows is not sent later"


def test_a_grant_that_another_member_revokes_is_not_revoked(table: Table) -> None:
    desk = Desk(table)
    (grant,) = desk.seat.book.grants
    table["bob"].seat.append(events.GrantRevoked(grant=grant, reason="withdrawn"))
    table.deliver()
    desk.run()


# -- measuring -------------------------------------------------------------------------------------------------------
def test_one_decision_to_measure_holds_for_an_hour_and_until_something_changes(table: Table) -> None:
    desk = Desk(table)

    def asked() -> int:
        desk.scales.use(("notes",))
        desk.measure()
        return len(desk.said(AccessDecided))

    assert [asked(), asked()] == [1, 1]
    desk.later = HOUR - 1000
    assert asked() == 1
    desk.later = HOUR + 1000
    assert asked() == 2
    desk.issue("other")
    assert asked() == 3
    assert len(desk.said(DataUsed)) == 3
    desk.revoke()
    assert [asked(), asked()] == [4, 4], "the refusal is written once"


def test_a_grant_that_ends_earlier_ends_the_measuring(table: Table) -> None:
    desk = Desk(table, grant=False)
    desk.issue(expires=now_ms() + 60_000)
    assert desk.measure()
    desk.later = 61_000
    desk.scales.use(("notes",))
    assert desk.measure() == {}


# -- recomputing -----------------------------------------------------------------------------------------------------
def test_every_member_finds_the_verdicts_that_were_logged(table: Table) -> None:
    desk = Desk(table, grant=False)
    grant = desk.issue(uses=2)
    desk.run()
    desk.revoke(grant)
    with pytest.raises(AccessDenied):
        desk.run()
    table.deliver()
    bob, checked = table["bob"].seat, []
    for record in table["bob"].store.records(bob.collective, desk.ada.id):
        if record.entry.header.type == AccessDecided.TYPE and record.body:
            logged = events.parse(AccessDecided.TYPE, record.body.value())
            assert isinstance(logged, AccessDecided)
            again = decide(bob.book, logged.request, bob.book.past_of(bob.fold, desk.ada.id, record.entry.header.seq))
            assert (again.verdict, again.reasons, again.grants) == (logged.verdict, logged.reasons, logged.grants)
            checked.append(logged.verdict)
    assert checked == ["allow", "allow", "deny"]


def test_the_book_is_the_same_after_a_restart(table: Table) -> None:
    desk = Desk(table, grant=False)
    desk.issue(uses=3)
    desk.run()
    before = (desk.permits.would("notes", "train"), desk.seat.book.spent(*_root(desk), desk.seat.past()))
    desk.ada.sit()
    desk.seat = desk.ada.seat
    again = Permits(desk.seat, purpose=PURPOSE, policy=lambda: egress.DEFAULT.digest)
    after = (again.would("notes", "train"), desk.seat.book.spent(*_root(desk), desk.seat.past()))
    assert (after[0].verdict, after[0].grants, after[1]) == (before[0].verdict, before[0].grants, before[1])
    assert after[1] == (2, 0)


# -- what an auditor sees of a node that lies ---------------------------------------------------------------------------
def audited(table: Table) -> set[tuple[str, str]]:
    """What bob finds about access: rule and case."""
    table.deliver()
    bob = table["bob"]
    found = auditing.run(bob.home.ledger_db, bob.home.blobs, bob.collective)
    assert isinstance(found, dict)
    return {(f["id"], f["case"]) for f in found["findings"] if f["id"] in {"C1", "C2", "C3", "C4", "C6", "C7", "C14"}}  # type: ignore[index,call-overload,union-attr]


def test_attack_59_a_use_that_is_logged_for_another_purpose_is_found(table: Table) -> None:
    desk = Desk(table)
    desk.run()
    assert audited(table) == set()
    used = desk.said(DataUsed)[0]
    decision = desk.said(AccessDecided)[0]
    again = desk.seat.append(replace(decision, request=replace(decision.request, run="other"))).entry.event
    desk.seat.append(replace(used, purpose="advertising", run="other", decision=again))
    assert ("C2", "relabelled") in audited(table)


def test_attack_66_a_contribution_for_a_purpose_that_no_grant_covers_is_found(table: Table) -> None:
    desk = Desk(table)
    desk.permits.purpose = "advertising"
    (grant,) = desk.seat.book.grants
    request = desk.permits._request("notes", "train", "r")
    told = desk.seat.append(
        AccessDecided(request=request, grants=(grant,), verdict="allow", reasons=(), policy=egress.DEFAULT.digest)
    )
    root = desk.seat.fold.data[desk.seat.me]["notes"].train_root
    desk.seat.append(
        DataUsed(
            dataset="notes",
            root=root,
            rows=request.rows,
            action="train",
            purpose="advertising",
            run="r",
            decision=told.entry.event,
        )
    )
    desk.ada.publish(run="r")
    assert {("C2", "purpose"), ("C14", "verdict")} <= audited(table)


# -- what the owner says ---------------------------------------------------------------------------------------------
def test_a_description_is_written_when_it_is_new_and_a_self_grant_once(table: Table) -> None:
    desk = Desk(table)
    assert describe(desk.session, "notes", tags=["b", "a"], columns=["text"], retention_days=30) is not None
    assert describe(desk.session, "notes", tags=["a", "b"], columns=["text"], retention_days=30) is None
    assert describe(desk.session, "notes", tags=["a"]) is not None
    assert [d.tags for d in desk.said(events.DataDescribed)] == [("a", "b"), ("a",)]
    desk.revoke()
    assert self_grant(desk.session, "notes") is None, "a grant that was withdrawn does not come back by itself"
    assert self_grant(desk.session, "new") is not None


def _root(desk: Desk) -> tuple[EventId, Any]:
    return next(iter(desk.seat.book.grants)), desk.seat.me
