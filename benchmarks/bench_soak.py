"""Soak: the engine at full load for minutes, with versions coming and going, clients giving up, and deadlines.

Every whole greedy answer is compared with the answer that its version gave alone, and the digest of what answered with the one
that was asked for. Figures: lost requests and wrong answers (none may be), growth of the memory of engine and node from the
second to the last fifth of the time, what the engine holds when all is over, tokens a second.

    python benchmarks/bench_soak.py --minutes 10 --clients 32
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

from contrib.adapters import AdapterSpec, layout
from contrib.merging import model_digest
from node.errors_serving import Busy, UnknownModel
from node.ports import Piece, Sampling, ServedModel, Usage
from node.serving.models import Load, Serving
from protocol.ids import Digest

SPEC: dict[str, Any] = {"rank": 8, "alpha": 16, "targets": ["all-linear"], "seed": "5e" * 32}
PROMPTS = ("The people of the United States", "We hold these truths", "A", "In Congress assembled, " * 8)
TOKENS = 24
CHURN = 0.3  # s between two changes of what is served


@dataclass(kw_only=True)
class Tally:
    """What has become of the requests, and the memory of the two processes in MiB at each second."""

    counts: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    memory: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Soak:
    """One serving, its versions, and the clients that ask."""

    def __init__(self, serving: Serving, vectors: list[tuple[Path, Digest]]) -> None:
        self.serving, self.vectors = serving, vectors
        self.tally = Tally()
        self._alone: dict[tuple[str, str], str] = {}
        self._random = random.Random(7)
        self._height = 0

    async def prepare(self) -> None:
        """Serve every version once, alone: what each must answer ever after."""
        for path, digest in self.vectors:
            await self._serve(path, digest)
        for model in self.serving.models():
            for prompt in PROMPTS:
                self._alone[_content(model), prompt] = await self._whole(model, prompt)

    async def run(self, seconds: float, clients: int) -> Tally:
        """All clients at once until the time is up; then everything must have ended."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._churn(until))
            group.create_task(self._watch(until))
            for number in range(clients):
                group.create_task(self._client(number, until))
        return self.tally

    async def _client(self, number: int, until: float) -> None:
        while time.monotonic() < until:
            kind = self._random.choices(("whole", "gone", "late", "drawn", "embed"), (80, 7, 5, 5, 3))[0]
            self.tally.counts["asked"] += 1
            try:
                await self._ask(kind, f"organisation-{number % 4}")
                self.tally.counts[kind] += 1
            except Busy as e:
                self.tally.counts["busy"] += 1
                await asyncio.sleep(e.retry_after)
            except UnknownModel:
                self.tally.counts["unknown"] += 1  # dropped between choosing and asking
            except Exception as e:  # noqa: BLE001  (a lost request is what we look for)
                self.tally.counts["lost"] += 1
                self.tally.faults.append(f"{kind}: {type(e).__name__}: {e}")

    async def _ask(self, kind: str, tenant: str) -> None:
        model = self.serving.find(self._random.choice(self.serving.models()).name)
        prompt = self._random.choice(PROMPTS)
        if kind == "whole":
            text = await self._whole(model, prompt, tenant)
            if text != self._alone[_content(model), prompt]:
                self.tally.counts["wrong"] += 1
                self.tally.faults.append(f"wrong: {model.name} said {text!r}")
        elif kind == "embed":
            vectors, _ = await self.serving.embed([prompt])
            if abs(float(np.linalg.norm(vectors[0])) - 1) > 1e-3:
                self.tally.counts["wrong"] += 1
        else:
            sampling = Sampling(max_tokens=200, temperature=1.0, seed=self._random.randrange(4), n=2)
            deadline = 0.3 if kind == "late" else None
            parts = self.serving.generate(model, prompt, sampling, tenant=tenant, deadline=deadline)
            async with aclosing(parts):
                async for _ in parts:
                    if kind == "gone":
                        break

    async def _whole(self, model: ServedModel, prompt: str, tenant: str = "") -> str:
        said: list[str] = []
        parts = self.serving.generate(model, prompt, Sampling(max_tokens=TOKENS), tenant=tenant)
        async with aclosing(parts):
            async for part in parts:
                if isinstance(part, Piece):
                    said.append(part.text)
                elif isinstance(part, Usage):
                    self.tally.tokens += part.completion_tokens
        return "".join(said)

    async def _churn(self, until: float) -> None:
        """New releases come, old ones go, as they do where members contribute."""
        while time.monotonic() < until:
            await asyncio.sleep(CHURN)
            releases = [model for model in self.serving.models() if model.height is not None]
            self.serving.drop_release(min(model.height or 0 for model in releases))
            await self._serve(*self._random.choice(self.vectors))
            self.tally.counts["flips"] += 1

    async def _serve(self, path: Path, digest: Digest) -> None:
        self._height += 1
        await self.serving.set_release(self._height, Digest(f"{self._height:064x}"), path, model=digest)

    async def _watch(self, until: float) -> None:
        own = psutil.Process()
        while time.monotonic() < until:
            await asyncio.sleep(1)
            with contextlib.suppress(psutil.Error):
                engine = psutil.Process(self.serving.child.pid or 0)
                self.tally.memory.append((own.memory_info().rss + engine.memory_info().rss) / 2**20)


def _content(model: ServedModel) -> str:
    return model.model or model.digest


def growth(memory: list[float]) -> float:
    """Last fifth over second fifth, by medians, minus 1."""
    fifth = max(1, len(memory) // 5)
    return statistics.median(memory[-fifth:]) / statistics.median(memory[fifth : 2 * fifth]) - 1


async def soak(folder: Path, base: Digest, *, seconds: float, clients: int, versions: int) -> tuple[Tally, Any]:
    """Run it; returns the tally and the engine's own numbers once all is over."""
    with tempfile.TemporaryDirectory() as place:
        count = layout(folder, AdapterSpec.parse(SPEC)).coordinates
        vectors = []
        for seed in range(versions):
            values = np.random.default_rng(seed).normal(0, 0.05, count).astype(np.float32)
            path = Path(place) / f"{seed}.npy"
            np.save(path, values)
            vectors.append((path, Digest(model_digest(values))))
        load = Load(threads=1, rows=16, max_active=max(2, versions // 2), cycle=0.5, ram=256)
        serving = Serving(model=folder, base=base, adapter={**SPEC, "coordinates": count}, load=load)
        try:
            run = Soak(serving, vectors)
            await run.prepare()
            tally = await run.run(seconds, clients)
            await asyncio.sleep(0.5)
            return tally, await serving.stats()
        finally:
            await serving.stop()


def figures(tally: Tally, stats: Any, seconds: float) -> list[harness.Figure]:
    """What the soak has shown."""
    counts = tally.counts
    held = stats["rows_busy"] + stats["requests_running"] + stats["requests_waiting"]
    return [
        harness.Figure(id="asked", value=counts["asked"], unit="requests"),
        harness.Figure(id="lost", value=counts["lost"], unit="requests", floor=0, lower=True),
        harness.Figure(id="wrong", value=counts["wrong"], unit="answers", floor=0, lower=True),
        harness.Figure(id="left behind", value=held, unit="rows, requests", floor=0, lower=True),
        harness.Figure(id="memory growth", value=growth(tally.memory), floor=0.05, aim=0.01, lower=True),
        harness.Figure(id="memory", value=tally.memory[-1], unit="MiB"),
        harness.Figure(id="version flips", value=counts["flips"]),
        harness.Figure(id="swap-ins", value=stats["swap_ins"]),
        harness.Figure(id="tokens", value=(stats["tokens_decode"]) / seconds, unit="1/s"),
    ]


def main() -> int:
    """Run and report."""
    parser = harness.options(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--versions", type=int, default=24)
    parser.add_argument("--model", default="tiny", help="tiny, or a model of the cache")
    chosen = parser.parse_args()
    began = time.monotonic()
    folder, base = harness.base_model(chosen.model)
    seconds = 60 * chosen.minutes
    running = soak(folder, base, seconds=seconds, clients=chosen.clients, versions=chosen.versions)
    tally, stats = asyncio.run(running)
    print(dict(tally.counts), *tally.faults[:10], sep="\n")
    return harness.finish(figures(tally, stats, seconds), chosen, began=began)


if __name__ == "__main__":
    sys.exit(main())
