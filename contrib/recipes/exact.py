"""The arithmetic that recipes share: sums and dot products of integers, and one quotient per coordinate.

Knows no recipe. Invariant: a sum over members is an exact integer whatever their order; it becomes a float64 in one
correctly rounded step (ties to even), and after it come only elementwise IEEE 754 operations, so the same arguments give
the same bytes on every machine. Arrays over members are made for a block of coordinates at a time, never for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from contrib.recipes.recipe import Sent, Vector
from protocol.sparse import UNIT_BITS

Units: TypeAlias = npt.NDArray[np.int64]  # [m, B] or [B]
Mask: TypeAlias = npt.NDArray[np.bool_]  # [m, B]
Floats: TypeAlias = npt.NDArray[np.float64]  # [B]
Kernel: TypeAlias = Callable[[slice, Units, Mask], Vector]

ONE: Final = 2**20  # a member's share of 1
_LIMB: Final = 21  # bits; a product of two limbs sums exactly in int64 over 2^20 coordinates
_MASK: Final = 2**_LIMB - 1
_BLOCK: Final = 2**15
_SPAN: Final = 2**17  # coordinates that dot products take at a time; at most 2^20, see _LIMB
_MAX_FACTORS: Final = 2**42


def by_block(sent: Sent, kernel: Kernel) -> Vector:
    """The merged vector [P]: `kernel` for one block of coordinates after the other.

    The kernel gets which coordinates they are, the units [m, B] and which of them were sent [m, B].
    """
    out = np.zeros(sent.coordinates, dtype=np.float32)
    if not sent.registers:
        return out
    for start in range(0, sent.coordinates, _BLOCK):
        at = slice(start, min(start + _BLOCK, sent.coordinates))
        units = np.stack([r.units[at] for r in sent.registers])
        out[at] = kernel(at, units, np.stack([r.counts[at] > 0 for r in sent.registers]))
    return out


def total(units: Units, factors: Sequence[int]) -> Floats:
    """f64(sum over members of factor * units) [B], the sum exact and rounded once.

    Raises:
        MergeRefused: factors that sum to 2^42, or a sum that could reach 2^95.
    """
    size = sum(abs(f) for f in factors)
    bound = size * max(int(units.max(initial=0)), -int(units.min(initial=0)))
    if bound < 2**63:
        return _summed(units, factors).astype(np.float64)
    if size >= _MAX_FACTORS or bound >= 2**95:
        raise MergeRefused("couldn't merge: weights and values of a register are too large for this recipe")
    low, middle, high = (
        _summed(part, factors) for part in (units & _MASK, (units >> _LIMB) & _MASK, units >> 2 * _LIMB)
    )
    middle += low >> _LIMB
    high += middle >> _LIMB
    rest = ((middle & _MASK) << _LIMB) + (
        low & _MASK
    )  # below 2^42: high * 2^42 + rest is rounded in the last step only
    return high.astype(np.float64) * float(2 ** (2 * _LIMB)) + rest.astype(np.float64)


def _summed(units: Units, factors: Sequence[int]) -> Units:
    sums = np.zeros(units.shape[1], dtype=np.int64)
    for row, factor in zip(units, factors, strict=True):
        sums += row if factor == 1 else row * factor
    return sums


def weight_of(present: Mask, factors: Sequence[int]) -> Units:
    """The sum of the factors of the members that sent it, per coordinate [B]."""
    sums = np.zeros(present.shape[1], dtype=np.int64)
    for row, factor in zip(present, factors, strict=True):
        sums += row if factor == 1 else row * np.int64(factor)
    return sums


def quotient(top: Floats, divisor: Units) -> Vector:
    """float32(top / (f64(divisor) * 2^24)) [B]; 0.0 where the divisor is 0, as the sum is there."""
    return divided(top, np.maximum(divisor, 1).astype(np.float64))


def divided(top: Floats, divisor: Floats) -> Vector:
    """float32(top / (divisor * 2^24)) [B]."""
    return (top / (divisor * float(2**UNIT_BITS))).astype(np.float32)


def gram(sent: Sent) -> list[list[int]]:
    """All dot products of the registers' units [m, m], exactly; what was not sent is a zero."""
    count = len(sent.registers)
    out = [[0] * count for _ in range(count)]
    for start in range(0, sent.coordinates, _SPAN):
        limbs = [_limbs(r.units[start : start + _SPAN]) for r in sent.registers]
        for i in range(count):
            for j in range(i + 1):
                out[i][j] += _dot(limbs[i], limbs[j])
    for i in range(count):
        for j in range(i):
            out[j][i] = out[i][j]
    return out


def square(units: Units) -> int:
    """The sum of the squares of one register's units [P], exactly."""
    parts = [_limbs(units[start : start + _SPAN]) for start in range(0, len(units), _SPAN)]
    return sum(_dot(limbs, limbs) for limbs in parts)


def _dot(left: list[Units], right: list[Units]) -> int:
    return sum(int(np.dot(a, b)) << (_LIMB * (i + j)) for i, a in enumerate(left) for j, b in enumerate(right))


def _limbs(units: Units) -> list[Units]:
    sign, size = np.sign(units), np.abs(units)
    count = max(1, -(-int(size.max(initial=0)).bit_length() // _LIMB))
    return [sign * ((size >> (_LIMB * k)) & _MASK) for k in range(count)]


def norms(products: Sequence[Sequence[int]]) -> list[int]:
    """floor(|x|) of every register, in units of 2^-24, from `gram`'s answer."""
    return [isqrt(products[i][i]) for i in range(len(products))]


def lower_median(values: Sequence[int]) -> int:
    """The middle value, of two the smaller; it is one of the honest ones' range while fewer than half are hostile."""
    return sorted(values)[(len(values) - 1) // 2]


def places(units: Units, present: Mask) -> npt.NDArray[np.int64]:
    """The place [m, B] of each value among those that sent its coordinate, smallest first, equals by member.

    What was not sent has a place behind them all.
    """
    order = np.argsort(np.where(present, units, np.iinfo(np.int64).max), axis=0, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(len(units))[:, None], axis=0)
    return out
