"""The book of where peers were seen, kept over a restart; its entries are hints (see `protocol.addresses`).

Knows no network. The book is one JSON file written by this node; losing it costs a look-up. Invariant: it never holds more than
`MAX_PEERS` peers with `MAX_ADDRESSES` addresses each, newest first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from node.files import write_new
from protocol.addresses import check_address, check_peer, is_circuit, port, split, split_relay, transport
from protocol.errors import Malformed
from protocol.ids import PeerId

__all__ = ["AddressBook", "check_address", "check_peer", "is_circuit", "port", "split", "split_relay", "transport"]

MAX_PEERS = 1024
MAX_ADDRESSES = 8


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

    def forget(self, peer: PeerId) -> None:
        """Take `peer` out of the book."""
        if self._book.pop(peer, None) is not None:
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        try:
            write_new(self._path, json.dumps(self._book, indent=1).encode("ascii"), mode=0o600)
        except OSError:
            return  # a full disk costs the next start a lookup, nothing else
