"""What a cut has room to leave out: a flood of what is new never keeps in what was released."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seats import Sitter, Table

from ledger import events, rules
from ledger.collective import Contribution
from ledger.cuts import Cut
from node.audits.releases import Blobs, Releases
from node.collective import allowance
from protocol.ids import EventId

VERDICTS = 2 * allowance.EVIDENCE  # beyond the first, where three voters blame


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def blamed(table: Table, *contributions: Contribution) -> Cut:
    """All voters blame these at the next height; the cut that ada drafts then."""
    table.deliver()
    ada = table["ada"]
    named = tuple(events.Objection(event=e, reason="worse") for e in sorted(c.event for c in contributions))
    candidate = ada.cut().digest
    for voter in table:
        height = voter.fold.height
        voter.seat.append(
            events.Verdict(height=height, candidate=candidate, rows=9, versus_base=5, versus_parent=5, objections=named)
        )
    table.deliver()
    return ada.cut()


def left_out(cut: Cut) -> set[EventId]:
    return {x.event for x in cut.excluded}


def sent(sitter: Sitter, count: int) -> list[Contribution]:
    return [sitter.publish({20 + n: 0.5}) for n in range(count)]


def test_what_was_released_is_taken_out_however_much_new_was_refused_before(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "MAX_REFUSED", 4)
    bob, cyd = table["bob"], table["cyd"]
    (harm,) = sent(cyd, 1)
    table.release("ada", "bob")
    flood = sent(bob, 5)
    cut = blamed(table, *flood)
    assert left_out(cut) == {c.event for c in flood[:2]}, "the others wait uncovered"
    assert cut.place.size_of(bob.id) == flood[2].source.seq
    table.decide(cut)
    table["ada"].publish()
    cut = blamed(table, *flood[2:], harm)
    assert left_out(cut) == {c.event for c in (*flood[:2], harm)}
    table.decide(cut)
    assert table["ada"].fold.fate(harm) == "refused"


def test_a_member_whose_new_contributions_were_refused_loses_its_released_ones_too(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_LIST", 6)  # a share of one
    monkeypatch.setattr(allowance, "_REFUSED_EACH", 1)
    cyd = table["cyd"]
    (harm,) = sent(cyd, 1)
    table.release("ada", "bob")
    bad = cyd.publish({40: 0.5})
    assert left_out(blamed(table, bad, harm)) == {bad.event, harm.event}


def test_the_verdicts_that_proved_an_exclusion_take_room_in_one_cut_only(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowance, "ROOM", 2 * VERDICTS)  # for one that is new and one that was released
    ada, bob, cyd = table
    released = sent(cyd, 3)
    table.release("ada", "bob")
    gone = set[EventId]()
    for _ in released:
        bad = bob.publish({40: 0.5})
        ada.publish()
        cut = blamed(table, bad, *released)
        assert left_out(cut) > gone | {bad.event}
        assert sum(len(x.evidence) for x in cut.excluded) == 2 * 3, "of two, whatever was left out before"
        gone = left_out(cut)
        found = cyd.judged(cut)
        assert found is not None
        assert found.judgement.sound
        table.decide(cut)
    assert gone >= {c.event for c in released}
    audit = Releases(ada.fold, Blobs(ada.home.blobs), set())
    assert [r.matches for r in audit.check()] == [True] * 4
    assert (audit.findings, audit.unchecked) == ([], [])
