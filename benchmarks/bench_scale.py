"""What one node pays as its collective grows: on the network, in memory and in processor time.

Swarm: the node's own sync in simulated time (as `fishernet simulate configs/simulation-swarm.toml`), as the node chooses its
neighbours, on a ring and in a full mesh. Bytes, messages, hops and simulated seconds are functions of the seed; processor time is
this process's, the simulated links included, without the signatures that are verified once for all nodes.

Ledger: the real fold and access book of one member through releases of N members, every entry naming 64 feeds: entries and
bytes of a release, size of the cut, processor time of an entry, and what stays in memory of each release (tracemalloc) when the
records are left out.

    python benchmarks/bench_scale.py [--swarm N ...] [--ring N ...] [--full N ...] [--ledger N ...] [--json FILE]
    python benchmarks/bench_scale.py --report swarm/simulation.json    (swarms that `fishernet simulate` ran)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for folder in (ROOT, ROOT / "tests" / "support"):
    sys.path.insert(0, str(folder))

from crowd import Crowd  # noqa: E402
from harness import Figure, finish, options, table  # noqa: E402

from node.simulation import spread  # noqa: E402
from node.simulation.spread_config import SpreadConfig, load  # noqa: E402
from protocol.canon import encode  # noqa: E402

CONFIG = ROOT / "configs" / "simulation-swarm.toml"
RELEASES = 2


def main() -> int:
    began = time.monotonic()
    parser = options(__doc__ or "")
    parser.add_argument("--swarm", type=int, nargs="*", default=[16, 64, 256, 1000], metavar="N")
    parser.add_argument("--ring", type=int, nargs="*", default=[16, 64, 256], metavar="N")
    parser.add_argument("--full", type=int, nargs="*", default=[16, 64], metavar="N")
    parser.add_argument("--ledger", type=int, nargs="*", default=[64, 128, 256, 512], metavar="N")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="take the swarms from this report instead of running them"
    )
    chosen = parser.parse_args()
    figures = [*swarm(chosen), *ledger(chosen.ledger)]
    return finish(figures, chosen, began=began)


def swarm(chosen: argparse.Namespace) -> list[Figure]:
    """The simulated swarms, one row each."""
    wanted = (("neighbours", chosen.swarm), ("ring", chosen.ring), ("full", chosen.full))
    if chosen.report is not None:
        made = [json.loads(chosen.report.read_text())]
    else:
        made = [spread.simulate(_config(topology, sizes)) for topology, sizes in wanted if sizes]
    rows, ours = [], {}
    for report in made:
        burst = report["config"]["swarm"]["burst"]
        for one, cost in zip(report["swarms"], report["cost"]["swarms"], strict=True):
            phase, idle = one["burst"], one["idle"]
            entry = phase["spent"]["bytes_per_node"] / burst
            rest = idle["bytes_per_node"] / idle["seconds"]
            rows.append(
                (
                    f"{one['topology']} {one['members']}",
                    one["connections"]["mean"],
                    phase["announcement_hops"]["mean"],
                    phase["theory"]["hops_mean"],
                    phase["page_hops"]["mean"],
                    one["one"]["seconds"]["all"],
                    phase["seconds"]["p95"],
                    entry,
                    phase["spent"]["bytes_by_kind"].get("/fishernet/feed/1", 0.0) / burst
                    + phase["spent"]["bytes_by_kind"].get("/fishernet/feed/2", 0.0) / burst,
                    rest,
                    cost["cpu_us_per_node"]["burst"] / burst,
                    cost["cpu_us_per_node"]["idle"] / idle["seconds"],
                    (one["after"]["bytes_per_node"] / one["after"]["seconds"] - rest) * idle["seconds"] / burst,
                    one["join"]["seconds"],
                    sum(one["join"]["bytes_got"].values()) / 1e3,
                    cost["sync_kb_per_node"],
                    cost["cpu_s"],
                    cost["peak_mb"],
                )
            )
            if one["topology"] == "neighbours":
                ours[one["members"]] = (entry, rest)
    names = ("swarm", "links", "hops", "theory", "page hops", "one entry s", "burst p95 s", "B/entry", "pulled B/entry")
    more = ("idle B/s", "CPU us/entry", "idle CPU us/s", "told later B/entry", "join s", "join kB", "memory kB")
    table("swarm, per node", (*names, *more, "run CPU s", "peak MB"), rows)
    if len(ours) < 2:
        return []
    small, large = min(ours), max(ours)
    return [
        Figure(
            id=f"bytes of an entry, {large} to {small} members",
            value=ours[large][0] / ours[small][0],
            floor=4.0,
            lower=True,
        ),
        Figure(
            id=f"idle bytes, {large} to {small} members", value=ours[large][1] / ours[small][1], floor=2.0, lower=True
        ),
    ]


def _config(topology: str, sizes: list[int]) -> SpreadConfig:
    whole = load(CONFIG).model_dump()
    most = {"full_up_to": max(sizes), "ring_up_to": max(sizes)}
    return SpreadConfig.model_validate(
        {**whole, "swarm": {**whole["swarm"], "topologies": [topology], "sizes": sizes, **most}}
    )


def ledger(sizes: list[int]) -> list[Figure]:
    """What a release of n members leaves with each of them."""
    rows, figures = [], list[Figure]()
    for count in sizes:
        quick = Crowd(count)
        quick.found()
        cut = [quick.release() for _ in range(RELEASES)][-1]
        before = Crowd(count)
        before.found()
        tracemalloc.start()
        kept = []
        for _ in range(RELEASES):
            at = tracemalloc.get_traced_memory()[0]
            before.release()
            kept.append((tracemalloc.get_traced_memory()[0] - at) / 1e6)
        tracemalloc.stop()
        each = quick.seconds / quick.entries * 1e6
        rows.append(
            (
                str(count),
                quick.entries // RELEASES,
                quick.bytes / RELEASES / 1e6,
                len(encode(cut.to_json(), max_bytes=1 << 30)) / 1e3,
                each,
                kept[0],
                kept[-1],
            )
        )
        figures.append(
            Figure(
                id=f"memory of a release, {count} members",
                value=kept[-1] * 1e3 / count,
                unit="kB a member",
                floor=64.0,
                lower=True,
            )
        )
    names = ("members", "entries/release", "MB/release", "cut kB", "CPU us/entry", "first MB", "next MB")
    table("ledger, one member's fold and book", names, rows)
    return figures


if __name__ == "__main__":
    sys.exit(main())
