"""A member without any link takes part by exchanging two bundles a round: real daemons, one of which knows no address."""

from __future__ import annotations

from pathlib import Path

import pytest
from line import CHARTER, Line, published, running
from real_node import Node, make_node, sentences, until

from node import config

pytestmark = pytest.mark.slow


def carry(source: Node, to: Node, file: Path) -> None:
    """One way of the courier: sealed for the reader, only what it has not shown to hold."""
    source.call("bundle.export", 60, out=str(file), to=[to.member], since="known")
    told = to.call("bundle.import", 60, file=str(file))
    assert (told["whole"], told["refused"], told["forks"], told["gaps"]) == (True, [], [], {})


def test_a_member_without_a_link_takes_part_by_two_bundles_a_round(tmp_path: Path) -> None:
    nodes = [make_node(tmp_path, name, sentences(name), train__auto=False) for name in ("one", "two", "apart")]
    one, two, apart = nodes
    patient = {**CHARTER, "patience_ms": 600_000, "timeout_ms": 60_000}
    line = Line.found(nodes, **patient)
    apart.ask("collective.join", collective=line.id, peers=[])
    config.update(apart.home.config_file, "network", "peers", [])
    with running(Line([one, two], line.id)):
        try:
            apart.start()
            until(lambda: apart.status().get("running"), 60, what="it listens for its operator")
            file = tmp_path / "first.bundle"
            one.call("bundle.export", 60, out=str(file), to=[apart.member])
            assert apart.call("bundle.import", 60, file=str(file))["whole"]
            until(
                apart.ready, 90, what="the bundle tells it the charter, and how long its own feed is\n" + apart.tail()
            )
            for number in (1, 2):
                carry(one, apart, tmp_path / f"in-{number}.bundle")
                for node in nodes:
                    node.call("train.now", 90)
                carry(apart, one, tmp_path / f"out-{number}.bundle")
                both = Line([one, two], line.id)
                both.agree(number)
                fold = one.fold()
                assert len(fold.in_cut(fold.cut)[apart.member]) == number == len(published(apart))
            carry(one, apart, tmp_path / "last.bundle")
            until(lambda: apart.releases() == one.releases(), 30, what="it has the same releases")
            until(lambda: "release-2" in apart.status()["serving"]["models"], 60, what="and serves the newest")
            assert not apart.status()["sync"]["peers"], "it never had a link"
        finally:
            apart.stop()
