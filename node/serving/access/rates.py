"""How many requests and tokens a minute each API key has left.

Pure: the clock is an argument. A bucket fills evenly and holds one minute's worth; what an answer cost is taken when it is
known, so a bucket of tokens may go below nothing and the next request waits until it is filled again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.serving.access.keyfile import ApiKey


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Rates:
    """The buckets of all keys; `now` is in seconds and never goes back."""

    def __init__(self) -> None:
        self._requests: dict[str, _Bucket] = {}
        self._tokens: dict[str, _Bucket] = {}

    def wait(self, key: ApiKey, now: float) -> int:
        """Seconds until a request by `key` may come, at least 1; 0: now, and it is counted."""
        requests = _filled(self._requests, key.id, key.requests_per_minute, now)
        tokens = _filled(self._tokens, key.id, key.tokens_per_minute, now)
        waits = []
        if requests is not None and key.requests_per_minute and requests.left < 1:
            waits.append((1 - requests.left) * 60 / key.requests_per_minute)
        if tokens is not None and key.tokens_per_minute and tokens.left <= 0:
            waits.append((1 - tokens.left) * 60 / key.tokens_per_minute)
        if waits:
            return max(1, math.ceil(max(waits)))
        if requests is not None:
            requests.left -= 1
        return 0

    def spend(self, key: ApiKey, tokens: int, now: float) -> None:
        """Take what an answer cost."""
        bucket = _filled(self._tokens, key.id, key.tokens_per_minute, now)
        if bucket is not None:
            bucket.left -= tokens


def _filled(buckets: dict[str, _Bucket], key: str, rate: int | None, now: float) -> _Bucket | None:
    if rate is None:
        return None
    bucket = buckets.setdefault(key, _Bucket(left=float(rate), at=now))
    bucket.left = min(float(rate), bucket.left + (now - bucket.at) * rate / 60)
    bucket.at = now
    return bucket
