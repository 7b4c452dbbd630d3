"""One blob from as many donors as its size is worth: each is asked for a run of pieces, whoever is free helps the slowest.

A donor that dies costs the piece it was sending; one that stalls is overtaken by another. The number of streams follows the
size, so that a small blob is one request to one donor. Knows nothing of what a blob means and nothing of priorities: it is
told in which order to wait. Invariants: at most one piece per stream is in memory beside the one being written; a donor is
left alone with this blob after trouble, for longer after bytes that no honest one sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from node.errors_network import BlobCorrupt, BlobMissing, DiskFull, PeerRefused
from node.finding.backoff import HOSTILE_S, PASSING_S
from node.guarding.limits import Fault
from node.ports import Stream
from node.syncing import asking
from node.syncing.asking import Overtaken, Tally, Tools, WrongSize
from node.syncing.claims import MOST, Claim, Claims
from node.syncing.donors import Candidate, Rank
from node.syncing.pieces import PIECE, OnePiece, Pieces, count_of, length_of
from node.syncing.settling import Settling
from protocol.errors import Refused, Retry
from protocol.ids import Digest, MemberId, PeerId

log = logging.getLogger(__name__)

MOST_DONORS: Final = 4
SIMPLE: Final = 1 << 20  # bytes up to which one donor does it
PER_STREAM: Final = 4 << 20  # beyond that, bytes for which one more donor is asked
_LOOK_S: Final = 0.5
_MEASURED: Final = 1 << 20  # bytes that say something about a donor's speed
_GONE: Final = frozenset({"blob-missing", "kept-back", "not-a-member", "unknown-here"})
_BUSY: Final = frozenset({"over-quota", "busy"})


def donors_for(size: int) -> int:
    """How many donors a blob of `size` bytes is asked of at once."""
    return 1 if size <= SIMPLE else min(MOST_DONORS, 2 + size // PER_STREAM)


class _Whole(Exception):
    """Every piece has come: the other streams of this blob end."""


class Download:
    """One try to get one blob; what came stays on disk for the next try."""

    def __init__(
        self,
        tools: Tools,
        digest: Digest,
        size: int,
        *,
        prefer: Sequence[MemberId],
        rank: Callable[[], tuple[int, ...]],
        tally: Tally,
    ) -> None:
        """`rank` is a `Rank` and what decides inside it; it may change while the download waits."""
        self._tools, self._digest, self._size, self._prefer, self._rank = tools, digest, size, prefer, rank
        self._tally = tally
        self._claims = Claims(())
        self._sink: Pieces | OnePiece | None = None
        self._writes: set[asyncio.Future[bool]] = set()
        self._broken: Exception | None = None
        self._changed = asyncio.Event()
        self._lengths: dict[PeerId, int] = {}
        self._share = min(MOST, -(-count_of(size) // donors_for(size)))  # pieces asked of one donor at a time
        self.last = ""  # who gave the last piece

    async def run(self) -> bool:
        """Whether the blob is here now.

        Raises:
            DiskFull: no room for it.
        """
        sink = await self._open()
        self._sink, self._claims = sink, Claims(sink.missing())
        try:
            while True:
                if not self._claims.whole and not await self._gather():
                    return False
                try:
                    await self._in_thread(sink.finish)
                except BlobCorrupt:
                    if not await self._settle(sink):
                        return False
                except BlobMissing:
                    self._claims.lost(sink.missing())
                    continue
                if self._tools.blobs.has(self._digest):
                    self._blame_lengths()
                    return True
        finally:
            sink.close()

    def peers(self) -> list[Candidate]:
        """Who may be asked now; `tier` 0 is known or presumed to hold it."""
        tools, found = self._tools, list[Candidate]()
        author_first = self._rank()[0] <= Rank.PENDING
        for peer in tools.peers():
            has = tools.holders.has(peer, self._digest)
            if has is False or tools.backoff.blocked(self._matter(peer)) or tools.backoff.blocked(("donor", peer)):
                continue
            presumed = author_first and has is None and tools.member_of(peer) in self._prefer
            found.append(Candidate(peer=peer, tier=0 if has or presumed else 1))
        return found

    # -- streams -----------------------------------------------------------------------------------------------------
    async def _open(self) -> Pieces | OnePiece:
        if self._size <= PIECE:
            return self._tools.blobs.pieces(self._digest, self._size)
        return await asyncio.to_thread(self._tools.blobs.pieces, self._digest, self._size)

    async def _gather(self) -> bool:
        """Ask donors until all pieces are here, or nobody is left to ask."""
        try:
            async with asyncio.TaskGroup() as jobs:
                for number in range(max(2, donors_for(self._size))):
                    jobs.create_task(self._work(number))
        except* _Whole:
            pass
        except* DiskFull as group:
            raise DiskFull(str(group.exceptions[0]), hint="free some space; nothing was lost") from None
        finally:
            while self._writes:
                await asyncio.wait(self._writes)
        if self._broken is not None:
            raise self._broken  # of a stream that had ended before it was written
        return self._claims.whole

    async def _work(self, number: int) -> None:
        """One stream after another; the first of a blob waits in line before the second of any other."""
        claims, main = self._claims, number < donors_for(self._size)
        while not claims.whole:
            if not (main and claims.free()) and not self._slow():
                if number and not claims.claims:
                    return  # the others have given up
                await self._wait()
                continue
            try:
                async with self._tools.donors.lend(
                    self._digest, lambda: (self._rank()[0], number, *self._rank()[1:]), self._candidates
                ) as peer:
                    now = self._tools.clock()
                    claim = claims.take(peer, now, rate=self._tools.donors.rate(peer), most=self._share)
                    if claim is not None:
                        await self._ask(peer, claim)
                        if claims.whole:
                            raise _Whole
                        continue
            except BlobMissing:
                if not claims.claims:
                    return
            await self._wait()

    def _slow(self) -> bool:
        """Whether another donor might be asked for what one was asked for already."""
        now = self._tools.clock()
        return any(now - claim.began >= _LOOK_S for claim in self._claims.claims)

    def _candidates(self) -> Sequence[Candidate]:
        """Donors that are not on this blob yet; the one that is alone with all of it gets a second stream when it is fast."""
        found = self.peers()
        idle = [c for c in found if not self._claims.busy(c.peer)]
        if idle or not self._claims.free():
            return idle
        fast = {claim.peer for claim in self._claims.claims if claim.received >= _MEASURED}
        return [c for c in found if c.peer in fast and self._tools.donors.load(c.peer) == 1]

    async def _wait(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._changed.wait()

    async def _ask(self, peer: PeerId, claim: Claim) -> None:
        """Ask a donor for a claim; whatever happens, what it did not send is free again."""
        tools, matter = self._tools, self._matter(peer)
        self._tally.doubled += any(
            c is not claim and c.at < claim.end and claim.at < c.end for c in self._claims.claims
        )
        try:
            async with asking.asked(tools, self._digest, self._size, claim) as stream:
                await self._receive(peer, claim, stream)
        except Overtaken:
            pass
        except DiskFull:
            raise
        except PeerRefused as e:
            self._failed(peer, e)
            tools.backoff.fail(matter)
            if e.reason in _GONE:
                tools.holders.note(peer, self._digest, has=False)
            elif e.reason in _BUSY:
                tools.backoff.fail(("donor", peer))
        except Refused as e:
            self._failed(peer, e)
            if isinstance(e, WrongSize):
                self._lengths[peer] = e.stated
            tools.backoff.fail(matter, HOSTILE_S)
        except Retry as e:
            self._failed(peer, e)
            tools.backoff.fail(matter)
        else:
            tools.backoff.clear(matter)
        finally:
            now = tools.clock()
            if claim.received >= _MEASURED or now - claim.began > _LOOK_S:
                tools.donors.measured(peer, claim.rate(now))
            self._claims.close(claim)
            self._changed.set()

    async def _receive(self, peer: PeerId, claim: Claim, stream: Stream) -> None:
        """Read piece after piece while the one before is written; end where another donor has taken over."""
        sink, write = self._sink, None
        if sink is None:
            return
        while claim.at < claim.end and self._claims.is_missing(claim.at):
            index = claim.at
            data = await asking.piece(self._tools, stream, claim, length_of(index, self._size))
            if write is not None:
                await write
            if not self._claims.is_missing(index):
                break
            write = self._write(sink, index, data, peer)
            self._claims.came(claim, index)
            self._tally.pieces += 1
            self._tally.bytes += len(data)
            self._tools.holders.note(peer, self._digest, has=True)
            self.last = peer
            self._changed.set()
        if write is not None:
            await write

    def _write(self, sink: Pieces | OnePiece, index: int, data: bytes, peer: PeerId) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        if isinstance(sink, OnePiece):
            done: asyncio.Future[bool] = loop.create_future()
            done.set_result(sink.put(index, data, peer))
            return done
        write = loop.run_in_executor(None, sink.put, index, data, peer)
        self._writes.add(write)
        write.add_done_callback(self._written)
        return write

    def _written(self, write: asyncio.Future[bool]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and isinstance(error := write.exception(), Exception):
            self._broken = error

    # -- when the bytes are wrong ------------------------------------------------------------------------------------
    async def _settle(self, sink: Pieces | OnePiece) -> bool:
        """Whether it is worth going on: who lied is known and left, and what only they gave is asked of others."""
        givers = set(sink.givers().values())
        if isinstance(sink, Pieces):
            own = await asyncio.to_thread(sink.damaged)
            if own:
                log.warning("event=part-damaged blob=%s pieces=%d cause=disk", self._digest[:12], len(own))
                self._claims.lost(own)
                return True
            if len(givers) > 1:
                return await self._second_opinion(sink, givers)
        self._blame(givers)
        self._throw_away(sink, givers)
        return True

    async def _second_opinion(self, sink: Pieces, givers: set[PeerId]) -> bool:
        """Have one donor give all pieces that others gave, and compare."""
        settling = Settling(sink)
        try:
            for peer in self._witnesses(sink):
                try:
                    await self._ask_again(peer, settling, sink)
                except DiskFull:
                    raise
                except (Refused, Retry) as e:
                    self._failed(peer, e)
                    self._tools.backoff.fail(self._matter(peer), HOSTILE_S if isinstance(e, Refused) else PASSING_S)
                    settling.restart()
                    continue
                if await asyncio.to_thread(settling.right):
                    self._blame(settling.contradicted() - {peer})
                    await asyncio.to_thread(settling.adopt, peer)
                else:
                    self._blame({peer})
                    self._throw_away(sink, {peer})
                return True
        finally:
            settling.close()
        return False

    def _witnesses(self, sink: Pieces) -> list[PeerId]:
        """Whom to ask: whoever gave most of it has to be asked for least."""
        given = list(sink.givers().values())
        found = [c.peer for c in sorted(self.peers(), key=lambda c: c.tier)]
        return sorted(found, key=lambda peer: -given.count(peer))

    async def _ask_again(self, peer: PeerId, settling: Settling, sink: Pieces) -> None:
        for start, end in settling.runs(peer):
            now = self._tools.clock()
            claim = Claim(peer=peer, at=start, end=end, began=now, heard=now)
            with contextlib.suppress(Overtaken):
                async with asking.asked(self._tools, self._digest, self._size, claim) as stream:
                    for index in range(start, end):
                        data = await asking.piece(self._tools, stream, claim, length_of(index, sink.size))
                        await asyncio.to_thread(settling.compare, index, data)
                        claim.at = index + 1

    def _blame(self, liars: set[PeerId]) -> None:
        """These gave other bytes than those of the digest: they are left alone."""
        for liar in sorted(liars):
            self._tally.liars += 1
            self._tools.backoff.fail(self._matter(liar), HOSTILE_S)
            self._tools.holders.note(liar, self._digest, has=False)
            self._tools.fault(liar, Fault.BAD_BLOB)
            log.warning("event=bad-blob blob=%s peer=%s", self._digest[:12], liar[-6:])

    def _throw_away(self, sink: Pieces | OnePiece, liars: set[PeerId]) -> None:
        """What is here from them alone is asked of others."""
        wrong = [index for index, giver in sink.givers().items() if giver in liars]
        sink.drop(wrong)
        self._claims.lost(wrong)

    def _blame_lengths(self) -> None:
        """The blob is here with the size of the event: who named another one lied."""
        for peer in self._lengths:
            self._tools.fault(peer, Fault.LYING_LENGTH)
        self._lengths.clear()

    # -- small things ------------------------------------------------------------------------------------------------
    def _matter(self, peer: PeerId) -> tuple[PeerId, Digest, int]:
        return (peer, self._digest, self._size)  # an event with a wrong size must not spoil the right one

    def _failed(self, peer: PeerId, error: Exception) -> None:
        self._tally.failures += 1
        log.debug("event=blob-failed digest=%s peer=%s error=%s", self._digest[:12], peer[-6:], error)

    @staticmethod
    async def _in_thread(call: Callable[[], object]) -> None:
        await asyncio.to_thread(call)
