"""What the links between feeds and the times in them say against somebody: rollback, false links, times that cannot be.

Every entry names foreign heads that its author had verified (`seen`), so the feeds are each other's memory. Pure functions
over verified entries; nothing here convicts anybody alone (only a fork proof does), each finding names both entries that
do not fit. Knows no store and no network: `now_ms` is an argument.

    seen-branch      a link names another entry than the feed has there: its author showed two histories, or the linker lies
    seen-missing     a link goes beyond what is held of the feed: it was cut off or held back, or the linker lies
    seen-backwards   a link names less of a feed than an earlier entry of the same author did
    seen-stranger    a link names a feed that nobody with a seat writes
    seen-later       a link names an entry whose time is far after that of the entry that names it
    ts-backwards     an entry's time is before that of the entry before it
    ts-future        an entry's time is after the time of the audit
    feed-silent      an author that others still saw has written nothing, not even a sign of life, for long
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ledger.entry import Header
from protocol.ids import Digest, MemberId

SKEW_MS: Final = 10 * 60 * 1000  # two honest clocks differ by less
SILENT_MS: Final = 3 * 10 * 60 * 1000  # three heartbeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One entry as far as links and times go. `leaf` is its own leaf hash."""

    header: Header
    leaf: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """`author`'s entry `seq` does not fit `about`'s feed at `at` (both the same feed where only times are meant)."""

    code: str
    author: MemberId
    seq: int
    about: MemberId
    at: int
    text: str


def contradictions(
    feeds: Mapping[MemberId, Sequence[Link]],
    *,
    now_ms: int,
    members: Collection[MemberId] | None = None,
    longest: Mapping[MemberId, int] | None = None,
) -> list[Contradiction]:
    """Everything in the links and times of verified feeds that cannot be true together, by author and entry.

    `members` are the keys that ever had a seat (None: the authors of the feeds); `longest` is the largest signed head known
    of each feed, so that entries which are only on their way are told from those that nobody has signed.
    """
    known = set(feeds) if members is None else set(members)
    found: list[Contradiction] = []
    for author in sorted(feeds):
        reached: dict[MemberId, int] = {}
        before: Link | None = None
        for link in feeds[author]:
            found += _times(author, link, before, now_ms)
            for seen in link.header.seen:
                found += _seen(author, link, seen.member, seen.seq, seen.leaf, feeds, known, longest or {})
                earlier = reached.get(seen.member, -1)
                if seen.seq < earlier:
                    found.append(_says("seen-backwards", author, link, seen.member, seen.seq, f"entry {earlier}"))
                reached[seen.member] = max(earlier, seen.seq)
            before = link
    return found


def unseen(feeds: Mapping[MemberId, Sequence[Link]], *, author: MemberId, seq: int) -> list[tuple[MemberId, int]]:
    """For each other feed, its first entry that had seen entry `seq` of `author`: later acts of that feed knew of it.

    This is the evidence of omission: who had recorded an entry before it acted cannot say that it was not there.
    """
    found = []
    for member in sorted(feeds):
        if member != author:
            knew = (
                k.header.seq for k in feeds[member] if any(s.member == author and s.seq >= seq for s in k.header.seen)
            )
            first = next(knew, None)
            if first is not None:
                found.append((member, first))
    return found


def silent(
    feeds: Mapping[MemberId, Sequence[Link]], members: Iterable[MemberId], *, now_ms: int, after_ms: int = SILENT_MS
) -> list[Contradiction]:
    """Seated members whose newest entry is old although they write a sign of life every ten minutes: a frozen view, or off."""
    found = []
    for member in sorted(members):
        feed = feeds.get(member, ())
        if feed and now_ms - feed[-1].header.ts > after_ms:
            minutes = (now_ms - feed[-1].header.ts) // 60_000
            found.append(
                Contradiction(
                    code="feed-silent",
                    author=member,
                    seq=feed[-1].header.seq,
                    about=member,
                    at=feed[-1].header.seq,
                    text=f"nothing was written for {minutes} minutes: the node was off, or newer entries are held back",
                )
            )
    return found


def _times(author: MemberId, link: Link, before: Link | None, now_ms: int) -> list[Contradiction]:
    found, ts, seq = [], link.header.ts, link.header.seq
    if before is not None and ts < before.header.ts:
        found.append(_says("ts-backwards", author, link, author, seq - 1, f"{before.header.ts - ts} ms before it"))
    if ts > now_ms + SKEW_MS:
        found.append(_says("ts-future", author, link, author, seq, f"{(ts - now_ms) // 1000} s after this audit"))
    return found


def _seen(
    author: MemberId,
    link: Link,
    about: MemberId,
    at: int,
    leaf: Digest,
    feeds: Mapping[MemberId, Sequence[Link]],
    known: Collection[MemberId],
    longest: Mapping[MemberId, int],
) -> list[Contradiction]:
    feed = feeds.get(about, ())
    if about not in known:
        return [_says("seen-stranger", author, link, about, at, "nobody with a seat writes it")]
    if at >= len(feed):
        signed = longest.get(about, 0)
        if at < signed:
            return []  # signed by its author, and not fetched yet
        return [_says("seen-missing", author, link, about, at, f"{len(feed)} entries are held")]
    if feed[at].leaf != leaf:
        return [_says("seen-branch", author, link, about, at, "the feed has another entry there")]
    late = feed[at].header.ts - link.header.ts
    if late > SKEW_MS:
        return [_says("seen-later", author, link, about, at, f"its time is {late // 1000} s later")]
    return []


_WORDS: Final = {
    "seen-branch": "claims to have seen entry {at} of {about}, but {more}",
    "seen-missing": "claims to have seen entry {at} of {about}, but {more} of it",
    "seen-backwards": "names entry {at} of {about} as seen after it had named {more}",
    "seen-stranger": "names entry {at} of {about} as seen, but {more}",
    "seen-later": "names entry {at} of {about} as seen, but {more}",
    "ts-backwards": "says a time that lies before that of entry {at}: {more}",
    "ts-future": "says a time that lies in the future: {more}",
}


def _says(code: str, author: MemberId, link: Link, about: MemberId, at: int, more: str) -> Contradiction:
    words = _WORDS[code].format(at=at, about=about[:12], more=more)
    return Contradiction(
        code=code, author=author, seq=link.header.seq, about=about, at=at, text=f"entry {link.header.seq} {words}"
    )
