"""A proof of a fork as a file: whoever holds it convinces anybody, without a node and without trusting anybody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from circle import Circle, make_circle, refused, told

from ledger import checkpoint, events, forks
from ledger.entry import make
from ledger.errors import ForkSeen
from node.cli import run
from node.keys import identity
from protocol.ids import digest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Circle:
    monkeypatch.delenv("FISHERNET_PASSPHRASE", raising=False)
    return make_circle(tmp_path)


def forked(circle: Circle) -> str:
    """Bob shows Ada another entry than the one she holds; Bob's member id."""
    bob = identity.load(circle.homes["bob"], None)
    with circle.open("ada") as session:
        seat = session.need_seat()
        last = session.store.records(circle.collective, bob.member)[-1].entry.header
        other = make(
            bob.key, collective=circle.collective, seq=last.seq, prev=last.prev, ts=1, type=last.type, seen=[], body={},
            salt=bytes(16),
        )  # fmt: skip
        with pytest.raises(ForkSeen) as caught:
            session.store.append_foreign(circle.collective, bob.member, [other], None)
        seat.fork_found(caught.value.fork)
    return bob.member


def test_a_proof_is_exported_and_checked_offline(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ada, bob = circle.homes["ada"], forked(circle)
    assert told(capsys, ada, "status")["forks"] == [bob]
    (listed,) = told(capsys, ada, "fork", "list")["forks"]
    assert (listed["member"], listed["kind"]) == (bob, "entries")
    file = tmp_path / "proof.json"
    told(capsys, ada, "fork", "export", bob[:12], "--out", str(file))
    nowhere = tmp_path / "nowhere"
    assert run(["fork", "check", str(file), "--home", str(nowhere)]) == 0
    assert "the proof is valid" in capsys.readouterr().out
    assert not nowhere.exists()


def test_checking_a_proof_needs_pynacl_and_nothing_heavier(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "proof.json"
    told(capsys, circle.homes["ada"], "fork", "export", forked(circle), "--out", str(file))
    code = (
        "import sys; from node.cli import run; code = run(['fork', 'check', sys.argv[1], '--json'])\n"
        "print([m for m in ('cryptography', 'sqlite_utils', 'numpy', 'torch', 'pydantic', 'rich') if m in sys.modules])\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], cwd=ROOT, capture_output=True, text=True, check=True)
    answer, loaded = done.stdout.splitlines()
    assert json.loads(answer)["valid"] is True
    assert loaded == "[]"


def test_a_proof_that_needs_the_feed_is_exported_with_it(
    circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bob = identity.load(circle.homes["bob"], None)
    with circle.open("bob") as session:
        for _ in range(5):
            session.need_seat().append(events.NodeAlive())
    circle.deliver()
    wrong = checkpoint.make(bob.key, circle.collective, bob.member, 5, digest(b"another history"))
    with circle.open("ada") as session:
        seat = session.need_seat()
        with pytest.raises(ForkSeen) as caught:
            session.store.append_foreign(circle.collective, bob.member, [], wrong.note)
        seat.fork_found(caught.value.fork)
    file = tmp_path / "proof.json"
    told(capsys, circle.homes["ada"], "fork", "export", bob.member, "--out", str(file))
    proof = forks.decode(file.read_bytes())
    assert forks.self_contained(proof)
    told(capsys, circle.homes["cyd"], "fork", "check", str(file))


def test_a_changed_proof_convicts_nobody(circle: Circle, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ada, bob = circle.homes["ada"], forked(circle)
    file = tmp_path / "proof.json"
    told(capsys, ada, "fork", "export", bob, "--out", str(file))
    proof = json.loads(file.read_bytes())
    cyd = identity.member_of(circle.homes["cyd"])
    for bad in (
        {**proof, "member": cyd},
        {**proof, "evidence": [proof["evidence"][0]] * 2},
        {**proof, "at": proof["at"] + 1},
        {**proof, "kind": "heads"},
        {"kind": "entries"},
    ):
        file.write_text(json.dumps(bad, sort_keys=True, separators=(",", ":")))
        assert refused(capsys, ada, "fork", "check", str(file)).startswith("couldn't")
    file.write_text("nonsense")
    refused(capsys, ada, "fork", "check", str(file))


def test_nothing_is_exported_against_a_member_that_is_not_convicted(
    circle: Circle, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = circle.homes["ada"]
    assert told(capsys, ada, "fork", "list")["forks"] == []
    assert "0 are here" in refused(capsys, ada, "fork", "export", identity.member_of(circle.homes["cyd"]))
    assert run(["fork", "list", "--home", str(ada.path)]) == 0
    assert "no feed here was proven forked" in capsys.readouterr().out
