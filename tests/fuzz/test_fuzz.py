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
