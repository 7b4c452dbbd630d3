"""The state of a collective: a fold over the verified feeds of its members.

Knows no store, network, clock or blob. `apply` takes the entries of each feed in their order; feeds may interleave in any
way: what follows (charter, decisions, contributions and their fate) depends only on the set of entries. Restart = replay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ledger import charter as charters
from ledger import cuts, events
from ledger.charter import Charter
from ledger.cuts import Amendment, Cut, Value
from ledger.entry import Record
from ledger.errors import BadCharter, BadEvent
from ledger.tally import DoubleVote, Proposal, Source, Tally
from protocol import binding as bindings
from protocol import canon
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A published contribution; its blob is elsewhere."""

    source: Source
    epoch: Digest
    number: int
    blob: Digest
    size: int

    @property
    def event(self) -> EventId:
        """The event that published it."""
        return self.source.event

    @property
    def member(self) -> MemberId:
        """Whose it is."""
        return self.source.member


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a height decided, with its certificate: the commits of a quorum."""

    height: int
    attempt: int
    digest: Digest
    value: Value
    charter: Charter
    proposal: Source
    commits: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An amendment somebody proposed."""

    source: Source
    change: dict[str, canon.Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """An entry that the fold could not take as it stands."""

    source: Source
    code: str
    text: str


class Collective:
    """The fold. Law: the state depends on the set of applied entries, not on how the feeds interleave."""

    def __init__(self, id_: CollectiveId) -> None:
        self.id = id_
        self.genesis: Charter | None = None
        self.founder: MemberId | None = None
        self.sizes: dict[MemberId, int] = {}
        self.leaves: dict[MemberId, list[Digest]] = {}
        self.contributions: dict[MemberId, list[Contribution]] = {}
        self.data: dict[MemberId, dict[str, events.DataCommitted]] = {}
        self.peers: dict[PeerId, MemberId] = {}
        self.asked: dict[EventId, Asked] = {}
        self.approvals: dict[EventId, dict[MemberId, Source]] = {}
        self.sources: dict[EventId, Source] = {}
        self.seen_by_commit: dict[EventId, dict[MemberId, int]] = {}
        self.decisions: list[Decision] = []
        self.flaws: list[Flaw] = []
        self.double_votes: list[DoubleVote] = []
        self.unknown_types: dict[str, int] = {}
        self._tallies: dict[int, Tally] = {}
        self._charters: list[Charter] = []

    # -- what is true now --------------------------------------------------------------------------------------------

    @property
    def charter(self) -> Charter:
        """The charter in force for the next height.

        Raises:
            BadCharter: the genesis charter has not been seen yet.
        """
        if not self._charters:
            raise BadCharter("couldn't find charter: the founder's feed has not been received yet")
        return self._charters[-1]

    @property
    def known(self) -> bool:
        """Whether the genesis charter is here."""
        return bool(self._charters)

    @property
    def height(self) -> int:
        """The next height to decide, from 1."""
        return len(self.decisions) + 1

    @property
    def parent(self) -> Digest:
        """The decision before the next height; the collective id stands before the first."""
        return self.decisions[-1].digest if self.decisions else Digest(self.id)

    @property
    def releases(self) -> list[Decision]:
        """Decisions that are release cuts, oldest first."""
        return [d for d in self.decisions if isinstance(d.value, Cut)]

    @property
    def cut(self) -> Cut | None:
        """The latest release cut."""
        releases = self.releases
        value = releases[-1].value if releases else None
        return value if isinstance(value, Cut) else None

    @property
    def tally(self) -> Tally:
        """The votes at the next height."""
        return self._tallies.get(self.height) or Tally(self.height)

    def tally_of(self, height: int) -> Tally:
        """The votes at any height."""
        return self._tallies.get(height) or Tally(height)

    @property
    def charters(self) -> tuple[Charter, ...]:
        """Every charter that was in force, oldest first."""
        return tuple(self._charters)

    def charter_at(self, height: int) -> Charter:
        """The charter under which a height is, or was, decided."""
        return self._charters[height - 1]

    def weights(self, charter: Charter, also: Iterable[MemberId] = ()) -> dict[MemberId, int]:
        """Merge weights of the charter's contributors, and of former ones in `also` as their last seat had it."""
        weights = {m.id: m.weight for m in charter.contributors}
        for member in also:
            if member not in weights:
                seats = [c.member(member) for c in self._charters]
                weights[member] = next((s.weight for s in reversed(seats) if s), 1)
        return weights

    def ever_members(self) -> set[MemberId]:
        """Everybody who has, or had, a seat: their feeds are part of the record."""
        return {m.id for c in self._charters for m in c.members}

    def current_cut(self) -> Cut | None:
        """The latest cut, if it belongs to the epoch in force."""
        cut = self.cut
        return cut if cut and cut.epoch == self.charter.epoch_id else None

    def in_cut(self, cut: Cut) -> dict[MemberId, list[Contribution]]:
        """The contributions whose sum each register of the cut is."""
        left_out = {x.event for x in cut.excluded}
        covered: dict[MemberId, list[Contribution]] = {}
        for member, published in self.contributions.items():
            size = cut.place.size_of(member)
            taken = [c for c in published if c.epoch == cut.epoch and c.source.seq < size and c.event not in left_out]
            if taken:
                covered[member] = taken
        return covered

    def fate(self, contribution: Contribution) -> str:
        """`released`, `refused`, `stale` (another epoch) or `pending`."""
        if contribution.epoch != self.charter.epoch_id:
            return "stale"
        cut = self.current_cut()
        if cut is None:
            return "pending"
        if any(x.event == contribution.event for x in cut.excluded):
            return "refused"
        return "released" if contribution.source.seq < cut.place.size_of(contribution.member) else "pending"

    def pending(self) -> list[Contribution]:
        """Contributions of this epoch, by seated contributors, that no cut covers yet."""
        seats = {m.id for m in self.charter.contributors}
        return [c for m in sorted(seats) for c in self.contributions.get(m, []) if self.fate(c) == "pending"]

    def ripe_amendments(self) -> list[Asked]:
        """Undecided amendments that a quorum of voters approves and that apply to the charter in force."""
        done = {d.value.proposal for d in self.decisions if isinstance(d.value, Amendment)}
        voters = {m.id for m in self.charter.voters}
        ripe = [
            a
            for e, a in self.asked.items()
            if e not in done and len(voters & set(self.approvals.get(e, {}))) >= self.charter.quorum
        ]
        return sorted((a for a in ripe if self._applies(a)), key=lambda a: (a.source.ts, a.source.event))

    def before(self, height: int) -> Collective:
        """The same entries as they stood before a height was decided; shares everything but the decisions."""
        past = copy.copy(self)
        past.decisions = self.decisions[: height - 1]
        past._charters = self._charters[:height]
        return past

    # -- the fold ----------------------------------------------------------------------------------------------------

    def apply_all(self, records: Iterable[Record]) -> None:
        """Apply the entries of one feed in their order."""
        for record in records:
            self.apply(record)

    def apply(self, record: Record) -> None:
        """Apply the next entry of its feed; entries already applied are passed over."""
        header = record.entry.header
        if header.seq < self.sizes.get(header.member, 0):
            return
        self.sizes[header.member] = header.seq + 1
        self.leaves.setdefault(header.member, []).append(record.entry.leaf)
        source = Source(member=header.member, seq=header.seq, event=record.entry.event, ts=header.ts)
        self.sources[source.event] = source
        if header.type == events.Committed.TYPE:
            self.seen_by_commit[source.event] = {s.member: s.seq + 1 for s in header.seen}
        if header.type not in events.TYPES:
            self.unknown_types[header.type] = self.unknown_types.get(header.type, 0) + 1
            return
        if record.body is None:
            return
        try:
            body = canon.decode(record.body.data, max_bytes=len(record.body.data))
            self._take(source, events.parse(header.type, body))
        except Refused as e:
            self.flaws.append(Flaw(source=source, code=e.code, text=str(e)))
            return
        self._advance()

    def _take(self, source: Source, event: events.Event) -> None:  # noqa: PLR0912 - one arm per event type
        member = source.member
        double: DoubleVote | None = None
        match event:
            case events.Genesis():
                self._found(source, event)
            case events.PeerBound():
                bound = bindings.verify(dict(event.binding))
                if bound.member != member:
                    raise BadEvent("couldn't bind peer: the binding names another member")
                self.peers[bound.peer] = member
            case events.AmendmentProposed():
                self.asked[source.event] = Asked(source=source, change=dict(event.change))
                self.approvals.setdefault(source.event, {})[member] = source
            case events.AmendmentApproved():
                self.approvals.setdefault(event.proposal, {})[member] = source
            case events.DataCommitted():
                self.data.setdefault(member, {})[event.dataset] = event
            case events.Published():
                self._publish(source, event)
            case events.Verdict():
                self._tally(event.height).judge(source, event)
            case events.Proposed():
                value = cuts.parse(dict(event.value))
                if value.place.height != event.height:
                    raise BadEvent("couldn't take proposal: its value names another height")
                proposal = Proposal(
                    source=source,
                    attempt=event.attempt,
                    valid_attempt=event.valid_attempt,
                    digest=value.digest,
                    value=value,
                )
                double = self._tally(event.height).propose(proposal)
            case events.Accepted() | events.Objected():
                double = self._tally(event.height).first(source, event)
            case events.Committed():
                double = self._tally(event.height).commit(source, event)
            case events.NodeStarted() | events.DataUsed():
                pass
        if double:
            self.double_votes.append(double)

    def _found(self, source: Source, event: events.Genesis) -> None:
        genesis = charters.parse(dict(event.charter))
        if charters.collective_id(genesis) != self.id or source.seq != 0:
            raise BadEvent("couldn't take genesis: its digest is not the collective id, or it is not the first entry")
        if genesis.member(source.member) is None:
            raise BadEvent("couldn't take genesis: its author has no seat")
        if self.genesis is None:
            self.genesis, self.founder = genesis, source.member
            self._charters.append(genesis)

    def _publish(self, source: Source, event: events.Published) -> None:
        published = self.contributions.setdefault(source.member, [])
        same = [c.number for c in published if c.epoch == event.epoch]
        if event.number != (max(same) if same else 0) + 1:
            raise BadEvent(f"couldn't take contribution {event.number}: the next number is {len(same) + 1}")
        published.append(
            Contribution(source=source, epoch=event.epoch, number=event.number, blob=event.blob, size=event.size)
        )

    def _tally(self, height: int) -> Tally:
        if height < 1:
            raise BadEvent("couldn't take vote: heights start at 1")
        return self._tallies.setdefault(height, Tally(height))

    def _applies(self, asked: Asked) -> bool:
        try:
            charters.amended(self.charter, asked.change)
        except Refused:
            return False
        return True

    def _advance(self) -> None:
        while self._charters and (decision := self._decided()):
            self.decisions.append(decision)
            charter = decision.charter
            if isinstance(decision.value, Amendment):
                try:
                    charter = charters.amended(charter, decision.value.change)
                except Refused as e:
                    self.flaws.append(Flaw(source=decision.proposal, code=e.code, text=str(e)))
            self._charters.append(charter)

    def _decided(self) -> Decision | None:
        charter, tally = self.charter, self._tallies.get(self.height)
        if tally is None:
            return None
        voters = {m.id for m in charter.voters}
        outcome = tally.decided(voters, charter.quorum)
        if outcome is None or (value := tally.values.get(outcome[1])) is None:
            return None
        attempt, digest = outcome
        commits = tally.commits[attempt]
        return Decision(
            height=self.height,
            attempt=attempt,
            digest=digest,
            value=value,
            charter=charter,
            proposal=next(p.source for p in self._proposals(tally) if p.digest == digest),
            commits=tuple(commits[m].source for m in sorted(commits) if m in voters and commits[m].digest == digest),
        )

    @staticmethod
    def _proposals(tally: Tally) -> Iterator[Proposal]:
        for attempt in sorted(tally.proposals):
            yield from tally.proposals[attempt].values()


def leaf_at(collective: Collective, member: MemberId, size: int) -> Digest | None:
    """The leaf of entry size-1 of a feed, None when it is not here; ZERO for size 0."""
    if size == 0:
        return ZERO
    leaves = collective.leaves.get(member, [])
    return leaves[size - 1] if size <= len(leaves) else None
