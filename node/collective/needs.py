"""What each blob here is needed for, as the ledger tells: pure questions to the fold.

Knows no disk and no peer. A blob that several contributions name has the strongest of their reasons. What an author had
forgotten is never a reason to keep or to fetch it again. Invariant: what the newest release, one that is still served, an
undecided proposal or a pending contribution needs is named as such.
"""

from __future__ import annotations

from collections.abc import Iterator

from ledger import forgetting
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut
from node.syncing.donors import Rank
from node.syncing.retention import Why
from protocol.ids import Digest, EventId, MemberId


def rank(fold: Collective, contribution: Contribution) -> Rank:
    """How urgent the blob of a contribution is; asked often, so it looks at nothing but the newest decisions."""
    if contribution.epoch != fold.charter.epoch_id:
        return Rank.HISTORY
    if under_vote(fold, contribution):
        return Rank.VOTE
    cut = fold.current_cut()
    return (
        Rank.PENDING
        if cut is None or contribution.source.seq >= cut.place.size_of(contribution.member)
        else Rank.RELEASE
    )


def under_vote(fold: Collective, contribution: Contribution) -> bool:
    """Whether a proposal at the next height builds on a contribution."""
    proposals = (p for by in fold.tally.proposals.values() for p in by.values())
    return any(contribution.source.seq < p.value.place.size_of(contribution.member) for p in proposals)


def forgotten(fold: Collective, contribution: Contribution) -> bool:
    """Whether its own author asked to forget it, and no release or pending set has it any more."""
    owner = fold.owner(contribution.member)
    asked = any(fold.owner(source.member) == owner for source in fold.forgotten.get(contribution.event, ()))
    return asked and fold.fate(contribution) in {"refused", "stale"}


def needs(fold: Collective, me: MemberId, *, keep_releases: int, now_ms: int) -> dict[Digest, tuple[Why, int, int]]:
    """Why each blob that a contribution names is needed, its age (the height that took it first, or 0), and its size."""
    if not fold.known:
        return {}
    served = _served(fold, keep_releases, now_ms)
    history, left_out = _former(fold)
    found: dict[Digest, tuple[Why, int, int]] = {}
    for contribution in (c for by in fold.contributions.values() for c in by):
        why = _why(fold, me, contribution, served, history, left_out)
        reason = (why, history.get(contribution.event, 0), contribution.size)
        known = found.get(contribution.blob)
        found[contribution.blob] = reason if known is None else min(known, reason)
    return found


def former(fold: Collective) -> Iterator[Contribution]:
    """What releases of former epochs were made of, newest epoch first, without what was forgotten."""
    epochs = {fold.charter.epoch_id}
    for decision in reversed(fold.releases):
        cut = decision.value
        if isinstance(cut, Cut) and cut.epoch not in epochs:
            epochs.add(cut.epoch)
            for taken in fold.in_cut(cut).values():
                yield from (c for c in taken if not fold.forgotten.get(c.event))


# -- inside --------------------------------------------------------------------------------------------------------------
def _why(
    fold: Collective,
    me: MemberId,
    contribution: Contribution,
    served: set[EventId],
    history: dict[EventId, int],
    left_out: set[EventId],
) -> Why:
    event, now = contribution.event, contribution.epoch == fold.charter.epoch_id
    if now and under_vote(fold, contribution):
        return Why.VOTE
    fate = fold.fate(contribution)
    if fate == "pending":
        return Why.OWN if fold.owner(contribution.member) == fold.owner(me) else Why.PENDING
    if event in served:
        return Why.RELEASE
    if event in left_out:
        return Why.SUPERSEDED
    if event in history:
        return Why.HISTORY
    return Why.STALE if fate == "stale" else Why.REFUSED


def _served(fold: Collective, keep_releases: int, now_ms: int) -> set[EventId]:
    """What is in the newest release, in the `keep_releases` newest ones, and in those that may still be asked for by name."""
    releases = fold.releases
    retired = forgetting.retired(fold)
    wanted = {d.digest for d in releases[-max(1, keep_releases) :]}
    wanted |= {digest for digest, each in retired.items() if each.deadline > now_ms}
    found: set[EventId] = set()
    for decision in releases:
        if isinstance(decision.value, Cut) and decision.digest in wanted:
            found |= {c.event for taken in fold.in_cut(decision.value).values() for c in taken}
    return found


def _former(fold: Collective) -> tuple[dict[EventId, int], set[EventId]]:
    """What the last release of each epoch has in it, with its height, and what such releases leave out on request."""
    last: dict[Digest, Cut] = {}
    for decision in fold.releases:
        if isinstance(decision.value, Cut):
            last[decision.value.epoch] = decision.value
    history, left_out = dict[EventId, int](), set[EventId]()
    for cut in last.values():
        history |= {c.event: cut.place.height for taken in fold.in_cut(cut).values() for c in taken}
        left_out |= {x.event for x in cut.excluded if x.reason in {forgetting.ERASED, forgetting.FORGOTTEN}}
    return history, left_out
