"""Promises about access on running nodes: real daemons, real worker, the ledger they write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from line import Line, published, running
from real_node import Node, make_node, sentences

from node import config
from node.errors import ControlError
from protocol.errors import FishernetError

pytestmark = pytest.mark.slow  # real daemons; the same without them: tests/node/test_permits.py and test_egress.py


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[Line, Node]]:
    """A running collective of one that trains when it is told to."""
    node = make_node(tmp_path, "alone", sentences("alone"), train__auto=False, train__steps=2)
    with running(Line.found([node], wait_for=1)) as line:
        yield line, node


def grants(node: Node) -> list[str]:
    listed = json.loads(node.cli("grant", "list", "--json").stdout)
    return [str(g["grant"]) for g in listed["grants"]]


def decided(node: Node, action: str) -> list[tuple[str, tuple[str, ...]]]:
    bodies = [body for kind, body in node.own() if kind == "access.decided"]
    return [(b["verdict"], tuple(b["reasons"])) for b in bodies if b["request"]["action"] == action]


def test_a_running_node_reads_rows_under_a_grant_and_stops_when_it_is_revoked(alone: tuple[Line, Node]) -> None:
    line, node = alone
    line.release()
    assert decided(node, "train") == [("allow", ())]
    (made,) = published(node)
    (used,) = [b for kind, b in node.own() if kind == "data.used" and b["action"] == "train"]
    assert made["run"] == used["run"]
    (own,) = grants(node)
    assert node.cli("grant", "revoke", own[:8]).returncode == 0
    with pytest.raises(FishernetError) as refused:
        node.call("train.now", 240)
    assert not isinstance(refused.value, ControlError)
    assert "revoked" in str(refused.value)
    assert decided(node, "train") == [("allow", ()), ("deny", ("revoked",))]
    assert len(published(node)) == 1
    issued = node.cli("grant", "issue", node.name, "--action", "train", "--until", "1h", "--json")
    assert issued.returncode == 0, issued.stderr
    line.train()
    assert decided(node, "train")[-1] == ("allow", ())
    assert len(published(node)) == 2


def test_a_release_that_is_served_is_in_the_feed_once_over_a_restart(alone: tuple[Line, Node]) -> None:
    line, node = alone
    line.release()
    (release,) = node.releases()
    line.stop()
    line.start()
    served = [body for kind, body in node.own() if kind == "model.served"]
    assert [body["release"] for body in served] == [release]
    assert node.status()["ready"]


def test_the_egress_policy_of_a_node_keeps_an_update_here_until_the_operator_lets_it_out(
    alone: tuple[Line, Node],
) -> None:
    line, node = alone
    line.stop()
    config.update(node.home.config_file, "egress", "modules", ("*.no_such_module",))
    line.start()
    with pytest.raises(FishernetError) as stopped:
        node.call("train.now", 240)
    assert "the policy does not name" in str(stopped.value)
    kinds = [kind for kind, _ in node.own()]
    assert kinds.index("egress.set") < kinds.index("access.decided") < kinds.index("egress.refused")
    assert published(node) == []
    line.stop()
    config.update(node.home.config_file, "egress", "modules", ("*.q_proj", "*.v_proj"))
    line.start()
    line.train()
    assert len(published(node)) == 1
    assert [kind for kind, _ in node.own()].count("egress.set") == 2
