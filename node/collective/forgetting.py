"""Forgetting contributions, as a member asks for it: which ones are meant, what is written, and how far it has come.

One's own go by `erasure.requested` (scope "contribution": no rows are erased); another member's by an amendment that a quorum
approves and decides. The next release without them comes by the usual two votes. Knows no blob and no vector. Invariant: nothing
is asked for twice; whoever asks for what somebody has proposed already approves that.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from ledger import events
from ledger.amending import amended
from ledger.collective import Asked, Collective, Contribution
from ledger.cuts import Amendment, Cut
from ledger.events.erasure import MAX_LISTED
from ledger.forgetting import MAX_NAMED, OP, Wish, decided, read_change, too_many
from node.collective.seat import Seat
from node.errors import NotAllowed
from protocol.canon import Json
from protocol.ids import Digest, EventId, MemberId

DATASET: Final = "contributions"
"""What a request that is about no rows names in place of a data set."""
_PREFIX: Final = 8


# -- which ones ----------------------------------------------------------------------------------------------------------
def targets(fold: Collective, wanted: str) -> list[Contribution]:
    """The contributions of this epoch that a text means: a member (name, id or its beginning), `name/number`, an event.

    Raises:
        NotAllowed: none, or the text is not clear.
    """
    epoch = fold.charter.epoch_id
    here = [c for by in fold.contributions.values() for c in by if c.epoch == epoch]
    name, slash, number = wanted.rpartition("/")
    seats = _seats(fold, name if slash else wanted)
    if len(seats) > 1:
        raise NotAllowed(f"couldn't forget {wanted[:64]}: {len(seats)} members are called so", hint="give the id")
    mine = [c for c in here if seats and fold.owner(c.member) == seats[0]]
    if slash:
        found = [c for c in mine if str(c.number) == number]
    else:
        found = mine or [c for c in here if len(wanted) >= _PREFIX and c.event.startswith(wanted.lower())]
        if not mine and len(found) > 1:
            raise NotAllowed(f"couldn't forget {wanted[:64]}: {len(found)} contributions begin so", hint="more digits")
    if not found:
        older = any(c.event.startswith(wanted.lower()) for by in fold.contributions.values() for c in by)
        cause = (
            "it is of an epoch that has ended: its sum is in the base"
            if older and not here
            else "no contribution of this epoch"
        )
        raise NotAllowed(
            f"couldn't forget {wanted[:64]}: {cause}", hint="a member, name/number, or 8 digits of an event"
        )
    return sorted(found, key=lambda c: (fold.owner(c.member), c.source.seq))


def _seats(fold: Collective, name: str) -> list[MemberId]:
    by_name = [m.id for m in fold.charter.members if m.name == name]
    if by_name or len(name) < _PREFIX:
        return by_name
    known = {fold.owner(m) for m in fold.ever_members() if m.startswith(name.lower())}
    return sorted(known)


# -- asking --------------------------------------------------------------------------------------------------------------
def ask(
    seat: Seat,
    named: Collection[EventId],
    deadline: int,
    *,
    destroy: bool = False,
    state: Mapping[str, bytes] | None = None,
) -> dict[str, Json]:
    """Write what has to be written so that these leave the next release; what was asked before is not asked again.

    `destroy`: holders delete the blobs of our own too, once a release is without them. `state` is saved with a request of ours.

    Raises:
        NotAllowed: somebody else's, and this node has no vote, or their blobs should go too; or more than releases can list.
        What `Seat.append` raises.
    """
    fold = seat.fold
    known = {c.event: c for by in fold.contributions.values() for c in by if c.event in named}
    missing = sorted(set(named) - known.keys())
    if missing:
        raise NotAllowed(f"couldn't forget {missing[0][:12]}: no such contribution is here")
    open_ = {event: c for event, c in known.items() if not _asked(fold, c) and event not in left_out(fold)}
    mine = sorted(event for event, c in open_.items() if fold.owner(c.member) == fold.owner(seat.me))
    others = sorted(open_.keys() - set(mine) - decided(fold, fold.height).keys())
    if destroy and (others or not mine):
        raise NotAllowed(
            "couldn't have blobs erased: only their author's word does that, said when it asks to forget them",
            hint="without --erase-blobs the contribution is forgotten all the same",
        )
    requests = [str(seat.append(each, state=state).entry.event) for each in _requests(mine, deadline, destroy=destroy)]
    proposals, approved = _propose(seat, others, deadline) if others else ([], [])
    return {"requests": list(requests), "proposals": list(proposals), "approved": list(approved)}


def _requests(mine: Sequence[EventId], deadline: int, *, destroy: bool) -> Iterator[events.ErasureRequested]:
    act = Digest(secrets.token_hex(32))
    for start in range(0, len(mine), MAX_LISTED):
        yield events.ErasureRequested(
            dataset=DATASET,
            scope="blob" if destroy else "contribution",
            rows=0,
            request=act,
            contributions=tuple(mine[start : start + MAX_LISTED]),
            entries=(),
            deadline=deadline,
        )


def _propose(seat: Seat, others: Sequence[EventId], deadline: int) -> tuple[list[str], list[str]]:
    """Propose to forget these, or approve where that was proposed before; ids of what was proposed and of what was approved."""
    fold = seat.fold
    member = fold.charter.member(seat.me)
    if member is None or not member.votes:
        raise NotAllowed(
            "couldn't forget another member's contribution: this node has no vote", hint="a member that has proposes it"
        )
    proposals, approved, left = list[str](), list[str](), set(others)
    for asked in proposed(fold):
        named = set(read_change(asked.change).contributions)
        if named <= set(others):
            if seat.me not in fold.approvals.get(asked.source.event, {}):
                seat.append(events.AmendmentApproved(proposal=asked.source.event))
                approved.append(asked.source.event)
            left -= named
    rest = sorted(left)
    for start in range(0, len(rest), MAX_NAMED):
        change = Wish(contributions=tuple(rest[start : start + MAX_NAMED]), deadline=deadline).to_json()
        amended(fold.charter, change)
        if too_many(fold, change):
            raise NotAllowed(
                "couldn't forget: releases of this epoch can list no more that was forgotten",
                hint="an amendment of base or adapter starts a new epoch",
            )
        proposals.append(seat.append(events.AmendmentProposed(change=change)).entry.event)
    return proposals, approved


def proposed(fold: Collective) -> list[Asked]:
    """Undecided proposals to forget something, oldest first."""
    done = {d.value.proposal for d in fold.decisions if isinstance(d.value, Amendment)}
    found = [a for event, a in fold.asked.items() if event not in done and a.change.get("op") == OP]
    return sorted(found, key=lambda a: (a.source.ts, a.source.event))


# -- how far -------------------------------------------------------------------------------------------------------------
def state(fold: Collective, named: Collection[EventId]) -> dict[str, Json]:
    """How far the forgetting of these has come: what is waited for, in words, and the release that is without them.

    `stage` is `unasked`, `approvals`, `decision`, `release` or `done`.
    """
    known = {c.event: c for by in fold.contributions.values() for c in by if c.event in named}
    out, told = left_out(fold), decided(fold, fold.height)
    open_ = [c for event, c in known.items() if event not in out]
    answer: dict[str, Json] = {"height": fold.height, "left": len(open_), "release": None, "number": None}
    if not open_:
        found = without(fold, known.keys())
        if found is None:
            return {**answer, "stage": "unasked", "text": "nothing is to be forgotten"}
        return {**answer, "stage": "done", "release": found.digest, "number": found.number,
                "text": f"release {found.number} is without it"}  # fmt: skip
    if any(not _asked(fold, c) and c.event not in told and not _proposing(fold, c.event) for c in open_):
        return {**answer, "stage": "unasked", "text": "nobody has asked for all of it yet"}
    waiting = [
        asked for c in open_ if c.event not in told and not _asked(fold, c) for asked in _proposing(fold, c.event)
    ]
    if waiting:
        return {**answer, **_votes(fold, min(waiting, key=lambda a: (a.source.ts, a.source.event)))}
    return {**answer, "stage": "release", "text": f"waits for the release without it: {_votes_now(fold)}"}


def without(fold: Collective, named: Collection[EventId]) -> Cut | None:
    """The first release of this epoch that leaves all of these out on request or for another reason."""
    epoch = fold.charter.epoch_id
    for decision in fold.releases:
        cut = decision.value
        if isinstance(cut, Cut) and cut.epoch == epoch and set(named) <= {x.event for x in cut.excluded}:
            return cut
    return None


def left_out(fold: Collective) -> set[EventId]:
    """What the newest release of this epoch leaves out."""
    cut = fold.current_cut()
    return {x.event for x in cut.excluded} if cut else set()


def _asked(fold: Collective, contribution: Contribution) -> bool:
    """Whether the seat that published it has asked for it."""
    owner = fold.owner(contribution.member)
    return any(fold.owner(s.member) == owner for s in fold.forgotten.get(contribution.event, ()))


def _proposing(fold: Collective, event: EventId) -> list[Asked]:
    return [asked for asked in proposed(fold) if event in read_change(asked.change).contributions]


def _votes(fold: Collective, asked: Asked) -> dict[str, Json]:
    voters = {m.id for m in fold.charter.voters}
    said, need = voters & set(fold.approvals.get(asked.source.event, {})), fold.charter.quorum
    if len(said) >= need:
        return {"stage": "decision", "text": f"approved; waits for the decision: {_votes_now(fold)}"}
    others = ", ".join(fold.charter.name_of(m) for m in sorted(voters - said))
    hint = f"on one of {others}: fishernet collective approve {asked.source.event[:16]}"
    return {"stage": "approvals", "proposal": asked.source.event, "hint": hint,
            "text": f"waits for approvals: {len(said)} of {need}"}  # fmt: skip


def _votes_now(fold: Collective) -> str:
    """Who has committed at this height, in words."""
    tally, voters = fold.tally, {m.id for m in fold.charter.voters}
    attempt = max((a for table in (tally.proposals, tally.firsts, tally.commits) for a in table), default=0)
    said = len(voters & tally.firsts.get(attempt, {}).keys())
    commits = len(voters & tally.commits.get(attempt, {}).keys())
    place = f"height {fold.height}, attempt {attempt}"
    return f"{place}, {said} first votes and {commits} commits of {fold.charter.quorum} that are needed"


def describe(fold: Collective, change: Mapping[str, Json]) -> str:
    """A change of this kind in words."""
    known = {c.event: c for by in fold.contributions.values() for c in by}
    named = read_change(change).contributions
    said = [
        f"{fold.charter.name_of(fold.owner(known[e].member))}/{known[e].number}" if e in known else e[:12]
        for e in named
    ]
    return "forget " + ", ".join(said[:8]) + (f" and {len(said) - 8} more" if len(said) > 8 else "")
