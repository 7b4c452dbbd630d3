"""The sparse update: which coordinates of an adapter change, and by how much (FORMAT.md, "Sparse update").

The value, and the door: `encode` writes version 2 (header, grid of coordinates and signs, scales, magnitudes), and version 1
for values of 8 bits; `decode` reads both. Knows nothing of models, members or files. Invariants: version 2 is read through
once in memory bounded by its own size before the arrays it stands for are allocated; a decoded update is exact in integer
units of 2^-24 and none of them is zero; two byte strings of version 2 never stand for the same coordinates, signs, codes
and scales of one shape.
"""

from __future__ import annotations

import dataclasses
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol import grid, quantise, sparse1
from protocol.bits import Reader, Writer
from protocol.errors import Malformed, NotCanonical, TooLarge

MAGIC = b"FNSU"
VERSION = 2
UNIT_BITS = quantise.UNIT_BITS
MAX_COORDINATES = 2**28
BLOCKS = frozenset(1 << exponent for exponent in range(16))
BITS = tuple(quantise.BASES)  # of a value: its sign and log2 of the magnitudes
LEVELS = {bits: quantise.levels(bits) for bits in BITS}
LARGEST_SCALE = quantise.LARGEST_SCALE
MAX_UNITS = LARGEST_SCALE * 2**UNIT_BITS * quantise.LARGEST  # below 2^47

_HEADER = struct.Struct("<4sBBBBIIBBBBBH3s")
_LEAST_PAGE = 8  # exponents: a page ends with 256 rows at least, or more where the update is so large
_MOST_PAGE = 12
_PAGE_BYTES, _PAGE_SLACK = 56, 20_000
_SAMPLE = 8192  # coordinates from which a writer chooses group size and coding of signs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseUpdate:
    """A decoded update: `units[i] * 2^-24` is added at coordinate `indices[i]`; the arrays are read-only."""

    coordinates: int
    indices: npt.NDArray[np.uint32]  # [sent], strictly ascending
    units: npt.NDArray[np.int64]  # [sent], never zero
    bits: int
    block: int

    @property
    def sent(self) -> int:
        """How many coordinates it changes."""
        return len(self.indices)

    def values(self) -> npt.NDArray[np.float32]:
        """The values as float32 [sent]: exact, since 11 bits of scale times 8 bits of magnitude fit in 24."""
        return np.ldexp(self.units.astype(np.float64), -UNIT_BITS).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that the bytes of version 2 say; `write(parts)` gives these bytes and no other."""

    grid: grid.Shape
    values: quantise.Shape
    positions: npt.NDArray[np.uint32]  # [sent], ascending
    minus: npt.NDArray[np.uint8]  # [sent], 1 is a minus
    codes: npt.NDArray[np.int64]  # [sent]
    scales: npt.NDArray[np.int64]  # [blocks], cut fp16 bits

    def units(self) -> npt.NDArray[np.int64]:
        """The values in units of 2^-24 [sent]."""
        scales = quantise.scale_units(self.scales, self.values.cut)
        units = np.repeat(scales, self.values.block)[: self.values.sent]
        units *= self.codes + self.values.base
        np.negative(units, out=units, where=self.minus.view(bool))
        return units


def encode(
    *, coordinates: int, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], bits: int, block: int
) -> bytes:
    """Return the bytes of an update that adds `values` [k] at `indices` [k], quantised to `bits`.

    A value nearer to zero than to the smallest magnitude of its block is left out (it stays in the sender's residual), so
    `decode` may return fewer than k. Group size and the coding of signs are those that take the fewest bytes.

    Raises:
        Malformed: indices not ascending or out of range, values not finite or too large, unknown bits or block.
    """
    positions = _positions(coordinates, indices, values, bits, block)
    if bits == max(sparse1.LEVELS):
        data = sparse1.encode(
            coordinates=coordinates, positions=positions, values=values.astype(np.float64), bits=bits, block=block
        )
        if data is not None:
            return data
    return _in_grid(coordinates, positions, values, bits, block)


def _positions(
    coordinates: int, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], bits: int, block: int
) -> npt.NDArray[np.int64]:
    if bits not in BITS or block not in BLOCKS or not 0 < coordinates <= MAX_COORDINATES:
        raise Malformed(f"couldn't encode update: {bits} bits in blocks of {block} over {coordinates} coordinates")
    if indices.ndim != 1 or indices.shape != values.shape:
        raise Malformed("couldn't encode update: as many values as indices are expected")
    positions = indices.astype(np.int64)
    if len(positions) and not (
        0 <= positions[0] <= positions[-1] < coordinates and bool((np.diff(positions) > 0).all())
    ):
        raise Malformed("couldn't encode update: indices are not strictly ascending below the coordinates")
    return positions


def in_grid(
    *, coordinates: int, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], bits: int, block: int
) -> bytes:
    """Return the bytes of version 2, whatever the bits (arguments and errors as `encode`)."""
    positions = _positions(coordinates, indices, values, bits, block)
    return _in_grid(coordinates, positions, values, bits, block)


def _in_grid(
    coordinates: int, positions: npt.NDArray[np.int64], values: npt.NDArray[np.float32], bits: int, block: int
) -> bytes:
    chosen = quantise.quantise(values.astype(np.float64), bits, block)
    positions = positions[chosen.kept]
    minus = (values[chosen.kept] < 0).astype(np.uint8)
    shape = _best_shape(coordinates, positions, minus)
    parts = Parts(
        grid=shape,
        values=quantise.shape_of(chosen, bits, block),
        positions=positions.astype(np.uint32),
        minus=minus,
        codes=chosen.codes,
        scales=chosen.scales,
    )
    return _with_wide_pages(parts)


def _best_shape(coordinates: int, positions: npt.NDArray[np.int64], minus: npt.NDArray[np.uint8]) -> grid.Shape:
    """The group size that takes the fewest bits, then the coding of signs that does, on the first coordinates sent."""
    first, signs = positions[:_SAMPLE], minus[:_SAMPLE]
    upto = coordinates if len(first) == len(positions) else int(first[-1]) + 1

    def size(shape: grid.Shape) -> int:
        writer = Writer()
        grid.write(writer, shape, first, signs)
        return len(writer)

    most = min(grid.MAX_GROUP, -(-upto // (grid.WIDTH * grid.UNIT_ROWS)))  # larger than all rows is no use
    shapes = [grid.shape_of(upto, group, 1 << _LEAST_PAGE, first) for group in range(1, max(1, most) + 1)]
    best = min(shapes, key=size) if len(shapes) > 1 else shapes[0]
    best = min((best, dataclasses.replace(best, signs=False)), key=size)
    if upto == coordinates:
        return best
    return dataclasses.replace(grid.shape_of(coordinates, best.group, best.page, positions), signs=best.signs)


def _with_wide_pages(parts: Parts) -> bytes:
    """The bytes with the largest page that an update of so many bytes may have."""
    data = write(parts)
    for exponent in range(_MOST_PAGE, _LEAST_PAGE, -1):
        if _may_have(1 << exponent, len(data)) and len(parts.positions) >> exponent:
            wide = write(dataclasses.replace(parts, grid=dataclasses.replace(parts.grid, page=1 << exponent)))
            if _may_have(1 << exponent, len(wide)):
                return wide
    return data


def _may_have(page: int, size: int) -> bool:
    return page == 1 << _LEAST_PAGE or page * _PAGE_BYTES <= size + _PAGE_SLACK


def write(parts: Parts) -> bytes:
    """Return the bytes of version 2 that say `parts`. Law: `write(read(data, ...)) == data` for all that `decode` accepts."""
    shape, values = parts.grid, parts.values
    writer = Writer()
    grid.write(writer, shape, parts.positions.astype(np.int64), parts.minus)
    quantise.write(writer, values, parts.scales, parts.codes)
    order = 0
    for kind in shape.order:
        order = order << 3 | kind
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        values.bits,
        values.block.bit_length() - 1,
        values.base,
        shape.coordinates,
        values.sent,
        shape.group,
        shape.page.bit_length() - 1,
        shape.signs,
        values.cut,
        values.rice,
        values.centre,
        order.to_bytes(3, "big"),
    )
    return head + writer.to_bytes()


def decode(data: bytes, *, coordinates: int, max_sent: int) -> SparseUpdate:
    """Return the update whose bytes are `data`, for an adapter of `coordinates` with at most `max_sent` of them sent.

    Law: `decode(encode(x))` is x rounded to its block's magnitudes, and two decoders agree on every unit.

    Raises:
        Malformed: not an update of this adapter.
        NotCanonical: something is spelt in a second way.
        TooLarge: more coordinates or bytes than the arguments allow; nothing of that size was allocated.
    """
    if sparse1.is_version_1(data):
        indices, units, bits, block = sparse1.decode(data, coordinates=coordinates, max_sent=max_sent)
    else:
        parts = read(data, coordinates=coordinates, max_sent=max_sent)
        indices, units, bits, block = parts.positions, parts.units(), parts.values.bits, parts.values.block
    indices.setflags(write=False)
    units.setflags(write=False)
    return SparseUpdate(coordinates=coordinates, indices=indices, units=units, bits=bits, block=block)


def read(data: bytes, *, coordinates: int, max_sent: int) -> Parts:
    """Return what bytes of version 2 say (arguments and errors as `decode`)."""
    shape, values = _read_header(data, coordinates=coordinates, max_sent=max_sent)
    body = memoryview(data)[_HEADER.size :]
    _check(body, shape, values)
    reader = Reader(body)
    positions = np.empty(values.sent, dtype=np.uint32)
    minus = np.empty(values.sent, dtype=np.uint8)
    at = 0
    for page in grid.read(reader, shape, again=True):
        row, column = np.nonzero(page.cells)
        positions[at : at + len(row)] = page.rows[row] * grid.WIDTH + column
        minus[at : at + len(row)] = page.minus[row, column]
        at += len(row)
    scales, codes = quantise.read(reader, values)
    return Parts(grid=shape, values=values, positions=positions, minus=minus, codes=codes, scales=scales)


def _read_header(data: bytes, *, coordinates: int, max_sent: int) -> tuple[grid.Shape, quantise.Shape]:
    if len(data) < _HEADER.size:
        raise Malformed("couldn't decode update: shorter than its header")
    magic, version, bits, exponent, base, declared, sent, *rest = _HEADER.unpack_from(data)
    group, page, signs, cut, rice, centre, order = rest
    if magic != MAGIC or version != VERSION:
        raise Malformed("couldn't decode update: not a sparse update of version 1 or 2")
    if bits not in BITS:
        raise Malformed(f"couldn't decode update: values of {bits} bits")
    if 1 << exponent not in BLOCKS:
        raise TooLarge(f"couldn't decode update: a block of 2^{exponent} values")
    if declared != coordinates:
        raise Malformed(f"couldn't decode update: made for {declared} coordinates, the adapter has {coordinates}")
    if sent > min(max_sent, coordinates):
        raise TooLarge(f"couldn't decode update: {sent} coordinates sent, the limit is {min(max_sent, coordinates)}")
    if not 1 <= group <= grid.MAX_GROUP or signs > 1:
        raise Malformed("couldn't decode update: unknown group size or coding of signs")
    if not _LEAST_PAGE <= page <= _MOST_PAGE or not _may_have(1 << page, len(data)):
        raise TooLarge(f"couldn't decode update: pages of 2^{page} rows in {len(data)} bytes")
    kinds = tuple(int.from_bytes(order, "big") >> 3 * place & 7 for place in reversed(range(grid.CLASSES)))
    if sorted(kinds) != list(range(grid.CLASSES)):
        raise Malformed("couldn't decode update: an order of density classes that leaves one out")
    shape = grid.Shape(coordinates=coordinates, group=group, page=1 << page, order=kinds, signs=bool(signs))
    values = quantise.Shape(bits=bits, block=1 << exponent, sent=sent, base=base, cut=cut, centre=centre, rice=rice)
    values.check()
    return shape, values


def _check(body: memoryview, shape: grid.Shape, values: quantise.Shape) -> None:
    """Read through once, a page at a time, and refuse whatever is not right; nothing is kept."""
    reader = Reader(body)
    sent, kinds, last = 0, np.zeros(grid.CLASSES, dtype=np.int64), -1
    for page in grid.read(reader, shape):
        sent += int(np.count_nonzero(page.cells))
        if sent > values.sent:
            raise Malformed("couldn't decode update: more coordinates than it says")
        kinds += np.bincount(page.classes.ravel(), minlength=grid.CLASSES)
        last = int(page.rows[-1]) * grid.WIDTH + int(page.cells[-1].nonzero()[0][-1])
        del page  # only one at a time
    if sent != values.sent:
        raise Malformed("couldn't decode update: fewer coordinates than it says")
    if last >= shape.coordinates:
        raise Malformed("couldn't decode update: an index beyond the coordinates")
    if grid.by_frequency(kinds) != shape.order:
        raise NotCanonical("couldn't decode update: density classes in another order than by frequency")
    quantise.check(reader, values)
    reader.finish()
