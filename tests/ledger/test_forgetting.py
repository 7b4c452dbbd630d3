"""A decision to forget: one form, no rule changed, and an audit that sees what still holds or serves it when it is overdue."""

from __future__ import annotations

from typing import Any

import pytest
from paper import charter_of
from world import DAY, World

from ledger import events, rules
from ledger.amending import amended
from ledger.compliance.findings import find
from ledger.cuts import Amendment
from ledger.entry import Record
from ledger.forgetting import MAX_NAMED, Wish, read_change
from protocol.errors import Refused
from protocol.ids import EventId, digest
from tests.ledger.test_compliance import facts_of

CHARTER = charter_of(["ada", "bob", "cyd"])
EVENTS = tuple(sorted(EventId(digest(bytes([n]))) for n in range(3)))


def test_a_change_to_forget_has_one_form_and_leaves_the_charter_as_it_is() -> None:
    wish = Wish(contributions=EVENTS, deadline=5)
    assert read_change(wish.to_json()) == wish
    assert amended(CHARTER, wish.to_json()) is CHARTER


@pytest.mark.parametrize(
    "change",
    [
        {"contributions": []},
        {"contributions": list(reversed(EVENTS))},
        {"contributions": [EVENTS[0]] * 2},
        {"contributions": ["x"]},
        {"contributions": EVENTS[0]},
        {"contributions": sorted(digest(str(n).encode()) for n in range(MAX_NAMED + 1))},
        {"deadline": -1},
        {"deadline": True},
        {"deadline": None},
        {"more": 1},
    ],
)
def test_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        amended(CHARTER, {**Wish(contributions=EVENTS, deadline=5).to_json(), **change})


def decided(world: World, contribution: Record, days: int = 10) -> None:
    """A quorum has a contribution forgotten."""
    wish = Wish(contributions=(contribution.entry.event,), deadline=world.now + days * DAY)
    asked = world.say("bob", events.AmendmentProposed(change=wish.to_json()))
    world.say("cyd", events.AmendmentApproved(proposal=asked.entry.event))
    sizes = {m: n for m, n in world.fold.sizes.items() if m in world.fold.ever_members()}
    place = rules.place(world.fold, sizes)
    world.decide(Amendment(place=place, proposal=asked.entry.event, change=wish.to_json()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("acts", "expected"),
    [
        (("released", "withdrawn"), {("C10", "learnt")}),
        (("released",), {("C10", "learnt"), ("C10", "served")}),
        ((), {("C10", "served")}),
    ],
    ids=["in time", "still served", "no release without it"],
)
def test_after_the_deadline_an_audit_names_who_still_serves_it(
    acts: tuple[str, ...], expected: set[tuple[str, str]]
) -> None:
    world = World.opened(real_blobs=False)
    world.release()
    mine = next(r for r in world.feeds["ada"] if r.entry.header.type == events.Published.TYPE)
    world.served("bob")
    old = world.fold.releases[0].digest
    decided(world, mine)
    if "released" in acts:
        world.decide(world.draft())
        assert [x.reason for x in world.fold.cut.excluded] == ["forgotten"]  # type: ignore[union-attr]
        world.served("bob")
    if "withdrawn" in acts:
        world.say("bob", events.ModelWithdrawn(release=old))
    world.now += 12 * DAY
    world.alive()
    assert {(f.rule.id, f.case) for f in find(facts_of(world)) if f.rule.id == "C10"} == expected


def test_a_release_that_passes_a_decision_over_is_named_by_the_rules_and_when_it_is_overdue_by_the_audit() -> None:
    world = World.opened(real_blobs=False)
    world.release()
    mine = next(r for r in world.feeds["ada"] if r.entry.header.type == events.Published.TYPE)
    decided(world, mine)
    world.now += 12 * DAY
    world.published("bob")
    wrong = world.draft(forget=False)
    assert rules.check(world.fold, wrong) == rules.Unfit(reason="forgetting-ignored")
    world.decide(wrong)
    world.alive()
    assert ("C10", "released") in {(f.rule.id, f.case) for f in find(facts_of(world))}
