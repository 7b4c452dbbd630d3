"""`prove`, `verify-proof` and `ledger export` as a person and a program use them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import checkpoint
from ledger.store import Store
from node.cli import run
from protocol import notes
from protocol.ids import CollectiveId
from protocol.merkle import leaf_hash, root_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A node that founded a collective: its feed has the charter and its binding."""
    for name in ("FISHERNET_HOME", "FISHERNET_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FISHERNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FISHERNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for command in ("init --name a --model tiny", "model add tiny", "collective create --name ours"):
        assert run(command.split()) == 0, capsys.readouterr().err
    capsys.readouterr()
    return tmp_path / "home"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> dict:
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().err)["error"]


def feed(home: Path) -> tuple[CollectiveId, list]:
    with Store.open(home / "ledger.db", writer=False) as store:
        collective = store.collectives()[0]
        return collective, store.records(collective, store.members(collective)[0])


def test_an_event_is_proven_and_verified_without_the_node(home: Path, tmp_path: Path, capsys) -> None:
    collective, records = feed(home)
    for number, record in enumerate(records):
        made = said(capsys, "prove", record.entry.event[: 8 + number], "--out", f"{number}.tlog-proof")
        assert (made["event"], made["seq"], made["size"]) == (record.entry.event, number, len(records))
        found = said(capsys, "verify-proof", f"{number}.tlog-proof", "--vkey", made["vkey"])
        assert found["holds"] is True
        assert (found["event"], found["collective"], found["type"]) == (
            record.entry.event,
            collective,
            record.entry.header.type,
        )
    assert run(["prove", records[0].entry.event]) == 0  # for people, with the default name
    told = capsys.readouterr().out
    assert f"{records[0].entry.event[:16]}.tlog-proof" in told
    assert "--vkey fishernet/" in told
    assert run(["verify-proof", "0.tlog-proof"]) == 0
    assert "the proof holds" in capsys.readouterr().out
    outside = {**os.environ, "PYTHONPATH": str(ROOT), "FISHERNET_HOME": str(tmp_path / "nowhere")}
    command = [sys.executable, "-m", "node", "verify-proof", str(tmp_path / "0.tlog-proof"), "--json"]
    done = subprocess.run(command, env=outside, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["event"] == records[0].entry.event


def test_what_cannot_be_proven_is_said_with_what_to_do(home: Path, tmp_path: Path, capsys) -> None:
    for wrong in ("abc", "nonsense!", "zz" * 32):
        error = refused(capsys, "prove", wrong)
        assert error["message"].startswith(f"couldn't prove {wrong}: not the beginning of an event id")
        assert error["hint"]
    assert "0 events begin so" in refused(capsys, "prove", "00000000")["message"]
    assert refused(capsys, "prove", "00000000", "--home", "elsewhere")["code"] == "not-a-home"
    event = feed(home)[1][0].entry.event
    assert "No such file" in refused(capsys, "prove", event, "--out", "no/such/folder/x", code=2)["message"]


def test_a_changed_or_foreign_proof_ends_with_1(home: Path, tmp_path: Path, capsys) -> None:
    made = said(capsys, "prove", feed(home)[1][0].entry.event, "--out", "p.tlog-proof")
    data = (tmp_path / "p.tlog-proof").read_bytes()
    (tmp_path / "changed").write_bytes(data.replace(b"index 0", b"index 1"))
    (tmp_path / "text").write_text("hello")
    assert refused(capsys, "verify-proof", "changed")["code"] == "wrong-proof"
    assert refused(capsys, "verify-proof", "text")["code"] == "malformed"
    other = notes.VerifierKey(name="example.com/log", kind=1, public=notes.read_key(made["vkey"]).public)
    assert refused(capsys, "verify-proof", "p.tlog-proof", "--vkey", str(other))["code"] == "wrong-proof"
    assert refused(capsys, "verify-proof", "p.tlog-proof", "--vkey", "nonsense")["code"] == "malformed"
    assert refused(capsys, "verify-proof", "missing", code=2)["code"] == "usage"


def test_the_ledger_is_exported_for_other_programs(home: Path, tmp_path: Path, capsys) -> None:
    _, records = feed(home)
    leaves = [leaf_hash(record.entry.line) for record in records]
    for kind in ("jsonl", "tiles"):
        (one,) = said(capsys, "ledger", "export", "--format", kind, "--out", kind)["feeds"]
        assert (one["size"], one["root"]) == (len(records), root_of(leaves).hex())
        note = tmp_path / kind / (f"{one['member']}.checkpoint" if kind == "jsonl" else f"{one['member']}/checkpoint")
        assert checkpoint.parse(note.read_bytes()).root == one["root"]
        assert notes.read(note.read_bytes(), notes.read_key(one["vkey"]))
    exported = (tmp_path / "jsonl" / f"{one['member']}.jsonl").read_bytes()
    assert exported == b"".join(record.entry.line + b"\n" for record in records)
    assert (tmp_path / "tiles" / one["member"] / f"tile/0/000.p/{len(records)}").read_bytes() == b"".join(leaves)
    assert run(["ledger", "export", "--format", "tiles", "--out", "people", "--member", one["member"][:8]]) == 0
    assert one["root"] in capsys.readouterr().out
    assert (
        "0 feeds"
        in refused(capsys, "ledger", "export", "--format", "tiles", "--out", "x", "--member", "00" * 32)["message"]
    )
    assert refused(capsys, "ledger", "export", "--format", "csv", "--out", "x", code=2)["code"] == "usage"


def test_a_home_without_a_collective_says_so(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHERNET_HOME", str(tmp_path / "home"))
    assert run(["init", "--name", "a"]) == 0
    capsys.readouterr()
    assert refused(capsys, "prove", "00000000")["code"] == "no-collective"
    assert refused(capsys, "ledger", "export", "--format", "jsonl", "--out", "x")["code"] == "no-collective"
