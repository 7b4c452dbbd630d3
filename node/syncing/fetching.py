"""Gets blobs by digest from whichever member has them: resume, check, next holder on failure.

The size is the one that the signed event states; a peer that states another, or sends bytes of another digest, is left
alone with this blob for a while. Knows nothing of what blobs mean. Invariant: `want` returns only when the verified
blob is in the store; who is tired of waiting cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from node.errors_network import BlobCorrupt, BlobTooLarge
from node.finding.backoff import HOSTILE_S, Backoff
from node.ports import Stream
from node.syncing.blobs import MAX_PARTS, BlobStore, Partial
from node.syncing.exchange import Asker
from protocol import wire
from protocol.errors import Malformed, Refused, Retry
from protocol.ids import Digest, MemberId, PeerId

log = logging.getLogger(__name__)

AT_ONCE = 4
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 3.0


class Fetcher:
    """Fetches blobs, at most four at a time, each digest once."""

    def __init__(
        self,
        asker: Asker,
        blobs: BlobStore,
        backoff: Backoff,
        holders: Callable[[Sequence[MemberId]], Sequence[PeerId]],
    ) -> None:
        """`holders` gives the peers to ask, best first, when some members are preferred."""
        self._asker, self._blobs, self._backoff, self._holders = asker, blobs, backoff, holders
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._locks: dict[Digest, tuple[asyncio.Lock, int]] = {}
        self._givers: dict[Digest, frozenset[PeerId]] = {}  # whose bytes stand in the part
        self.waiting = self.fetched = self.failures = 0

    async def want(self, digest: Digest, size: int, *, max_bytes: int, prefer: Sequence[MemberId] = ()) -> Path:
        """Wait until the blob of `size` bytes is here; asks holders again and again until cancelled.

        Raises:
            BlobTooLarge: `size` is over `max_bytes`; nobody is asked.
            Malformed: not a digest or not a size.
        """
        if not 0 <= size <= max_bytes:
            raise BlobTooLarge(f"couldn't fetch blob {digest[:12]}: {size} bytes, the limit is {max_bytes}")
        wait = _FIRST_WAIT_S
        self.waiting += 1
        try:
            while not self._blobs.has(digest):
                async with self._alone(digest), self._slots:
                    if not self._blobs.has(digest):
                        await self._try_all(digest, size, prefer)
                if not self._blobs.has(digest):
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, _LONGEST_WAIT_S)
        finally:
            self.waiting -= 1
        return self._blobs.path(digest)

    @contextlib.asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        """One try per digest at a time; who waits with the right size is not kept out by who has a wrong one."""
        lock, users = self._locks.get(digest, (asyncio.Lock(), 0))
        self._locks[digest] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(digest)
            if users > 1:
                self._locks[digest] = (lock, users - 1)

    async def _try_all(self, digest: Digest, size: int, prefer: Sequence[MemberId]) -> None:
        for peer in self._holders(prefer):
            matter = (peer, digest, size)  # an event with a wrong size must not spoil the right one
            if self._backoff.blocked(matter):
                continue
            try:
                await self._fetch(peer, digest, size)
            except Refused as e:
                self._failed(peer, digest, e)
                self._backoff.fail(matter, HOSTILE_S)
            except Retry as e:
                self._failed(peer, digest, e)
                self._backoff.fail(matter)
            else:
                self._backoff.clear(matter)
                self.fetched += 1
                log.info("event=blob-fetched digest=%s bytes=%d peer=%s", digest[:12], size, peer[-6:])
                return

    def _failed(self, peer: PeerId, digest: Digest, error: Exception) -> None:
        self.failures += 1
        log.debug("event=blob-failed digest=%s peer=%s error=%s", digest[:12], peer[-6:], error)

    async def _fetch(self, peer: PeerId, digest: Digest, size: int) -> None:
        with await asyncio.to_thread(self._blobs.partial, digest, size) as part:
            earlier = self._givers.get(digest, frozenset()) if part.offset else frozenset()
            inherited = part.offset > 0
            self._givers[digest] = earlier | {peer}
            while len(self._givers) > MAX_PARTS:
                del self._givers[next(iter(self._givers))]
            async with self._asker.blob(peer, digest, part.offset) as (total, stream):
                if total != size:
                    raise Malformed(f"couldn't fetch blob {digest[:12]}: {total} bytes instead of {size}")
                await _receive(stream, part)
            self._givers.pop(digest, None)
            try:
                await asyncio.to_thread(part.finish)
            except BlobCorrupt as e:
                if not inherited:
                    raise
                for giver in earlier - {peer}:  # the likelier culprits; alone, the next one is judged alone
                    self._backoff.fail((giver, digest, size), HOSTILE_S)
                raise _Mixed(str(e)) from None


class _Mixed(Retry):
    """A blob put together from several tries was bad: it starts anew, and who finished it is not blamed."""


async def _receive(stream: Stream, part: Partial) -> None:
    while part.left:
        part.write(await stream.read(min(wire.CHUNK, part.left)))
