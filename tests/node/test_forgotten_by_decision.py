"""A quorum decides to forget: every later release leaves it out, with the bytes of never having had it; no cut passes it over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seats import Sitter, Table, salted

from contrib import recipes
from ledger import events, forgetting, rules
from ledger.collective import Contribution
from ledger.cuts import Cut, Exclusion
from ledger.forgetting import Wish
from node.collective import judging
from node.collective.council import Council
from node.collective.remerging import remerge, without
from node.collective.replay import Missing, Model, Replay, completed
from protocol.ids import EventId, digest

HELPS, ALSO = {5: 0.5}, {9: 0.25}
DAY = 86_400_000


def opened(folder: Path) -> Table:
    """Three members to whom coordinate 5 is everything; the first release stands."""
    losses = dict.fromkeys(("ada", "bob", "cyd"), lambda vector: 4.0 - float(vector[5]))
    found = Table(folder, losses=losses)
    for sitter in found:
        sitter.publish(HELPS if sitter.name == "ada" else ALSO)
    found.deliver()
    found.decide(found["ada"].cut())
    return found


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = opened(tmp_path)
    yield found
    found.close()


def first_of(sitter: Sitter, n: int = 0) -> Contribution:
    found: Contribution = sitter.fold.contributions[sitter.id][n]
    return found


def wish(*contributions: Contribution, deadline: int = 10 * DAY) -> dict[str, Any]:
    return Wish(contributions=tuple(sorted(c.event for c in contributions)), deadline=deadline).to_json()


def judged(sitter: Sitter, cut: Cut) -> tuple[bool, bool, str]:
    found = sitter.judged(cut)
    assert found is not None
    return found.judgement.sound, found.judgement.accept, found.judgement.reason


def again(sitter: Sitter, cut: Cut) -> Cut:
    model = sitter.replay.of_cut(sitter.fold.charter, cut)
    assert isinstance(model, Model)
    return completed(cut, model)


def model(found: Model | Missing) -> Model:
    assert isinstance(found, Model)
    return found


def test_a_decision_takes_another_members_work_out_of_the_next_release_although_nothing_else_waits(
    table: Table,
) -> None:
    ada, bob, cyd = table
    charter = bob.fold.charter
    asked = table.amend(wish(first_of(ada)))
    assert bob.fold.charter == charter, "no rule changes"
    assert Council(bob.seat, bob.replay, bob.judge).due()
    cuts = [sitter.cut() for sitter in table]
    assert cuts[0] == cuts[1] == cuts[2]
    (cut, *_) = cuts
    assert cut.excluded == (
        Exclusion(event=first_of(ada).event, reason=rules.FORGOTTEN, evidence=(asked.entry.event,)),
    )
    never = model(bob.replay.merge(charter, [first_of(bob), first_of(cyd)]))
    assert (cut.model, [r.member for r in cut.registers]) == (never.digest, sorted([bob.id, cyd.id]))
    assert [judged(sitter, cut) for sitter in table] == [(True, True, "")] * 3, "what it costs is nobody's fault"
    table.decide(cut)
    assert not Council(bob.seat, bob.replay, bob.judge).due()
    assert {sitter.fold.fate(first_of(ada)) for sitter in table} == {"refused"}
    assert rules.superseded(cyd.fold) == {cyd.fold.releases[0].digest}
    ada.publish({11: 0.5})
    table.deliver()
    assert bob.cut().excluded == cut.excluded, "it stays out"


def test_until_it_is_decided_nothing_is_left_out(table: Table) -> None:
    ada, bob, _ = table
    bob.seat.append(events.AmendmentProposed(change=wish(first_of(ada))))
    bob.publish({21: 0.5})
    table.deliver()
    assert rules.forgotten(bob.fold) == set()
    assert judging.overdue(bob.seat, bob.replay) == set()
    forged = replace(
        bob.cut(),
        excluded=(
            Exclusion(event=first_of(ada).event, reason=rules.FORGOTTEN, evidence=(next(iter(bob.fold.asked)),)),
        ),
    )
    assert judged(bob, again(bob, forged)) == (False, False, "exclusion-without-evidence")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda cut, _: replace(cut, excluded=()), "forgetting-ignored"),
        (lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=()),)), "exclusion-without-evidence"),
        (
            lambda cut, x: replace(cut, excluded=(replace(x["own"], evidence=(x["other"],)),)),
            "exclusion-without-evidence",
        ),
        (lambda cut, x: replace(cut, excluded=(replace(x["own"], reason=rules.ERASED),)), "exclusion-without-evidence"),
        (
            lambda cut, x: replace(cut, excluded=tuple(sorted((x["own"], x["wrong"]), key=lambda e: e.event))),
            "exclusion-without-evidence",
        ),
    ],
    ids=["ignored", "no-evidence", "another-entry", "as-if-its-author-had-asked", "what-was-not-decided"],
)
def test_a_cut_with_another_reckoning_is_unsound(
    table: Table, change: Callable[[Cut, dict[str, Any]], Cut], reason: str
) -> None:
    ada, bob, cyd = table
    asked = table.amend(wish(first_of(ada)))
    bob.publish({21: 0.5})
    table.deliver()
    cut = bob.cut()
    (own,) = cut.excluded
    wrong_one = Exclusion(event=first_of(cyd).event, reason=rules.FORGOTTEN, evidence=(asked.entry.event,))
    wrong = again(cyd, change(cut, {"own": own, "wrong": wrong_one, "other": first_of(bob).event}))
    assert rules.check(cyd.fold, cut) == rules.Fits()
    assert rules.check(cyd.fold, wrong) == rules.Unfit(reason=reason)
    assert judged(cyd, wrong) == (False, False, reason)


def test_a_decision_about_what_waits_asks_for_no_release_and_keeps_it_out_of_the_next(table: Table) -> None:
    ada, bob, _ = table
    waiting = ada.publish({20: 0.5})
    table.deliver()
    table.amend(wish(waiting))
    assert judging.overdue(bob.seat, bob.replay) == set(), "it is in no release"
    assert judging.eligible(bob.seat, bob.replay) == []
    assert model(bob.replay.view(lambda _: True)).vector[20] == 0, "nor in a view"
    bob.publish({21: 0.5})
    table.deliver()
    assert [(x.event, x.reason) for x in bob.cut().excluded] == [(waiting.event, rules.FORGOTTEN)]


def test_what_others_decided_uses_up_nothing_of_what_a_member_may_ask_itself(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_LIST", 6)  # one for each of three contributors
    ada, bob, _ = table
    second = ada.publish({30: 0.5})
    table.deliver()
    table.amend(wish(first_of(ada)))
    table.decide(bob.cut())
    request = events.ErasureRequested(
        dataset="d", scope="contribution", rows=0, request=digest(b"r"), contributions=(second.event,), entries=(), deadline=9
    )  # fmt: skip
    ada.seat.append(request)
    table.deliver()
    assert {x.reason for x in bob.cut().excluded} == {rules.FORGOTTEN, rules.ERASED}


def test_more_than_every_later_cut_can_list_is_never_decided(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "MAX_DECIDED", 1)
    ada, bob, cyd = table
    table.amend(wish(first_of(ada)))
    table.decide(bob.cut())
    for sitter in table:
        change = wish(first_of(bob))
        if sitter is ada:
            asked = ada.seat.append(events.AmendmentProposed(change=change)).entry.event
            table.deliver()
        else:
            sitter.seat.append(events.AmendmentApproved(proposal=asked))
    table.deliver()
    assert cyd.fold.ripe_amendments() == []
    assert not Council(cyd.seat, cyd.replay, cyd.judge).due()


def test_a_decision_of_another_epoch_reaches_nothing_of_this_one(table: Table) -> None:
    ada, bob, _ = table
    table.amend(wish(first_of(ada)))
    adapter = {**bob.fold.charter.to_json()["adapter"], "seed": digest(b"another")}  # type: ignore[dict-item]
    table.amend({"op": "set", "field": "adapter", "value": adapter})
    assert forgetting.decided(bob.fold, bob.fold.height) == {}
    table.release()
    assert bob.fold.cut.excluded == ()


# -- what is served, until when ----------------------------------------------------------------------------------------
def take_back(
    sitter: Sitter, *contributions: Contribution, deadline: int = 7 * DAY, scope: Any = "contribution"
) -> EventId:
    request = events.ErasureRequested(
        dataset="rows", scope=scope, rows=0, request=digest(repr(contributions).encode()),
        contributions=tuple(sorted(c.event for c in contributions)), entries=(), deadline=deadline,
    )  # fmt: skip
    return sitter.seat.append(request).entry.event


def test_a_retired_release_has_the_earliest_deadline_of_what_is_in_it_and_none_where_rows_were_erased(
    table: Table,
) -> None:
    ada, bob, cyd = table
    (first,) = cyd.fold.releases
    assert forgetting.retired(cyd.fold) == {}
    table.amend(wish(first_of(ada), deadline=10 * DAY))
    take_back(bob, first_of(bob), deadline=7 * DAY)
    table.deliver()
    table.decide(cyd.cut())
    found = forgetting.retired(cyd.fold)
    second = cyd.fold.releases[1]
    assert found == {
        first.digest: forgetting.Retired(number=1, deadline=7 * DAY, successor=second.digest, successor_number=2)
    }
    take_back(ada, first_of(ada), scope="row")
    table.deliver()
    assert forgetting.retired(cyd.fold)[first.digest].deadline == 0, "whatever else was asked or decided about it"


# -- exact removal -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Twelve contributions in four releases, then nothing."""
    found = Table(tmp_path_factory.mktemp("full"))
    for n in range(4):
        for sitter in found:
            sitter.publish(salted(f"{sitter.name} {n}"))
        found.deliver()
        found.decide(found["ada"].cut())
    yield found
    found.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_to_merge_and_remove_has_the_bytes_of_a_merge_without_for_any_history(full: Table, data: st.DataObject) -> None:
    """Any part of any release, in any order, by any recipe of a charter, against a node that never heard of it."""
    fold = full["bob"].fold
    charter = replace(fold.charter, recipe=data.draw(st.sampled_from(recipes.in_charters())))
    decision = replace(data.draw(st.sampled_from(fold.releases)), charter=charter)
    inside = [c for taken in fold.in_cut(decision.value).values() for c in taken]
    gone = data.draw(st.lists(st.sampled_from(inside), unique_by=lambda c: c.event))
    removed, twice = without(fold, full["bob"].replay, decision, gone)
    rest = data.draw(st.permutations([c for c in inside if c not in gone]))
    never = model(full["cyd"].replay.merge(charter, rest))
    assert twice
    assert (model(removed).digest, model(removed).vector.tobytes()) == (never.digest, never.vector.tobytes())


def test_every_later_release_is_merged_again_and_says_how_much_of_it_came_after(full: Table) -> None:
    ada, bob, _ = full
    fold, target = bob.fold, first_of(ada, 1)
    found = remerge(fold, bob.replay, {target.event})
    assert [each.cut.number for each in found] == [2, 3, 4]
    assert all(each.gone == (target.event,) and each.twice for each in found)
    assert [len(each.later) for each in found] == [2, 5, 8]
    for each in found:
        inside = [c for taken in fold.in_cut(each.cut).values() for c in taken]
        never = model(bob.replay.merge(fold.charter, [c for c in inside if c.event != target.event]))
        assert each.model == never.digest != each.cut.model


def test_two_histories_one_of_which_never_had_it_come_to_the_same_model(tmp_path: Path) -> None:
    """The next release after forgetting is, to the byte, that of a collective in which ada never sent it."""
    one, other = (Table(tmp_path / name) for name in ("one", "other") if not (tmp_path / name).mkdir())
    for where in (one, other):
        for sitter in where:
            if not (where is other and sitter.name == "ada"):
                sitter.publish(salted(sitter.name))
        where.deliver()
        where.decide(where["bob"].cut())
    one.amend(wish(first_of(one["ada"])))
    one.decide(one["bob"].cut())
    with_it, never = one["cyd"].fold.cut, other["cyd"].fold.cut
    assert (with_it.model, [r.digest for r in with_it.registers]) == (never.model, [r.digest for r in never.registers])
    for where in (one, other):
        where.close()


def test_without_its_blob_it_is_still_left_out_but_by_one_way_only(table: Table) -> None:
    ada, bob, _ = table
    gone = first_of(ada)
    (bob.home.blobs / gone.blob).unlink()
    fresh = Replay(bob.fold, bob.read)
    (found,) = remerge(bob.fold, fresh, {gone.event})
    never = model(bob.replay.merge(bob.fold.charter, [c for c in (first_of(s) for s in table) if c != gone]))
    assert (found.model, found.twice) == (never.digest, False)
