"""From blobs to models: equal sets give equal bytes, and a part left out leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seats import Sitter, Table, salted, without

from contrib import merging, recipes
from contrib.errors import MergeRefused
from ledger.collective import Collective, Contribution
from ledger.cuts import Exclusion
from node.collective import replay as replays
from node.collective.gate import Accept, Reject
from node.collective.replay import Missing, Model, Replay, completed, matches
from protocol.ids import digest


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Nine pending contributions by three members, every blob everywhere."""
    found = Table(tmp_path_factory.mktemp("full"))
    for n in range(3):
        for sitter in found:
            sitter.publish(salted(f"{sitter.name} {n}"))
    found.deliver()
    yield found
    found.close()


def all_of(fold: Collective) -> list[Contribution]:
    return [c for by in fold.contributions.values() for c in by]


def model(found: Model | Missing) -> Model:
    assert isinstance(found, Model)
    return found


def merged(sitter: Sitter, contributions: list[Contribution]) -> Model:
    return model(Replay(sitter.fold, sitter.read).merge(sitter.fold.charter, contributions))


def test_every_node_computes_the_same_bytes(full: Table) -> None:
    models = [model(s.replay.view(lambda _: True)) for s in full]
    assert len({m.digest for m in models}) == 1
    assert len({m.vector.tobytes() for m in models}) == 1
    assert models[0].vector.dtype == np.float32
    assert np.count_nonzero(models[0].vector) > 10


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_equal_sets_give_equal_bytes_in_any_order(full: Table, data: st.DataObject) -> None:
    sitter = full["ada"]
    chosen = data.draw(st.lists(st.sampled_from(all_of(sitter.fold)), unique_by=lambda c: c.event))
    shuffled = data.draw(st.permutations(chosen))
    one, two = merged(sitter, chosen), merged(full["bob"], shuffled)
    assert (one.digest, one.vector.tobytes()) == (two.digest, two.vector.tobytes())
    assert {m: merging.register_digest(r) for m, r in one.registers.items()} == {
        m: merging.register_digest(r) for m, r in two.registers.items()
    }


def test_removing_a_contribution_gives_the_bytes_of_never_having_had_it(full: Table) -> None:
    ada = full["ada"]
    everything = all_of(ada.fold)
    for gone in everything:
        rest = [c for c in everything if c is not gone]
        after = merged(ada, rest)
        update = ada.replay.examine(gone)
        assert isinstance(update, Accept)
        registers = dict(merged(ada, everything).registers)
        registers[gone.member] = merging.remove(registers[gone.member], update.update)
        weights = ada.fold.weights(ada.fold.charter, registers)
        vector = recipes.merge(ada.fold.charter.recipe, registers, weights, len(weights), 64)
        assert vector.tobytes() == after.vector.tobytes()
        assert merging.register_digest(registers[gone.member]) == merging.register_digest(after.registers[gone.member])
    without_ada = merged(ada, [c for c in everything if c.member != ada.id])
    assert ada.id not in without_ada.registers


def test_the_empty_set_is_the_base(full: Table) -> None:
    empty = merged(full["ada"], [])
    assert not empty.vector.any()
    assert not empty.registers


# -- what is missing -----------------------------------------------------------------------------------------------------
def test_blobs_that_are_not_here_are_named_and_asked_for_again(table: Table) -> None:
    ada, bob = table["ada"], table["bob"]
    sent = [ada.publish(), bob.publish()]
    table.deliver(blobs=False)
    cyd = table["cyd"]
    assert cyd.replay.merge(cyd.fold.charter, sent) == Missing(blobs=tuple(sorted(c.blob for c in sent)))
    assert cyd.replay.examine(sent[0]) is None
    assert not model(cyd.replay.view(lambda _: True)).vector.any(), "a view waits for nobody"
    table.deliver()
    assert model(cyd.replay.merge(cyd.fold.charter, sent)).digest == model(ada.replay.view(lambda _: True)).digest


def test_a_cut_over_entries_that_are_not_here_is_missing_without_blobs(table: Table) -> None:
    table["ada"].publish()
    table["bob"].publish()
    table.carry(table["bob"], table["ada"])
    table["ada"].blobs.put(table["bob"].blobs.read(table["bob"].blobs.digests()[0], 1 << 20))
    cut = table["ada"].cut()
    cyd = table["cyd"]
    assert cyd.replay.of_cut(cyd.fold.charter, cut) == Missing(blobs=())


def test_what_fails_a_hard_check_is_left_out_of_a_merge(table: Table) -> None:
    ada = table["ada"]
    good = ada.publish(salted("good"))
    bad = ada.publish(blob=ada.blob(salted("bad"), base=digest(b"other")))
    assert isinstance(ada.replay.examine(bad), Reject)
    assert merged(ada, [good, bad]).digest == merged(ada, [good]).digest


def test_an_oversized_contribution_is_rejected_without_its_blob(table: Table) -> None:
    ada, bob = table["ada"], table["bob"]
    big = ada.publish(size=ada.fold.charter.gate.max_blob_bytes + 1)
    table.deliver(blobs=False)
    found = bob.replay.examine(big)
    assert isinstance(found, Reject)
    assert found.code == "too-large"
    strange = bob.replay.examine(replace(big, epoch=digest(b"other")))
    assert isinstance(strange, Reject)
    assert strange.code == "stale"


# -- releases ----------------------------------------------------------------------------------------------------------
def test_a_release_recomputes_everywhere_and_matches_only_what_was_signed(table: Table) -> None:
    cut = table.release()
    for sitter in table:
        found = model(sitter.replay.of_cut(sitter.fold.charter, cut))
        assert matches(cut, found)
        assert completed(cut, found) == cut
        assert not matches(replace(cut, model=digest(b"other")), found)
        assert not matches(replace(cut, registers=cut.registers[1:]), found)
    fresh = Replay(table["bob"].fold, table["bob"].read)
    assert model(fresh.of_cut(table.charter, cut)).digest == cut.model


def test_an_excluded_contribution_leaves_the_release_as_if_it_had_never_been(table: Table) -> None:
    for sitter in table:
        sitter.publish(salted(sitter.name))
    table.deliver()
    ada, cyd = table["ada"], table["cyd"]
    cut = ada.cut()
    bad = ada.fold.contributions[cyd.id][0]
    bent = replace(cut, excluded=(Exclusion(event=bad.event, reason="refused", evidence=()),))
    kept = [c for c in all_of(ada.fold) if c.event != bad.event]
    assert model(ada.replay.of_cut(ada.fold.charter, bent)).vector.tobytes() == merged(ada, kept).vector.tobytes()


def test_the_view_adds_accepted_pending_contributions_to_the_release(table: Table) -> None:
    cut = table.release()
    ada, bob = table["ada"], table["bob"]
    assert model(ada.replay.view(lambda _: True)).digest == cut.model
    more = bob.publish(salted("more"))
    table.deliver()
    released = [c for by in ada.fold.in_cut(cut).values() for c in by]
    assert model(ada.replay.view(lambda _: True)).digest == merged(ada, [*released, more]).digest
    assert model(ada.replay.view(lambda _: False)).digest == cut.model


def test_a_former_members_register_keeps_its_weight_and_its_release_its_bytes(table: Table) -> None:
    cyd = table["cyd"]
    seat: dict[str, Any] = {"id": cyd.id, "name": "cyd", "role": "contributor", "weight": 7}
    table.amend({"op": "role", "member": seat})
    table.release()
    heavy = model(table["ada"].replay.view(lambda _: True)).vector
    table.amend({"op": "remove", "id": cyd.id})
    second = table.release("ada")
    fold, replay = table["ada"].fold, table["ada"].replay
    assert fold.weights(fold.charter, [cyd.id])[cyd.id] == 7
    assert cyd.id in {r.member for r in second.registers}
    own = max(c.source.seq for c in fold.contributions[cyd.id])
    assert own < second.place.size_of(cyd.id)
    first = fold.releases[0]
    assert model(replay.of_cut(first.charter, first.value)).vector.tobytes() == heavy.tobytes()
    table.amend({"op": "add", "member": {**seat, "weight": 1}})
    again = Replay(fold, table["ada"].read)
    for decision in fold.releases:
        assert matches(decision.value, model(again.of_cut(decision.charter, decision.value))), "a later seat changes it"


def test_a_gate_that_is_tightened_later_changes_no_release(table: Table) -> None:
    cut = table.release()
    ada = table["ada"]
    gate = without(ada.fold.charter, norm_cap_micro=1).to_json()["gate"]
    for sitter in table:
        sitter.publish()
    table.deliver()
    waiting = ada.fold.pending()
    assert all(isinstance(ada.replay.examine(c), Accept) for c in waiting)
    table.amend({"op": "set", "field": "gate", "value": gate})
    for replay in (ada.replay, Replay(ada.fold, ada.read)):
        decision = ada.fold.releases[0]
        assert matches(cut, model(replay.of_cut(decision.charter, cut)))
        assert all(isinstance(replay.examine(c), Reject) for c in waiting), "what waits is judged by the gate in force"


def test_another_recipe_merges_anew_and_an_unknown_one_is_refused(table: Table) -> None:
    cut = table.release("ada", "bob")
    first = table["ada"].fold.releases[0]
    table.amend({"op": "set", "field": "recipe", "value": "member-mean/1"})
    ada = table["ada"]
    assert model(ada.replay.view(lambda _: True)).digest != cut.model
    assert matches(cut, model(ada.replay.of_cut(first.charter, cut)))
    with pytest.raises(MergeRefused):
        ada.replay.merge(replace(ada.fold.charter, recipe="median/9"), [])


def test_a_recipe_with_parameters_decides_releases_that_others_recompute(table: Table) -> None:
    table.amend({"op": "set", "field": "recipe", "value": "guarded-mean/1:clip=900,cut=100,floor=3000"})
    cut = table.release("ada", "bob", "cyd")
    assert cut.recipe == "guarded-mean/1:clip=900,cut=100,floor=3000"
    for sitter in table:
        own = model(sitter.replay.of_cut(sitter.fold.charter, cut))
        assert matches(cut, own)
        weights = sitter.fold.weights(sitter.fold.charter, own.registers)
        plain = recipes.merge("contributor-mean/1", own.registers, weights, len(weights), len(own.vector))
        assert merging.model_digest(plain) != cut.model


def test_forgotten_answers_are_found_again(full: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_KEPT_BYTES", 1000)
    ada = full["ada"]
    reads = []
    small = Replay(ada.fold, lambda name: reads.append(name) or ada.read(name))  # type: ignore[func-returns-value]
    assert model(small.merge(ada.fold.charter, all_of(ada.fold))).digest == merged(ada, all_of(ada.fold)).digest
    assert len(reads) == 9
    again = [small.examine(c) for c in all_of(ada.fold)]
    assert all(isinstance(answer, Accept) for answer in again)
    assert 9 < len(reads) <= 18
