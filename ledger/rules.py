"""Whether a proposed decision is right: pure checks against the fold and the proposal's own head vector.

Never the local clock, never what arrived after the head vector. Blobs, registers and losses are not known here: the node
adds those checks. The answer is a value: `Fits`, `Unfit(reason)`, or `Lacking` what must be pulled first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ledger.charter import amended
from ledger.collective import Collective, Contribution, leaf_at
from ledger.cuts import Amendment, Cut, Exclusion, FeedHead, Last, Place, Value
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

REFUSED = "refused"  # reason of an exclusion by soft objections; every other reason is a hard fault of the blob


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """Right as far as the ledger can tell; `hard` are exclusions that claim a fault of the blob itself."""

    hard: tuple[Exclusion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Wrong, with a reason code that goes into the objection."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """Cannot be judged before these feeds have at least these sizes here."""

    feeds: Mapping[MemberId, int]


Check = Fits | Unfit | Lacking


def place(collective: Collective, sizes: Mapping[MemberId, int]) -> Place:
    """The place of a value that is to be proposed at the next height, over the given feed sizes."""
    heads = [
        FeedHead(member=m, size=n, leaf=leaf)
        for m, n in sorted(sizes.items())
        if n > 0 and (leaf := leaf_at(collective, m, n)) is not None
    ]
    return Place(
        collective=collective.id,
        charter=collective.charter.digest,
        height=collective.height,
        parent=collective.parent,
        heads=tuple(heads),
    )


def check(collective: Collective, value: Value) -> Check:
    """Check everything about `value` that the ledger alone decides."""
    where = value.place
    expected = (collective.id, collective.charter.digest, collective.height, collective.parent)
    if (where.collective, where.charter, where.height, where.parent) != expected:
        return Unfit(reason="wrong-place")
    known = collective.ever_members()
    lacking = {}
    for head in where.heads:
        if head.member not in known:
            return Unfit(reason="stranger-in-heads")
        leaf = leaf_at(collective, head.member, head.size)
        if leaf is None:
            lacking[head.member] = head.size
        elif leaf != head.leaf:
            return Unfit(reason="wrong-head")
    if lacking:
        return Lacking(feeds=lacking)
    before = collective.decisions[-1].value.place.heads if collective.decisions else ()
    if any(where.size_of(h.member) < h.size for h in before):
        return Unfit(reason="cut-shrinks")
    return _check_cut(collective, value) if isinstance(value, Cut) else _check_amendment(collective, value)


def _check_amendment(collective: Collective, value: Amendment) -> Check:
    asked = collective.asked.get(value.proposal)
    if asked is None or not _within(value.place, collective, value.proposal):
        return Unfit(reason="amendment-not-proposed")
    if asked.change != dict(value.change):
        return Unfit(reason="amendment-differs")
    voters = {m.id for m in collective.charter.voters}
    approvals = collective.approvals.get(value.proposal, {})
    approving = [m for m, s in approvals.items() if m in voters and s.seq < value.place.size_of(m)]
    if len(approving) < collective.charter.quorum:
        return Unfit(reason="amendment-not-approved")
    if any(isinstance(d.value, Amendment) and d.value.proposal == value.proposal for d in collective.decisions):
        return Unfit(reason="amendment-repeated")
    try:
        amended(collective.charter, value.change)
    except Refused:
        return Unfit(reason="amendment-invalid")
    return Fits()


def _check_cut(collective: Collective, cut: Cut) -> Check:
    charter = collective.charter
    releases = collective.releases
    parent = releases[-1].digest if releases else None
    if (cut.number, cut.parent_release) != (len(releases) + 1, parent):
        return Unfit(reason="wrong-parent-release")
    if (cut.epoch, cut.recipe) != (charter.epoch_id, charter.recipe):
        return Unfit(reason="wrong-epoch-or-recipe")
    if cut.last != last_of(collective, cut.place):
        return Unfit(reason="wrong-last")
    previous = collective.current_cut()
    carried = {x.event: x for x in previous.excluded} if previous else {}
    hard: list[Exclusion] = []
    for exclusion in cut.excluded:
        if carried.pop(exclusion.event, None) == exclusion:
            continue
        if not _within(cut.place, collective, exclusion.event):
            return Unfit(reason="exclusion-outside-heads")
        if exclusion.reason != REFUSED:
            hard.append(exclusion)
        elif not _refused(collective, cut.place, exclusion):
            return Unfit(reason="exclusion-without-evidence")
    if carried:
        return Unfit(reason="exclusion-forgotten")
    if [r.member for r in cut.registers] != sorted(collective.in_cut(cut)):
        return Unfit(reason="wrong-registers")
    return Fits(hard=tuple(hard))


def last_of(collective: Collective, where: Place) -> tuple[Last, ...]:
    """The last contribution of the current epoch in each covered feed, by member."""
    epoch = collective.charter.epoch_id
    found = []
    for member in sorted(collective.contributions):
        covered = [
            c for c in collective.contributions[member] if c.epoch == epoch and c.source.seq < where.size_of(member)
        ]
        if covered:
            found.append(Last(member=member, number=covered[-1].number, event=covered[-1].event))
    return tuple(found)


def refused(collective: Collective, sizes: Mapping[MemberId, int]) -> tuple[Exclusion, ...]:
    """New exclusions that follow from the soft objections inside the given feed sizes: more than n - q members object."""
    where = place(collective, sizes)
    cut = collective.current_cut()
    old = {x.event for x in cut.excluded} if cut else set()
    found = []
    for contribution in collective.pending():
        if contribution.event in old or contribution.source.seq >= where.size_of(contribution.member):
            continue
        evidence = objections(collective, where, contribution.event)
        if len(evidence) > len(collective.charter.voters) - collective.charter.quorum:
            found.append(Exclusion(event=contribution.event, reason=REFUSED, evidence=tuple(sorted(evidence.values()))))
    return tuple(sorted(found, key=lambda x: x.event))


def objections(collective: Collective, where: Place, event: EventId) -> dict[MemberId, EventId]:
    """Voters whose verdicts at this height, inside the head vector, name the contribution; with the first such verdict."""
    voters = {m.id for m in collective.charter.voters}
    found: dict[MemberId, EventId] = {}
    for member, by_candidate in collective.tally.verdicts.items():
        if member not in voters:
            continue
        said = [
            source.event
            for source, verdict in by_candidate.values()
            if source.seq < where.size_of(member) and any(o.event == event for o in verdict.objections)
        ]
        if said:
            found[member] = min(said)
    return found


def omitted(collective: Collective, me: MemberId, cut: Cut, held: Collection[Digest]) -> Contribution | None:
    """A contribution that I had recorded (entry and blob) when I committed the parent, and that the cut does not cover."""
    if not collective.decisions:
        return None
    mine = next((c for c in collective.decisions[-1].commits if c.member == me), None)
    seen = collective.seen_by_commit.get(mine.event, {}) if mine else {}
    for contribution in collective.pending():
        recorded = contribution.source.seq < seen.get(contribution.member, 0) and contribution.blob in held
        if recorded and contribution.source.seq >= cut.place.size_of(contribution.member):
            return contribution
    return None


def _refused(collective: Collective, where: Place, exclusion: Exclusion) -> bool:
    evidence = objections(collective, where, exclusion.event)
    enough = len(evidence) > len(collective.charter.voters) - collective.charter.quorum
    return enough and tuple(sorted(evidence.values())) == exclusion.evidence


def _within(where: Place, collective: Collective, event: EventId) -> bool:
    source = collective.sources.get(event)
    return source is not None and source.seq < where.size_of(source.member)
