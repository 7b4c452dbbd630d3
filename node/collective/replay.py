"""From feeds and blobs to registers, views and releases, without torch: the arithmetic that everybody repeats.

Knows where blobs come from only as a function. Law: equal sets of accepted contributions give equal bytes; leaving one
out gives the bytes of never having had it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from contrib import copies, merging, recipes
from contrib.merging import Register
from ledger import rules
from ledger.charter import Charter, Gate, Update
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut, RegisterDigest
from node.collective import gate
from node.collective.gate import Reject
from node.collective.sums import Sum, Sums
from protocol.ids import Digest, EventId, MemberId
from protocol.sparse import SparseUpdate

Vector = npt.NDArray[np.float32]
ReadBlob = Callable[[Digest], bytes | None]
_Key = tuple[EventId, Gate, Update]
_KEPT_BYTES = 128 << 20  # decoded updates in memory
_KEPT_PAIRS = 1 << 16  # comparisons of two contributions


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A merged vector [P] with its digest and the registers it was merged from."""

    vector: Vector
    digest: Digest
    registers: Mapping[MemberId, Register]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What cannot be computed, because these blobs (or, with none named, entries) are not here."""

    blobs: tuple[Digest, ...]


class Replay:
    """Decodes contributions once and merges any set of them; threads may share one."""

    def __init__(self, collective: Collective, read_blob: ReadBlob) -> None:
        self._collective = collective
        self._read = read_blob
        self._examined: dict[_Key, gate.Accept | Reject] = {}
        self._bytes = 0
        self._alike: dict[tuple[EventId, EventId], bool] = {}
        self.compared: dict[EventId, tuple[int, int, tuple[Contribution, ...]]] = {}  # kept by `copying.repeated`
        self._sums: Sums[Contribution] = Sums()
        self._lock = threading.Lock()

    def examine(self, contribution: Contribution) -> gate.Accept | Reject | None:
        """The hard checks' answer under the charter that decides on it; None while the blob is not here."""
        charter = self._collective.charter_for(contribution)
        if charter is None:
            return Reject(code="stale", text="couldn't accept contribution: its epoch is not one of this collective")
        key = (contribution.event, charter.gate, charter.update)
        with self._lock:
            known = self._examined.pop(key, None)
            if known is not None:
                self._examined[key] = known  # the last one used is the last one forgotten
                return known
        answer: gate.Accept | Reject | None = gate.oversized(charter, contribution)
        if answer is None:
            blob = self._read(contribution.blob)
            if blob is None:
                return None
            answer = gate.examine(self._collective.id, charter, contribution, blob)
        self._keep(key, answer)
        return answer

    def _keep(self, key: _Key, answer: gate.Accept | Reject) -> None:
        with self._lock:
            if key in self._examined:
                return
            self._examined[key] = answer
            self._bytes += _weight(answer)
            while self._bytes > _KEPT_BYTES and len(self._examined) > 1:
                oldest = next(iter(self._examined))
                self._bytes -= _weight(self._examined.pop(oldest))

    def is_copy(self, copy: Contribution, original: Contribution) -> bool:
        """Whether one contribution repeats another, whichever came first; False while a blob is not here."""
        key = (copy.event, original.event)
        known = self._alike.get(key)
        if known is not None:
            return known
        one, other = self.examine(copy), self.examine(original)
        if one is None or other is None:
            return False  # not remembered: the blob may still come
        alike = (
            not isinstance(one, Reject) and not isinstance(other, Reject) and copies.is_copy(one.update, other.update)
        )
        with self._lock:
            if len(self._alike) >= _KEPT_PAIRS:
                self._alike.pop(next(iter(self._alike)))
            self._alike[key] = alike
        return alike

    def unlike(self, copy: Contribution, original: Contribution) -> bool:
        """Whether both blobs are here and neither contribution repeats the other: that stays so."""
        if self.is_copy(copy, original):
            return False
        return self.examine(copy) is not None and self.examine(original) is not None

    def charter_of(self, epoch: Digest) -> Charter | None:
        """The latest charter whose epoch it is."""
        return next((c for c in reversed(self._collective.charters) if c.epoch_id == epoch), None)

    def merge(
        self, charter: Charter, contributions: Iterable[Contribution], height: int | None = None
    ) -> Model | Missing:
        """Merge a set of contributions under the charter's recipe. Those that fail a hard check are left out.

        `height` is the one that is merged for (None: the next); former members weigh what their seat before it had.

        Raises:
            MergeRefused: a recipe that this version does not know.
        """
        coordinates = charter.adapter.coordinates
        by_member: dict[MemberId, dict[Hashable, Contribution]] = {}
        for contribution in contributions:
            key = self._key(contribution)
            if key is not None:
                by_member.setdefault(self._collective.owner(contribution.member, height), {})[key] = contribution
        lacking: list[Digest] = []
        registers: dict[MemberId, Register] = {}
        for member, parts in sorted(by_member.items()):
            found = self._summed(member, coordinates, parts)
            if isinstance(found, Missing):
                lacking += found.blobs
            elif found.taken:
                registers[member] = found.register
        if lacking:
            return Missing(blobs=tuple(sorted(lacking)))
        weights = self._collective.weights(charter, registers, height)
        vector = recipes.merge(charter.recipe, registers, weights, len(weights), coordinates)
        return Model(vector=vector, digest=merging.model_digest(vector), registers=registers)

    def _key(self, contribution: Contribution) -> _Key | None:
        """A contribution under the checks that decide on it; None: its epoch is not one of this collective."""
        charter = self._collective.charter_for(contribution)
        return None if charter is None else (contribution.event, charter.gate, charter.update)

    def _summed(
        self, member: MemberId, coordinates: int, parts: Mapping[Hashable, Contribution]
    ) -> Sum[Contribution] | Missing:
        """The register of exactly these contributions, made out of the one that was asked for before where that is near."""
        start = self._sums.nearest(member, coordinates, parts)
        gone = self._updates(c for key, c in start.parts.items() if key not in parts)
        if isinstance(gone, Missing):  # a blob is gone that has to be taken out: anew
            start, gone = Sum(parts={}, taken=0, register=merging.empty(coordinates)), []
        fresh = self._updates(c for key, c in parts.items() if key not in start.parts)
        if isinstance(fresh, Missing):
            return fresh
        found = start.changed(parts, fresh, gone)
        self._sums.keep(member, coordinates, found)
        return found

    def _updates(self, contributions: Iterable[Contribution]) -> list[SparseUpdate] | Missing:
        """The updates of those that pass the hard checks."""
        lacking, updates = [], []
        for contribution in contributions:
            answer = self.examine(contribution)
            if answer is None:
                lacking.append(contribution.blob)
            elif not isinstance(answer, Reject):
                updates.append(answer.update)
        return Missing(blobs=tuple(sorted(lacking))) if lacking else updates

    def of_cut(self, charter: Charter, cut: Cut) -> Model | Missing:
        """The model of a cut: its registers are the sums of exactly the contributions it covers."""
        if any(self._collective.sizes.get(h.member, 0) < h.size for h in cut.place.heads):
            return Missing(blobs=())  # entries that the cut builds on are not here yet
        covered = self._collective.in_cut(cut)
        return self.merge(charter, [c for published in covered.values() for c in published], cut.place.height)

    def alone(self, charter: Charter, contributions: Iterable[Contribution]) -> Model | Missing:
        """What one member's contributions add up to, as an adapter by itself: the exact sum, whatever the recipe."""
        updates = self._updates(contributions)
        if isinstance(updates, Missing):
            return updates
        coordinates = charter.adapter.coordinates
        one, register = MemberId(""), merging.registers_of(updates, coordinates)
        vector = recipes.merge("contributor-mean/1", {one: register}, {one: 1}, 1, coordinates)
        return Model(vector=vector, digest=merging.model_digest(vector), registers={one: register} if updates else {})

    def view(self, accepted: Callable[[Contribution], bool]) -> Model | Missing:
        """The release's contributions plus the pending ones that this node accepts, without what has to be forgotten."""
        charter, cut = self._collective.charter, self._collective.current_cut()
        released = [c for published in self._collective.in_cut(cut).values() for c in published] if cut else []
        pending = [c for c in self._collective.pending() if self.examine(c) is not None and accepted(c)]
        gone = rules.forgotten(self._collective)
        return self.merge(charter, [c for c in (*released, *pending) if c.event not in gone])


def completed(cut: Cut, model: Model) -> Cut:
    """The cut with the digests of its registers and model filled in."""
    registers = tuple(
        RegisterDigest(member=m, digest=merging.register_digest(r)) for m, r in sorted(model.registers.items())
    )
    return replace(cut, registers=registers, model=model.digest)


def matches(cut: Cut, model: Model) -> bool:
    """Whether what was computed is what the cut says."""
    return completed(cut, model) == cut


def _weight(answer: gate.Accept | Reject) -> int:
    return 256 if isinstance(answer, Reject) else answer.update.indices.nbytes + answer.update.units.nbytes + 256
