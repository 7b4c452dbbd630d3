"""How long to leave a peer alone in one matter: doubling pauses after failures, forgotten after a success.

With a source of chance a pause is drawn from nothing to the doubled bound (the full jitter of Brooker, "Exponential Backoff And
Jitter", AWS 2015), so that nodes that lost each other together do not try again together.

A matter is any hashable key, such as (peer, feed). Knows no peers and no clock of its own. Invariant: at most
`MAX_KEYS` matters are remembered; the oldest failure is forgotten first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

MAX_KEYS = 4096
PASSING_S = (0.25, 10.0)  # first and longest pause after passing trouble
HOSTILE_S = (2.0, 600.0)  # after bad data: quarantine


class Backoff:
    """Pauses by key."""

    def __init__(self, clock: Callable[[], float], rng: random.Random | None = None) -> None:
        """Measure time with `clock`, in seconds; draw pauses from `rng` when there is one."""
        self._clock, self._rng = clock, rng
        self._pauses: dict[Hashable, tuple[float, float]] = {}  # key -> (until, pause)

    def blocked(self, key: Hashable) -> bool:
        """Whether `key` is to be left alone now."""
        until, _ = self._pauses.get(key, (0.0, 0.0))
        return self._clock() < until

    def fail(self, key: Hashable, bounds: tuple[float, float] = PASSING_S) -> None:
        """Leave `key` alone for twice as long as the last time, within `bounds`."""
        first, longest = bounds
        _, last = self._pauses.pop(key, (0.0, 0.0))
        pause = min(max(first, last * 2), longest)
        drawn = pause if self._rng is None else self._rng.uniform(0.0, pause)
        self._pauses[key] = (self._clock() + drawn, pause)
        while len(self._pauses) > MAX_KEYS:
            del self._pauses[next(iter(self._pauses))]

    def clear(self, key: Hashable) -> None:
        """All is well with `key`."""
        self._pauses.pop(key, None)

    def blocked_count(self) -> int:
        """How many keys are being left alone now."""
        now = self._clock()
        return sum(1 for until, _ in self._pauses.values() if now < until)
