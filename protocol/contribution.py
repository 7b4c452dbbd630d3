"""The contribution blob: card and sparse update under one signature of the member (FORMAT.md, "Contribution").

Knows no charter, ledger or disk, and does not look inside the update. Version 2 is written, version 1 is still read.
Invariant: a `Contribution` returned by `unpack` was signed by `card.member`, and its digest names exactly the bytes it
came from.
"""

from __future__ import annotations

import hashlib
import struct

from protocol import canon, compact, keys
from protocol.card import Card, Contribution
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import Digest

__all__ = ["Card", "Contribution", "pack", "unpack"]

MAGIC = b"FNCB"
VERSION = 2
DOMAIN = "contribution"
MAX_CARD_BYTES = 8192

_HEADER_1 = struct.Struct("<4sBII")
_HEADER = struct.Struct("<4sBHI")
_SIGNATURE_BYTES = 64


def pack(card: Card, update: bytes, key: keys.SigningKey) -> bytes:
    """Return the blob of `card` and `update`, signed by the card's member.

    Raises:
        BadSignature: `key` is not the key of `card.member`.
    """
    if keys.member_id(key) != card.member:
        raise BadSignature("couldn't sign contribution: the key is not the one of the card's member")
    short = compact.encode(card)
    signed = _HEADER.pack(MAGIC, VERSION, len(short), len(update)) + short + update
    return signed + keys.sign(key, DOMAIN, hashlib.sha256(signed).digest())


def unpack(blob: bytes, *, max_bytes: int) -> Contribution:
    """Return the contribution in `blob`. Law: `unpack(pack(card, update, key))` gives card and update back.

    Raises:
        TooLarge: the blob or its card is over its limit.
        Malformed: not a contribution, or a card with a field missing, unknown or out of range.
        BadKey, BadSignature: not signed by the member its card names.
    """
    if len(blob) > max_bytes:
        raise TooLarge(f"couldn't read contribution: {len(blob)} bytes, the limit is {max_bytes}")
    if blob[:4] != MAGIC or blob[4:5] not in {b"\x01", bytes([VERSION])}:
        raise Malformed("couldn't read contribution: not a contribution of version 1 or 2")
    first = blob[4] == 1
    header = _HEADER_1 if first else _HEADER
    if len(blob) < header.size + _SIGNATURE_BYTES:
        raise Malformed("couldn't read contribution: shorter than an empty one")
    _, _, card_bytes, update_bytes = header.unpack_from(blob)
    if card_bytes > MAX_CARD_BYTES:
        raise TooLarge(f"couldn't read contribution: a card of {card_bytes} bytes, the limit is {MAX_CARD_BYTES}")
    start = header.size + card_bytes
    end = start + update_bytes
    if len(blob) != end + _SIGNATURE_BYTES:
        raise Malformed("couldn't read contribution: its parts do not fill it exactly")
    text = blob[header.size : start]
    card = Card.parse(canon.decode(text, max_bytes=MAX_CARD_BYTES)) if first else compact.decode(text)
    whole = hashlib.sha256(memoryview(blob)[:end])
    keys.verify(card.member, DOMAIN, whole.digest(), blob[end:])
    whole.update(blob[end:])  # what was signed and the signature are the whole: it is hashed once
    return Contribution(card=card, update=blob[start:end], digest=Digest(whole.hexdigest()))
