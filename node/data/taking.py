"""Import of bundles: every entry and blob of a file meets the checks that those of a peer meet.

Signature, chain, head and fork are the store's; whose feed is taken is asked of the fold; a blob is taken when a contribution
that is held names it with this digest and size. What is taken is taken entry by entry, so an import that was broken off is
simply done again. Knows no network. Invariant: nothing of a bundle is believed because of who made or brought it, but for
one thing: how long our own feed is where its maker is a member (`Session.carried`).

What a file may cost: of a feed no more than it may grow by now ([limits]), each entry of it looked at once, as the pages of a
feed ascend in a bundle; each blob once; of history only what [storage] has room for. The rest of a file is read and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ledger import charter as charters
from ledger import charter_reading, events
from ledger.collective import Contribution
from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen
from node.collective import needs
from node.collective.keeping import room_of
from node.collective.seat import Seat
from node.data import recovering
from node.data.carrying import described, wanted
from node.errors_network import BlobCorrupt, BundleCut, NotForUs
from node.guarding.growth import Growth, rates_of
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.donors import Rank
from node.syncing.exchange import from_wire
from node.syncing.parcels import Reader
from protocol import parcel
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.parcel import Blob, Page

log = logging.getLogger("fishernet.bundle")
_PASSES: Final = 3
_LISTED: Final = 100  # of each kind of trouble


@dataclass(slots=True, kw_only=True)
class Taken:
    """What came of an import."""

    entries: int = 0
    repeated: int = 0
    blobs: int = 0
    known_blobs: int = 0
    passed_blobs: int = 0  # that no contribution names, that are not wanted any more, or that came before
    no_room: int = 0  # blobs of history for which there is none
    forks: list[MemberId] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # feed or blob, why
    gaps: dict[MemberId, int] = field(default_factory=dict)  # feed -> the first entry that is missing here
    strangers: set[MemberId] = field(default_factory=set)
    held_back: set[MemberId] = field(default_factory=set)  # that grew faster than their allowance


async def take(session: Session, args: Mapping[str, Json]) -> Json:
    """Take in what a bundle holds.

    Raises:
        BundleError, Refused: the file is no bundle, or not one for us; nothing was taken.
        StoreFull, DiskFull: no room; what came before is kept.
    """
    seat, path = session.need_seat(), Path(str(args.get("file")))
    key = session.identity.key if session.identity else None
    taken, cut = Taken(), ""
    with path.open("rb") as file:
        header = Reader(file, key).header
    if header.collective != seat.collective:
        raise NotForUs(f"couldn't import bundle: it is of another collective ({header.collective[:12]})")
    for _ in range(_PASSES):
        strangers = taken.strangers
        taken.strangers = set()
        try:
            await _Taking(session, taken, path).run()
        except BundleCut as e:
            cut = str(e)
        met = {m for m in taken.strangers if _wants(seat, m)}
        if not met or met == strangers:  # somebody's seat was only known after their feed had been passed over
            break
    if not cut:
        session.carried(header.maker, header.made, header.heads.get(seat.me, 0))
    log.info("event=bundle-imported maker=%s entries=%s blobs=%s", header.maker[:12], taken.entries, taken.blobs)
    lacking = [c for c in wanted(seat.fold) if not BlobStore(seat.home.blobs).has(c.blob)] if seat.fold.known else []
    return {
        **described(header, seat.fold),
        "entries": taken.entries,
        "repeated": taken.repeated,
        "blobs": taken.blobs,
        "known_blobs": taken.known_blobs,
        "passed_blobs": taken.passed_blobs,
        "no_room": taken.no_room,
        "forks": list(taken.forks[:_LISTED]),
        "refused": [[what, why] for what, why in taken.refused],
        "gaps": {str(member): held for member, held in taken.gaps.items()},
        "strangers": len(taken.strangers),
        "held_back": sorted(taken.held_back),
        "lacking_blobs": len(lacking),
        "whole": not cut,
        "cut": cut,
    }


class _Taking:
    """One pass over a file."""

    def __init__(self, session: Session, taken: Taken, path: Path) -> None:
        self._session, self._seat, self._taken, self._path = session, session.need_seat(), taken, path
        self._blobs = BlobStore(self._seat.home.blobs)
        self._growth = session.growth or _growth(session)
        self._spoilt: set[MemberId] = set()  # feeds of which nothing more is looked at
        self._upto: dict[MemberId, int] = {}  # how far the pages of each feed have come
        self._named: dict[Digest, Contribution] | None = None  # by the blobs that are wanted; None: look again
        self._came: set[Digest] = set()  # of these, those that the file has brought
        self._used = sum(size for _, size, _ in self._blobs.listing())

    async def run(self) -> None:
        """Take item by item; reading and checking go on in a thread."""
        key = self._session.identity.key if self._session.identity else None
        size = max(1, self._path.stat().st_size)
        with self._path.open("rb") as file:
            reader = Reader(file, key)
            items = reader.items()
            while (item := await asyncio.to_thread(next, items, None)) is not None:
                if isinstance(item, Page):
                    await self._page(item)
                elif isinstance(item, Blob):
                    await self._blob(item, reader)
                self._session.told("taking in", reader.at / size)

    async def _page(self, item: Page) -> None:
        member, taken = item.member, self._taken
        if member in self._spoilt:
            return
        if not _wants(self._seat, member):
            if len(taken.strangers) < parcel.MAX_FEEDS:
                taken.strangers.add(member)
            return
        if len(self._spoilt) >= parcel.MAX_FEEDS:
            raise Refused(f"couldn't go on with bundle: more than {parcel.MAX_FEEDS} feeds in it are not right")
        try:
            records = await asyncio.to_thread(from_wire, item.page.records)
            self._ascend(member, records)
            if not self._seat.fold.known:
                _founds(self._seat.collective, member, records)
            held = self._held(member)
            if records and records[0].entry.header.seq > held:
                taken.gaps[member] = held
                self._spoilt.add(member)
                records = []  # the head is taken all the same: if it is ours, nothing is appended until the rest is here
            records = self._within(member, records, held)
            store, collective = self._session.store, self._seat.collective
            fresh = await asyncio.to_thread(store.append_foreign, collective, member, records, item.page.note)
        except ForkSeen as e:
            self._seat.fork_found(e.fork)
            taken.forks.append(member)
            self._spoilt.add(member)
        except FeedFrozen:
            self._spoilt.add(member)
        except Refused as e:
            self._refuse(member, e)
            self._spoilt.add(member)
        else:
            taken.repeated += len(records) - len(fresh)
            if fresh:
                taken.entries += len(fresh)
                size = sum(len(r.entry.line) + (len(r.body.data) if r.body else 0) for r in fresh)
                self._growth.took(member, len(fresh), size)
                self._named = None
                recovering.receive(self._session, member, fresh)

    def _ascend(self, member: MemberId, records: Sequence[Record]) -> None:
        """Let a file show each entry once: what is repeated would be checked again and again."""
        if not records:
            self._spoilt.add(member)  # only a feed without new entries has such a page, and no other
        elif records[0].entry.header.seq < self._upto.get(member, 0):
            raise Refused("couldn't take feed: the bundle repeats entries of it")
        else:
            self._upto[member] = records[-1].entry.header.seq + 1

    def _refuse(self, what: str, error: Refused) -> None:
        if len(self._taken.refused) < _LISTED:
            self._taken.refused.append((what, str(error)))

    def _within(self, member: MemberId, records: list[Record], held: int) -> list[Record]:
        """As many of them as the feed may grow by now: what is beyond waits for its time, as it does from peers."""
        if not records or member == self._seat.me:
            return records
        most = max(0, held - records[0].entry.header.seq) + self._growth.room(member)
        if len(records) > most:
            self._taken.held_back.add(member)
            self._spoilt.add(member)
        return records[:most]

    def _held(self, member: MemberId) -> int:
        head = self._session.store.head(self._seat.collective, member)
        return 0 if head is None else head.size

    async def _blob(self, item: Blob, reader: Reader) -> None:
        if self._named is None:
            fold = self._seat.fold
            self._named = {c.blob: c for c in wanted(fold)} if fold.known else {}
        asked, taken = self._named.get(item.digest), self._taken
        if asked is None or asked.size != item.size or item.digest in self._came:
            taken.passed_blobs += 1
            return
        self._came.add(item.digest)
        if self._blobs.has(item.digest):
            taken.known_blobs += 1
        elif not self._has_room(asked):
            taken.no_room += 1
        else:
            try:
                await asyncio.to_thread(self._store, item, reader)
            except BlobCorrupt as e:
                self._refuse(item.digest, e)
            else:
                taken.blobs += 1
                self._used += item.size

    def _has_room(self, asked: Contribution) -> bool:
        """Whether a blob is needed now, or there is room for it as history."""
        room = room_of(self._blobs, self._session.config.storage)
        return needs.rank(self._seat.fold, asked) < Rank.HISTORY or room.admits(self._used, asked.size)

    def _store(self, item: Blob, reader: Reader) -> None:
        with self._blobs.partial(item.digest, item.size) as part:
            part.restart()
            for chunk in reader.chunks():
                part.write(chunk)
            part.finish()


def _growth(session: Session) -> Growth:
    """What feeds may grow by, where no daemon counts it."""
    seat, limits = session.need_seat(), session.config.limits
    return Growth(
        rates_of(feed_entries_per_day=limits.feed_entries_per_day, feed_mib_per_day=limits.feed_mib_per_day),
        now_ms=seat.now_ms,
        founded_ms=seat.founded_ms,
        held=lambda member: (seat.size(member), session.store.stored_bytes(seat.collective, member)),
    )


def _wants(seat: Seat, member: MemberId) -> bool:
    """Whose feed is taken: whoever has or had a seat; before the charter is here, whoever can prove to have founded it."""
    return not seat.fold.known or member == seat.me or member in seat.fold.ever_members()


def _founds(collective: CollectiveId, member: MemberId, records: Sequence[Record]) -> None:
    """Refuse any feed but the founder's while the charter is not here."""
    first = records[0] if records else None
    genesis = first is not None and first.entry.header.seq == 0 and first.entry.header.type == events.Genesis.TYPE
    if first is None or not genesis or first.body is None:
        raise Refused("couldn't take feed: the charter is not here yet, and this feed does not begin with it")
    event = events.parse(events.Genesis.TYPE, first.body.value())
    charter = charter_reading.parse(dict(event.charter)) if isinstance(event, events.Genesis) else None
    if charter is None or charters.collective_id(charter) != collective or charter.member(member) is None:
        raise Refused("couldn't take feed: its charter is not that of the collective")


COMMANDS: Final = {"bundle.import": take}
