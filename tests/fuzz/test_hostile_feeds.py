"""Promises of whoever reads whole feeds of others: whatever a member signs into its feed, the audit ends with a report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from world import World

from node.audits import auditing
from protocol import canon
from tests.fuzz import harness, in_ledger


def hostile(seed: int, count: int) -> World:
    """An honest history, then `count` bodies of all types by ada, each mutated, and honest work in between."""
    rng = random.Random(seed)
    world = World.opened(real_blobs=False)
    world.release()
    honest = [
        canon.encode([r.entry.header.type, r.body.value()], max_bytes=1 << 20)
        for feed in world.feeds.values()
        for r in feed
        if r.body is not None
    ]
    pool = [*in_ledger.bodies(), *honest]
    while count:
        data = rng.choice(honest if rng.random() < 0.6 else pool)
        bent = harness.mutated_json(rng, data, rng.choice(pool)) if rng.random() < 0.8 else data
        try:
            kind, body = canon.decode(bent, max_bytes=1 << 20)  # type: ignore[misc, union-attr]
            world.say("ada", str(kind), body)
        except (canon.Malformed, ValueError, TypeError):
            continue  # no entry can carry it
        count -= 1
    return world


def audited(folder: Path, seed: int, count: int) -> None:
    world = hostile(seed, count)
    path = world.save(folder)
    found = auditing.run(path, path.parent / "blobs", world.collective, auditing.Options(now_ms=world.now))
    assert isinstance(found, dict)
    assert found["findings"]


def test_an_audit_of_a_feed_full_of_hostile_bodies_ends_with_a_report(tmp_path):
    audited(tmp_path, 1, 60)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(100, 160))
def test_audits_of_sixty_hostile_feeds_end_with_a_report(tmp_path, seed):
    audited(tmp_path, seed, 100)
