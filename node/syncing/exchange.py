"""Asks peers: heads and what changed in them, feed ranges, blobs and parts of blobs; and how records travel.

The bytes are those of `protocol.wire`; what answers is `node.syncing.desk`. Knows neither when to ask nor what to do with an
answer. Invariant: nothing is read from a peer without a limit on its length and a deadline.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final

from ledger import entry
from ledger.entry import Body, Record
from node.errors_network import PeerRefused, PeerUnreachable
from node.ports import Network, Stream
from node.syncing.lines import Lines, read_frame
from protocol import wire
from protocol.binding import Binding
from protocol.errors import Malformed
from protocol.ids import CollectiveId, Digest, MemberId, PeerId

__all__ = ["Asker", "Followed", "from_wire", "read_frame", "to_wire"]

_FOLLOW_S: Final = 90.0  # longer than anybody who is followed stays silent
NOT_SPOKEN: Final = "protocol"  # in what the transport says of a peer without it: "protocols not supported"


class Asker:
    """Asks one peer at a time, as a member of one collective, over streams that are kept for the next question."""

    def __init__(
        self,
        network: Network,
        collective: CollectiveId,
        binding: Binding,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask over `network` with our own `binding`; `clock` in seconds."""
        self._network, self._collective, self._binding = network, collective, binding
        self._plain: set[PeerId] = set()  # connected peers that speak only the first version of the feed protocol
        self.lines = Lines(network, clock=clock)

    async def heads(self, peer: PeerId) -> wire.HeadsAnswer:
        """Who the peer is and which heads it holds; the notes are not verified yet.

        Raises:
            PeerRefused, Refused: a no, or bytes that are no answer.
            PeerUnreachable, StreamEnded.
        """
        request = wire.HeadsRequest(collective=self._collective, binding=self._binding)
        answer = wire.parse_heads(await self._ask(peer, wire.HEADS, request, wire.MAX_PAGE))
        if answer.binding.peer != peer:
            raise Malformed("couldn't read heads: the binding is that of another peer")
        return answer

    async def changes(self, peer: PeerId, since: str, have: bytes) -> wire.ChangesAnswer:
        """Who the peer is and which of its heads changed since `since`; the notes are not verified yet. Raises as `heads`."""
        request = wire.ChangesRequest(collective=self._collective, binding=self._binding, since=since, have=have)
        answer = wire.parse_changes(await self._ask(peer, wire.CHANGES, request, wire.MAX_PAGE))
        if answer.binding.peer != peer:
            raise Malformed("couldn't read heads: the binding is that of another peer")
        return answer

    async def page(self, peer: PeerId, member: MemberId, start: int) -> wire.FeedPage:
        """Records of `member` from `start` on, unverified. Raises as `heads`."""
        request = wire.FeedRequest(collective=self._collective, binding=self._binding, member=member, start=start)
        return wire.parse_page(await self._ask(peer, wire.FEED, request, wire.MAX_PAGE + 1))

    async def range(
        self, peer: PeerId, member: MemberId, start: int, attach: int
    ) -> tuple[wire.FeedPage, Sequence[bytes]]:
        """As `page`, and for each record the blob that it names, as far as it has room in `attach` bytes (empty: not given).

        A peer that does not speak this version gives none. Raises as `heads`.
        """
        if peer not in self._plain:
            request = wire.RangeRequest(
                collective=self._collective, binding=self._binding, member=member, start=start, attach=attach
            )
            try:
                async with self._asked(peer, wire.RANGE, request, wire.MAX_PAGE + 1) as (payload, stream):
                    page = wire.parse_page(payload)
                    more = await read_frame(stream, wire.max_attached(attach))
                    return page, wire.parse_attached(more, len(page.records))
            except PeerUnreachable as e:
                if NOT_SPOKEN not in str(e):
                    raise
                self._plain.add(peer)
        return await self.page(peer, member, start), ()

    @contextlib.asynccontextmanager
    async def follow(self, peer: PeerId, start: int, attach: int) -> AsyncIterator[Followed]:
        """The peer's own feed from `start` on as it grows, on a stream of its own. Raises as `heads`."""
        request = wire.FollowRequest(collective=self._collective, binding=self._binding, start=start, attach=attach)
        async with self._network.open(peer, wire.FOLLOW) as stream:
            await stream.write(wire.frame(request.to_bytes()))
            yield Followed(stream, attach)

    def forget(self, peer: PeerId) -> None:
        """It is gone; when it comes back, it may speak another version."""
        self._plain.discard(peer)
        self.lines.drop(peer)

    async def have(self, peer: PeerId, digests: Sequence[Digest]) -> tuple[bool, ...]:
        """Which of 1 to 1024 blobs the peer holds, as it says. Raises as `heads`."""
        request = wire.HaveRequest(collective=self._collective, binding=self._binding, digests=tuple(digests))
        return wire.parse_bitmap(await self._ask(peer, wire.HAVE, request, 1 + wire.MAX_DIGESTS // 8), len(digests))

    @contextlib.asynccontextmanager
    async def blob(self, peer: PeerId, digest: Digest, offset: int) -> AsyncIterator[tuple[int, Stream]]:
        """The blob's whole size as the peer states it, and a stream of its bytes from `offset` on. Raises as `heads`."""
        request = wire.BlobRequest(collective=self._collective, binding=self._binding, digest=digest, offset=offset)
        async with self._asked(peer, wire.BLOB, request, 64) as (payload, stream):
            yield wire.parse_blob_size(payload), stream

    @contextlib.asynccontextmanager
    async def part(self, peer: PeerId, digest: Digest, offset: int, length: int) -> AsyncIterator[tuple[int, Stream]]:
        """The blob's whole size as the peer states it, and a stream of up to `length` of its bytes from `offset` on.

        The block must read all `min(length, size - offset)` of them, or raise: the stream is kept for the next part.
        Raises as `heads`.
        """
        request = wire.PartRequest(
            collective=self._collective, binding=self._binding, digest=digest, offset=offset, length=length
        )
        async with self._asked(peer, wire.PART, request, 64) as (payload, stream):
            yield wire.parse_blob_size(payload), stream

    async def _ask(self, peer: PeerId, protocol: str, request: wire.Request, limit: int) -> bytes:
        async with self._asked(peer, protocol, request, limit) as (payload, _):
            return payload

    @contextlib.asynccontextmanager
    async def _asked(
        self, peer: PeerId, protocol: str, request: wire.Request, limit: int
    ) -> AsyncIterator[tuple[bytes, Stream]]:
        """The payload of the answer, and the stream behind it."""
        question = wire.frame(request.to_bytes())
        async with self.lines.asked(peer, protocol, question, limit) as (frame, stream):
            yield _opened(peer, frame), stream


class Followed:
    """A feed whose author sends each page by itself; the next one comes when `go_on` says that this one is taken."""

    def __init__(self, stream: Stream, attach: int) -> None:
        """Read from `stream`, with blobs of at most `attach` bytes a page."""
        self._stream, self._attach = stream, attach

    async def page(self) -> tuple[wire.FeedPage, Sequence[bytes]]:
        """The next page, as `Asker.range` gives it; an empty one when there was nothing new for long. Raises as `heads`."""
        stream = self._stream
        length = wire.frame_length(await stream.read(wire.HEADER, within_s=_FOLLOW_S), wire.MAX_PAGE + 1)
        page = wire.parse_page(_opened(stream.peer, await stream.read(length)))
        more = await read_frame(stream, wire.max_attached(self._attach))
        return page, wire.parse_attached(more, len(page.records))

    async def go_on(self, start: int) -> None:
        """Everything before `start` is here. Raises StreamEnded."""
        await self._stream.write(wire.go_on(start))


def _opened(peer: PeerId, frame: bytes) -> bytes:
    opened = wire.open_answer(frame)
    if isinstance(opened, wire.Refusal):
        raise PeerRefused(f"couldn't ask {peer[-6:]}: it says {opened.code}", reason=opened.code)
    return opened


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
    """Records as they were sent, for `Store.append_foreign`, which checks every signature and how they follow each other.

    Raises:
        Refused: not the form of an entry.
    """
    return [
        Record(
            entry=entry.parse_stored(item.line),
            body=None if item.salt is None or item.data is None else Body(salt=item.salt, data=item.data),
        )
        for item in items
    ]
