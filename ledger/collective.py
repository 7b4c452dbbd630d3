"""The state of a collective: a fold over the verified feeds of its members.

Knows no store, network, clock or blob. `apply` takes the entries of each feed in their order; feeds may interleave in any
way: what follows (charter, decisions, contributions and their fate) depends only on the set of entries, as long as no more
than f voters lie (two quorums at one height: the first seen stands, the audit names them). Restart = replay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from ledger import charter as charters
from ledger import cuts, events
from ledger.charter import Charter
from ledger.cuts import Amendment, Cut, Place
from ledger.entry import Record
from ledger.errors import BadChain, BadCharter, BadEvent
from ledger.facts import Asked, Contribution, Decision, Flaw
from ledger.tally import DoubleVote, Proposal, Source, Tally
from protocol import binding as bindings
from protocol import canon
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, EventId, MemberId, PeerId

__all__ = ["Asked", "Collective", "Contribution", "Decision", "Flaw", "leaf_at"]


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
        self.bound: dict[MemberId, PeerId] = {}
        self.asked: dict[EventId, Asked] = {}
        self.approvals: dict[EventId, dict[MemberId, Source]] = {}
        self.sources: dict[EventId, Source] = {}
        self.seen_by_commit: dict[EventId, dict[MemberId, int]] = {}
        self.decisions: list[Decision] = []
        self.flaws: list[Flaw] = []
        self.double_votes: list[DoubleVote] = []
        self.withheld: list[Source] = []
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

    @property
    def peers(self) -> Mapping[PeerId, MemberId]:
        """Who each peer speaks for, by every member's newest binding; of two that claim one peer, the lower id."""
        return {self.bound[m]: m for m in sorted(self.bound, reverse=True)}

    def weights(
        self, charter: Charter, also: Iterable[MemberId] = (), height: int | None = None
    ) -> dict[MemberId, int]:
        """Merge weights of the charter's contributors, and of former ones in `also` as their last seat had it.

        `height` is the one that is merged for: a seat given later does not count. None: the next height.
        """
        weights = {m.id: m.weight for m in charter.contributors}
        for member in also:
            if member not in weights:
                seats = [c.member(member) for c in self._charters[:height]]
                weights[member] = next((s.weight for s in reversed(seats) if s), 1)
        return weights

    def ever_members(self) -> set[MemberId]:
        """Everybody who has, or had, a seat: their feeds are part of the record."""
        return {m.id for c in self._charters for m in c.members}

    def current_cut(self) -> Cut | None:
        """The latest cut, if it belongs to the epoch in force."""
        cut = self.cut
        return cut if cut and cut.epoch == self.charter.epoch_id else None

    def covered(self, where: Place, epoch: Digest) -> dict[MemberId, list[Contribution]]:
        """Contributions of an epoch inside the head vector of a cut that is, or may be, decided at `where`.

        One counts when its author had a contributor's seat under the first cut that covered it: what an auditor, an
        endorser or a former member publishes never does. Excluded ones are still among them.
        """
        steps = [
            (d.value.place, d.charter) for d in self.releases if isinstance(d.value, Cut) and d.value.epoch == epoch
        ]
        steps = [step for step in steps if step[0].height < where.height]
        steps.append((where, self.charter_at(min(where.height, len(self._charters)))))
        found: dict[MemberId, list[Contribution]] = {}
        for member, published in sorted(self.contributions.items()):
            reach = [(place.size_of(member), _contributes(charter, member)) for place, charter in steps]
            taken = [c for c in published if c.epoch == epoch and _first_reach(c.source.seq, reach)]
            if taken:
                found[member] = taken
        return found

    def in_cut(self, cut: Cut) -> dict[MemberId, list[Contribution]]:
        """The contributions whose sum each register of the cut is."""
        left_out = {x.event for x in cut.excluded}
        found = {
            m: [c for c in taken if c.event not in left_out] for m, taken in self.covered(cut.place, cut.epoch).items()
        }
        return {m: taken for m, taken in found.items() if taken}

    def charter_for(self, contribution: Contribution) -> Charter | None:
        """The charter whose gate decides on a contribution: that of the cut that covered it first, else the newest.

        None: its epoch is not one of this collective. An amended gate never judges again what was released before.
        """
        for decision in self.releases:
            cut = decision.value
            inside = contribution.source.seq < cut.place.size_of(contribution.member)
            if isinstance(cut, Cut) and cut.epoch == contribution.epoch and inside:
                return decision.charter
        return next((c for c in reversed(self._charters) if c.epoch_id == contribution.epoch), None)

    def fate(self, contribution: Contribution) -> str:
        """`released`, `refused` (excluded, or by somebody without a contributor's seat), `stale` (epoch) or `pending`."""
        if contribution.epoch != self.charter.epoch_id:
            return "stale"
        cut = self.current_cut()
        if cut is None or contribution.source.seq >= cut.place.size_of(contribution.member):
            return "pending"
        return "released" if contribution in self.in_cut(cut).get(contribution.member, []) else "refused"

    def pending(self) -> list[Contribution]:
        """Contributions of this epoch, by seated contributors, that no cut covers yet."""
        epoch, cut = self.charter.epoch_id, self.current_cut()
        found: list[Contribution] = []
        for member in sorted(m.id for m in self.charter.contributors):
            size = cut.place.size_of(member) if cut else 0
            found += [c for c in self.contributions.get(member, []) if c.epoch == epoch and c.source.seq >= size]
        return found

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
        """Apply the next entry of its feed; entries already applied are passed over.

        Raises:
            BadChain: entries before it have not been applied.
        """
        header, size = record.entry.header, self.sizes.get(record.entry.header.member, 0)
        if header.seq < size:
            return
        if header.seq > size:
            raise BadChain(f"couldn't apply entry {header.seq} of {header.member[:12]}: {size} were applied before it")
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
            if header.type != events.DataUsed.TYPE:  # the one body that may be erased; any other is withheld
                self.withheld.append(source)
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
                self.bound[member] = bound.peer
            case events.AmendmentProposed():
                self.asked[source.event] = Asked(source=source, change=dict(event.change))
                self.approvals.setdefault(source.event, {}).setdefault(member, source)
            case events.AmendmentApproved():
                self.approvals.setdefault(event.proposal, {}).setdefault(member, source)
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
                self._settle(event.height)
            case events.Accepted() | events.Objected():
                double = self._tally(event.height).first(source, event)
            case events.Committed():
                double = self._tally(event.height).commit(source, event)
                self._settle(event.height)
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
        self.founder = min(self.founder or source.member, source.member)
        if self.genesis is None:
            self.genesis = genesis
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
        while self._charters and (decision := self._decided(self.height, self.charter)):
            self.decisions.append(decision)
            charter = decision.charter
            if isinstance(decision.value, Amendment):
                try:
                    charter = charters.amended(charter, decision.value.change)
                except Refused as e:
                    self.flaws.append(Flaw(source=decision.proposal, code=e.code, text=str(e)))
            self._charters.append(charter)

    def _settle(self, height: int) -> None:
        """Take late proposals and commits into a decision that stands: its certificate must not tell what came first."""
        if height < self.height:
            stands = self.decisions[height - 1]
            again = self._decided(height, stands.charter)
            if again and again.digest == stands.digest:
                self.decisions[height - 1] = again

    def _decided(self, height: int, charter: Charter) -> Decision | None:
        tally = self._tallies.get(height)
        if tally is None:
            return None
        voters = {m.id for m in charter.voters}
        outcome = tally.decided(voters, charter.quorum)
        if outcome is None or (value := tally.values.get(outcome[1])) is None:
            return None
        attempt, digest = outcome
        commits = tally.commits[attempt]
        return Decision(
            height=height,
            attempt=attempt,
            digest=digest,
            value=value,
            charter=charter,
            proposal=tally.origins[digest][1],
            commits=tuple(commits[m].source for m in sorted(commits) if m in voters and commits[m].digest == digest),
        )


def _contributes(charter: Charter, member: MemberId) -> bool:
    seat = charter.member(member)
    return seat is not None and seat.role == "contributor"


def _first_reach(seq: int, reach: Iterable[tuple[int, bool]]) -> bool:
    """Whether the first head vector that covers entry `seq` found its author in a contributor's seat."""
    return next((seated for size, seated in reach if seq < size), False)


def leaf_at(collective: Collective, member: MemberId, size: int) -> Digest | None:
    """The leaf of entry size-1 of a feed, None when it is not here; ZERO for size 0."""
    if size == 0:
        return ZERO
    leaves = collective.leaves.get(member, [])
    return leaves[size - 1] if size <= len(leaves) else None
