"""The sparse update in its first version: read, since released collectives hold it; never written any more.

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
_SLICE = 512


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
    _check_indices(_unpacked_indices(data[_HEADER.size : at], header, most), header)
    _check_values(_decompress(data[scales_end:], header.packed, min(header.packed, most)), header)
    indices = _indices(_unpacked_indices(data[_HEADER.size : at], header, most), header)
    steps = _unpack(_decompress(data[scales_end:], header.packed, header.packed), header.bits)[: header.sent]
    units = np.repeat(_scale_units(data[at:scales_end]), header.block)[: header.sent] * steps
    return indices, units, header.bits, header.block


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
        return np.flatnonzero(np.unpackbits(np.frombuffer(content, dtype=np.uint8), bitorder="little")).astype(
            np.uint32
        )
    return (np.cumsum(varints.decode(content, header.sent) + 1) - 1).astype(np.uint32)


def _scale_units(data: bytes) -> npt.NDArray[np.int64]:
    """Scales in units: an fp16 is a multiple of 2^-24, so this is exact."""
    return np.ldexp(np.frombuffer(data, dtype="<f2").astype(np.float64), UNIT_BITS).astype(np.int64)


def _unpack(packed: bytes, bits: int) -> npt.NDArray[np.int64]:
    raw = np.frombuffer(packed, dtype=np.uint8)
    if bits == 8:
        return raw.view(np.int8).astype(np.int64)
    steps = np.empty(2 * len(raw), dtype=np.int64)
    steps[0::2] = raw & 0x0F
    steps[1::2] = raw >> 4
    steps -= (steps & 8) << 1
    return steps


# -- checks, a slice at a time ---------------------------------------------------------------------------------------
def _check_scales(data: bytes) -> None:
    for start in range(0, len(data), _SLICE):
        scales = np.frombuffer(data[start : start + _SLICE], dtype="<f2")
        if not bool((np.isfinite(scales) & (scales > 0)).all()):
            raise Malformed("couldn't decode update: a scale is not a positive finite number")


def _check_indices(content: bytes, header: _Header) -> None:
    if header.encoding == BITMAP:
        _check_bitmap(content, header)
        return
    at = sent = 0
    last = -1
    while at < len(content):
        piece = content[at : at + _SLICE]
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
    raw = np.frombuffer(bitmap, dtype=np.uint8)
    ones = sum(int(np.bitwise_count(raw[at : at + _SLICE]).sum()) for at in range(0, len(raw), _SLICE))
    if ones != header.sent:
        raise Malformed("couldn't decode update: the bitmap does not hold as many indices as were sent")
    if header.coordinates % 8 and bitmap[-1] >> header.coordinates % 8:
        raise NotCanonical("couldn't decode update: the bitmap's padding is not zero")


def _check_values(packed: bytes, header: _Header) -> None:
    for start in range(0, len(packed), _SLICE):
        steps = _unpack(packed[start : start + _SLICE], header.bits)
        if header.bits == 4 and start + _SLICE >= len(packed) and header.sent % 2:
            if steps[-1]:
                raise NotCanonical("couldn't decode update: the padding of the values is not zero")
            steps = steps[:-1]
        if bool((steps == 0).any()) or bool((steps < -LEVELS[header.bits]).any()):
            raise Malformed("couldn't decode update: a value is zero or out of range")


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
