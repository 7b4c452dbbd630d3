"""The story of one contribution, from private rows to the event that publishes it. Read this first.

    rows committed -> access decided and logged (`access.decided`, `data.used`) -> trained from the view in the worker, on what
      the permits show -> learnt part added to the residual -> Fisher * r^2 picks what to send -> sparse update + card, signed
      -> the operator's egress policy -> blob on disk -> `contribution.published`

Knows no network: the seat's listeners announce. Invariant: residual, epoch, run and feed size are saved in the
transaction that appends the event; a run that ended but was not published is published after a restart, once. A run that
the policy keeps here leaves what it learnt in the residual; one whose data was withdrawn meanwhile leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from contrib import feedback, updates
from contrib.merging import model_digest
from ledger import events, rules
from ledger.charter import Charter
from node.collective.measure import Loss, Scales, save_view
from node.collective.replay import Missing, Model, Replay, Vector
from node.collective.seat import Seat
from node.data import erasing
from node.data.egress import Egress, Reject
from node.data.permits import Permits
from node.data.residual import FIRST, STATE
from node.errors import NotAllowed
from node.ports import Trainer, TrainJob
from node.sections import Train
from node.syncing.blobs import BlobStore
from node.training import learnt, runs, settings
from node.training.readiness import Readiness
from node.training.runs import Ran
from protocol import contribution as blobs
from protocol.canon import Json
from protocol.card import Card
from protocol.ids import Digest
from protocol.merkle import leaf_hash, root_of

log = logging.getLogger("fishernet.rounds")
Progress = Callable[[Mapping[str, Json]], None]


class Rounds:
    """Makes this member's contributions."""

    def __init__(
        self,
        seat: Seat,
        replay: Replay,
        blob_store: BlobStore,
        trainer: Trainer,
        scales: Scales,
        *,
        permits: Permits,
        egress: Egress,
    ) -> None:
        self._seat = seat
        self._replay = replay
        self._blobs = blob_store
        self._trainer = trainer
        self._scales = scales
        self._permits = permits
        self._egress = egress
        self._lock = asyncio.Lock()
        self.readiness = Readiness(seat.fold, blob_store)
        self._last: dict[str, Json] = {}  # how the last run since the start was trained
        self.progress: dict[str, Json] = {"state": "idle"}

    # -- whether -----------------------------------------------------------------------------------------------------
    def datasets(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Committed data sets to train on: those named in the configuration, else all."""
        known = self._seat.fold.data.get(self._seat.me, {})
        return tuple(d for d in (wanted or sorted(known)) if d in known)

    def may_start(self, config: Train) -> bool:
        """Whether a run should start by itself: a contributor with rows, and nothing of ours waits uncontested.

        What was refused, by a grant or by the egress policy, is not tried again before something has changed.
        """
        fold, me = self._seat.fold, self._seat.me
        if not fold.known or self._seat.paused or self._egress.stopped:
            return False
        told = [self._permits.told(d, "train") for d in self.datasets(config.datasets)]
        if all(told) or (config.datasets and any(told)):
            return False  # no rows, or none that may be used, or not all that were named
        made = fold.contributions.get(me, [])
        if config.rounds and len(made) >= config.rounds:
            return False
        seat = fold.charter.member(me)
        if seat is None or seat.role != "contributor" or self.readiness.lacking():
            return False
        waiting = [c for c in made if fold.uncovered(c) and fold.fate(c) == "pending"]
        contested = rules.contested(fold) if waiting else set()
        return all(c.event in contested for c in waiting)

    # -- one run -----------------------------------------------------------------------------------------------------
    async def contribute(
        self, config: Train, progress: Progress = lambda _event: None, *, steps: int | None = None
    ) -> dict[str, Json]:
        """Train once from the current view and publish; returns what the run learnt and sent (shape: cli/render.py).

        `steps`: so many this once, whatever the configuration says.

        Raises:
            NotAllowed: no seat that contributes, or no committed rows.
            AccessDenied: no grant covers them, or one of those that the configuration names; it is in the feed.
            EgressStopped: the operator's policy keeps the result here; it is in the feed.
            ChildError kinds: the worker was lost (nothing was published).
        """
        async with self._lock:
            waiting = self.unpublished()
            ran = waiting if waiting else await self.train(config, progress, steps=steps)
            return await self._publish(ran)

    def unpublished(self) -> Ran | None:
        """The finished run of the current epoch that was not published before the node stopped."""
        saved = self._seat.store.get_state(STATE + ".run")
        published = saved.decode() if saved else ""
        for ran in runs.finished(self._seat.home.runs):
            if ran.run > published and ran.epoch == self._seat.fold.charter.epoch_id:
                return ran
        return None

    async def train(self, config: Train, progress: Progress = lambda _event: None, *, steps: int | None = None) -> Ran:
        """Train once from the current view and keep the run on disk; `contribute` publishes it. Raises as that does."""
        seat, charter = self._seat, self._seat.fold.charter
        datasets = self.datasets(config.datasets)
        mine = charter.member(seat.me)
        if mine is None or mine.role != "contributor":
            raise NotAllowed("couldn't train: this node has no contributor's seat in the collective")
        if not datasets:
            raise NotAllowed("couldn't train: no data set is committed", hint="fishernet data add PATH --dataset NAME")
        run = seat.run_id()
        model = await self._view()
        permits = self._permits.train(datasets, run, need=config.datasets)
        datasets = tuple(permits)
        used = [seat.fold.data[seat.me][d] for d in datasets]
        planned = settings.plan(
            config,
            runs.finished(seat.home.runs),
            epoch=charter.epoch_id,
            datasets=datasets,
            seed=config.seed + len(seat.fold.contributions.get(seat.me, [])),
            members=sum(member.role == "contributor" for member in charter.members),
            steps=steps,
        )
        self.progress = {"state": "training", "run": run, "step": 0, "steps": planned.settings["steps"]}  # type: ignore[dict-item]
        folder = seat.home.run_folder(run)
        libraries: dict[str, str] = {}
        try:
            trained = await self._trainer.train(
                TrainJob(
                    rows=seat.home.rows_db,
                    datasets=datasets,
                    view=await asyncio.to_thread(save_view, seat.home, model),
                    out=folder,
                    permits=permits,
                    settings=planned.settings,
                    tuning=planned.tuning,
                    moments=planned.moments,
                ),
                lambda event: self._step(event, progress),
            )
            chosen = settings.told(config, planned, trained.chosen)
            self._last = {"steps": chosen["steps"], "learning_rate": chosen["lr"]}
            self.progress = {"state": "measuring", "run": run}
            own = learnt.load(trained.theta, charter)
            losses = await self._scales.losses(
                {"view": model, "own": Model(vector=own, digest=model_digest(own), registers={})}
            )
            libraries = dict(await self._trainer.libraries())
        finally:
            self.progress = {"state": "idle", "last": self._last}
        log.info(
            "event=trained run=%s steps=%s lr=%g trials=%s",
            run,
            chosen["steps"],
            chosen["lr"],
            len(chosen.get("trials") or ()),
        )
        ran = Ran(
            run=run,
            epoch=charter.epoch_id,
            view=model.digest,
            view_vector=seat.home.view_file(model.digest),
            theta=trained.theta,
            fisher=trained.fisher,
            datasets=datasets,
            purpose=self._permits.purpose,
            train_root=_joint([c.train_root for c in used]),
            held_out_root=_joint([c.held_out_root for c in used]),
            train_rows=sum(c.train_rows for c in used),
            steps=chosen["steps"],
            tokens=trained.tokens,
            seconds=trained.seconds,
            before=_nats(losses.get("view")),
            after=_nats(losses.get("own")),
            libraries=libraries,
            moments=trained.moments,
            chosen=chosen,
        )
        runs.keep(folder, ran)
        return ran

    async def _view(self) -> Model:
        fold = self._seat.fold
        await self.readiness.wait()
        doubted = fold.doubted() - {fold.owner(self._seat.me)}
        model = await asyncio.to_thread(self._replay.view, lambda c: fold.owner(c.member) not in doubted)
        if isinstance(model, Missing):
            raise NotAllowed(
                f"couldn't train: {len(model.blobs)} contributions of the newest release are not here yet",
                hint="they are being fetched, see blobs_waiting in: fishernet status --json",
            )
        return model

    def _step(self, event: Mapping[str, Json], progress: Progress) -> None:
        if event.get("event") == "step":
            trial = event.get("trial")
            told = {"state": "tuning" if trial else "training", "trial": trial}
            shown = {"step": event.get("step"), "steps": event.get("steps"), "loss": _centi(event.get("loss"))}
            self.progress = {**self.progress, **told, **shown}
        progress(event)

    # -- publishing --------------------------------------------------------------------------------------------------
    async def _publish(self, ran: Ran) -> dict[str, Json]:
        seat, charter = self._seat, self._seat.fold.charter
        self._refuse_forgotten(ran)
        self._egress.in_force()
        self._permits.still(ran.datasets, ran.run, {STATE + ".run": ran.run.encode()})
        whole, left, made = await asyncio.to_thread(self._make, ran, charter)
        number = 1 + sum(c.epoch == ran.epoch for c in seat.fold.contributions.get(seat.me, []))
        card, blob = self._packed(ran, charter, number, made)
        answer = self._egress.examine(blob, [ran.purpose], coordinates=charter.adapter.coordinates)
        if isinstance(answer, Reject):
            raise self._egress.refuse(ran.run, answer, self._state(ran, whole))
        digest = await asyncio.to_thread(self._blobs.put, blob)
        self._refuse_forgotten(ran)  # again: nothing comes between this and the entry
        state = self._state(ran, left)
        if number == 1:
            state[FIRST] = learnt.pack(ran.epoch, self._next_size(), learnt.load(ran.theta, charter))
        seat.append(
            events.Published(epoch=ran.epoch, number=number, blob=digest, size=len(blob), run=ran.run), state=state
        )
        log.info("event=published number=%s bytes=%s blob=%s", number, len(blob), digest[:12])
        await asyncio.to_thread(self._forget_runs, ran.run)
        return {
            "run": ran.run,
            "steps": ran.steps,
            **_how(ran.chosen),
            "tokens": ran.tokens,
            "seconds": round(ran.seconds),
            "loss_before": card.loss_before,
            "loss_after": card.loss_after,
            "digest": digest,
            "bytes": len(blob),
            "sent": card.sent,
            "number": number,
        }

    def _packed(self, ran: Ran, charter: Charter, number: int, made: updates.Made) -> tuple[Card, bytes]:
        """The card of a run's update, and both signed: the bytes that leave."""
        card = Card(
            collective=self._seat.collective,
            member=self._seat.me,
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
            selection=updates.rule_for(charter.update.value_bits),
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            coordinates=charter.adapter.coordinates,
            sent=made.update.sent,
            norm_micro=made.norm_micro,
            loss_before=round(ran.before * 100),
            loss_after=round(ran.after * 100),
            libraries=ran.libraries,
        )
        return card, blobs.pack(card, made.data, self._seat.key)

    def _refuse_forgotten(self, ran: Ran) -> None:
        """Throw a run away when rows that it was trained on were forgotten meanwhile."""
        if erasing.is_forgotten(self._seat.store, ran.run):
            shutil.rmtree(self._seat.home.run_folder(ran.run), ignore_errors=True)
            raise NotAllowed(
                "couldn't publish run: rows that it was trained on were forgotten meanwhile; it was thrown away"
            )

    def first_own(self) -> Model | None:
        """What our first run of this epoch learnt alone, from our own rows only."""
        charter = self._seat.fold.charter
        saved = learnt.unpack(self._seat.store.get_state(FIRST), charter.epoch_id, charter.adapter.coordinates)
        return None if saved is None else Model(vector=saved[1], digest=model_digest(saved[1]), registers={})

    def _state(self, ran: Ran, residual: Vector) -> dict[str, bytes]:
        """What is saved with the next entry of our feed: this run is done, and this much is learnt and not published."""
        return {STATE: learnt.pack(ran.epoch, self._next_size(), residual), STATE + ".run": ran.run.encode()}

    def _next_size(self) -> int:
        return self._seat.fold.sizes.get(self._seat.me, 0) + 1

    def _make(self, ran: Ran, charter: Charter) -> tuple[Vector, Vector, updates.Made]:
        """All that is learnt and not published, what is left of it after the update, and the update taken out of it."""
        theta, view = learnt.load(ran.theta, charter), learnt.load(ran.view_vector, charter)
        wanted = feedback.DEFAULT.wanted(self._residual(ran.epoch, charter), theta - view)
        made = updates.make(
            learnt.load(ran.fisher, charter),
            wanted,
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            block=charter.update.block,
            rule=updates.rule_for(charter.update.value_bits),
        )
        return wanted, feedback.DEFAULT.left(wanted, made.update), made

    def _residual(self, epoch: Digest, charter: Charter) -> Vector:
        """Learnt but not published; zero in a new epoch, and when our feed has grown elsewhere since it was saved."""
        saved = learnt.unpack(self._seat.store.get_state(STATE), epoch, charter.adapter.coordinates)
        ours = self._seat.fold.contributions.get(self._seat.me, [])
        if saved is None or (ours and ours[-1].source.seq + 1 > saved[0]):
            return np.zeros(charter.adapter.coordinates, dtype=np.float32)
        return saved[1]

    def _forget_runs(self, last: str) -> None:
        for folder in self._seat.home.runs.iterdir():
            if folder.is_dir() and folder.name < last:
                shutil.rmtree(folder, ignore_errors=True)


def _joint(roots: list[Digest]) -> Digest:
    """One root for several data sets: their own when there is one, else the RFC 6962 root over their roots."""
    if len(roots) == 1:
        return roots[0]
    return Digest(root_of([leaf_hash(bytes.fromhex(r)) for r in roots]).hex())


def _how(chosen: Mapping[str, Any]) -> dict[str, Json]:
    """How a run was trained, for the operator: what was searched, and why it ended when it did."""
    curve, planned = chosen.get("curve") or [], chosen.get("planned")
    made = curve[-1][0] if curve else planned
    return {
        "learning_rate": chosen.get("lr"),
        "planned": planned,
        "stopped": made < planned if made and planned else False,
        "trials": chosen.get("trials"),
        "curve": curve,
        "untuned": chosen.get("untuned", False),
        "resumed": chosen.get("resumed", False),
    }


def _nats(loss: Loss | None) -> float:
    return max(0.0, loss.nats) if loss else 0.0


def _centi(loss: Json) -> Json:
    return round(loss, 2) if isinstance(loss, int | float) else None
