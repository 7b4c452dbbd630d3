"""The Trainer port over a `contrib.worker` process: one job at a time, a crash costs that job.

Knows no ledger and no peers. The process starts with the first job and loads the model itself after every restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from node.children import Child, Command, python
from node.ports import Trained, TrainJob
from protocol.canon import Json

_LIBRARIES = ("torch", "transformers", "peft", "numpy")
_CHOSEN = ("steps", "lr", "planned", "resumed", "trials", "untuned", "curve")
_JOB_TIMEOUT = 6 * 3600.0


class WorkerTrainer:
    """Trains and evaluates in a child process."""

    def __init__(
        self,
        *,
        threads: int = 1,
        length: int = 64,
        env: Mapping[str, str] | None = None,
        rows_key: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """Nothing starts before the first job; `load` says with which model. Losses are measured at `length` tokens.

        `rows_key` gives the data key of sealed rows; it travels in the line of a job (stdin of the worker) and nowhere else.
        """
        self._rows_key = rows_key
        self._load: dict[str, Any] | None = None
        self._length = length
        self._threads = threads
        command = Command(name="trainer", argv=python("contrib.worker"), env=env or {})
        self.child = Child(command, setup=lambda: [self._load] if self._load else [])

    @property
    def pid(self) -> int | None:
        """Process id of the worker while it runs."""
        return self.child.pid

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        """Use this base model and adapter shape from the next start of the worker on."""
        self._load = {"job": "load", "model": str(model), "spec": dict(spec), "threads": self._threads}
        if self.child.running:
            await self.child.request(self._load, timeout=_JOB_TIMEOUT)

    async def use(self, *, threads: int, length: int) -> None:
        """Train with so many threads, and measure at `length` tokens, from the next job on (raises ChildError kinds)."""
        self._length, changed = length, threads != self._threads
        self._threads = threads
        if changed and self._load is not None:
            self._load = {**self._load, "threads": threads}
            if self.child.running:
                await self.child.request(self._load, timeout=_JOB_TIMEOUT)

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        """Run one job (see the port)."""
        return trained(await self.child.request(line(job, self._key()), on_event, timeout=_JOB_TIMEOUT))

    async def libraries(self) -> Mapping[str, str]:
        """Versions of what computes the numbers, as installed here."""
        found = {}
        for name in _LIBRARIES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Json]]:
        """Held-out losses (see the port)."""
        done = await self.child.request(
            {
                "job": "evaluate",
                "rows": str(rows),
                "key": self._key(),
                "datasets": list(datasets),
                "permits": {name: dict(permit) for name, permit in permits.items()},
                "views": {name: str(path) if path else None for name, path in views.items()},
                "max_rows": max_rows,
                "length": self._length,
            },
            timeout=_JOB_TIMEOUT,
        )
        found: Mapping[str, Mapping[str, Json]] = done["views"]
        return found

    def _key(self) -> str | None:
        key = self._rows_key()
        return key.hex() if key else None

    async def stop(self) -> None:
        """End the worker; a running job is lost."""
        await self.child.stop()


def line(job: TrainJob, key: str | None) -> dict[str, Any]:
    """The job as `contrib.worker` reads it; `key` opens sealed rows."""
    return {
        "job": "train",
        "rows": str(job.rows),
        "key": key,
        "datasets": list(job.datasets),
        "permits": {name: dict(permit) for name, permit in job.permits.items()},
        "view": str(job.view) if job.view else None,
        "settings": dict(job.settings),
        "tuning": dict(job.tuning) if job.tuning is not None else None,
        "moments": str(job.moments) if job.moments else None,
        "out": str(job.out),
    }


def trained(done: Mapping[str, Any]) -> Trained:
    """What the event "done" of such a job says."""
    return Trained(
        theta=Path(str(done["theta"])),
        fisher=Path(str(done["fisher"])),
        tokens=int(done["tokens"]),
        seconds=float(done["seconds"]),
        moments=Path(str(done["moments"])),
        chosen={key: done[key] for key in _CHOSEN},
    )
