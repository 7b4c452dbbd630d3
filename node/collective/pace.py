"""Whether something still moves: a count that is looked at from time to time, and since when it is the same.

Knows no meaning of the count. Invariant: a count that has just changed moves, however long it stood before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

STALLED_S: Final = 5.0  # as long as things come, it is worth waiting for more


class Pace:
    """One count."""

    def __init__(self, stalled_s: float = STALLED_S, *, clock: Callable[[], float] = time.monotonic) -> None:
        """It stands still when it has not changed for `stalled_s` seconds of `clock`."""
        self._stalled_s, self._clock = stalled_s, clock
        self._seen: object = self  # nothing that anybody counts
        self._since = 0.0

    def moving(self, count: object) -> bool:
        """Look at it as it is now."""
        now = self._clock()
        if count != self._seen:
            self._seen, self._since = count, now
        return now - self._since < self._stalled_s
