"""A whole collective in one process: what the simulator promises."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger.entry import Record, make
from ledger.errors import FeedFrozen, ForkSeen
from node import cli
from node.errors import ConfigError
from node.simulation import config as configuration
from node.simulation import report, world
from node.simulation.clock import Clock
from node.simulation.config import SimulationConfig
from node.simulation.feeds import Archive, MemoryStore
from node.simulation.swarm import Links, Split, Swarm
from protocol.errors import BadSignature
from protocol.ids import ZERO, CollectiveId, digest
from protocol.keys import SigningKey, member_id

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("simulation-*.toml")
    if path.stem != "simulation-swarm"  # see test_spread.py
)
GOLDEN = Path(__file__).with_name("simulation_schema.json")


def wanted(**sections: Any) -> SimulationConfig:
    """A small simulation without a model."""
    whole: dict[str, Any] = {
        "simulation": {"members": 3, "releases": 2},
        "training": {"kind": "vectors", "coordinates": 64, "run_s": 20.0},
        "collective": {"block": 16, "density": 0.25},
    }
    for name, values in sections.items():
        whole[name] = {**whole.get(name, {}), **values} if isinstance(values, dict) else values
    return SimulationConfig.model_validate(whole)


def ran(folder: Path, **sections: Any) -> dict[str, Any]:
    """The report of one; what depends on the machine is left out."""
    folder.mkdir()
    made = report.build(world.simulate(wanted(**sections), folder, cache=folder))
    del made["cost"]
    return made


def test_the_same_seed_gives_the_same_feeds_and_curves_and_another_one_others(tmp_path):
    first, again = ran(tmp_path / "a"), ran(tmp_path / "b")
    assert json.dumps(first) == json.dumps(again)
    assert first["end"]["finished"]
    other = ran(tmp_path / "c", simulation={"seed": 2})
    assert other["feeds"] != first["feeds"]


def test_models_of_releases_do_not_depend_on_the_order_in_which_messages_arrive(tmp_path):
    quick = ran(tmp_path / "quick", network={"delay_ms": (1, 3)})
    slow = ran(tmp_path / "slow", network={"delay_ms": (5, 900)})
    assert quick["feeds"] != slow["feeds"]
    assert [r["model"] for r in quick["releases"]] == [r["model"] for r in slow["releases"]]


def test_a_lossy_network_ends_with_equal_views_and_every_contribution(tmp_path):
    made = ran(tmp_path / "lossy", network={"loss": 0.25, "announce_to": 2})
    assert made["network"]["lost"] > 30
    assert made["end"]["finished"]
    assert made["end"]["equal_views"]
    assert made["end"]["contributions"]["lost"] == 0
    assert made["end"]["contributions"]["released"] >= 6


def test_members_that_are_killed_and_come_back_lose_no_contribution(tmp_path):
    made = ran(
        tmp_path / "churn",
        simulation={"members": 5},
        churn={"share": 0.8, "stay_s": 25.0, "away_s": 8.0},
        collective={"patience_s": 20.0, "timeout_s": 5.0, "wait_for": 0.6},
    )
    assert made["end"]["kills"] >= 3
    assert made["end"]["finished"]
    assert made["end"]["equal_views"]
    assert made["end"]["contributions"]["lost"] == 0


def test_a_split_network_decides_nothing_on_the_smaller_side_and_heals(tmp_path):
    made = ran(
        tmp_path / "split",
        simulation={"members": 4, "releases": 1},
        splits=[{"start_s": 10.0, "end_s": 100.0, "members": 1}],
        collective={"patience_s": 10.0, "timeout_s": 5.0},
    )
    first = made["releases"][0]
    assert first["simulated_s"] < 100
    assert first["fresh"] == 3
    assert first["converged_s"] > 10
    assert made["end"]["equal_views"]
    assert made["end"]["contributions"]["lost"] == 0


def test_attackers_are_named_with_evidence_and_honest_members_go_on(tmp_path):
    made = ran(
        tmp_path / "attack",
        simulation={"members": 5, "releases": 1},
        attackers=[{"attack": "flip-scaled", "count": 1}],
        evaluation={"cards": False},
    )
    (attacker,) = made["attackers"]
    assert attacker["named_at_release"] == 1
    (excluded,) = made["releases"][0]["excluded"]
    assert (excluded["member"], excluded["attack"]) == ("m004", "flip-scaled")
    assert len(excluded["evidence"]) >= 2
    assert set(excluded["by"]) <= {"m000", "m001", "m002", "m003", "m004"}
    assert made["releases"][0]["gain"] > 0
    assert made["honest"]["refused"] == 0


def test_a_budget_of_measurements_is_kept_and_said(tmp_path):
    made = ran(tmp_path / "budget", evaluation={"per_release": 6, "members": 2})
    for release in made["releases"]:
        assert release["voters_measured"] <= 2
        assert release["measurements"] <= 6
        assert release["measured_members"] == 2
    assert any("2 of 3 voters measure" in note for note in made["notes"])


def test_the_test_model_really_learns(tmp_path):
    made = ran(
        tmp_path / "model",
        simulation={"members": 3, "releases": 1},
        data={"rows": 120, "least": 24, "sources": 2},
        training={"kind": "model", "steps": 3, "batch": 2, "length": 32, "fisher_sequences": 2},
        collective={"targets": ["q_proj", "v_proj"], "rank": 2},
        evaluation={"rows": 4, "cards": False},
    )
    (release,) = made["releases"]
    assert release["fates"]["released"] == 3
    assert release["loss"]["mean"] < release["base"]["mean"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_example_runs_when_it_is_made_small(tmp_path, path):
    loaded = configuration.load(path).model_dump()
    loaded["simulation"] |= {"members": 4 if loaded["attackers"] else 2, "releases": 1}
    loaded["training"] |= {"kind": "vectors", "coordinates": 64}
    loaded["collective"] |= {"block": 16}
    loaded["splits"], loaded["churn"] = [], {}
    loaded["attackers"] = [{**each, "count": 1} for each in loaded["attackers"]]
    outcome = world.simulate(SimulationConfig.model_validate(loaded), tmp_path, cache=tmp_path)
    assert outcome.finished


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_members_with_the_test_model(tmp_path):
    (path,) = [path for path in CONFIGS if path.stem == "simulation-hundred"]
    made = report.build(world.simulate(configuration.load(path), tmp_path, cache=tmp_path))
    assert made["end"]["finished"]
    assert made["end"]["equal_views"]
    assert made["end"]["contributions"]["lost"] == 0
    assert made["releases"][-1]["gain"] > 0.2


# -- the command -----------------------------------------------------------------------------------------------------
def test_the_command_writes_report_and_curves_of_the_known_shape(tmp_path, capsys, update_golden):
    file = tmp_path / "small.toml"
    file.write_text(
        '[simulation]\nmembers = 4\nreleases = 1\n[training]\nkind = "vectors"\n[[attackers]]\nattack = "flip-scaled"\n'
    )
    assert cli.run(["simulate", str(file), "--out", str(tmp_path / "out"), "--json", "--seed", "7"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert said["config"]["simulation"]["seed"] == 7
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out loss" in (tmp_path / "out" / "curves.svg").read_text()
    shape = json.dumps(shape_of(said), indent=1, sort_keys=True) + "\n"
    if update_golden:
        GOLDEN.write_text(shape)
    assert shape == GOLDEN.read_text()


def test_curves_that_cannot_be_drawn_are_said_before_the_run(tmp_path, capsys, monkeypatch):
    file = tmp_path / "small.toml"
    file.write_text("")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    assert cli.run(["simulate", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'fishernet[plot]'" in capsys.readouterr().err


def test_what_a_configuration_gets_wrong_is_named_with_what_is_near(tmp_path):
    def refused(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            configuration.parse(text, source=Path("s.toml"))
        return str(caught.value)

    assert "[simulation] member is unknown, did you mean members?" in refused("[simulation]\nmember = 3")
    assert "[simulaton] is unknown, did you mean simulation?" in refused("[simulaton]\nmembers = 3")
    assert "[attackers] atack is unknown, did you mean attack?" in refused('[[attackers]]\natack = "x"')
    assert "did you mean sign-flip?" in refused('[[attackers]]\nattack = "signflip"')
    assert "one at least is honest" in refused('[[attackers]]\nattack = "noise"\ncount = 10')
    assert "the smaller first" in refused("[network]\ndelay_ms = [9, 3]")
    with pytest.raises(ConfigError, match="couldn't read simulation"):
        configuration.load(tmp_path / "none.toml")


def shape_of(value: Any) -> Any:
    """The keys and kinds of a JSON value; a list shows one of each kind of its items."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = {json.dumps(shape_of(item), sort_keys=True) for item in value}
        return [json.loads(shape) for shape in sorted(shapes)]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


# -- the parts ---------------------------------------------------------------------------------------------------------
def test_nothing_crosses_a_split_or_reaches_somebody_away():
    clock = Clock()
    split = Split(start=100, end=200, group={0: 1})
    swarm = Swarm(clock, Links(delay_ms=(10, 10), splits=(split,)), 3, random.Random(1))
    came: list[str] = []
    swarm.away.add(2)
    for moment in (0, 95, 150, 250):  # the second would land in the split
        clock.after(moment, lambda m=moment: swarm.send(0, 1, 10, "x", lambda: came.append(f"to 1 at {m}")))
        clock.after(moment, lambda m=moment: swarm.send(0, 2, 10, "x", lambda: came.append(f"to 2 at {m}")))
    run(clock)
    assert came == ["to 1 at 0", "to 1 at 250"]
    assert (swarm.traffic.messages["x"], swarm.traffic.bytes["x"], swarm.traffic.lost) == (8, 80, 6)


def run(clock: Clock) -> None:
    import asyncio

    asyncio.run(clock.run(lambda: False, end_ms=10**9))


def entries(key: SigningKey, count: int, salt: bytes = b"s" * 16) -> list[Record]:
    found: list[Record] = []
    for seq in range(count):
        found.append(
            make(
                key,
                collective=CollectiveId(digest(b"collective")),
                seq=seq,
                prev=found[-1].entry.leaf if found else ZERO,
                ts=seq,
                type="test.entry",
                seen=(),
                body={"n": seq},
                salt=salt,
            )
        )
    return found


def test_a_simulated_store_takes_only_what_the_real_one_would():
    collective, key = CollectiveId(digest(b"collective")), SigningKey(b"k" * 32)
    me, feed = member_id(key), entries(SigningKey(b"k" * 32), 4)
    store = MemoryStore(Archive())
    assert store.append_foreign(collective, me, feed[2:], None) == []  # a gap: nothing is taken
    assert store.append_foreign(collective, me, feed[:3], None) == feed[:3]
    assert store.append_foreign(collective, me, feed, None) == feed[3:]
    assert store.records(collective, me) == feed
    line = feed[0].entry.line.replace(b'"ts":0', b'"ts":7')
    forged = Record(entry=replace(feed[0].entry, line=line), body=feed[0].body)
    with pytest.raises(BadSignature):
        MemoryStore(Archive()).append_foreign(collective, me, [forged], None)
    other = entries(SigningKey(b"k" * 32), 4, salt=b"t" * 16)
    with pytest.raises(ForkSeen):
        store.append_foreign(collective, me, other, None)
    assert [fork.member for fork in store.forks(collective)] == [me]
    with pytest.raises(FeedFrozen):
        store.append_foreign(collective, me, feed, None)
