"""Which pieces of one blob are asked of whom: runs of missing pieces, split when a donor is free, doubled when one is slow.

A claim is a run of pieces that one donor was asked for; one that stalls keeps the piece it is at, and loses the others.
When nothing is unclaimed any more, a free donor takes over the second half of the longest rest of another claim; the last
pieces of one that stalls, or that is much slower than the free one, are asked of both (the endgame of BitTorrent: Cohen
2003). Knows no stream and no clock: times come as arguments, in seconds. Invariants: a piece that is here is never claimed; a
piece is claimed by at most two donors, and never twice by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node.syncing.pieces import PIECE
from protocol.ids import PeerId

MOST: Final = 32  # pieces in one claim, 8 MiB: what a donor that dies or is overtaken has sent for nothing
SILENT_S: Final = 2.0  # without a byte for so long, a donor's pieces are asked of another one too
WORTH_S: Final = 0.5  # a rest that takes longer than this is worth another stream
FASTER: Final = 3.0  # times as fast must a donor be known to be, to be asked for what a slow one is sending


@dataclass(slots=True, eq=False)
class Claim:
    """Pieces `at` to `end` (not included) are still to come from `peer`."""

    peer: PeerId
    at: int
    end: int
    began: float
    heard: float  # when its last bytes came
    received: int = 0  # bytes
    partial: int = 0  # bytes of the piece `at` that have come

    @property
    def left(self) -> int:
        """Bytes that are still to come, at most."""
        return (self.end - self.at) * PIECE - self.partial

    def rate(self, now: float) -> float:
        """Bytes a second so far."""
        return self.received / max(now - self.began, 1e-3)

    def hear(self, count: int, now: float) -> None:
        """Bytes have come."""
        self.heard, self.received, self.partial = now, self.received + count, self.partial + count

    def silent(self, now: float) -> bool:
        """Whether nothing has come for a while."""
        return now - self.heard >= SILENT_S


class Claims:
    """The claims of one blob of `count` pieces, of which some are missing."""

    def __init__(self, missing: Iterable[int]) -> None:
        """Nothing is asked of anybody yet."""
        self._missing = set(missing)
        self._open: list[Claim] = []

    @property
    def whole(self) -> bool:
        """Whether every piece is here."""
        return not self._missing

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Those that are open."""
        return tuple(self._open)

    def is_missing(self, index: int) -> bool:
        """Whether a piece has not come yet."""
        return index in self._missing

    def busy(self, peer: PeerId) -> int:
        """Claims of one donor."""
        return sum(claim.peer == peer for claim in self._open)

    def free(self) -> bool:
        """Whether a piece is missing that nobody was asked for."""
        return bool(self._missing - self._claimed())

    def take(self, peer: PeerId, now: float, *, rate: float | None = None, most: int = MOST) -> Claim | None:
        """What to ask of a free donor whose speed is known as `rate` (bytes a second, None: not known); None: nothing."""
        for stalled in self._open:
            if stalled.silent(now) and stalled.peer != peer:
                stalled.end = min(stalled.end, stalled.at + 1)
        claim = self._unclaimed(peer, now, most) or self._split(peer, now, rate) or self._double(peer, now, rate)
        if claim is not None:
            self._open.append(claim)
        return claim

    def came(self, claim: Claim, index: int) -> None:
        """The next piece of a claim is here, whole."""
        claim.at, claim.partial = index + 1, 0
        self._missing.discard(index)

    def lost(self, indexes: Iterable[int]) -> None:
        """Pieces that were here are missing again."""
        self._missing |= set(indexes)

    def close(self, claim: Claim) -> None:
        """The donor sends no more of it; what has not come is free again."""
        if claim in self._open:
            self._open.remove(claim)

    # -- inside ------------------------------------------------------------------------------------------------------
    def _claimed(self) -> set[int]:
        return {i for claim in self._open for i in range(claim.at, claim.end)}

    def _unclaimed(self, peer: PeerId, now: float, most: int) -> Claim | None:
        """The first run of pieces that nobody was asked for."""
        left = self._missing - self._claimed()
        if not left:
            return None
        start = end = min(left)
        while end in left and end - start < most:
            end += 1
        return Claim(peer=peer, at=start, end=end, began=now, heard=now)

    def _split(self, peer: PeerId, now: float, rate: float | None) -> Claim | None:
        """The second half of the longest rest of another donor's claim."""
        others = [c for c in self._open if c.peer != peer and c.end - c.at >= 3]
        found = max(others, key=lambda c: _rest_s(c, now), default=None)
        if found is None or not self._worth(found, now, rate):
            return None
        middle = found.at + 1 + (found.end - found.at) // 2
        claim = Claim(peer=peer, at=middle, end=found.end, began=now, heard=now)
        found.end = middle
        return claim

    def _double(self, peer: PeerId, now: float, rate: float | None) -> Claim | None:
        """The last pieces of a donor that stalls, or that is much slower."""
        for found in sorted(self._open, key=lambda c: c.heard):
            twice = any(c is not found and c.at < found.end and found.at < c.end for c in self._open)
            if found.peer == peer or twice or not any(i in self._missing for i in range(found.at, found.end)):
                continue
            much_faster = rate is not None and rate > FASTER * found.rate(now)
            if found.silent(now) or (much_faster and _rest_s(found, now) > 2 * WORTH_S):
                return Claim(peer=peer, at=found.at, end=found.end, began=now, heard=now)
        return None

    @staticmethod
    def _worth(claim: Claim, now: float, rate: float | None) -> bool:
        """Whether another stream would end the blob earlier, as far as one can tell."""
        return _rest_s(claim, now) > WORTH_S and (rate is None or rate > claim.rate(now) / 4)


def _rest_s(claim: Claim, now: float) -> float:
    """How long a claim takes from here on, at its own pace."""
    return claim.left / max(claim.rate(now), 1.0) if claim.received else claim.left / PIECE + (now - claim.heard)
