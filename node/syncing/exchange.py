"""Both ends of the three stream protocols: `Desk` answers peers, `Asker` asks them.

The bytes are those of `protocol.wire`. A desk answers nobody whose binding is not that of the authenticated peer; a
non-member gets our own newest checkpoint and nothing else, and is remembered as asking. Knows neither when to ask nor
what to do with an answer. Invariant: nothing is read from a peer without a limit on its length and a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from ledger import entry
from ledger.entry import Body, Record
from ledger.store import Store
from node.errors_network import BlobMissing, KeptBack, NotAMember, OutdatedPeer, PeerRefused, UnknownHere, WrongPeer
from node.ports import Network, Stream
from node.syncing.blobs import BlobStore
from protocol import wire
from protocol.binding import Binding
from protocol.errors import Malformed, Refused
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

MAX_ASKING = 64
_CHUNK_RECORDS = 32  # read at a time, so that a feed of large bodies fills no memory

_R = TypeVar("_R", wire.HeadsRequest, wire.FeedRequest, wire.BlobRequest)


async def read_frame(stream: Stream, limit: int) -> bytes:
    """One frame of at most `limit` bytes.

    Raises:
        TooLarge: it announces more; nothing was allocated.
        StreamEnded: it did not come whole or in time.
    """
    return await stream.read(wire.frame_length(await stream.read(wire.HEADER), limit))


class Asker:
    """Asks one peer at a time, as a member of one collective."""

    def __init__(self, network: Network, collective: CollectiveId, binding: Binding) -> None:
        """Ask over `network` with our own `binding`."""
        self._network, self._collective, self._binding = network, collective, binding

    async def heads(self, peer: PeerId) -> wire.HeadsAnswer:
        """Who the peer is and which heads it holds; the notes are not verified yet.

        Raises:
            PeerRefused, Refused: a no, or bytes that are no answer.
            PeerUnreachable, StreamEnded.
        """
        request = wire.HeadsRequest(collective=self._collective, binding=self._binding)
        async with self._network.open(peer, wire.HEADS) as stream:
            answer = wire.parse_heads(await self._ask(stream, request, wire.MAX_PAGE))
        if answer.binding.peer != peer:
            raise Malformed("couldn't read heads: the binding is that of another peer")
        return answer

    async def page(self, peer: PeerId, member: MemberId, start: int) -> wire.FeedPage:
        """Records of `member` from `start` on, unverified. Raises as `heads`."""
        request = wire.FeedRequest(collective=self._collective, binding=self._binding, member=member, start=start)
        async with self._network.open(peer, wire.FEED) as stream:
            return wire.parse_page(await self._ask(stream, request, wire.MAX_PAGE + 1))

    @contextlib.asynccontextmanager
    async def blob(self, peer: PeerId, digest: Digest, offset: int) -> AsyncIterator[tuple[int, Stream]]:
        """The blob's whole size as the peer states it, and a stream of its bytes from `offset` on. Raises as `heads`."""
        request = wire.BlobRequest(collective=self._collective, binding=self._binding, digest=digest, offset=offset)
        async with self._network.open(peer, wire.BLOB) as stream:
            yield wire.parse_blob_size(await self._ask(stream, request, 64)), stream

    @staticmethod
    async def _ask(stream: Stream, request: wire.Request, limit: int) -> bytes:
        await stream.write(wire.frame(request.to_bytes()))
        opened = wire.open_answer(await read_frame(stream, limit))
        if isinstance(opened, wire.Refusal):
            raise PeerRefused(f"couldn't ask {stream.peer[-6:]}: it says {opened.code}", reason=opened.code)
        return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskRules:
    """Who we are, whom we serve, and who wants to know which verified peer speaks for which member.

    `farewell(reader, feed)` is how many entries of a feed we still show to one who is not allowed: a former member.
    `serves(member)` is whether the operator lets a member fetch blobs from this node, `outdated(binding)` whether the member has
    bound another transport key since: who holds the old one is nobody.
    """

    collective: CollectiveId
    binding: Binding
    allowed: Callable[[MemberId], bool]
    met: Callable[[Binding], None]
    farewell: Callable[[MemberId, MemberId], int]
    serves: Callable[[MemberId], bool] = lambda _member: True
    outdated: Callable[[Binding], bool] = lambda _binding: False


class Desk:
    """Answers heads, feed ranges and blobs of one collective."""

    def __init__(self, store: Store, blobs: BlobStore, rules: DeskRules) -> None:
        """Serve from `store` and `blobs`."""
        self._store, self._blobs, self._rules = store, blobs, rules
        self._asking: dict[MemberId, Binding] = {}

    @property
    def asking(self) -> Mapping[MemberId, Binding]:
        """Non-members that asked lately, newest last, at most 64: candidates for an invitation."""
        return MappingProxyType(self._asking)

    def open(self, network: Network) -> None:
        """Put the three handlers into place."""
        network.add_handler(wire.HEADS, self._heads)
        network.add_handler(wire.FEED, self._feed)
        network.add_handler(wire.BLOB, self._blob)

    async def _heads(self, stream: Stream) -> None:
        async with _refusing(stream):
            _, member = await self._read(stream, wire.HeadsRequest)
            heads = self._store.heads(self._rules.collective)
            own = self._rules.binding.member
            notes = tuple(head.note for head in heads if member or head.member == own)[: wire.MAX_HEADS]
            answer = wire.HeadsAnswer(binding=self._rules.binding, notes=notes)
            await stream.write(wire.answer(answer.to_bytes()))

    async def _feed(self, stream: Stream) -> None:
        async with _refusing(stream):
            request, member = await self._read(stream, wire.FeedRequest)
            end = None if member else self._rules.farewell(request.binding.member, request.member)
            self._members_only(end is None or request.start < end)
            page = await asyncio.to_thread(self._page, request.member, request.start, end)
            await stream.write(wire.answer(page.to_bytes()))

    def _page(self, member: MemberId, start: int, end: int | None) -> wire.FeedPage:
        collective = self._rules.collective
        held = {head.member: head.note for head in self._store.heads(collective)}
        if member not in held:
            raise UnknownHere(f"couldn't serve feed of {member[:12]}: it is not held")
        return wire.page_of(held[member], to_wire(self._records(member, start, end)))

    def _records(self, member: MemberId, start: int, end: int | None) -> Iterator[Record]:
        count = _CHUNK_RECORDS if end is None else min(_CHUNK_RECORDS, end - start)
        while records := self._store.records(self._rules.collective, member, start, count):
            yield from records
            start += len(records)
            if end is not None:
                count = min(count, end - start)

    async def _blob(self, stream: Stream) -> None:
        async with _refusing(stream):
            request, member = await self._read(stream, wire.BlobRequest)
            self._members_only(member)
            if not self._rules.serves(request.binding.member):
                raise KeptBack("couldn't serve blob: the operator does not let it out to this member")
            size = self._blobs.size(request.digest)
            if size is None:
                raise BlobMissing(f"couldn't serve blob {request.digest[:12]}: it is not here")
            await stream.write(wire.answer(wire.blob_size(size)))
            await self._send(stream, request.digest, request.offset)

    async def _send(self, stream: Stream, digest: Digest, at: int) -> None:
        """One chunk in memory; a reader that stalls is dropped, a blob that is removed meanwhile ends the stream."""
        with contextlib.suppress(BlobMissing):
            while data := await asyncio.to_thread(self._blobs.chunk, digest, at, wire.CHUNK):
                await stream.write(data)
                at += len(data)

    @staticmethod
    def _members_only(member: bool) -> None:
        if not member:
            raise NotAMember("couldn't serve: only members may read this")

    async def _read(self, stream: Stream, kind: type[_R]) -> tuple[_R, bool]:
        """One checked request, and whether a member asks."""
        request = wire.parse_request(await read_frame(stream, wire.MAX_REQUEST))
        if not isinstance(request, kind):
            raise Malformed("couldn't read request: it belongs to another protocol")
        if request.binding.peer != stream.peer:
            raise WrongPeer("couldn't serve: the binding is that of another peer")
        if request.collective != self._rules.collective:
            raise UnknownHere("couldn't serve: another collective")
        if self._rules.outdated(request.binding):
            raise OutdatedPeer("couldn't serve: this member speaks through another peer by now")
        member = self._rules.allowed(request.binding.member)
        if member:
            self._asking.pop(request.binding.member, None)
        else:
            self._remember(request.binding)
        self._rules.met(request.binding)
        return request, member

    def _remember(self, binding: Binding) -> None:
        self._asking.pop(binding.member, None)
        self._asking[binding.member] = binding
        while len(self._asking) > MAX_ASKING:
            del self._asking[next(iter(self._asking))]


@contextlib.asynccontextmanager
async def _refusing(stream: Stream) -> AsyncIterator[None]:
    """What is refused or not here becomes a typed no."""
    try:
        yield
    except (Refused, BlobMissing) as e:
        await stream.write(wire.refusal(e.code))


def to_wire(records: Iterable[Record]) -> Iterable[wire.WireRecord]:
    """Records as they travel."""
    for record in records:
        body = record.body
        yield wire.WireRecord(
            line=record.entry.line,
            salt=None if body is None else body.salt,
            data=None if body is None else body.data,
        )


def from_wire(items: Iterable[wire.WireRecord]) -> list[Record]:
    """Records as they were sent, each with its own signature verified; how they follow each other is the store's matter.

    Raises:
        Refused: an entry that is not one.
    """
    return [
        Record(
            entry=entry.parse(item.line),
            body=None if item.salt is None or item.data is None else Body(salt=item.salt, data=item.data),
        )
        for item in items
    ]
