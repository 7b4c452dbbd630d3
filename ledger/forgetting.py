"""What has to leave the merges, by whose word, and until when: an author's own request, or a decision of the collective.

Pure questions to the state; knows no blob, clock or vector. A decision names contributions and a deadline; from the next
height on every release leaves them out (`ledger.rules` demands it). Law: what has to be left out at a place is a function of the
decisions before it and of the requests inside its head vector. Nothing here erases: leaving out of a merge is not unlearning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from ledger.cuts import MAX_LIST, Amendment, Cut, Exclusion
from ledger.errors import BadCharter
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, EventId, as_hex

if TYPE_CHECKING:
    from ledger.standing import Standing

ERASED: Final = "erased"
"""Code of an exclusion that the contribution's own author asked for."""
FORGOTTEN: Final = "forgotten"
"""Code of one that the collective decided on."""

OP: Final = "forget"
CHANGE: Final = frozenset({"op", "contributions", "deadline"})
MAX_NAMED: Final = 200  # contributions in one change, as in one request to erase
MAX_DECIDED: Final = MAX_LIST // 4  # of one epoch: a cut lists each, beside what authors and objections exclude


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a change of this kind asks for; `deadline` (ms) is when nobody should serve a release with them in it any more."""

    contributions: tuple[EventId, ...]
    deadline: int

    def to_json(self) -> dict[str, Json]:
        """The change."""
        return {"op": OP, "contributions": list(self.contributions), "deadline": self.deadline}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A decision about one contribution: the proposal that asked for it, the height that decided and when, the deadline."""

    proposal: EventId
    height: int
    ts: int  # ms, as the author of the value that was decided dates it
    deadline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """A release with something in it that the newest one leaves out on request.

    `deadline` (ms): until then whoever pinned it may still be served; 0 where rows were erased, then nobody is. `successor`
    is the newest release.
    """

    number: int
    deadline: int
    successor: Digest
    successor_number: int


def read_change(change: Mapping[str, Json]) -> Wish:
    """Read a change of this kind strictly.

    Raises:
        BadCharter: other keys, a list that is empty, too long or not ascending, no deadline.
        Malformed: an id that is none.
    """
    named, deadline = change.get("contributions"), change.get("deadline")
    if set(change) != CHANGE or not isinstance(named, list) or not 1 <= len(named) <= MAX_NAMED:
        raise BadCharter(f"couldn't read change: forget names 1 to {MAX_NAMED} contributions and a deadline")
    found = tuple(EventId(as_hex(each, "contribution")) for each in named)
    if any(a >= b for a, b in pairwise(found)):
        raise BadCharter("couldn't read change: contributions ascend, each once")
    if isinstance(deadline, bool) or not isinstance(deadline, int) or not 0 <= deadline <= MAX_INT:
        raise BadCharter("couldn't read change: deadline is a time in ms")
    return Wish(contributions=found, deadline=deadline)


def decided(collective: Standing, height: int) -> dict[EventId, Told]:
    """What decisions below a height took out of the epoch of that height; of several about one, the first."""
    if not collective.known:
        return {}
    epoch = collective.charter_at(min(height, len(collective.charters))).epoch_id
    found: dict[EventId, Told] = {}
    for decision in collective.decisions[: max(0, height - 1)]:
        value = decision.value
        if isinstance(value, Amendment) and value.change.get("op") == OP and decision.charter.epoch_id == epoch:
            wish = read_change(value.change)
            told = Told(
                proposal=value.proposal, height=decision.height, ts=decision.proposal.ts, deadline=wish.deadline
            )
            for event in wish.contributions:
                found.setdefault(event, told)
    return found


def too_many(collective: Standing, change: Mapping[str, Json]) -> bool:
    """Whether one more decision would name more contributions than every later cut of the epoch can list."""
    if change.get("op") != OP:
        return False
    named = set(read_change(change).contributions)
    return len(named | decided(collective, collective.height).keys()) > MAX_DECIDED


def retired(collective: Standing) -> dict[Digest, Retired]:
    """Releases of this epoch with something in them that the newest one leaves out on request, by digest."""
    newest, epoch = collective.current_cut(), collective.charter.epoch_id
    if newest is None or all(x.reason not in {ERASED, FORGOTTEN} for x in newest.excluded):
        return {}
    told, last = decided(collective, collective.height), collective.releases[-1].digest
    until = {x.event: _deadline(collective, x, told) for x in newest.excluded if x.reason in {ERASED, FORGOTTEN}}
    found: dict[Digest, Retired] = {}
    for decision in collective.releases:
        cut = decision.value
        if not isinstance(cut, Cut) or cut.epoch != epoch:
            continue
        inside = {c.event for taken in collective.in_cut(cut).values() for c in taken} & until.keys()
        if inside:
            found[decision.digest] = Retired(
                number=cut.number,
                deadline=min(until[event] for event in inside),
                successor=last,
                successor_number=newest.number,
            )
    return found


def _deadline(collective: Standing, left_out: Exclusion, told: Mapping[EventId, Told]) -> int:
    """Until when what holds a contribution may be served: 0 as soon as its author erased rows that it was trained on."""
    event, seat = left_out.event, collective.owner(collective.sources[left_out.event].member)
    own = {s.event for s in collective.forgotten.get(event, ()) if collective.owner(s.member) == seat}
    if own - collective.withdrawals.keys():
        return 0
    known = [collective.withdrawals[request] for request in own]
    return min([*known, told[event].deadline] if event in told else known, default=0)
