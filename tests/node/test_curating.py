"""Promises of the data commands on a real home: declared, sealed, forgotten, offline and in the daemon's session."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contrib import models
from ledger.store import Store
from node import commands, config
from node.cli import run
from node.errors import IdentityError, NotAllowed, PassphraseNeeded, WrongPassphrase
from node.home import Home, model_cache
from node.keys import identity
from node.keys.rowkey import RowKey
from protocol.errors import Refused
from protocol.ids import CollectiveId

PASSPHRASE = "a long passphrase"
LINES = [
    {"text": f"canary-row {n} {'x' * 300}", "who": f"Canary Person {n % 4}", "kinds": ["canary-tag"] if n % 2 else []}
    for n in range(40)
]


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)


class Operator:
    """A person at one home."""

    def __init__(self, folder: Path, passphrase: str | None) -> None:
        self.home = Home.init(folder / "home", passphrase=passphrase, toml=config.template(name="ada", model="tiny"))
        self.passphrase = passphrase
        self.file = folder / "rows.jsonl"
        self.file.write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def do(self, name: str, /, **args: Any) -> Any:
        return commands.run(self.home, name, args, passphrase=lambda: self.passphrase)

    def add(self, **args: Any) -> Any:
        given = {"tag_field": "kinds", "subject_field": "who", "tags": ["clinic"], **args}
        return self.do("data.add", path=str(self.file), dataset="notes", **given)

    def found(self) -> None:
        models.add("tiny", model_cache())
        self.do("collective.create", name="paper", model="tiny")

    def said(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and body of every event in its feed."""
        collective = CollectiveId(self.home.read_config().node.collective)
        with Store.open(self.home.ledger_db, writer=False) as store:
            records = store.records(collective, identity.member_of(self.home))
            return [(r.entry.header.type, json.loads(r.body.data) if r.body else {}) for r in records]

    def standing(self, *secrets: str) -> list[str]:
        data = b"\0".join(file.read_bytes() for file in sorted(self.home.path.rglob("*")) if file.is_file())
        return [secret for secret in secrets if secret.encode() in data]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Operator]:
    return Operator(tmp_path, PASSPHRASE)  # type: ignore[return-value]


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Operator]:
    return Operator(tmp_path, None)  # type: ignore[return-value]


def test_what_was_declared_offline_is_said_when_the_seat_opens(plain: Operator) -> None:
    added = plain.add(purposes=["research", "audit"], licence="CC-BY-4.0", retention_days=30, basis="consent")
    assert (added["tags"], added["purposes"], added["retention_days"]) == (["clinic"], ["audit", "research"], 30)
    plain.found()
    said = plain.said()
    described = next(body for kind, body in said if kind == "data.described")
    assert described == {
        "dataset": "notes",
        "tags": ["clinic"],
        "columns": ["text"],
        "purposes": ["audit", "research"],
        "retention_days": 30,
        "licence": "CC-BY-4.0",
        "basis": "consent",
    }
    (granted,) = [body for kind, body in said if kind == "grant.issued"]
    assert (granted["dataset"], granted["purposes"]) == ("notes", ["audit", "research"])
    assert granted["audience"]["members"] == [identity.member_of(plain.home)]
    assert "canary" not in json.dumps(said).lower()


def test_every_declaration_can_be_typed(plain: Operator, capsys: pytest.CaptureFixture[str]) -> None:
    typed = "--tag clinic --tag 2026 --tag-field kinds --subject-field who --purpose research --purpose audit"
    typed += " --licence MIT --retention-days 9 --basis consent --no-grant --json"
    arguments = ["data", "add", str(plain.file), "--dataset", "notes", *typed.split(), "--home", str(plain.home.path)]
    assert run(arguments) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    wanted = {
        "tags": ["2026", "clinic"],
        "purposes": ["audit", "research"],
        "licence": "MIT",
        "retention_days": 9,
        "basis": "consent",
        "grant": False,
        "columns": ["text"],
        "overdue": False,
    }
    assert {key: told[key] for key in wanted} == wanted
    assert plain.do("data.forget", subject="Canary Person 3", dry_run=True)["rows"] == 10


def test_adding_again_changes_the_description_and_grants_nothing_new(plain: Operator) -> None:
    plain.found()
    plain.add()
    assert [kind for kind, _ in plain.said()].count("data.described") == 1
    plain.add(if_exists="append", licence="MIT")
    (listed,) = plain.do("data.list")["datasets"]
    assert (listed["licence"], listed["purposes"], listed["duplicates"]) == ("MIT", ["model-improvement"], 40)
    kinds = [kind for kind, _ in plain.said()]
    assert (kinds.count("data.described"), kinds.count("grant.issued"), kinds.count("data.committed")) == (2, 1, 1)


def test_no_grant_is_said_when_none_is_wanted(plain: Operator) -> None:
    plain.found()
    plain.add(grant=False)
    assert "grant.issued" not in [kind for kind, _ in plain.said()]
    assert plain.do("data.list")["datasets"][0]["grant"] is False


@pytest.mark.parametrize(
    "wrong", [{"tags": ["Not A Tag"]}, {"purposes": ["Two Words"]}, {"licence": "x" * 300}, {"retention_days": -1}]
)
def test_declaration_that_no_event_can_say_is_refused_before_a_row_is_stored(
    plain: Operator, wrong: dict[str, Any]
) -> None:
    with pytest.raises(Refused):
        plain.add(**wrong)
    assert plain.do("data.list")["datasets"] == []


def test_home_with_a_passphrase_seals_its_rows_from_the_start(locked: Operator) -> None:
    assert locked.add()["sealed"] is True
    assert stat.S_IMODE(locked.home.rows_key.stat().st_mode) == 0o600
    assert locked.standing("canary-row", "Canary Person", "canary-tag", PASSPHRASE) == []
    (listed,) = locked.do("data.list")["datasets"]  # no passphrase is asked for
    assert (listed["train_rows"] + listed["held_out_rows"], listed["sealed"]) == (40, True)
    assert locked.do("data.forget", subject="Canary Person 1")["rows"] == 10


def test_home_without_a_passphrase_keeps_plain_rows_and_cannot_seal_them(plain: Operator) -> None:
    assert plain.add()["sealed"] is False
    assert plain.standing("canary-row", "Canary Person", "canary-tag") == ["canary-row", "canary-tag"]
    assert not plain.home.rows_key.exists()
    with pytest.raises(NotAllowed, match="no passphrase"):
        plain.do("data.seal")


def test_sealing_converts_an_existing_store_and_leaves_no_plain_byte(locked: Operator) -> None:
    with pytest.MonkeyPatch.context() as patch:  # a store from before there were sealed ones
        patch.setattr("node.keys.rowkey.RowKey.can_create", False)
        assert locked.add()["sealed"] is False
    assert locked.standing("canary-row", "canary-tag") == ["canary-row", "canary-tag"]
    assert locked.do("data.seal")["rows"] == 40
    assert locked.standing("canary-row", "canary-tag", "Canary Person") == []
    assert locked.do("data.forget", subject="Canary Person 2", dry_run=True)["rows"] == 10
    assert locked.do("data.seal")["rows"] == 40


def test_wrong_or_missing_passphrase_is_said(locked: Operator) -> None:
    locked.add()
    with pytest.raises(WrongPassphrase, match=r"rows\.key"):
        RowKey(locked.home, "another").get()
    with pytest.raises(PassphraseNeeded, match=r"rows\.key"):
        RowKey(locked.home, None).get()
    assert RowKey(locked.home, None).try_get() is None
    locked.passphrase = "another"
    with pytest.raises(WrongPassphrase):
        locked.do("data.forget", subject="Canary Person 1")


def test_data_key_is_the_same_after_a_restart_and_lies_nowhere_in_clear(locked: Operator) -> None:
    locked.add()
    key = RowKey(locked.home, PASSPHRASE).get()
    assert key is not None
    assert RowKey(locked.home, PASSPHRASE).create() == key
    data = b"".join(file.read_bytes() for file in locked.home.path.rglob("*") if file.is_file())
    assert key not in data
    assert key.hex().encode() not in data
    assert key.hex() not in repr(RowKey(locked.home, PASSPHRASE).__dict__)


def test_damaged_key_file_is_said(locked: Operator) -> None:
    locked.add()
    for damage in (b"", b"{}", b"[1]", b'{"v":2}', b'{"v":1,"salt":"?","nonce":"","key":""}', b"\xff"):
        locked.home.rows_key.write_bytes(damage)
        with pytest.raises(IdentityError, match=r"couldn't read .*rows\.key") as caught:
            RowKey(locked.home, PASSPHRASE).get()
        assert "copy" in str(caught.value.hint)


def test_lost_key_file_does_not_make_a_second_key_that_opens_nothing(locked: Operator) -> None:
    locked.add()
    locked.home.rows_key.unlink()
    with pytest.raises(Refused, match=r"sealed|another key"):
        locked.add(if_exists="append")


def test_forgetting_asks_first_and_where_nobody_can_be_asked_wants_yes(
    plain: Operator, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.add()
    home = ["--home", str(plain.home.path)]
    assert run(["data", "forget", "--subject", "Canary Person 1", "--json", *home]) != 0
    assert "--yes" in json.loads(capsys.readouterr().err)["error"]["message"]
    assert run(["data", "forget", "--subject", "Canary Person 1", "--dry-run", *home]) == 0
    assert "would forget 10 rows of notes" in capsys.readouterr().out
    assert run(["data", "forget", "notes", "--subject", "Canary Person 1", "--yes", *home]) == 0
    assert "forgot 10 rows of notes" in capsys.readouterr().out
    assert run(["data", "forget", "--subject", "Canary Person 1", "--yes", *home]) != 0
    assert "Canary" not in capsys.readouterr().err


def test_list_warns_of_rows_that_are_kept_too_long(
    plain: Operator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain.add(retention_days=1)
    home = ["--home", str(plain.home.path)]
    assert run(["data", "list", *home]) == 0
    assert "--expired" not in capsys.readouterr().out
    later = commands.now_ms() + 2 * 86_400_000
    monkeypatch.setattr("node.data.curating.now_ms", lambda: later)
    assert plain.do("data.list")["datasets"][0]["overdue"] is True
    assert plain.do("data.forget", expired=True)["rows"] == 40
