"""The sparse update in its first version: what values of 8 bits are written in, and what older collectives hold.

Where magnitudes have many levels, rows and signs save little: version 2 is 6 % smaller there and is read eight times slower.

Indices as delta varints or as a bitmap, values as int8 or int4 with one fp16 scale per block, both through zstd (FORMAT.md,
"Sparse update, version 1"). Invariant: every size is checked before anything of that size is allocated, and every part is
checked a slice at a time before the arrays are; a bitmap alone takes its size, coordinates / 8, from the adapter.
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
BLOCKS = frozenset(1 << exponent for exponent in range(16))
LEVELS = {8: 127, 4: 7}

DELTA_VARINT = 0
BITMAP = 1

_HEADER = struct.Struct("<4sBBBBIIII")
_LEAST_WINDOW = 1024  # zstd knows no smaller one
_SLACK = 40 * 1024  # what a part may unpack to beyond twice the bytes of the update
_SLICE, _LONG_SLICE = 512, 16 * 1024
_LEVEL = 9
_PASSES = 8
_LARGEST_SCALE = 65504  # the largest finite fp16


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


def is_version_1(data: bytes) -> bool:
    """Whether the first bytes say so."""
    return data[:5] == MAGIC + bytes([VERSION])


def encode(
    *, coordinates: int, positions: npt.NDArray[np.int64], values: npt.NDArray[np.float64], bits: int, block: int
) -> bytes | None:
    """Return the bytes of an update that adds `values` [k] at `positions` [k]; None where a reader would refuse them.

    A reader takes no part that unpacks to much more than the whole, and equal values may be packed as tightly as that.

    Raises:
        Malformed: a value is not finite or too large for its scale.
    """
    kept, steps, scales = _quantise(values, LEVELS[bits], block)
    encoding, index_frame, index_bytes = _encode_indices(positions[kept], coordinates)
    packed = _pack(steps, bits)
    value_frame = _compress(packed)
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
    data = head + index_frame + scales.astype("<f2").tobytes() + value_frame
    most = 2 * len(data) + _SLACK
    return data if max(len(packed), index_bytes if encoding == DELTA_VARINT else 0) <= most else None


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
    if float(peaks.max()) > _LARGEST_SCALE:
        raise Malformed("couldn't encode update: a value is too large for its scale")
    scales = peaks.astype(np.float16)
    return np.where(scales < peaks, np.nextafter(scales, np.float16(np.inf)), scales)


def _encode_indices(positions: npt.NDArray[np.int64], coordinates: int) -> tuple[int, bytes, int]:
    """The shorter of both encodings, its frame, and the bytes that the frame unpacks to."""
    gaps = varints.encode(np.diff(positions, prepend=-1) - 1)
    bits = np.zeros(coordinates, dtype=np.uint8)
    bits[positions] = 1
    bitmap = np.packbits(bits, bitorder="little").tobytes()
    frames = _compress(gaps), _compress(bitmap)
    if len(frames[1]) < len(frames[0]):
        return BITMAP, frames[1], len(bitmap)
    return DELTA_VARINT, frames[0], len(gaps)


def _pack(steps: npt.NDArray[np.int64], bits: int) -> bytes:
    if bits == 8:
        return steps.astype(np.int8).tobytes()
    nibbles = np.zeros(len(steps) + len(steps) % 2, dtype=np.uint8)
    nibbles[: len(steps)] = steps & 0x0F
    return (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True, write_checksum=False).compress(data)


def decode(
    data: bytes, *, coordinates: int, max_sent: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], int, int]:
    """Return indices [sent], units [sent], bits and block of the update whose bytes are `data`.

    Raises:
        Malformed: not an update of this adapter.
        NotCanonical: an index or the padding is spelt in a second way.
        TooLarge: more coordinates or bytes than the arguments allow; nothing of that size was allocated.
    """
    header = _read_header(data, coordinates=coordinates, max_sent=max_sent)
    at = _HEADER.size + header.index_bytes
    scales_end = at + 2 * header.blocks
    most = 2 * len(data) + _SLACK
    _check_scales(data[at:scales_end])
    places = _unpacked_indices(data[_HEADER.size : at], header, most)
    _check_indices(places, header)
    packed = _decompress(data[scales_end:], header.packed, min(header.packed, most))
    _check_values(packed, header)
    units = np.repeat(_scale_units(data[at:scales_end]), header.block)[: header.sent]
    units *= _steps(packed, header.bits)[: header.sent]
    return _indices(places, header), units, header.bits, header.block


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


def _unpacked_indices(frame: bytes, header: _Header, most: int) -> bytes:
    if header.encoding == BITMAP:
        size = -(-header.coordinates // 8)
        return _decompress(frame, size, size)
    longest = varints.longest(header.sent, header.coordinates - header.sent)
    return _decompress(frame, header.sent, min(longest, most))


def _indices(content: bytes, header: _Header) -> npt.NDArray[np.uint32]:
    if header.encoding == BITMAP:
        bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), bitorder="little")
        return np.flatnonzero(bits.view(bool)).astype(np.uint32)  # four times faster than of bytes
    return (np.cumsum(varints.decode(content, header.sent) + 1) - 1).astype(np.uint32)


def _scale_units(data: bytes) -> npt.NDArray[np.int64]:
    """Scales in units: an fp16 is a multiple of 2^-24, so this is exact."""
    return np.ldexp(np.frombuffer(data, dtype="<f2").astype(np.float64), UNIT_BITS).astype(np.int64)


def _steps(packed: bytes, bits: int) -> npt.NDArray[np.int8]:
    raw = np.frombuffer(packed, dtype=np.uint8)
    if bits == 8:
        return raw.view(np.int8)
    steps = np.empty(2 * len(raw), dtype=np.int8)
    steps[0::2] = raw & 0x0F
    steps[1::2] = raw >> 4
    steps -= (steps & 8) << 1
    return steps


# -- checks, a slice at a time ---------------------------------------------------------------------------------------
def _step(content: bytes) -> int:
    """Bytes of a slice: long enough to be quick, short enough that what is made of it stays a small part of the whole."""
    return min(_LONG_SLICE, max(_SLICE, len(content) // 8))


def _check_scales(data: bytes) -> None:
    step = _step(data)
    for start in range(0, len(data), step):
        scales = np.frombuffer(data[start : start + step], dtype="<f2")
        if not bool((np.isfinite(scales) & (scales > 0)).all()):
            raise Malformed("couldn't decode update: a scale is not a positive finite number")


def _check_indices(content: bytes, header: _Header) -> None:
    if header.encoding == BITMAP:
        _check_bitmap(content, header)
        return
    at = sent = 0
    last, step = -1, _step(content)
    while at < len(content):
        piece = content[at : at + step]
        whole = max((place + 1 for place, byte in enumerate(piece[-varints.MAX_WIDTH :]) if byte < 0x80), default=0)
        if not whole:
            raise Malformed("couldn't decode update: an index is cut off or takes more than four bytes")
        piece = piece[: max(0, len(piece) - varints.MAX_WIDTH) + whole]
        count = int(np.count_nonzero(np.frombuffer(piece, dtype=np.uint8) < 0x80))
        last += int(varints.decode(piece, count).sum()) + count
        sent += count
        at += len(piece)
    if sent != header.sent or last >= header.coordinates:
        raise Malformed("couldn't decode update: an index beyond the coordinates, or too few or too many")


def _check_bitmap(bitmap: bytes, header: _Header) -> None:
    raw, step = np.frombuffer(bitmap, dtype=np.uint8), _step(bitmap)
    ones = sum(int(np.bitwise_count(raw[at : at + step]).sum()) for at in range(0, len(raw), step))
    if ones != header.sent:
        raise Malformed("couldn't decode update: the bitmap does not hold as many indices as were sent")
    if header.coordinates % 8 and bitmap[-1] >> header.coordinates % 8:
        raise NotCanonical("couldn't decode update: the bitmap's padding is not zero")


def _check_values(packed: bytes, header: _Header) -> None:
    step = _step(packed)
    for start in range(0, len(packed), step):
        steps = _steps(packed[start : start + step], header.bits)
        if header.bits == 4 and start + step >= len(packed) and header.sent % 2:
            if steps[-1]:
                raise NotCanonical("couldn't decode update: the padding of the values is not zero")
            steps = steps[:-1]
        if np.count_nonzero(steps) < len(steps) or steps.min(initial=0) < -LEVELS[header.bits]:
            raise Malformed("couldn't decode update: a value is zero or out of range")


def _decompress(frame: bytes, least: int, most: int) -> bytes:
    """Return what is in one zstd frame (RFC 8878) that declares between `least` and `most` bytes.

    Its header is checked before libzstd makes a context, whose size (94 KiB) does not depend on the frame.
    """
    if not frame.startswith(zstandard.FRAME_HEADER):  # a skippable frame begins otherwise, and declares its own length
        raise Malformed("couldn't decode update: a part is not a zstd frame")
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
