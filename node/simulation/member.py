"""One simulated member: the node's own seat, rounds, judge and council, put together as the daemon does.

Only what lies below them is not the node's: the store is memory, the trainer is in this process, the clock is simulated.
`open` is a start of the node and may be called again after a kill: what was in memory is gone, what was appended is not.
Invariant: what two members could compute differently is computed for each; what is a function of the same bytes (a decoded
blob, a merge of one set of contributions under one charter) is computed once in the process.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrib.datasets import DatasetSummary
from ledger.access import egress
from ledger.charter import Charter
from ledger.collective import Contribution
from node.collective.council import Council
from node.collective.gate import Accept, Reject
from node.collective.judging import Judge
from node.collective.measure import Scales
from node.collective.replay import Missing, Model, Replay
from node.collective.seat import Seat
from node.data.egress import Egress
from node.data.permits import Permits
from node.home import Home
from node.ports import Trainer
from node.sections import Train
from node.simulation.clock import Clock
from node.simulation.feeds import Archive, MemoryBlobs, MemoryStore
from node.training.rounds import Rounds
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import CollectiveId, Digest, EventId, MemberId
from protocol.keys import SigningKey, member_id

Permitted = Mapping[str, Mapping[str, Json]]


class SharedHome(Home):
    """A member's folder; merged vectors lie beside it, once for all members."""

    __slots__ = ()

    @property
    def views(self) -> Path:
        """Merged vectors of all members, by model digest."""
        return self.path.parent / "views"


@dataclass(slots=True)
class Shared:
    """What a process computes once for all members."""

    examined: dict[tuple[object, ...], Accept | Reject] = field(default_factory=dict)
    alike: dict[tuple[EventId, EventId], bool] = field(default_factory=dict)
    merged: dict[tuple[object, ...], Model | Missing] = field(default_factory=dict)


_KEPT_MODELS = 64


class SharedReplay(Replay):
    """A replay that looks at what the process has computed already."""

    def __init__(self, seat: Seat, blobs: MemoryBlobs, max_bytes: Callable[[], int], shared: Shared) -> None:
        super().__init__(seat.fold, lambda name: blobs.read(name, max_bytes()) if blobs.has(name) else None)
        self._fold, self._blobs, self._shared = seat.fold, blobs, shared

    def examine(self, contribution: Contribution) -> Accept | Reject | None:
        """As `Replay.examine`; the blob must be here, but what it says is looked up."""
        charter = self._fold.charter_for(contribution)
        if charter is None or not self._blobs.has(contribution.blob):
            return super().examine(contribution)
        key = (contribution.event, charter.gate, charter.update)
        found = self._shared.examined.get(key)
        if found is None:
            found = super().examine(contribution)
            if found is not None:
                self._shared.examined[key] = found
        return found

    def is_copy(self, copy: Contribution, original: Contribution) -> bool:
        """As `Replay.is_copy`, once for each two blobs that are here."""
        key = (copy.event, original.event)
        found = self._shared.alike.get(key)
        if found is None or not (self._blobs.has(copy.blob) and self._blobs.has(original.blob)):
            found = super().is_copy(copy, original)
            if self._blobs.has(copy.blob) and self._blobs.has(original.blob):
                self._shared.alike[key] = found
        return found

    def unlike(self, copy: Contribution, original: Contribution) -> bool:
        """As `Replay.unlike`."""
        if self._shared.alike.get((copy.event, original.event)) is False:
            return self._blobs.has(copy.blob) and self._blobs.has(original.blob)
        return super().unlike(copy, original)

    def merge(
        self, charter: Charter, contributions: Iterable[Contribution], height: int | None = None
    ) -> Model | Missing:
        """As `Replay.merge`, once for each set of contributions, their owners and weights."""
        taken = list(contributions)
        if any(self.examine(c) is None for c in taken):
            return super().merge(charter, taken, height)
        owned = tuple(sorted((self._fold.owner(c.member, height), c.event) for c in taken))
        weights = self._fold.weights(charter, {member for member, _ in owned}, height)
        key = (charter.recipe, charter.adapter, charter.gate, charter.update, tuple(sorted(weights.items())), owned)
        models = self._shared.merged
        if key not in models:
            while len(models) >= _KEPT_MODELS:
                del models[next(iter(models))]
            models[key] = super().merge(charter, taken, height)
        return models[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What all members have in common."""

    clock: Clock
    archive: Archive
    shared: Shared
    trainer: Trainer
    collective: CollectiveId
    train: Train
    held_out_rows: int
    cards: bool  # whether runs are measured for their cards


class Member:
    """A member, awake or away."""

    def __init__(self, number: int, name: str, home: Home, key: SigningKey, kit: Kit, rng: random.Random) -> None:
        self.number, self.name, self.home, self.key, self.kit = number, name, home, key, kit
        self.id: MemberId = member_id(key)
        self.random = rng
        self.store, self.blobs = MemoryStore(kit.archive), MemoryBlobs(kit.archive)
        self.life = 0  # how often it was started
        self.training = False  # whether a run is under way that nobody has seen the end of
        self.wanted: list[Contribution] = []
        self.may_measure: Callable[[Member], bool] = lambda _member: True
        self.lost_runs = 0
        self.rows: DatasetSummary | None = None  # what may be said of its rows; None: it has none, only vectors

    def open(self) -> None:
        """Start the node: everything in memory is made anew from the store."""
        kit = self.kit
        self.life += 1
        self.training = False
        self.wanted = []
        self.seat = Seat(
            self.home, self.id, self.store, kit.collective, key=self.key, clock=kit.clock.ms, entropy=self._entropy
        )
        self.fold = self.seat.fold
        self.replay = SharedReplay(self.seat, self.blobs, self._max_blob, kit.shared)
        self.egress = self._door()
        self.permits = Permits(self.seat, policy=self.egress.in_force)
        self.scales = self._scales(self._measurable)
        self.rounds = self._rounds(self.scales if kit.cards else self._scales(lambda _datasets: {}))
        self.judge = self._judge()
        self.council = Council(self.seat, self.replay, self.judge, clock=kit.clock.seconds)

    def kill(self) -> None:
        """Lose what is in memory; a run that was under way leaves nothing."""
        if self.training:
            self.lost_runs += 1
            ran = self.rounds.unpublished()
            if ran is not None:
                shutil.rmtree(self.home.run_folder(ran.run), ignore_errors=True)
        self.training = False

    async def step(self, limit: int = 16) -> bool:
        """Let the council do what there is to do now; whether it did anything."""
        acted = False
        for _ in range(limit):
            if not await self.council.step():
                break
            acted = True
        return acted

    async def begin(self) -> bool:
        """Start a run if the node would: it is trained now, and published when `end` is called."""
        if self.training or not self.rounds.may_start(self.kit.train):
            return False
        await self.rounds.train(self.kit.train)
        self.training = True
        return True

    async def end(self) -> bool:
        """Publish the run that was begun; False when the node itself keeps it back."""
        self.training = False
        try:
            await self.rounds.contribute(self.kit.train)
        except FishernetError:
            return False
        return True

    # -- what an attacker replaces -----------------------------------------------------------------------------------
    def _door(self) -> Egress:
        return Egress(self.seat, egress.DEFAULT)

    def _rounds(self, scales: Scales) -> Rounds:
        return Rounds(
            self.seat, self.replay, self.blobs, self.kit.trainer, scales, permits=self.permits, egress=self.egress
        )

    def _judge(self) -> Judge:
        return Judge(self.seat, self.replay, self.scales, self._want)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _scales(self, permits: Callable[[Sequence[str]], Permitted]) -> Scales:
        return Scales(self.home, self.kit.trainer, ("rows",), self.kit.held_out_rows, permits=permits)

    def _measurable(self, datasets: Sequence[str]) -> Permitted:
        return self.permits.evaluate(datasets) if self.may_measure(self) else {}

    def _max_blob(self) -> int:
        return self.fold.charter.gate.max_blob_bytes if self.fold.known else 0

    def _want(self, lacking: Iterable[Contribution]) -> None:
        self.wanted += lacking

    def _entropy(self, size: int) -> bytes:
        return self.random.randbytes(size)


def view_of(member: Member) -> Digest | None:
    """The model that a member would train from and serve now; None while a blob is missing."""
    model = member.replay.view(lambda _c: True)
    return None if isinstance(model, Missing) else model.digest
