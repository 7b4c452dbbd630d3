"""A stream that only named members can open: one random key, sealed for each of them, and an authenticated cipher.

The key goes into a libsodium sealed box for the X25519 form of a member's Ed25519 key; the stream is libsodium's secretstream
(XChaCha20-Poly1305), cut into chunks, each bound to the header of the file. Lost, swapped, repeated or cut off chunks are
found out. Who sealed it is not proven here: what is inside proves itself. Knows no file.
Law: what `Opener` gives for the chunks of a `Sealer` are its chunks; for any other bytes it raises `BadEnvelope`.
"""

from __future__ import annotations

import secrets
from typing import Final

from nacl.bindings import crypto_secretstream as stream
from nacl.bindings import crypto_sign_ed25519_pk_to_curve25519, crypto_sign_ed25519_sk_to_curve25519
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from protocol import keys
from protocol.errors import BadEnvelope
from protocol.ids import MemberId
from protocol.keys import SigningKey

CHUNK: Final = 64 * 1024
START: Final = stream.crypto_secretstream_xchacha20poly1305_HEADERBYTES
OVERHEAD: Final = stream.crypto_secretstream_xchacha20poly1305_ABYTES
_MESSAGE: Final = stream.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL: Final = stream.crypto_secretstream_xchacha20poly1305_TAG_FINAL


def fresh_key() -> bytes:
    """A random key for one stream."""
    return secrets.token_bytes(32)


def seal_key(key: bytes, reader: MemberId) -> bytes:
    """`key` so that only `reader` gets it (raises BadKey for an id that is no key)."""
    curve = crypto_sign_ed25519_pk_to_curve25519(bytes(keys.admit(reader)))
    return bytes(SealedBox(PublicKey(curve)).encrypt(key))


def open_key(sealed: bytes, reader: SigningKey) -> bytes:
    """The key that was sealed for us.

    Raises:
        BadEnvelope: it was sealed for somebody else, or changed.
    """
    curve = crypto_sign_ed25519_sk_to_curve25519(bytes(reader) + bytes(reader.verify_key))
    try:
        key = bytes(SealedBox(PrivateKey(curve)).decrypt(sealed))
    except CryptoError:
        raise BadEnvelope("couldn't open bundle: it is not sealed for this key") from None
    if len(key) != 32:
        raise BadEnvelope("couldn't open bundle: the sealed key has another length")
    return key


class Sealer:
    """Makes the chunks of one stream; `start` is written before the first."""

    def __init__(self, key: bytes, bound: bytes) -> None:
        """`bound` is what every chunk is tied to: the digest of the file's header."""
        self._state, self._bound = stream.crypto_secretstream_xchacha20poly1305_state(), bound
        self.start: bytes = stream.crypto_secretstream_xchacha20poly1305_init_push(self._state, key)

    def seal(self, chunk: bytes, *, last: bool = False) -> bytes:
        """The sealed form of at most `CHUNK` bytes."""
        tag = _FINAL if last else _MESSAGE
        return bytes(stream.crypto_secretstream_xchacha20poly1305_push(self._state, chunk, self._bound, tag))


class Opener:
    """Opens the chunks of one stream in their order."""

    def __init__(self, key: bytes, start: bytes, bound: bytes) -> None:
        """`start` and `bound` as `Sealer` had them (raises BadEnvelope for a start of another length)."""
        if len(start) != START:
            raise BadEnvelope("couldn't open bundle: its sealed part has no beginning")
        self._state, self._bound = stream.crypto_secretstream_xchacha20poly1305_state(), bound
        stream.crypto_secretstream_xchacha20poly1305_init_pull(self._state, start, key)

    def open(self, sealed: bytes) -> tuple[bytes, bool]:
        """The chunk, and whether it is the last.

        Raises:
            BadEnvelope: changed, out of order, of another stream or header.
        """
        if len(sealed) < OVERHEAD:
            raise BadEnvelope("couldn't open bundle: a sealed chunk is too short")
        try:
            chunk, tag = stream.crypto_secretstream_xchacha20poly1305_pull(self._state, sealed, self._bound)
        except CryptoError:
            raise BadEnvelope("couldn't open bundle: a sealed chunk was changed, or is out of its place") from None
        return bytes(chunk), tag == _FINAL
