"""Takes pages of feeds in: verified and stored in a thread, small blobs that came along with them, and only then told.

What a feed is known to be, and what taking it works with, stand here too. Knows neither where a page came from nor who is asked
for the next. Invariant: nothing reaches the store but through `Store.append_foreign`; `on_records` sees only what it returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ledger.entry import Record
from ledger.errors import FeedFrozen, ForkSeen
from ledger.store import Store
from node.errors_network import BlobCorrupt, DiskFull
from node.finding.backoff import Backoff
from node.ports import Network
from node.syncing.blobs import BlobStore
from node.syncing.directory import Directory
from node.syncing.exchange import Asker
from node.syncing.failures import Failures
from node.syncing.neighbours import Neighbours
from node.syncing.rules import SyncRules
from protocol.ids import CollectiveId, MemberId, PeerId

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedParts:
    """What the pulling works with: stores, network, who speaks for whom, who is left alone, and the rules."""

    store: Store
    blobs: BlobStore
    collective: CollectiveId
    network: Network
    asker: Asker
    directory: Directory
    backoff: Backoff
    rules: SyncRules
    wants: Callable[[MemberId], bool]
    me: MemberId
    neighbours: Neighbours
    clock: Callable[[], float]
    failures: Failures


@dataclass(slots=True, kw_only=True)
class Feed:
    """How far a feed is known to reach, who says so, and whether a task pulls it now."""

    target: int = 0
    frozen: bool = False
    pulled: bool = False
    news: asyncio.Event | None = None  # of the task that pulls it
    claims: dict[PeerId, int] = field(default_factory=dict)
    grown: asyncio.Event | None = None  # of those who wait for entries
    waiting: set[MemberId] = field(default_factory=set)  # who waits at our desk for what is coming
    following: int = 0  # streams on which its author sends us what is new
    pushed: int = 0  # up to which entry it has sent, while that is being stored

    async def growth(self) -> None:
        """Wait until entries came, or nobody pulls the feed any more."""
        if self.grown is None:
            self.grown = asyncio.Event()
        await self.grown.wait()

    def ring(self) -> None:
        """Entries came, or nobody pulls the feed any more."""
        if self.grown is not None:
            self.grown.set()
            self.grown = None


class Taking:
    """The one hand that stores entries of others."""

    def __init__(self, parts: FeedParts) -> None:
        """One thread: only one writes anyway, and a page must not queue behind other work in the common ones."""
        self._parts = parts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeds")
        self.attached = 0

    def stop(self) -> None:
        """Let the thread end with what it is doing."""
        self._thread.shutdown(wait=False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feeds")

    async def take(
        self, feed: Feed, member: MemberId, records: Sequence[Record], note: bytes, blobs: Sequence[bytes] = ()
    ) -> None:
        """Verify and store, with the blobs that came along; a fork freezes the feed and is the author's fault, not the peer's.

        Raises:
            Refused, Retry: nothing was stored.
        """
        parts = self._parts
        try:
            loop = asyncio.get_running_loop()
            fresh = await loop.run_in_executor(self._thread, self._store, member, records, note, blobs)
        except ForkSeen as e:
            feed.frozen = True
            log.error("event=fork member=%s kind=%s at=%d", member[:12], e.fork.kind, e.fork.at)
            if parts.rules.on_fork is not None:
                parts.rules.on_fork(e.fork)
            return
        except FeedFrozen:
            feed.frozen = True
            return
        if fresh:
            feed.ring()
            log.debug("event=records member=%s from=%d count=%d", member[:12], fresh[0].entry.header.seq, len(fresh))
            parts.rules.took(member, len(fresh), sum(_weight(record) for record in fresh))
            parts.rules.on_records(member, fresh)

    def _store(self, member: MemberId, records: Sequence[Record], note: bytes, blobs: Sequence[bytes]) -> list[Record]:
        """In a thread, in one go. What is attached is checked against what the verified entry says, or it is the peer's fault."""
        parts = self._parts
        fresh = parts.store.append_foreign(parts.collective, member, records, note)
        for record, data in zip(records, blobs, strict=False):
            named = parts.rules.attached(record) if data and parts.rules.attached is not None else None
            if named is None or named[1] != len(data):
                continue  # nothing that we would have asked for
            with contextlib.suppress(BlobCorrupt, DiskFull):  # it is fetched like any other, and who lies then is found
                parts.blobs.take(named[0], data)
                self.attached += 1
        return fresh


def _weight(record: Record) -> int:
    return len(record.entry.line) + (0 if record.body is None else len(record.body.data))
