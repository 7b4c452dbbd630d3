"""The node's keys: the ledger key that is the member, the transport key that is the libp2p peer, and the witness keys.

The ledger key signs every event and never leaves this process; the transport key lies in a plain file because the
network daemon reads it, and `binding.json` holds the statement, signed by both, that they belong together. The witness
key (and the ML-DSA-44 key beside it, if wanted) cosigns what other members' feeds say. The recovery key can take the seat
back when the ledger key is lost or stolen: it is made here, and belongs offline; its digest stays.
Trust: `keys/` is trusted; whoever reads `ledger.pem` (and knows its passphrase) is the member. Losing it loses the seat
unless the recovery key is at hand. `transport.key`, `binding.json` and the witness keys may be replaced at will.
Invariant: a loaded identity has a valid binding between exactly these two keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nacl.signing import SigningKey

from node.errors import IdentityError, NotAHome, OpenPermissions, PassphraseNeeded, WrongPassphrase
from node.files import write_new
from node.keys import pkcs8
from protocol import binding
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import CollectiveId, Digest, MemberId, PeerId, as_hex, digest, peer_id
from protocol.keys import member_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

    from ledger.events import KeysBound
    from node.home import Home

_TRANSPORT_PREFIX = bytes((0x08, 0x01, 0x12, 0x40))  # libp2p crypto.proto: Type = Ed25519, Data = 64 bytes
_MAX_KEY_BYTES = 4096
_UNLOCK: Final = "set FISHERNET_PASSPHRASE, pass --passphrase-file FILE, or run in a terminal and type it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The keys of a node in memory, their public names, and the `peer.bound` statement that joins the first two."""

    member: MemberId
    peer: PeerId
    binding: Mapping[str, Json]
    key: SigningKey = field(repr=False)
    transport: SigningKey = field(repr=False)
    witness: SigningKey = field(repr=False)
    post_quantum: MLDSA44PrivateKey | None = field(default=None, repr=False)
    recovery: Digest | None = None

    def bound(self, collective: CollectiveId) -> KeysBound:
        """The event that binds the keys beside the ledger key in a feed."""
        from ledger import keyring

        second = self.post_quantum.public_key().public_bytes_raw() if self.post_quantum else None
        return keyring.make(
            self.witness, collective=collective, member=self.member, post_quantum=second, recovery=self.recovery
        )


def create(home: Home, passphrase: str | None, *, post_quantum: bool = False) -> Identity:
    """Make the keys of `home`; all but the transport key are locked when a passphrase is given.

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
    recovery = SigningKey.generate()
    write_new(home.recovery_file, pem_of(recovery, passphrase), mode=0o600)
    write_new(home.recovery_commitment, digest(bytes(recovery.verify_key)).encode() + b"\n", mode=0o600)
    witness, second = _make_witness(home, passphrase), add_post_quantum(home, passphrase) if post_quantum else None
    write_new(home.ledger_key, pem_of(key, passphrase), mode=0o600)
    return _identity(key, transport, statement, Witnessing(witness, second), _commitment(home))


class Witnessing(NamedTuple):
    """The keys that cosign."""

    key: SigningKey
    post_quantum: MLDSA44PrivateKey | None


def add_post_quantum(home: Home, passphrase: str | None) -> MLDSA44PrivateKey:
    """Make the ML-DSA-44 key of a home, or read the one it has."""
    if not home.post_quantum_key.exists():
        pem = pkcs8.dump_post_quantum(os.urandom(32), passphrase, salt=os.urandom(16), iv=os.urandom(16))
        write_new(home.post_quantum_key, pem, mode=0o600)
    return pkcs8.load_post_quantum(_private(home.post_quantum_key), passphrase)


def read_key(path: Path, passphrase: str | None) -> SigningKey:
    """An Ed25519 key from a PEM file that only its owner may read.

    Raises:
        NotAHome, OpenPermissions, PassphraseNeeded, WrongPassphrase, IdentityError: as `load`.
    """
    pem = _private(path)
    if pkcs8.is_locked(pem) and not passphrase:
        raise PassphraseNeeded(f"couldn't unlock {path}: it needs a passphrase", hint=_UNLOCK)
    try:
        return SigningKey(pkcs8.load(pem, passphrase))
    except (ValueError, TypeError) as e:
        if pkcs8.is_locked(pem):
            raise WrongPassphrase(f"couldn't unlock {path}: wrong passphrase") from None
        raise IdentityError(f"couldn't read {path}: {e}", hint="restore it from your copy") from None


def load(home: Home, passphrase: str | None) -> Identity:
    """Read and check the keys of `home`; a passphrase given for a key that is not locked is not needed and ignored.

    A witness key that is not there is made: it may be replaced at will.

    Raises:
        NotAHome: no keys there.
        OpenPermissions: others may read a private key.
        PassphraseNeeded: the ledger key is locked and `passphrase` is None.
        WrongPassphrase: it does not open the key.
        IdentityError: a file is damaged, or the files do not belong together.
    """
    raw = _private(home.transport_key)
    key = read_key(home.ledger_key, passphrase)
    if len(raw) != len(_TRANSPORT_PREFIX) + 64 or not raw.startswith(_TRANSPORT_PREFIX):
        raise IdentityError(f"couldn't read {home.transport_key}: not a libp2p Ed25519 identity")
    transport = SigningKey(raw[4:36])
    if bytes(transport.verify_key) != raw[36:]:
        raise IdentityError(f"couldn't read {home.transport_key}: its two halves do not belong together")
    opened = passphrase if is_locked(home) else None
    witness = read_key(home.witness_key, opened) if home.witness_key.exists() else _make_witness(home, opened)
    second = add_post_quantum(home, opened) if home.post_quantum_key.exists() else None
    return _identity(key, transport, _statement(home.binding_file), Witnessing(witness, second), _commitment(home))


def is_locked(home: Home) -> bool:
    """Whether the ledger key of `home` needs a passphrase."""
    return pkcs8.is_locked(_private(home.ledger_key))


def member_of(home: Home) -> MemberId:
    """The member id as the binding states it: no key is opened, so no passphrase is needed."""
    return binding.verify(_statement(home.binding_file)).member


def _identity(
    key: SigningKey,
    transport: SigningKey,
    statement: Mapping[str, Json],
    witness: Witnessing,
    recovery: Digest | None,
) -> Identity:
    member, peer = member_id(key), peer_id(bytes(transport.verify_key))
    bound = binding.verify(statement)
    if (bound.member, bound.peer) != (member, peer):
        raise IdentityError(
            "couldn't load identity: binding.json speaks of other keys", hint="restore all of keys/ from your copy"
        )
    return Identity(
        member=member,
        peer=peer,
        binding=bound.to_json(),
        key=key,
        transport=transport,
        witness=witness.key,
        post_quantum=witness.post_quantum,
        recovery=recovery,
    )


def pem_of(key: SigningKey, passphrase: str | None) -> bytes:
    """The file of a key, locked when a passphrase is given."""
    return pkcs8.dump(bytes(key), passphrase, salt=os.urandom(16), iv=os.urandom(16))


def _make_witness(home: Home, passphrase: str | None) -> SigningKey:
    witness = SigningKey.generate()
    write_new(home.witness_key, pem_of(witness, passphrase), mode=0o600)
    return witness


def _commitment(home: Home) -> Digest | None:
    """What the feed commits to; None in a home that never had a recovery key."""
    try:
        return Digest(as_hex(home.recovery_commitment.read_text("ascii").strip(), "recovery commitment"))
    except FileNotFoundError:
        return None
    except (ValueError, FishernetError) as e:
        raise IdentityError(
            f"couldn't read {home.recovery_commitment}: {e}", hint="restore all of keys/ from your copy"
        ) from None


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
