"""A trainer that reads rows as the worker does, by permits, and learns plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contrib import permit as permits
from contrib.rows import RowStore
from node.ports import Trained, TrainJob
from protocol.canon import Json

COORDINATES = 64


class Pupil:
    """Remembers what it was shown and asked. Each run adds `step` to every coordinate of the view, and says `chosen` of how."""

    def __init__(self, step: float = 0.5) -> None:
        self.step = step
        self.jobs: list[TrainJob] = []
        self.chosen: dict[str, Any] = {}
        self.trained: list[list[str]] = []
        self.measured: list[list[str]] = []
        self.on_train: Callable[[], None] = lambda: None

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        raise NotImplementedError

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        self.jobs.append(job)
        self.trained.append(_shown(job.rows, job.datasets, job.permits, "train"))
        assert job.view is not None
        job.out.mkdir(parents=True, exist_ok=True)
        theta, fisher = job.out / "theta.npy", job.out / "fisher.npy"
        np.save(theta, np.load(job.view) + np.float32(self.step))
        np.save(fisher, np.arange(1, COORDINATES + 1, dtype=np.float32))
        on_event({"event": "step", "step": 1})
        self.on_train()
        moments = job.out / "moments.npy"
        np.save(moments, np.ones(2 * COORDINATES + 1, np.float32))
        return Trained(theta=theta, fisher=fisher, tokens=10, seconds=0.1, moments=moments, chosen=self.chosen)

    async def libraries(self) -> Mapping[str, str]:
        return {"numpy": "2"}

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Any]]:
        self.measured.append(_shown(rows, datasets, permits, "held_out"))
        number = len(self.measured[-1])
        return {name: {"nats": 4.0, "tokens": 9, "rows": number, "accuracy": None} for name in views}


def _shown(rows: Path, datasets: Sequence[str], given: Mapping[str, Any], part: Any) -> list[str]:
    found = []
    with RowStore.open(rows, read_only=True) as store:
        for name in datasets:
            shown = store.rows(name, part, permit=permits.parse(dict(given[name])) if name in given else None)
            found += [row.text or f"{row.prompt}|{row.completion}" for row in shown]
    return found
