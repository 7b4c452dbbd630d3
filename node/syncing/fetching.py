"""Gets blobs by digest from whichever members have them: the most urgent first, then the rarest, each digest once.

The size is the one that the signed event states; a peer that states another, or sends bytes of another digest, is left
alone with this blob for a while. Knows nothing of what blobs mean, and how one blob travels is `node.syncing.download`.
Invariant: `want` returns only when the verified blob is in the store; who is tired of waiting cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from node.errors_network import BlobTooLarge, DiskFull
from node.finding.backoff import Backoff
from node.guarding.limits import Fault
from node.syncing.asking import Tally, Tools
from node.syncing.blobs import BlobStore
from node.syncing.donors import Donors, Rank
from node.syncing.download import Download
from node.syncing.exchange import Asker
from node.syncing.holders import Holders
from node.syncing.pieces import PIECE
from protocol.canon import Json
from protocol.ids import Digest, MemberId, PeerId

log = logging.getLogger(__name__)

SURVEYED: Final = 8  # members asked who holds what
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 3.0
_SURVEY_S: Final = 0.3
_PEERS_S: Final = 0.2
_FULL_WAIT_S: Final = 10.0
_UNKNOWN: Final = 1 << 16  # rarity of a blob that nobody was asked about: after those that are known to be rare


class Fetcher:
    """Fetches blobs; how many at once and from whom is decided by `node.syncing.donors`."""

    def __init__(
        self,
        asker: Asker,
        blobs: BlobStore,
        backoff: Backoff,
        holders: Callable[[Sequence[MemberId]], Sequence[PeerId]],
        *,
        member_of: Callable[[PeerId], MemberId | None] = lambda _peer: None,
        fault: Callable[[PeerId, Fault], None] = lambda _peer, _fault: None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """`holders` gives the peers to ask, best first, when some members are preferred; `fault` hears who lied."""
        self._rng = rng or random.Random(secrets.randbits(64))  # noqa: S311 - chooses donors, guards nothing
        self._holders = Holders(asker.have, clock)
        self._donors = Donors(self._rng.randbytes(16))
        self._tools = Tools(
            asker=asker,
            blobs=blobs,
            backoff=backoff,
            donors=self._donors,
            holders=self._holders,
            peers=self._connected,
            member_of=member_of,
            fault=fault,
            clock=clock,
        )
        self._blobs, self._peers = blobs, holders
        self._locks: dict[Digest, tuple[asyncio.Lock, int]] = {}
        self._wanted: Counter[Digest] = Counter()
        self._ranks: dict[Digest, Rank] = {}
        self._news = asyncio.Event()
        self._known: tuple[PeerId, ...] = ()
        self._looked = -1.0
        self._tally = Tally()
        self.waiting = self.fetched = 0

    async def want(
        self,
        digest: Digest,
        size: int,
        *,
        max_bytes: int,
        prefer: Sequence[MemberId] = (),
        rank: Rank = Rank.PENDING,
    ) -> Path:
        """Wait until the blob of `size` bytes is here; asks holders again and again until cancelled.

        Raises:
            BlobTooLarge: `size` is over `max_bytes`; nobody is asked.
            Malformed: not a digest or not a size.
        """
        if not 0 <= size <= max_bytes:
            raise BlobTooLarge(f"couldn't fetch blob {digest[:12]}: {size} bytes, the limit is {max_bytes}")
        wait = _FIRST_WAIT_S
        self.waiting += 1
        self._wanted[digest] += 1
        self.hurry(digest, rank)
        try:
            while not self._blobs.has(digest):
                if size > PIECE or self._ranks[digest] >= Rank.RELEASE or wait > _FIRST_WAIT_S:
                    await self._survey_one(digest)
                async with self._alone(digest):
                    if not self._blobs.has(digest):
                        full = await self._try(digest, size, prefer)
                if not self._blobs.has(digest):
                    await self._pause(_FULL_WAIT_S if full else wait)
                    wait = min(wait * 2, _LONGEST_WAIT_S)
        finally:
            self.waiting -= 1
            self._wanted[digest] -= 1
            if not self._wanted[digest]:
                del self._wanted[digest], self._ranks[digest]
        return self._blobs.path(digest)

    def hurry(self, digest: Digest, rank: Rank) -> None:
        """A blob that is waited for is at least as urgent as this."""
        if digest in self._wanted:
            before = self._ranks.get(digest, rank)
            self._ranks[digest] = min(rank, before)
            if rank < before:
                self._donors.hurry(digest)

    def poke(self) -> None:
        """Peers have come or gone: whoever waits may look again."""
        self._looked = -1.0
        self._news.set()
        self._donors.grant()

    async def close(self) -> None:
        """End the questions that are under way; who waits for a blob goes on waiting."""
        await self._holders.close()

    async def survey(self, digests: Collection[Digest]) -> Mapping[Digest, int | None]:
        """Ask some members who holds what: how many others have each blob; None where nobody answered."""
        await self._holders.survey(digests, self._asked())
        connected = frozenset(self._connected())
        return {digest: self._holders.count(digest, connected) for digest in digests}

    def status(self) -> dict[str, Json]:
        """Flat counters and levels."""
        return {
            "blobs_waiting": self.waiting,
            "blobs_fetched": self.fetched,
            "blob_streams": self._donors.open,
            "blob_pieces": self._tally.pieces,
            "blob_bytes": self._tally.bytes,
            "blob_failures": self._tally.failures,
            "blob_doubled": self._tally.doubled,
            "blob_liars": self._tally.liars,
            "blob_surveys": self._holders.asked,
        }

    # -- inside ------------------------------------------------------------------------------------------------------
    def _connected(self) -> Sequence[PeerId]:
        """The members' peers, looked up a few times a second: it is asked for every blob that waits."""
        now = self._tools.clock()
        if not 0 <= now - self._looked < _PEERS_S:
            self._known, self._looked = tuple(self._peers(())), now
        return self._known

    async def _try(self, digest: Digest, size: int, prefer: Sequence[MemberId]) -> bool:
        """One download; whether the disk is full."""
        job = Download(self._tools, digest, size, prefer=prefer, rank=lambda: self._order(digest), tally=self._tally)
        if not job.peers():
            return False
        try:
            if await job.run():
                self.fetched += 1
                log.info("event=blob-fetched digest=%s bytes=%d peer=%s", digest[:12], size, job.last[-6:])
        except DiskFull as e:
            log.warning("event=blob-not-stored digest=%s cause=%s", digest[:12], e)
            return True
        return False

    def _order(self, digest: Digest) -> tuple[int, ...]:
        """How urgent, then how rare: what the fewest hold is replicated first."""
        rank = self._ranks.get(digest, Rank.HISTORY)
        held = None if rank <= Rank.PENDING else self._holders.rarity(digest)
        return rank, _UNKNOWN if held is None else held

    async def _survey_one(self, digest: Digest) -> None:
        """Learn who has a blob; a member that is slow to answer does not hold it up."""
        if self._holders.count(digest) is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SURVEY_S):
                    await self._holders.survey([digest], self._asked())

    def _asked(self) -> Sequence[PeerId]:
        """Members to ask: all that are connected, or some of them drawn anew each time."""
        peers = self._connected()
        return peers if len(peers) <= SURVEYED else self._rng.sample(list(peers), SURVEYED)

    async def _pause(self, seconds: float) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

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


def rarest(digests: Iterable[Digest], held: Mapping[Digest, int | None]) -> list[Digest]:
    """Those that the fewest are known to hold first; the order stays among equals, and unknown ones come last."""
    return sorted(digests, key=lambda digest: _UNKNOWN if (count := held.get(digest)) is None else count)
