"""An amendment that changes the adapter's shape: running nodes go over to it without a restart, and serve the old no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from line import Line, running
from real_node import Node, make_node, sentences, until

pytestmark = pytest.mark.slow  # real daemons; the engine's own change of bases is tested in tests/node/serving


def answer(node: Node, model: str) -> httpx.Response:
    asked = {"model": model, "prompt": "The ", "max_tokens": 4, "temperature": 0}
    return httpx.post(f"{node.status()['serving']['url']}/completions", json=asked, timeout=90)


def test_running_nodes_go_over_to_another_adapter_shape_and_release_in_the_new_epoch(
    tmp_path: Path, cache: Path
) -> None:
    nodes = [make_node(tmp_path, name, sentences(name), train__auto=False) for name in ("ada", "bob")]
    with running(Line.found(nodes, wait_for=2)) as line:
        line.start()
        line.release()
        ada, bob = nodes
        until(lambda: "release-1" in ada.status()["serving"]["models"], what="the first release is served")
        assert answer(ada, "release-1").status_code == 200
        before = ada.fold().charter
        shape: dict[str, Any] = before.to_json()["adapter"]
        shape |= {"rank": 2 * shape["rank"], "alpha": 2 * shape["alpha"], "coordinates": 2 * shape["coordinates"]}
        proposal = ada.call("collective.amend", changes={"adapter": shape})["proposal"]
        until(lambda: proposal in bob.fold().asked, what="the proposal arrives")
        bob.call("collective.approve", proposal=proposal)
        for node in nodes:
            until(lambda node=node: node.fold().charter.epoch_id != before.epoch_id, 240, what="the new epoch")
            until(lambda node=node: node.status()["serving"]["models"] == ["base"], 240, what="the old release is gone")
            assert node.running
            assert answer(node, "base").status_code == 200
            assert answer(node, "release-1").status_code == 404
        line.release()
        for node in nodes:
            until(lambda node=node: "release-2" in node.status()["serving"]["models"], 240, what="it serves the new")
            assert answer(node, "latest").headers["x-fishernet-model"] == "release-2"
    for node in nodes:
        found = node.cli("audit", "--json")
        assert found.returncode == 0, found.stdout
