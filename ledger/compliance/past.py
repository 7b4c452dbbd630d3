"""Who knew what when they wrote, and what lay before it: the past of entries, from the `seen` links of all feeds.

Two vectors of an entry, each a number of entries for each feed. What its author **knew**: its own entries and those that it
had named as seen; nobody can deny these. What lay **before**: also everything that those had seen (Mattern, Virtual Time and
Global States of Distributed Systems, 1989), which the author need not hold yet. Clocks play no part. A link that names an
entry which is not here, or another one than the one here, proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ledger.entry import Entry, Seen
from protocol.ids import Digest, EventId, MemberId

Vector = Mapping[MemberId, int]


@dataclass(slots=True)
class _Feed:
    leaves: list[Digest] = field(default_factory=list)
    links: dict[int, tuple[Seen, ...]] = field(default_factory=dict)  # entries that name something
    # Of each entry done, without its own feed; shared while nothing new is seen.
    known: list[Vector] = field(default_factory=list)
    before: list[Vector] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Of one entry: how many entries of each feed its author knew, and how many lay before it; its own feed up to itself."""

    event: EventId
    known: Vector
    before: Vector


class Causality:
    """Takes entries feed by feed in their order, then tells what lay before any of them."""

    def __init__(self) -> None:
        self._feeds: dict[MemberId, _Feed] = {}
        self._wanted: dict[EventId, tuple[MemberId, int]] = {}

    def add(self, entry: Entry, *, wanted: bool) -> None:
        """Take the next entry of its feed; `wanted` ones are answered by `vectors`."""
        header = entry.header
        feed = self._feeds.setdefault(header.member, _Feed())
        if header.seen:
            feed.links[len(feed.leaves)] = header.seen
        feed.leaves.append(entry.leaf)
        if wanted:
            self._wanted[entry.event] = (header.member, header.seq)

    def holds(self, link: Seen) -> bool | None:
        """Whether a link names the entry that is here; None when nothing is here at its place."""
        leaves: Sequence[Digest] = self._feeds[link.member].leaves if link.member in self._feeds else ()
        return leaves[link.seq] == link.leaf if link.seq < len(leaves) else None

    def pasts(self) -> Iterator[Past]:
        """The past of every wanted entry."""
        waiting = set(self._feeds)
        while waiting:
            # Leaf hashes make a circle of links impossible, so a round without progress would be a fault of this loop.
            moved = {member for member in waiting if self._advance(member, self._feeds[member])}
            waiting = {m for m in waiting if len(self._feeds[m].before) < len(self._feeds[m].leaves)}
            if not moved and waiting:
                raise RuntimeError("couldn't order entries: their links form a circle")
        for event, (member, seq) in self._wanted.items():
            feed = self._feeds[member]
            yield Past(event=event, known={**feed.known[seq], member: seq}, before={**feed.before[seq], member: seq})

    def _advance(self, member: MemberId, feed: _Feed) -> bool:
        start = len(feed.before)
        for seq in range(start, len(feed.leaves)):
            known: Vector = feed.known[-1] if feed.known else {}
            before: Vector = feed.before[-1] if feed.before else {}
            links = [s for s in feed.links.get(seq, ()) if s.member != member and self.holds(s)]
            if any(len(self._feeds[s.member].before) <= s.seq for s in links):
                return seq > start
            if links:
                direct = {s.member: s.seq + 1 for s in links}
                known = _joined(known, [direct])
                before = _joined(before, [direct, *(self._feeds[s.member].before[s.seq] for s in links)])
            feed.known.append(known)
            feed.before.append(before)
        return True


def _joined(vector: Vector, others: list[Vector]) -> Vector:
    joined = dict(vector)
    for other in others:
        for of, size in other.items():
            if size > joined.get(of, 0):
                joined[of] = size
    return joined
