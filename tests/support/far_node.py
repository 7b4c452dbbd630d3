"""One node in a process of its own, for tests at other hosts: a program that says in JSON lines how it fares.

    python far_node.py FOLDER NAME '{"listen": "/ip4/0.0.0.0/tcp/4242", "known": [], "network": {"relays": []}, "write": true}'

NAME is a, b or c, members of `peers.CHARTER`. With "write" it writes the genesis event and a blob of 300,000 bytes into its
feed; the others report "blob" when they hold it. With "bare" it is a swarm and nothing else: it keeps and hands on no feed.
Lines: {"peers", "addresses", "circuits", "sizes", "blob"}, each time one of them changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from peers import Home, Node, Running  # noqa: E402

from node.errors_network import NetworkError  # noqa: E402
from protocol.ids import digest  # noqa: E402

BLOB = random.Random(7).randbytes(300_000)


async def main(folder: Path, name: str, options: dict) -> None:
    circle = {n: Home(folder / name, n) for n in "abc"}  # its own copies of everybody's public names
    me, wanted = circle[name], digest(BLOB)
    node = Node(
        me,
        circle.values(),
        known=options.get("known", ()),
        listen=options["listen"],
        network={**options.get("network", {})},
    )
    if options.get("write"):
        node.found()
        node.blobs.put(BLOB)
        node.append()
    told = None
    async with Running(node.swarm, node.run_dir) if options.get("bare") else node:
        while True:
            swarm = node.swarm
            if not options.get("bare") and not node.blobs.has(wanted) and node.size(circle["a"]):
                with contextlib.suppress(NetworkError, TimeoutError):
                    async with asyncio.timeout(20):
                        await node.sync.want_blob(wanted, len(BLOB))
            circuits = [a for a in swarm.addresses() if "/p2p-circuit/" in a]
            now = {
                "peers": sorted(n for n in circle if circle[n].peer in swarm.peers()),
                "addresses": list(swarm.addresses()),
                "circuits": len(circuits),
                "sizes": {n: node.size(circle[n]) for n in circle},
                "blob": node.blobs.has(wanted),
            }
            if now != told:
                print(json.dumps(now), flush=True)
            told = now
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
