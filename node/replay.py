"""From feeds and blobs to registers, views and releases, without torch: the arithmetic that everybody repeats.

Knows where blobs come from only as a function. Law: equal sets of accepted contributions give equal bytes; leaving one
out gives the bytes of never having had it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from contrib import merging
from contrib.merging import Register
from ledger.charter import Charter
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut, RegisterDigest
from node import gate
from node.gate import Reject
from protocol.ids import Digest, EventId, MemberId
from protocol.sparse import SparseUpdate

Vector = npt.NDArray[np.float32]
ReadBlob = Callable[[Digest], bytes | None]
_KEPT = 512  # decoded updates in memory


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
    """Decodes contributions once and merges any set of them."""

    def __init__(self, collective: Collective, read_blob: ReadBlob) -> None:
        self._collective = collective
        self._read = read_blob
        self._examined: dict[EventId, gate.Accept | Reject] = {}

    def examine(self, contribution: Contribution) -> gate.Accept | Reject | None:
        """The hard checks' answer; None while the blob is not here."""
        known = self._examined.get(contribution.event)
        if known is not None:
            return known
        charter = self.charter_of(contribution.epoch)
        if charter is None:
            return Reject(code="stale", text="couldn't accept contribution: its epoch is not one of this collective")
        answer: gate.Accept | Reject | None = gate.oversized(charter, contribution)
        if answer is None:
            blob = self._read(contribution.blob)
            if blob is None:
                return None
            answer = gate.examine(self._collective.id, charter, contribution, blob)
        if len(self._examined) >= _KEPT:
            self._examined.pop(next(iter(self._examined)))
        self._examined[contribution.event] = answer
        return answer

    def charter_of(self, epoch: Digest) -> Charter | None:
        """The latest charter whose epoch it is."""
        return next((c for c in reversed(self._collective.charters) if c.epoch_id == epoch), None)

    def merge(self, charter: Charter, contributions: Iterable[Contribution]) -> Model | Missing:
        """Merge a set of contributions under the charter's recipe. Those that fail a hard check are left out."""
        coordinates = charter.adapter.coordinates
        by_member: dict[MemberId, list[SparseUpdate]] = {}
        lacking = []
        for contribution in contributions:
            answer = self.examine(contribution)
            if answer is None:
                lacking.append(contribution.blob)
            elif not isinstance(answer, Reject):
                by_member.setdefault(contribution.member, []).append(answer.update)
        if lacking:
            return Missing(blobs=tuple(sorted(lacking)))
        registers = {m: merging.registers_of(updates, coordinates) for m, updates in sorted(by_member.items())}
        weights = self._collective.weights(charter, registers)
        vector = merging.merge(charter.recipe, registers, weights, len(weights), coordinates)
        return Model(vector=vector, digest=merging.model_digest(vector), registers=registers)

    def of_cut(self, charter: Charter, cut: Cut) -> Model | Missing:
        """The model of a cut: its registers are the sums of exactly the contributions it covers."""
        if any(self._collective.sizes.get(h.member, 0) < h.size for h in cut.place.heads):
            return Missing(blobs=())  # entries that the cut builds on are not here yet
        covered = self._collective.in_cut(cut)
        return self.merge(charter, [c for published in covered.values() for c in published])

    def view(self, accepted: Callable[[Contribution], bool]) -> Model | Missing:
        """The release's contributions plus the pending ones that this node accepts."""
        charter, cut = self._collective.charter, self._collective.current_cut()
        released = [c for published in self._collective.in_cut(cut).values() for c in published] if cut else []
        pending = [c for c in self._collective.pending() if self.examine(c) is not None and accepted(c)]
        return self.merge(charter, [*released, *pending])


def completed(cut: Cut, model: Model) -> Cut:
    """The cut with the digests of its registers and model filled in."""
    registers = tuple(
        RegisterDigest(member=m, digest=merging.register_digest(r)) for m, r in sorted(model.registers.items())
    )
    return replace(cut, registers=registers, model=model.digest)


def matches(cut: Cut, model: Model) -> bool:
    """Whether what was computed is what the cut says."""
    return completed(cut, model) == cut
