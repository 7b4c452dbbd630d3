"""Whether a proposed decision is right: pure checks against the fold and the proposal's own head vector.

A feed that was proven forked stays where the decision before left it: its head is carried over, nothing new of it counts.

Never the local clock, never what arrived after the head vector. Blobs, registers and losses are not known here: the node
adds those checks. The answer is a value: `Fits`, `Unfit(reason)`, or `Lacking` what must be pulled first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from ledger import forgetting, objecting
from ledger.amending import amended, check_keys
from ledger.collective import Collective, Contribution, leaf_at
from ledger.cuts import MAX_LIST, Amendment, Cut, Exclusion, FeedHead, Last, Place, Value
from ledger.precedence import came_first
from protocol.errors import Refused
from protocol.ids import Digest, EventId, MemberId

WORSE, REFUSED = objecting.WORSE, objecting.REFUSED
objections = objecting.objections
ERASED = forgetting.ERASED  # reason of one that the contribution's own author asked for
FORGOTTEN = forgetting.FORGOTTEN  # reason of one that a quorum decided on
COPIED = "copied"  # reason of one that another member had sent before; the evidence is that contribution
PROVEN = frozenset({REFUSED, ERASED, FORGOTTEN})  # by entries; every other reason is a hard fault of the blob


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
    before = {h.member: h for h in collective.decisions[-1].value.place.heads} if collective.decisions else {}
    heads = [
        FeedHead(member=m, size=n, leaf=leaf)
        for m, n in sorted(sizes.items())
        if n > 0 and not collective.fork_known(m) and (leaf := leaf_at(collective, m, n)) is not None
    ]
    heads += [h for m, h in before.items() if collective.fork_known(m)]
    return Place(
        collective=collective.id,
        charter=collective.charter.digest,
        height=collective.height,
        parent=collective.parent,
        heads=tuple(sorted(heads, key=lambda h: h.member)),
    )


def check(collective: Collective, value: Value) -> Check:
    """Check everything about `value` that the ledger alone decides."""
    where = value.place
    expected = (collective.id, collective.charter.digest, collective.height, collective.parent)
    if (where.collective, where.charter, where.height, where.parent) != expected:
        return Unfit(reason="wrong-place")
    known = collective.ever_members()
    before = collective.decisions[-1].value.place.heads if collective.decisions else ()
    lacking = {}
    for head in where.heads:
        if collective.fork_known(head.member) and head in before:
            continue  # which of its histories that is was decided before
        if collective.fork_known(head.member, where):
            return Unfit(reason="forked-feed")
        if head.member not in known:
            return Unfit(reason="stranger-in-heads")
        leaf = leaf_at(collective, head.member, head.size)
        if leaf is None:
            lacking[head.member] = head.size
        elif leaf != head.leaf:
            return Unfit(reason="wrong-head")
    if lacking:
        return Lacking(feeds=lacking)
    if any(where.size_of(h.member) < h.size for h in before):
        return Unfit(reason="cut-shrinks")
    return _check_cut(collective, value) if isinstance(value, Cut) else _check_amendment(collective, value)


def _check_amendment(collective: Collective, value: Amendment) -> Check:
    asked = collective.asked.get(value.proposal)
    if asked is None or not _within(value.place, collective, value.proposal):
        return Unfit(reason="amendment-not-proposed")
    if asked.change != dict(value.change):
        return Unfit(reason="amendment-differs")
    said = collective.successions.get(value.proposal)
    if said is None:
        voters = {m.id for m in collective.charter.voters}
        approvals = collective.approvals.get(value.proposal, {})
        approving = [m for m, s in approvals.items() if m in voters and s.seq < value.place.size_of(m)]
        if len(approving) < collective.charter.quorum:
            return Unfit(reason="amendment-not-approved")
    elif not collective.proven(said, value.place):
        return Unfit(reason="succession-unproven")
    elif collective.outranked(said, value.place):
        return Unfit(reason="succession-outranked")
    if any(isinstance(d.value, Amendment) and d.value.proposal == value.proposal for d in collective.decisions):
        return Unfit(reason="amendment-repeated")
    try:
        amended(collective.charter, value.change)
        check_keys(collective.ever_members(), value.change)
    except Refused:
        return Unfit(reason="amendment-invalid")
    if forgetting.too_many(collective, value.change):
        return Unfit(reason="too-many-forgotten")
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
    if not cut.last or (previous and (cut.last, carried(cut)) == (previous.last, carried(previous))):
        return Unfit(reason="nothing-new")
    hard = _new_exclusions(collective, cut, previous)
    if isinstance(hard, Unfit):
        return hard
    if [r.member for r in cut.registers] != sorted(collective.in_cut(cut)):
        return Unfit(reason="wrong-registers")
    fresh = [c for taken in collective.in_cut(cut).values() for c in taken]
    fresh = [c for c in fresh if previous is None or c.source.seq >= previous.place.size_of(c.member)]
    if any(not witnessed(collective, c, cut.place.size_of) for c in fresh):
        return Unfit(reason="unwitnessed")
    return Fits(hard=hard)


def _new_exclusions(collective: Collective, cut: Cut, previous: Cut | None) -> tuple[Exclusion, ...] | Unfit:
    """The exclusions that claim a fault of the blob, once every other one is proven by the ledger or carried over."""
    before = {x.event: x for x in previous.excluded} if previous else {}
    bare = {x.event: x for x in carried(previous)} if previous else {}
    mine = {c.event for taken in collective.covered(cut.place, cut.epoch).values() for c in taken}
    asked, told = erased(collective, cut.place), decided(collective, cut.place)
    hard: list[Exclusion] = []
    for exclusion in cut.excluded:
        if exclusion in (before.pop(exclusion.event, None), bare.get(exclusion.event)):
            continue
        request = asked.pop(exclusion.event, None)  # left out is left out, whatever the reason
        proposal = told.pop(exclusion.event, None)
        if exclusion.event not in mine:
            return Unfit(reason="exclusion-outside-cut")
        if exclusion.reason not in PROVEN | {COPIED} and exclusion.evidence:
            return Unfit(reason="exclusion-with-evidence")  # the blob itself is the proof, and everybody looks at it
        if not _borne_out(collective, cut, exclusion, request, proposal):
            return Unfit(reason="exclusion-without-evidence")
        if exclusion.reason not in PROVEN:
            hard.append(exclusion)
    if before or asked or told:
        return Unfit(reason="exclusion-forgotten" if before else "erasure-ignored" if asked else "forgetting-ignored")
    return tuple(hard)


def carried(previous: Cut) -> tuple[Exclusion, ...]:
    """What a cut leaves out as the next one of its epoch lists it: verdicts are named once, where they first led to it."""
    return tuple(replace(x, evidence=()) if x.reason == REFUSED else x for x in previous.excluded)


def _borne_out(
    collective: Collective, cut: Cut, exclusion: Exclusion, request: EventId | None, proposal: EventId | None
) -> bool:
    """Whether the ledger bears an exclusion out, as far as it can tell without blobs."""
    if exclusion.reason == REFUSED:
        return objecting.exclusion(collective, cut.place, exclusion.event) == exclusion
    if exclusion.reason == ERASED:
        return request is not None and exclusion.evidence == (request,)
    if exclusion.reason == FORGOTTEN:
        return proposal is not None and exclusion.evidence == (proposal,)
    return exclusion.reason != COPIED or _copied(collective, cut, exclusion)


def witnessed(collective: Collective, contribution: Contribution, within: Callable[[MemberId], int]) -> bool:
    """Whether enough other organisations cosigned a contribution, by entries below `within(member)`."""
    need = collective.charter.witness.cosignatures
    return need == 0 or len(collective.witnesses.organisations(contribution, collective.charter, within)) >= need


def within_reach(collective: Collective, sizes: Mapping[MemberId, int]) -> dict[MemberId, int]:
    """The largest part of `sizes` in which everything that a cut would newly cover is witnessed well enough.

    A cosignature counts only if the entry that carries it is covered too, so what is taken off one feed may unsettle
    others: taken off until nothing changes. It never goes behind the decision before.
    """
    found = dict(sizes)
    before = collective.decisions[-1].value.place if collective.decisions else None
    pending = collective.pending() if collective.charter.witness.cosignatures else []
    changed = True
    while changed:
        changed = False
        for contribution in pending:
            feed, seq = contribution.member, contribution.source.seq
            decided = before is not None and seq < before.size_of(feed)
            if decided or seq >= found.get(feed, 0):
                continue
            if not witnessed(collective, contribution, lambda member: found.get(member, 0)):
                found[feed], changed = seq, True
    return found


def last_of(collective: Collective, where: Place) -> tuple[Last, ...]:
    """The last contribution of the current epoch that counts in each covered feed, by member; excluded ones too."""
    covered = collective.covered(where, collective.charter.epoch_id)
    return tuple(Last(member=m, number=covered[m][-1].number, event=covered[m][-1].event) for m in sorted(covered))


def refused(collective: Collective, sizes: Mapping[MemberId, int]) -> tuple[Exclusion, ...]:
    """New exclusions that follow from the soft objections inside the given feed sizes: more than n - q members object."""
    return objecting.refused(collective, place(collective, sizes))


def erased(collective: Collective, where: Place) -> dict[EventId, EventId]:
    """Contributions that a cut at `where` has to leave out: their own author asked for it inside the head vector.

    Each with such a request, the lowest id of several; what the cut before leaves out already is not among them. Of one seat as
    many as its share of the exclusions that a cut can list, the oldest first: nobody can fill them all.
    """
    if not collective.forgotten:
        return {}
    previous = collective.current_cut()
    old = {x.event for x in previous.excluded} if previous else set()
    used = Counter(collective.owner(collective.sources[event].member, where.height) for event in _own(previous))
    found: dict[EventId, EventId] = {}
    for seat, taken in collective.covered(where, collective.charter.epoch_id).items():
        asked = {c.event: _requests(collective, where, c) for c in taken if c.event not in old}
        named = [(event, min(requests)) for event, requests in asked.items() if requests]
        found |= dict(named[: max(0, share(collective) - used[seat])])
    return found


def decided(collective: Collective, where: Place) -> dict[EventId, EventId]:
    """Contributions that a cut at `where` has to leave out because a quorum decided so before it, with the proposal."""
    told = forgetting.decided(collective, where.height)
    if not told:
        return {}
    previous = collective.current_cut()
    old = {x.event for x in previous.excluded} if previous else set()
    inside = {c.event for taken in collective.covered(where, collective.charter.epoch_id).values() for c in taken}
    return {event: told[event].proposal for event in sorted(told.keys() & inside - old)}


def owed(collective: Collective, where: Place) -> dict[EventId, Exclusion]:
    """The exclusions that a cut at `where` newly has to make on request: of authors, and by decision."""
    asked = {event: (ERASED, request) for event, request in erased(collective, where).items()}
    for event, proposal in decided(collective, where).items():
        asked.setdefault(event, (FORGOTTEN, proposal))
    return {e: Exclusion(event=e, reason=reason, evidence=(why,)) for e, (reason, why) in asked.items()}


def forgotten(collective: Collective) -> set[EventId]:
    """What the next cut would have to leave out on request if it covered everything that is here."""
    held = {m: n for m, n in collective.sizes.items() if m in collective.ever_members()}
    return set(owed(collective, place(collective, held)))


def containing(collective: Collective, events: Collection[EventId]) -> dict[int, Digest]:
    """Releases of this epoch with one of these contributions in them: digest by number."""
    epoch, found = collective.charter.epoch_id, {}
    for decision in collective.releases if events else ():
        cut = decision.value
        if not isinstance(cut, Cut) or cut.epoch != epoch:
            continue
        if any(c.event in events for taken in collective.in_cut(cut).values() for c in taken):
            found[cut.number] = decision.digest
    return found


def superseded(collective: Collective) -> set[Digest]:
    """Releases of this epoch with something in them that the newest one leaves out on request."""
    return set(forgetting.retired(collective))


def share(collective: Collective) -> int:
    """How many exclusions one member may cause in a cut."""
    return max(1, MAX_LIST // 2 // max(1, len(collective.charter.contributors)))


def contested(collective: Collective) -> set[EventId]:
    """Contributions that the next proposer leaves uncovered, because voters blame them without agreeing on any more."""
    if not objecting.disputed(collective):
        return set()
    known = collective.ever_members()
    settled = refused(collective, {m: n for m, n in collective.sizes.items() if m in known})
    return objecting.contested(collective, frozenset(x.event for x in settled))


def omitted(collective: Collective, me: MemberId, cut: Cut, held: Collection[Digest]) -> Contribution | None:
    """A contribution that I had recorded (entry and blob) when I committed the parent, and that the cut does not cover."""
    if not collective.decisions:
        return None
    mine = next((c for c in collective.decisions[-1].commits if c.member == me), None)
    seen = collective.seen_by_commit.get(mine.event, {}) if mine else {}
    known = {**seen, me: mine.seq} if mine else {}
    for contribution in collective.pending():
        feed, seq = contribution.member, contribution.source.seq
        recorded = seq < seen.get(feed, 0) and contribution.blob in held
        if not recorded or seq < cut.place.size_of(feed) or collective.fork_known(feed):
            continue
        if witnessed(collective, contribution, lambda member: known.get(member, 0)):
            return contribution
    return None


def _own(previous: Cut | None) -> list[EventId]:
    """What a cut leaves out and its author has caused: all but what others decided."""
    return [x.event for x in previous.excluded if x.reason != FORGOTTEN] if previous else []


def _copied(collective: Collective, cut: Cut, exclusion: Exclusion) -> bool:
    """Whether the evidence is one contribution of another seat that the cut keeps and that came first."""
    kept = {c.event: (m, c) for m, taken in collective.in_cut(cut).items() for c in taken}
    covered = collective.covered(cut.place, cut.epoch)
    copy = next(((m, c) for m, taken in covered.items() for c in taken if c.event == exclusion.event), None)
    originals = [kept.get(event) for event in exclusion.evidence]
    if copy is None or len(originals) != 1 or originals[0] is None:
        return False
    seat, original = originals[0]
    return seat != copy[0] and came_first(collective, original, copy[1])


def _requests(collective: Collective, where: Place, contribution: Contribution) -> set[EventId]:
    """Requests inside a head vector in which the seat that published a contribution asks to forget what it was trained on."""
    seat = collective.seat_at(contribution.member, where.height)
    found = set()
    for source in collective.forgotten.get(contribution.event, ()):
        feed, inside = source.member, source.seq < where.size_of(source.member)
        end = seat.reach(feed) if seat is not None and seat == collective.seat_at(feed, where.height) else 0
        if inside and (end is None or source.seq < end):
            found.add(source.event)
    return found


def _within(where: Place, collective: Collective, event: EventId) -> bool:
    source = collective.sources.get(event)
    return source is not None and source.seq < where.size_of(source.member)
