"""Asks one donor for a run of pieces, and reads them one after the other; what all downloads share.

Reads are long from a fast donor and short from a slow one, so that its silence is noticed either way. A donor that does not
speak the protocol of parts is asked by the older one. Knows neither the disk nor who else is asked. Invariant: no more than one
piece is in memory, and a stream is never left with bytes that nobody reads: it ends, or all of it was read.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from node.errors_network import PeerUnreachable
from node.finding.backoff import Backoff
from node.guarding.limits import Fault
from node.ports import Stream
from node.syncing.blobs import BlobStore
from node.syncing.claims import Claim
from node.syncing.donors import Donors
from node.syncing.exchange import Asker
from node.syncing.holders import Holders
from node.syncing.pieces import PIECE
from protocol import wire
from protocol.errors import Malformed
from protocol.ids import Digest, MemberId, PeerId

_FIRST_READ, _LEAST_READ = 16 * 1024, 8 * 1024  # bytes: news of a slow donor comes often enough
_READ_S: Final = 0.25  # a read is as long as the donor is known to take this for
_NOT_SPOKEN_S: Final = (600.0, 600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What downloads share. `peers` are the members' peers that are connected."""

    asker: Asker
    blobs: BlobStore
    backoff: Backoff
    donors: Donors
    holders: Holders
    peers: Callable[[], Sequence[PeerId]]
    member_of: Callable[[PeerId], MemberId | None]
    fault: Callable[[PeerId, Fault], None]
    clock: Callable[[], float]


@dataclass(slots=True)
class Tally:
    """What happened over all downloads."""

    pieces: int = 0
    bytes: int = 0
    failures: int = 0
    doubled: int = 0
    liars: int = 0


class Overtaken(Exception):
    """Another donor has given the rest: this stream ends in the middle of its answer."""


class WrongSize(Malformed):
    """A donor states another size than the event; who of them lies shows when the blob is here."""

    def __init__(self, digest: Digest, stated: int, size: int) -> None:
        """Keep what was stated."""
        super().__init__(f"couldn't fetch blob {digest[:12]}: {stated} bytes instead of {size}")
        self.stated = stated


@contextlib.asynccontextmanager
async def asked(tools: Tools, digest: Digest, size: int, claim: Claim) -> AsyncIterator[Stream]:
    """A stream of the bytes of a claim as it is now; the block moves `claim.at` on with every piece that it has read.

    Raises:
        Overtaken: the block ended before all of it was read; the stream is no use for another question.
        WrongSize, and what the asker raises.
    """
    peer, offset, end = claim.peer, claim.at * PIECE, claim.end
    length = min(end * PIECE, size) - offset
    older = ("blob/2", peer)
    async with contextlib.AsyncExitStack() as stack:
        if length and not tools.backoff.blocked(older):
            try:
                total, stream = await stack.enter_async_context(tools.asker.part(peer, digest, offset, length))
            except PeerUnreachable:
                pass
            else:
                if total != size:
                    raise WrongSize(digest, total, size)
                yield stream
                if claim.at < end:
                    raise Overtaken
                return
        total, stream = await stack.enter_async_context(tools.asker.blob(peer, digest, offset))
        if length:
            tools.backoff.fail(older, _NOT_SPOKEN_S)
        if total != size:
            raise WrongSize(digest, total, size)
        yield stream
        if claim.at < end or offset + length < size:
            raise Overtaken  # it would send the rest, too


async def piece(tools: Tools, stream: Stream, claim: Claim, length: int) -> bytes:
    """The next `length` bytes of a claim (raises what the stream raises)."""
    parts, left = [], length
    while left:
        rate = claim.rate(tools.clock()) if claim.received else tools.donors.rate(claim.peer)
        most = _FIRST_READ if rate is None else max(_LEAST_READ, min(wire.CHUNK, int(rate * _READ_S)))
        data = await stream.read(min(left, most))
        claim.hear(len(data), tools.clock())
        parts.append(data)
        left -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
