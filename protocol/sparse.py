"""The sparse update: which coordinates of an adapter change, and by how much (FORMAT.md, "Sparse update").

Indices as delta varints or as a bitmap, values as int8 or int4 with one fp16 scale per block, both through zstd. Knows
nothing of models, members or files. Invariants: every size is checked against what `coordinates` and `max_sent` allow
before anything of that size is allocated; a decoded update is exact in integer units of 2^-24 and none of them is zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from protocol import varints
from protocol.errors import Malformed, NotCanonical, TooLarge

MAGIC = b"FNSU"
VERSION = 1
UNIT_BITS = 24
MAX_COORDINATES = 2**28
BLOCKS = frozenset(1 << exponent for exponent in range(16))
LEVELS = {8: 127, 4: 7}
LARGEST_SCALE = 65504  # the largest finite fp16
MAX_UNITS = LARGEST_SCALE * 2**UNIT_BITS * LEVELS[8]  # below 2^47

DELTA_VARINT = 0
BITMAP = 1

_HEADER = struct.Struct("<4sBBBBIIII")
_LEVEL = 9
_PASSES = 8
_LEAST_WINDOW = 1024  # zstd knows no smaller one


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
        """The values as float32 [sent]: exact, since 11 bits of scale times 7 bits of value fit in 24."""
        return np.ldexp(self.units.astype(np.float64), -UNIT_BITS).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    bits: int
    encoding: int
    block: int
    coordinates: int
    sent: int
    index_bytes: int
    value_bytes: int

    @property
    def blocks(self) -> int:
        return -(-self.sent // self.block)

    @property
    def packed(self) -> int:
        """Bytes of the packed values before compression."""
        return self.sent if self.bits == 8 else (self.sent + 1) // 2


def encode(
    *, coordinates: int, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], bits: int, block: int
) -> bytes:
    """Return the bytes of an update that adds `values` [k] at `indices` [k], quantised to `bits`.

    A value that rounds to zero is left out (it stays in the sender's residual), so `decode` may return fewer than k.

    Raises:
        Malformed: indices not ascending or out of range, values not finite or too large, unknown bits or block.
    """
    if bits not in LEVELS or block not in BLOCKS or not 0 < coordinates <= MAX_COORDINATES:
        raise Malformed(f"couldn't encode update: {bits} bits in blocks of {block} over {coordinates} coordinates")
    if indices.ndim != 1 or indices.shape != values.shape:
        raise Malformed("couldn't encode update: as many values as indices are expected")
    positions = indices.astype(np.int64)
    if len(positions) and not (
        0 <= positions[0] <= positions[-1] < coordinates and bool((np.diff(positions) > 0).all())
    ):
        raise Malformed("couldn't encode update: indices are not strictly ascending below the coordinates")
    kept, steps, scales = _quantise(values.astype(np.float64), LEVELS[bits], block)
    encoding, index_frame = _encode_indices(positions[kept], coordinates)
    value_frame = _compress(_pack(steps, bits))
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        bits,
        encoding,
        block.bit_length() - 1,
        coordinates,
        len(steps),
        len(index_frame),
        len(value_frame),
    )
    return head + index_frame + scales.astype("<f2").tobytes() + value_frame


def decode(data: bytes, *, coordinates: int, max_sent: int) -> SparseUpdate:
    """Return the update whose bytes are `data`, for an adapter of `coordinates` with at most `max_sent` of them sent.

    Law: `decode(encode(x))` is x rounded to its block's steps, and two decoders agree on every unit.

    Raises:
        Malformed: not an update of this adapter.
        NotCanonical: an index or the padding is spelt in a second way.
        TooLarge: more coordinates or bytes than the arguments allow; nothing of that size was allocated.
    """
    header = _read_header(data, coordinates=coordinates, max_sent=max_sent)
    at = _HEADER.size + header.index_bytes
    scales_end = at + 2 * header.blocks
    indices = _decode_indices(data[_HEADER.size : at], header)
    scale_units = _scale_units(data[at:scales_end])
    packed = _decompress(data[scales_end:], header.packed, header.packed)
    steps = _unpack(packed, header)
    units = np.repeat(scale_units, header.block)[: header.sent] * steps
    indices.setflags(write=False)
    units.setflags(write=False)
    return SparseUpdate(coordinates=coordinates, indices=indices, units=units, bits=header.bits, block=header.block)


def _read_header(data: bytes, *, coordinates: int, max_sent: int) -> _Header:
    if len(data) < _HEADER.size:
        raise Malformed("couldn't decode update: shorter than its header")
    magic, version, bits, encoding, exponent, declared, sent, index_bytes, value_bytes = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise Malformed("couldn't decode update: not a sparse update of version 1")
    if bits not in LEVELS or encoding not in (DELTA_VARINT, BITMAP):
        raise Malformed(f"couldn't decode update: unknown bits {bits} or index encoding {encoding}")
    if 1 << exponent not in BLOCKS:
        raise TooLarge(f"couldn't decode update: a block of 2^{exponent} values")
    if declared != coordinates:
        raise Malformed(f"couldn't decode update: made for {declared} coordinates, the adapter has {coordinates}")
    if sent > min(max_sent, coordinates):
        raise TooLarge(f"couldn't decode update: {sent} coordinates sent, the limit is {min(max_sent, coordinates)}")
    header = _Header(
        bits=bits,
        encoding=encoding,
        block=1 << exponent,
        coordinates=declared,
        sent=sent,
        index_bytes=index_bytes,
        value_bytes=value_bytes,
    )
    if len(data) != _HEADER.size + index_bytes + 2 * header.blocks + value_bytes:
        raise Malformed("couldn't decode update: its parts do not fill it exactly")
    return header


def _quantise(
    values: npt.NDArray[np.float64], levels: int, block: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """Return the positions kept [j], their steps [j] in -levels..levels without 0, and the scales [ceil(j / block)].

    Leaving out values that round to zero shifts the blocks, hence the passes; after the last one a value that still
    rounds to zero takes the smallest step of its sign.
    """
    if not bool(np.isfinite(values).all()):
        raise Malformed("couldn't encode update: a value is not finite")
    kept = np.flatnonzero(values)
    for _ in range(_PASSES):
        ratios, _ = _scaled(values[kept], levels, block)
        sent = np.rint(ratios) != 0
        if bool(sent.all()):
            break
        kept = kept[sent]
    ratios, scales = _scaled(values[kept], levels, block)
    steps = np.rint(ratios)
    return kept, np.where(steps == 0, np.sign(ratios), steps).astype(np.int64), scales


def _scaled(
    values: npt.NDArray[np.float64], levels: int, block: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float16]]:
    """Return each value over its block's scale, in -levels..levels, and the scales."""
    scales = _block_scales(values, levels, block)
    return values / np.repeat(scales.astype(np.float64), block)[: len(values)], scales


def _block_scales(values: npt.NDArray[np.float64], levels: int, block: int) -> npt.NDArray[np.float16]:
    """The largest value of each block over the levels, rounded up to an fp16, so that no value is cut off."""
    if not len(values):
        return np.zeros(0, dtype=np.float16)
    peaks = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), block)) / levels
    if float(peaks.max()) > LARGEST_SCALE:
        raise Malformed("couldn't encode update: a value is too large for its scale")
    scales = peaks.astype(np.float16)
    return np.where(scales < peaks, np.nextafter(scales, np.float16(np.inf)), scales)


def _scale_units(data: bytes) -> npt.NDArray[np.int64]:
    """Scales in units: an fp16 is a multiple of 2^-24, so this is exact."""
    scales = np.frombuffer(data, dtype="<f2")
    if not bool((np.isfinite(scales) & (scales > 0)).all()):
        raise Malformed("couldn't decode update: a scale is not a positive finite number")
    return np.ldexp(scales.astype(np.float64), UNIT_BITS).astype(np.int64)


def _encode_indices(positions: npt.NDArray[np.int64], coordinates: int) -> tuple[int, bytes]:
    gaps = _compress(varints.encode(np.diff(positions, prepend=-1) - 1))
    bits = np.zeros(coordinates, dtype=np.uint8)
    bits[positions] = 1
    bitmap = _compress(np.packbits(bits, bitorder="little").tobytes())
    return (BITMAP, bitmap) if len(bitmap) < len(gaps) else (DELTA_VARINT, gaps)


def _decode_indices(frame: bytes, header: _Header) -> npt.NDArray[np.uint32]:
    if header.encoding == BITMAP:
        size = -(-header.coordinates // 8)
        return _from_bitmap(_decompress(frame, size, size), header)
    most = varints.longest(header.sent, header.coordinates - header.sent)
    positions = np.cumsum(varints.decode(_decompress(frame, header.sent, most), header.sent) + 1) - 1
    if header.sent and int(positions[-1]) >= header.coordinates:
        raise Malformed("couldn't decode update: an index beyond the coordinates")
    return positions.astype(np.uint32)


def _from_bitmap(bitmap: bytes, header: _Header) -> npt.NDArray[np.uint32]:
    raw = np.frombuffer(bitmap, dtype=np.uint8)
    if int(np.bitwise_count(raw).sum()) != header.sent:
        raise Malformed("couldn't decode update: the bitmap does not hold as many indices as were sent")
    bits = np.unpackbits(raw, bitorder="little")
    if bool(bits[header.coordinates :].any()):
        raise NotCanonical("couldn't decode update: the bitmap's padding is not zero")
    return np.flatnonzero(bits).astype(np.uint32)


def _pack(steps: npt.NDArray[np.int64], bits: int) -> bytes:
    if bits == 8:
        return steps.astype(np.int8).tobytes()
    nibbles = np.zeros(len(steps) + len(steps) % 2, dtype=np.uint8)
    nibbles[: len(steps)] = steps & 0x0F
    return (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()


def _unpack(packed: bytes, header: _Header) -> npt.NDArray[np.int64]:
    raw = np.frombuffer(packed, dtype=np.uint8)
    if header.bits == 8:
        steps = raw.view(np.int8).astype(np.int64)
    else:
        nibbles = np.empty(2 * len(raw), dtype=np.int8)
        nibbles[0::2] = raw & 0x0F
        nibbles[1::2] = raw >> 4
        if bool(nibbles[header.sent :].any()):
            raise NotCanonical("couldn't decode update: the padding of the values is not zero")
        steps = nibbles[: header.sent].astype(np.int64)
        steps -= (steps & 8) << 1
    if bool((steps == 0).any()) or bool((steps < -LEVELS[header.bits]).any()):
        raise Malformed("couldn't decode update: a value is zero or out of range")
    return steps


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(data)


def _decompress(frame: bytes, least: int, most: int) -> bytes:
    """Return what is in one zstd frame (RFC 8878) that declares between `least` and `most` bytes."""
    try:
        shape = zstandard.get_frame_parameters(frame)
        size = shape.content_size  # 2^64-1 when the frame does not say
        if not least <= size <= most or shape.window_size > max(size, _LEAST_WINDOW):
            raise TooLarge(f"couldn't decode update: a part declares {size} bytes, {least} to {most} are possible")
        decompressor = zstandard.ZstdDecompressor(max_window_size=max(size, _LEAST_WINDOW))
        data: bytes = decompressor.decompress(
            frame, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as e:
        raise Malformed(f"couldn't decode update: {e}") from None
    if len(data) != size:
        raise Malformed("couldn't decode update: a part is not as long as it declares")
    return data
