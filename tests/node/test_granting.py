"""`fishernet grant`: each command is one event, says what it did, and refuses what would have no effect."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from paper import charter_of, key

from ledger import charter as charters
from ledger import charter_reading, events
from node import config
from node.cli import run
from node.collective.charters import Member
from node.collective.seat import Seat
from node.data import granting
from node.errors import NotAllowed
from node.home import Home
from node.session import writing
from protocol.ids import MemberId
from protocol.keys import member_id

BOB = member_id(key("bob"))
T0 = 1_800_000_000_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Home:
    """A node in a collective with bob, and with one data set that it has granted to itself."""
    monkeypatch.setenv("FISHERNET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    assert run(["init", "--name", "ada"]) == 0
    found = Home.open(tmp_path / "home")
    with writing(found, None) as session:
        base = charter_of(["bob"])
        mine = Member(id=session.member, name="ada", role="contributor")
        seats = sorted((mine, *base.members), key=lambda m: m.id)
        charter = charter_reading.parse({**base.to_json(), "members": [_seat(m) for m in seats]})
        collective = charters.collective_id(charter)
        assert session.identity is not None
        seat = Seat(found, session.member, session.store, collective, key=session.identity.key)
        seat.append(events.Genesis(charter=charter.to_json()))
        config.update(found.config_file, "node", "collective", collective)
    rows = tmp_path / "notes.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row number {i}"}) + "\n" for i in range(40)))
    assert run(["data", "add", str(rows), "--dataset", "notes"]) == 0
    capsys.readouterr()
    return found


def _seat(member: Member) -> dict[str, Any]:
    return next(m for m in _members(member))


def _members(member: Member) -> list[Any]:
    found = charter_of(["x"])
    changed = {**found.to_json()["members"][0], "id": member.id, "name": member.name, "role": member.role}  # type: ignore[index,dict-item]
    if "organisation" in changed:
        changed["organisation"] = member.name
    return [changed]


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    assert run(["grant", *words, "--json"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out or printed.err)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    error: dict[str, str] = ask(capsys, *words, code=1)["error"]
    return error


def test_a_new_data_set_is_granted_to_its_own_node(capsys: pytest.CaptureFixture[str]) -> None:
    (grant,) = ask(capsys, "list")["grants"]
    assert (grant["dataset"], grant["state"], grant["names"]) == ("notes", "active", ["ada"])
    assert grant["actions"] == ["evaluate", "label", "serve", "train"]
    assert ask(capsys, "check", "notes")["verdict"] == "allow"
    assert ask(capsys, "check", "notes", "--purpose", "advertising", code=1)["reasons"] == ["purpose"]


def test_issue_states_every_term_and_bob_gets_it(capsys: pytest.CaptureFixture[str], home: Home) -> None:
    made = ask(
        capsys,
        *("issue", "notes", "--action", "evaluate", "--purpose", "research", "--member", "bob", "--columns", "text"),
        *("--tag", "consented", "--not-tag", "minor", "--from", "2026-01-01", "--until", "2099-01-01", "--uses", "3"),
        *("--epsilon", "0.5", "--depth", "1", "--basis", "consent"),
    )
    assert made["audience"] == {"members": [BOB], "roles": []}
    assert made["selector"] == {"columns": ["text"], "tags_all": ["consented"], "tags_none": ["minor"]}
    assert (made["uses"], made["epsilon_micro"], made["depth"], made["basis"]) == (3, 500_000, 1, "consent")
    assert made["not_before"] == datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000
    assert ask(capsys, "check", "notes", "--member", "bob", "--action", "evaluate", "--purpose", "research", code=1)[
        "reasons"
    ] == ["epsilon-unstated"]
    answer = ask(
        capsys,
        *("check", "notes", "--member", "bob", "--action", "evaluate", "--purpose", "research", "--epsilon", "0.1"),
    )
    assert answer["verdict"] == "allow"
    assert answer["selector"] == made["selector"]
    assert [g["grant"] for g in answer["grants"]] == [made["grant"]]


def test_narrow_takes_away_and_refuses_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    made = ask(capsys, "issue", "notes", "--member", "bob", "--action", "train", "--action", "evaluate", "--uses", "5")
    wider = refused(capsys, "narrow", made["grant"][:8], "--uses", "6", "--purpose", "advertising")
    assert "wider in purposes, uses" in wider["message"]
    assert "nothing would change" in refused(capsys, "narrow", made["grant"], "--uses", "5")["message"]
    found = ask(capsys, "narrow", made["grant"][:8], "--action", "evaluate", "--uses", "2", "--tag", "eu")
    assert (found["actions"], found["uses"], found["selector"]["tags_all"]) == (["evaluate"], 2, ["eu"])
    assert ask(capsys, "check", "notes", "--member", "bob", code=1)["reasons"] == ["action"]


def test_revoke_ends_a_grant_and_list_hides_what_ended(capsys: pytest.CaptureFixture[str]) -> None:
    (grant,) = ask(capsys, "list")["grants"]
    assert ask(capsys, "revoke", grant["grant"][:10], "--reason", "consent-withdrawn")["state"] == "revoked"
    assert ask(capsys, "check", "notes", code=1)["reasons"] == ["revoked"]
    assert ask(capsys, "list") == {"grants": [], "hidden": 1}
    assert [g["state"] for g in ask(capsys, "list", "--all")["grants"]] == ["revoked"]


def test_only_the_audience_accepts_and_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    (mine,) = ask(capsys, "list")["grants"]
    other = ask(capsys, "issue", "notes", "--member", "bob")
    assert ask(capsys, "accept", mine["grant"])["accepted"] == [mine["owner"]]
    assert "already" in refused(capsys, "accept", mine["grant"])["message"]
    assert "not for this node" in refused(capsys, "accept", other["grant"])["message"]


def test_a_grant_is_handed_on_narrower_or_not_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    above = ask(capsys, "issue", "notes", "--action", "train", "--depth", "1", "--until", "30d", "--uses", "4")
    assert "nobody is named" in refused(capsys, "issue", "--parent", above["grant"])["message"]
    wide = refused(capsys, "issue", "--parent", above["grant"], "--member", "bob", "--action", "serve", "--uses", "9")
    assert "wider than the one above it in actions, uses" in wide["message"]
    deep = refused(capsys, "issue", "--parent", above["grant"], "--member", "bob", "--depth", "1")
    assert "depth" in deep["message"]
    child = ask(capsys, "issue", "--parent", above["grant"], "--member", "bob")
    assert (child["parent"], child["actions"], child["uses"], child["depth"]) == (above["grant"], ["train"], 4, 0)
    answer = ask(capsys, "check", "notes", "--member", "bob")
    assert [g["grant"] for g in answer["grants"]] == [above["grant"], child["grant"]]


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (("issue", "nites"), "not committed", "did you mean notes?"),
        (("check", "nites"), "not committed", "did you mean notes?"),
        (("issue", "notes", "--member", "bab"), "couldn't find member", "did you mean bob?"),
        (("issue", "notes", "--until", "31.1.2027"), "couldn't read time", "2027-01-31"),
        (("issue", "notes", "--until", "2020-01-01"), "ends before it begins", ""),
        (("issue", "notes", "--purpose", "Market Research"), "purposes", ""),
        (("revoke", "abc"), "couldn't find grant", "fishernet grant list"),
        (("revoke", "00000000"), "couldn't find grant", "fishernet grant list"),
    ],
    ids=str,
)
def test_an_error_says_what_to_do(
    words: tuple[str, ...], said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, *words)
    assert said in error["message"]
    assert hint in error["hint"]


def test_checking_writes_nothing(capsys: pytest.CaptureFixture[str], home: Home) -> None:
    def size() -> int:
        with writing(home, None) as session:
            return session.need_seat().fold.sizes[session.member]

    before = size()
    ask(capsys, "check", "notes")
    ask(capsys, "check", "notes", "--action", "serve", "--purpose", "x", code=1)
    ask(capsys, "list", "--all")
    assert size() == before


def test_people_get_sentences_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["grant", "issue", "notes", "--member", "bob", "--column", "text", "--until", "30d"]) == 0
    assert "granted notes" in capsys.readouterr().out
    assert run(["grant", "list"]) == 0
    shown = capsys.readouterr().out
    assert "bob" in shown
    assert "columns text" in shown
    assert run(["grant", "check", "notes", "--purpose", "x"]) == 1
    assert "deny: purpose" in capsys.readouterr().out


# -- times (56) ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01", 0),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC).timestamp() * 1000),
        ("2027-01-31T12:00", datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp() * 1000),
        ("2027-01-31T12:00+01:00", datetime(2027, 1, 31, 11, tzinfo=UTC).timestamp() * 1000),
        ("2027-01-31T12:00:00.001Z", datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp() * 1000 + 1),
        ("90m", T0 + 5_400_000),
        ("12h", T0 + 43_200_000),
        ("30d", T0 + 2_592_000_000),
        ("2w", T0 + 1_209_600_000),
    ],
)
def test_attack_56_a_time_means_one_millisecond_wherever_it_is_read(text: str, ms: float) -> None:
    assert granting.moment(text, T0) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2027-02-30",
        "2026-12-31T23:59:60Z",
        "1969-12-31",
        "2027-01-31 25:00",
        "-1d",
        "1y",
        "99999999d",
        "٣d",
    ],
)
def test_attack_56_a_leap_second_or_another_calendar_is_no_time(text: str) -> None:
    with pytest.raises(NotAllowed):
        granting.moment(text, T0)


def test_the_member_that_is_meant_must_be_one(home: Home) -> None:
    with writing(home, None) as session:
        seat = session.need_seat()
        assert granting._member(seat, BOB[:8]) == BOB
        assert granting._member(seat, "bob") == BOB
        for unknown in (BOB[:7], MemberId("0" * 64), ""):
            with pytest.raises(NotAllowed):
                granting._member(seat, unknown)
