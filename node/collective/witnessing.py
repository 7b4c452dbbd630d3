"""Being a witness, and being alive: this node cosigns heads of feeds that it holds, and writes when nothing else was written.

Only new contributions ask for a cosignature, never another cosignature or a sign of life, so two nodes cannot keep each
other busy. At most one entry a second carries all of them. What is due is decided by `ledger.witnesses`; whether a head
is consistent with everything seen before was decided by the store when it took the head. Knows no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from ledger import cosignature, events, witnesses
from node.collective.seat import Seat, now_ms
from node.keys.identity import Identity
from node.lasting import lasting
from protocol.ids import MemberId

log = logging.getLogger("fishernet.witnessing")
_BATCH_S: Final = 1.0


class Witnessing:
    """One member as a witness of the others."""

    def __init__(
        self,
        seat: Seat,
        identity: Identity,
        *,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = now_ms,
    ) -> None:
        """Cosign with the witness keys of `identity`; `clock` measures waits, `wall_ms` dates what is signed."""
        self._seat, self._identity, self._heartbeat_s = seat, identity, heartbeat_s
        self._clock, self._wall_ms = clock, wall_ms
        self._wrote, self._cosigned = clock(), clock() - _BATCH_S
        self._changed = asyncio.Event()
        seat.listen(self._heard)

    async def run(self) -> None:
        """Cosign whenever something new is here; never returns, whatever but Fatal goes wrong."""
        await lasting(self._acts, log=log, event="not-cosigned")

    async def _acts(self) -> None:
        while True:
            self.cosign()
            self.beat()
            rest = max(0.0, self._heartbeat_s - (self._clock() - self._wrote))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest + 0.01):
                    await self._changed.wait()
            if self._changed.is_set():
                self._changed.clear()
                await asyncio.sleep(0)
                if self.due():
                    await self._pace()

    def beat_every(self, seconds: float) -> None:
        """Write a sign of life after so many seconds without another entry, from now on."""
        self._heartbeat_s = seconds
        self._changed.set()

    def due(self) -> list[MemberId]:
        """The feeds with something new that this node has not cosigned yet, and whose signed head it holds in full."""
        seat = self._seat
        return [] if seat.paused else witnesses.due(seat.fold, seat.me)

    def cosign(self) -> int:
        """Cosign what is due, as one entry; how many heads that were.

        Raises:
            AppendPaused, StoreFull: it is done later.
        """
        seat, keys, found = self._seat, self._identity, []
        now = self._wall_ms()
        for feed in self.due()[: events.MAX_HEADS]:
            heads = seat.store.heads(seat.collective, feed)
            if not heads or heads[0].size > seat.fold.sizes.get(feed, 0):
                continue  # its entries are on their way
            head = heads[0]
            if head.size <= seat.fold.witnesses.reached(seat.me, feed):
                continue
            made = cosignature.make(keys.witness, keys.post_quantum, witness=seat.me, head=head, time=now // 1000)
            found.append(
                events.Witnessed(
                    member=feed,
                    size=head.size,
                    root=head.root,
                    time=made.time,
                    signature=made.signature,
                    post_quantum=made.post_quantum,
                )
            )
        if found:
            seat.append(events.HeadWitnessed(heads=tuple(sorted(found, key=lambda h: (h.member, h.size)))))
            log.info("event=cosigned heads=%d", len(found))
        return len(found)

    def beat(self) -> bool:
        """Write a sign of life when the time has come; whether one was written."""
        if self._clock() - self._wrote < self._heartbeat_s:
            return False
        if self._seat.paused:
            self._wrote = self._clock()  # look again after another while
            return False
        self._seat.append(events.NodeAlive())
        return True

    async def _pace(self) -> None:
        """Let what belongs together become one entry."""
        waited = self._clock() - self._cosigned
        if waited < _BATCH_S:
            await asyncio.sleep(_BATCH_S - waited)
        self._cosigned = self._clock()

    def _heard(self, member: MemberId) -> None:
        if member == self._seat.me:
            self._wrote = self._clock()
        self._changed.set()
