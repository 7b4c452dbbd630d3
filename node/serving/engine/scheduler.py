"""Which waiting answer gets the next free row, and which adapter gives up its slot for it. Pure: the clock is an argument.

LoRAX's semantics: a queue for each adapter version, the oldest front first among them, at most `max_active` adapters active,
cycle time, an adapter in use is never evicted. Repaired: a version that is not ready or finds no slot is passed over, not
waited for; after its cycle an adapter goes behind the others, and where one of these lacks a slot it is drained (admits
nothing until its rows have ended). Organisations share by served tokens: Virtual Token Counter (Sheng 2024, arXiv
2401.00588). The bounded queue leaves room for newcomers: dynamic thresholds (Choudhury and Hahne 1998).

It knows no model, no text, no thread. Invariant: an answer is admitted once or taken out once; an adapter that is flooded
delays the answer of an organisation that had nothing under way, or its own to another adapter, by at most two cycles and the
longest answer.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

BASE: Final = "base"  # the version without an adapter: needs no slot
OUTPUT_WEIGHT: Final = 2  # a drawn token costs what two tokens of a prompt cost (VTC's own weights)
RATE_OF: Final = 64  # ends that the rate is estimated from
LONGEST_RETRY: Final = 60  # s


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`cycle` in seconds; `queue` counts answers that wait, of which one organisation gets at most half."""

    max_active: int = 128
    cycle: float = 2.0
    queue: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer that wants a row. `cost` counts the prompt's tokens; times are of the caller's clock, in seconds."""

    number: int
    version: str
    tenant: str
    arrived: float
    cost: int
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Give `entry` a row: first free the slot of `evict`, then activate the entry's version if it is not."""

    entry: Entry
    activate: bool
    evict: str | None = None


@dataclass(slots=True, eq=False)
class _Line:
    """The queue of one version. `back` is when it was last sent behind the others, `turn` when its turn began."""

    version: str
    waiting: dict[str, deque[Entry]] = field(default_factory=dict)  # by organisation, never empty ones
    running: int = 0
    active: bool = False
    bucket: int = 0
    since: float = 0.0  # when it became active
    used: float = 0.0
    turn: float | None = None
    back: float = -math.inf


@dataclass(slots=True)
class _Tenant:
    """What one organisation has under way, and the tokens it was served (VTC's counter)."""

    served: float
    under_way: int = 0
    waiting: int = 0
    admitted: int = -1  # which admission was its last
    since: float = 0.0  # since when it waits without a break


class Scheduler:
    """The waiting and the running answers of one base model."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines: dict[str, _Line] = {BASE: _Line(BASE, active=True)}
        self._tenants: dict[str, _Tenant] = {}
        self._entries: dict[int, Entry] = {}  # those that wait
        self._deadlines: list[tuple[float, int]] = []
        self._ends: deque[float] = deque(maxlen=RATE_OF)
        self._admissions = 0
        self._level = 0.0  # the counter of who was admitted last
        self.running = 0

    # -- questions ---------------------------------------------------------------------------------------------------
    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._entries)

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self._entries and not self.running

    def active(self) -> list[str]:
        """Versions that hold a slot."""
        return [line.version for line in self._lines.values() if line.active and line.version != BASE]

    def uses(self, version: str) -> bool:
        """True while answers of a version wait or run."""
        line = self._lines.get(version)
        return line is not None and bool(line.waiting or line.running)

    def wanted(self) -> list[str]:
        """Versions that something waits for and that hold no slot, the one that is due first in front."""
        due = [(self._due(line), line.version) for line in self._lines.values() if line.waiting and not line.active]
        return [version for _, version in sorted(due)]

    # -- arrivals ----------------------------------------------------------------------------------------------------
    def offer(self, entry: Entry, now: float) -> int | None:
        """Queue an answer; None when it is taken, else the seconds after which to ask again."""
        tenant = self._tenants.get(entry.tenant)
        room = self._limits.queue - len(self._entries)
        if (tenant.waiting if tenant else 0) >= room:
            return self._retry_after(now)
        self._queue(entry)
        return None

    def follow(self, entry: Entry) -> None:
        """Queue a further answer to a request that was taken: in front of its organisation's others, and never refused."""
        self._queue(entry, first=True)

    def _queue(self, entry: Entry, *, first: bool = False) -> None:
        tenant = self._tenants.get(entry.tenant)
        if tenant is None:
            tenant = self._tenants[entry.tenant] = _Tenant(served=self._floor())
        elif not tenant.waiting:
            tenant.served = max(tenant.served, self._floor())  # no credit for time in which it asked for nothing
        if not tenant.waiting:
            tenant.since = entry.arrived
        tenant.waiting += 1
        tenant.under_way += 1
        line = self._lines.setdefault(entry.version, _Line(entry.version))
        queue = line.waiting.setdefault(entry.tenant, deque())
        (queue.appendleft if first else queue.append)(entry)
        self._entries[entry.number] = entry
        if entry.deadline is not None:
            heapq.heappush(self._deadlines, (entry.deadline, entry.number))

    def _floor(self) -> float:
        """Where a counter begins: at the least of those who wait, else at that of who was admitted last."""
        return min((t.served for t in self._tenants.values() if t.waiting), default=self._level)

    def _retry_after(self, now: float) -> int:
        """Seconds until what waits has been answered, by the rate of the last ends."""
        if len(self._ends) < 2 or now <= self._ends[0]:
            return 1
        rate = len(self._ends) / (now - self._ends[0])
        return max(1, min(LONGEST_RETRY, math.ceil(len(self._entries) / rate)))

    # -- departures --------------------------------------------------------------------------------------------------
    def cancel(self, number: int) -> Entry | None:
        """Take out an answer that waits; None when it does not."""
        entry = self._entries.pop(number, None)
        if entry is not None:
            self._unqueue(entry)
            self._left(entry)
        return entry

    def expired(self, now: float) -> list[Entry]:
        """Take out the answers that have waited past their deadline."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = self.cancel(heapq.heappop(self._deadlines)[1])
            if entry is not None:
                found.append(entry)
        return found

    def fail(self, version: str) -> list[Entry]:
        """Take out everything that waits for a version, which cannot be served."""
        line = self._lines.get(version)
        numbers = [entry.number for queue in line.waiting.values() for entry in queue] if line else []
        return [entry for number in numbers if (entry := self.cancel(number)) is not None]

    def ended(self, entry: Entry, now: float) -> None:
        """The answer has given back its row."""
        line = self._lines[entry.version]
        line.running -= 1
        line.used = now
        self.running -= 1
        self._ends.append(now)
        self._left(entry)

    def evicted(self, version: str) -> None:
        """The version, which nothing uses, has lost its slot for another reason than a plan."""
        self._lines[version].active = False
        self._tidy(self._lines[version])

    def served(self, tenant: str, tokens: int) -> None:
        """Count drawn tokens against an organisation that has an answer under way."""
        self._tenants[tenant].served += OUTPUT_WEIGHT * tokens

    def _left(self, entry: Entry) -> None:
        tenant = self._tenants[entry.tenant]
        tenant.under_way -= 1
        if not tenant.under_way:
            del self._tenants[entry.tenant]  # it begins anew at the others' level: neither debt nor credit is kept
        self._tidy(self._lines[entry.version])

    def _unqueue(self, entry: Entry) -> None:
        line = self._lines[entry.version]
        queue = line.waiting[entry.tenant]
        queue.remove(entry)
        if not queue:
            del line.waiting[entry.tenant]
        if not line.waiting:
            line.turn = None
        self._tenants[entry.tenant].waiting -= 1

    def _tidy(self, line: _Line) -> None:
        if not (line.active or line.waiting or line.running):
            del self._lines[line.version]

    # -- the plan ----------------------------------------------------------------------------------------------------
    def plan(
        self,
        now: float,
        rows: int,
        slots: Callable[[int], int],
        bucket: Callable[[str], int | None],
        short: Collection[str] = (),
    ) -> list[Start]:
        """What gets the `rows` free rows, in this order; it counts as running from now on.

        Args:
            now: the time.
            rows: free rows.
            slots: free slots of a size class.
            bucket: size class of a version that is in memory, None when it is not.
            short: versions that are not in memory because there is no room: active ones are drained for them too.
        """
        if not rows or not self._entries:
            return []
        self._rotate(now)
        places = _Places(slots, self._limits.max_active - len(self.active()))
        starts: list[Start] = []
        while len(starts) < rows and (start := self._next(now, places, bucket, short)) is not None:
            starts.append(start)
        return starts

    def undo(self, start: Start) -> None:
        """Put a start back that found no slot after all; what was evicted for it stays evicted."""
        line = self._lines[start.entry.version]
        line.running -= 1
        line.active = line.active and not start.activate
        self.running -= 1
        tenant = self._tenants[start.entry.tenant]
        tenant.served -= start.entry.cost
        tenant.under_way -= 1
        self._queue(start.entry, first=True)

    def give_way(self, now: float, short: Collection[str]) -> str | None:
        """An active version that nothing runs on and that loses its slot now, so that memory gets free; None: wait."""
        lacking = [line for line in self._lines.values() if line.version in short]
        if not lacking:
            return None
        victim = self._victim(lacking[0], self._drained(now, lacking))
        if victim is not None:
            self._evict(victim, now)
        return None if victim is None else victim.version

    def _rotate(self, now: float) -> None:
        """Send behind the others who had a cycle, if others wait."""
        waiting = [line for line in self._lines.values() if line.waiting]
        for line in waiting if len(waiting) > 1 else ():
            if line.turn is not None and now - line.turn >= self._limits.cycle:
                line.back, line.turn = now, None

    def _next(
        self, now: float, places: _Places, bucket: Callable[[str], int | None], short: Collection[str]
    ) -> Start | None:
        ready = [line for line in self._lines.values() if line.waiting and _ready(line, bucket)]
        lacking = [line for line in ready if not line.active and not places.free(line.bucket)]
        lacking += [self._lines[version] for version in short if version in self._lines]
        drained = self._drained(now, lacking)
        victims: dict[int, _Line | None] = {}  # by size class
        able: dict[str, _Line | None] = {}  # versions that may start now, with the line that gives up its slot
        for line in ready:
            if line.active:
                if line.version not in drained:
                    able[line.version] = None
            elif places.free(line.bucket):
                able[line.version] = None
            else:
                if line.bucket not in victims:
                    victims[line.bucket] = self._victim(line, drained)
                if victims[line.bucket] is not None:
                    able[line.version] = victims[line.bucket]
        for name in self._by_service():
            mine = [line for line in ready if name in line.waiting and line.version in able]
            if mine:
                line = min(mine, key=lambda line: _rank(line, name))
                return self._start(line, name, able[line.version], places, now)
        return None

    def _by_service(self) -> list[str]:
        """Organisations that wait, the one with the fewest served tokens first, then the one admitted longest ago."""
        waiting = [(t.served, t.admitted, t.since, name) for name, t in self._tenants.items() if t.waiting]
        return [found[-1] for found in sorted(waiting)]

    def _due(self, line: _Line) -> float:
        return max(min(queue[0].arrived for queue in line.waiting.values()), line.back)

    def _drained(self, now: float, lacking: list[_Line]) -> set[str]:
        """Active versions that admit nothing more: one, active for a cycle, for each version that lacks a place."""
        others = [line for line in self._lines.values() if line.active and line.version != BASE]
        idle = sum(1 for line in others if not line.waiting and not line.running)
        over = [line for line in others if line.waiting and now - line.since >= self._limits.cycle]
        over.sort(key=lambda line: line.since)
        return {line.version for line in over[: max(0, len(lacking) - idle)]}

    def _victim(self, line: _Line, drained: Collection[str]) -> _Line | None:
        """Whose slot `line` may take: one nothing waits for, the longest unused first, else a drained one that has ended.

        One of the same size class or a greater one goes first: the slot of a smaller one may not be enough.
        """
        unused = [o for o in self._lines.values() if o.active and o.version != BASE and not o.running]
        free = [o for o in unused if not o.waiting or o.version in drained]
        return min(free, key=lambda o: (bool(o.waiting), o.bucket < line.bucket, o.used), default=None)

    def _evict(self, victim: _Line, now: float) -> None:
        victim.active, victim.turn = False, None
        if victim.waiting:
            victim.back = now
        self._tidy(victim)

    def _start(self, line: _Line, name: str, victim: _Line | None, places: _Places, now: float) -> Start:
        entry = line.waiting[name][0]
        del self._entries[entry.number]
        activate = not line.active
        if victim is not None:
            self._evict(victim, now)
            places.change(line.bucket, 1)
        if activate:
            line.active, line.since = True, now
            places.change(line.bucket, -1)
        line.turn = now if line.turn is None else line.turn
        line.running += 1
        line.used = now
        self.running += 1
        self._admissions += 1
        tenant = self._tenants[name]
        tenant.admitted = self._admissions
        tenant.served += entry.cost
        self._level = tenant.served
        self._unqueue(entry)
        return Start(entry=entry, activate=activate, evict=victim.version if victim else None)


def _rank(line: _Line, name: str) -> tuple[float, int]:
    """When a line is due for an organisation, least first: since its front waits, or since it was sent behind the others."""
    front = line.waiting[name][0]
    return max(front.arrived, line.back), front.number


def _ready(line: _Line, bucket: Callable[[str], int | None]) -> bool:
    if line.active:
        return True
    found = bucket(line.version)
    line.bucket = 0 if found is None else found
    return found is not None


class _Places:
    """Free slots while a plan is made."""

    def __init__(self, slots: Callable[[int], int], more: int) -> None:
        self._slots, self._changed, self._more = slots, dict[int, int](), more

    def free(self, bucket: int) -> bool:
        """True when a version of this size class could become active without another's end."""
        return self._more > 0 and self._slots(bucket) + self._changed.get(bucket, 0) > 0

    def change(self, bucket: int, by: int) -> None:
        self._more += by
        self._changed[bucket] = self._changed.get(bucket, 0) + by
