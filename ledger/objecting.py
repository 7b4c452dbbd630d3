"""What members' soft objections at a height lead to: exclusions by more than n - q of them, and contributions that wait.

Pure over the fold and a head vector; knows no losses. Invariant: n - q voters, however hostile, exclude nobody.
"""

from __future__ import annotations

from ledger.collective import Collective
from ledger.cuts import Cut, Exclusion, Place
from protocol.ids import Digest, EventId, MemberId

WORSE = "worse"  # reason of a first vote: without some contributions our own held-out loss would be clearly lower
REFUSED = "refused"  # reason of an exclusion by soft objections


def objections(collective: Collective, where: Place, event: EventId) -> dict[MemberId, EventId]:
    """Voters whose verdicts at this height, inside the head vector, name the contribution; with the first such verdict."""
    voters = collective.charter.voter_ids
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


def exclusion(collective: Collective, where: Place, event: EventId) -> Exclusion | None:
    """The exclusion that the objections inside a head vector amount to; None when they are n - q or fewer."""
    evidence = objections(collective, where, event)
    if len(evidence) <= spare(collective):
        return None
    return Exclusion(event=event, reason=REFUSED, evidence=tuple(sorted(evidence.values())))


def refused(collective: Collective, where: Place) -> tuple[Exclusion, ...]:
    """New exclusions that follow from the objections inside a head vector, by event.

    What was released before can be named too: harm that is done slowly shows only in the sum.
    """
    verdicts = (verdict for by in collective.tally.verdicts.values() for _, verdict in by.values())
    named = {o.event for verdict in verdicts for o in verdict.objections}
    cut = collective.current_cut()
    named -= {x.event for x in cut.excluded} if cut else set()
    covered = collective.covered(where, collective.charter.epoch_id) if named else {}
    inside = sorted({c.event for taken in covered.values() for c in taken} & named)
    return tuple(x for x in (exclusion(collective, where, event) for event in inside) if x is not None)


def contested(collective: Collective, settled: frozenset[EventId]) -> set[EventId]:
    """Contributions that a voter blames, once more than n - q voters found a candidate of this height worse.

    Only candidates that leave out all that is `settled` (refused by enough) count: before that, what the others are
    blamed for may be the doing of those. The next proposer leaves the contested uncovered (they stay pending), so that
    members who blame different contributions do not block those that nobody blames. One objector alone has no such effect.
    """
    voters, tally, enough = collective.charter.voter_ids, collective.tally, spare(collective)

    def counts(digest: Digest | None) -> bool:
        value = tally.values.get(digest) if digest else None
        return settled <= ({x.event for x in value.excluded} if isinstance(value, Cut) else set())

    against = (
        sum(v.reason == WORSE and counts(v.digest) for m, v in firsts.items() if m in voters)
        for firsts in tally.firsts.values()
    )
    if max(against, default=0) <= enough:
        return set()
    verdicts = [v for m, by in tally.verdicts.items() if m in voters for _, v in by.values() if counts(v.candidate)]
    return {o.event for verdict in verdicts for o in verdict.objections} - settled


def disputed(collective: Collective) -> bool:
    """Whether so many found some candidates of this height worse that anything can be contested: a quick no."""
    enough = spare(collective)
    return any(
        len(firsts) > enough and sum(v.reason == WORSE for v in firsts.values()) > enough
        for firsts in collective.tally.firsts.values()
    )


def spare(collective: Collective) -> int:
    """How many voters a quorum can do without: so many objections change nothing."""
    return len(collective.charter.voters) - collective.charter.quorum
