"""How fast a blob goes from node to node over real p2pd on loopback, hashing, disk and fsync included.

    python benchmarks/bench_blobs.py [--mib 256] [--donors 1 2] [--small 200] [--profile]
Each donor is a process of its own with its own p2pd; this process fetches. Prints one JSON line per measurement: seconds, MB/s
(10^6 bytes), CPU seconds of both sides' Python, and for small blobs milliseconds from asking to having. Nothing is compared with
other programs here. Times are wall times of this machine: run it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tests" / "support"):
    sys.path.insert(0, str(folder))

from peers import Home, Node, homes, until  # noqa: E402

from protocol.ids import Digest  # noqa: E402

NAMES = "abcdefgh"


def members(folder: Path) -> list[Home]:
    return homes(folder, NAMES)


async def serve(folder: Path, number: int, made: list[int]) -> None:
    """One donor: makes the blobs, says where it listens, serves until its input ends."""
    everybody = members(folder / f"homes{number}")
    async with Node(everybody[number], everybody) as node:
        _trust(node)
        names = [await asyncio.to_thread(node.blobs.put, blob(n, size)) for n, size in enumerate(made)]
        print(json.dumps({"address": node.address, "blobs": names}), flush=True)
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps({"cpu": _cpu()}), flush=True)


def blob(number: int, size: int) -> bytes:
    """The same bytes in every process."""
    noise = random.Random(number)
    return b"".join(noise.randbytes(min(1 << 20, size - at)) for at in range(0, size, 1 << 20))


class Donor:
    """A donor's process."""

    def __init__(self, folder: Path, number: int, sizes: list[int]) -> None:
        command = [
            sys.executable,
            __file__,
            "--serve",
            str(number),
            "--folder",
            str(folder),
            "--sizes",
            *map(str, sizes),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told = json.loads(self.process.stdout.readline())

    def cpu(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["cpu"]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(20)


async def measure(arguments: argparse.Namespace, folder: Path) -> None:
    large = [arguments.mib << 20] * arguments.repeat
    sizes = [*large, *[64 << 10] * arguments.small]
    for count in arguments.donors:
        donors = [Donor(folder / f"{count}", 1 + n, sizes) for n in range(count)]
        try:
            everybody = members(folder / f"{count}" / "me")
            async with Node(everybody[0], everybody, known=[d.told["address"] for d in donors]) as me:
                _trust(me)
                peers = {everybody[1 + n].peer for n in range(count)}
                await until(lambda peers=peers, me=me: all(me.sync.member_of(p) for p in peers))
                names = donors[0].told["blobs"]
                for number, size in enumerate(large):
                    await _fetch(me, donors, names[number], size, arguments.profile)
                times = []
                for number in range(len(large), len(sizes)):
                    began = time.monotonic()
                    await me.sync.want_blob(names[number], sizes[number], prefer=[everybody[1].member])
                    times.append((time.monotonic() - began) * 1000)
                if times:
                    cuts = statistics.quantiles(times, n=20)
                    print(json.dumps({"donors": count, "blob": "64 KiB", "p50_ms": round(statistics.median(times), 1),
                                      "p95_ms": round(cuts[18], 1), "n": len(times)}))  # fmt: skip
        finally:
            for donor in donors:
                donor.end()


async def _fetch(me: Node, donors: list[Donor], name: Digest, size: int, profiled: bool) -> None:
    before, theirs = _cpu(), [d.cpu() for d in donors]
    profile = cProfile.Profile() if profiled else None
    if profile:
        profile.enable()
    began = time.monotonic()
    await me.sync.want_blob(name, size, max_bytes=size)
    seconds = time.monotonic() - began
    if profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    spent = [d.cpu() - b for d, b in zip(donors, theirs, strict=True)]
    line = {
        "donors": len(donors),
        "MiB": size >> 20,
        "seconds": round(seconds, 2),
        "MB_per_s": round(size / seconds / 1e6),
    }
    print(json.dumps({**line, "cpu_here": round(_cpu() - before, 2), "cpu_donors": round(sum(spent), 2)}), flush=True)
    me.blobs.remove(name)


def _trust(node: Node) -> None:
    """As the daemon wires it: whoever speaks for a member is none of the strangers."""
    node.swarm.guard.member_of = node.sync.member_of


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--donors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--small", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", type=int)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    if arguments.serve is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        asyncio.run(serve(arguments.folder, arguments.serve, arguments.sizes))
        return
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(arguments, Path(folder)))


if __name__ == "__main__":
    main()
