"""What status, log, show and requests answer: the shapes that the command line prints, from a real history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from paper import charter_of, key
from seats import Table

from ledger import charter as charters
from ledger import events
from node.cli import render
from node.collective import reports
from node.collective.replay import Vector
from node.collective.seat import Seat
from protocol.canon import encode
from protocol.keys import member_id
from tests.node.test_render import AUDIT, CHARTER, LOG, REQUESTS, STATUS, shown

NEW = {"id": member_id(key("dan")), "name": "dan", "role": "endorser", "weight": 1}


def loss(vector: Vector) -> float:
    return 4.0 - float(vector[5])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    """A release with verdicts, an amendment, an open one, and something pending."""
    found = Table(tmp_path_factory.mktemp("reports"), losses=dict.fromkeys(("ada", "bob", "cyd"), loss))
    for name in ("ada", "bob"):
        found[name].publish({5: 0.5})
    cyd = found["cyd"]
    cyd.publish(blob=cyd.blob({5: 0.5}, number=9))
    found.deliver()
    cut = found["ada"].cut()
    for name in ("ada", "bob"):
        finding = found[name].judged(cut)
        assert finding is not None
        assert finding.verdict is not None
        found[name].seat.append(finding.verdict)
    found.decide(cut)
    found.amend({"op": "add", "member": NEW})
    found["bob"].seat.append(events.AmendmentProposed(change={"op": "set", "field": "name", "value": "open"}))
    found["ada"].publish({5: 0.25})
    found.deliver()
    yield found
    found.close()


def test_the_log_tells_who_contributed_what_and_who_measured_what(table: Table) -> None:
    result: Any = reports.log(table["cyd"].seat)
    release, amendment = result["decisions"]
    names = {s.id: s.name for s in table}
    assert (release["height"], release["attempt"], release["kind"], release["number"]) == (1, 0, "release", 1)
    assert release["proposer"] == "ada"
    assert {(c["name"], c["count"]) for c in release["contributions"]} == {("ada", 1), ("bob", 1)}
    for each in release["contributions"]:
        sent = table["ada"].fold.contributions[each["member"]][0]
        assert (each["blob"], each["bytes"]) == (sent.blob, sent.size)
    assert [x["reason"] for x in release["excluded"]] == ["wrong-number"]
    votes = {v["name"]: v for v in release["votes"]}
    assert set(votes) == set(names.values())
    told = {name: (v["versus_base"], v["versus_parent"], v["rows"]) for name, v in votes.items()}
    assert told == {"ada": (-50, -50, 300), "bob": (-50, -50, 300), "cyd": (None, None, None)}
    assert all(v["vote"] == "accept" and v["committed"] for n, v in votes.items() if n != "cyd")
    assert (amendment["height"], amendment["kind"], amendment["contributions"]) == (2, "amendment", [])
    assert amendment["change"] == {"op": "add", "member": NEW}
    assert {v["name"] for v in amendment["votes"]} == set(names.values()), "those who had a vote then"


def test_every_member_reports_the_same_log(table: Table) -> None:
    first, *others = (reports.log(s.seat) for s in table)
    assert all(other == first for other in others)


def test_the_log_can_be_cut_to_the_latest_decisions(table: Table) -> None:
    seat = table["ada"].seat
    whole: Any = reports.log(seat)["decisions"]
    assert reports.log(seat, 1)["decisions"] == whole[1:]
    assert reports.log(seat, 9)["decisions"] == whole


def test_status_tells_where_this_node_stands(table: Table) -> None:
    ada = table["ada"]
    found: Any = reports.status(ada.seat)
    assert (found["name"], found["role"], found["height"]) == ("paper", "contributor", 3)
    assert (found["member"], found["collective"], found["epoch"]) == (ada.id, ada.collective, ada.fold.charter.epoch_id)
    assert {h["name"]: h["size"] for h in found["heads"]} == {s.name: ada.fold.sizes[s.id] for s in table}
    assert [(p["name"], p["number"]) for p in found["pending"]] == [("ada", 2)]
    assert [(r["number"], r["height"], r["members"]) for r in found["releases"]] == [
        (1, 1, [table["ada"].fold.charter.name_of(m) for m in sorted(s.id for s in table)])
    ]
    assert (found["double_votes"], found["forks"], found["flaws"], found["paused"]) == ([], [], [], None)


def test_status_is_told_before_the_charter_is_here(table: Table) -> None:
    ada = table["ada"]
    seat = Seat(ada.home, ada.id, ada.store, charters.collective_id(charter_of(["zoe"])))
    found = reports.status(seat)
    assert found["heads"] == []
    assert "height" not in found
    shown(render.status, found)
    assert reports.log(seat) == {"decisions": []}


def test_requests_tell_what_waits_for_whose_approval(table: Table) -> None:
    (one,) = reports.proposals(table["ada"].fold)
    assert isinstance(one, dict)
    assert (one["kind"], one["by"], one["accepts"], one["needed"]) == ("set", "bob", 1, 3)
    assert one["text"] == "set name to open"


def test_the_charter_is_shown_with_what_follows_from_it(table: Table) -> None:
    fold = table["ada"].fold
    found = reports.charter(fold)
    assert {k: v for k, v in found.items() if k in fold.charter.to_json()} == fold.charter.to_json()
    assert (found["id"], found["height"], found["quorum"]) == (fold.id, 3, 3)


def test_changes_are_described_in_words(table: Table) -> None:
    fold = table["ada"].fold
    assert reports.describe(fold, {"op": "add", "member": NEW}) == f"admit dan ({str(NEW['id'])[:12]}) as endorser"
    assert reports.describe(fold, {"op": "role", "member": NEW}).startswith("change the role of dan")
    assert reports.describe(fold, {"op": "remove", "id": table["bob"].id}) == "take the seat of bob"
    for odd in ({}, {"op": []}, {"op": "add"}, {"op": "add", "member": []}, {"op": "set"}, {"op": {"a": 1}}):
        assert isinstance(reports.describe(fold, odd), str), "a foreign proposal of any form is shown"


# -- shapes ------------------------------------------------------------------------------------------------------------
def shape(value: Any) -> Any:
    """Keys and kinds of a JSON value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def missing(wanted: Any, given: Any, way: str = "") -> list[str]:
    """What the printed example has and the report has not."""
    if isinstance(wanted, dict) and isinstance(given, dict):
        return [
            m for k, v in wanted.items() for m in (missing(v, given[k], f"{way}.{k}") if k in given else [f"{way}.{k}"])
        ]
    if isinstance(wanted, list) and isinstance(given, list):
        return missing(wanted[0], given[0], f"{way}[]")
    return []


LIVE = {".node", ".peer", ".addresses", ".peers", ".view", ".running", ".training", ".serving", ".errors"}


def test_reports_have_the_shapes_that_are_printed(table: Table) -> None:
    seat = table["ada"].seat
    assert set(missing(shape(STATUS), shape(reports.status(seat)))) == LIVE, "the rest is added by the daemon"
    assert missing(shape(LOG), shape(reports.log(seat))) == []
    assert missing(shape(CHARTER), shape(reports.charter(seat.fold))) == []
    proposals = {"requests": REQUESTS["requests"], "proposals": reports.proposals(seat.fold)}
    assert missing(shape(REQUESTS), shape(proposals)) == []
    assert set(AUDIT) >= {"verdict", "findings", "feeds", "releases", "unchecked"}


def test_reports_are_json_and_print_what_they_say(table: Table) -> None:
    seat = table["ada"].seat
    for result, show, expected in [
        (reports.status(seat), render.status, ["paper", "contributor", "ada", "bob"]),
        (
            reports.log(seat),
            render.log,
            ["release 1", "amendment", "-0.50", "against base", "against parent", "accept", "yes"],
        ),
        (reports.charter(seat.fold), render.charter, ["endorser", "contributor-mean/1"]),
        ({"requests": [], "proposals": reports.proposals(seat.fold)}, render.requests, ["set name to open", "1 of 3"]),
    ]:
        encode(result, max_bytes=1 << 20)
        text = shown(show, result)
        for part in expected:
            assert part in text
