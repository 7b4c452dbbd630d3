"""The contribution blob: card and sparse update under one signature of the member (FORMAT.md, "Contribution").

Knows no charter, ledger or disk, and does not look inside the update. Invariant: a `Contribution` returned by `unpack`
was signed by `card.member`, and its digest names exactly the bytes it came from.
"""

from __future__ import annotations

import hashlib
import struct

from protocol import canon, keys
from protocol.card import Card, Contribution
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import digest

__all__ = ["Card", "Contribution", "pack", "unpack"]

MAGIC = b"FNCB"
VERSION = 1
DOMAIN = "contribution"
MAX_CARD_BYTES = 8192

_HEADER = struct.Struct("<4sBII")
_SIGNATURE_BYTES = 64


def pack(card: Card, update: bytes, key: keys.SigningKey) -> bytes:
    """Return the blob of `card` and `update`, signed by the card's member.

    Raises:
        BadSignature: `key` is not the key of `card.member`.
    """
    if keys.member_id(key) != card.member:
        raise BadSignature("couldn't sign contribution: the key is not the one of the card's member")
    text = canon.encode(card.to_json(), max_bytes=MAX_CARD_BYTES)
    signed = _HEADER.pack(MAGIC, VERSION, len(text), len(update)) + text + update
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
    if len(blob) < _HEADER.size + _SIGNATURE_BYTES:
        raise Malformed("couldn't read contribution: shorter than an empty one")
    magic, version, card_bytes, update_bytes = _HEADER.unpack_from(blob)
    if magic != MAGIC or version != VERSION:
        raise Malformed("couldn't read contribution: not a contribution of version 1")
    if card_bytes > MAX_CARD_BYTES:
        raise TooLarge(f"couldn't read contribution: a card of {card_bytes} bytes, the limit is {MAX_CARD_BYTES}")
    if len(blob) != _HEADER.size + card_bytes + update_bytes + _SIGNATURE_BYTES:
        raise Malformed("couldn't read contribution: its parts do not fill it exactly")
    signed, signature = blob[:-_SIGNATURE_BYTES], blob[-_SIGNATURE_BYTES:]
    card = Card.parse(canon.decode(signed[_HEADER.size : _HEADER.size + card_bytes], max_bytes=MAX_CARD_BYTES))
    keys.verify(card.member, DOMAIN, hashlib.sha256(signed).digest(), signature)
    return Contribution(card=card, update=signed[_HEADER.size + card_bytes :], digest=digest(blob))
