"""The attack corpus: each attack is found, by the right code, at the right entry; its honest twin gives no finding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from world import World

from ledger.compliance.rules import RULES
from node.audits import auditing
from tests.attacks import access, authors, privacy, store  # noqa: F401 - each registers its cases
from tests.attacks.case import CASES, Case, Held, Place, place_of


def audit(world: World, path: Path) -> dict[str, Any]:
    found = auditing.run(path, path.parent / "blobs", world.collective, auditing.Options(now_ms=world.now))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("case", [pytest.param(c, id=c.label) for c in CASES])
def test_an_attack_is_found_at_its_entry(case: Case, tmp_path: Path) -> None:
    world = case.world()
    place = place_of(case.act(world, True)) if case.act else None
    path = world.save(tmp_path)
    if case.change:
        place = case.change(Held(world, path))
    found = audit(world, path)["findings"]
    assert place is not None
    hits = [f for f in found if (f["id"], f["case"], Place(f["member"], f["seq"])) == (case.id, case.case, place)]
    assert hits, [(f["id"], f["case"], f["seq"], f["text"]) for f in found]
    assert hits[0]["severity"] == case.severity
    assert hits[0]["text"]
    assert hits[0]["advice"]
    assert hits[0]["evidence"]
    assert {f["id"] for f in found if f["severity"] != "notice"} <= {case.id} | case.also


@pytest.mark.parametrize("case", [pytest.param(c, id=c.label) for c in CASES if c.act])
def test_the_honest_twin_gives_no_finding(case: Case, tmp_path: Path) -> None:
    world = case.world()
    assert case.act
    case.act(world, False)
    found = audit(world, world.save(tmp_path))
    assert found["findings"] == []
    assert found["verdict"] == "clean"


def test_the_history_that_is_tampered_with_is_clean(tmp_path: Path) -> None:
    world = next(c for c in CASES if c.change).world()
    assert audit(world, world.save(tmp_path))["verdict"] == "clean"


def test_every_case_of_every_rule_has_an_attack() -> None:
    covered = {(c.id, c.case) for c in CASES}
    assert {(rule.id, case) for rule in RULES.values() for case in rule.cases} <= covered
