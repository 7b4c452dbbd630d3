"""The rest of a forget bundle, repeated from the contributions themselves: registers, models, and the views on cards.

For whoever has the blobs beside the file; no ledger, no store, no torch. Invariant: what it passes was computed here from bytes
whose digests their authors signed; a blob that is not here leaves what needs it unchecked, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from contrib import merging, recipes
from contrib.merging import Register
from ledger import events
from ledger.bundle_check import Checked
from ledger.cuts import Cut
from ledger.entry import parse_stored
from ledger.errors import BadBundle
from protocol import contribution as blobs
from protocol import sparse
from protocol.card import Contribution
from protocol.ids import Digest, EventId, MemberId, digest
from protocol.sparse import SparseUpdate

ReadBlob = Callable[[Digest], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """What was computed again: releases whose registers and model came out, those without the asked ones, views on cards."""

    releases: tuple[int, ...]
    without: tuple[int, ...]
    views: int
    missing: tuple[Digest, ...]


@dataclass(slots=True)
class _Repeating:
    checked: Checked
    read: ReadBlob
    missing: set[Digest] = field(default_factory=set)
    known: dict[EventId, tuple[Contribution, SparseUpdate]] = field(default_factory=dict)


def repeat(checked: Checked, read: ReadBlob) -> Repeated:
    """Compute again what blobs give (raises BadBundle where something else comes out, and what the blobs' readers raise)."""
    work = _Repeating(checked, read)
    releases, without = [], []
    new = checked.new.value
    for cut in (*checked.releases, new):
        if isinstance(cut, Cut) and (found := _model(work, cut, ())) is not None:
            if found != (cut.model, {r.member: r.digest for r in cut.registers}):
                _no(f"release {cut.number} does not come from its contributions")
            releases.append(cut.number)
    for row, cut in zip(checked.bundle.releases, checked.releases, strict=True):
        if row.without is None or (found := _model(work, cut, checked.bundle.asked)) is None:
            continue
        if found[0] != row.without:
            _no(f"release {row.number} without them is not what the bundle says")
        without.append(row.number)
    views = 0
    for each in checked.bundle.descendants:
        loaded = _load(work, each.event)
        if loaded is not None and each.view is not None:
            if loaded[0].card.view != each.view:
                _no(f"the card of {each.event[:12]} names another view")
            views += 1
    return Repeated(releases=tuple(releases), without=tuple(without), views=views, missing=tuple(sorted(work.missing)))


def _model(work: _Repeating, cut: Cut, but: Collection[EventId]) -> tuple[Digest, dict[MemberId, Digest]] | None:
    """Model and register digests of a release without some; None when a blob is missing."""
    charter = work.checked.charters[cut.digest]
    registers: dict[MemberId, list[SparseUpdate]] = {}
    whole = True
    for event, owner in _inside(work.checked, cut):
        if event in but:
            continue
        found = _load(work, event)
        whole = whole and found is not None
        if found is not None:
            registers.setdefault(owner, []).append(found[1])
    if not whole:
        return None
    size = charter.adapter.coordinates
    made: dict[MemberId, Register] = {m: merging.registers_of(u, size) for m, u in sorted(registers.items())}
    weights = {MemberId(str(m)): int(str(w)) for m, w in _pairs(work.checked.weights[cut.digest])}
    seated = {m.id for m in charter.contributors}
    weights = {m: w for m, w in weights.items() if m in seated or m in made}
    vector = recipes.merge(cut.recipe, made, weights, len(weights), size)
    return merging.model_digest(vector), {m: merging.register_digest(r) for m, r in made.items()}


def _inside(checked: Checked, cut: Cut) -> Iterable[tuple[EventId, MemberId]]:
    """The contributions of a release with their owners: those of the logs that lie under it and are not left out."""
    rows = [
        row
        for log in checked.bundle.logs.values()
        if log is not None
        for key in ("inputs", "left_out")
        for row in _pairs(log[key])
    ]
    out = {x.event for x in cut.excluded}
    found: dict[EventId, MemberId] = {}
    for row in rows:
        event, feed = EventId(str(row[0])), str(row[2])
        seq = parse_stored(checked.bundle.entries[event].line).header.seq
        if event not in out and seq < cut.place.size_of(feed):
            found[event] = MemberId(str(row[1]))
    return sorted(found.items())


def _load(work: _Repeating, event: EventId) -> tuple[Contribution, SparseUpdate] | None:
    if event in work.known:
        return work.known[event]
    shown = work.checked.bundle.entries[event]
    said = events.parse(events.Published.TYPE, shown.body.value() if shown.body else {})
    if not isinstance(said, events.Published):
        return None
    blob = work.read(said.blob)
    if blob is None or digest(blob) != said.blob:
        work.missing.add(said.blob)
        return None
    found = blobs.unpack(blob, max_bytes=said.size)
    card, member = found.card, parse_stored(shown.line).header.member
    if (card.member, card.epoch, card.number) != (member, said.epoch, said.number):
        _no(f"the blob of {event[:12]} is another contribution's")
    update = sparse.decode(found.update, coordinates=card.coordinates, max_sent=card.sent)
    work.known[event] = (found, update)
    return work.known[event]


def _pairs(value: object) -> list[list[object]]:
    return [list(row) for row in value if isinstance(row, list)] if isinstance(value, list) else []


def _no(cause: str) -> None:
    raise BadBundle(f"couldn't repeat bundle: {cause}")
