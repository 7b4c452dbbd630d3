"""Whether one update is a copy of another: by the places that both send, and by how alike the values there are.

Knows no members, feeds or order: who came first is the ledger's matter. Integers only, so everybody gets the same answer.
Two honest members choose like places too, because some coordinates matter to any text; their values there hardly agree.
The limits lie in the gap between what honest members and what disguised copies show (contrib/LOG.md, copies).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.sparse import SparseUpdate

LEAST: Final = 64  # coordinates in the smaller update; of fewer, likeness says nothing
OVERLAP_PERMILLE: Final = 400  # shared places over all places of both (Jaccard)
COSINE_PERMILLE: Final = 800  # cosine of the two as vectors, whatever its sign: a copy turned round is one too
_BITS: Final = 21  # values are compared as integers below 2^21: 2^21 products of them stay exact in 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How two updates resemble each other: places, and exact sums over values brought to the same few bits."""

    shared: int
    either: int
    product: int
    squares: tuple[int, int]

    @property
    def overlap_permille(self) -> int:
        """Shared places over all places, rounded down."""
        return 1000 * self.shared // self.either if self.either else 0

    @property
    def copied(self) -> bool:
        """Whether both limits are passed."""
        if min(self.squares) == 0 or 1000 * self.shared < OVERLAP_PERMILLE * self.either:
            return False
        return (1000 * self.product) ** 2 >= COSINE_PERMILLE**2 * self.squares[0] * self.squares[1]


def compare(one: SparseUpdate, other: SparseUpdate) -> Likeness:
    """Compare two updates of the same adapter. Law: symmetric, and the same on every machine."""
    small, again = _few_bits(one.units), _few_bits(other.units)
    spread, sent = np.zeros(one.coordinates, dtype=np.int64), np.zeros(one.coordinates, dtype=bool)
    spread[one.indices], sent[one.indices] = small, True
    shared = int(np.count_nonzero(sent[other.indices]))
    return Likeness(
        shared=shared,
        either=one.sent + other.sent - shared,
        product=_sum(spread[other.indices] * again),
        squares=(_sum(small * small), _sum(again * again)),
    )


def is_copy(update: SparseUpdate, original: SparseUpdate) -> bool:
    """Whether `update` is `original` sent again, as it was or disguised; never for updates of fewer than `LEAST` places."""
    if update.coordinates != original.coordinates or min(update.sent, original.sent) < LEAST:
        return False
    fewer, more = sorted((update.sent, original.sent))
    if 1000 * fewer < OVERLAP_PERMILLE * more:
        return False  # however many they share, it is not enough
    return compare(update, original).copied


def _few_bits(units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The values over a power of two, rounded towards zero, so that the largest has at most `_BITS` bits."""
    largest = int(np.abs(units).max(initial=0))
    shift = max(0, largest.bit_length() - _BITS)
    small: npt.NDArray[np.int64] = np.sign(units) * (np.abs(units) >> shift)
    return small


def _sum(products: npt.NDArray[np.int64]) -> int:
    """The exact sum of products below 2^42, however many."""
    return sum(int(part.sum()) for part in np.array_split(products, max(1, -(-len(products) // (1 << 20)))))
