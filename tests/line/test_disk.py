"""A real node on a real disk that gets full: it lives on, says so, starts on it too, and goes on when there is room."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import disks
import pytest
from disks import Disk
from line import Line, running
from real_node import Node, make_node, sentences, until

pytestmark = pytest.mark.slow  # half a minute; in one process `tests/node/test_full_disk.py` shows the same


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    found = disks.small(tmp_path, 48)
    yield found
    found.close()


def told(node: Node) -> str:
    return str(node.status().get("full"))


def test_a_real_node_on_a_full_disk_lives_says_so_and_goes_on_when_there_is_room(
    disk: Disk, tmp_path: Path, cache: Path
) -> None:
    node = make_node(disk.path, "ada", sentences("ada"), train__auto=False, ledger__heartbeat_s=1)
    node.log = tmp_path / "ada.log"
    with running(Line.found([node])):
        until(node.ready, 120, what="ready")
        disk.fill()
        until(lambda: "the disk is full; nothing was written" in told(node), what="it says so")
        shown = node.cli("status")
        assert "the disk is full" in shown.stdout
        size = node.size()
        node.kill()
        node.start()
        until(lambda: "event=not-introduced code=store-full" in node.log.read_text(), 120, what="it waits for room")
        assert node.running
        assert node.size() == size
        disk.free()
        until(node.ready, 60, what="it begins")
        until(lambda: node.size() > size + 3, what="it goes on")
        assert node.status().get("full") is None
    found = node.cli("audit", "--json")
    assert found.returncode == 0, found.stdout
    assert json.loads(found.stdout)["findings"] == []
