"""The network's own speed and cost: announcement to applied, two full cores, large blobs, an idle node, and a soak.

Nodes are processes made of the product's parts (`swarm_node.py`), on loopback, without trainer and engine; a contribution is a
signed blob of 64 KiB that every other node fetches, verifies, stores and checks. "Applied" ends at the cheap checks; losses are
not evaluated. `--soak 30` runs the steady load for half an hour and says whether memory, files and threads are flat.

    python benchmarks/bench_swarm.py [--quick] [--parts latency saturation blob idle daemon] [--soak MINUTES] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
import psutil
from swarm_fleet import Fleet, cost_of
from swarm_load import Load, drive, idle, ladder, prepare, quantile
from swarm_soak import Sample, slope, soak

from node.demo.nodes import DemoNode, free_ports
from protocol.errors import FishernetError

RATE = 5.0  # contributions a second in total, the rate of the targets
PARTS = ("latency", "saturation", "blob", "idle", "daemon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    nodes: int = 16
    runs: int = 3
    seconds: float = 30.0
    rates: tuple[float, ...] = (10, 15, 20, 25, 30, 35, 40, 50)
    step_s: float = 12.0
    blob_mb: tuple[int, ...] = (100, 300, 500)
    idle_s: float = 60.0


QUICK = Size(nodes=5, runs=1, seconds=8, rates=(10, 20), step_s=5, blob_mb=(50,), idle_s=8)


# -- load ------------------------------------------------------------------------------------------------------------
def latency(fleet: Fleet, size: Size) -> list[harness.Figure]:
    """At the rate of the targets, several runs; the median run's figures."""
    bytes_ = prepare(fleet)
    drive(fleet, RATE, min(8.0, size.seconds))  # every path once
    loads = [drive(fleet, RATE, size.seconds) for _ in range(size.runs)]
    show(f"{size.nodes} nodes, {RATE:g} contributions/s of {bytes_ / 1024:.0f} KiB", loads)
    mid = statistics.median
    share = [(100 * x.python / x.seconds / x.nodes, 100 * x.p2pd / x.seconds / x.nodes) for x in loads]
    return [
        harness.Figure(id="applied-p50", value=mid(x.at(0.5) for x in loads), unit="ms", floor=50, lower=True),
        harness.Figure(id="applied-p95", value=mid(x.at(0.95) for x in loads), unit="ms", floor=150, lower=True),
        harness.Figure(id="applied-max", value=max(x.at(1.0) for x in loads), unit="ms"),
        harness.Figure(id="announcing", value=mid(x.announcing for x in loads), unit="ms"),
        harness.Figure(id="cpu-python", value=mid(a for a, _ in share), unit="% of a core, a node"),
        harness.Figure(id="cpu-p2pd", value=mid(b for _, b in share), unit="% of a core, a node"),
        harness.Figure(id="cpu-applied", value=mid(x.each for x in loads), unit="ms a blob"),
        harness.Figure(id="cpu-driver", value=mid(100 * x.driver / x.seconds for x in loads), unit="% of a core"),
    ]


def saturation(fleet: Fleet, size: Size) -> list[harness.Figure]:
    """Raise the rate until applications take over a second for half of them."""
    prepare(fleet)
    loads = ladder(fleet, size.rates, size.step_s)
    show(f"{size.nodes} nodes, rate raised", loads)
    kept = [x for x in loads if x.at(0.5) <= 1000]
    best = max(loads, key=lambda x: x.rate)
    return [
        harness.Figure(id="full-rate", value=best.rate, unit="applied/s", aim=500),
        harness.Figure(id="full-cores", value=best.cores, unit="cores"),
        harness.Figure(id="full-offered", value=best.offered, unit="contributions/s"),
        harness.Figure(id="kept-rate", value=max((x.rate for x in kept), default=0.0), unit="applied/s, p50 < 1 s"),
        harness.Figure(id="full-cpu-applied", value=best.each, unit="ms a blob"),
    ]


def show(title: str, loads: Sequence[Load]) -> None:
    """A table of runs."""
    header = (
        "offered/s",
        "applied",
        "s",
        "applied/s",
        "entry p50",
        "p95",
        "p50 ms",
        "p95",
        "max",
        "cores",
        "python ms",
        "p2pd ms",
    )
    rows = [
        (
            f"{x.offered:g}",
            x.applied,
            *(f"{v:.1f}" for v in (x.seconds, x.rate)),
            *(
                f"{v:.1f}"
                for v in (quantile(x.entries, 0.5), quantile(x.entries, 0.95), x.at(0.5), x.at(0.95), x.at(1.0))
            ),
            *(f"{v:.2f}" for v in (x.cores, 1000 * x.python / x.applied, 1000 * x.p2pd / x.applied)),
        )
        for x in loads
    ]
    harness.table(title, header, rows)


# -- large blobs -----------------------------------------------------------------------------------------------------
def blob(size: Size) -> list[harness.Figure]:
    """A blob of noise from one node to another, verified and stored; the slowest size counts."""
    rates: list[float] = []
    peak = 0
    with Fleet(2) as fleet:
        giver, taker = fleet.nodes
        for megabytes in size.blob_mb:
            runs = []
            for run in range(size.runs):
                name = giver.ask("put", size=megabytes * 10**6, seed=megabytes + 1000 * run)
                taker.send("fetch", blob=name, size=megabytes * 10**6)
                runs.append(megabytes / taker.answer())
                peak = max(peak, cost_of(taker.pid).rss)
                giver.ask("drop", blob=name)
                taker.ask("drop", blob=name)
            print(f"{megabytes} MB: {', '.join(f'{r:.0f}' for r in runs)} MB/s")
            rates.append(statistics.median(runs))
    return [
        harness.Figure(id="blob-rate", value=min(rates), unit="MB/s", floor=100),
        harness.Figure(id="blob-rss", value=peak / 2**20, unit="MiB, python"),
    ]


# -- doing nothing ---------------------------------------------------------------------------------------------------
def idle_fleet(fleet: Fleet, size: Size) -> list[harness.Figure]:
    """Nodes that are connected to all others and have nothing to do."""
    time.sleep(5)
    states, (python, p2pd) = idle(fleet, size.idle_s)
    return [
        harness.Figure(id="idle-python", value=100 * python / size.nodes, unit="% of a core, a node"),
        harness.Figure(id="idle-p2pd", value=100 * p2pd / size.nodes, unit="% of a core, a node"),
        harness.Figure(
            id="idle-both", value=100 * (python + p2pd) / size.nodes, unit="% of a core, a node", floor=1, lower=True
        ),
        harness.Figure(id="idle-rss", value=_rss(states), unit="MiB, python + p2pd", floor=200, lower=True),
    ]


def _rss(states: Sequence[tuple[object, object]]) -> float:
    return max(getattr(a, "rss", 0) + getattr(b, "rss", 0) for a, b in states) / 2**20


def daemon(size: Size) -> list[harness.Figure]:
    """Three whole daemons (`fishernet up`) that do not train and were asked nothing: no model is loaded."""
    from contrib import models

    with tempfile.TemporaryDirectory(prefix="fn-idle-") as place:
        os.environ["FISHERNET_CACHE"] = f"{place}/cache"
        models.add("tiny", harness.cache())
        ports = free_ports(3)
        nodes = [DemoNode(name=f"n{n}", home=Path(place) / f"n{n}", port=port) for n, port in enumerate(ports)]
        for node in nodes:
            node.init("tiny", {"auto": "false"}, preload=False)
        first, *others = nodes
        members = [word for n in others for word in ("--member", f"{n.member}:{n.name}:contributor")]
        made = first.cli("collective", "create", "--name", "idle", *members)
        for node in others:
            node.cli("collective", "join", made["id"], first.address())
        try:
            for node in nodes:
                node.start()
            deadline = time.monotonic() + 120
            while not all(_up(node) for node in nodes):
                for node in nodes:
                    node.check_alive()
                if time.monotonic() > deadline:
                    raise TimeoutError("the daemons did not become ready")
                time.sleep(0.5)
            time.sleep(5)
            before = [_tree(node) for node in nodes]
            began = time.monotonic()
            time.sleep(size.idle_s)
            after, took = [_tree(node) for node in nodes], time.monotonic() - began
        finally:
            for node in nodes:
                node.stop()
    used = [100 * (y[0] - x[0]) / took for x, y in zip(before, after, strict=True)]
    return [
        harness.Figure(
            id="daemon-idle", value=statistics.mean(used), unit="% of a core, all its processes", floor=1, lower=True
        ),
        harness.Figure(
            id="daemon-rss",
            value=max(y[1] for y in after) / 2**20,
            unit="MiB, all its processes",
            floor=200,
            lower=True,
        ),
        harness.Figure(id="daemon-processes", value=max(y[2] for y in after)),
    ]


def _up(node: DemoNode) -> bool:
    try:
        return node.status()["ready"] is True
    except FishernetError:  # it does not listen yet
        return False


def _tree(node: DemoNode) -> tuple[float, int, int]:
    """CPU seconds and resident bytes of a daemon and all it started, and how many processes these are."""
    if node.process is None:
        raise RuntimeError("couldn't look at a daemon that does not run")
    whole = psutil.Process(node.process.pid)
    costs = [cost_of(p.pid) for p in (whole, *whole.children(recursive=True))]
    return sum(c.cpu for c in costs), sum(c.rss for c in costs), len(costs)


# -- for long --------------------------------------------------------------------------------------------------------
def soaked(size: Size, minutes: float) -> list[harness.Figure]:
    """The steady load for so long; what grew, and what a node holds that starts anew on the same ledger."""
    with Fleet(size.nodes) as fleet:
        prepare(fleet)
        samples, loads = soak(fleet, RATE, minutes)
        states = fleet.all("status")
        contributions = states[0]["contributions"]
        first = fleet.nodes[0]
        held = cost_of(first.pid).rss / 2**20
        first.stop()
        first.start()
        fleet.wait(
            lambda: fleet.settled() and states[0]["sizes"].keys() <= first.ask("status")["sizes"].keys(), 180, "restart"
        )
        first.p2pd = first.ask("status")["p2pd"]
        time.sleep(5)
        fresh = cost_of(first.pid).rss / 2**20
    return [*_flatness(samples), *_steady(loads), *_held(samples, contributions, held, fresh)]


def _flatness(samples: Sequence[Sample]) -> list[harness.Figure]:
    times = [s.at for s in samples]
    rows, figures = [], []
    for name in ("python", "p2pd", "files", "p2pd_files", "threads", "p2pd_threads", "tasks"):
        found = slope(times, [getattr(s, name) for s in samples])
        rows.append((name, found.level, found.hourly, found.least, found.most, found.share))
        given = {"aim": 0.05} if name in {"python", "p2pd"} else {"floor": 0.05}  # the ledger itself grows
        figures.append(harness.Figure(id=f"growth-{name}", value=found.share, unit="an hour", lower=True, **given))
    harness.table("growth an hour", ("what", "level", "an hour", "least", "most", "surely, share"), rows)
    return figures


def _steady(loads: Sequence[Load]) -> list[harness.Figure]:
    half = len(loads) // 2
    early, late = (statistics.median(x.at(0.5) for x in part) for part in (loads[:half], loads[half:]))
    return [
        harness.Figure(id="soak-p50", value=statistics.median(x.at(0.5) for x in loads), unit="ms"),
        harness.Figure(id="soak-p95", value=statistics.median(x.at(0.95) for x in loads), unit="ms"),
        harness.Figure(id="soak-cores", value=statistics.mean(x.cores for x in loads), unit="cores"),
        harness.Figure(id="soak-slower", value=late / early, unit="p50 of the second half / of the first"),
    ]


def _held(samples: Sequence[Sample], contributions: int, held: float, fresh: float) -> list[harness.Figure]:
    return [
        harness.Figure(id="soak-minutes", value=(samples[-1].at - samples[0].at) / 60, unit="min"),
        harness.Figure(id="soak-contributions", value=contributions),
        harness.Figure(id="soak-rss", value=held, unit="MiB, python, one node"),
        harness.Figure(id="soak-rss-restarted", value=fresh, unit="MiB, the same node started anew"),
    ]


def main() -> int:
    """Measure and report."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--quick", action="store_true", help="five nodes and seconds instead of minutes; for a look")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--soak", type=float, nargs="?", const=30.0, metavar="MINUTES", help="only this; default 30")
    chosen = parser.parse_args()
    size = QUICK if chosen.quick else Size()
    began = time.monotonic()
    figures: list[harness.Figure] = []
    if chosen.soak is not None:
        return harness.finish(soaked(size, chosen.soak), chosen, began=began)
    if {"latency", "saturation", "idle"} & set(chosen.parts):
        with Fleet(size.nodes) as fleet:
            print(f"{size.nodes} nodes were together after {time.monotonic() - began:.0f} s")
            if "idle" in chosen.parts:
                figures += idle_fleet(fleet, size)
            if "latency" in chosen.parts:
                figures += latency(fleet, size)
            if "saturation" in chosen.parts:
                figures += saturation(fleet, size)
    if "blob" in chosen.parts:
        figures += blob(size)
    if "daemon" in chosen.parts:
        figures += daemon(size)
    return harness.finish(figures, chosen, began=began)


if __name__ == "__main__":
    sys.exit(main())
