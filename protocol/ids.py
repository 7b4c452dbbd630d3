"""Names of things: members, transports, digests, and the checks that text must pass to be one.

A member id is an Ed25519 public key in 64 lower-case hex digits; a digest is a SHA-256 in the same form (what
`sha256sum` prints); a peer id is the base58 libp2p name of a transport key. Nobody issues any of them.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from protocol.canon import Json, encode
from protocol.errors import Malformed

MemberId = NewType("MemberId", str)
Digest = NewType("Digest", str)
EventId = NewType("EventId", str)
CollectiveId = NewType("CollectiveId", str)
PeerId = NewType("PeerId", str)

ZERO = Digest("0" * 64)

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_PREFIX = b"\x00\x24\x08\x01\x12\x20"  # identity multihash of a libp2p Ed25519 public key (libp2p peer-ids spec)


def digest(data: bytes) -> Digest:
    """SHA-256 of `data` in hex."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_of(value: Json, *, max_bytes: int = 1 << 20) -> Digest:
    """SHA-256 of the canonical bytes of `value`."""
    return digest(encode(value, max_bytes=max_bytes))


def as_hex(value: object, what: str = "digest") -> str:
    """Return `value` when it is 64 lower-case hex digits.

    Raises:
        Malformed: it is anything else.
    """
    if not (isinstance(value, str) and _HEX.match(value)):
        given = (
            repr(value[:20]) if isinstance(value, str) else type(value).__name__
        )  # a value of a stranger may be huge
        raise Malformed(f"couldn't read {what}: 64 lower-case hex digits are expected, not {given}")
    return value


def peer_id(public: bytes) -> PeerId:
    """The libp2p peer id (base58btc of the identity multihash) of a 32-byte Ed25519 public key."""
    if len(public) != 32:
        raise Malformed("couldn't name peer: an Ed25519 public key has 32 bytes")
    raw = _PEER_PREFIX + public
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, rest = divmod(number, 58)
        text = _BASE58[rest] + text
    return PeerId("1" * (len(raw) - len(raw.lstrip(b"\0"))) + text)


def short(name: str) -> str:
    """The first 12 characters: enough for a person to tell names apart, never enough for a program."""
    return name[:12]
