r"""Ed25519 signing and verification with domain separation (RFC 8032; libsodium's strict rules).

A signature covers `b"fishernet/<domain>/v1\0" + message`, so no signature of one kind can be replayed as another.
Only PyNaCl verifies: other libraries accept signatures that libsodium refuses. Keys that are not valid points are refused.
Signing and bulk verification call PyNaCl's libsodium itself: the functions around it copy every message twice.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import repeat

from nacl._sodium import ffi, lib  # type: ignore[import-not-found]
from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_BYTES
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from protocol.errors import BadKey, BadSignature
from protocol.ids import MemberId, as_hex

__all__ = ["SigningKey", "admit", "member_id", "sign", "signed_messages", "verify", "wrong_signatures"]


def member_id(key: SigningKey) -> MemberId:
    """The member id named by a signing key."""
    return MemberId(bytes(key.verify_key).hex())


@functools.lru_cache(maxsize=4096)
def admit(public_hex: str) -> VerifyKey:
    """Return the verification key behind a member id or transport key.

    Raises:
        Malformed: not 64 hex digits.
        BadKey: not a valid point of the prime-order subgroup (low order, identity, off the curve).
    """
    raw = bytes.fromhex(as_hex(public_hex, "public key"))
    if not crypto_core_ed25519_is_valid_point(raw):
        raise BadKey(f"couldn't admit key {public_hex[:12]}: not a valid Ed25519 point")
    return VerifyKey(raw)


@functools.cache
def _prefix(domain: str) -> bytes:
    return b"fishernet/" + domain.encode("ascii") + b"/v1\0"


def sign(key: SigningKey, domain: str, message: bytes) -> bytes:
    """Return the 64-byte signature of `message` in `domain`.

    Law: `verify(member_id(key), domain, message, sign(key, domain, message))` passes.
    """
    framed = _prefix(domain) + message
    out = ffi.new("unsigned char[]", crypto_sign_BYTES + len(framed))  # the signature, and a copy of the message
    if lib.crypto_sign(out, ffi.NULL, framed, len(framed), bytes(key) + bytes(key.verify_key)) != 0:
        raise BadKey("couldn't sign: libsodium refused the key")
    return bytes(ffi.buffer(out, crypto_sign_BYTES))


def verify(public_hex: str, domain: str, message: bytes, signature: bytes) -> None:
    """Check a signature made by `sign`.

    Raises:
        BadKey: the key is not acceptable.
        BadSignature: it does not verify.
    """
    key = admit(public_hex)
    if len(signature) != 64:
        raise BadSignature(f"couldn't verify {domain} of {public_hex[:12]}: a signature has 64 bytes")
    try:
        key.verify(_prefix(domain) + message, signature)
    except BadSignatureError:
        raise BadSignature(f"couldn't verify {domain} of {public_hex[:12]}: the signature is wrong") from None


def signed_messages(domain: str | None, messages: Iterable[bytes], signatures: Sequence[bytes]) -> list[bytes]:
    """Messages with their signatures, each in one piece as libsodium takes it, for `wrong_signatures`.

    Without a domain the messages were signed as they are (notes).

    Raises:
        BadSignature: one has not 64 bytes, so that nobody could say where its message begins.
    """
    if not set(map(len, signatures)) <= {crypto_sign_BYTES}:
        raise BadSignature("couldn't verify many signatures: a signature has 64 bytes")
    prefix = b"" if domain is None else _prefix(domain)
    return [signature + prefix + message for message, signature in zip(messages, signatures, strict=True)]


def wrong_signatures(public_hex: str, signed: Sequence[bytes]) -> list[int]:
    """Which of many `signed_messages` `verify` would refuse, by their places; same library, less overhead.

    Threads may run this side by side: libsodium works outside Python's lock.

    Raises:
        BadKey: the key is not acceptable.
    """
    key, nowhere = bytes(admit(public_hex)), repeat(ffi.NULL)  # the messages are not wanted back
    # No bytecode runs between two verifications: each of them leaves little of Python in the caches.
    refused = list(map(lib.crypto_sign_open, nowhere, nowhere, signed, map(len, signed), repeat(key)))
    return [place for place, no in enumerate(refused) if no]
