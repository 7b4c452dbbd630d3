"""Held-out losses of models on our own rows, each model measured once.

Knows no votes and no peers. Losses stay in this process: what leaves is `difference`, clipped and in buckets of 0.01 nats.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ledger.events import MAX_LOSS
from node.files import write_new
from node.home import Home
from node.ports import Trainer
from node.replay import Model, Vector
from protocol.ids import Digest

_KEPT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Mean held-out loss of one model: nats a token, over how many rows; accuracy where answers are labels."""

    nats: float
    rows: int
    accuracy: float | None


def difference(loss: Loss | None, other: Loss | None) -> int | None:
    """`loss` minus `other` in 0.01 nats, rounded and clipped to +-10 nats."""
    if loss is None or other is None:
        return None
    return max(-MAX_LOSS, min(MAX_LOSS, round((loss.nats - other.nats) * 100)))


class Scales:
    """Measures vectors through the trainer and remembers what it measured."""

    def __init__(self, home: Home, trainer: Trainer, datasets: Sequence[str], max_rows: int) -> None:
        self._home = home
        self._trainer = trainer
        self._datasets = tuple(datasets)
        self._max_rows = max_rows
        self._known: dict[tuple[str, tuple[str, ...]], Loss] = {}
        self._lock = asyncio.Lock()

    def use(self, datasets: Sequence[str]) -> None:
        """Measure on the held-out parts of these data sets from now on."""
        self._datasets = tuple(datasets)

    @property
    def active(self) -> bool:
        """Whether there are held-out rows to measure on."""
        return bool(self._datasets)

    def known(self, model: Digest | None) -> Loss | None:
        """A loss measured before; None is the bare base."""
        return self._known.get((model or "base", self._datasets))

    async def losses(self, models: Mapping[str, Model | None]) -> dict[str, Loss]:
        """The loss of each named model (None: the bare base); empty without data sets.

        Raises:
            ChildError kinds: the trainer was lost or refused.
        """
        if not self._datasets:
            return {}
        async with self._lock:
            wanted = {
                name: model for name, model in models.items() if self.known(model.digest if model else None) is None
            }
            if wanted:
                views = {
                    name: await asyncio.to_thread(save_view, self._home, model) if model else None
                    for name, model in wanted.items()
                }
                found = await self._trainer.evaluate(
                    rows=self._home.rows_db, datasets=self._datasets, views=views, max_rows=self._max_rows
                )
                for name, model in wanted.items():
                    self._remember(model.digest if model else None, found[name])
        return {name: loss for name, model in models.items() if (loss := self.known(model.digest if model else None))}

    def _remember(self, model: Digest | None, found: Mapping[str, object]) -> None:
        if len(self._known) >= _KEPT:
            self._known.pop(next(iter(self._known)))
        accuracy = found.get("accuracy")
        self._known[(model or "base", self._datasets)] = Loss(
            nats=_number(found["nats"]),
            rows=int(_number(found["rows"])),
            accuracy=None if accuracy is None else _number(accuracy),
        )


def save_view(home: Home, model: Model) -> Path:
    """Keep a merged vector as `views/<digest>.npy` (temporary name, fsync, rename) and return where it lies."""
    path = home.view_file(model.digest)
    if not path.exists():
        save_vector(path, model.vector)
    return path


def save_vector(path: Path, vector: Vector) -> None:
    """Write a float32 vector as .npy in one step."""
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    write_new(path, buffer.getvalue())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the trainer answered {value!r} where a number is expected")
    return float(value)
