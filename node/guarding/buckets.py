"""Token buckets: so much a second for ever, so much at once. Pure arithmetic over a time that is given.

Knows no peers. Invariant: over any span of t seconds no more than `burst + per_s * t` was taken by `take`.
"""

from __future__ import annotations

from node.guarding.limits import Rate


class Bucket:
    """One bucket; full at first. It may go into debt by `pay`, which is how a stream is slowed down instead of refused."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        """Full at `now` (seconds)."""
        self._rate, self._tokens, self._at = rate, rate.burst, now

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` if it is there; else nothing is taken."""
        self._fill(now)
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True

    def give(self, amount: float) -> None:
        """Put back what was taken and not used."""
        self._tokens = min(self._tokens + amount, self._rate.burst)

    def pay(self, amount: float, now: float) -> float:
        """Take `amount` whatever is there; the seconds to wait until the debt is gone."""
        self._fill(now)
        self._tokens -= amount
        return max(0.0, -self._tokens / self._rate.per_s)

    def _fill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._tokens = min(self._rate.burst, self._tokens + passed * self._rate.per_s)
        self._at = now
