"""The two votes that decide a height, as one pure function: what a member may do next at a height.

After Tendermint (Buchman, Kwon, Milosevic, arXiv 1807.04938): `accept | object` is the prevote, `commit` the precommit; a
commit locks. Everything a member has said is read back from its own feed, so a restart cannot make it vote twice
differently. Knows no clock: elapsed times are arguments. Safety needs at most f faulty voters; liveness a quorum awake.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ledger.charter import Charter
from ledger.collective import Collective
from ledger.tally import Proposal, Tally
from protocol.ids import Digest, MemberId

TIMEOUT: Final = "timeout"
LOCKED: Final = "locked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What this node found out about a proposed value; `sound` False means a hard check failed."""

    sound: bool
    accept: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Propose:
    """Propose: again the value that a quorum accepted in `valid_attempt`, or (-1) a fresh one."""

    attempt: int
    valid_attempt: int
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Write the first vote for a value."""

    attempt: int
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """Write the first vote against."""

    attempt: int
    digest: Digest | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Write the second vote; None gives the attempt up."""

    attempt: int
    digest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enter:
    """Go to a later attempt (nothing is written)."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Find out about this proposal, then ask again."""

    proposal: Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do before something arrives or time passes."""


Act = Propose | Accept | Object | Commit | Enter | Judge | Wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a decision to act depends on besides the fold: attempt entered, ms spent in it, something to decide, judgements."""

    attempt: int
    elapsed_ms: int
    due: bool
    judged: Mapping[Digest, Judgement]


def proposer(charter: Charter, collective: str, height: int, attempt: int) -> MemberId:
    """The one voter who may propose in (height, attempt): voters ordered by a hash of the height, taken in turn."""
    order = _turns(collective, height, charter.voter_ids)
    return order[attempt % len(order)]


@functools.lru_cache(maxsize=64)
def _turns(collective: str, height: int, voters: frozenset[MemberId]) -> tuple[MemberId, ...]:
    return tuple(sorted(voters, key=lambda m: (hashlib.sha256(f"{collective}/{height}/{m}".encode()).digest(), m)))


def timeout_ms(charter: Charter, attempt: int) -> int:
    """How long a step of an attempt may take; grows so that slow networks converge."""
    return charter.release.timeout_ms * (2 + min(attempt, 18)) // 2


def starting_attempt(tally: Tally, me: MemberId) -> int:
    """The attempt a (re)started member is in: the highest one it has spoken in."""
    return max(0, tally.latest_attempt(me))


def started(collective: Collective, attempt: int, *, due: bool) -> bool:
    """Whether the clock of an attempt runs: there is something to decide, or somebody has spoken."""
    tally = collective.tally
    return due or attempt > 0 or bool(tally.proposals.get(attempt)) or bool(tally.firsts.get(attempt))


def act(collective: Collective, me: MemberId, moment: Moment) -> Act:
    """The next act of voter `me` at the collective's next height.

    Laws: one first vote and one commit for each attempt; a member that committed a value accepts another one only with q
    accepts of a later attempt; an unsound value is never accepted nor committed.
    """
    charter, tally, attempt = collective.charter, collective.tally, moment.attempt
    voters = charter.voter_ids
    if me not in voters:
        return Wait()
    ahead = [latest for m, latest in tally.latest.items() if latest > attempt and m in voters and m != me]
    if len(ahead) > charter.faults:
        return Enter(attempt=sorted(ahead, reverse=True)[charter.faults])
    leader = proposer(charter, collective.id, collective.height, attempt)
    proposal = tally.proposals.get(attempt, {}).get(leader)
    limit = timeout_ms(charter, attempt)
    running = started(collective, attempt, due=moment.due)
    if leader == me and proposal is None and me not in tally.firsts.get(attempt, {}):
        valid = _valid(tally, voters, charter.quorum, attempt)
        if valid or moment.due:
            return Propose(attempt=attempt, valid_attempt=valid[0] if valid else -1, digest=valid[1] if valid else None)
    if me not in tally.firsts.get(attempt, {}):
        return _first(tally, voters, charter.quorum, me, proposal, moment, limit) if running else Wait()
    if me not in tally.commits.get(attempt, {}):
        return _second(tally, voters, charter.quorum, moment, limit)
    said = tally.commits.get(attempt, {})
    given_up = sum(m in voters and v.digest is None for m, v in said.items())
    spoken = sum(m in voters for m in said)
    rested = attempt == 0 or moment.elapsed_ms >= limit  # the first retry is quick, later ones are not a flood
    if (given_up >= charter.quorum and rested) or (spoken >= charter.quorum and moment.elapsed_ms >= 3 * limit):
        return Enter(attempt=attempt + 1)
    return Wait()


def _first(
    tally: Tally,
    voters: frozenset[MemberId],
    quorum: int,
    me: MemberId,
    proposal: Proposal | None,
    moment: Moment,
    limit: int,
) -> Act:
    attempt, late = moment.attempt, moment.elapsed_ms >= limit
    if proposal is None:
        return Object(attempt=attempt, digest=None, reason=TIMEOUT) if late else Wait()
    lock = _lock(tally, me)
    if lock and lock[1] != proposal.digest:
        v = proposal.valid_attempt
        freed = lock[0] <= v < attempt and tally.accepted(v, proposal.digest, voters) >= quorum
        if not freed:
            return Object(attempt=attempt, digest=proposal.digest, reason=LOCKED)
    judgement = moment.judged.get(proposal.digest)
    if judgement is None:
        return Object(attempt=attempt, digest=proposal.digest, reason=TIMEOUT) if late else Judge(proposal=proposal)
    if judgement.sound and (judgement.accept or (lock is not None and lock[1] == proposal.digest)):
        return Accept(attempt=attempt, digest=proposal.digest)
    return Object(attempt=attempt, digest=proposal.digest, reason=judgement.reason or "unsound")


def _second(tally: Tally, voters: frozenset[MemberId], quorum: int, moment: Moment, limit: int) -> Act:
    attempt = moment.attempt
    firsts = {m: v for m, v in tally.firsts.get(attempt, {}).items() if m in voters}
    digest = tally.backed(attempt, voters, quorum)
    late = len(firsts) >= quorum and moment.elapsed_ms >= 2 * limit
    if digest is not None:
        judgement = moment.judged.get(digest)
        if judgement is not None and judgement.sound:
            return Commit(attempt=attempt, digest=digest)
        held = next((p for p in tally.proposals.get(attempt, {}).values() if p.digest == digest), None)
        if judgement is None and held is not None and not late:
            return Judge(proposal=held)
    against = sum(not v.accepts for v in firsts.values())
    return Commit(attempt=attempt, digest=None) if against >= quorum or late else Wait()


def _lock(tally: Tally, me: MemberId) -> tuple[int, Digest] | None:
    """The latest attempt in which `me` committed a value, and that value."""
    mine = [(a, by[me].digest) for a, by in tally.commits.items() if me in by]
    held = [(a, d) for a, d in mine if d is not None]
    return max(held) if held else None


def _valid(tally: Tally, voters: frozenset[MemberId], quorum: int, before: int) -> tuple[int, Digest] | None:
    """The latest attempt before this one in which a quorum accepted a value that is held here."""
    backed = [(a, tally.backed(a, voters, quorum)) for a in tally.firsts if a < before]
    held = [(a, d) for a, d in backed if d is not None and d in tally.values]
    return max(held) if held else None
