"""Which later contributions were trained from a view that had some contributions in it.

A card names the view that its run began with by its model digest. Where that is the base or a release, what was in it is
certain. Where it is a release and pending contributions, the sets that its author can have held by its own record are merged
until one has that digest; if none has, the answer is "may contain". What an author sends later can hold what it had learnt but
not sent before, so whoever was trained on them once is "may contain" from then on.

Law: `contains` only what a digest proves. Knows no store; says nothing of what members did outside the record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from contrib.merging import model_digest
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut
from ledger.entry import Header
from node.collective.replay import Missing, Replay
from protocol import contribution as blobs
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

CONTAINS: Final = "contains"
MAY: Final = "may-contain"
BY_VIEW: Final = "view"
BY_REST: Final = "unsent-rest"
UNKNOWN_VIEW: Final = "view-unknown"
NO_CARD: Final = "card-missing"
_TRIES: Final = 512  # merges in one question
_TRIES_EACH: Final = 24
_RELEASES_BACK: Final = 2

Parts = frozenset[EventId]
ReadBlob = Callable[[Digest], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descendant:
    """A later contribution: `certainty` is CONTAINS or MAY, `why` how that is known, `through` what it has it from."""

    event: EventId
    member: MemberId
    number: int
    view: Digest | None  # None: its card is not here
    certainty: str
    why: str
    through: tuple[EventId, ...]  # ascending; asked ones, or descendants listed before

    def to_json(self) -> dict[str, Json]:
        """As a bundle lists it."""
        return {
            "event": self.event,
            "member": self.member,
            "number": self.number,
            "view": self.view,
            "certainty": self.certainty,
            "why": self.why,
            "through": list(self.through),
        }


@dataclass(slots=True, kw_only=True)
class _State:
    """One question under way: what is asked about, what is known of the others, and what was found so far."""

    asked: frozenset[EventId]
    rest: list[Contribution]
    views: Mapping[EventId, Digest | None]
    parts: Mapping[EventId, Parts | None]
    found: dict[EventId, tuple[str, str]] = field(default_factory=dict)

    @property
    def sure(self) -> frozenset[EventId]:
        """The asked ones, and what certainly has one in it."""
        return self.asked | {e for e, (certainty, _) in self.found.items() if certainty == CONTAINS}

    @property
    def touched(self) -> frozenset[EventId]:
        """The asked ones, and whatever may have one in it."""
        return self.asked | self.found.keys()


class Knowledge:
    """How much of each feed the author of an entry held, by the heads that it had named up to there."""

    def __init__(self) -> None:
        self._steps: dict[MemberId, list[tuple[int, Mapping[MemberId, int]]]] = {}

    def add(self, headers: Iterable[Header]) -> None:
        """Take the headers of one feed in their order."""
        for header in headers:
            steps = self._steps.setdefault(header.member, [])
            if header.seen:
                known = dict(steps[-1][1]) if steps else {}
                for seen in header.seen:
                    known[seen.member] = max(known.get(seen.member, 0), seen.seq + 1)
                steps.append((header.seq, known))

    def at(self, member: MemberId, seq: int) -> dict[MemberId, int]:
        """What the author of entry `seq` held when it wrote that, its own entries before it included."""
        found: Mapping[MemberId, int] = {}
        for at, known in self._steps.get(member, ()):
            if at > seq:
                break
            found = known
        return {**found, member: seq}

    def between(self, member: MemberId, after: int, upto: int) -> list[dict[MemberId, int]]:
        """The different states from entry `after` (excluded) to `upto`, the newest first."""
        steps = sorted({s for s, _ in self._steps.get(member, ()) if after < s <= upto} | {after + 1, upto})
        return [self.at(member, seq) for seq in reversed(steps)]


@dataclass(slots=True)
class Lineage:
    """Answers for one state of a collective."""

    fold: Collective
    replay: Replay
    read: ReadBlob
    knowledge: Knowledge
    _tried: int = 0

    def descendants(self, asked: Collection[EventId]) -> list[Descendant]:
        """Later contributions of the asked ones' epochs that had one of them in their view, certainly or perhaps.

        In the order of their authors' dates; whoever was left out itself is not listed.
        """
        known = {c.event: c for by in self.fold.contributions.values() for c in by}
        epochs = {known[event].epoch for event in asked if event in known}
        rest = [c for c in known.values() if c.epoch in epochs and c.event not in asked]
        views = {c.event: self._view(c) for c in rest}
        parts = {c.event: self._parts(c, view) for c in rest if (view := views[c.event]) is not None}
        state = _State(asked=frozenset(asked), rest=rest, views=views, parts=parts)
        while fresh := self._step(state):
            state.found |= fresh
        found = [
            Descendant(
                event=c.event, member=c.member, number=c.number, view=views[c.event],
                certainty=state.found[c.event][0], why=state.found[c.event][1],
                through=tuple(sorted(self._through(state, c))),
            )
            for c in rest if c.event in state.found
        ]  # fmt: skip
        return sorted(found, key=lambda d: (self.fold.sources[d.event].ts, d.event))

    def _step(self, state: _State) -> dict[EventId, tuple[str, str]]:
        """What follows from what is found so far; a certain answer replaces a doubtful one, never the other way."""
        fresh: dict[EventId, tuple[str, str]] = {}
        for each in state.rest:
            before, inside = state.found.get(each.event), state.parts.get(each.event)
            if before is not None and before[0] == CONTAINS:
                continue
            if inside is not None and inside & state.sure:
                fresh[each.event] = (CONTAINS, BY_VIEW)
            elif before is not None:
                continue
            elif inside is not None and inside & state.touched:
                fresh[each.event] = (MAY, BY_VIEW)
            elif inside is None and self._held(each) & state.touched:
                fresh[each.event] = (MAY, NO_CARD if state.views[each.event] is None else UNKNOWN_VIEW)
            elif self._earlier(each) & state.touched:
                fresh[each.event] = (MAY, BY_REST)
        return fresh

    def _through(self, state: _State, each: Contribution) -> frozenset[EventId]:
        """What a descendant has it from, as far as the answer to it goes."""
        certainty, why = state.found[each.event]
        if why == BY_REST:
            return self._earlier(each) & state.touched
        inside = state.parts.get(each.event)
        return (self._held(each) if inside is None else inside) & (
            state.sure if certainty == CONTAINS else state.touched
        )

    def _view(self, contribution: Contribution) -> Digest | None:
        """The view that a contribution's card names; None when its blob is not here, or is none."""
        blob = self.read(contribution.blob)
        try:
            return None if blob is None else blobs.unpack(blob, max_bytes=max(len(blob), 1)).card.view
        except Refused:
            return None

    def _held(self, contribution: Contribution) -> Parts:
        """Every contribution of the epoch that its author had on record when it published it."""
        known = self.knowledge.at(contribution.member, contribution.source.seq)
        return frozenset(c.event for c in self._all(contribution.epoch) if c.source.seq < known.get(c.member, 0))

    def _earlier(self, contribution: Contribution) -> Parts:
        """Earlier contributions by the same seat in the epoch: what it had learnt then and not sent may be in this one."""
        owner, seq = self.fold.owner(contribution.member), contribution.source.seq
        return frozenset(
            c.event
            for c in self._all(contribution.epoch)
            if self.fold.owner(c.member) == owner
            and (c.member != contribution.member or c.source.seq < seq)
            and c.event != contribution.event
        )

    def _all(self, epoch: Digest) -> list[Contribution]:
        return [c for by in self.fold.contributions.values() for c in by if c.epoch == epoch]

    # -- what a view was made of -----------------------------------------------------------------------------------------
    def _parts(self, contribution: Contribution, view: Digest) -> Parts | None:
        """The contributions that a view was merged from; None when that cannot be decided."""
        charter = self.replay.charter_of(contribution.epoch)
        if charter is not None and view == model_digest(np.zeros(charter.adapter.coordinates, dtype=np.float32)):
            return frozenset()
        for decision in reversed(self.fold.releases):
            cut = decision.value
            if isinstance(cut, Cut) and cut.model == view and cut.epoch == contribution.epoch:
                return frozenset(c.event for taken in self.fold.in_cut(cut).values() for c in taken)
        return self._rebuilt(contribution, view)

    def _rebuilt(self, contribution: Contribution, view: Digest) -> Parts | None:
        """Merge what its author can have held when the run began, until the digest is the one on the card."""
        mine = [c.source.seq for c in self.fold.contributions[contribution.member] if c.epoch == contribution.epoch]
        seq = contribution.source.seq
        after = max((s for s in mine if s < seq), default=-1)
        tried: set[tuple[int, Parts]] = set()
        for known in self.knowledge.between(contribution.member, after, seq):
            for height, parts in self._candidates(contribution.epoch, known):
                if (height, parts) in tried:
                    continue
                tried.add((height, parts))
                if len(tried) > _TRIES_EACH or self._tried >= _TRIES:
                    return None
                self._tried += 1
                charter = self.fold.charter_at(min(height, len(self.fold.charters)))
                model = self.replay.merge(charter, [c for c in self._all(charter.epoch_id) if c.event in parts], height)
                if not isinstance(model, Missing) and model.digest == view:
                    return parts
        return None

    def _candidates(self, epoch: Digest, known: Mapping[MemberId, int]) -> Iterable[tuple[int, Parts]]:
        """What a view can have been to somebody who held so much: each of the newest releases, and what waited then."""
        held = [c for c in self._all(epoch) if c.source.seq < known.get(c.member, 0)]
        asked = {e for e, by in self.fold.forgotten.items() if any(s.seq < known.get(s.member, 0) for s in by)}
        cuts = [
            (d.height, d.value)
            for d in self.fold.releases
            if isinstance(d.value, Cut) and d.value.epoch == epoch and d.proposal.seq < known.get(d.proposal.member, 0)
        ]
        for height, cut in reversed(cuts[-_RELEASES_BACK:]):
            inside = {c.event for taken in self.fold.in_cut(cut).values() for c in taken}
            waiting = {c.event for c in held if c.source.seq >= cut.place.size_of(c.member)}
            yield height + 1, frozenset((inside | waiting) - asked)
            yield height + 1, frozenset(inside | waiting)
        if len(cuts) < _RELEASES_BACK:
            first = min((h for h, c in enumerate(self.fold.charters, 1) if c.epoch_id == epoch), default=1)
            yield first, frozenset(c.event for c in held if c.event not in asked)


def knowledge_of(feeds: Iterable[Iterable[Header]]) -> Knowledge:
    """The knowledge of all authors, from the headers of every feed in their order."""
    found = Knowledge()
    for headers in feeds:
        found.add(headers)
    return found


__all__ = ["CONTAINS", "MAY", "Descendant", "Knowledge", "Lineage", "knowledge_of"]
