"""Blobs of contributions: read what is here, fetch what is not, each once, from whoever has it, the most urgent first.

What a decision under vote needs comes first, then pending contributions, then what the newest release is made of, then older
ones; of history only as much as there is room for. Knows neither peers nor how bytes travel. Invariants: at most `AT_ONCE` blobs
are waited for at once, the others stand in line; a blob that is asked for again more urgently moves up; what its author had
forgotten, and what was dropped for want of room, is not fetched again as history.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

from ledger.collective import Contribution
from node.collective import needs
from node.collective.seat import Seat
from node.errors_network import BlobMissing
from node.syncing.blobs import BlobStore
from node.syncing.donors import Rank
from node.syncing.sync import Sync
from protocol.errors import FishernetError
from protocol.ids import Digest, EventId

log = logging.getLogger("fishernet.holdings")
AT_ONCE: Final = 256
HISTORY_AT_ONCE: Final = 64  # of them for what nobody waits for
MOST_IN_LINE: Final = 1 << 16

Admits = Callable[[Digest, int], bool]


class Holdings:
    """The blobs of one collective at this node."""

    def __init__(
        self,
        seat: Seat,
        blobs: BlobStore,
        sync: Sync,
        arrived: Callable[[], None],
        *,
        admits: Admits = lambda _digest, _size: True,
    ) -> None:
        """`arrived` hears of every blob that came; `admits(blob, size)` says whether there is room for it as history."""
        self._seat, self._blobs, self._sync, self._arrived, self._admits = seat, blobs, sync, arrived, admits
        self._fetching: dict[Digest, asyncio.Task[None]] = {}
        self._ranks: dict[Digest, Rank] = {}
        self._line: dict[Digest, tuple[Contribution, int]] = {}  # whose turn has not come, with the order of calls
        self._turns: list[tuple[Rank, int, Digest]] = []  # a heap of them; what was hurried is in it twice
        self._history = 0  # of those being fetched
        self._numbers = count()
        self._former: tuple[int, dict[EventId, Contribution]] = (0, {})
        self.jobs: asyncio.TaskGroup | None = None

    def read(self, digest: Digest) -> bytes | None:
        """The blob, or None when it is not here or damaged (it is fetched again then)."""
        if not self._seat.fold.known:
            return None
        try:
            return self._blobs.read(digest, self._most())
        except BlobMissing:
            return None
        except FishernetError as e:
            log.warning("event=blob-unusable blob=%s cause=%s", digest[:12], e)
            return None

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here; it is not read."""
        return self._blobs.has(digest)

    def fetch(self, contributions: Iterable[Contribution], rank: Rank | None = None) -> None:
        """Start to fetch the blobs that are missing, as urgently as the ledger says unless `rank` is given."""
        if self.jobs is None:
            return
        fold, most = self._seat.fold, self._most()
        for contribution in contributions:
            digest = contribution.blob
            if contribution.size > most or self._blobs.has(digest):
                continue
            urgency = needs.rank(fold, contribution) if rank is None else rank
            if urgency >= Rank.RELEASE and needs.forgotten(fold, contribution):
                continue
            if urgency >= Rank.HISTORY and not self._admits(digest, contribution.size):
                continue
            known = self._ranks.get(digest)
            if known is None and len(self._line) >= MOST_IN_LINE:
                continue
            if known is None:
                self._line[digest] = (contribution, next(self._numbers))
            if known is None or urgency < known:
                self._ranks[digest] = urgency
                if digest in self._line:
                    heapq.heappush(self._turns, (urgency, self._line[digest][1], digest))
                else:
                    self._sync.hurry_blob(digest, urgency)
        self._start()

    def tend(self) -> None:
        """Fetch what nobody waits for, once nothing else is missing: what releases of former epochs were made of."""
        if self.jobs is None or not self._seat.fold.known or self._ranks:
            return
        epochs = len({c.epoch_id for c in self._seat.fold.charters})
        if self._former[0] != epochs:
            self._former = (epochs, {c.event: c for c in needs.former(self._seat.fold)})
        missing = (c for c in list(self._former[1].values()) if not self._here(c))
        self.fetch([c for c, _ in zip(missing, range(HISTORY_AT_ONCE), strict=False)], Rank.HISTORY)

    @property
    def waiting(self) -> int:
        """Blobs that are being fetched or stand in line."""
        return len(self._ranks)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _here(self, contribution: Contribution) -> bool:
        """Whether a blob of history needs no more looking after; then it is not looked for again."""
        if self._blobs.has(contribution.blob):
            del self._former[1][contribution.event]
            return True
        return False

    def _most(self) -> int:
        """The largest blob that any charter so far allowed: what was released once stays readable."""
        return max((c.gate.max_blob_bytes for c in self._seat.fold.charters), default=0)

    def _start(self) -> None:
        """Let the most urgent ones of the line begin, in the order of calls."""
        while self.jobs is not None and self._turns and len(self._fetching) < AT_ONCE:
            rank, _, digest = self._turns[0]
            idle = rank >= Rank.HISTORY
            if digest in self._line and idle and self._history >= HISTORY_AT_ONCE:
                return
            heapq.heappop(self._turns)
            if digest in self._line:  # else it began when it was hurried
                contribution, _ = self._line.pop(digest)
                self._history += idle
                self._fetching[digest] = self.jobs.create_task(self._fetch(contribution, rank))

    async def _fetch(self, contribution: Contribution, rank: Rank) -> None:
        digest, size = contribution.blob, contribution.size
        try:
            prefer = [contribution.member]
            await self._sync.want_blob(digest, size, prefer=prefer, max_bytes=self._most(), rank=rank)
            self._arrived()
        except (FishernetError, OSError) as e:
            code = getattr(e, "code", "os-error")
            log.warning("event=blob-not-fetched blob=%s code=%s cause=%s", digest[:12], code, e)
        finally:
            self._fetching.pop(digest, None)
            self._ranks.pop(digest, None)
            self._history -= rank >= Rank.HISTORY
            self._start()
