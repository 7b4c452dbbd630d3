"""LEB128 varints, whole arrays at a time.

Encodes gaps below 2^28 in one to four bytes, seven bits each, lowest first, the top bit set on all but the last byte.
Knows nothing of what the numbers mean. Law: `decode(encode(x), len(x)) == x`; only the shortest spelling is accepted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.errors import Malformed, NotCanonical

MAX_VALUE = 2**28 - 1
MAX_WIDTH = 4

_THRESHOLDS = (1 << 7, 1 << 14, 1 << 21)


def encode(values: npt.NDArray[np.int64]) -> bytes:
    """Return the varints of `values` [k], each in 0..2^28-1, one after the other."""
    widths = np.ones(len(values), dtype=np.int64)
    for threshold in _THRESHOLDS:
        widths += values >= threshold
    ends = np.cumsum(widths)
    starts = ends - widths
    out = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    for place in range(MAX_WIDTH):
        rows = np.flatnonzero(widths > place)
        piece = (values[rows] >> (7 * place)) & 0x7F
        more = widths[rows] > place + 1
        out[starts[rows] + place] = piece | (more.astype(np.int64) << 7)
    return out.tobytes()


def longest(count: int, total: int) -> int:
    """The most bytes that `count` varints can take when their values sum up to at most `total`.

    A value of 2^7 or more costs 128 of the sum for its second byte, one of 2^14 or more 16384 for its third, and so on.
    """
    return count + sum(min(count, total // threshold) for threshold in _THRESHOLDS)


def decode(data: bytes, count: int) -> npt.NDArray[np.int64]:
    """Return the `count` values [count] whose varints are exactly `data`.

    Raises:
        Malformed: too few or too many values, one longer than four bytes, or a last one that is cut off.
        NotCanonical: a value in more bytes than it needs.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) != count or (count and int(ends[-1]) != len(raw) - 1) or (not count and len(raw)):
        raise Malformed(f"couldn't decode varints: {count} complete values are expected")
    if not count:
        return np.zeros(0, dtype=np.int64)
    starts = np.empty(count, dtype=np.int64)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    widths = ends - starts + 1
    if int(widths.max()) > MAX_WIDTH:
        raise Malformed(f"couldn't decode varints: a value takes more than {MAX_WIDTH} bytes")
    if bool(((widths > 1) & (raw[ends] == 0)).any()):
        raise NotCanonical("couldn't decode varints: a value is longer than it needs to be")
    values = raw[starts].astype(np.int64) & 0x7F
    for place in range(1, int(widths.max())):
        rows = np.flatnonzero(widths > place)
        values[rows] |= (raw[starts[rows] + place].astype(np.int64) & 0x7F) << (7 * place)
    return values
