"""Promises to the auditor: offline from a copy, or from outside over another libp2p, any change is named."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from real_node import environment, make_node

from ledger import checkpoint
from node.cli import run
from node.errors_network import PeerRefused, PeerUnreachable
from node.network.swarm import Swarm, SwarmConfig
from node.syncing.exchange import Asker
from protocol.binding import verify as verify_binding

HEAVY = """
import sys
from node.cli import run
code = run(["audit", "--json", "--home", sys.argv[1]])
print(*[m for m in ("torch", "transformers", "hivemind", "libp2p") if m in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def copy(line, tmp_path) -> Path:
    """What an auditor carries home: configuration, ledger and blobs of a running node, and no key."""
    line.settle()
    home, target = line["cinema"].home, tmp_path / "copy"
    target.mkdir()
    shutil.copy(home.config_file, target)
    shutil.copytree(home.blobs, target / "blobs")
    with contextlib.ExitStack() as stack:
        live, kept = (
            stack.enter_context(contextlib.closing(sqlite3.connect(p / "ledger.db"))) for p in (home.path, target)
        )
        live.backup(kept)
    return target


def audit(home: Path, capsys):
    """`fishernet audit`: its exit code and what it prints."""
    code = run(["audit", "--json", "--home", str(home)])
    return code, json.loads(capsys.readouterr().out)


def tampered(home: Path, statement: str, *values):
    """Change the copied ledger as somebody with a hex editor could: past its triggers."""
    with contextlib.closing(sqlite3.connect(home / "ledger.db")) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        assert database.execute(statement, values).rowcount == 1
        database.commit()


def entry_of(line, event_type, name="clinic"):
    """Where the first entry of a type stands in a member's feed."""
    node = line[name]
    return node.member, next(i for i, (type_, _) in enumerate(node.own()) if type_ == event_type)


CHANGE_LINE = """UPDATE entries SET line = CAST(replace(CAST(line AS TEXT), 'accept', 'object') AS BLOB)
    WHERE feed = (SELECT id FROM feeds WHERE member = ?) AND seq = ?"""
CHANGE_BODY = """UPDATE entries SET data = CAST(replace(CAST(data AS TEXT), 'base":-', 'base":-9') AS BLOB)
    WHERE feed = (SELECT id FROM feeds WHERE member = ?) AND seq = ?"""
REMOVE = "DELETE FROM entries WHERE feed = (SELECT id FROM feeds WHERE member = ?) AND seq = ?"


def test_an_audit_of_a_copy_is_clean_and_needs_no_torch_no_network_and_no_key(copy, line):
    done = subprocess.run(
        [sys.executable, "-c", HEAVY, str(copy)], capture_output=True, text=True, timeout=120, env=environment()
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["findings"]) == (0, "clean", [])
    assert done.stderr.strip() == ""
    assert all(r["recomputed"] and r["matches"] for r in found["releases"])
    assert [r["digest"] for r in found["releases"]] == line["cinema"].releases()


def test_an_audit_of_a_running_node_is_clean(line):
    line.settle()
    done = line["clinic"].cli("audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean" in done.stdout


def test_a_changed_byte_of_a_blob_is_named_with_its_entry_and_left_as_it_is(copy, line, capsys):
    member, seq = entry_of(line, "contribution.published")
    blob = copy / "blobs" / str(line["clinic"].own()[seq][1]["blob"])
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    code, found = audit(copy, capsys)
    assert (code, found["verdict"]) == (1, "findings")
    assert (member, seq, "blob-damaged") in {(f["member"], f["seq"], f["id"]) for f in found["findings"]}
    assert blob.read_bytes() == data


def test_a_missing_blob_makes_the_release_not_checked_instead_of_clean(copy, line, capsys):
    _, seq = entry_of(line, "contribution.published")
    (copy / "blobs" / str(line["clinic"].own()[seq][1]["blob"])).unlink()
    code, found = audit(copy, capsys)
    assert (code, found["verdict"]) == (2, "could-not-check")
    assert any("release 1" in text for text in found["unchecked"])


def test_a_changed_line_is_named(copy, line, capsys):
    member, seq = entry_of(line, "vote.accept")
    tampered(copy, CHANGE_LINE, member, seq)
    code, found = audit(copy, capsys)
    assert (code, found["verdict"]) == (1, "findings")
    assert (member, seq) in {(f["member"], f["seq"]) for f in found["findings"] if f["severity"] == "error"}


def test_a_changed_body_is_named(copy, line, capsys):
    member, seq = entry_of(line, "gate.verdict")
    tampered(copy, CHANGE_BODY, member, seq)
    code, found = audit(copy, capsys)
    assert (code, found["verdict"]) == (1, "findings")
    assert (member, seq) in {(f["member"], f["seq"]) for f in found["findings"] if f["severity"] == "error"}


def test_a_removed_entry_is_named(copy, line, capsys):
    member, seq = entry_of(line, "data.committed")
    tampered(copy, REMOVE, member, seq)
    code, found = audit(copy, capsys)
    assert (code, found["verdict"]) == (1, "findings")
    assert (member, seq) in {(f["member"], f["seq"]) for f in found["findings"] if f["severity"] == "error"}


def test_an_auditor_sees_from_outside_that_all_is_clean(line, auditor):
    line.settle()
    done = auditor.cli("observe", "--json", "--collective", line.id, *(n.address for n in line.nodes))
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"]) == (0, "clean"), found
    assert [r["digest"] for r in found["releases"]] == line["clinic"].releases()
    assert {f["member"]: f["status"] for f in found["observed"]["feeds"] if f["size"]} == {
        n.member: "confirmed" for n in line.nodes
    }


def test_a_stranger_gets_the_newest_checkpoint_and_nothing_else(line, tmp_path):
    line.settle()
    stranger, clinic = make_node(tmp_path, "stranger"), line["clinic"]
    published = next(body for type_, body in clinic.own() if type_ == "contribution.published")

    async def ask():
        with tempfile.TemporaryDirectory(prefix="fn-") as sockets:
            swarm = Swarm(
                SwarmConfig(
                    identity=stranger.home.transport_key,
                    listen=("/ip4/127.0.0.1/tcp/0",),
                    run_dir=Path(sockets),
                    known=(clinic.address,),
                )
            )
            life = asyncio.create_task(swarm.run())
            try:
                asker = Asker(swarm, line.id, verify_binding(stranger.home.unlock(None).binding))
                async with asyncio.timeout(30):
                    while True:
                        with contextlib.suppress(PeerUnreachable):
                            answer = await asker.heads(clinic.peer)
                            break
                        await asyncio.sleep(0.1)
                    with pytest.raises(PeerRefused) as feed:
                        await asker.page(clinic.peer, clinic.member, 0)
                    with pytest.raises(PeerRefused) as blob:
                        async with asker.blob(clinic.peer, published["blob"], 0):
                            pass
            finally:
                life.cancel()
                await asyncio.gather(life, return_exceptions=True)
            return answer.notes, {feed.value.reason, blob.value.reason}

    notes, reasons = asyncio.run(ask())
    heads = [checkpoint.parse(note) for note in notes]
    assert [(h.member, h.size) for h in heads] == [(clinic.member, clinic.size())]
    assert reasons == {"not-a-member"}
    assert stranger.member in {r["member"] for r in clinic.call("collective.requests")["requests"]}
