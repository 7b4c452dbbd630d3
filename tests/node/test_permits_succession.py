"""A node whose key was rotated goes on under the grants that it had, and an auditor finds nothing wrong with that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from circle import Circle, make_circle, told

from contrib.row import text_row
from ledger.access import egress
from node.audits import auditing
from node.collective import succeeding
from node.collective.seat import run_id
from node.data.permits import PURPOSE, Permits


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Circle:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    return make_circle(tmp_path)


def ask(circle: Circle) -> tuple[str, tuple[str, ...]]:
    """What is in the feed after bob's node has asked to train: the verdict and the reasons."""
    with circle.open("bob") as session:
        session.commit_data()
        permits = Permits(session.need_seat(), purpose=PURPOSE, policy=lambda: egress.DEFAULT.digest)
        answer = permits.would("notes", "train")
        if answer.allowed:
            permits.train(["notes"], run_id())
        return answer.verdict, answer.reasons


def findings(circle: Circle) -> list[str]:
    found = auditing.run(circle.homes["ada"].ledger_db, circle.homes["ada"].blobs, circle.collective)
    assert isinstance(found, dict)
    return [json.dumps(f) for f in found["findings"]]  # type: ignore[union-attr]


def test_a_rotated_key_uses_the_grants_of_its_seat_and_no_more(
    circle: Circle, capsys: pytest.CaptureFixture[str]
) -> None:
    bob = circle.homes["bob"]
    with circle.open("bob") as session, session.rows() as rows:
        rows.add("notes", [text_row(f"row {i}") for i in range(30)])
    assert ask(circle) == ("allow", ())
    told(capsys, bob, "key", "rotate")
    circle.decide("ada", "bob")
    with circle.open("bob") as session:
        succeeding.ended(session.need_seat())
        assert succeeding.adopt(bob, session.need_seat().fold)
    circle.deliver()
    with circle.open("bob") as session:
        assert session.identity is not None
        session.need_seat().append(session.identity.bound(circle.collective))
    assert ask(circle) == ("allow", ())
    with circle.open("bob") as session:
        seat = session.need_seat()
        assert len(seat.book.grants) == 1, "the seat's own grant is not given a second time"
        (grant,) = seat.book.grants
    circle.deliver()
    assert [f for f in findings(circle) if '"C' in f] == []
    told(capsys, bob, "grant", "revoke", grant)
    assert ask(circle) == ("deny", ("revoked",))
    circle.deliver()
    assert [f for f in findings(circle) if '"C' in f] == []
