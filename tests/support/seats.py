"""Members at one table: real ledgers, blobs, seats and judges on disk; the mail is carried by hand, no loop, no network."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from paper import charter_of, key

from contrib import updates
from contrib.merging import model_digest
from ledger import charter as charters
from ledger import charter_reading, events
from ledger.access import egress
from ledger.charter import Charter
from ledger.collective import Contribution
from ledger.cuts import Amendment, Cut, Value
from ledger.entry import Record
from ledger.events.grants import ACTIONS
from ledger.store import Store
from ledger.tally import Proposal
from node.collective import judging
from node.collective.judging import Finding, Judge
from node.collective.measure import Scales
from node.collective.replay import Model, Replay, Vector, completed
from node.collective.seat import Seat
from node.data.permits import PURPOSE, Permits
from node.errors import JobRefused
from node.errors_network import BlobMissing
from node.home import Home
from node.ports import Trained, TrainJob
from node.syncing.blobs import BlobStore
from protocol import contribution as blobs
from protocol import sparse
from protocol.canon import Json
from protocol.card import Card
from protocol.ids import Digest, MemberId, digest
from protocol.keys import member_id

ROWS = 300
LossOf = Callable[[Vector], float]


class PaperTrainer:
    """The Trainer port with a loss that is a plain function of the vector; NaN stands for a worker that says it diverged."""

    def __init__(self, loss: LossOf, rows: int = ROWS) -> None:
        self.loss, self.rows = loss, rows
        self.asked: list[list[str]] = []

    async def load(self, model: Path, spec: Mapping[str, Json]) -> None:
        raise NotImplementedError

    async def train(self, job: TrainJob, on_event: Callable[[Mapping[str, Json]], None]) -> Trained:
        raise NotImplementedError

    async def libraries(self) -> Mapping[str, str]:
        return {}

    async def evaluate(
        self,
        *,
        rows: Path,
        datasets: Sequence[str],
        permits: Mapping[str, Mapping[str, Json]],
        views: Mapping[str, Path | None],
        max_rows: int,
    ) -> Mapping[str, Mapping[str, Any]]:
        assert datasets
        assert set(permits) == set(datasets)
        self.asked.append(sorted(views))
        found = {}
        for name, path in views.items():
            nats = self.loss(np.zeros(64, dtype=np.float32) if path is None else np.load(path))
            if np.isnan(nats):
                raise JobRefused("couldn't measure: the loss is infinite or NaN", reason="diverged")
            found[name] = {"nats": nats, "tokens": 9, "rows": min(self.rows, max_rows), "accuracy": None}
        return found


def paper_permits(datasets: Sequence[str]) -> dict[str, Mapping[str, Json]]:
    """Permits for a trainer that reads no rows: the real ones are tried in test_permits.py."""
    return {name: {} for name in datasets}


class Sitter:
    """One member with everything it owns."""

    def __init__(
        self, folder: Path, name: str, charter: Charter, *, loss: LossOf | None = None, rows: int = ROWS
    ) -> None:
        self.name, self.key = name, key(name)
        self.home = Home(path=folder / name)
        for each in (self.home.path, self.home.views, self.home.blobs):
            each.mkdir(exist_ok=True)
        self.blobs = BlobStore(self.home.blobs)
        self.store = Store.open(self.home.ledger_db)
        self.trainer = PaperTrainer(loss or (lambda _vector: 1.0), rows)
        self.collective = charters.collective_id(charter)
        self.wanted: list[Digest] = []
        self.accounts, self.runs = False, 0
        self.sit()

    def account(self, run: str) -> None:
        """Do what a node does before it trains: commit, describe and grant once, then ask, decide and log."""
        if self.seat.dataset_root("rows") is None:
            root = digest(b"root of " + self.name.encode())
            self.seat.append(
                events.DataCommitted(dataset="rows", train_rows=9, held_out_rows=3, train_root=root, held_out_root=root)
            )
            self.seat.append(events.DataDescribed(dataset="rows", purposes=(PURPOSE,), basis="consent"))
            self.seat.append(own_grant(self.id, nonce=root))
        Permits(self.seat, policy=lambda: egress.DEFAULT.digest).train(["rows"], run)

    def sit(self, datasets: Sequence[str] = ("rows",)) -> None:
        """Open the seat, as at every start of the node."""
        self.seat = Seat(self.home, member_id(self.key), self.store, self.collective, key=self.key)
        self.replay = Replay(self.seat.fold, self.read)
        self.scales = Scales(self.home, self.trainer, datasets, 1000, permits=paper_permits)
        self.judge = Judge(self.seat, self.replay, self.scales, lambda cs: self.wanted.extend(c.blob for c in cs))

    @property
    def id(self) -> Any:
        return self.seat.me

    @property
    def fold(self) -> Any:
        return self.seat.fold

    def read(self, name: Digest) -> bytes | None:
        try:
            return self.blobs.read(name, 1 << 20)
        except BlobMissing:
            return None

    def blob(self, values: Mapping[int, float], *, sign: Any = None, data: bytes | None = None, **card: Any) -> bytes:
        """The bytes of a contribution that sends `values`; `card` replaces fields of an honest card."""
        charter = self.fold.charter
        if data is None:
            indices = np.array(sorted(values), dtype=np.uint32)
            data = sparse.encode(
                coordinates=charter.adapter.coordinates,
                indices=indices,
                values=np.array([values[int(i)] for i in indices], dtype=np.float32),
                bits=charter.update.value_bits,
                block=charter.update.block,
            )
        update = sparse.decode(data, coordinates=charter.adapter.coordinates, max_sent=charter.adapter.coordinates)
        number = 1 + sum(c.epoch == charter.epoch_id for c in self.fold.contributions.get(self.id, []))
        honest: dict[str, Any] = {
            "collective": self.collective,
            "member": self.id,
            "epoch": charter.epoch_id,
            "base": charter.base.digest,
            "number": number,
            "view": model_digest(np.zeros(64, dtype=np.float32)),
            "train_root": digest(b"train"),
            "held_out_root": digest(b"held out"),
            "train_rows": 9,
            "steps": 4,
            "tokens": 99,
            "epsilon_micro": None,
            "selection": "fisher-r2",
            "density_ppm": charter.update.density_ppm,
            "value_bits": charter.update.value_bits,
            "coordinates": charter.adapter.coordinates,
            "sent": update.sent,
            "norm_micro": updates.norm_micro(update),
            "loss_before": 420,
            "loss_after": 400,
            "libraries": {"numpy": "2"},
        }
        return blobs.pack(Card(**{**honest, **card}), data, sign or self.key)

    def publish(
        self, values: Mapping[int, float] | None = None, *, blob: bytes | None = None, **event: Any
    ) -> Contribution:
        """Publish a contribution (of these values, or of these bytes whatever they are)."""
        if blob is None:
            blob = self.blob(values or {len(self.name): 0.5, 1 + self.fold.sizes.get(self.id, 0): 0.25})
        name = self.blobs.put(blob)
        if self.accounts:
            self.runs += 1
            event = {"run": f"run {self.runs}", **event}
            self.account(str(event["run"]))
        number = 1 + sum(c.epoch == self.fold.charter.epoch_id for c in self.fold.contributions.get(self.id, []))
        fields: dict[str, Any] = {
            "epoch": self.fold.charter.epoch_id,
            "number": number,
            "blob": name,
            "size": len(blob),
            "run": f"run {number}",
        }
        self.seat.append(events.Published(**{**fields, **event}))
        found: Contribution = self.fold.contributions[self.id][-1]
        return found

    def judged(self, value: Value) -> Finding | None:
        """What this member finds out about a value as if it were proposed now."""
        source = self.fold.sources[next(iter(self.fold.sources))]
        proposal = Proposal(source=source, attempt=0, valid_attempt=-1, digest=value.digest, value=value)
        return asyncio.run(self.judge.judge(proposal))

    def draft(self) -> Cut | Amendment:
        """What this member would propose, complete."""
        value = judging.draft(self.seat, self.replay)
        if isinstance(value, Cut):
            model = self.replay.of_cut(self.fold.charter, value)
            assert isinstance(model, Model)
            value = completed(value, model)
        return value

    def cut(self) -> Cut:
        value = self.draft()
        assert isinstance(value, Cut)
        return value


class Table:
    """Members of one collective who pass each other everything they wrote."""

    def __init__(self, folder: Path, names: Sequence[str] = ("ada", "bob", "cyd"), **options: Any) -> None:
        losses: dict[str, LossOf] = options.pop("losses", {})
        rules: dict[str, Any] = options.pop("rules", {})
        accounts: bool = options.pop("accounts", False)  # whether what is published was trained on granted rows
        charter = charter_of(list(names), **options)
        charter = charter_reading.parse({**charter.to_json(), **rules})
        self.folder, self.charter = folder, charter
        self.sitters = {n: Sitter(folder, n, charter, loss=losses.get(n)) for n in names}
        for sitter in self:
            sitter.accounts = accounts
        self.collective = charters.collective_id(charter)
        next(iter(self.sitters.values())).seat.append(events.Genesis(charter=charter.to_json()))
        self.deliver()

    def __getitem__(self, name: str) -> Sitter:
        return self.sitters[name]

    def __iter__(self):
        return iter(self.sitters.values())

    def close(self) -> None:
        for sitter in self:
            sitter.store.close()

    def deliver(self, *, blobs: bool = True) -> None:
        """Everybody gets every entry and, unless told otherwise, every blob of everybody."""
        for to in self:
            for source in self:
                if source is to:
                    continue
                self.carry(source, to)
                for name in source.blobs.digests() if blobs else ():
                    if not to.blobs.has(name):
                        to.blobs.put(source.blobs.read(name, 1 << 20))

    def carry(self, source: Sitter, to: Sitter) -> None:
        """The rest of one feed, verified and stored by who gets it."""
        while page := source.store.records(self.collective, source.id, to.fold.sizes.get(source.id, 0)):
            (head,) = source.store.heads(self.collective, source.id)
            to.seat.receive(source.id, to.store.append_foreign(self.collective, source.id, page, head.note))

    def decide(self, value: Value, names: Iterable[str] | None = None, *, blobs: bool = True) -> None:
        """A quorum proposes, accepts and commits `value`, whatever it is."""
        voters = [self.sitters[n] for n in (names or [s.name for s in self if self.votes(s)])]
        height = voters[0].fold.height
        self.deliver(blobs=blobs)
        voters[0].seat.append(events.Proposed(height=height, attempt=0, valid_attempt=-1, value=value.to_json()))
        self.deliver(blobs=blobs)
        for voter in voters:
            voter.seat.append(events.Accepted(height=height, attempt=0, digest=value.digest))
        self.deliver(blobs=blobs)
        for voter in voters:
            if voter.fold.height == height:
                voter.seat.append(events.Committed(height=height, attempt=0, digest=value.digest))
        self.deliver(blobs=blobs)

    def votes(self, sitter: Sitter) -> bool:
        return sitter.id in {m.id for m in sitter.fold.charter.voters}

    def release(self, *names: str) -> Cut:
        """These members (else all contributors) publish and all decide the cut that the first one drafts."""
        for sitter in self:
            seat = sitter.fold.charter.member(sitter.id)
            if (sitter.name in names) if names else (seat and seat.role == "contributor"):
                sitter.publish()
        self.deliver()
        cut = next(iter(self)).cut()
        self.decide(cut)
        return cut

    def amend(self, change: dict[str, Json]) -> Record:
        """All voters approve a change and decide it."""
        first, *others = [s for s in self if self.votes(s)]
        asked = first.seat.append(events.AmendmentProposed(change=change))
        self.deliver()
        for other in others:
            other.seat.append(events.AmendmentApproved(proposal=asked.entry.event))
        self.deliver()
        self.decide(first.draft())
        return asked


def own_grant(me: MemberId, nonce: Digest, **terms: Any) -> events.GrantIssued:
    """What `fishernet data add` grants to its own node; `terms` replaces parts of it."""
    whole: dict[str, Any] = {
        "dataset": "rows",
        "selector": events.Selector(),
        "actions": ACTIONS,
        "purposes": (PURPOSE,),
        "audience": events.Audience(members=(me,)),
        "not_before": 0,
        "expires": None,
        "uses": None,
        "epsilon_micro": None,
        "depth": 0,
        "parent": None,
        "basis": "consent",
        "nonce": nonce,
    }
    return events.GrantIssued(**{**whole, **terms})


def salted(name: str) -> dict[int, float]:
    """Some values that depend on a name."""
    raw = hashlib.sha256(name.encode()).digest()
    return {int(i): (b - 128) / 64 or 0.5 for i, b in zip(sorted({x % 64 for x in raw[:9]}), raw[9:], strict=False)}


def without(charter: Charter, **gate: int) -> Charter:
    """The charter with another gate."""
    return replace(charter, gate=replace(charter.gate, **gate))
