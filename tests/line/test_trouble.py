"""Promises of the running line when processes die, hang, come back, or are set back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal

import pytest
from line import blobs_of, published, refused, writing_blocked
from real_node import add_rows, alive, sentences, until

from ledger import votes
from protocol.errors import FishernetError


def proposer(line):
    """The node that proposes first at the next height."""
    fold = line.nodes[0].fold()
    chosen = votes.proposer(fold.charter, fold.id, fold.height, 0)
    return next(n for n in line.nodes if n.member == chosen)


def without(line, node):
    return [n for n in line.nodes if n is not node]


@contextlib.contextmanager
def hanging(nodes):
    """The daemons of some nodes neither answer nor end for the length of the block."""
    for node in nodes:
        node.pause()
    try:
        yield
    finally:
        for node in nodes:
            node.resume()


def no_double_votes(line):
    return not any(n.fold().double_votes or n.forks() for n in line.nodes)


def test_a_proposer_killed_between_its_votes_holds_nobody_up_and_never_votes_differently(line):
    line.settle()
    node = proposer(line)
    rest = without(line, node)
    height, count = node.fold().height, len(node.releases())
    with hanging(rest):  # so that no second acceptance can come
        line.train([node])
        accepted = lambda: node.member in node.fold().tally_of(height).firsts.get(0, {})  # noqa: E731
        until(accepted, what="it has written its first vote")
        node.kill()
        assert not any(t == "vote.commit" and b["height"] == height for t, b in node.own())
    line.release(rest)
    assert rest[0].fold().decisions[-1].attempt > 0, "its turn was passed over"

    node.start()
    until(node.ready, what="it is back")
    line.agree(count + 1)
    line.settle()
    said = [(t, b["attempt"]) for t, b in node.own() if t.startswith("vote.") and b["height"] == height]
    assert said[0] == ("vote.accept", 0)
    assert len(said) == len({(t == "vote.commit", attempt) for t, attempt in said})
    fold = rest[0].fold()
    assert len(fold.in_cut(fold.cut)[node.member]) == len(published(node)), "what it had learnt is released now"
    assert no_double_votes(line)


def test_a_worker_killed_while_training_costs_that_run_and_nothing_else(line):
    node = line["cinema"]
    before, pid = len(published(node)), node.pid
    with refused(lambda: node.call("train.now", 90, steps=50_000)) as errors:
        until(lambda: node.status()["training"].get("step", 0) > 0, what="it trains")
        os.kill(node.status()["processes"]["trainer"], signal.SIGKILL)
    assert [e.code for e in errors] == ["child-died"]
    assert len(published(node)) == before
    line.train([node])
    assert len(published(node)) == before + 1
    assert node.pid == pid


def test_a_daemon_killed_in_the_middle_of_a_publish_publishes_that_run_once_after_restart(line):
    line.settle()
    node = line["cinema"]
    before, blobs = published(node), blobs_of(node)
    with hanging(without(line, node)), refused(lambda: node.call("train.now", 90, steps=40)) as errors:
        until(lambda: node.status()["training"]["state"] == "training", step_s=0.02, what="it trains")
        with writing_blocked(node):
            until(lambda: blobs_of(node) - blobs, step_s=0.02, what="the blob is made")
            node.kill()
    assert errors
    [blob] = blobs_of(node) - blobs
    assert published(node) == before
    line.start()
    until(lambda: len(published(node)) > len(before), what="what was ready is published")
    line.settle()
    [fresh] = published(node)[len(before) :]
    assert (fresh["number"], fresh["blob"]) == (before[-1]["number"] + 1, blob)
    assert no_double_votes(line)


def test_sigterm_ends_a_training_node_within_five_seconds_and_leaves_no_process(line):
    node = line["clinic"]
    with refused(lambda: node.call("train.now", 90, steps=50_000)):
        until(lambda: node.status()["training"].get("step", 0) > 0, what="it trains")
        born = node.tree()
        assert len(born) >= 3
        seconds = node.stop()
    assert seconds < 5
    assert node.process.returncode == 0
    assert not any(map(alive, born))


def test_a_restored_old_ledger_takes_its_own_entries_back_before_it_writes(line, tmp_path):
    node = line["clinic"]
    node.stop()
    old, size = shutil.copy(node.home.ledger_db, tmp_path / "ledger.db"), len(node.own())
    line.start()
    add_rows(node, sentences("later"), dataset="later")
    line.settle()
    before = node.own()
    assert "data.committed" in [t for t, _ in before[size:]]
    node.stop()
    shutil.copy(old, node.home.ledger_db)
    for rest in ("-wal", "-shm"):
        node.home.ledger_db.with_name(node.home.ledger_db.name + rest).unlink(missing_ok=True)
    assert len(node.own()) == size < len(before)
    line.start()
    assert node.own()[: len(before)] == before
    assert [t for t, _ in node.own()[len(before) :]] == ["node.started"]
    line.settle()
    assert no_double_votes(line)


def test_a_node_whose_peers_are_silent_only_reads_until_the_operator_accepts_the_risk(line):
    node = line["security"]
    node.stop()
    size = node.size()
    with hanging(without(line, node)):
        node.start()
        until(lambda: "no other member has said" in str(node.status().get("paused")), what="it says why it waits")
        with pytest.raises(FishernetError, match="no other member has said"):
            node.call("train.now")
        until(lambda: "release-1" in node.status()["serving"]["models"], what="it serves all the same")
        assert "no other member has said" in node.cli("status").stdout
        assert node.size() == size
        node.stop()
        node.start("--accept-fork-risk")
        until(node.ready, what="it writes at the operator's risk")
        started = [body["fork_risk_accepted"] for type_, body in node.own() if type_ == "node.started"]
        assert started[-1] is True
        assert not any(started[:-1])
    line.settle()
    assert no_double_votes(line)


def test_all_nodes_restart_at_once_and_none_waits_for_ever(line):
    line.settle()
    line.stop()
    assert line.up() == []
    sizes = {node.name: node.size() for node in line.nodes}
    line.start()
    line.settle()
    assert {node.name: node.size() for node in line.nodes} == {name: size + 1 for name, size in sizes.items()}
