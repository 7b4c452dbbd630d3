"""Keys and witnesses on real nodes: a key is rotated under way, a stolen one is revoked, and releases go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line, published, running
from real_node import Node, make_node, sentences, until

NAMES = ("ada", "bob", "cyd")
pytestmark = (
    pytest.mark.slow
)  # a minute; on paper and on disk the same is shown by the ledger's and the node's own tests


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("keys")
    nodes = [make_node(folder, name, sentences(name), train__auto=False) for name in NAMES]
    with running(Line.found(nodes, wait_for=2, cosignatures=1)) as line:
        yield line


def reopened(node: Node) -> Node:
    """The same home after its keys have changed."""
    node.stop()
    node.start()
    until(node.ready, 240, what=f"{node.name} is ready\n{node.tail()}")
    fresh = Node(node.home, node.port, node.module)
    fresh.process = node.process
    return fresh


def test_a_rotated_key_keeps_seat_register_and_vote_while_the_others_go_on(trio: Line, tmp_path: Path) -> None:
    ada, bob, cyd = trio.nodes
    old = bob.member
    trio.release()
    done = bob.cli("key", "rotate", "--json")
    assert done.returncode == 0, done.stderr
    heir = json.loads(done.stdout)["next"]
    until(lambda: ada.fold().charter.member(heir), what="the succession is decided")
    until(lambda: "start it again" in str(bob.status().get("paused")), what="the node says what to do now")
    until(lambda: old in ada.fold().ended, what="the old feed ended with its rotation")
    trio.nodes[1] = bob = reopened(bob)
    assert bob.member == heir
    trio.release()
    trio.settle()
    fold = ada.fold()
    cut = fold.cut
    assert cut is not None
    assert {c.member for c in fold.in_cut(cut)[heir]} == {old, heir}, "one register"
    assert len(cut.last) == 3
    assert published(bob)[0]["number"] == 1
    newest = ada.call("log")["decisions"][-1]
    assert {v["member"] for v in newest["votes"]} == {ada.member, heir, cyd.member}, "one vote"
    for node in (ada, bob, cyd):
        assert not node.fold().flaws
        assert not node.forks()


def test_a_stolen_key_is_revoked_through_another_member_and_the_home_goes_on_with_the_new_one(
    trio: Line, tmp_path: Path
) -> None:
    ada, _, cyd = trio.nodes
    offline, old = tmp_path / "recovery.pem", cyd.member
    cyd.home.recovery_file.rename(offline)
    done = cyd.cli("key", "revoke", "--recovery", str(offline), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    asked = ada.cli("key", "propose", said["file"])
    assert asked.returncode == 0, asked.stderr
    until(lambda: ada.fold().charter.member(said["next"]), what="the succession is decided")
    until(lambda: cyd.status().get("paused"), what="the old key writes nothing any more")
    trio.nodes[2] = cyd = reopened(cyd)
    assert (cyd.member, ada.fold().charter.member(old)) == (said["next"], None)
    trio.release()
    assert {c["cosignatures"] >= 1 for c in ada.call("log")["decisions"][-1]["contributions"]} == {True}
    audited = json.loads(ada.cli("audit", "--json").stdout)
    assert {(r["recomputed"], r["matches"]) for r in audited["releases"]} == {(True, True)}
    assert not [f for f in audited["findings"] if f["severity"] == "error"], "what the old key wrote late is a warning"
