"""Held-out losses of models on our own rows, each model measured once.

Knows no votes and no peers. Rows are read by permits alone: a data set whose measuring is refused counts as not there.
Losses stay in this process: what leaves is `difference`, clipped and in buckets of 0.01 nats.
Invariant: a loss is finite; one that is not counts as `WORST`, so that who sent such a model is named like any other.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from ledger.events import MAX_LOSS
from node.collective.replay import Model, Vector
from node.errors import JobRefused
from node.files import room, write_new
from node.home import Home
from node.ports import Trainer
from protocol.canon import Json
from protocol.ids import Digest

WORST: Final = 10_000.0  # nats; the most that a card can say
_KEPT = 256
Permit = Callable[[Sequence[str]], Mapping[str, Mapping[str, Json]]]  # of `node.data.permits.Permits.evaluate`
_DIVERGED = "diverged"  # the worker's word for a loss that is not finite


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

    def __init__(
        self, home: Home, trainer: Trainer, datasets: Sequence[str], max_rows: int, *, permits: Permit
    ) -> None:
        """Measure on `datasets`, as far as `permits` gives a permit for them each time."""
        self._home = home
        self._trainer = trainer
        self._datasets = tuple(datasets)
        self._permitted: tuple[str, ...] | None = None
        self._permits = permits
        self._max_rows = max_rows
        self._known: dict[tuple[str, tuple[str, ...]], Loss] = {}
        self._lock = asyncio.Lock()

    def use(self, datasets: Sequence[str], max_rows: int | None = None) -> None:
        """Measure on the held-out parts of these data sets from now on, as they are now, on at most `max_rows` rows if given."""
        self._datasets, self._max_rows = tuple(datasets), max_rows or self._max_rows
        self._permitted = None
        self._known = {}  # a measurement that is on its way belongs to what was before

    @property
    def datasets(self) -> tuple[str, ...]:
        """Whose held-out parts are measured on; once something was measured, those that were permitted then."""
        return self._datasets if self._permitted is None else self._permitted

    @property
    def active(self) -> bool:
        """Whether there are held-out rows to measure on."""
        return bool(self.datasets)

    def known(self, model: Digest | None) -> Loss | None:
        """A loss measured before; None is the bare base."""
        return self._known.get((model or "base", self.datasets))

    async def losses(self, models: Mapping[str, Model | None], *, diverging: bool = False) -> dict[str, Loss]:
        """The loss of each named model (None: the bare base); empty without data sets that may be measured on.

        With `diverging`, a model whose loss is not finite has the loss `WORST`; else that is an error.

        Raises:
            ChildError kinds: the trainer was lost or refused.
            AppendPaused: access cannot be written down now, so nothing is read.
        """
        async with self._lock:
            permits, known = self._permits(self._datasets), self._known
            datasets = self._permitted = tuple(permits)
            if not datasets:
                return {}
            keys = {name: (model.digest if model else "base", datasets) for name, model in models.items()}
            wanted = {name: model for name, model in models.items() if keys[name] not in known}
            losses = {name: known[key] for name, key in keys.items() if key in known}
            losses |= await self._evaluate(wanted, permits, diverging)
            rows = max((loss.rows for loss in losses.values()), default=0)
            for name in wanted:
                losses[name] = replace(losses[name], rows=losses[name].rows or rows)
                if len(known) >= _KEPT:
                    known.pop(next(iter(known)))
                known[keys[name]] = losses[name]
        return {name: losses[name] for name in models}

    async def _evaluate(
        self, models: Mapping[str, Model | None], permits: Mapping[str, Mapping[str, Json]], diverging: bool
    ) -> dict[str, Loss]:
        """Measure all at once; when one of them diverges, each by itself, so that the others have their loss."""
        views = {
            name: await asyncio.to_thread(save_view, self._home, model) if model else None
            for name, model in models.items()
        }
        if not views:
            return {}
        try:
            found = await self._trainer.evaluate(
                rows=self._home.rows_db, datasets=tuple(permits), permits=permits, views=views, max_rows=self._max_rows
            )
        except JobRefused as e:
            if e.reason != _DIVERGED or not diverging or (len(models) == 1 and None in models.values()):
                raise
            if len(models) == 1:
                return dict.fromkeys(models, Loss(nats=WORST, rows=0, accuracy=None))
            each = [await self._evaluate({name: model}, permits, diverging) for name, model in models.items()]
            return {name: loss for one in each for name, loss in one.items()}
        return {name: _loss(found[name]) for name in models}


def save_view(home: Home, model: Model) -> Path:
    """Keep a merged vector as `views/<digest>.npy` (temporary name, fsync, rename) and return where it lies."""
    path = home.view_file(model.digest)
    if not path.exists():
        save_vector(path, model.vector)
    return path


def save_vector(path: Path, vector: Vector) -> None:
    """Write a float32 vector as .npy in one step (raises DiskFull)."""
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    with room(f"keep vector {path.stem[:12]}"):
        write_new(path, buffer.getvalue())


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"the trainer answered {value!r} where a number is expected")
    return float(value)


def _loss(found: Mapping[str, object]) -> Loss:
    nats, accuracy = _number(found["nats"]), found.get("accuracy")
    return Loss(
        nats=min(nats, WORST) if math.isfinite(nats) else WORST,
        rows=int(_number(found["rows"])),
        accuracy=None if accuracy is None else _number(accuracy),
    )
