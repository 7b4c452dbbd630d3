"""The only clock of a simulation: events in the order of their simulated time.

Knows nothing of members or messages. Invariant: time moves only from one event to the next; events of one moment run in
the order in which they were asked for, so a seeded run repeats.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from typing import Final

START_MS: Final = 1_760_000_000_000  # what the simulated wall clock shows at the beginning

Action = Callable[[], Awaitable[None] | None]


class Clock:
    """A queue of what will happen, and the time that it is."""

    def __init__(self) -> None:
        self.elapsed = 0  # simulated ms since the beginning
        self.done = 0  # events that ran
        self._queue: list[tuple[int, int, Action]] = []
        self._asked = 0

    def ms(self) -> int:
        """The simulated wall clock, in ms since 1970."""
        return START_MS + self.elapsed

    def seconds(self) -> float:
        """The simulated monotonic clock, in seconds."""
        return self.elapsed / 1000

    def after(self, ms: float, action: Action) -> None:
        """Run `action` in so many simulated ms."""
        self._asked += 1
        heapq.heappush(self._queue, (self.elapsed + max(0, round(ms)), self._asked, action))

    async def run(self, until: Callable[[], bool], *, end_ms: int) -> bool:
        """Let events happen until `until` holds (asked after each); False when time or events ran out before."""
        while not until():
            if not self._queue or self._queue[0][0] > end_ms:
                return False
            self.elapsed, _, action = heapq.heappop(self._queue)
            self.done += 1
            waiting = action()
            if waiting is not None:
                await waiting
        return True
