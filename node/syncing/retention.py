"""Which blobs go when there is too little room: a pure function of what lies here, why it is kept, and how much may lie here.

What a decision under vote, a pending contribution or a release that is served needs is never dropped, however far over the
quota that leaves the node: then it says so and fetches no history. The rest goes in a fixed order, what only this node is
known to hold last of all. Knows no ledger, disk or peer. Law: dropping what `plan` names and planning again names nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from protocol.canon import Json
from protocol.ids import Digest

LOW: Final = 0.9  # of the quota: dropping goes on down to here, and history is fetched up to here


class Why(IntEnum):
    """Why a blob lies here; up to `KEPT` it is never dropped, after that the highest goes first."""

    VOTE = 0  # an undecided proposal builds on it
    OWN = 1  # our own contribution, not released yet
    PENDING = 2  # another member's, not released yet
    RELEASE = 3  # a release that is served, or one of the newest that are kept, is made of it
    FRESH = 4  # nothing names it yet, but it has only just come
    HISTORY = 5  # releases of former epochs were made of it
    SUPERSEDED = 6  # older releases were, the newest leaves it out on request
    STALE = 7  # of a former epoch, and no release took it
    REFUSED = 8  # left out for a fault, or by objections
    UNKNOWN = 9  # no contribution names it


KEPT: Final = Why.FRESH
WORDS: Final[Mapping[Why, str]] = {
    Why.VOTE: "under vote",
    Why.OWN: "own, not released yet",
    Why.PENDING: "pending",
    Why.RELEASE: "releases that are kept",
    Why.FRESH: "just come",
    Why.HISTORY: "former epochs",
    Why.SUPERSEDED: "left out on request",
    Why.STALE: "stale, never released",
    Why.REFUSED: "refused",
    Why.UNKNOWN: "named by nothing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One blob here. `age` orders inside one reason, the lowest goes first; `others`: known other holders, None: not known."""

    digest: Digest
    size: int
    why: Why
    age: int = 0
    others: int | None = None

    @property
    def droppable(self) -> bool:
        """Whether it may go at all."""
        return self.why > KEPT

    @property
    def rare(self) -> bool:
        """Whether nobody else is known to hold it."""
        return not self.others


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How much may lie here, in bytes: `quota` for blobs (0: no limit of its own), `least_free` of the disk's `free` ones."""

    quota: int = 0
    free: int = 1 << 62
    least_free: int = 0

    def over(self, used: int) -> int:
        """How many bytes are too many now."""
        beyond = used - self.quota if self.quota else 0
        return max(0, beyond, self.least_free - self.free)

    def target(self, used: int) -> int:
        """How many bytes have to go when some have to: down to the low mark, so that it is not done again at once."""
        if not self.over(used):
            return 0
        beyond = used - int(self.quota * LOW) if self.quota else 0
        return max(0, beyond, self.least_free - self.free)

    def admits(self, used: int, size: int) -> bool:
        """Whether there is room for `size` bytes of history."""
        inside = not self.quota or used + size <= int(self.quota * LOW)
        return inside and self.free - size >= self.least_free


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What lies here by reason (blobs, bytes), what should go now, and by how many bytes that is too little."""

    used: int
    by: Mapping[Why, tuple[int, int]] = field(default_factory=dict)
    drop: tuple[Held, ...] = ()
    freed: int = 0
    unmet: int = 0
    droppable: int = 0  # bytes
    rare: int = 0  # bytes of what could go and nobody else is known to hold

    def to_json(self) -> dict[str, Json]:
        """As commands show it."""
        return {
            "used": self.used,
            "unmet": self.unmet,
            "droppable": self.droppable,
            "rare": self.rare,
            "freed": self.freed,
            "by": {why.name.lower(): {"blobs": n, "bytes": size} for why, (n, size) in sorted(self.by.items())},
            "drop": [
                {"blob": h.digest, "bytes": h.size, "why": h.why.name.lower(), "others": h.others} for h in self.drop
            ],
        }


def turn(held: Held) -> tuple[int, int, int, int, str]:
    """The place in the order of dropping: rare ones after all others; then by reason, age and size."""
    rarity = 0 if held.others else 1 if held.others is None else 2
    return rarity, -held.why, held.age, -held.size, held.digest


def plan(held: Iterable[Held], room: Room) -> Plan:
    """What has to go so that there is room again."""
    everything = list(held)
    used = sum(h.size for h in everything)
    drop, freed, target = list[Held](), 0, room.target(used)
    for each in sorted((h for h in everything if h.droppable), key=turn):
        if freed >= target:
            break
        drop.append(each)
        freed += each.size
    unmet = max(0, room.over(used) - freed)
    return _plan(everything, drop, unmet=unmet)


def prune(held: Iterable[Held], *, rare: bool = False) -> Plan:
    """Everything that may go, without (or with) what only this node is known to hold."""
    everything = list(held)
    return _plan(everything, sorted((h for h in everything if h.droppable and (rare or not h.rare)), key=turn), unmet=0)


def candidates(held: Iterable[Held], room: Room, *, most: int) -> list[Digest]:
    """Whose other holders have to be known before `plan` is sure: those that could go first."""
    everything = list(held)
    if not room.target(sum(h.size for h in everything)):
        return []
    return [h.digest for h in sorted((h for h in everything if h.droppable), key=turn)][:most]


def _plan(everything: Sequence[Held], drop: Sequence[Held], *, unmet: int) -> Plan:
    blobs, sizes = Counter[Why](), Counter[Why]()
    for each in everything:
        blobs[each.why] += 1
        sizes[each.why] += each.size
    return Plan(
        used=sizes.total(),
        by={why: (blobs[why], sizes[why]) for why in sorted(blobs)},
        drop=tuple(drop),
        freed=sum(h.size for h in drop),
        unmet=unmet,
        droppable=sum(h.size for h in everything if h.droppable),
        rare=sum(h.size for h in everything if h.droppable and h.rare),
    )
