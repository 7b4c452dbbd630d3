"""Which foreign heads members name in their entries: how much of each feed an author had recorded by when.

With n members that is a table of n times n and its history, the largest part of what a node keeps in memory; so it lies in plain
arrays: 20 bytes for each head that moved on, 4 for each pair of members. Knows no rules. Invariant: as answers only grow with
the entry they are asked about, of several heads that an author names of one feed the largest counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ledger.entry import Seen
from protocol.ids import MemberId

_CHUNK: Final = 64  # authors that name ids nobody has cost themselves memory, not every other author
_NONE: Final = array("i", [-1] * _CHUNK)


class _Author:
    """What one member has named, oldest first; each row leads to the one before it about the same feed."""

    __slots__ = ("before", "latest", "seqs", "sizes")

    def __init__(self) -> None:
        self.latest: dict[int, array[int]] = {}  # place // 64 -> the newest row of each place
        self.seqs, self.sizes, self.before = array("q"), array("q"), array("i")

    def row(self, place: int) -> int:
        chunk = self.latest.get(place // _CHUNK)
        return -1 if chunk is None else chunk[place % _CHUNK]

    def name(self, place: int, seq: int, size: int) -> None:
        chunk = self.latest.get(place // _CHUNK)
        if chunk is None:
            chunk = self.latest[place // _CHUNK] = _NONE[:]
        last = chunk[place % _CHUNK]
        if last < 0 or self.sizes[last] < size:
            chunk[place % _CHUNK] = len(self.seqs)
            self.seqs.append(seq)
            self.sizes.append(size)
            self.before.append(last)

    def size(self, place: int, upto: int) -> int:
        row = self.row(place)
        while row >= 0 and self.seqs[row] > upto:
            row = self.before[row]
        return self.sizes[row] if row >= 0 else 0


class Mentions:
    """All that is named in the entries that were taken."""

    def __init__(self) -> None:
        """Nothing is named yet."""
        self._places: dict[MemberId, int] = {}
        self._members: list[MemberId] = []
        self._authors: dict[MemberId, _Author] = {}

    def take(self, author: MemberId, seq: int, seen: Iterable[Seen]) -> None:
        """Entry `seq` of `author` names these heads; entries come in their order."""
        mine = self._authors.get(author)
        if mine is None:
            mine = self._authors[author] = _Author()
        places = self._places
        for each in seen:
            place = places.get(each.member)
            if place is None:
                place = places[each.member] = len(self._members)
                self._members.append(each.member)
            mine.name(place, seq, each.seq + 1)

    def upto(self, author: MemberId, seq: int) -> Named:
        """What `author` had named by its entry `seq`, that one included; asked of the arrays when it is looked at."""
        return Named(self, author, seq)

    def size(self, author: MemberId, member: MemberId, seq: int) -> int:
        """How many entries of the feed of `member` the `author` had named by its entry `seq`; 0 for none."""
        mine, place = self._authors.get(author), self._places.get(member)
        return 0 if mine is None or place is None else mine.size(place, seq)

    def named(self, author: MemberId, seq: int) -> Iterator[tuple[MemberId, int]]:
        """Every feed that `author` had named by its entry `seq`, with the size."""
        mine = self._authors.get(author)
        for chunk in mine.latest if mine is not None else ():
            for place in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self._members))):
                size = mine.size(place, seq) if mine is not None else 0
                if size:
                    yield self._members[place], size


class Named(Mapping[MemberId, int]):
    """Entries recorded of each feed: a view that costs no memory."""

    __slots__ = ("_all", "_author", "_seq")

    def __init__(self, mentions: Mentions, author: MemberId, seq: int) -> None:
        """See `Mentions.upto`."""
        self._all, self._author, self._seq = mentions, author, seq

    def __getitem__(self, member: MemberId) -> int:
        size = self._all.size(self._author, member, self._seq)
        if not size:
            raise KeyError(member)
        return size

    def __iter__(self) -> Iterator[MemberId]:
        return (member for member, _ in self._all.named(self._author, self._seq))

    def __len__(self) -> int:
        return sum(1 for _ in self._all.named(self._author, self._seq))
