"""An erasure reaches the releases: what its author asked to forget is left out of the next one, by everybody's own reckoning."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seats import Sitter, Table

from ledger import events, rules
from ledger.collective import Contribution
from ledger.cuts import Cut, Exclusion
from node.collective import judging
from node.collective.council import Council
from node.collective.holdings import Holdings
from node.collective.replay import Model, completed
from node.collective.seat import now_ms
from node.errors_serving import UnknownModel
from node.serving.models import Serving
from node.serving.shelf import Shelf
from protocol.ids import Digest, EventId, digest

HELPS, ALSO = {5: 0.5}, {9: 0.25}
DAY = 86_400_000


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    """Three members to whom coordinate 5 is everything; the first release stands."""
    losses = dict.fromkeys(("ada", "bob", "cyd"), lambda vector: 4.0 - float(vector[5]))
    found = Table(tmp_path, losses=losses)
    for sitter in found:
        sitter.publish(HELPS if sitter.name == "ada" else ALSO)
    found.deliver()
    found.decide(found["ada"].cut())
    yield found
    found.close()


def ask(sitter: Sitter, *contributions: Contribution) -> EventId:
    """What `data forget` writes when it is about these contributions."""
    request = events.ErasureRequested(
        dataset="rows",
        scope="row",
        rows=1,
        request=Digest(secrets.token_hex(32)),
        contributions=tuple(sorted(c.event for c in contributions)),
        entries=(),
        deadline=now_ms() + 30 * DAY,
    )
    return sitter.seat.append(request).entry.event


def first_of(sitter: Sitter) -> Contribution:
    found: Contribution = sitter.fold.contributions[sitter.id][0]
    return found


def judged(sitter: Sitter, cut: Cut) -> tuple[bool, bool, str]:
    found = sitter.judged(cut)
    assert found is not None
    return found.judgement.sound, found.judgement.accept, found.judgement.reason


def again(sitter: Sitter, cut: Cut) -> Cut:
    """A cut with the registers and the model that go with what it leaves out."""
    model = sitter.replay.of_cut(sitter.fold.charter, cut)
    assert isinstance(model, Model)
    return completed(cut, model)


def test_the_next_release_has_the_bytes_of_never_having_had_it_and_everybody_accepts_what_that_costs(
    table: Table,
) -> None:
    ada, bob, cyd = table
    request = ask(ada, first_of(ada))
    table.deliver()
    cuts = [sitter.cut() for sitter in table]
    assert cuts[0] == cuts[1] == cuts[2]
    (cut, *_), without = cuts, [first_of(bob), first_of(cyd)]
    assert cut.excluded == (Exclusion(event=first_of(ada).event, reason=rules.ERASED, evidence=(request,)),)
    never = bob.replay.merge(bob.fold.charter, without)
    assert isinstance(never, Model)
    assert (cut.model, [r.member for r in cut.registers]) == (never.digest, sorted([bob.id, cyd.id]))
    assert never.vector[5] == 0, "what all of them gained by it is gone"
    assert [judged(sitter, cut) for sitter in table] == [(True, True, "")] * 3
    table.decide(cut)
    assert {sitter.fold.fate(first_of(ada)) for sitter in table} == {"refused"}
    ada.publish({11: 0.5})
    table.deliver()
    later = bob.cut()
    assert later.excluded == cut.excluded, "it stays out"
    assert judged(cyd, later) == (True, True, "")


def test_a_loss_that_has_another_cause_is_still_a_reason_to_object(table: Table) -> None:
    ada, bob, cyd = table
    ask(ada, first_of(ada))
    bob.publish({5: -2.0})
    table.deliver()
    assert judged(cyd, ada.cut()) == (True, False, "worse")


def test_a_contribution_that_waits_is_left_out_too_and_asks_for_no_release(table: Table) -> None:
    ada, bob, _ = table
    waiting = ada.publish({20: 0.5})
    ask(ada, waiting)
    table.deliver()
    assert judging.eligible(bob.seat, bob.replay) == []
    assert judging.overdue(bob.seat, bob.replay) == set(), "it is in no release"
    bob.publish({21: 0.5})
    table.deliver()
    assert [(x.event, x.reason) for x in bob.cut().excluded] == [(waiting.event, rules.ERASED)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cut, _: replace(cut, excluded=(), last=cut.last), "erasure-ignored"),
        (lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=()),)), "exclusion-without-evidence"),
        (
            lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=(x["bob"],)),)),
            "exclusion-without-evidence",
        ),
        (
            lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=(x["late"],)),)),
            "exclusion-without-evidence",
        ),
        (
            lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=tuple(sorted((x["bob"], x["ada"])))),)),
            "exclusion-without-evidence",
        ),
        (
            lambda cut, x: replace(cut, excluded=tuple(sorted((x["own"], x["other"]), key=lambda e: e.event))),
            "exclusion-without-evidence",
        ),
    ],
    ids=["ignored", "none", "of-another-member", "outside-the-cut", "two", "of-a-contribution-it-does-not-name"],
)
def test_a_cut_with_another_reckoning_is_unsound(
    table: Table, change: Callable[[Cut, dict[str, Any]], Cut], reason: str
) -> None:
    ada, bob, cyd = table
    known: dict[str, Any] = {"ada": ask(ada, first_of(ada)), "bob": ask(bob, first_of(ada))}
    bob.publish({21: 0.5})
    table.deliver()
    cut = bob.cut()
    known["late"] = ask(ada, first_of(ada))
    (known["own"],) = cut.excluded
    known["other"] = Exclusion(event=first_of(cyd).event, reason=rules.ERASED, evidence=(known["ada"],))
    assert known["own"].evidence == (known["ada"],)
    table.deliver()
    assert rules.check(cyd.fold, cut) == rules.Fits()
    wrong = again(cyd, change(cut, known))
    assert rules.check(cyd.fold, wrong) == rules.Unfit(reason=reason)
    assert judged(cyd, wrong) == (False, False, reason)


def test_nobody_has_the_work_of_others_removed(table: Table) -> None:
    ada, bob, _ = table
    ask(bob, first_of(ada))
    table.deliver()
    assert rules.forgotten(ada.fold) == set()
    assert judging.overdue(bob.seat, bob.replay) == set()


def test_no_member_fills_the_list_of_exclusions(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_LIST", 12)  # two for each of three contributors
    ada, bob, cyd = table
    many = [first_of(ada), *(ada.publish({30 + n: 0.5}) for n in range(3))]
    ask(ada, *many)
    bob.publish({21: 0.5})
    table.deliver()
    cut = bob.cut()
    assert {x.event for x in cut.excluded} == {c.event for c in many[:2]}, "the oldest first"
    assert judged(cyd, cut)[:2] == (True, True)
    table.decide(cut)
    bob.publish({22: 0.5})
    table.deliver()
    assert ada.cut().excluded == cut.excluded


def test_when_everything_is_forgotten_the_release_is_the_base(table: Table) -> None:
    for sitter in table:
        ask(sitter, first_of(sitter))
    table.deliver()
    cut = table["bob"].cut()
    assert (len(cut.excluded), cut.registers) == (3, ())
    assert [judged(sitter, cut)[0] for sitter in table] == [True] * 3
    table.decide(cut)
    assert table["cyd"].fold.cut == cut


def test_a_request_about_a_release_is_something_to_decide_at_once_and_once(table: Table) -> None:
    ada, bob, _ = table
    council = Council(bob.seat, bob.replay, bob.judge)
    assert not council.due()
    ask(ada, first_of(ada))
    table.deliver()
    assert council.due()
    table.decide(bob.cut())
    assert not council.due()


# -- serving -------------------------------------------------------------------------------------------------------------
def shelf_of(sitter: Sitter) -> tuple[Shelf, Serving]:
    charter = sitter.fold.charter
    adapter = {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": digest(b"seed"), "coordinates": 64}
    serving = Serving(model=sitter.home.path, base=charter.base.digest, adapter=adapter, threads=1)
    holdings = Holdings(sitter.seat, sitter.blobs, None, lambda: None)  # type: ignore[arg-type]  # all is here
    return Shelf(sitter.seat, sitter.replay, serving, holdings), serving


def serves(sitter: Sitter, shelf: Shelf, serving: Serving) -> tuple[set[str], float]:
    """Names of releases that are served after an update, and what the view has at the coordinate that was ada's."""
    asyncio.run(shelf.update())
    view = next(m for m in serving.models() if m.name == "view")
    assert view.vector is not None
    return {m.name for m in serving.models() if m.name.startswith("release-")}, float(np.load(view.vector)[5])


def said(sitter: Sitter) -> list[tuple[str, str]]:
    records = sitter.store.records(sitter.collective, sitter.id)
    kinds = {events.ModelServed.TYPE, events.ModelWithdrawn.TYPE}
    return [(t, str(r.body.value()["release"])) for r in records if (t := r.entry.header.type) in kinds and r.body]


def test_a_node_leaves_it_out_of_its_view_at_once_and_of_what_it_serves_with_the_next_release(table: Table) -> None:
    ada, bob, _ = table
    shelf, serving = shelf_of(bob)
    names, part = serves(bob, shelf, serving)
    assert (names, part > 0) == ({"release-1"}, True)
    ask(ada, first_of(ada))
    table.deliver()
    assert serves(bob, shelf, serving) == ({"release-1"}, 0.0), "until there is a release without it"
    table.decide(bob.cut())
    assert serves(bob, shelf, serving) == ({"release-2"}, 0.0)
    first, second = (d.digest for d in bob.fold.releases)
    told = [("model.served", first), ("model.served", second), ("model.withdrawn", first)]
    assert said(bob) == told
    with pytest.raises(UnknownModel):
        serving.find(first)
    assert serving.find("latest").digest == second
    bob.sit()
    assert serves(bob, *shelf_of(bob)) == ({"release-2"}, 0.0), "nor after a restart"
    assert said(bob) == told
