"""Export of bundles: feeds and blobs that leave this node by file, for members without a link.

The charter is asked who may read, and the egress policy who may get blobs, as the desk does for peers. Knows no network; how a
bundle is taken in is `node.data.taking`. Invariant: a file that has the name that was asked for is whole and on the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ledger.collective import Collective, Contribution
from ledger.cuts import Cut
from node.collective.seat import Seat
from node.data.egress import Egress, policy_of
from node.errors import EgressStopped, NotAllowed
from node.errors_network import NotForUs
from node.files import room, writing
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.exchange import to_wire
from node.syncing.parcels import Reader, Writer
from protocol import envelope, parcel, wire
from protocol.canon import Json
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
    with room(f"write bundle {out}"), writing(out, mode=0o600) as file:
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


COMMANDS: Final = {"bundle.export": export, "bundle.show": show}
READING: Final = frozenset({"bundle.show"})
