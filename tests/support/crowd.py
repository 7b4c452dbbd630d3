"""A release of many members, as one of them sees it: real keys and entries, the real fold and book, votes by everybody.

Every entry names as many of the other feeds as the format allows, as entries of a busy collective do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from paper import charter_of, key

from ledger import charter as charters
from ledger import events, rules
from ledger.access.book import Book
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.cuts import Cut, RegisterDigest
from ledger.entry import MAX_SEEN, Record, Seen, make
from protocol.ids import ZERO, Digest, digest
from protocol.keys import member_id


@dataclass
class Crowd:
    """`count` members and what one of them has taken in."""

    count: int
    charter: Charter = field(init=False)
    fold: Collective = field(init=False)
    book: Book = field(default_factory=Book)
    entries: int = 0
    bytes: int = 0  # of lines, salts and bodies
    seconds: float = 0.0  # of the processor, spent in the fold and the book

    def __post_init__(self) -> None:
        self.names = [f"m{n:04d}" for n in range(self.count)]
        self.charter = charter_of(self.names, faults=-1 if self.count < 4 else None)
        self.id = charters.collective_id(self.charter)
        self.fold = Collective(self.id)
        self.ids = {name: member_id(key(name)) for name in self.names}
        self._last: dict[
            str, tuple[int, Digest]
        ] = {}  # number and leaf of each one's newest entry: records are not kept
        self._at = 0

    def say(self, name: str, event: events.Event) -> Record:
        """One more entry of a member's feed, taken in at once."""
        before = self._last.get(name)
        record = make(
            key(name),
            collective=self.id,
            seq=0 if before is None else before[0] + 1,
            prev=ZERO if before is None else before[1],
            ts=0,
            type=event.TYPE,
            seen=self._seen(name),
            body=event.to_json(),
            salt=bytes(16),
        )
        self._last[name] = (record.entry.header.seq, record.entry.leaf)
        body = record.body
        self.entries += 1
        self.bytes += len(record.entry.line) + (0 if body is None else len(body.salt) + len(body.data))
        began = time.process_time()
        self.fold.apply(record)
        self.book.apply(record)
        self.seconds += time.process_time() - began
        return record

    def found(self) -> None:
        """The genesis."""
        self.say(self.names[0], events.Genesis(charter=self.charter.to_json()))

    def release(self) -> Cut:
        """Everybody contributes; one proposes; a quorum, or all, vote."""
        fold, height = self.fold, self.fold.height
        for name in self.names:
            number = len(fold.contributions.get(self.ids[name], ())) + 1
            self.say(
                name,
                events.Published(
                    epoch=self.charter.epoch_id,
                    number=number,
                    blob=digest(f"{name}/{number}".encode()),
                    size=64,
                    run=f"r{number}",
                ),
            )
        place = rules.place(fold, fold.sizes)
        cut = Cut(
            place=place,
            number=len(fold.releases) + 1,
            parent_release=fold.releases[-1].digest if fold.releases else None,
            epoch=self.charter.epoch_id,
            last=rules.last_of(fold, place),
            excluded=(),
            recipe=self.charter.recipe,
            registers=(),
            model=digest(b"model"),
        )
        registers = tuple(RegisterDigest(member=m, digest=digest(m.encode())) for m in sorted(fold.in_cut(cut)))
        cut = Cut(**{name: getattr(cut, name) for name in Cut.__slots__} | {"registers": registers})
        assert isinstance(rules.check(fold, cut), rules.Fits)
        self.say(self.names[0], events.Proposed(height=height, attempt=0, valid_attempt=-1, value=cut.to_json()))
        for name in self.names:
            self.say(name, events.Accepted(height=height, attempt=0, digest=cut.digest))
        for name in self.names:
            self.say(name, events.Committed(height=height, attempt=0, digest=cut.digest))
        return cut

    def _seen(self, name: str) -> list[Seen]:
        """The next 64 feeds in turn, as they stand."""
        found: list[Seen] = []
        for _ in range(min(MAX_SEEN, self.count - 1)):
            self._at = (self._at + 1) % self.count
            other = self.names[self._at]
            last = self._last.get(other)
            if other != name and last is not None:
                found.append(Seen(member=self.ids[other], seq=last[0], leaf=last[1]))
        return list({seen.member: seen for seen in found}.values())
