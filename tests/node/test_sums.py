"""Registers made out of what differs have the bytes of registers made anew, whatever was asked for before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seats import Table, salted

from contrib import merging
from node.collective.replay import Missing, Model, Replay
from node.collective.sums import Sum, Sums
from protocol.ids import Digest


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """Twelve pending contributions by three members."""
    found = Table(tmp_path_factory.mktemp("sums"))
    for n in range(4):
        for sitter in found:
            sitter.publish(salted(f"{sitter.name} {n}"))
    found.deliver()
    yield found
    found.close()


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=6))
def test_one_replay_gives_the_bytes_of_a_fresh_one_after_any_history(table: Table, asked: list[set[int]]) -> None:
    ada = table["ada"]
    every = sorted((c for by in ada.fold.contributions.values() for c in by), key=lambda c: c.event)
    kept = Replay(ada.fold, ada.read)
    for chosen in asked:
        wanted = [every[n] for n in chosen]
        found, anew = kept.merge(ada.fold.charter, wanted), Replay(ada.fold, ada.read).merge(ada.fold.charter, wanted)
        assert isinstance(found, Model)
        assert isinstance(anew, Model)
        assert (found.digest, found.vector.tobytes()) == (anew.digest, anew.vector.tobytes())
        assert found.registers.keys() == anew.registers.keys()
        for member, register in found.registers.items():
            assert merging.register_digest(register) == merging.register_digest(anew.registers[member])


def test_a_blob_that_has_to_be_taken_out_and_is_gone_costs_a_sum_anew_and_no_answer(table: Table) -> None:
    ada, gone = table["ada"], set[Digest]()
    every = [c for by in ada.fold.contributions.values() for c in by]
    kept = Replay(ada.fold, lambda name: None if name in gone else ada.read(name))
    assert isinstance(kept.merge(ada.fold.charter, every), Model)
    kept._examined.clear()
    gone.add(every[0].blob)
    fewer = kept.merge(ada.fold.charter, every[1:])
    assert isinstance(fewer, Model)
    anew = Replay(ada.fold, ada.read).merge(ada.fold.charter, every[1:])
    assert isinstance(anew, Model)
    assert fewer.digest == anew.digest
    assert kept.merge(ada.fold.charter, every) == Missing(blobs=(every[0].blob,))


def test_a_view_that_grows_by_one_looks_at_one(table: Table) -> None:
    ada, reads = table["ada"], list[Digest]()
    every = [c for by in ada.fold.contributions.values() for c in by]
    kept = Replay(ada.fold, lambda name: reads.append(name) or ada.read(name))  # type: ignore[func-returns-value]
    kept.merge(ada.fold.charter, every[:-1])
    kept._examined.clear()
    reads.clear()
    kept.merge(ada.fold.charter, every)
    assert reads == [every[-1].blob]


def test_no_more_registers_are_kept_than_there_is_memory_for() -> None:
    one = merging.empty(1000)
    size = one.units.nbytes + one.counts.nbytes
    sums: Sums[str] = Sums(kept_bytes=2 * size)
    for name in ("a", "b", "c"):
        sums.keep(name, 1000, Sum(parts={name: name}, taken=1, register=one))  # type: ignore[arg-type]
    assert [bool(sums.nearest(n, 1000, {n: n}).taken) for n in "abc"] == [False, True, True]  # type: ignore[arg-type]
    assert not sums.nearest("c", 999, {"c": "c"}).taken  # type: ignore[arg-type]
