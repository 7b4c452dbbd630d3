"""Checks many lines of one feed at once: the quick way for the audit, when nothing is wrong.

`follow` says yes or no for a whole run and never why: one that it does not pass goes to the careful reader, which names the
fault and its place. Knows no stores and no signatures; `signed` gives what is left to verify. Law: a run that passes holds
exactly the entries that `entry.parse` accepts, save their signatures, one after the other from the given place on.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from operator import itemgetter, lt
from typing import Any, Final

from ledger import entry
from ledger.entry import KIND, MAX_BODY, MAX_LINE, NUMBER, SALT_BYTES, SEEN
from protocol import canon
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, MemberId

RawLine = tuple[Any, ...]
"""(seq, line, leaf), perhaps (..., salt, data), as stored."""

# A plain line (see `entry.PLAIN`) cut into columns: what stands before `seen` and the signature have a fixed width.
_OPENING: Final = b'{"e":{"body":"'
_BODY: Final = slice(len(_OPENING), len(_OPENING) + 64)
_NAMES: Final = slice(_BODY.stop, _BODY.stop + len('","collective":"","member":"","prev":"') + 2 * 64)
_PREV: Final = slice(_NAMES.stop, _NAMES.stop + 64)
_END: Final = 90  # the 88 digits of the signature, and `"}`
_MIDDLE: Final = slice(_PREV.stop, -_END)
_MIDDLES: Final = re.compile(
    rf'^","seen":\[({SEEN}\],"seq":{NUMBER}),"ts":{NUMBER},"type":"{KIND}","v":1\}},"s":"$'.encode(), re.MULTILINE
)
_MESSAGE: Final = itemgetter(entry.SIGNED)
_HEX_DIGITS: Final = b"0123456789abcdef"
_BASE64_DIGITS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def follow(
    collective: CollectiveId, member: MemberId, start: int, prev: Digest, rows: Sequence[RawLine]
) -> list[bytes] | None:
    """The leaf hashes of `rows` when they are the entries from `start` on after leaf `prev`; None when one is not plain.

    Each line is plain (see `entry`, so canonical), of this feed, in its place, chained to the one before, small
    enough, and its stored leaf hash is right. Columns are compared whole, which costs less than a pattern for each line.
    """
    if (start == 0) != (prev == ZERO):
        return None
    lines, seqs, count = [row[1] for row in rows], range(start, start + len(rows)), len(rows)
    widths = [len(line) for line in lines]
    if min(widths) < _PREV.stop + _END or max(widths) > MAX_LINE or [row[0] for row in rows] != list(seqs):
        return None
    sha = hashlib.sha256
    leaves = [sha(b"\x00" + line).digest() for line in lines]
    names = f'","collective":"{collective}","member":"{member}","prev":"'.encode("ascii")
    if (
        [row[2] for row in rows] != leaves
        or b"".join([line[: _BODY.start] for line in lines]) != _OPENING * count
        or b"".join([line[_BODY] for line in lines]).translate(None, _HEX_DIGITS)
        or b"".join([line[_NAMES] for line in lines]) != names * count
        or b"".join([line[_PREV] for line in lines]) != (prev + b"".join(leaves[:-1]).hex()).encode("ascii")
        or not _signatures(b"".join([line[-_END:] for line in lines]), count)
    ):
        return None
    middles = b"\n".join([line[_MIDDLE] for line in lines])
    found = _MIDDLES.findall(middles)
    if len(found) != count or middles.count(b"\n") != count - 1:  # each matched a line of its own, so all of them match
        return None
    places = "\n".join([f'],"seq":{seq}' for seq in seqs]).encode("ascii")
    if b"\n".join(found) == places:  # none has seen anything
        return leaves
    own = member.encode("ascii")
    for text, place in zip(found, places.split(b"\n"), strict=True):
        if not text.endswith(place) or (len(text) > len(place) and not _lawful(text[: -len(place)], own)):
            return None
    return leaves


def signed(rows: Sequence[RawLine]) -> tuple[Iterable[bytes], list[bytes]]:
    """The messages, to be read once, and the signatures of rows that `follow` passed."""
    lines, decode = [row[1] for row in rows], binascii.a2b_base64
    return map(_MESSAGE, lines), [decode(line[-_END:-2]) for line in lines]


def commits(line: bytes, salt: bytes, data: bytes) -> bool:
    """Whether a line that `follow` passed commits to this salt and body, and the body is readable."""
    found = hashlib.sha256(salt + data).hexdigest().encode("ascii")
    if line[_BODY] != found or len(salt) != SALT_BYTES:
        return False
    try:
        canon.decode_object(data, max_bytes=MAX_BODY)
    except Refused:
        return False
    return True


def _lawful(seen: bytes, own: bytes) -> bool:
    names = [row[2:66] for row in seen.split(b"],")]
    return own not in names and all(map(lt, names, names[1:]))


def _signatures(ends: bytes, count: int) -> bool:
    """Whether `ends` is so many times the one base64 form of 64 bytes, each followed by `"}`."""
    return (
        ends[86::_END] == ends[87::_END] == b"=" * count
        and ends[88::_END] == b'"' * count
        and ends[89::_END] == b"}" * count
        and not ends[85::_END].translate(None, b"AQgw")  # the last digit has but two bits
        and len(ends.translate(None, _BASE64_DIGITS)) == 4 * count
    )
