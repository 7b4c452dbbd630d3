"""Promises of `fishernet forget` on running nodes: asked, approved, decided, released without it, proven, refused afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from line import Line, running
from real_node import fishernet, make_node, sentences, until

from ledger.cuts import Cut

pytestmark = pytest.mark.slow  # real daemons; without them the same is shown by tests/node/test_forget_command.py
NAMES = ("ada", "bob", "cyd")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("forget")
    nodes = [make_node(folder, name, sentences(name), train__auto=False) for name in NAMES]
    with running(Line.found(nodes)) as line:
        line.release()
        yield line


def asked(line: Line, name: str, *arguments: str) -> dict[str, object]:
    done = line[name].cli("forget", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_quorum_has_a_contribution_forgotten_and_waits_for_the_release_without_it(
    three: Line, tmp_path: Path
) -> None:
    """Nothing else is pending: the release comes because it was asked for."""
    ada, bob = three["ada"], three["bob"]
    three.settle()
    first = ada.releases()[0]
    plan = asked(three, "ada", "cyd/1", "--dry-run")
    assert [r["number"] for r in plan["releases"]] == [1]  # type: ignore[attr-defined, index]
    proof = tmp_path / "proof.json"
    waiting = threading.Thread(
        target=lambda: three["ada"].cli("forget", "cyd/1", "--yes", "--days", "0", "--out", str(proof))
    )
    waiting.start()
    until(lambda: bob.ask("collective.requests")["proposals"], 60, what="bob hears of the proposal")
    approved = asked(three, "bob", "cyd/1", "--yes", "--no-wait")
    assert len(approved["approved"]) == 1  # type: ignore[arg-type]
    waiting.join(180)
    assert not waiting.is_alive(), three.tails()
    verified = fishernet(
        "verify-bundle", str(proof), "--collective", three.id, "--blobs", str(bob.home.blobs), "--json"
    )
    assert verified.returncode == 0, verified.stderr
    shown = json.loads(verified.stdout)
    assert [(a["name"], a["number"], a["reason"], a["was_in"]) for a in shown["asked"]] == [
        ("cyd", 1, "forgotten", [1])
    ]
    assert shown["repeated"]["releases"] == [1, 2]
    assert shown["new"]["release"] == three.agree(2)
    for node in three.nodes:
        until(lambda node=node: node.status()["serving"]["models"].count("release-2"), 60, what="release 2 is served")
        until(lambda node=node: "release-1" not in node.status()["serving"]["models"], 60, what="release 1 is not")
    url = ada.status()["serving"]["url"]
    refused = httpx.post(f"{url}/completions", json={"model": first, "prompt": "x"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "model_gone")
    exported = ada.cli("export", "release-1", "--out", str(tmp_path / "out"), "--json")
    assert json.loads(exported.stderr)["error"]["code"] == "release-gone"
    for node in three.nodes:
        again = node.cli("replay", "latest", "--json")
        assert again.returncode == 0, again.stdout[-2000:]
        audited = node.cli("audit", "--json")
        assert audited.returncode == 0, audited.stdout[-3000:]


def test_a_member_takes_its_own_back_alone_and_is_still_of_use(three: Line, tmp_path: Path) -> None:
    bob = three["bob"]
    proof = tmp_path / "own.json"
    done = asked(three, "bob", "bob/1", "--yes", "--out", str(proof))
    assert done["state"]["stage"] == "done"  # type: ignore[index]
    assert fishernet("forget", "--verify", str(proof)).returncode == 0
    three.release()
    cut = bob.fold().cut
    assert isinstance(cut, Cut)
    assert sorted(x.reason for x in cut.excluded) == ["erased", "forgotten"]
    assert {r.member for r in cut.registers} == {n.member for n in three.nodes}, "what came later is merged"
