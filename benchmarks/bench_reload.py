"""Reload: the base model changes while streams are written. Figures: failed requests, and the longest gap between two tokens.

The same folder is loaded under another digest, so that what is measured is the change alone: reading and packing the weights
beside the ones in use, a first prompt and token on them, the flip between two steps. Gaps are those that a client sees, as
ratios to the median gap of the same streams before the reload; several rounds, the median of the rounds counts.

    python benchmarks/bench_reload.py --model smollm2-135m
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from contextlib import aclosing
from pathlib import Path

import harness

from contrib.adapters import AdapterSpec, layout
from node.ports import Piece, Sampling
from node.serving.models import Load, Serving
from protocol.ids import Digest

SPEC = {"rank": 8, "alpha": 16, "targets": ["all-linear"], "seed": "5e" * 32}
STREAMS = 8
BEFORE = 8.0  # s of streaming before each reload: about as long as it takes


class Streams:
    """Clients that always have an answer being written, and when its tokens came."""

    def __init__(self, serving: Serving) -> None:
        self.serving, self.failed, self.done = serving, 0, 0
        self.times: list[list[float]] = []
        self.over = False

    async def write(self) -> None:
        """One client: one answer after another until `over`."""
        while not self.over:
            times: list[float] = []
            self.times.append(times)
            asked = Sampling(max_tokens=120, temperature=1.0)
            try:
                model = self.serving.find("base")
                async with aclosing(self.serving.generate(model, "The people of the United", asked)) as parts:
                    async for part in parts:
                        if isinstance(part, Piece):
                            times.append(time.monotonic())
                self.done += 1
            except Exception as e:  # noqa: BLE001  (a failed request is what we count)
                print(f"failed: {e}")
                self.failed += 1

    def gaps(self, since: float, until: float) -> list[float]:
        """Seconds between two tokens of one answer, of those that ended in this time."""
        pairs = [pair for times in self.times for pair in itertools.pairwise(times)]
        return [late - early for early, late in pairs if since <= late <= until]


async def measure(serving: Serving, folder: Path, adapter: dict[str, object], rounds: int) -> list[list[float]]:
    """A row per reload: longest gap / median, the same before it, seconds, median gap in ms; then failed and answered."""
    streams = Streams(serving)
    async with asyncio.TaskGroup() as group:
        for _ in range(STREAMS):
            group.create_task(streams.write())
        rows = []
        await asyncio.sleep(BEFORE)
        for number in range(rounds):
            began = time.monotonic()
            await asyncio.sleep(BEFORE)
            since = time.monotonic()
            await serving.set_base(model=folder, base=Digest(f"{number + 1:064x}"), adapter=adapter)
            until = time.monotonic()
            median = statistics.median(streams.gaps(began, since))
            control = max(streams.gaps(began, since)) / median
            rows.append([max(streams.gaps(since, until + 0.2)) / median, control, until - since, 1000 * median])
            await asyncio.sleep(11)  # the old base is gone
        streams.over = True
    return [*rows, [streams.failed, streams.done]]


async def run(folder: Path, base: Digest, rounds: int, threads: int) -> list[list[float]]:
    """Start the engine, measure, stop it."""
    adapter = {**SPEC, "coordinates": layout(folder, AdapterSpec.parse(SPEC)).coordinates}
    load = Load(threads=threads, rows=STREAMS, dtype="bfloat16", context=1024)
    serving = Serving(model=folder, base=base, adapter=adapter, load=load)
    try:
        await serving.start(preload=True)
        return await measure(serving, folder, adapter, rounds)
    finally:
        await serving.stop()


def main() -> int:
    """Measure and report."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--model", default="smollm2-135m", help="tiny, or a model of the cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    began = time.monotonic()
    folder, base = harness.base_model(chosen.model)
    *rows, (failed, done) = asyncio.run(run(folder, base, chosen.rounds, chosen.threads))
    harness.table("reloads", ("longest gap / median", "without reload", "seconds", "median gap, ms"), rows)
    gap = statistics.median(row[0] for row in rows)
    return harness.finish(
        [
            harness.Figure(id="failed", value=failed, unit="requests", floor=0, lower=True),
            harness.Figure(id="answered", value=done, unit="requests"),
            harness.Figure(id="longest gap / median gap", value=gap, floor=3.0, aim=1.5, lower=True),
            harness.Figure(id="the same without a reload", value=statistics.median(row[1] for row in rows)),
            harness.Figure(id="reload", value=statistics.median(row[2] for row in rows), unit="s"),
        ],
        chosen,
        began=began,
    )


if __name__ == "__main__":
    sys.exit(main())
