"""Values to signs, magnitudes and block scales, by least squared error; scales and magnitudes as bits.

A value is `sign * scale * (base + code)`: codes have one bit less than a value (a sign costs nothing here), scales are fp16
with few bits of mantissa, base is one small number for the update. Knows nothing of coordinates. Invariant: a scale is a
multiple of 2^-24, so `units = scale * 2^24 * (base + code)` is an exact integer below 2^47.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.bits import Reader, Writer
from protocol.errors import Malformed, NotCanonical

UNIT_BITS = 24
LARGEST_SCALE = 65504  # the largest finite fp16
LARGEST = 128  # of base + code
BASES = {1: (1,), 2: (1, 2, 3), 3: (1, 2, 3, 4), 4: (1, 2, 4, 6, 8), 8: (1,)}  # those a writer tries
CUTS = {1: 7, 2: 6, 3: 5, 4: 4, 8: 0}  # low bits of an fp16 that a writer leaves out of a scale,
SMALL_BLOCK, SMALL_CUT = 32, 9  # and those it leaves out of the scales of many small blocks of one bit
MOST_CUT = 9
_TOP = 0x7BFF  # the bits of the largest finite fp16
_TURNS = 4
_PASSES = 8
_MOST_RICE = 16
SLICE = 512  # scales

Reals = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """Which values are kept [j], their codes [j], the fp16 bits of the scales [ceil(j / block)] less `cut`, the base."""

    kept: npt.NDArray[np.intp]
    codes: Integers
    scales: Integers
    cut: int
    base: int


def levels(bits: int) -> int:
    """How many magnitudes there are."""
    return 1 << (bits - 1)


# -- choosing --------------------------------------------------------------------------------------------------------
def quantise(values: Reals, bits: int, block: int) -> Quantised:
    """Return `values` [k] as codes and scales; what is nearer to zero than to its smallest magnitude is left out.

    Per base tried: scales by turns of nearest code and least squares (Lloyd 1982, with levels that stand in a fixed ratio);
    leaving values out shifts the blocks, hence the passes. The base with the least squared error is taken.

    Raises:
        Malformed: a value is not finite, or too large for its scale.
    """
    if not bool(np.isfinite(values).all()):
        raise Malformed("couldn't encode update: a value is not finite")
    sizes = np.abs(values)
    if float(sizes.max(initial=0)) > LARGEST_SCALE * levels(bits):
        raise Malformed("couldn't encode update: a value is too large for its scale")
    cut = SMALL_CUT if bits == 1 and block <= SMALL_BLOCK else CUTS[bits]
    tried = [_with_base(sizes, bits, block, base, cut) for base in BASES[bits]]
    return min(tried, key=lambda each: each[0])[1]


def _with_base(sizes: Reals, bits: int, block: int, base: int, cut: int) -> tuple[float, Quantised]:
    kept = np.flatnonzero(sizes)
    scales = _scales(sizes[kept], bits, block, base, cut)
    for _ in range(_PASSES):
        near = sizes[kept] >= 0.5 * base * _spread(_real(scales, cut), block, len(kept))
        if bool(near.all()):
            break
        kept = kept[near]
        scales = _scales(sizes[kept], bits, block, base, cut)
    real = _spread(_real(scales, cut), block, len(kept))
    codes = _codes(sizes[kept], real, bits, base)
    error = float(np.square(sizes).sum() - np.square(sizes[kept]).sum())
    error += float(np.square(sizes[kept] - real * (codes + base)).sum())
    return error, Quantised(kept=kept, codes=codes, scales=scales, cut=cut, base=base)


def _scales(sizes: Reals, bits: int, block: int, base: int, cut: int) -> Integers:
    """The scale of each block, as cut fp16 bits."""
    if not len(sizes):
        return np.zeros(0, dtype=np.int64)
    starts = np.arange(0, len(sizes), block)
    scales = _rounded(np.maximum.reduceat(sizes, starts) / (base + levels(bits) - 1), cut)
    if bits == 8:
        return scales
    for _ in range(_TURNS):
        real = _spread(_real(scales, cut), block, len(sizes))
        steps = (_codes(sizes, real, bits, base) + base).astype(np.float64)
        best = np.add.reduceat(sizes * steps, starts) / np.add.reduceat(steps * steps, starts)
        scales = _rounded(best, cut)
    return scales


def _codes(sizes: Reals, scales: Reals, bits: int, base: int) -> Integers:
    codes: Integers = np.clip(np.rint(sizes / scales) - base, 0, levels(bits) - 1).astype(np.int64)
    return codes


def _spread(scales: Reals, block: int, count: int) -> Reals:
    spread: Reals = np.repeat(scales, block)[:count]
    return spread


def _rounded(scales: Reals, cut: int) -> Integers:
    """The nearest cut fp16 above zero; where nothing is cut the next above, so that no value is cut off."""
    half = np.minimum(scales, LARGEST_SCALE).astype(np.float16)
    patterns = half.view(np.uint16).astype(np.int64)
    if not cut:
        patterns += half < scales
    patterns = (patterns + ((1 << cut) >> 1)) >> cut
    return np.clip(patterns, 1, _TOP >> cut)


def _real(scales: Integers, cut: int) -> Reals:
    return (scales << cut).astype(np.uint16).view(np.float16).astype(np.float64)


def scale_units(scales: npt.NDArray[np.integer], cut: int) -> Integers:
    """Scales in units of 2^-24, exactly."""
    return np.ldexp(_real(scales.astype(np.int64), cut), UNIT_BITS).astype(np.int64)


# -- writing and reading ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a reader must know before the first bit: bits, values a block, values, base; cut, mean, Rice parameter of scales."""

    bits: int
    block: int
    sent: int
    base: int
    cut: int
    centre: int
    rice: int

    @property
    def blocks(self) -> int:
        """How many scales there are."""
        return -(-self.sent // self.block)

    def check(self) -> None:
        """Refuse numbers that no scale and no magnitude can have (raises Malformed, NotCanonical)."""
        if not 1 <= self.base <= LARGEST + 1 - levels(self.bits) or (self.bits == 1 and self.base > 1):
            raise Malformed(f"couldn't decode update: a base of {self.base} with {self.bits} bits")
        if self.cut > MOST_CUT or self.rice > _MOST_RICE:
            raise Malformed("couldn't decode update: scales without a mantissa, or wider than an fp16")
        if not self.sent and (self.centre, self.rice, self.cut, self.base) != (0, 0, 0, 1):
            raise NotCanonical("couldn't decode update: scales are described, and there are none")


def shape_of(quantised: Quantised, bits: int, block: int) -> Shape:
    """The shape of what `quantise` returned."""
    count = len(quantised.scales)
    if not count:
        return Shape(bits=bits, block=block, sent=0, base=1, cut=0, centre=0, rice=0)
    centre = int(quantised.scales.sum()) // count
    return Shape(
        bits=bits,
        block=block,
        sent=len(quantised.codes),
        base=quantised.base,
        cut=quantised.cut,
        centre=centre,
        rice=_rice(int(_folded(quantised.scales - centre).sum()), count),
    )


def write(writer: Writer, shape: Shape, scales: Integers, codes: Integers) -> None:
    """Write scales, a slice at a time, then codes."""
    for start in range(0, shape.blocks, SLICE):
        folded = _folded(scales[start : start + SLICE] - shape.centre)
        writer.unary(folded >> shape.rice)
        writer.fields(folded & ((1 << shape.rice) - 1), shape.rice)
    writer.fields(codes, shape.bits - 1)


def check(reader: Reader, shape: Shape) -> None:
    """Read past scales and codes, with memory for a slice of them.

    Raises:
        Malformed: a scale is not a positive finite number, or the bits end too early.
        NotCanonical: the mean of the scales or their Rice parameter is another one.
    """
    total = folded = 0
    for scales in _slices(reader, shape):
        if int(scales.min()) < 1 or int(scales.max()) > _TOP >> shape.cut:
            raise Malformed("couldn't decode update: a scale is not a positive finite number")
        total += int(scales.sum())
        folded += int(_folded(scales - shape.centre).sum())
    if shape.sent and (total // shape.blocks, _rice(folded, shape.blocks)) != (shape.centre, shape.rice):
        raise NotCanonical("couldn't decode update: the mean of the scales or their Rice parameter is another one")
    reader.skip(shape.sent * (shape.bits - 1))


def read(reader: Reader, shape: Shape) -> tuple[Integers, Integers]:
    """Return scales [blocks] and codes [sent] out of bits that `check` has passed."""
    scales = [np.zeros(0, dtype=np.int64), *_slices(reader, shape)]
    return np.concatenate(scales), reader.fields(shape.sent, shape.bits - 1).astype(np.int64)


def _slices(reader: Reader, shape: Shape) -> Iterator[Integers]:
    for start in range(0, shape.blocks, SLICE):
        count = min(SLICE, shape.blocks - start)
        folded = reader.unary(count, reader.left).astype(np.int64)
        if int(folded.max()) << shape.rice > 2 * _TOP:
            raise Malformed("couldn't decode update: a scale is not a positive finite number")
        folded = folded << shape.rice | reader.fields(count, shape.rice)
        yield shape.centre + (folded >> 1 ^ -(folded & 1))


def _folded(numbers: Integers) -> Integers:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)


def _rice(total: int, count: int) -> int:
    return (5 * total // (9 * count)).bit_length()
