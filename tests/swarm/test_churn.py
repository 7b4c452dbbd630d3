"""Promises of a swarm under churn: real daemons in network namespaces, killed, cut off and slow, end equal and lose nothing."""

from __future__ import annotations

import pytest
from churn import Churn, Plan
from namespaces import Lab, unavailable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]

SLOW_LINK = {
    "rate_bit": 256_000,
    "delay_ms": 150,
    "loss": 0.02,
}  # each way: 300 ms and about 4 % for a question and its answer
SMALL = Plan(nodes=5, seconds=60, kill_every_s=10, train_every_s=3, partition=(20, 40), slow=SLOW_LINK, settle_s=180)
WHOLE = Plan(
    nodes=16,
    seconds=300,
    kill_every_s=10,
    train_every_s=4,
    partition=(120, 180),
    slow=SLOW_LINK,
    ready_s=300,
    settle_s=600,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A model cache of its own."""
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path / "cache"))


def live_through(plan: Plan, folder) -> dict:
    with Lab(seed=plan.seed) as lab:
        churn = Churn(lab, folder, plan)
        try:
            churn.start()
            told = churn.run()
            churn.settle()
        finally:
            churn.line.stop()
        found = churn.verdict()
    print(
        f"{len(told.kills)} kills, {told.asked} runs asked for, {len(told.acknowledged)} acknowledged, {dict(told.failures)}"
    )
    print(found)
    return found


def all_is_well(found: dict, plan: Plan) -> None:
    assert found["differing"] == []
    assert found["lost"] == []
    assert found["forks"] == []
    assert set(found["audits"].values()) == {"clean"}, found["audits"]
    assert found["nodes"] == plan.nodes
    assert found["releases"] >= 2
    assert found["fates"].get("released", 0) >= plan.seconds / plan.train_every_s / 4


@pytest.mark.timeout(900)
def test_five_nodes_under_churn_end_with_equal_ledgers_and_lose_no_contribution(tmp_path):
    all_is_well(live_through(SMALL, tmp_path), SMALL)


@pytest.mark.timeout(2700)
def test_sixteen_nodes_under_churn_end_with_equal_ledgers_and_lose_no_contribution(tmp_path):
    all_is_well(live_through(WHOLE, tmp_path), WHOLE)
