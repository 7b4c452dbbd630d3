"""Promises of finding each other where addresses alone do not help: behind NAT through a relay, and on a LAN without any.

Real processes at hosts of a laboratory network (see tests/support/namespaces.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from namespaces import Lab, unavailable
from peers import Home

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

PROGRAM = Path(__file__).parents[1] / "support" / "far_node.py"
PUBLIC = (
    "11.77.0.0/16"  # p2pd takes relays only where the whole world could dial them; nothing of it leaves the laboratory
)
EVERYWHERE = "/ip4/0.0.0.0/tcp/4242"


class Far:
    """A node at a host, and the last thing it said."""

    def __init__(self, host, folder: Path, name: str, **options) -> None:
        self.name, self.said = name, {}
        command = (sys.executable, str(PROGRAM), str(folder), name, json.dumps({"listen": EVERYWHERE, **options}))
        self.log = (folder / f"{name}.log").open("wb")
        self.process = host.popen(*command, stdout=subprocess.PIPE, stderr=self.log)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said = json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.log.close()

    def until(self, holds, limit_s: float = 60.0) -> dict:
        deadline = time.monotonic() + limit_s
        while not (self.said and holds(self.said)):
            assert self.process.poll() is None, Path(self.log.name).read_text()
            assert time.monotonic() < deadline, (self.said, Path(self.log.name).read_text()[-2000:])
            time.sleep(0.05)
        return self.said


def peer_of(folder: Path, name: str) -> str:
    return Home(folder / f"name of {name}", name).peer


@pytest.mark.slow
def test_nodes_behind_two_routers_sync_feed_and_blob_through_a_relay_that_the_charter_could_name(tmp_path):
    with Lab(PUBLIC) as lab, contextlib.ExitStack() as nodes:
        relay_host, left, right = lab.hosts("relay", "left", "right")
        lab.nat(left)
        lab.nat(right)
        relay = f"/ip4/{relay_host.address}/tcp/4242/p2p/{peer_of(tmp_path, 'c')}"
        nodes.enter_context(Far(relay_host, tmp_path, "c", bare=True, network={"serve_relay": True}))
        hidden = {"relays": [relay], "reachability": "private"}
        a = nodes.enter_context(Far(left, tmp_path, "a", known=[relay], network=hidden, write=True))
        a.until(lambda said: said["circuits"])
        way = f"{relay}/p2p-circuit/p2p/{peer_of(tmp_path, 'a')}"  # as `fishernet status` prints it at a
        b = nodes.enter_context(Far(right, tmp_path, "b", known=[way], network=hidden))
        b.until(lambda said: said["sizes"]["a"] == 2 and said["blob"])
        assert "b" in a.said["peers"]
        assert way in a.said["addresses"]


@pytest.mark.slow
def test_nodes_on_a_lan_find_each_other_without_any_address(tmp_path):
    collective = "ab" * 32
    with Lab() as lab, contextlib.ExitStack() as nodes:
        hosts = dict(zip("ab", lab.hosts("a", "b"), strict=True))
        far = {
            name: nodes.enter_context(Far(host, tmp_path, name, network={"mdns": collective}))
            for name, host in hosts.items()
        }
        far["a"].until(lambda said: said["peers"] == ["b"])
        far["b"].until(lambda said: said["peers"] == ["a"])
