"""Bundles: feeds and blobs that leave and enter this node by file, for members without a link.

Export asks the charter who may read and the egress policy who may get blobs, as the desk does for peers. Import gives every
entry to the same checks that entries from a peer meet: signature, chain, head, fork; a blob is taken when a contribution
that is held names it with this digest and size. What is taken is taken entry by entry, so an import that was broken off is
simply done again. Knows no network. Invariant: nothing of a bundle is believed because of who made or brought it, but for one
thing: how long our own feed is where its maker is a member (`Session.carried`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from ledger import charter as charters
from ledger import events
from ledger.collective import Collective, Contribution
from ledger.cuts import Cut
from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen
from node.collective.seat import Seat
from node.data.egress import Egress, policy_of
from node.errors import EgressStopped, NotAllowed
from node.errors_network import BlobCorrupt, BundleCut, NotForUs
from node.files import room
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.exchange import from_wire, to_wire
from node.syncing.parcels import Reader, Writer
from protocol import envelope, parcel, wire
from protocol.canon import Json
from protocol.errors import Refused
from protocol.ids import CollectiveId, Digest, MemberId
from protocol.parcel import Blob, Header, Page

log = logging.getLogger("fishernet.bundle")
Args = Mapping[str, Json]
_PREFIX: Final = 8
_PASSES: Final = 3
_LISTED: Final = 100  # of each kind of trouble
KNOWN: Final = "known"


# -- export ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What goes into a bundle: the feeds in an order in which each is known by those before it, and the blobs, urgent first."""

    feeds: Sequence[tuple[MemberId, int, int]]  # member, first entry, number of entries that are held
    blobs: Sequence[Contribution]
    missing: int  # blobs that should be in it and are not here


async def export(session: Session, args: Args) -> Json:
    """Write a bundle.

    Raises:
        NotAllowed: no seat, a reader without one, a starting point that is not known.
        EgressStopped: the operator's policy lets blobs out to some members only, and not to these.
    """
    seat = session.need_seat()
    if session.identity is None:
        raise NotAllowed("couldn't export bundle: the key is not open")
    if not seat.fold.known:
        raise NotAllowed(
            "couldn't export bundle: the charter is not here yet", hint="fishernet bundle import FILE first"
        )
    fold, out = seat.fold, Path(str(args.get("out")))
    given = args.get("to")
    readers = [_member(fold, str(each)) for each in given] if isinstance(given, list) else []
    blobs = BlobStore(seat.home.blobs)
    load = loaded(fold, blobs, start_of(fold, args.get("since"), readers), feeds_only=args.get("feeds_only") is True)
    if load.blobs:
        _let_out(session, seat, readers)
    key = envelope.fresh_key() if readers else None
    header = parcel.signed(
        session.identity.key,
        collective=seat.collective,
        made=seat.now_ms(),
        since={m: start for m, start, _ in load.feeds if start},
        heads={m: end for m, _, end in load.feeds},
        readers={m: envelope.seal_key(key, m) for m in readers} if key else {},
    )
    written = await asyncio.to_thread(_write, session, blobs, header, key, load, out)
    log.info("event=bundle-exported entries=%s blobs=%s readers=%s", written, len(load.blobs), len(readers))
    return {
        **described(header, fold),
        "file": str(out),
        "bytes": out.stat().st_size,
        "entries": written,
        "blobs": len(load.blobs),
        "missing_blobs": load.missing,
    }


def start_of(fold: Collective, since: Json, readers: Sequence[MemberId]) -> dict[MemberId, int]:
    """Where each feed begins: after a release, after an earlier bundle, or after what the readers' own feeds prove they hold."""
    if since is None or since == "":
        return {}
    if since == KNOWN:
        if not readers:
            raise NotAllowed("couldn't export bundle: nobody is named whose knowledge counts", hint="--to MEMBER")
        known = [fold.known_to(reader) for reader in readers]
        return {m: min(each.get(m, 0) for each in known) for m in set().union(*known)}
    text = str(since)
    if text.isdecimal():
        found = [d.value for d in fold.releases if isinstance(d.value, Cut) and d.value.number == int(text)]
        if not found:
            raise NotAllowed(f"couldn't export bundle: there is no release {text}", hint="fishernet log")
        return {h.member: h.size for h in found[0].place.heads}
    with Path(text).open("rb") as file:
        header = Reader(file).header
    if header.collective != fold.id:
        raise NotForUs(f"couldn't go on from {text}: it is a bundle of another collective")
    return dict(header.heads)


def loaded(fold: Collective, blobs: BlobStore, start: Mapping[MemberId, int], *, feeds_only: bool) -> Load:
    """What a bundle from `start` on holds. Blobs: those of the newest release, then pending ones, then history, newest first."""
    ever, order = fold.ever_members(), dict[MemberId, None]()
    for charter in fold.charters:
        order |= dict.fromkeys(m for m in sorted(x.id for x in charter.members))
    order |= dict.fromkeys(sorted(ever))
    members = [m for m in (*([fold.founder] if fold.founder else []), *order) if fold.sizes.get(m)]
    feeds = [(m, min(start.get(m, 0), fold.sizes[m]), fold.sizes[m]) for m in dict.fromkeys(members)]
    if feeds_only:
        return Load(feeds=feeds, blobs=(), missing=0)
    fresh = [c for c in wanted(fold) if c.source.seq >= start.get(c.member, 0)]
    held = [c for c in fresh if blobs.size(c.blob) == c.size]
    return Load(feeds=feeds, blobs=held, missing=len(fresh) - len(held))


def wanted(fold: Collective) -> list[Contribution]:
    """Contributions whose blobs a member needs or may keep, each digest once, the most urgent first.

    Left out: what was left out of the releases on request, and what the charter's size rules out.
    """
    most = max(c.gate.max_blob_bytes for c in fold.charters)
    cut = fold.current_cut()
    released = [c for taken in fold.in_cut(cut).values() for c in taken] if cut else []
    alive = {c.event for c in released} | {c.event for c in fold.pending()}
    rest = [
        c for by in fold.contributions.values() for c in by if c.event not in alive and c.event not in fold.forgotten
    ]
    rest.sort(key=lambda c: (c.source.ts, c.event), reverse=True)
    found: dict[Digest, Contribution] = {}
    for contribution in (*released, *fold.pending(), *rest):
        if contribution.size <= most:
            found.setdefault(contribution.blob, contribution)
    return list(found.values())


def _let_out(session: Session, seat: Seat, readers: Sequence[MemberId]) -> None:
    door = Egress(seat, policy_of(session.config.egress))
    if readers:
        kept = [reader for reader in readers if not door.serves(reader)]
    else:
        kept = [] if door.policy.members is None else [seat.me]
    if kept:
        who = ", ".join(seat.fold.charter.name_of(m) for m in kept) if readers else "whoever gets the file"
        raise EgressStopped(
            f"couldn't export bundle: the egress policy of this node lets no blobs out to {who}",
            reason="member",
            hint="--feeds-only, or name members of the policy with --to; see [egress] in node.toml",
        )


def _member(fold: Collective, name: str) -> MemberId:
    """A seat by its name, its id or the first digits of it."""
    seats = fold.charter.members
    found = [m.id for m in seats if name in {m.id, m.name}] or [
        m.id for m in seats if len(name) >= _PREFIX and m.id.startswith(name)
    ]
    if len(found) != 1:
        raise NotAllowed(
            f"couldn't seal bundle for {name}: {len(found)} members of the charter are called so",
            hint="fishernet collective show",
        )
    return found[0]


def _write(session: Session, blobs: BlobStore, header: Header, key: bytes | None, load: Load, out: Path) -> int:
    done, whole, entries = 0, max(1, sum(c.size for c in load.blobs)), 0
    with _written(out) as file:
        writer = Writer(file, header, key)
        for number, (member, start, end) in enumerate(load.feeds):
            session.told("writing feeds", number / len(load.feeds))
            for page in pages(session, header.collective, member, start, end):
                writer.item(page)
                entries += len(page.page.records)
        for contribution in load.blobs:
            writer.blob(Blob(digest=contribution.blob, size=contribution.size), chunks_of(blobs, contribution))
            done += contribution.size
            session.told("writing blobs", done / whole)
        writer.end()
    return entries


def pages(session: Session, collective: CollectiveId, member: MemberId, start: int, end: int) -> Iterator[Page]:
    """Entries `start` to `end` of a feed in pages under its newest head; one page without entries when there are none."""
    heads = session.store.heads(collective, member)
    if not heads:
        return
    while True:
        records = (
            session.store.records(collective, member, start, min(wire.PAGE_RECORDS, end - start)) if start < end else []
        )
        page = wire.page_of(heads[0].note, to_wire(records))
        yield Page(member=member, page=page)
        start += len(page.records)
        if start >= end or not page.records:
            return


def chunks_of(blobs: BlobStore, contribution: Contribution) -> Iterator[bytes]:
    """The bytes of a blob that is here, some at a time."""
    at = 0
    while data := blobs.chunk(contribution.blob, at):
        at += len(data)
        yield data


@contextmanager
def _written(out: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner reads; it gets its name when it is whole and on the disk."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    with room(f"write bundle {out}"):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(out)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


# -- import ------------------------------------------------------------------------------------------------------------
@dataclass(slots=True, kw_only=True)
class Taken:
    """What came of an import."""

    entries: int = 0
    repeated: int = 0
    blobs: int = 0
    known_blobs: int = 0
    passed_blobs: int = 0  # that no contribution names, or that are not wanted any more
    forks: list[MemberId] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)  # feed or blob, why
    gaps: dict[MemberId, int] = field(default_factory=dict)  # feed -> the first entry that is missing here
    strangers: set[MemberId] = field(default_factory=set)


async def take(session: Session, args: Args) -> Json:
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
        "forks": list(taken.forks[:_LISTED]),
        "refused": [[what, why] for what, why in taken.refused[:_LISTED]],
        "gaps": dict(taken.gaps),
        "strangers": len(taken.strangers),
        "lacking_blobs": len(lacking),
        "whole": not cut,
        "cut": cut,
    }


class _Taking:
    """One pass over a file."""

    def __init__(self, session: Session, taken: Taken, path: Path) -> None:
        self._session, self._seat, self._taken, self._path = session, session.need_seat(), taken, path
        self._blobs = BlobStore(self._seat.home.blobs)
        self._spoilt: set[MemberId] = set()  # feeds of which nothing more is looked at
        self._named: dict[Digest, int] | None = None  # blobs that are wanted, with their sizes; None: look again

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
        try:
            records = await asyncio.to_thread(from_wire, item.page.records)
            if not self._seat.fold.known:
                _founds(self._seat.collective, member, records)
            held = self._held(member)
            if records and records[0].entry.header.seq > held:
                taken.gaps[member] = held
                self._spoilt.add(member)
                records = []  # the head is taken all the same: if it is ours, nothing is appended until the rest is here
            store, collective = self._session.store, self._seat.collective
            fresh = await asyncio.to_thread(store.append_foreign, collective, member, records, item.page.note)
        except ForkSeen as e:
            self._seat.fork_found(e.fork)
            taken.forks.append(member)
            self._spoilt.add(member)
        except FeedFrozen:
            self._spoilt.add(member)
        except Refused as e:
            taken.refused.append((member, str(e)))
            self._spoilt.add(member)
        else:
            taken.repeated += len(records) - len(fresh)
            if fresh:
                taken.entries += len(fresh)
                self._named = None
                self._seat.receive(member, fresh)

    def _held(self, member: MemberId) -> int:
        head = self._session.store.head(self._seat.collective, member)
        return 0 if head is None else head.size

    async def _blob(self, item: Blob, reader: Reader) -> None:
        if self._named is None:
            fold = self._seat.fold
            self._named = {c.blob: c.size for c in wanted(fold)} if fold.known else {}
        if self._named.get(item.digest) != item.size:
            self._taken.passed_blobs += 1
        elif self._blobs.has(item.digest):
            self._taken.known_blobs += 1
        else:
            try:
                await asyncio.to_thread(self._store, item, reader)
                self._taken.blobs += 1
            except BlobCorrupt as e:
                self._taken.refused.append((item.digest, str(e)))

    def _store(self, item: Blob, reader: Reader) -> None:
        with self._blobs.partial(item.digest, item.size) as part:
            part.restart()
            for chunk in reader.chunks():
                part.write(chunk)
            part.finish()


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
    charter = charters.parse(dict(event.charter)) if isinstance(event, events.Genesis) else None
    if charter is None or charters.collective_id(charter) != collective or charter.member(member) is None:
        raise Refused("couldn't take feed: its charter is not that of the collective")


# -- looking -----------------------------------------------------------------------------------------------------------
async def show(session: Session, args: Args) -> Json:
    """What a bundle says of itself; nothing is taken, and a sealed one need not be for us."""
    with Path(str(args.get("file"))).open("rb") as file:
        header = Reader(file).header
    return described(header, session.seat.fold if session.seat else None)


def described(header: Header, fold: Collective | None) -> dict[str, Json]:
    """A header for people and programs."""
    name = fold.charter.name_of if fold is not None and fold.known else (lambda member: member[:12])
    return {
        "collective": header.collective,
        "maker": header.maker,
        "maker_name": name(header.maker),
        "made": header.made,
        "sealed": header.sealed,
        "readers": sorted(name(reader) for reader in header.readers),
        "feeds": len(header.heads),
        "from": sum(header.since.values()),
        "upto": sum(header.heads.values()),
    }


COMMANDS: Final = {"bundle.export": export, "bundle.import": take, "bundle.show": show}
READING: Final = frozenset({"bundle.show"})
