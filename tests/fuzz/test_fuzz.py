"""Promises of every parser that reads bytes of others: it takes or refuses them in bounded time and memory, nothing else."""

from __future__ import annotations

import pytest

from tests.fuzz import harness, in_ledger, in_node, in_protocol

TARGETS = (*in_protocol.TARGETS, *in_ledger.TARGETS, *in_node.TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_parser_keeps_the_law_on_seeds_corpus_and_some_mutations(target):
    tried, accepted = harness.run(target, count=int(60 * target.weight), seed=1)
    assert tried > 10
    assert accepted > 0


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_million_inputs_break_no_law():
    """Ten minutes and more; `make fuzz` does the same and shows how it goes."""
    whole = sum(target.weight for target in TARGETS)
    tried = sum(harness.run(target, count=int(1_000_000 * target.weight / whole) + 1, seed=2)[0] for target in TARGETS)
    assert tried >= 1_000_000


def test_the_corpus_is_small_and_of_parsers_that_there_are():
    files = list(harness.CORPUS.iterdir())
    assert {file.stem for file in files} <= {target.name for target in TARGETS}
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_the_harness_notices_a_parser_that_breaks_the_law():
    """Else all of it would show nothing."""
    for read, why in (
        (lambda data: data[100], "IndexError"),
        (lambda _data: bytearray(64 << 20), "memory"),
        (lambda data: data.lower(), "spelling"),
    ):
        target = harness.Target(name="bad", read=read, write=bytes, seeds=lambda: [b"Seed"])
        with pytest.raises(harness.Broken, match=why):
            harness.check(target, b"Seed", memory=True)
