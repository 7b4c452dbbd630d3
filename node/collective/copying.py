"""Which contributions of a cut are copies: the blobs say how alike two are, the ledger who came first.

Knows no losses and no votes. Law: for one cut and its blobs everybody finds the same. A copy is told from its original
only where the ledger shows the order; of two alike that know nothing of each other neither is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ledger import rules
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut, Exclusion, Place
from ledger.precedence import came_first, earlier_than
from node.collective.replay import Replay
from protocol.ids import EventId, MemberId

MAX_COMPARED = 4096  # contributions of which is remembered how far they were compared


def original(
    fold: Collective, replay: Replay, copy: Contribution, among: Mapping[MemberId, Iterable[Contribution]]
) -> Contribution | None:
    """Of the contributions `among` other seats, one that came first and that `copy` repeats: the one of the lowest id."""
    mine, first = fold.owner(copy.member), earlier_than(fold, copy)
    found = [
        c
        for seat, published in among.items()
        if seat != mine
        for c in published
        if first(c) and replay.is_copy(copy, c)
    ]
    return min(found, key=lambda c: c.event, default=None)


def found(fold: Collective, replay: Replay, where: Place, left_out: Collection[EventId]) -> dict[EventId, Exclusion]:
    """What a cut at `where`, without what it leaves out anyway, has to leave out as copies: of the new contributions."""
    covered = fold.covered(where, fold.charter.epoch_id)
    kept = {m: [c for c in taken if c.event not in left_out] for m, taken in covered.items()}
    inside = {c.event for taken in kept.values() for c in taken}
    fresh = [c for c in fold.pending() if c.event in inside]
    before = {c.event: sum(came_first(fold, other, c) for other in fresh) for c in fresh}
    exclusions: dict[EventId, Exclusion] = {}
    for contribution in sorted(fresh, key=lambda c: (before[c.event], c.event)):
        first = original(fold, replay, contribution, kept)
        if first is not None:
            event = contribution.event
            exclusions[event] = Exclusion(event=event, reason=rules.COPIED, evidence=(first.event,))
            kept = {m: [c for c in taken if c.event != event] for m, taken in kept.items()}
    return exclusions


def repeated(fold: Collective, replay: Replay, contribution: Contribution) -> bool:
    """Whether a pending contribution repeats one of another seat that came first and was not left out.

    Asked with every blob that comes, so what was found unlike is not looked at again: `replay.compared` says how far this one
    was compared since the last decision, and which before that are alike or not here yet.
    """
    decided, published = len(fold.decisions), fold.published
    when, end, left = replay.compared.pop(contribution.event, (decided, 0, ()))
    if when != decided:
        end, left = 0, ()
    upto = len(published)
    first, mine = earlier_than(fold, contribution), fold.owner(contribution.member)
    fresh = [
        c for c in published[end:upto] if c.epoch == contribution.epoch and first(c) and fold.owner(c.member) != mine
    ]
    undecided = tuple(c for c in (*left, *fresh) if not replay.unlike(contribution, c))
    replay.compared[contribution.event] = (decided, upto, undecided)
    while len(replay.compared) > MAX_COMPARED:
        del replay.compared[next(iter(replay.compared))]
    if not undecided:
        return False
    cut = fold.current_cut()
    gone = {x.event for x in cut.excluded} if cut else set()
    return any(c.event not in gone and replay.is_copy(contribution, c) for c in undecided)


def wrong(fold: Collective, replay: Replay, cut: Cut) -> str | None:
    """Why a cut is wrong about copies, or None: it keeps one among what is new, or calls one what is none."""
    kept = fold.in_cut(cut)
    inside = {c.event: c for taken in kept.values() for c in taken}
    if any(original(fold, replay, c, kept) is not None for c in fold.pending() if c.event in inside):
        return "covers-copied"
    previous = fold.current_cut()
    carried = set(previous.excluded) if previous else set()
    claims = [x for x in cut.excluded if x.reason == rules.COPIED and x not in carried]
    return None if all(proven(fold, replay, x, inside) for x in claims) else "exclusion-without-fault"


def proven(fold: Collective, replay: Replay, claim: Exclusion, inside: Mapping[EventId, Contribution]) -> bool:
    """Whether the blobs, which have to be here, bear an exclusion out: what is excluded repeats its evidence."""
    source = fold.sources.get(claim.event)
    published = fold.contributions.get(source.member, []) if source else []
    copy = next((c for c in published if c.event == claim.event), None)
    first = inside.get(claim.evidence[0]) if claim.evidence else None
    return copy is not None and first is not None and replay.is_copy(copy, first)
