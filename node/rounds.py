"""The story of one contribution, from private rows to the event that publishes it. Read this first.

    rows committed -> access logged (`data.used`) -> trained from the view in the worker -> learnt part added to the residual
      -> Fisher * r^2 picks what to send -> sparse update + card, signed -> blob on disk -> `contribution.published`

Knows no network: the seat's listeners announce. Invariant: residual, epoch, run and feed size are saved in the
transaction that appends the event; a run that ended but was not published is published after a restart, once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from contrib import updates
from contrib.merging import model_digest
from ledger import events, rules
from ledger.charter import Charter
from node.blobs import BlobStore
from node.config import Train
from node.errors import NotAllowed
from node.files import room, write_new
from node.measure import Loss, Scales, save_view
from node.ports import Trainer, TrainJob
from node.replay import Missing, Model, Replay, Vector
from node.seat import Seat, run_id
from protocol import contribution as blobs
from protocol.canon import Json
from protocol.card import Card
from protocol.ids import Digest
from protocol.merkle import leaf_hash, root_of

log = logging.getLogger("fishernet.rounds")
STATE: Final = "residual"
_FIRST: Final = "first-own"
_HEAD = struct.Struct("<32sQI")  # epoch, feed size that the state belongs to, coordinates
_READY = "run.json"
Progress = Callable[[Mapping[str, Json]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A finished run that waits to be published."""

    run: str
    epoch: Digest
    view: Digest
    view_vector: Path
    theta: Path
    fisher: Path
    datasets: tuple[str, ...]
    train_root: Digest
    held_out_root: Digest
    train_rows: int
    steps: int
    tokens: int
    seconds: float
    before: float
    after: float
    libraries: Mapping[str, str]


class Rounds:
    """Makes this member's contributions."""

    def __init__(self, seat: Seat, replay: Replay, blob_store: BlobStore, trainer: Trainer, scales: Scales) -> None:
        self._seat = seat
        self._replay = replay
        self._blobs = blob_store
        self._trainer = trainer
        self._scales = scales
        self._lock = asyncio.Lock()
        self.progress: dict[str, Json] = {"state": "idle"}

    # -- whether -----------------------------------------------------------------------------------------------------
    def datasets(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Committed data sets to train on: those named in the configuration, else all."""
        known = self._seat.fold.data.get(self._seat.me, {})
        return tuple(d for d in (wanted or sorted(known)) if d in known)

    def may_start(self, config: Train) -> bool:
        """Whether a run should start by itself: a contributor with rows, and nothing of ours waits uncontested."""
        fold, me = self._seat.fold, self._seat.me
        if not fold.known or self._seat.paused or not self.datasets(config.datasets):
            return False
        made = fold.contributions.get(me, [])
        if config.rounds and len(made) >= config.rounds:
            return False
        seat = fold.charter.member(me)
        if seat is None or seat.role != "contributor":
            return False
        waiting = [c for c in made if fold.fate(c) == "pending"]
        contested = rules.contested(fold) if waiting else set()
        return all(c.event in contested for c in waiting)

    # -- one run -----------------------------------------------------------------------------------------------------
    async def contribute(self, config: Train, progress: Progress = lambda _event: None) -> dict[str, Json]:
        """Train once from the current view and publish; returns what the run learnt and sent (shape: cli/render.py).

        Raises:
            NotAllowed: no seat that contributes, or no committed rows.
            ChildError kinds: the worker was lost (nothing was published).
        """
        async with self._lock:
            waiting = self.unpublished()
            ran = waiting if waiting else await self._train(config, progress)
            return await self._publish(ran)

    def unpublished(self) -> Ran | None:
        """The finished run of the current epoch that was not published before the node stopped."""
        saved = self._seat.store.get_state(STATE + ".run")
        published = saved.decode() if saved else ""
        for file in sorted(self._seat.home.runs.glob(f"*/{_READY}")):
            ran = _read_ready(file)
            if ran and ran.run > published and ran.epoch == self._seat.fold.charter.epoch_id:
                return ran
        return None

    async def _train(self, config: Train, progress: Progress) -> Ran:
        seat, charter = self._seat, self._seat.fold.charter
        datasets = self.datasets(config.datasets)
        mine = charter.member(seat.me)
        if mine is None or mine.role != "contributor":
            raise NotAllowed("couldn't train: this node has no contributor's seat in the collective")
        if not datasets:
            raise NotAllowed("couldn't train: no data set is committed", hint="fishernet data add PATH --dataset NAME")
        run = run_id()
        model = await self._view(charter)
        used = [seat.fold.data[seat.me][d] for d in datasets]
        for committed in used:
            seat.append(
                events.DataUsed(
                    dataset=committed.dataset,
                    root=committed.train_root,
                    rows=committed.train_rows,
                    purpose="train",
                    run=run,
                )
            )
        self.progress = {"state": "training", "run": run, "step": 0, "steps": config.steps}
        folder = seat.home.run_folder(run)
        libraries: dict[str, str] = {}
        try:
            trained = await self._trainer.train(
                TrainJob(
                    rows=seat.home.rows_db,
                    datasets=datasets,
                    view=await asyncio.to_thread(save_view, seat.home, model),
                    out=folder,
                    settings={
                        "steps": config.steps,
                        "batch": config.batch,
                        "length": config.length,
                        "lr": config.learning_rate,
                        "warmup": config.warmup,
                        "seed": config.seed + len(seat.fold.contributions.get(seat.me, [])),
                        "fisher_sequences": config.fisher_sequences,
                    },
                ),
                lambda event: self._step(event, progress),
            )
            self.progress = {"state": "measuring", "run": run}
            own = _load(trained.theta, charter)
            losses = await self._scales.losses(
                {"view": model, "own": Model(vector=own, digest=model_digest(own), registers={})}
            )
            libraries = dict(await self._trainer.libraries())
        finally:
            self.progress = {"state": "idle"}
        ran = Ran(
            run=run,
            epoch=charter.epoch_id,
            view=model.digest,
            view_vector=seat.home.view_file(model.digest),
            theta=trained.theta,
            fisher=trained.fisher,
            datasets=datasets,
            train_root=_joint([c.train_root for c in used]),
            held_out_root=_joint([c.held_out_root for c in used]),
            train_rows=sum(c.train_rows for c in used),
            steps=config.steps,
            tokens=trained.tokens,
            seconds=trained.seconds,
            before=_nats(losses.get("view")),
            after=_nats(losses.get("own")),
            libraries=libraries,
        )
        with room(f"keep run {run}"):
            write_new(folder / _READY, json.dumps(_ready(ran)).encode())
        return ran

    async def _view(self, charter: Charter) -> Model:
        model = await asyncio.to_thread(self._replay.view, lambda _c: True)
        if isinstance(model, Missing):
            model = await asyncio.to_thread(self._replay.merge, charter, [])
        if isinstance(model, Missing):
            raise NotAllowed("couldn't train: the view cannot be computed yet")
        return model

    def _step(self, event: Mapping[str, Json], progress: Progress) -> None:
        if event.get("event") == "step":
            self.progress = {**self.progress, "step": event.get("step"), "loss": _centi(event.get("loss"))}
        progress(event)

    # -- publishing --------------------------------------------------------------------------------------------------
    async def _publish(self, ran: Ran) -> dict[str, Json]:
        seat, charter = self._seat, self._seat.fold.charter
        residual, made = await asyncio.to_thread(self._make, ran, charter)
        number = 1 + sum(c.epoch == ran.epoch for c in seat.fold.contributions.get(seat.me, []))
        card = Card(
            collective=seat.collective,
            member=seat.me,
            epoch=ran.epoch,
            base=charter.base.digest,
            number=number,
            view=ran.view,
            train_root=ran.train_root,
            held_out_root=ran.held_out_root,
            train_rows=ran.train_rows,
            steps=ran.steps,
            tokens=ran.tokens,
            epsilon_micro=None,
            selection=updates.DEFAULT_RULE,
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            coordinates=charter.adapter.coordinates,
            sent=made.update.sent,
            norm_micro=made.norm_micro,
            loss_before=round(ran.before * 100),
            loss_after=round(ran.after * 100),
            libraries=ran.libraries,
        )
        blob = blobs.pack(card, made.data, seat.key)
        digest = await asyncio.to_thread(self._blobs.put, blob)
        size = seat.fold.sizes.get(seat.me, 0) + 1
        state = {STATE: _pack(ran.epoch, size, residual), STATE + ".run": ran.run.encode()}
        if number == 1:
            state[_FIRST] = _pack(ran.epoch, size, _load(ran.theta, charter))
        seat.append(events.Published(epoch=ran.epoch, number=number, blob=digest, size=len(blob)), state=state)
        log.info("event=published number=%s bytes=%s blob=%s", number, len(blob), digest[:12])
        await asyncio.to_thread(self._forget_runs, ran.run)
        return {
            "run": ran.run,
            "steps": ran.steps,
            "tokens": ran.tokens,
            "seconds": round(ran.seconds),
            "loss_before": card.loss_before,
            "loss_after": card.loss_after,
            "digest": digest,
            "bytes": len(blob),
            "sent": card.sent,
            "number": number,
        }

    def first_own(self) -> Model | None:
        """What our first run of this epoch learnt alone, from our own rows only."""
        saved = self._seat.store.get_state(_FIRST)
        if saved is None:
            return None
        name, _size, coordinates = _HEAD.unpack_from(saved)
        charter = self._seat.fold.charter
        if name.hex() != charter.epoch_id or coordinates != charter.adapter.coordinates:
            return None
        vector = np.frombuffer(saved, dtype="<f4", offset=_HEAD.size).astype(np.float32)
        return Model(vector=vector, digest=model_digest(vector), registers={})

    def _make(self, ran: Ran, charter: Charter) -> tuple[Vector, updates.Made]:
        """The new residual and the update taken out of it: learnt grows by theta - view, published by what is sent."""
        theta, view = _load(ran.theta, charter), _load(ran.view_vector, charter)
        residual = self._residual(ran.epoch, charter) + (theta - view)
        made = updates.make(
            _load(ran.fisher, charter),
            residual,
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            block=charter.update.block,
        )
        left = residual.copy()
        left[made.update.indices] -= made.update.values()
        return left, made

    def _residual(self, epoch: Digest, charter: Charter) -> Vector:
        """Learnt but not published; zero in a new epoch, and when our feed has grown elsewhere since it was saved."""
        zero = np.zeros(charter.adapter.coordinates, dtype=np.float32)
        saved = self._seat.store.get_state(STATE)
        if saved is None:
            return zero
        name, size, coordinates = _HEAD.unpack_from(saved)
        ours = self._seat.fold.contributions.get(self._seat.me, [])
        behind = bool(ours) and ours[-1].source.seq + 1 > size
        if name.hex() != epoch or coordinates != len(zero) or behind:
            return zero
        return np.frombuffer(saved, dtype="<f4", offset=_HEAD.size).astype(np.float32)

    def _forget_runs(self, last: str) -> None:
        for folder in self._seat.home.runs.iterdir():
            if folder.is_dir() and folder.name < last:
                shutil.rmtree(folder, ignore_errors=True)


def _joint(roots: list[Digest]) -> Digest:
    """One root for several data sets: their own when there is one, else the RFC 6962 root over their roots."""
    if len(roots) == 1:
        return roots[0]
    return Digest(root_of([leaf_hash(bytes.fromhex(r)) for r in roots]).hex())


def _load(path: Path, charter: Charter) -> Vector:
    vector = np.load(path, allow_pickle=False)
    if vector.dtype != np.float32 or vector.shape != (charter.adapter.coordinates,):
        raise NotAllowed(f"couldn't use {path.name}: not a vector of this epoch")
    return np.asarray(vector, dtype=np.float32)


def _pack(epoch: Digest, size: int, residual: Vector) -> bytes:
    return _HEAD.pack(bytes.fromhex(epoch), size, len(residual)) + residual.astype("<f4").tobytes()


def _nats(loss: Loss | None) -> float:
    return max(0.0, loss.nats) if loss else 0.0


def _centi(loss: Json) -> Json:
    return round(loss, 2) if isinstance(loss, int | float) else None


_PATHS = ("view_vector", "theta", "fisher")


def _ready(ran: Ran) -> dict[str, Any]:
    return {
        name: str(value) if name in _PATHS else dict(value) if isinstance(value, Mapping) else value
        for name, value in ((n, getattr(ran, n)) for n in Ran.__slots__)
    }


def _read_ready(file: Path) -> Ran | None:
    try:
        value = json.loads(file.read_bytes())
        value["datasets"] = tuple(value["datasets"])
        fields: dict[str, Any] = {n: Path(v) if n in _PATHS else v for n, v in value.items()}
        ran = Ran(**fields)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return ran if all(path.is_file() for path in (ran.view_vector, ran.theta, ran.fisher)) else None
