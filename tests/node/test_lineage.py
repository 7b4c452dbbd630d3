"""What was trained on from a view with something in it: certain where a digest proves it, "may contain" where nothing does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seats import Sitter, Table, salted

from ledger.collective import Contribution
from node.audits import record
from node.audits.lineage import (
    BY_REST,
    BY_VIEW,
    CONTAINS,
    MAY,
    NO_CARD,
    UNKNOWN_VIEW,
    Descendant,
    Lineage,
    knowledge_of,
)
from node.collective.replay import Model, Replay
from protocol.ids import Digest, digest


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    """Everybody has sent one from the base; nothing is released."""
    found = Table(tmp_path)
    for sitter in found:
        sitter.publish(salted(sitter.name))
    found.deliver()
    yield found
    found.close()


def trained(sitter: Sitter, view: Digest, name: str) -> Contribution:
    return sitter.publish(blob=sitter.blob(salted(name), view=view))


def view_of(sitter: Sitter, *contributions: Contribution) -> Digest:
    found = Replay(sitter.fold, sitter.read).merge(sitter.fold.charter, contributions)
    assert isinstance(found, Model)
    return found.digest


def first(sitter: Sitter) -> Contribution:
    found: Contribution = sitter.fold.contributions[sitter.id][0]
    return found


def listed(table: Table, *asked: Contribution, at: str = "cyd") -> dict[str, tuple[str, str, set[str]]]:
    """Descendants as the auditor `at` finds them, by name and number."""
    sitter = table[at]
    sitter.store.heads(sitter.collective)
    known = record.read(sitter.store, sitter.collective)
    replay = Replay(known.fold, sitter.read)
    lineage = Lineage(known.fold, replay, sitter.read, knowledge_of(known.headers.values()))
    names = {s.id: s.name for s in table}
    of = {c.event: f"{names[c.member]}/{c.number}" for by in known.fold.contributions.values() for c in by}
    found: list[Descendant] = lineage.descendants({c.event for c in asked})
    return {of[d.event]: (d.certainty, d.why, {of[e] for e in d.through}) for d in found}


def test_nothing_descends_from_what_nobody_trained_from(table: Table) -> None:
    assert listed(table, first(table["ada"])) == {}


def test_training_from_a_release_with_it_in_it_is_certain_and_what_follows_from_that_too(table: Table) -> None:
    ada, bob, cyd = table
    table.decide(ada.cut())
    trained(bob, bob.fold.cut.model, "from the release")
    table.deliver()
    table.decide(ada.cut())
    trained(cyd, cyd.fold.cut.model, "from the next one")
    table.deliver()
    assert listed(table, first(ada)) == {
        "bob/2": (CONTAINS, BY_VIEW, {"ada/1"}),
        "cyd/2": (CONTAINS, BY_VIEW, {"ada/1", "bob/2"}),
    }


def test_what_began_after_the_release_without_it_descends_only_through_others(table: Table) -> None:
    ada, bob, cyd = table
    table.decide(ada.cut())
    trained(bob, bob.fold.cut.model, "from the release")
    table.deliver()
    table.amend({"op": "forget", "contributions": [first(ada).event], "deadline": 0})
    table.decide(cyd.cut())
    trained(cyd, cyd.fold.cut.model, "from a release without ada's, but with bob's second")
    table.deliver()
    assert listed(table, first(ada)) == {
        "bob/2": (CONTAINS, BY_VIEW, {"ada/1"}),
        "cyd/2": (CONTAINS, BY_VIEW, {"bob/2"}),
    }


def test_a_view_of_pending_ones_is_found_out_by_its_digest(table: Table) -> None:
    """No release has it; what its author held when it began gives the very digest."""
    ada, bob, cyd = table
    trained(bob, view_of(bob, first(ada), first(bob), first(cyd)), "from what waits")
    table.deliver()
    assert listed(table, first(ada)) == {"bob/2": (CONTAINS, BY_VIEW, {"ada/1"})}
    assert listed(table, first(cyd), at="ada") == {"bob/2": (CONTAINS, BY_VIEW, {"cyd/1"})}


def test_a_view_that_nothing_explains_may_contain_what_its_author_held(table: Table) -> None:
    ada, bob, _ = table
    trained(bob, digest(b"some view"), "from who knows what")
    table.deliver()
    late = ada.publish(salted("after bob's"))
    table.deliver()
    assert listed(table, first(ada)) == {"bob/2": (MAY, UNKNOWN_VIEW, {"ada/1"}), "ada/2": (MAY, BY_REST, {"ada/1"})}
    assert listed(table, late) == {}, "bob had not seen it"
    assert listed(table, first(bob)) == {"bob/2": (MAY, UNKNOWN_VIEW, {"bob/1"})}


def test_where_a_card_is_not_here_nothing_is_certain(table: Table) -> None:
    ada, bob, cyd = table
    sent = trained(bob, view_of(bob, first(ada), first(bob), first(cyd)), "from what waits")
    table.deliver()
    (cyd.home.blobs / sent.blob).unlink()
    assert listed(table, first(ada)) == {"bob/2": (MAY, NO_CARD, {"ada/1"})}


def test_what_was_learnt_and_not_sent_may_come_later_whatever_the_view(table: Table) -> None:
    ada, bob, cyd = table
    table.decide(ada.cut())
    trained(bob, bob.fold.cut.model, "from the release")
    table.deliver()
    table.amend({"op": "forget", "contributions": [first(ada).event], "deadline": 0})
    table.decide(cyd.cut())
    fresh = view_of(bob)
    trained(bob, fresh, "from the base again")
    table.deliver()
    assert listed(table, first(ada)) == {
        "bob/2": (CONTAINS, BY_VIEW, {"ada/1"}),
        "bob/3": (MAY, BY_REST, {"bob/2"}),
    }
