"""Keeps blobs within the operator's quota: looks at what lies here, asks who else holds it, drops what may go.

What is needed for what is `node.collective.needs`, what goes first is `node.syncing.retention`; this only does it. What was
dropped is remembered in `blobs/dropped.txt`, so that it is not fetched again as history. Erasing on an author's word is not
its matter and waits for no quota. Invariant: nothing is dropped that a plan made a moment ago, on the ledger and the
disk as they are, does not name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from node.collective import needs
from node.collective.seat import Seat
from node.files import write_new
from node.sections import Storage
from node.syncing import retention
from node.syncing.blobs import BlobStore
from node.syncing.retention import Held, Plan, Room, Why
from protocol.canon import Json
from protocol.ids import Digest

log = logging.getLogger("fishernet.keeping")
MIB: Final = 1 << 20
EVERY_S: Final = 10.0
FRESH_MS: Final = (
    3_600_000  # so long a blob that nothing names is left alone: the event that names it may be on its way
)
SURVEYED: Final = 1024  # blobs whose other holders are asked for before some are dropped
_REMEMBERED: Final = 1 << 16

Survey: TypeAlias = Callable[[Collection[Digest]], Awaitable[Mapping[Digest, int | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something an operator should know: `severity` is "warning" or "error"."""

    severity: str
    code: str
    text: str
    cure: str


def look(
    seat: Seat, blobs: BlobStore, storage: Storage, *, now_ms: int, others: Mapping[Digest, int | None] | None = None
) -> list[Held]:
    """Every blob here and why; `others` are known counts of other holders. Touches the disk: call it from a thread."""
    others = others or {}
    wanted = needs.needs(seat.fold, seat.me, keep_releases=storage.keep_releases, now_ms=now_ms)
    found = []
    for digest, size, changed_ms in blobs.listing():
        fresh = now_ms - changed_ms < FRESH_MS
        why, age, _ = wanted.get(digest, (Why.FRESH if fresh else Why.UNKNOWN, changed_ms, size))
        found.append(Held(digest=digest, size=size, why=why, age=age, others=others.get(digest)))
    return found


def room_of(blobs: BlobStore, storage: Storage) -> Room:
    """How much may lie here now."""
    free = 1 << 62
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(blobs.folder).free
    return Room(quota=storage.quota_mib * MIB, free=free, least_free=storage.min_free_mib * MIB)


def findings(plan: Plan, room: Room) -> list[Finding]:
    """What an operator should know about the room for blobs."""
    found = []
    if plan.unmet and room.free < room.least_free:
        found.append(
            Finding(
                severity="error",
                code="disk-low",
                text=f"couldn't keep {room.least_free // MIB} MiB of the disk free: {room.free // MIB} MiB are, "
                "and all blobs here are needed",
                cure="free some space, or set [storage] min_free_mib lower",
            )
        )
    elif plan.unmet:
        found.append(
            Finding(
                severity="warning",
                code="over-quota",
                text=f"couldn't meet the quota of {room.quota // MIB} MiB: {_mib(plan.used)} MiB of blobs are here, "
                f"{_mib(plan.unmet)} MiB too many, and all are needed; no history is fetched",
                cure=f"fishernet config set storage.quota_mib {_mib(int((plan.used - plan.freed) / retention.LOW)) + 1}",
            )
        )
    return found


def told(plan: Plan, room: Room, storage: Storage) -> dict[str, Json]:
    """A plan for people and programs."""
    return {
        **plan.to_json(),
        "quota": room.quota,
        "free": room.free,
        "least_free": room.least_free,
        "keep_releases": storage.keep_releases,
        "history": storage.history and room.admits(plan.used - plan.freed, 1),
        "findings": [
            {"severity": f.severity, "code": f.code, "text": f.text, "cure": f.cure} for f in findings(plan, room)
        ],
    }


class Keeper:
    """The keeper of one node's blobs."""

    def __init__(
        self,
        seat: Seat,
        blobs: BlobStore,
        storage: Callable[[], Storage],
        survey: Survey,
        *,
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`storage` is the configuration as it is now; `survey` asks members who holds what."""
        self._seat, self._blobs, self._storage, self._survey, self._now, self._clock = (
            seat, blobs, storage, survey, now_ms, clock,
        )  # fmt: skip
        self._file = blobs.folder / "dropped.txt"
        self._dropped = self._read_dropped()
        self._others: dict[Digest, int | None] = {}  # what members said lately of who else holds what could go
        self._plan, self._room = Plan(used=0), room_of(blobs, storage())
        self._looked = -EVERY_S
        self._busy = asyncio.Lock()
        self._said: tuple[str, ...] = ()
        self.told: Callable[[Finding], None] = lambda _finding: None
        self.dropped_blobs = self.dropped_bytes = 0

    async def tend(self, *, now: bool = False) -> None:
        """Look every ten seconds (or `now`), and drop what has to go; whoever waits on the ledger may go on meanwhile."""
        if not self._seat.fold.known or self._busy.locked() or (not now and self._clock() - self._looked < EVERY_S):
            return
        async with self._busy:
            self._looked = self._clock()
            storage = self._storage()
            held, room = await self._look(storage, {})
            asked = retention.candidates(held, room, most=SURVEYED)
            if asked:
                self._others = dict(await self._survey(asked))
                held, room = await self._look(storage, self._others)
            plan = retention.plan(held, room)
            await asyncio.to_thread(self._drop, plan.drop)
            self._plan, self._room = plan, room
            self._tell(findings(plan, room))

    async def prune(self, *, rare: bool, dry: bool) -> Plan:
        """Drop everything that may go now, after asking who else holds it, and what is damaged; `dry` only says what would."""
        async with self._busy:
            storage = self._storage()
            held, _ = await self._look(storage, {})
            may = sorted((h for h in held if h.droppable), key=retention.turn)
            self._others = {}
            for start in range(0, len(may), SURVEYED):
                self._others |= await self._survey([h.digest for h in may[start : start + SURVEYED]])
            held, room = await self._look(storage, self._others)
            plan = retention.prune(held, rare=rare)
            if not dry:
                await asyncio.to_thread(self._drop, plan.drop)
                self._blobs.drop_damaged()
                self._plan, self._room = retention.plan(await self._held(storage, self._others), room), room
            return plan

    async def report(self) -> tuple[Plan, Room]:
        """What lies here and what would go now for want of room, by what members said when they were asked last."""
        held, room = await self._look(self._storage(), self._others)
        return retention.plan(held, room), room

    async def shown(self) -> dict[str, Json]:
        """What `fishernet storage` shows: the report, and how much was damaged on the disk and put aside."""
        plan, room = await self.report()
        number, size = self._blobs.damaged()
        return {**told(plan, room, self._storage()), "damaged": {"blobs": number, "bytes": size}}

    def admits(self, digest: Digest, size: int) -> bool:
        """Whether a blob may be fetched as history: there is room, it is wanted, and it was not dropped before."""
        used = self._plan.used - self._plan.freed
        return self._storage().history and digest not in self._dropped and self._room.admits(used, size)

    def status(self) -> dict[str, Json]:
        """Flat numbers, in bytes where not said otherwise."""
        plan, room = self._plan, self._room
        return {
            "used": plan.used - plan.freed,
            "quota": room.quota,
            "free": room.free,
            "least_free": room.least_free,
            "over": plan.unmet,
            "droppable": plan.droppable - plan.freed,
            "rare": plan.rare,
            "dropped_blobs": self.dropped_blobs,
            "dropped_bytes": self.dropped_bytes,
            "not_fetched_again": len(self._dropped),
            **{f"bytes_{why.name.lower()}": plan.by.get(why, (0, 0))[1] for why in Why},
        }

    # -- inside ------------------------------------------------------------------------------------------------------
    async def _held(self, storage: Storage, others: Mapping[Digest, int | None]) -> list[Held]:
        return await asyncio.to_thread(look, self._seat, self._blobs, storage, now_ms=self._now(), others=others)

    async def _look(self, storage: Storage, others: Mapping[Digest, int | None]) -> tuple[list[Held], Room]:
        return await self._held(storage, others), room_of(self._blobs, storage)

    def _drop(self, going: Sequence[Held]) -> None:
        if not going:
            return
        self._remember([h.digest for h in going])  # first: a stop in between costs a blob that may go anyway
        for each in going:
            if self._blobs.remove(each.digest):
                self.dropped_blobs += 1
                self.dropped_bytes += each.size
        freed = sum(h.size for h in going)
        log.info("event=blobs-dropped blobs=%d bytes=%d rare=%d", len(going), freed, sum(h.rare for h in going))

    def _tell(self, found: Sequence[Finding]) -> None:
        codes = tuple(f.code for f in found)
        for finding in found:
            if finding.code not in self._said:
                log.warning("event=storage code=%s cause=%s cure=%s", finding.code, finding.text, finding.cure)
                self.told(finding)
        self._said = codes

    def _remember(self, digests: Sequence[Digest]) -> None:
        for digest in digests:
            self._dropped.pop(digest, None)
            self._dropped[digest] = None
        while len(self._dropped) > _REMEMBERED:
            del self._dropped[next(iter(self._dropped))]
        with contextlib.suppress(OSError):  # on a full disk it is remembered until the next start
            write_new(self._file, "".join(f"{digest}\n" for digest in self._dropped).encode(), mode=0o600)

    def _read_dropped(self) -> dict[Digest, None]:
        with contextlib.suppress(OSError), self._file.open("rb") as file:
            lines = file.read(_REMEMBERED * 65).decode("ascii", "replace").split("\n")
            return {Digest(line): None for line in lines if len(line) == 64}
        return {}


def _mib(size: int) -> int:
    return -(-size // MIB)
