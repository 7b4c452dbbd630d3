"""Where peers were seen: multiaddrs we may dial, and the book that remembers them over a restart.

An address is a hint and needs no trust: whoever answers there is authenticated by the transport. Knows no network. The book
is one JSON file written by this node; losing it costs a lookup in the DHT. Invariant: it never holds more than
`MAX_PEERS` peers with `MAX_ADDRESSES` addresses each, newest first.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from pathlib import Path

from node.files import write_new
from protocol.errors import Malformed
from protocol.ids import PeerId, peer_id

MAX_PEERS = 1024
MAX_ADDRESSES = 8

_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([0-9A-Za-z.:_-]{1,100})/tcp/([0-9]{1,5})\Z")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")  # every Ed25519 peer id in base58


def check_address(address: object) -> str:
    """Return `address` when it is a multiaddr we dial: an IP or DNS name and a TCP port, without a peer.

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


def port(address: str) -> int:
    """The TCP port of a checked address."""
    return int(address.rsplit("/", 1)[1])


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
    address, _, peer = full.partition("/p2p/")
    return check_address(address), check_peer(peer)


class AddressBook:
    """Addresses by peer, bounded, and kept in a file when a path is given."""

    def __init__(self, path: Path | None = None) -> None:
        """Read what an earlier run remembered; a damaged file is an empty book."""
        self._path = path
        self._book: dict[PeerId, tuple[str, ...]] = {}
        try:
            saved = json.loads(path.read_bytes()) if path is not None else {}
        except (OSError, ValueError):
            saved = {}
        for peer, addresses in list(saved.items() if isinstance(saved, dict) else ())[:MAX_PEERS]:
            try:
                self._book[check_peer(peer)] = tuple(check_address(a) for a in addresses[:MAX_ADDRESSES])
            except (Malformed, TypeError):
                continue

    def __contains__(self, peer: object) -> bool:
        """Whether any address of `peer` is known."""
        return bool(self._book.get(PeerId(str(peer))))

    def peers(self) -> frozenset[PeerId]:
        """Everybody in the book."""
        return frozenset(self._book)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Known addresses of `peer`, newest first."""
        return self._book.get(peer, ())

    def remember(self, peer: PeerId, addresses: Iterable[str]) -> bool:
        """Put checked addresses in front of what is known; True when one of them is new."""
        fresh = tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]
        known = self._book.get(peer, ())
        if not fresh or fresh == known[: len(fresh)]:
            return False
        self._book.pop(peer, None)
        self._book[peer] = tuple(dict.fromkeys(fresh + known))[:MAX_ADDRESSES]
        while len(self._book) > MAX_PEERS:
            del self._book[next(iter(self._book))]  # the one that was longest without news
        self._save()
        return bool(set(fresh) - set(known))

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            write_new(self._path, json.dumps(self._book, indent=1).encode("ascii"), mode=0o600)
        except OSError:
            return  # a full disk costs the next start a lookup, nothing else
