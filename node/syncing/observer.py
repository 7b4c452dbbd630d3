"""The outside look: dials nodes with py-libp2p, pulls every feed and contribution, verifies, and says what it could not check.

A process of its own (`python -m node.syncing.observer`): py-libp2p and hivemind cannot live in one, and a hostile peer can crash
it, so each node gets a host of its own that dials and never listens. It keeps what it took in a ledger and blob folder
with the node's own verification. It speaks with the transport key and binding of a member; the daemon of the same home
should not run with the same transport key meanwhile. No torch, no Go daemon.
Invariant: "clean" is said only of what the nodes of two members (as the verified charter names them) confirmed; crashes,
silence and strangers' words are "could not check".
Exit code: 0 the report says what is clean and what is not; 2 nothing could be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from ledger import checkpoint
from ledger.checkpoint import Head
from ledger.collective import Collective
from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen
from ledger.store import Store
from node.finding import addresses
from node.syncing.blobs import BlobStore
from node.syncing.exchange import from_wire
from protocol import binding as bindings
from protocol import wire
from protocol.binding import Binding
from protocol.canon import Json
from protocol.errors import FishernetError, Malformed, Refused, Retry
from protocol.ids import CollectiveId, Digest, MemberId, PeerId, as_hex, short

CLEAN, FAULT, UNCHECKED = "clean", "fault", "could-not-check"
CONFIRMED, FORKED = "confirmed", "forked"  # of one feed; or UNCHECKED

_DIAL_S, _ASK_S, _SESSION_S = 10.0, 10.0, 300.0
_ROUNDS, _PAUSE_S = 4, 1.0
_IDENTITY_BYTES = 68


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Whom to look at, as whom, and where to put what is found."""

    collective: CollectiveId
    addresses: tuple[str, ...]
    seed: bytes = field(repr=False)
    binding: Binding
    into: Path
    max_blob: int = 64 << 20


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What one address has said so far."""

    address: str
    member: MemberId | None = None
    heads: dict[MemberId, Head] = field(default_factory=dict)
    error: str = ""


class Observer:
    """One look at one collective."""

    def __init__(self, plan: Plan, store: Store, blobs: BlobStore) -> None:
        """Put what is verified into `store` and `blobs`."""
        self._plan, self._store, self._blobs = plan, store, blobs
        self._seen = [_Seen(address=address) for address in dict.fromkeys(plan.addresses)]
        self._wanted: dict[Digest, int] = {}
        self._sources: dict[Digest, str] = {}
        self._scanned: dict[MemberId, int] = {}
        self._fold = Collective(plan.collective)

    async def look(self) -> None:
        """Visit every address, again for as long as heads lack a second word and the rounds last."""
        for turn in range(_ROUNDS):
            if turn:
                await trio.sleep(_PAUSE_S)
            for seen in self._seen:
                await _guarded(seen, self._visit)
            if all(feed["status"] != UNCHECKED for feed in self._feeds()) and not self._missing():
                return

    def report(self) -> dict[str, Json]:
        """What was found, in plain JSON."""
        feeds = self._feeds()
        nodes: list[Json] = [
            {"address": seen.address, "member": seen.member, "reached": bool(seen.member), "error": seen.error}
            for seen in self._seen
        ]
        missing = self._missing()
        blobs: list[Json] = [
            {"digest": digest, "size": size, "fetched": digest not in missing, "from": self._sources.get(digest)}
            for digest, size in sorted(self._wanted.items())
        ]
        statuses = {str(feed["status"]) for feed in feeds}
        verdict = FAULT if FORKED in statuses else CLEAN if statuses == {CONFIRMED} and not missing else UNCHECKED
        return {
            "collective": self._plan.collective,
            "verdict": verdict,
            "nodes": nodes,
            "feeds": list(feeds),
            "blobs": blobs,
        }

    # -- one visit ---------------------------------------------------------------------------------------------------
    async def _visit(self, seen: _Seen) -> None:
        """Heads first, then all they show to be missing here."""
        async with _connected(self._plan.seed, seen.address) as (ask, peer):
            payload = await ask(
                wire.HEADS, wire.HeadsRequest(collective=self._plan.collective, binding=self._plan.binding)
            )
            answer = wire.parse_heads(payload)
            if answer.binding.peer != peer:
                raise Malformed("couldn't read heads: the binding is that of another peer")
            seen.member = answer.binding.member
            for note in answer.notes:
                head = checkpoint.parse(note)
                if head.collective == self._plan.collective:
                    seen.heads[head.member] = head
            for head in list(seen.heads.values()):
                await self._pull(ask, head)
            self._scan()
            for digest in self._missing():
                await self._fetch(ask, digest, seen)

    async def _pull(self, ask: _Ask, head: Head) -> None:
        try:
            while self._size(head.member) < head.size:
                start = self._size(head.member)
                request = wire.FeedRequest(
                    collective=head.collective, binding=self._plan.binding, member=head.member, start=start
                )
                page = wire.parse_page(await ask(wire.FEED, request))
                if not page.records:
                    raise Malformed(f"couldn't pull feed of {short(head.member)}: nothing comes from {start} on")
                self._store.append_foreign(head.collective, head.member, from_wire(page.records), page.note)
            self._store.append_foreign(head.collective, head.member, [], head.note)
        except (ForkSeen, FeedFrozen):
            return  # the proof is in the store

    async def _fetch(self, ask: _Ask, digest: Digest, seen: _Seen) -> None:
        size = self._wanted[digest]
        try:
            with self._blobs.partial(digest, size) as part:
                request = wire.BlobRequest(
                    collective=self._plan.collective, binding=self._plan.binding, digest=digest, offset=part.offset
                )
                await ask(wire.BLOB, request, part.write, size)
                part.finish()
        except FishernetError as e:
            seen.error = str(e)
        else:
            self._sources[digest] = seen.member or seen.address

    def _scan(self) -> None:
        """What the verified entries say: who the members are, and which contributions have a blob."""
        for member in self._store.members(self._plan.collective):
            start = self._scanned.get(member, 0)
            while records := self._store.records(self._plan.collective, member, start):
                self._fold.apply_all(records)
                for record in records:
                    self._note_blob(record)
                start += len(records)
            self._scanned[member] = start

    def _members(self) -> set[MemberId]:
        """Everybody who ever was a member; nobody before the founder's charter is here."""
        return self._fold.ever_members() if self._fold.known else set()

    def _note_blob(self, record: Record) -> None:
        if record.entry.header.type != "contribution.published" or record.body is None:
            return
        body = record.body.value()
        blob, size = body.get("blob"), body.get("size")
        try:
            digest = Digest(as_hex(blob, "blob"))
        except Malformed:
            return  # the fold flags such an event; there is nothing to fetch
        if isinstance(size, int) and 0 <= size <= self._plan.max_blob:
            self._wanted[digest] = size

    # -- what it adds up to ------------------------------------------------------------------------------------------
    def _feeds(self) -> list[dict[str, Json]]:
        collective = self._plan.collective
        forked = {fork.member: fork.kind for fork in self._store.forks(collective)}
        found = [self._feed(member, forked.get(member)) for member in sorted(self._members())]
        return [feed for feed in found if feed["known"] or feed["status"] == FORKED]

    def _feed(self, member: MemberId, fork: str | None) -> dict[str, Json]:
        """A feed is clean up to the size that two members confirm, with heads which fit its entries or by cosigning them."""
        held, members = self._size(member), self._members()
        said = {
            seen.member: seen.heads[member].size
            for seen in self._seen
            if seen.member in members and member in seen.heads and seen.heads[member].size <= held
        }
        for witness, size in self._fold.witnesses.sizes(member).items():
            if witness in members:
                said[witness] = max(said.get(witness, 0), size)
        sizes = sorted(said.values(), reverse=True)
        known = max([held, *(seen.heads[member].size for seen in self._seen if member in seen.heads)])
        confirmed = sizes[1] if len(sizes) > 1 else 0
        if fork is not None:
            status, cause = FORKED, f"its member signed two histories ({fork})"
        elif confirmed < known:
            status, cause = (
                UNCHECKED,
                f"only one node confirms entries {confirmed} to {known - 1}, and no other member cosigned them",
            )
        else:
            status, cause = CONFIRMED, ""
        head = self._store.head(self._plan.collective, member)
        return {
            "member": member,
            "size": held,
            "known": known,
            "confirmed": confirmed,
            "root": head.root if head is not None else None,
            "confirmed_by": sorted(who for who, size in said.items() if who is not None and size >= confirmed > 0),
            "status": status,
            "cause": cause,
        }

    def _size(self, member: MemberId) -> int:
        head = self._store.head(self._plan.collective, member)
        return 0 if head is None else head.size

    def _missing(self) -> list[Digest]:
        return [digest for digest in self._wanted if not self._blobs.has(digest)]


# -- py-libp2p -------------------------------------------------------------------------------------------------------
_Ask = Callable[..., Awaitable[bytes]]


@asynccontextmanager
async def _connected(seed: bytes, address: str) -> AsyncIterator[tuple[_Ask, PeerId]]:
    """A host of its own for one peer: it dials, has no handlers of ours, and never listens."""
    _, peer = addresses.split(address)
    host = new_host(key_pair=create_new_key_pair(seed), muxer_preference="YAMUX")
    info = info_from_p2p_addr(Multiaddr(address))

    async def ask(
        protocol: str, request: wire.Request, take: Callable[[bytes], None] | None = None, size: int = 0
    ) -> bytes:
        with trio.fail_after(_ASK_S):
            stream = await host.new_stream(info.peer_id, [TProtocol(protocol)])
        try:
            with trio.fail_after(_ASK_S):
                await stream.write(wire.frame(request.to_bytes()))
                header = await _exactly(stream, wire.HEADER)
                payload = await _exactly(stream, wire.frame_length(header, wire.MAX_PAGE + 1))
            opened = wire.open_answer(payload)
            if isinstance(opened, wire.Refusal):
                raise Refused(f"couldn't ask {peer[-6:]}: it says {opened.code}")
            if take is not None and isinstance(request, wire.BlobRequest):
                if wire.parse_blob_size(opened) != size:
                    raise Malformed(f"couldn't fetch blob {short(request.digest)}: another size than its event states")
                await _take(stream, size - request.offset, take)
            return opened
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await stream.close()

    async with host.run([]):
        with trio.fail_after(_DIAL_S):
            await host.connect(info)
        yield ask, peer


async def _take(stream: Any, left: int, take: Callable[[bytes], None]) -> None:
    while left:
        with trio.fail_after(_ASK_S):
            piece = await _exactly(stream, min(wire.CHUNK, left))
        take(piece)
        left -= len(piece)


async def _exactly(stream: Any, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.read(min(64 * 1024, size - len(data)))
        if not piece:
            raise Malformed(f"couldn't read answer: it ended {size - len(data)} bytes short")
        data += piece
    return bytes(data)


async def _guarded(seen: _Seen, visit: Callable[[_Seen], Awaitable[None]]) -> None:
    """Whatever one peer does to py-libp2p, the look goes on with the next."""
    seen.error = ""
    try:
        with trio.fail_after(_SESSION_S):
            await visit(seen)
    except* Exception as group:  # noqa: BLE001 - the library lets anything escape; see the module's text
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        seen.error = str(error)[:300] or type(error).__name__


# -- command ---------------------------------------------------------------------------------------------------------
def run(plan: Plan) -> dict[str, Json]:
    """Look, and return the report; whatever breaks on the way makes it "could not check", never "clean"."""
    plan.into.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Store.open(plan.into / "ledger.db") as store:
        observer = Observer(plan, store, BlobStore(plan.into / "blobs"))
        cause = ""
        try:
            trio.run(observer.look)
        except Exception as e:  # noqa: BLE001 - see `_guarded`
            cause = f"{type(e).__name__}: {e}"[:300]
        report = observer.report()
        if cause and report["verdict"] == CLEAN:
            report["verdict"] = UNCHECKED
        return {**report, "cause": cause}


def plan_of(arguments: Sequence[str]) -> Plan:
    """Read the command line.

    Raises:
        Refused: an address, a key file or the binding is not one.
        OSError: a file cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m node.syncing.observer", description="Look at a collective from outside."
    )
    parser.add_argument("--collective", required=True, help="collective id")
    parser.add_argument("--home", required=True, type=Path, help="home of a member: its keys/ say as whom to ask")
    parser.add_argument("--into", required=True, type=Path, help="folder for what is found")
    parser.add_argument("--max-blob", type=int, default=64 << 20, help="largest blob to fetch, in bytes")
    parser.add_argument("addresses", nargs="+", metavar="MULTIADDR", help="/ip4/.../tcp/.../p2p/...")
    given = parser.parse_args(arguments)
    identity, statement = given.home / "keys" / "transport.key", given.home / "keys" / "binding.json"
    raw = identity.read_bytes()
    if len(raw) != _IDENTITY_BYTES:
        raise Malformed(f"couldn't read {identity}: not an Ed25519 identity of {_IDENTITY_BYTES} bytes")
    try:
        binding = bindings.verify(json.loads(statement.read_bytes()))
    except ValueError as e:
        raise Malformed(f"couldn't read {statement}: {e}") from None
    for address in given.addresses:
        addresses.split(address)
    return Plan(
        collective=CollectiveId(as_hex(given.collective, "collective id")),
        addresses=tuple(given.addresses),
        seed=raw[4:36],
        binding=binding,
        into=given.into,
        max_blob=given.max_blob,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object, the report or `{"error": ...}`; see the module's text for the exit code."""
    try:
        report = run(plan_of(sys.argv[1:] if arguments is None else arguments))
    except (FishernetError, OSError) as e:
        kind, code = ("retry", "io") if isinstance(e, OSError) else (_kind(e), e.code)
        print(json.dumps({"error": {"code": code, "kind": kind, "message": str(e), "hint": ""}}))
        return 2
    print(json.dumps(report))
    nodes = report["nodes"]
    return 0 if isinstance(nodes, list) and any(isinstance(n, dict) and n["reached"] for n in nodes) else 2


def _kind(error: FishernetError) -> str:
    return "refused" if isinstance(error, Refused) else "retry" if isinstance(error, Retry) else "fatal"


if __name__ == "__main__":
    sys.exit(main())
