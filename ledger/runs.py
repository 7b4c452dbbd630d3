"""Checks many lines of one feed at once: the quick way for the audit, when nothing is wrong.

`follow` says yes or no for a whole run and never why: one that it does not pass goes to the careful reader, which names the
fault and its place. Knows no stores and no signatures; `signed` gives what is left to verify. Law: a run that passes holds
exactly the entries that `entry.parse` accepts, save their signatures, one after the other from the given place on.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from ledger import entry
from ledger.entry import MAX_BODY, MAX_LINE, PLAIN_BUT_NAMES, SALT_BYTES
from protocol import canon
from protocol.errors import Refused
from protocol.ids import ZERO, CollectiveId, Digest, MemberId

RawLine = tuple[Any, ...]
"""(feed, seq, line, leaf), perhaps (..., salt, data), as stored."""

_BODY_END: Final = len('{"e":{"body":"') + 64
_SEEN: Final = 2  # groups of PLAIN_BUT_NAMES
_SEQ: Final = 3
_SIGNATURE: Final = -len('"}') - 88


def follow(
    collective: CollectiveId, member: MemberId, start: int, prev: Digest, rows: Sequence[RawLine]
) -> list[bytes] | None:
    """The leaf hashes of `rows` when they are the entries from `start` on after leaf `prev`; None when one is not plain.

    Each line is plain (see `entry`, so canonical), of this feed, in its place, chained to the one before, small
    enough, and its stored leaf hash is right.
    """
    if (start == 0) != (prev == ZERO):
        return None
    lines = [row[2] for row in rows]
    found = [match for match in map(PLAIN_BUT_NAMES.fullmatch, lines) if match is not None]
    if len(found) < len(rows) or max(map(len, lines)) > MAX_LINE:
        return None
    sha, end = hashlib.sha256, start + len(rows)
    leaves = [sha(b"\x00" + line).digest() for line in lines]
    before = f'","collective":"{collective}","member":"{member}","prev":"'
    names = slice(_BODY_END, _BODY_END + len(before) + 64)
    after = [prev, *map(bytes.hex, leaves[:-1])]
    seqs = [str(n) for n in range(start, end)]
    if (
        [row[3] for row in rows] != leaves
        or [row[1] for row in rows] != list(range(start, end))
        or b"".join([line[names] for line in lines]) != "".join([before + leaf for leaf in after]).encode("ascii")
        or b" ".join([match[_SEQ] for match in found]) != " ".join(seqs).encode("ascii")
    ):
        return None
    seen = [match[_SEEN] for match in found]
    return leaves if all(_lawful(each, member) for each in seen if each) else None


def signed(line: bytes) -> tuple[bytes, bytes]:
    """The message and the signature of a line that `follow` passed."""
    return entry.signed_part(line), binascii.a2b_base64(line[_SIGNATURE:-2])


def commits(line: bytes, salt: bytes, data: bytes) -> bool:
    """Whether a line that `follow` passed commits to this salt and body, and the body is readable."""
    found = hashlib.sha256(salt + data).hexdigest().encode("ascii")
    if line[_BODY_END - 64 : _BODY_END] != found or len(salt) != SALT_BYTES:
        return False
    try:
        canon.decode_object(data, max_bytes=MAX_BODY)
    except Refused:
        return False
    return True


def _lawful(seen: bytes, member: MemberId) -> bool:
    names = [row[2:66] for row in seen[:-1].split(b"],")]
    return names == sorted(set(names)) and member.encode("ascii") not in names
