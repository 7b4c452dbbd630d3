"""The tie between a member's ledger key and the transport key that names its libp2p peer: signed by both, replaceable.

Knows nothing of feeds or connections: whoever reads a binding from the wire compares `peer` with the authenticated
remote peer, and whoever reads it from a feed takes the newest. Law: `verify(make(a, b)).to_json() == make(a, b)`.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.canon import Json, encode
from protocol.errors import Malformed
from protocol.ids import MemberId, PeerId, as_hex, peer_id
from protocol.keys import SigningKey, member_id, sign
from protocol.keys import verify as verify_signature

DOMAIN = "peer-binding"
_FIELDS = frozenset({"member", "peer", "transport", "by_member", "by_transport"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A verified statement: the peer `peer` (key `transport`) speaks for `member`."""

    member: MemberId
    peer: PeerId
    transport: str
    by_member: bytes
    by_transport: bytes

    def to_json(self) -> dict[str, Json]:
        """The body of a `peer.bound` event, also sent with every request."""
        return {
            "member": self.member,
            "peer": self.peer,
            "transport": self.transport,
            "by_member": base64.b64encode(self.by_member).decode("ascii"),
            "by_transport": base64.b64encode(self.by_transport).decode("ascii"),
        }


def make(key: SigningKey, transport_key: SigningKey) -> dict[str, Json]:
    """Bind `transport_key` to the member named by `key`; returns the statement as `verify` reads it."""
    member, transport = member_id(key), bytes(transport_key.verify_key).hex()
    peer = peer_id(bytes.fromhex(transport))
    message = _message(member, peer, transport)
    return Binding(
        member=member,
        peer=peer,
        transport=transport,
        by_member=sign(key, DOMAIN, message),
        by_transport=sign(transport_key, DOMAIN, message),
    ).to_json()


def verify(value: Json | Mapping[str, Json]) -> Binding:
    """Read a binding and check both signatures.

    Raises:
        Malformed: not the fields of a binding, or `peer` is not the name of `transport`.
        BadKey: one of the keys is not acceptable.
        BadSignature: one of the signatures is wrong.
    """
    if not isinstance(value, Mapping) or value.keys() != _FIELDS:
        raise Malformed("couldn't read binding: the fields are not those of a binding")
    member, transport = as_hex(value["member"], "member"), as_hex(value["transport"], "transport key")
    peer, by_member, by_transport = value["peer"], value["by_member"], value["by_transport"]
    if not (isinstance(peer, str) and isinstance(by_member, str) and isinstance(by_transport, str)):
        raise Malformed("couldn't read binding: its fields are texts")
    return _verified(MemberId(member), transport, peer, by_member, by_transport)


@functools.lru_cache(maxsize=2048)  # the same few members send theirs with every request; a failure is not remembered
def _verified(member: MemberId, transport: str, named: str, first: str, second: str) -> Binding:
    peer = peer_id(bytes.fromhex(transport))
    if named != peer:
        raise Malformed("couldn't read binding: the peer is not the name of the transport key")
    by_member, by_transport = _signature(first), _signature(second)
    message = _message(member, peer, transport)
    verify_signature(member, DOMAIN, message, by_member)
    verify_signature(transport, DOMAIN, message, by_transport)
    return Binding(member=member, peer=peer, transport=transport, by_member=by_member, by_transport=by_transport)


def _message(member: str, peer: str, transport: str) -> bytes:
    return encode({"member": member, "peer": peer, "transport": transport})


def _signature(value: str) -> bytes:
    if len(value) != 88:
        raise Malformed("couldn't read binding: a signature is 64 bytes in base64")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("couldn't read binding: a signature is not base64") from None
    if len(raw) != 64 or base64.b64encode(raw).decode("ascii") != value:
        raise Malformed("couldn't read binding: a signature has a second spelling")
    return raw
