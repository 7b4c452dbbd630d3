"""Bits one after the other: fields, unary numbers, and cells (bits that are mostly 0 or mostly 1) as Rice-coded gaps.

The highest bit of each byte comes first. Knows nothing of what the bits mean. Invariants: a reader never allocates more than
a small multiple of what it is asked for, and every bit string it accepts is the only one that says the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.errors import Malformed, NotCanonical

Bits = npt.NDArray[np.uint8]  # one 0 or 1 an element

_WINDOW = 2048


class Writer:
    """Collects bits."""

    def __init__(self) -> None:
        self._parts: list[Bits] = []

    def raw(self, bits: Bits) -> None:
        """Append bits as they are."""
        self._parts.append(bits)

    def fields(self, numbers: npt.NDArray[np.int64], width: int) -> None:
        """Append numbers below 2^width, `width` bits each, the highest first."""
        places = np.arange(width - 1, -1, -1)
        self._parts.append(((numbers[:, None] >> places) & 1).astype(np.uint8).ravel())

    def unary(self, numbers: npt.NDArray[np.int64]) -> None:
        """Append each number as so many zeros and a one."""
        ends = np.cumsum(numbers + 1)
        bits = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        bits[ends - 1] = 1
        self._parts.append(bits)

    def cells(self, cells: Bits, *, known: bool = False) -> None:
        """Append cells [n]; with `known` the reader knows how many are 1, else that is written first."""
        ones = int(np.count_nonzero(cells))
        if not known:
            self.fields(np.array([ones]), len(cells).bit_length())
        few = min(ones, len(cells) - ones)
        if few:
            exponent = _exponent(len(cells), few)
            places = np.flatnonzero(cells == (2 * ones <= len(cells)))
            gaps = np.diff(places, prepend=-1) - 1
            self.unary(gaps >> exponent)
            self.fields(gaps & ((1 << exponent) - 1), exponent)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def to_bytes(self) -> bytes:
        """The bytes; the last one is filled up with zeros."""
        return np.packbits(np.concatenate(self._parts)).tobytes() if self._parts else b""


class Reader:
    """Takes bits from the front of `data`."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = np.frombuffer(data, dtype=np.uint8)
        self._end = 8 * len(self._data)
        self._at = 0

    @property
    def left(self) -> int:
        """How many bits are left."""
        return self._end - self._at

    def raw(self, count: int) -> Bits:
        """The next `count` bits [count]."""
        bits = self._peek(count)
        self.skip(count)
        return bits

    def skip(self, count: int) -> None:
        """Pass over bits that are read elsewhere."""
        if self._at + count > self._end:
            raise Malformed("couldn't read bits: they end too early")
        self._at += count

    def number(self, width: int) -> int:
        """The next number of `width` bits, the highest first."""
        at = self._at
        self.skip(width)
        piece = int.from_bytes(self._data[at >> 3 : (at + width + 7) >> 3].tobytes(), "big")
        return piece >> (-(at + width) & 7) & ((1 << width) - 1)

    def fields(self, count: int, width: int) -> npt.NDArray[np.uint16]:
        """The next `count` numbers of `width` bits (at most 16), the highest bit first."""
        return _numbers(self.raw(count * width), count, width)

    def ahead(self, count: int, width: int) -> npt.NDArray[np.uint16]:
        """What `fields` would return, without taking it; zeros where the data ends before."""
        bits = np.zeros(count * width, dtype=np.uint8)
        there = self._peek(count * width)
        bits[: len(there)] = there
        return _numbers(bits, count, width)

    def unary(self, count: int, most: int) -> npt.NDArray[np.int32]:
        """The next `count` unary numbers, whose sum is at most `most`."""
        ends = np.empty(count, dtype=np.int32)
        found = start = 0
        while found < count:
            if start >= count + most:
                raise Malformed("couldn't read bits: a number is cut off or too large")
            places = self._peek(min(_WINDOW, count + most - start), start).nonzero()[0][: count - found]
            ends[found : found + len(places)] = places + start
            found += len(places)
            start += _WINDOW
        if count:
            self._at += int(ends[-1]) + 1
            ends[1:] -= ends[:-1] + 1  # the right side is computed first
        return ends

    def cells(self, count: int, ones: int | None = None) -> Bits:
        """The next `count` cells; `ones` is how many of them are 1 where that is known."""
        if ones is None:
            ones = self.number(count.bit_length())
        if ones > count:
            raise Malformed("couldn't read bits: more cells are set than there are")
        rare = 2 * ones <= count
        few = ones if rare else count - ones
        if not few:
            return np.full(count, not rare, dtype=np.uint8)
        exponent = _exponent(count, few)
        cells = self._dense(count, few) if not exponent else self._sparse(count, few, exponent)
        if not rare:
            cells ^= 1
        return cells

    def _dense(self, count: int, few: int) -> Bits:
        """Gaps in unary alone are the cells as they are, up to the last that is set."""
        cells = np.zeros(count, dtype=np.uint8)
        found = 0
        for start in range(0, count, _WINDOW):
            there = self._peek(min(_WINDOW, count - start), start)
            ones = int(np.count_nonzero(there))
            if found + ones >= few:
                there = there[: int(there.cumsum(dtype=np.int16).searchsorted(np.int16(few - found))) + 1]
            cells[start : start + len(there)] = there
            found += ones
            if found >= few:
                self._at += start + len(there)
                return cells
        raise Malformed("couldn't read bits: a cell beyond the last")

    def _sparse(self, count: int, few: int, exponent: int) -> Bits:
        gaps = self.unary(few, (count - few) >> exponent)
        gaps <<= exponent
        gaps |= self.fields(few, exponent)
        gaps += 1
        np.cumsum(gaps, out=gaps)
        gaps -= 1
        if int(gaps[-1]) >= count:
            raise Malformed("couldn't read bits: a cell beyond the last")
        cells = np.zeros(count, dtype=np.uint8)
        for start in range(0, few, _WINDOW):
            cells[gaps[start : start + _WINDOW]] = 1  # in slices: numpy makes an index of 8 bytes out of each
        return cells

    def finish(self) -> None:
        """Refuse anything but zeros that fill up the last byte."""
        rest = self._end - self._at
        if rest >= 8:
            raise Malformed("couldn't read bits: something follows the last one")
        if self._peek(rest).any():
            raise NotCanonical("couldn't read bits: the padding is not zero")

    def _peek(self, count: int, ahead: int = 0) -> Bits:
        """Up to `count` bits, fewer where the data ends."""
        at = self._at + ahead
        first = at & 7
        bits: Bits = np.unpackbits(self._data[at >> 3 : (at + count + 7) >> 3])
        return bits[first : first + count]


def _numbers(bits: Bits, count: int, width: int) -> npt.NDArray[np.uint16]:
    if width <= 1:
        return bits.astype(np.uint16) if width else np.zeros(count, dtype=np.uint16)
    places = 8 if width <= 8 else 16
    wide = np.zeros((count, places), dtype=np.uint8)
    wide[:, places - width :] = bits.reshape(count, width)
    packed = np.packbits(wide)
    return packed.astype(np.uint16) if places == 8 else packed.view(">u2").astype(np.uint16)


def _exponent(count: int, few: int) -> int:
    """The Rice parameter for `few` marks among `count` cells: the mean gap, halved and halved (Rice, Plaunt 1971)."""
    return (5 * (count - few) // (9 * few)).bit_length()
