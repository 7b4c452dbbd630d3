"""The votes of one height, as written in the members' feeds: proposals, first votes, commits, verdicts.

Knows who said what first; a second, different vote of one member in one attempt is kept as a `DoubleVote`, never counted.
Quorums are asked with the charter in force, so votes may arrive before the decision that makes them count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from ledger.cuts import Value
from ledger.events import Accepted, Committed, Objected, Verdict
from protocol.ids import Digest, EventId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a statement stands: the entry that made it."""

    member: MemberId
    seq: int
    event: EventId
    ts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A value proposed in one attempt."""

    source: Source
    attempt: int
    valid_attempt: int
    digest: Digest
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A first vote or a commit; `digest` None stands for "none". `reason` is set on objections."""

    source: Source
    digest: Digest | None
    accepts: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubleVote:
    """Two different votes of one kind in one attempt: a transferable proof of fault."""

    first: Source
    second: Source
    height: int
    attempt: int


@dataclass(slots=True)
class Tally:
    """Everything said about one height."""

    height: int
    proposals: dict[int, dict[MemberId, Proposal]] = field(default_factory=dict)
    firsts: dict[int, dict[MemberId, Vote]] = field(default_factory=dict)
    commits: dict[int, dict[MemberId, Vote]] = field(default_factory=dict)
    verdicts: dict[MemberId, dict[Digest, tuple[Source, Verdict]]] = field(default_factory=dict)
    values: dict[Digest, Value] = field(default_factory=dict)
    origins: dict[Digest, tuple[int, Source]] = field(default_factory=dict)  # attempt and entry that first proposed it
    latest: dict[MemberId, int] = field(default_factory=dict)  # the highest attempt in which each said anything

    def propose(self, proposal: Proposal) -> DoubleVote | None:
        """Record a proposal; returns the proof when the member proposed something else before."""
        of = self.proposals.setdefault(proposal.attempt, {})
        self._spoke(proposal.source.member, proposal.attempt)
        earlier = of.setdefault(proposal.source.member, proposal)
        self.values.setdefault(proposal.digest, proposal.value)
        origin = (proposal.attempt, proposal.source)
        self.origins[proposal.digest] = min(self.origins.get(proposal.digest, origin), origin, key=_order)
        if earlier.digest == proposal.digest:
            return None
        return DoubleVote(first=earlier.source, second=proposal.source, height=self.height, attempt=proposal.attempt)

    def first(self, source: Source, event: Accepted | Objected) -> DoubleVote | None:
        """Record a first vote; the earliest in the feed counts."""
        accepts = isinstance(event, Accepted)
        reason = None if isinstance(event, Accepted) else event.reason
        vote = Vote(source=source, digest=event.digest, accepts=accepts, reason=reason)
        return self._vote(self.firsts, event.attempt, vote)

    def commit(self, source: Source, event: Committed) -> DoubleVote | None:
        """Record a second vote; the earliest in the feed counts."""
        vote = Vote(source=source, digest=event.digest, accepts=event.digest is not None)
        return self._vote(self.commits, event.attempt, vote)

    def judge(self, source: Source, verdict: Verdict) -> None:
        """Record what a member measured of a candidate; the earliest per candidate counts."""
        self.verdicts.setdefault(source.member, {}).setdefault(verdict.candidate, (source, verdict))

    def accepted(self, attempt: int, digest: Digest, voters: Collection[MemberId]) -> int:
        """How many voters accept `digest` in `attempt`."""
        votes = self.firsts.get(attempt, {})
        return sum(v.accepts and v.digest == digest for m, v in votes.items() if m in voters)

    def backed(self, attempt: int, voters: Collection[MemberId], quorum: int) -> Digest | None:
        """The digest that q voters accept in `attempt`, if any."""
        votes = self.firsts.get(attempt, {})
        if len(votes) < quorum:
            return None
        counts = Counter(v.digest for m, v in votes.items() if v.accepts and v.digest and m in voters)
        return next((digest for digest, count in counts.items() if count >= quorum), None)

    def decided(self, voters: Collection[MemberId], quorum: int) -> tuple[int, Digest] | None:
        """The attempt and digest that q voters committed, if any."""
        for attempt in sorted(self.commits):
            if len(self.commits[attempt]) < quorum:
                continue
            counts: dict[Digest, int] = {}
            for member, vote in self.commits[attempt].items():
                if member in voters and vote.digest is not None:
                    counts[vote.digest] = counts.get(vote.digest, 0) + 1
            for digest, count in counts.items():
                if count >= quorum:
                    return attempt, digest
        return None

    def latest_attempt(self, member: MemberId) -> int:
        """The highest attempt in which a member said anything; -1 for none."""
        return self.latest.get(member, -1)

    def _spoke(self, member: MemberId, attempt: int) -> None:
        self.latest[member] = max(attempt, self.latest.get(member, -1))

    def _vote(self, table: dict[int, dict[MemberId, Vote]], attempt: int, vote: Vote) -> DoubleVote | None:
        self._spoke(vote.source.member, attempt)
        earlier = table.setdefault(attempt, {}).setdefault(vote.source.member, vote)
        if (earlier.digest, earlier.accepts) == (vote.digest, vote.accepts):
            return None
        return DoubleVote(first=earlier.source, second=vote.source, height=self.height, attempt=attempt)


def _order(origin: tuple[int, Source]) -> tuple[int, MemberId, int]:
    return origin[0], origin[1].member, origin[1].seq
