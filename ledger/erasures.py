"""Erasure, folded from verified feeds: what was requested, whose bodies must go, who has confirmed, and what is marked.

Knows no store, clock or row. `apply` takes the entries of each feed in their order; feeds may interleave in any way. A member
may ask for bodies of its own feed alone, or of those of its seat's earlier keys, so nobody erases somebody else's evidence.
Law: the state depends on the set of applied entries, not on how the feeds interleave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ledger import events
from ledger.entry import Record
from ledger.tally import Source
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One access to rows of a data set, as its body says; `decision` allowed it."""

    source: Source
    used: events.DataUsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What rows of a data set went into: contributions, the runs behind them or still to be published, and bodies."""

    contributions: tuple[EventId, ...]
    entries: tuple[EventId, ...]
    runs: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One `erasure.requested`, and the members that confirmed it."""

    source: Source
    asked: events.ErasureRequested
    confirmed: Mapping[MemberId, int]


class Erasures:
    """The fold."""

    def __init__(self) -> None:
        self.sizes: dict[MemberId, int] = {}
        self.earlier: Mapping[
            MemberId, frozenset[MemberId]
        ] = {}  # keys that held a member's seat before, by the charter
        self._asked: dict[EventId, tuple[Source, events.ErasureRequested]] = {}
        self._done: dict[EventId, dict[MemberId, int]] = {}
        self._uses: dict[MemberId, list[Use]] = {}
        self._decided: dict[MemberId, set[EventId]] = {}
        self._published: dict[MemberId, list[tuple[EventId, str]]] = {}
        self._erasable: dict[EventId, Source] = {}
        self.held: set[EventId] = set()  # erasable entries whose bodies lie here

    def apply(self, record: Record) -> None:
        """Apply the next entry of its feed; entries already applied, and those that cannot be read, are passed over."""
        header = record.entry.header
        if header.seq < self.sizes.get(header.member, 0):
            return
        self.sizes[header.member] = header.seq + 1
        source = Source(member=header.member, seq=header.seq, event=record.entry.event, ts=header.ts)
        if header.type in events.ERASABLE:
            self._erasable[source.event] = source
            if record.body is not None:
                self.held.add(source.event)
        if record.body is None or header.type not in _READ:
            return
        try:
            self._take(source, events.parse(header.type, record.body.value()))
        except Refused:
            return  # the fold of the collective keeps it as a flaw

    def _take(self, source: Source, event: events.Event) -> None:
        match event:
            case events.ErasureRequested():
                self._asked[source.event] = (source, event)
            case events.ErasureDone():
                self._done.setdefault(event.request, {}).setdefault(source.member, event.bodies)
            case events.DataUsed():
                self._uses.setdefault(source.member, []).append(Use(source=source, used=event))
            case events.AccessDecided():
                self._decided.setdefault(source.member, set()).add(source.event)
            case events.Published():
                self._published.setdefault(source.member, []).append((source.event, event.run))
            case _:
                pass

    # -- what is asked for -------------------------------------------------------------------------------------------
    def requests(self) -> list[Request]:
        """Every request, oldest first as its author dates it."""
        found = sorted(self._asked.values(), key=lambda each: (each[0].ts, each[0].event))
        return [Request(source=s, asked=a, confirmed=dict(self._done.get(s.event, {}))) for s, a in found]

    def waiting(self, holders: Collection[MemberId]) -> list[tuple[Request, tuple[MemberId, ...]]]:
        """Requests that some of `holders` have not confirmed, with those members in ascending order."""
        found = [(r, tuple(sorted(m for m in holders if not self.confirmed(r, m)))) for r in self.requests()]
        return [(request, missing) for request, missing in found if missing]

    def owed(self, me: MemberId) -> list[Request]:
        """Requests that `me` has not confirmed, or of which bodies lie here again."""
        return [r for r in self.requests() if not self.confirmed(r, me) or self._left(r)]

    def confirmed(self, request: Request, member: MemberId) -> bool:
        """Whether a member has confirmed a request, with whatever key its seat had then."""
        return not self._keys(member).isdisjoint(request.confirmed)

    def _left(self, request: Request) -> bool:
        return any(source.event in self.held for source in self.bodies(request))

    def _keys(self, member: MemberId) -> frozenset[MemberId]:
        return frozenset({member}) | self.earlier.get(member, frozenset())

    def bodies(self, request: Request) -> list[Source]:
        """The entries of the author's own feed, of an erasable type, whose bodies a request names."""
        found = [self._erasable.get(event) for event in request.asked.entries]
        authors = self._keys(request.source.member)
        return [source for source in found if source is not None and source.member in authors]

    def erased(self, gone: Iterable[Source]) -> None:
        """Note that these bodies are no longer held here."""
        self.held.difference_update(source.event for source in gone)

    def marked(self) -> dict[EventId, tuple[EventId, ...]]:
        """Contributions of whose rows some were forgotten, each with the requests of its own author that say so."""
        found: dict[EventId, list[EventId]] = {}
        for request in self.requests():
            mine = {event for event, _ in self._of(self._published, request.source.member)}
            for event in request.asked.contributions:
                if event in mine:
                    found.setdefault(event, []).append(request.source.event)
        return {event: tuple(requests) for event, requests in found.items()}

    # -- where rows went ---------------------------------------------------------------------------------------------
    def trace(self, member: MemberId, dataset: str, roots: Collection[Digest] | None) -> Trace:
        """What the rows behind these commitments of a member's data set went into; None: behind any commitment of it.

        Where the record no longer tells, the answer is the larger one: a contribution of a run whose accesses were erased
        counts, unless every erasure that named it was about another data set.
        """
        uses = self._of(self._uses, member)
        decided = {event for key in self._keys(member) for event in self._decided.get(key, ())}
        hits = [u for u in uses if u.used.dataset == dataset and (roots is None or u.used.root in roots)]
        runs = {u.used.run for u in hits}
        learnt = {u.used.run for u in hits if u.used.action != "evaluate"}
        readable = {u.used.run for u in uses}
        named = self._named(member)
        found = set()
        for event, run in self._of(self._published, member):
            before = named.get(event)
            lost = dataset in before if before is not None else run not in readable
            if run in learnt or lost:
                found.add(event)
        entries = {u.source.event for u in hits} | ({u.used.decision for u in hits} & decided)
        return Trace(
            contributions=tuple(sorted(found)),
            entries=tuple(sorted(event for event in entries if event in self.held)),
            runs=frozenset(runs),
        )

    def _of(self, kept: Mapping[MemberId, list[_T]], member: MemberId) -> list[_T]:
        return [each for key in sorted(self._keys(member)) for each in kept.get(key, ())]

    def _named(self, member: MemberId) -> dict[EventId, set[str]]:
        """Contributions that earlier requests of the member name, with the data sets they were about."""
        found: dict[EventId, set[str]] = {}
        for source, asked in self._asked.values():
            if source.member in self._keys(member):
                for event in asked.contributions:
                    found.setdefault(event, set()).add(asked.dataset)
        return found


_READ = frozenset(
    {
        events.ErasureRequested.TYPE,
        events.ErasureDone.TYPE,
        events.DataUsed.TYPE,
        events.AccessDecided.TYPE,
        events.Published.TYPE,
    }
)
