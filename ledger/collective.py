"""The state of a collective: a fold over the verified feeds of its members.

Knows no store, network, clock or blob. `apply` takes the entries of each feed in their order; feeds may interleave in any
way: what follows (charter, decisions, contributions and their fate) depends only on the set of entries, as long as no more
than f voters lie (two quorums at one height: the first seen stands, the audit names them). Restart = replay.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger import charter as charters
from ledger import charter_reading, cuts, events, forks, succession
from ledger.amending import amended
from ledger.charter import Charter
from ledger.cuts import Amendment
from ledger.entry import Record
from ledger.errors import BadChain, BadEvent
from ledger.facts import Asked, Contribution, Decision, Flaw
from ledger.standing import Standing, leaf_at
from ledger.tally import DoubleVote, Proposal, Source, Tally
from protocol import binding as bindings
from protocol.errors import Refused
from protocol.ids import MemberId

__all__ = ["Asked", "Collective", "Contribution", "Decision", "Flaw", "leaf_at"]

MAX_TOLD = 128  # proofs of forks that are checked for one teller


class Collective(Standing):
    """The fold. Law: the state depends on the set of applied entries, not on how the feeds interleave."""

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
        self.mentions.take(header.member, header.seq, header.seen)
        if header.type == events.Committed.TYPE:  # all that its author had ever named: one entry names 64 feeds at most
            self.seen_by_commit[source.event] = self.mentions.upto(header.member, header.seq)
        if header.type == events.Published.TYPE:
            self.seen_by_publish[source.event] = self.mentions.upto(header.member, header.seq)
        if header.type not in events.TYPES:
            self.unknown_types[header.type] = self.unknown_types.get(header.type, 0) + 1
            return
        if header.member in self.ended:
            self.flaws.append(Flaw(source=source, code="feed-ended", text="couldn't take entry: its feed ended before"))
            return
        if record.body is None:
            if header.type not in events.ERASABLE:  # any other is withheld
                self.withheld.append(source)
            return
        try:
            event = events.read(record)
            if event is not None:
                self._take(source, event)
        except Refused as e:
            self.flaws.append(Flaw(source=source, code=e.code, text=str(e)))
            return
        self._advance()

    def _take(self, source: Source, event: events.Event) -> None:  # noqa: PLR0912, PLR0915 - one arm per event type
        member = source.member
        double: DoubleVote | None = None
        match event:
            case events.Genesis():
                self._found(source, event)
            case events.PeerBound():
                bound = bindings.verify(dict(event.binding))
                if bound.member != member:
                    raise BadEvent("couldn't bind peer: the binding names another member")
                self._bind(member, bound)
            case events.AmendmentProposed():
                if event.change.get("op") == "succeed":
                    self.successions[source.event] = succession.read_change(event.change)
                self.asked[source.event] = Asked(source=source, change=dict(event.change))
                self.approvals.setdefault(source.event, {}).setdefault(member, source)
            case events.AmendmentApproved():
                self.approvals.setdefault(event.proposal, {}).setdefault(member, source)
            case events.DataCommitted():
                self.data.setdefault(member, {})[event.dataset] = event
            case events.Published():
                self._publish(source, event)
            case events.ErasureRequested():
                for contribution in event.contributions:
                    self.forgotten.setdefault(contribution, set()).add(source)
                if event.scope == events.WITHDRAWN:
                    self.withdrawals[source.event] = event.deadline
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
            case events.KeysBound():
                self.witnesses.bind(source, event, self.transports.get(member, frozenset()))
            case events.HeadWitnessed():
                self.flaws += self.witnesses.take(source, event)
            case events.KeyRotated():
                said = succession.read(event.statement)
                if (said.collective, said.old, said.kind) != (self.id, member, succession.ROTATION):
                    raise BadEvent("couldn't end feed: the statement is of another feed, or no rotation")
                self.ended[member] = source
            case events.ForkFound():
                self._fork(source, event)
            case _:
                pass
        if double:
            self.double_votes.append(double)

    def _found(self, source: Source, event: events.Genesis) -> None:
        genesis = charter_reading.parse(dict(event.charter))
        if charters.collective_id(genesis) != self.id or source.seq != 0:
            raise BadEvent("couldn't take genesis: its digest is not the collective id, or it is not the first entry")
        if genesis.member(source.member) is None or any(m.was for m in genesis.members):
            raise BadEvent("couldn't take genesis: its author has no seat, or a seat has earlier keys")
        self.founder = min(self.founder or source.member, source.member)
        if self.genesis is None:
            self.genesis = genesis
            self._enact(genesis)

    def _enact(self, charter: Charter) -> None:
        """A charter comes into force; whoever had a seat before keeps the place in the record that it had then."""
        before = self._seats[-1] if self._seats else {}
        if not self._charters or charter is not self._charters[-1]:
            now = {m.id: m for m in charter.members} | {w.id: m for m in charter.members for w in m.was}
            before = {**before, **now}
        self._charters.append(charter)
        self._seats.append(before)

    def _bind(self, member: MemberId, bound: bindings.Binding) -> None:
        known = self.witnesses.bound.get(member)
        if known is not None and known.witness.public == bound.transport:
            raise BadEvent("couldn't bind peer: its transport key is the witness key")
        self.bound[member] = bound.peer
        self.transports[member] = self.transports.get(member, frozenset()) | {bound.transport}

    def _fork(self, source: Source, event: events.ForkFound) -> None:
        """A proof that needs no other entries to convict; one that does is the store's matter at each node.

        Checking one costs many signatures, so a teller gets `MAX_TOLD` of them in its whole feed, the same ones everywhere.
        """
        if source.member in self.forked.get(event.member, {}):
            return
        told = self._told[source.member] = self._told.get(source.member, 0) + 1
        if told > MAX_TOLD:
            raise BadEvent(f"couldn't take fork: {MAX_TOLD} proofs of this member were checked, and no more are")
        fork = forks.decode(event.proof.encode("utf-8"))
        if (fork.collective, fork.member) != (self.id, event.member):
            raise BadEvent("couldn't take fork: the proof is of another feed than the event says")
        if forks.self_contained(fork):
            forks.verify(fork)
            self.forked.setdefault(fork.member, {}).setdefault(source.member, source)
        else:
            self.forks_claimed.setdefault(fork.member, {}).setdefault(source.member, source)

    def _publish(self, source: Source, event: events.Published) -> None:
        published = self.contributions.setdefault(source.member, [])
        same = [c.number for c in published if c.epoch == event.epoch]
        if event.number != (max(same) if same else 0) + 1:
            raise BadEvent(f"couldn't take contribution {event.number}: the next number is {len(same) + 1}")
        made = Contribution(source=source, epoch=event.epoch, number=event.number, blob=event.blob, size=event.size)
        published.append(made)
        self.published.append(made)

    def _tally(self, height: int) -> Tally:
        if height < 1:
            raise BadEvent("couldn't take vote: heights start at 1")
        return self._tallies.setdefault(height, Tally(height))

    def _advance(self) -> None:
        while self._charters and (decision := self._decided(self.height, self.charter)):
            self.decisions.append(decision)
            charter = decision.charter
            if isinstance(decision.value, Amendment):
                try:
                    charter = amended(charter, decision.value.change)
                except Refused as e:
                    self.flaws.append(Flaw(source=decision.proposal, code=e.code, text=str(e)))
            self._enact(charter)

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
        voters = charter.voter_ids
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
