"""The one kind of record we keep in the DHT: a peer's own addresses, signed by its transport key.

A record lies under a key derived from the owner's public key, its subkey is that public key, its value ends with the
owner's signature over key, subkey, value and expiry. So each DHT key has exactly one legal writer, and a node stores nothing
else for strangers. Knows no network; `node.network.swarm` plugs `Seal` into the DHT. Addresses found here are hints: whoever
answers there is authenticated by the transport.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from node.finding.addresses import MAX_ADDRESSES
from protocol import canon, keys
from protocol.addresses import check_address
from protocol.errors import Malformed, Refused
from protocol.ids import peer_id
from protocol.keys import SigningKey

DOMAIN = "rendezvous"
MAX_VALUE = 2048
LIFETIME_S = 60.0  # stored again three times within it
MAX_LIFETIME_S = 3600.0

_SIGNATURE = 64
_SUBKEY = b"\xd9\x40"  # msgpack: a string of 64 bytes
_HEX = re.compile(rb"[0-9a-f]{64}\Z")


def key(transport: str) -> bytes:
    """The DHT key of the peer with the transport public key `transport` (hex)."""
    return b"fishernet/at/" + transport.encode("ascii")


def key_id(transport: str) -> bytes:
    """What the DHT makes of `key` (its ids are SHA-1 for spreading, not for trust)."""
    return hashlib.sha1(key(transport), usedforsecurity=False).digest()


def pack(addresses: Iterable[str]) -> bytes:
    """The value of a record: at most 8 addresses."""
    return canon.encode({"addresses": [check_address(a) for a in addresses][:MAX_ADDRESSES]}, max_bytes=MAX_VALUE)


def unpack(value: object) -> tuple[str, ...]:
    """Read the value of a record.

    Raises:
        Refused: it is not one.
    """
    if not isinstance(value, bytes):
        raise Malformed("couldn't read record: bytes are expected")
    fields = canon.decode_object(value, max_bytes=MAX_VALUE)
    addresses = fields.get("addresses")
    if fields.keys() != {"addresses"} or not isinstance(addresses, list) or len(addresses) > MAX_ADDRESSES:
        raise Malformed("couldn't read record: a short list of addresses is expected")
    return tuple(check_address(address) for address in addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A DHT record as its validator sees it: everything is bytes of a stranger."""

    key: bytes
    subkey: bytes
    value: bytes
    expires: float


class Seal:
    """Signs our own record and judges all others. Law: `check(sign(r))` holds, `strip(sign(r)) == r.value`."""

    def __init__(self, key: SigningKey) -> None:
        """Sign with the transport key."""
        self._key = key
        self.peer = peer_id(bytes(key.verify_key))
        self._subkey = _SUBKEY + bytes(key.verify_key).hex().encode("ascii")

    def sign(self, entry: Entry) -> bytes:
        """The value with our signature behind it, when the record is ours."""
        if entry.subkey != self._subkey:
            return entry.value
        return entry.value + keys.sign(self._key, DOMAIN, _message(entry, entry.value))

    def check(self, entry: Entry, now: float) -> bool:
        """Whether the record is one that its owner signed, where it belongs, and not for too long."""
        owner = entry.subkey[len(_SUBKEY) :]
        if not entry.subkey.startswith(_SUBKEY) or not _HEX.match(owner) or entry.expires > now + MAX_LIFETIME_S:
            return False
        transport = owner.decode("ascii")
        if entry.key != key_id(transport) or not _SIGNATURE < len(entry.value) <= MAX_VALUE + _SIGNATURE + 8:
            return False
        try:
            keys.verify(transport, DOMAIN, _message(entry, self.strip(entry.value)), entry.value[-_SIGNATURE:])
        except Refused:
            return False
        return True

    @staticmethod
    def strip(value: bytes) -> bytes:
        """A checked value without its signature."""
        return value[:-_SIGNATURE]


def _message(entry: Entry, value: bytes) -> bytes:
    """What is signed: lengths in front, so that no two records share the bytes."""
    parts = (entry.key, entry.subkey, value, str(int(entry.expires * 1000)).encode("ascii"))
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
