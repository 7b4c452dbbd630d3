"""Multiaddrs that a node may dial, publish or find in a charter, and the names of peers inside them.

Three forms and no others: `/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT`; the same with `/p2p/RELAY/p2p-circuit` behind it, a way through
a relay (libp2p circuit relay v2); and either one with `/p2p/PEER` at the end. An address is a hint and needs no trust: whoever
answers there is authenticated by the transport. Knows no network. Invariant: what is returned was checked whole.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from protocol.errors import Malformed
from protocol.ids import PeerId, peer_id

CIRCUIT: Final = "/p2p-circuit"

_B58 = "[1-9A-HJ-NP-Za-km-z]"
_ADDRESS = re.compile(
    r"/(ip4|ip6|dns|dns4|dns6)/([0-9A-Za-z.:_-]{1,100})/tcp/(0|[1-9][0-9]{0,4})"
    rf"(?:/p2p/(12D3KooW{_B58}{{44}})/p2p-circuit)?\Z"
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER = re.compile(rf"12D3KooW{_B58}{{44}}\Z")  # every Ed25519 peer id in base58


def check_address(address: object) -> str:
    """Return `address` when it is a multiaddr we dial: an IP or DNS name and a TCP port, or a circuit through a relay there.

    Raises:
        Malformed: it is anything else.
    """
    found = _ADDRESS.match(address) if isinstance(address, str) else None
    if not isinstance(address, str) or found is None or int(found[3]) >= 1 << 16:
        raise Malformed(f"couldn't take address {str(address)[:60]!r}: an IP or DNS name and a TCP port are expected")
    try:
        if found[1] == "ip4":
            ipaddress.IPv4Address(found[2])
        elif found[1] == "ip6":
            ipaddress.IPv6Address(found[2])
    except ValueError:
        raise Malformed(f"couldn't take address {address[:60]!r}: not an IP address") from None
    return address


def is_circuit(address: str) -> bool:
    """Whether a checked address leads through a relay."""
    return address.endswith(CIRCUIT)


def host(address: str) -> tuple[str, str]:
    """The kind (ip4, ip6, dns...) and the name of the machine that a checked address dials: the relay of a circuit."""
    _, kind, name, _ = address.split("/", 3)
    return kind, name


def port(address: str) -> int:
    """The TCP port that a checked address dials: the relay's of a circuit."""
    return int(address.split("/", 5)[4])


def check_peer(peer: object) -> PeerId:
    """Return `peer` when it is the base58 name of an Ed25519 key.

    Raises:
        Malformed: it is anything else.
    """
    if not (isinstance(peer, str) and _PEER.match(peer)):
        raise Malformed(f"couldn't take peer {str(peer)[:60]!r}: an Ed25519 peer id (12D3KooW...) is expected")
    return PeerId(peer)


def transport(peer: PeerId) -> str:
    """The transport public key (hex) inside an Ed25519 peer id.

    Raises:
        Malformed: the peer id is not that of an Ed25519 key.
    """
    number = 0
    for character in check_peer(peer):
        number = number * 58 + _BASE58.index(character)
    public = number.to_bytes(38, "big")[-32:]  # the last 32 of the 38 bytes are the key
    if peer_id(public) != peer:
        raise Malformed(f"couldn't take peer {peer}: not the name of an Ed25519 key")
    return public.hex()


def split(full: str) -> tuple[str, PeerId]:
    """The address and the peer of `/ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...`.

    Raises:
        Malformed: it has another form.
    """
    address, _, peer = full.rpartition("/p2p/")
    if not address:
        example = "/ip4/192.0.2.7/tcp/4242/p2p/12D3KooW..."
        raise Malformed(f"couldn't take address {full[:60]!r}: it names no peer; expected is the form of {example}")
    return check_address(address), check_peer(peer)


def split_relay(full: object) -> tuple[str, PeerId]:
    """The address and the peer of a relay: reached directly, never through another relay, at a port that is stated.

    Raises:
        Malformed: it has another form.
    """
    address, peer = split(full if isinstance(full, str) else "")
    if is_circuit(address) or port(address) == 0:
        raise Malformed(f"couldn't take relay {str(full)[:60]!r}: the address of the machine itself is expected")
    return address, peer
