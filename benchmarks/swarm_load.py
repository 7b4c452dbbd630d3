"""Load on a fleet and what came of it: contributions at a fixed rate, from announcement to applied at every other node.

Each contribution has its moment, spread evenly over all nodes and kept whatever happens (an open loop): a node that falls
behind shows as latency, not as a lower load. The blobs carry one update a node that was made before, so that making them
costs a signature and a digest. Law: a run counts only when everything that was published was applied everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
from swarm_fleet import BLOB, Cost, Fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One run: what was offered, how long each application took (ms, ascending), and what it cost (CPU seconds)."""

    offered: float  # contributions a second, all nodes together
    seconds: float  # from the first moment until the last one was applied
    published: int
    latencies: Sequence[float]
    announcing: float  # ms from an entry's being durable until the announcement was handed over, median
    entries: Sequence[float]  # ms from the announcement until the entry was stored, ascending: the rest is the blob
    python: float
    p2pd: float
    driver: float
    nodes: int

    @property
    def applied(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Applied blobs a second, over all nodes."""
        return self.applied / self.seconds

    @property
    def cores(self) -> float:
        """Cores in use by the fleet, on average."""
        return (self.python + self.p2pd) / self.seconds

    @property
    def each(self) -> float:
        """CPU milliseconds of all processes for one applied blob."""
        return 1000 * (self.python + self.p2pd) / self.applied

    def at(self, share: float) -> float:
        """The latency that this share of the applications did not exceed."""
        return quantile(self.latencies, share)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value that this share of them did not exceed."""
    return ascending[round(share * (len(ascending) - 1))]


def prepare(fleet: Fleet, size: int = BLOB) -> int:
    """Let every node make its update; the mean size of a blob."""
    made = fleet.all("prepare", size=size)
    return int(sum(each["bytes"] for each in made) / len(made))


def drive(fleet: Fleet, rate: float, seconds: float, *, limit_s: float = 120.0) -> Load:
    """Publish at `rate` contributions a second for so long, and wait until all of them are applied everywhere.

    Raises:
        TimeoutError: not within `limit_s` after the last one.
        RuntimeError: a contribution was refused, or applied twice or never.
    """
    nodes, driver = fleet.nodes, psutil.Process()
    every = len(nodes) / rate
    count = max(1, round(seconds / every))
    before = sum(s["contributions"] for s in fleet.all("status"))
    fleet.all("take")
    costs, own = fleet.costs(), sum(driver.cpu_times()[:2])
    first = time.monotonic() + 0.3
    for turn, node in enumerate(nodes):
        node.ask("publish", first=first + turn * every / len(nodes), every=every, count=count)
    time.sleep(0.3 + count * every)
    whole = before + count * len(nodes) ** 2

    def all_applied() -> bool:
        return sum(s["contributions"] for s in fleet.all("status")) >= whole and fleet.settled()

    fleet.wait(all_applied, limit_s, "everything that was published is applied everywhere")
    after, spent = fleet.costs(), sum(driver.cpu_times()[:2]) - own
    told = fleet.all("take")
    if refused := [code for each in told for code in each["refused"]]:
        raise RuntimeError(f"{len(refused)} contributions were refused: {set(refused)}")
    published = {name: (due, announced, done) for each in told for name, due, announced, done in each["published"]}
    applied = [(name, stored, at) for each in told for name, stored, at in each["applied"]]
    if len(applied) != len(published) * (len(nodes) - 1):
        raise RuntimeError(f"{len(published)} contributions were applied {len(applied)} times by {len(nodes)} nodes")
    waits = sorted(1000 * (done - announced) for _, announced, done in published.values())
    return Load(
        offered=rate,
        seconds=max(at for _, _, at in applied) - first,
        published=len(published),
        latencies=sorted(1000 * (at - published[name][1]) for name, _, at in applied),
        entries=sorted(1000 * (stored - published[name][1]) for name, stored, _ in applied),
        announcing=waits[len(waits) // 2],
        python=_used(costs, after, 0),
        p2pd=_used(costs, after, 1),
        driver=spent,
        nodes=len(nodes),
    )


def ladder(fleet: Fleet, rates: Sequence[float], seconds: float) -> list[Load]:
    """One load after the other, until one is not kept up with: applications take over a second for half of them."""
    done: list[Load] = []
    for rate in rates:
        done.append(drive(fleet, rate, seconds, limit_s=180))
        if done[-1].at(0.5) > 1000:
            break
    return done


def idle(fleet: Fleet, seconds: float) -> tuple[list[tuple[Cost, Cost]], tuple[float, float]]:
    """Do nothing for so long: each node's state at the end, and the cores used by all Python processes and all p2pd."""
    before = fleet.costs()
    began = time.monotonic()
    time.sleep(seconds)
    after, took = fleet.costs(), time.monotonic() - began
    return after, (_used(before, after, 0) / took, _used(before, after, 1) / took)


def _used(before: Sequence[tuple[Cost, Cost]], after: Sequence[tuple[Cost, Cost]], which: int) -> float:
    return sum(y[which].cpu - x[which].cpu for x, y in zip(before, after, strict=True))
