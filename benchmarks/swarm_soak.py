"""Is it flat? Memory, open files and threads of a fleet under steady load, and what a line through them says.

What a node must hold grows with the ledger, so at the end one node is started again on what it holds: memory beyond that of the
restarted one, growing, is a leak. Slopes are least squares over means of blocks, so that the samples' dependence on one another
does not make them look surer than they are. Knows nothing of the nodes but their costs.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from swarm_fleet import Fleet
from swarm_load import Load, drive

BLOCKS = 12
_T = {10: 2.228, 9: 2.262, 8: 2.306, 7: 2.365, 6: 2.447, 5: 2.571, 4: 2.776, 3: 3.182, 2: 4.303, 1: 12.706}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Means over all nodes at one moment (s): resident MiB and counts of both processes."""

    at: float
    python: float
    p2pd: float
    files: float
    p2pd_files: float
    threads: float
    p2pd_threads: float
    tasks: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Growth an hour with its 95 % interval, and the level it starts from."""

    level: float
    hourly: float
    least: float
    most: float

    @property
    def share(self) -> float:
        """What surely grows in an hour, as a part of the level; 0 when the interval holds zero."""
        if self.least <= 0 <= self.most:
            return 0.0
        return (self.least if self.least > 0 else self.most) / max(self.level, 1e-9)


def slope(times: Sequence[float], values: Sequence[float], *, warm_up: float = 0.3) -> Slope:
    """Fit a line to the means of `BLOCKS` blocks of what comes after the warm-up (a part of the samples)."""
    start = int(len(times) * warm_up)
    times, values = times[start:], values[start:]
    blocks = min(BLOCKS, len(times))
    if blocks < 3:
        raise ValueError(f"couldn't fit a slope to {len(times)} samples")
    edges = [round(k * len(times) / blocks) for k in range(blocks + 1)]
    x = [statistics.mean(times[a:b]) / 3600 for a, b in itertools.pairwise(edges)]
    y = [statistics.mean(values[a:b]) for a, b in itertools.pairwise(edges)]
    middle = statistics.mean(x)
    spread = sum((each - middle) ** 2 for each in x)
    fit = statistics.linear_regression(x, y)
    rest = sum((b - fit.intercept - fit.slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = _T[blocks - 2] * math.sqrt(rest / (blocks - 2) / spread)
    return Slope(level=y[0], hourly=fit.slope, least=fit.slope - error, most=fit.slope + error)


def soak(fleet: Fleet, rate: float, minutes: float, *, every_s: float = 20.0) -> tuple[list[Sample], list[Load]]:
    """Load at `rate` contributions a second for so long; one sample and one load's figures every `every_s`."""
    samples, loads = [sample(fleet)], list[Load]()
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes:
        loads.append(drive(fleet, rate, every_s))
        samples.append(sample(fleet))
        last, load = samples[-1], loads[-1]
        print(
            f"{(last.at - samples[0].at) / 60:5.1f} min  python {last.python:.1f} MiB {last.files:.1f} files "
            f"{last.threads:.1f} threads {last.tasks:.1f} tasks  p2pd {last.p2pd:.1f} MiB {last.p2pd_files:.1f} files  "
            f"p50 {load.at(0.5):.0f} p95 {load.at(0.95):.0f} ms  {load.cores:.2f} cores",
            flush=True,
        )
    return samples, loads


def sample(fleet: Fleet) -> Sample:
    """Look at every node."""
    states, costs = fleet.all("status"), fleet.costs()
    of = [(python, p2pd) for python, p2pd in costs]
    return Sample(
        at=time.monotonic(),
        python=statistics.mean(x.rss for x, _ in of) / 2**20,
        p2pd=statistics.mean(y.rss for _, y in of) / 2**20,
        files=statistics.mean(x.files for x, _ in of),
        p2pd_files=statistics.mean(y.files for _, y in of),
        threads=statistics.mean(x.threads for x, _ in of),
        p2pd_threads=statistics.mean(y.threads for _, y in of),
        tasks=statistics.mean(s["tasks"] for s in states),
    )
