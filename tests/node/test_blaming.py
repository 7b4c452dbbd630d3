"""Who is named, and who is not: copies by what everybody sees, harm by what several voters measure, honest foreigners never."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seats import Sitter, Table

from ledger import rules
from ledger.cuts import Cut, Exclusion
from node.audits.releases import Blobs, Releases
from node.collective import blaming
from node.collective.judging import Finding
from node.collective.replay import Model, Vector, completed

NAMES = ("ada", "bob", "cyd", "dan")
USEFUL = {5: 0.5, 6: 0.5, 7: 0.5}
WIDE: dict[str, Any] = {
    "adapter": {"rank": 2, "alpha": 2, "targets": ["q_proj"], "seed": "00" * 32, "coordinates": 1024}
}


def gains(vector: Vector) -> float:
    """What helps everybody, a little: 0.05 nats for each unit at 5, 6 and 7."""
    return 4.0 - 0.05 * float(vector[5] + vector[6] + vector[7])


def named(sitter: Sitter, cut: Cut) -> set[str]:
    found = sitter.judged(cut)
    assert found is not None
    assert found.judgement.sound
    return {o.event for o in found.verdict.objections} if found.verdict else set()


def vote(table: Table, cut: Cut, names: tuple[str, ...]) -> None:
    """These members write down what they find."""
    for name in names:
        found = table[name].judged(cut)
        assert isinstance(found, Finding)
        assert found.verdict is not None
        table[name].seat.append(found.verdict)
    table.deliver(blobs=False)


def without(cut: Cut, sitter: Sitter, *left_out: Exclusion) -> Cut:
    """The same cut with exactly these exclusions, complete."""
    bent = replace(cut, excluded=tuple(sorted(left_out, key=lambda x: x.event)), registers=())
    model = sitter.replay.of_cut(sitter.fold.charter, bent)
    assert isinstance(model, Model)
    return completed(bent, model)


# -- harm ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def four(tmp_path: Path) -> Iterator[Table]:
    """Four voters, quorum three: two objections exclude."""
    found = Table(tmp_path, NAMES, losses=dict.fromkeys(NAMES, gains))
    yield found
    found.close()


def test_an_attacker_below_the_tolerance_is_named_by_all_who_feel_it_and_left_out(four: Table) -> None:
    for name in ("ada", "bob", "cyd"):
        four[name].publish(USEFUL)
    bad = four["dan"].publish({at: -0.1 for at in USEFUL})
    four.deliver()
    cut = four["ada"].cut()
    found = four["ada"].judged(cut)
    assert found is not None
    assert found.verdict is not None
    assert (found.verdict.versus_parent or 0) < 0, "the candidate is better than what was before"
    assert (found.judgement.accept, found.judgement.reason) == (False, rules.WORSE)
    vote(four, cut, ("ada", "bob"))
    again = four["cyd"].cut()
    assert [(x.event, x.reason, len(x.evidence)) for x in again.excluded] == [(bad.event, rules.REFUSED, 2)]
    assert all(named(voter, again) == set() for voter in four)
    four.decide(again)
    assert four["bob"].fold.fate(bad) == "refused"


def test_nobody_learns_from_what_an_offender_sends_next_before_it_is_decided(four: Table) -> None:
    for name in ("ada", "bob", "cyd"):
        four[name].publish(USEFUL)
    four["dan"].publish({at: -0.1 for at in USEFUL})
    four.deliver()
    assert four["ada"].fold.doubted() == frozenset(), "nothing is decided yet"
    vote(four, four["ada"].cut(), ("ada", "bob"))
    four.decide(four["cyd"].cut())
    for sitter in four:
        assert sitter.fold.doubted() == {four["dan"].id}
    second = four["dan"].publish({11: 0.5})
    four["bob"].publish({12: 0.5})
    four.deliver()
    fold = four["ada"].fold
    seen = four["ada"].replay.view(lambda c: fold.owner(c.member) not in fold.doubted())
    assert isinstance(seen, Model)
    assert (seen.vector[11], seen.vector[12] != 0) == (0.0, True)
    four.decide(four["ada"].cut())
    assert fold.fate(second) == "released"
    assert fold.doubted() == frozenset(), "a contribution that was taken ends the doubt"


def test_who_was_named_is_named_again_for_little_harm_that_others_may_do(tmp_path: Path) -> None:
    """Under the tolerance, as foreign texts cost; cyd may send the same."""

    def loss(vector: Vector) -> float:
        return gains(vector) + 0.06 * float(vector[20])

    table = Table(tmp_path, NAMES, losses=dict.fromkeys(NAMES, loss))
    for name in ("ada", "bob", "cyd"):
        table[name].publish(USEFUL)
    table["dan"].publish({at: -0.1 for at in USEFUL})
    table.deliver()
    vote(table, table["ada"].cut(), ("ada", "bob"))
    table.decide(table["bob"].cut())
    for name in ("ada", "bob"):
        table[name].publish(USEFUL)
    for name in ("cyd", "dan"):
        last = table[name].publish({**dict.fromkeys(USEFUL, 0.1), 20: 0.25})
    table.deliver()
    assert named(table["ada"], table["ada"].cut()) == {last.event}
    table.close()


def test_harm_that_was_released_is_left_out_as_soon_as_enough_voters_feel_it(four: Table) -> None:
    """The first contribution goes unnoticed by two; with the second everything of its author is named."""
    for name in ("ada", "bob", "cyd"):
        four[name].publish(USEFUL)
    first = four["dan"].publish({at: -0.1 for at in USEFUL})
    four.deliver()
    four.decide(four["ada"].cut())
    for name in ("ada", "bob", "cyd"):
        four[name].publish({9: 0.5, 5: 0.1})
    second = four["dan"].publish({at: -0.1 for at in USEFUL})
    four.deliver()
    cut = four["ada"].cut()
    assert named(four["bob"], cut) == {first.event, second.event}
    vote(four, cut, ("ada", "bob"))
    again = four["ada"].cut()
    assert {x.event for x in again.excluded} == {first.event, second.event}
    assert rules.check(four["cyd"].fold, again) == rules.Fits()
    four.decide(again)
    assert four["cyd"].fold.fate(first) == "refused"
    assert Releases(four["cyd"].fold, Blobs(four["cyd"].home.blobs), set()).check()[-1].matches


def test_what_others_have_learnt_on_top_of_stays_in_when_its_author_is_named_later(tmp_path: Path) -> None:
    """Dan's first contribution was made good by the others; without it they would overshoot."""

    def loss(vector: Vector) -> float:
        return 4.0 + 0.2 * abs(float(vector[5]) - 0.5) - 0.5 * float(vector[9])

    table = Table(tmp_path, NAMES, losses=dict.fromkeys(NAMES, loss))
    for name in ("ada", "bob", "cyd"):
        table[name].publish({5: 0.5})
    first = table["dan"].publish({5: -0.25})
    table.deliver()
    table.decide(table["ada"].cut())
    for name in ("ada", "bob", "cyd"):
        table[name].publish({5: 0.25, 9: 0.5})
    second = table["dan"].publish({9: -0.5})
    table.deliver()
    cut = table["ada"].cut()
    assert named(table["bob"], cut) == {second.event}
    vote(table, cut, ("ada", "bob"))
    again = table["cyd"].cut()
    assert {x.event for x in again.excluded} == {second.event}
    assert rules.check(table["cyd"].fold, again) == rules.Fits()
    table.decide(again)
    assert [table["bob"].fold.fate(c) for c in (first, second)] == ["released", "refused"]
    table.close()


def test_what_leaving_out_an_offender_costs_a_voter_is_blamed_on_nobody(tmp_path: Path) -> None:
    def helped(vector: Vector) -> float:
        return gains(vector) - float(vector[11])

    table = Table(tmp_path, NAMES, losses={**dict.fromkeys(NAMES, gains), "ada": helped})
    for name in ("ada", "bob", "cyd"):
        table[name].publish(USEFUL)
    first = table["dan"].publish({11: 0.5, 5: -0.1, 6: -0.1, 7: -0.1})
    table.deliver()
    table.decide(table["ada"].cut())
    for name in ("ada", "bob", "cyd"):
        table[name].publish({9: 0.5, 5: 0.1})
    second = table["dan"].publish({at: -0.1 for at in USEFUL})
    table.deliver()
    vote(table, table["ada"].cut(), ("bob", "cyd"))
    again = table["bob"].cut()
    assert {x.event for x in again.excluded} == {first.event, second.event}
    found = table["ada"].judged(again)
    assert found is not None
    assert found.judgement.accept
    assert found.verdict is not None
    assert found.verdict.objections == ()
    table.close()


def test_an_honest_minority_is_neither_probed_nor_named_by_those_it_costs_something(tmp_path: Path) -> None:
    """What dan learns costs the others more than the tolerance and helps its own rows; the candidate still gains for all."""

    def others(vector: Vector) -> float:
        return 4.0 - 0.5 * float(vector[5]) + 0.15 * float(vector[20])

    def own(vector: Vector) -> float:
        return 4.0 - 0.5 * float(vector[20])

    table = Table(tmp_path, NAMES, losses=dict.fromkeys(NAMES, others) | {"dan": own})
    for name in ("ada", "bob", "cyd"):
        table[name].publish({5: 0.5})
    table["dan"].publish({20: 0.5, 5: 0.01})
    table.deliver()
    cut = table["ada"].cut()
    assert [named(voter, cut) for voter in table] == [set()] * 4
    assert table["ada"].trainer.asked == [["base", "candidate"]], "an honest round costs no further measurement"
    table.close()


def test_three_hostile_voters_of_ten_exclude_nobody_and_a_ninth_attacker_is_not_hidden(tmp_path: Path) -> None:
    names = tuple(f"m{n}" for n in range(10))
    table = Table(tmp_path, names, losses=dict.fromkeys(names, gains))
    ordered = sorted(table, key=lambda s: s.id)
    attackers, honest = ordered[-3:], ordered[:-3]
    for sitter in honest:
        sitter.publish(USEFUL)
    bad = {sitter.publish({at: -0.3 for at in USEFUL} | {30 + n: 0.4}).event for n, sitter in enumerate(attackers)}
    table.deliver()
    cut = honest[0].cut()
    assert named(honest[0], cut) == bad, "the last of nine others is found too"
    assert len(honest[0].trainer.asked) == 2, "in one further measurement"
    victim = honest[1].fold.contributions[honest[1].id][0].event
    honest_view = honest[0].judged(cut)
    assert honest_view is not None
    assert honest_view.verdict is not None
    for sitter in attackers:
        objection = replace(honest_view.verdict.objections[0], event=victim)
        sitter.seat.append(replace(honest_view.verdict, objections=(objection,)))
    for sitter in honest[:4]:
        found = sitter.judged(cut)
        assert found is not None
        assert found.verdict is not None
        sitter.seat.append(found.verdict)
    table.deliver(blobs=False)
    again = honest[2].cut()
    assert {x.event for x in again.excluded} == bad
    assert all(x.reason == rules.REFUSED and len(x.evidence) == 4 for x in again.excluded)
    assert named(honest[3], again) == set()
    table.close()


def test_three_that_unlearn_alike_are_named_though_they_please_two_honest_members(tmp_path: Path) -> None:
    """Label flip: nearer to two honest members than to none, each is outvoted by those that are no kin of it."""
    names = tuple(f"m{n}" for n in range(10))
    table = Table(tmp_path, names, losses=dict.fromkeys(names, gains))
    ordered = list(table)
    attackers, pleased, others = ordered[:3], ordered[3:5], ordered[5:]
    for n, sitter in enumerate(pleased):
        sitter.publish({**USEFUL, 11 + n: 1.0})
    for sitter in others:
        sitter.publish(USEFUL)
    wrong = {**dict.fromkeys(USEFUL, -0.1), 11: 0.2, 12: 0.2, 30: 0.5}
    bad = {sitter.publish(wrong).event for sitter in attackers}
    table.deliver()
    cut = others[0].cut()
    assert all(named(voter, cut) == bad for voter in (*pleased, *others))
    table.close()


def test_more_suspects_than_the_budget_are_left_out_in_halves_and_the_culprit_is_found(
    four: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blaming, "MAX_PROBES", 3)
    for name in ("ada", "bob"):
        four[name].publish({20: 0.1})
    four["cyd"].publish({21: 0.1})
    bad = four["dan"].publish({5: -1.0})
    four.deliver()
    cut = four["ada"].cut()
    assert named(four["ada"], cut) == {bad.event}
    assert sum(len(asked) for asked in four["ada"].trainer.asked) <= 2 + 2 * blaming.MAX_PROBES


# -- copies --------------------------------------------------------------------------------------------------------------
def learnt(seed: int, sent: int = 100) -> dict[int, float]:
    rng = np.random.default_rng(seed)
    at = np.sort(rng.choice(1024, size=sent, replace=False))
    return dict(zip(at.tolist(), rng.normal(size=sent).tolist(), strict=True))


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Table]:
    """Three members with room for updates large enough to compare."""
    found = Table(tmp_path, ("ada", "bob", "cyd"), rules=WIDE)
    yield found
    found.close()


def copied(table: Table, change: Callable[[float], float] = lambda value: value) -> tuple[Any, Any]:
    """Ada publishes, and cyd, who has it, publishes the same with every value changed."""
    original = table["ada"].publish(learnt(1))
    table["bob"].publish(learnt(2))
    table.deliver()
    return original, table["cyd"].publish({at: change(value) for at, value in learnt(1).items()})


@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_a_copy_is_left_out_by_everybody_with_the_original_as_evidence(wide: Table, factor: float) -> None:
    original, copy = copied(wide, lambda value: factor * value)
    wide.deliver()
    cut = wide["bob"].cut()
    assert cut.excluded == (Exclusion(event=copy.event, reason=rules.COPIED, evidence=(original.event,)),)
    assert {s.cut().digest for s in wide} == {cut.digest}
    for sitter in wide:
        found = sitter.judged(cut)
        assert found is not None
        assert (found.judgement.sound, found.judgement.accept) == (True, True)
    wide.decide(cut)
    assert wide["ada"].fold.fate(copy) == "refused"
    audit = Releases(wide["ada"].fold, Blobs(wide["ada"].home.blobs), set())
    assert [r.matches for r in audit.check()] == [True]
    assert (audit.findings, audit.unchecked) == ([], [])


def test_a_cut_that_keeps_a_copy_is_unsound_and_the_audit_says_so(wide: Table) -> None:
    copied(wide)
    wide.deliver()
    cut = without(wide["bob"].cut(), wide["bob"])
    found = wide["ada"].judged(cut)
    assert found is not None
    assert (found.judgement.sound, found.judgement.reason) == (False, "covers-copied")
    wide.decide(cut)
    audit = Releases(wide["ada"].fold, Blobs(wide["ada"].home.blobs), set())
    audit.check()
    assert [f.id for f in audit.findings] == ["covers-copied"]


def test_what_is_no_copy_or_came_first_cannot_be_left_out_as_one(wide: Table) -> None:
    original, copy = copied(wide)
    wide.deliver()
    bob = wide["bob"]
    late = bob.publish(learnt(3))  # by now it names what bob has of ada
    wide.deliver()
    cut = bob.cut()
    true = cut.excluded[0]
    bent = {
        "exclusion-without-fault": (true, replace(true, event=late.event)),
        "exclusion-without-evidence": (replace(true, event=original.event, evidence=(copy.event,)),),
    }
    for reason, claims in bent.items():
        found = bob.judged(without(cut, bob, *claims))
        assert found is not None
        assert (found.judgement.sound, found.judgement.reason) == (False, reason)


def test_of_two_alike_that_knew_nothing_of_each_other_none_is_a_copy(wide: Table) -> None:
    """No clock decides: where no feed shows an order, both may be honest."""
    for name in ("ada", "cyd"):
        wide[name].publish(learnt(1))
    wide.deliver()
    assert wide["bob"].cut().excluded == ()


def test_a_member_that_floods_its_feed_with_copies_stops_only_itself(
    wide: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_LIST", 12)  # two exclusions for each of three contributors
    ada, bob, cyd = wide
    ada.publish(learnt(1))
    wide.deliver()
    flood = [cyd.publish({at: n * value for at, value in learnt(1).items()}) for n in range(1, 5)]
    wide.deliver()
    cut = bob.cut()
    left_out = sorted(c.event for c in flood[:2])
    assert [(x.event, x.reason) for x in cut.excluded] == [(event, rules.COPIED) for event in left_out]
    assert cut.place.size_of(cyd.id) == flood[2].source.seq
    wide.decide(cut)
    bob.publish(learnt(2))
    wide.deliver()
    again = ada.cut()
    assert again.excluded == cut.excluded
    found = cyd.judged(again)
    assert found is not None
    assert found.judgement.sound


def test_what_a_release_covered_came_before_all_that_is_published_later(wide: Table) -> None:
    """An author who hides what it had seen is caught by the decision that it cannot deny."""
    original = wide["ada"].publish(learnt(1))
    wide["bob"].publish(learnt(2))
    wide.deliver()
    wide.decide(wide["bob"].cut())
    for sitter in wide:
        sitter.fold.seen_by_publish.clear()
    copy = wide["cyd"].publish(learnt(1))
    wide.deliver()
    for sitter in wide:
        sitter.fold.seen_by_publish.clear()
    assert wide["bob"].cut().excluded == (Exclusion(event=copy.event, reason=rules.COPIED, evidence=(original.event,)),)
