"""Answers peers: heads and what changed in them, feed ranges, blobs and parts of blobs, and which blobs are here.

A desk answers nobody whose binding is not that of the authenticated peer; a non-member gets our own newest checkpoint and
nothing else, and is remembered as asking. The asker may ask again on the same stream, as long as it does not stay silent.
Knows neither when to ask nor what to do with an answer. Invariant: nothing is read from a peer without a limit on its length
and a deadline, and a peer's quota is asked before each further request is read and before an answer is put into memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import assert_never

from ledger.checkpoint import Head
from ledger.entry import Record
from ledger.store import Store
from node.errors_network import (
    BlobMissing,
    KeptBack,
    NotAMember,
    OutdatedPeer,
    OverQuota,
    PeerBanned,
    StreamEnded,
    UnknownHere,
    WrongPeer,
)
from node.ports import Network, Stream
from node.syncing.blobs import BlobStore
from node.syncing.exchange import to_wire
from node.syncing.followers import Followers
from node.syncing.rules import SyncRules
from protocol import fingerprints, wire
from protocol.binding import Binding
from protocol.errors import Malformed, Refused
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

MAX_ASKING = 64
KEEP_S = 15.0  # how long a stream may stay silent between two requests
_FEW = 4  # entries
_CHUNK_RECORDS = 32  # read at a time, so that a feed of large bodies fills no memory


class Desk:
    """Answers the stream protocols of one collective."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        collective: CollectiveId,
        binding: Binding,
        rules: SyncRules,
        met: Callable[[Binding], None],
        coming: Callable[[MemberId, int, MemberId], Awaitable[None]],
    ) -> None:
        """Serve from `store` and `blobs`, as the one of `binding`; `met` hears which verified peer speaks for which member.

        `coming(feed, start, asker)` waits a moment for entries from `start` on, if they are on their way to us.
        """
        self._store, self._blobs, self._collective, self._binding = store, blobs, collective, binding
        self._rules, self._met, self._coming = rules, met, coming
        self._asking: dict[MemberId, Binding] = {}
        self._boot = secrets.token_hex(8)  # a token of another life of this node is not known
        self.followers = Followers(
            length=lambda: store.length(collective, binding.member),
            page=lambda start, attach: self._read_page(binding.member, start, None, attach),
            spend=lambda peer: rules.spend(peer, wire.FOLLOW, "requests", 1),
            hold=rules.hold,
        )
        self.notes_sent = self.answers = 0

    @property
    def asking(self) -> Mapping[MemberId, Binding]:
        """Non-members that asked lately, newest last, at most 64: candidates for an invitation."""
        return MappingProxyType(self._asking)

    def open(self, network: Network) -> None:
        """Put the handlers into place."""
        for protocol in wire.KINDS:
            network.add_handler(protocol, partial(self._serve, protocol))

    # -- one stream --------------------------------------------------------------------------------------------------
    async def _serve(self, protocol: str, stream: Stream) -> None:
        """Answer one request after the other, until the peer ends, stays silent, or gets a no."""
        limit = wire.max_request(protocol)
        header: bytes | None = await stream.read(wire.HEADER)
        try:
            while header is not None:
                frame = await stream.read(wire.frame_length(header, limit))
                request, member = self._read(stream.peer, protocol, frame)
                try:
                    await self._answer(stream, request, member)
                except (BlobMissing, UnknownHere) as e:  # an honest question; the next one may be answered
                    await stream.write(wire.refusal(e.code))
                self.answers += 1
                if not member:
                    return  # strangers have few places: each is given back at once
                header = await self._next(stream)
                if header is not None:
                    self._rules.spend(stream.peer, protocol, "requests", 1)
        except (Refused, OverQuota) as e:
            self._rules.faulty(stream.peer, e)
            await stream.write(wire.refusal(e.code))

    async def _answer(self, stream: Stream, request: wire.Request, member: bool) -> None:
        match request:
            case wire.HeadsRequest():
                await self._heads(stream, member)
            case wire.ChangesRequest():
                await self._changes(stream, request, member)
            case wire.FeedRequest():
                await self._feed(stream, request, member)
            case wire.RangeRequest():
                await self._range(stream, request, member)
            case wire.FollowRequest():
                who = request.binding
                await self.followers.serve(
                    stream, who.member, request.start, request.attach, lambda: self._may_follow(stream.peer, who)
                )
            case wire.BlobRequest() | wire.PartRequest():
                await self._blob(stream, request, member)
            case wire.HaveRequest():
                await self._have(stream, request, member)
            case _:
                assert_never(request)

    @staticmethod
    async def _next(stream: Stream) -> bytes | None:
        """The header of the next request; None when the peer is done."""
        try:
            return await stream.read(wire.HEADER, within_s=KEEP_S)
        except StreamEnded:
            return None

    def _read(self, peer: PeerId, protocol: str, frame: bytes) -> tuple[wire.Request, bool]:
        """One checked request, and whether a member asks."""
        request = wire.parse_request(frame, max_bytes=wire.max_request(protocol))
        if not isinstance(request, wire.KINDS[protocol]):
            raise Malformed("couldn't read request: it belongs to another protocol")
        if request.binding.peer != peer:
            raise WrongPeer("couldn't serve: the binding is that of another peer")
        self._welcome(peer, request.binding)
        if request.collective != self._collective:
            raise UnknownHere("couldn't serve: another collective")
        member = self._rules.allowed(request.binding.member)
        if member:
            self._asking.pop(request.binding.member, None)
        else:
            self._remember(request.binding)
        self._met(request.binding)
        return request, member

    def _welcome(self, peer: PeerId, binding: Binding) -> None:
        if self._rules.banned(peer, binding.member):
            raise PeerBanned("couldn't serve: this peer is banned here")
        if self._rules.outdated(binding):
            raise OutdatedPeer("couldn't serve: this member speaks through another peer by now")

    def _remember(self, binding: Binding) -> None:
        self._asking.pop(binding.member, None)
        self._asking[binding.member] = binding
        while len(self._asking) > MAX_ASKING:
            del self._asking[next(iter(self._asking))]

    # -- heads -------------------------------------------------------------------------------------------------------
    async def _heads(self, stream: Stream, member: bool) -> None:
        heads = self._store.heads(self._collective)
        own = self._binding.member
        notes = tuple(head.note for head in heads if member or head.member == own)[: wire.MAX_HEADS]
        await self._reply(stream, wire.HeadsAnswer(binding=self._binding, notes=notes).to_bytes(), len(notes))

    async def _changes(self, stream: Stream, request: wire.ChangesRequest, member: bool) -> None:
        token, heads = self._changed(request) if member else ("", self._own())
        notes = tuple(head.note for head in heads)
        answer = wire.ChangesAnswer(binding=self._binding, token=token, notes=notes)
        await self._reply(stream, answer.to_bytes(), len(notes))

    async def _reply(self, stream: Stream, payload: bytes, notes: int) -> None:
        self.notes_sent += notes
        await stream.write(wire.answer(payload))

    def _own(self) -> list[Head]:
        return self._store.heads(self._collective, self._binding.member)

    def _changed(self, request: wire.ChangesRequest) -> tuple[str, list[Head]]:
        """The newest token, and the heads to send to one who asks with `request.since`."""
        collective = self._collective
        self._own()  # signed first: signing is a change too
        since = self._number(request.since)
        if since is None:
            return self._first(request)
        changed, number = self._store.changes(collective, since)
        if len(changed) > wire.MAX_HEADS:
            changed = changed[: wire.MAX_HEADS]
            number = changed[-1][1]
        heads = [head for member, _ in changed for head in self._store.heads(collective, member)]
        if request.have and len(heads) > 1:
            heads = self._unlike(request, heads, self._store.heads(collective))
        return self._token(number), heads

    def _first(self, request: wire.ChangesRequest) -> tuple[str, list[Head]]:
        """For one who knows no token of ours: what differs from its fingerprints, and always the head of its own feed."""
        number = self._store.changes(self._collective, 1 << 62)[1]
        held = self._store.heads(self._collective)
        heads = self._unlike(request, held, held)
        return (self._token(number), heads) if len(heads) <= wire.MAX_HEADS else ("", heads[: wire.MAX_HEADS])

    @staticmethod
    def _unlike(request: wire.ChangesRequest, heads: list[Head], held: list[Head]) -> list[Head]:
        """Those of `heads` that the asker does not hold alike, by its fingerprints of all; that of its own feed stays."""
        if not request.have:
            return heads
        salt = request.have[: fingerprints.SALT]
        differing = fingerprints.differing(request.have, [(head.member, head.size, head.root) for head in held])
        return [
            head
            for head in heads
            if head.member == request.binding.member
            or (differing and fingerprints.bucket_of(salt, head.member) in differing)
        ]

    def _token(self, number: int) -> str:
        return f"{self._boot}-{number}"

    def _number(self, token: str) -> int | None:
        """The change number behind a token of ours; None for any other text."""
        boot, dash, number = token.partition("-")
        known = boot == self._boot and dash and number.isascii() and number.isdigit() and len(number) <= 18
        return int(number) if known else None

    # -- feeds -------------------------------------------------------------------------------------------------------
    async def _feed(self, stream: Stream, request: wire.FeedRequest, member: bool) -> None:
        end = await self._end(request.binding.member, member, request.member, request.start)
        with self._rules.hold(stream.peer, wire.MAX_PAGE):
            answer = await self._read_page(request.member, request.start, end)
            await stream.write(answer)

    async def _range(self, stream: Stream, request: wire.RangeRequest, member: bool) -> None:
        end = await self._end(request.binding.member, member, request.member, request.start)
        attach = request.attach if member and self._rules.serves(request.binding.member) else 0
        with self._rules.hold(stream.peer, wire.MAX_PAGE + attach):
            answer = await self._read_page(request.member, request.start, end, attach)
            await stream.write(answer)

    def _may_follow(self, peer: PeerId, binding: Binding) -> int:
        """How many bytes of blobs may go to a follower now (raises when it may have nothing)."""
        self._welcome(peer, binding)
        self._members_only(self._rules.allowed(binding.member))
        return wire.MAX_ATTACHED if self._rules.serves(binding.member) else 0

    async def _end(self, asker: MemberId, member: bool, feed: MemberId, start: int) -> int | None:
        """Before which entry the asker must stop; None: nowhere. A member may get what is just on its way to us."""
        end = None if member else self._rules.farewell(asker, feed)
        self._members_only(end is None or start < end)
        if member:
            await self._coming(feed, start, asker)
        return end

    async def _read_page(self, member: MemberId, start: int, end: int | None, attach: int | None = None) -> bytes:
        """In a thread, unless it is the newest few entries: handing over costs more than reading them."""
        if self._store.length(self._collective, member) - start <= _FEW:
            return self._page(member, start, end, attach)
        return await asyncio.to_thread(self._page, member, start, end, attach)

    def _page(self, member: MemberId, start: int, end: int | None, attach: int | None = None) -> bytes:
        """The answer: a page, and with `attach` what is attached to it."""
        held = self._store.heads(self._collective, member)
        if not held:
            raise UnknownHere(f"couldn't serve feed of {member[:12]}: it is not held")
        records: list[Record] = []
        page = wire.page_of(held[0].note, to_wire(_noted(self._records(member, start, end), records)))
        answer = wire.answer(page.to_bytes())
        if attach is None:
            return answer
        return answer + wire.attached(self._attached(records[: len(page.records)], attach))

    def _attached(self, records: Sequence[Record], left: int) -> list[bytes]:
        """For each record the blob that it names; empty where it names none, it is not here or does not fit."""
        found = []
        for record in records:
            data = b""
            named = self._rules.attached(record) if self._rules.attached is not None and left > 0 else None
            if named is not None and 0 < named[1] <= left:
                with contextlib.suppress(BlobMissing):
                    data = self._blobs.chunk(named[0], 0, named[1])
            if named is not None and len(data) != named[1]:
                data = b""
            left -= len(data)
            found.append(data)
        return found

    def _records(self, member: MemberId, start: int, end: int | None) -> Iterator[Record]:
        count = _CHUNK_RECORDS if end is None else min(_CHUNK_RECORDS, end - start)
        while records := self._store.records(self._collective, member, start, count):
            yield from records
            start += len(records)
            if end is not None:
                count = min(count, end - start)

    # -- blobs -------------------------------------------------------------------------------------------------------
    async def _blob(self, stream: Stream, request: wire.BlobRequest | wire.PartRequest, member: bool) -> None:
        self._blobs_for(request.binding.member, member)
        size = self._blobs.size(request.digest)
        if size is None:
            raise BlobMissing(f"couldn't serve blob {request.digest[:12]}: it is not here")
        end = size if isinstance(request, wire.BlobRequest) else min(size, request.offset + request.length)
        await stream.write(wire.answer(wire.blob_size(size)))
        await self._send(stream, request.digest, request.offset, end)

    async def _send(self, stream: Stream, digest: Digest, at: int, end: int) -> None:
        """One chunk in memory; a reader that stalls is dropped, a blob that is removed meanwhile ends the stream."""
        while at < end:
            length = min(wire.CHUNK, end - at)
            with self._rules.hold(stream.peer, length):
                try:
                    data = await asyncio.to_thread(self._blobs.chunk, digest, at, length)
                except BlobMissing:
                    data = b""
                if not data:
                    raise StreamEnded(f"couldn't go on serving blob {digest[:12]}: it was removed")
                await stream.write(data)
            at += len(data)

    async def _have(self, stream: Stream, request: wire.HaveRequest, member: bool) -> None:
        self._blobs_for(request.binding.member, member)
        held = await asyncio.to_thread(lambda: [self._blobs.has(digest) for digest in request.digests])
        await stream.write(wire.answer(wire.bitmap(held)))

    def _blobs_for(self, asker: MemberId, member: bool) -> None:
        self._members_only(member)
        if not self._rules.serves(asker):
            raise KeptBack("couldn't serve blob: the operator does not let it out to this member")

    @staticmethod
    def _members_only(member: bool) -> None:
        if not member:
            raise NotAMember("couldn't serve: only members may read this")


def _noted(records: Iterable[Record], into: list[Record]) -> Iterator[Record]:
    for record in records:
        into.append(record)
        yield record
