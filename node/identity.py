"""The node's two keys: the ledger key that is the member, and the transport key that is the libp2p peer.

The ledger key signs every event and never leaves this process; the transport key lies in a plain file because the
network daemon reads it, and `binding.json` holds the statement, signed by both, that they belong together.
Trust: `keys/` is trusted; whoever reads `ledger.pem` (and knows its passphrase) is the member. Losing it loses the seat
until an amendment gives it to a new key. `transport.key` and `binding.json` may be replaced at will.
Invariant: a loaded identity has a valid binding between exactly these two keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nacl.signing import SigningKey

from node import pkcs8
from node.errors import IdentityError, NotAHome, OpenPermissions, PassphraseNeeded, WrongPassphrase
from node.files import write_new
from protocol import binding
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import MemberId, PeerId, peer_id
from protocol.keys import member_id

if TYPE_CHECKING:
    from node.home import Home

_TRANSPORT_PREFIX = bytes((0x08, 0x01, 0x12, 0x40))  # libp2p crypto.proto: Type = Ed25519, Data = 64 bytes
_MAX_KEY_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Both keys of a node in memory, their public names, and the `peer.bound` statement that joins them."""

    member: MemberId
    peer: PeerId
    binding: Mapping[str, Json]
    key: SigningKey = field(repr=False)
    transport: SigningKey = field(repr=False)


def create(home: Home, passphrase: str | None) -> Identity:
    """Make both keys and their binding in `home`; the ledger key is locked when a passphrase is given.

    Raises:
        IdentityError: a ledger key is already there (it is never overwritten), or the passphrase is empty.
    """
    if home.ledger_key.exists():
        raise IdentityError(f"couldn't create identity: {home.ledger_key} exists and is never overwritten")
    if passphrase == "":
        raise IdentityError("couldn't create identity: an empty passphrase protects nothing")
    key, transport = SigningKey.generate(), SigningKey.generate()
    statement = binding.make(key, transport)
    write_new(home.transport_key, _TRANSPORT_PREFIX + bytes(transport) + bytes(transport.verify_key), mode=0o600)
    write_new(home.binding_file, json.dumps(statement, indent=1).encode() + b"\n", mode=0o600)
    write_new(home.ledger_key, pkcs8.dump(bytes(key), passphrase, salt=os.urandom(16), iv=os.urandom(16)), mode=0o600)
    return _identity(key, transport, statement)


def load(home: Home, passphrase: str | None) -> Identity:
    """Read and check both keys of `home`; a passphrase given for a key that is not locked is not needed and ignored.

    Raises:
        NotAHome: no keys there.
        OpenPermissions: others may read a private key.
        PassphraseNeeded: the ledger key is locked and `passphrase` is None.
        WrongPassphrase: it does not open the key.
        IdentityError: a file is damaged, or the files do not belong together.
    """
    pem, raw = _private(home.ledger_key), _private(home.transport_key)
    if pkcs8.is_locked(pem) and not passphrase:
        raise PassphraseNeeded(
            f"couldn't unlock {home.ledger_key}: it needs a passphrase",
            hint="set FISHERNET_PASSPHRASE, pass --passphrase-file FILE, or run in a terminal and type it",
        )
    try:
        key = SigningKey(pkcs8.load(pem, passphrase))
    except (ValueError, TypeError) as e:
        if pkcs8.is_locked(pem):
            raise WrongPassphrase(f"couldn't unlock {home.ledger_key}: wrong passphrase") from None
        raise IdentityError(f"couldn't read {home.ledger_key}: {e}", hint="restore it from your copy") from None
    if len(raw) != len(_TRANSPORT_PREFIX) + 64 or not raw.startswith(_TRANSPORT_PREFIX):
        raise IdentityError(f"couldn't read {home.transport_key}: not a libp2p Ed25519 identity")
    transport = SigningKey(raw[4:36])
    if bytes(transport.verify_key) != raw[36:]:
        raise IdentityError(f"couldn't read {home.transport_key}: its two halves do not belong together")
    return _identity(key, transport, _statement(home.binding_file))


def is_locked(home: Home) -> bool:
    """Whether the ledger key of `home` needs a passphrase."""
    return pkcs8.is_locked(_private(home.ledger_key))


def member_of(home: Home) -> MemberId:
    """The member id as the binding states it: no key is opened, so no passphrase is needed."""
    return binding.verify(_statement(home.binding_file)).member


def _identity(key: SigningKey, transport: SigningKey, statement: Mapping[str, Json]) -> Identity:
    member, peer = member_id(key), peer_id(bytes(transport.verify_key))
    bound = binding.verify(statement)
    if (bound.member, bound.peer) != (member, peer):
        raise IdentityError(
            "couldn't load identity: binding.json speaks of other keys", hint="restore all of keys/ from your copy"
        )
    return Identity(member=member, peer=peer, binding=bound.to_json(), key=key, transport=transport)


def _private(path: Path) -> bytes:
    """Bytes of a private key file that only its owner may read."""
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise OpenPermissions(
                f"couldn't use {path}: other users may read it (mode {mode & 0o777:o})", hint=f"run: chmod 600 {path}"
            )
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except FileNotFoundError:
        raise NotAHome(f"couldn't read {path}: no such file", hint="make a node with: fishernet init") from None


def _statement(path: Path) -> dict[str, Json]:
    try:
        statement = json.loads(path.read_bytes()[:_MAX_KEY_BYTES])
    except FileNotFoundError:
        raise NotAHome(f"couldn't read {path}: no such file", hint="make a node with: fishernet init") from None
    except ValueError as e:
        raise IdentityError(f"couldn't read {path}: {e}", hint="restore it from your copy") from None
    if not isinstance(statement, dict):
        raise IdentityError(f"couldn't read {path}: an object is expected", hint="restore it from your copy")
    try:
        binding.verify(statement)
    except FishernetError as e:
        raise IdentityError(f"couldn't read {path}: {e}", hint="restore it from your copy") from None
    return statement
