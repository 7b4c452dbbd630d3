"""The cipher of a sealed row store: seals bytes to their place, and blinds what must be found again without being read.

Knows no file, no passphrase and no store; the key is an argument and is never part of a text. AES-256-GCM (NIST SP
800-38D) with a random 96-bit nonce, the place as associated data; HMAC-SHA-256 (RFC 2104) blinds. Invariant: bytes that
were sealed for one place (data set and row id) do not open at another. One key seals at most 2^32 values, the bound for
random nonces; a store of a billion rows is below it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from contrib.errors import RowsDamaged, RowsSealed
from protocol.ids import Digest

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12

_DOMAIN: Final = b"fishernet/rows/"
_HEX_KEY: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Blinder:
    """Names values so that equal ones are equal, and nobody without the secret can confirm a guess."""

    _secret: bytes = field(repr=False)

    def name(self, what: str, value: bytes) -> Digest:
        """HMAC-SHA-256 of `value` in its own domain `what`, as 64 hex digits."""
        return Digest(hmac.new(self._secret, what.encode() + b"\0" + value, hashlib.sha256).hexdigest())


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals and opens with one data key. Make it with `Sealer.of`."""

    blinder: Blinder
    _cipher: AESGCM = field(repr=False)

    @classmethod
    def of(cls, key: bytes) -> Self:
        """The sealer of a 32-byte data key.

        Raises:
            RowsSealed: the key has another length.
        """
        if len(key) != KEY_BYTES:
            raise RowsSealed(f"couldn't use the rows' key: it has {len(key)} bytes, not {KEY_BYTES}")
        return cls(Blinder(_derived(key, b"blind")), AESGCM(_derived(key, b"seal")))

    def seal(self, place: str, data: bytes, nonce: bytes) -> bytes:
        """Nonce (12 bytes, never used before with this key), ciphertext and tag."""
        return nonce + self._cipher.encrypt(nonce, data, place.encode())

    def open(self, place: str, sealed: bytes) -> bytes:
        """What was sealed at `place`.

        Raises:
            RowsDamaged: other bytes, another place, or another key.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], place.encode())
        except (InvalidTag, ValueError):
            raise RowsDamaged("couldn't open sealed row: its bytes were changed or moved; restore rows.db") from None


def row_place(dataset: str, row: int, what: str) -> str:
    """Where a part of a row lies: a data set's name has no zero byte, so no two places read the same."""
    return f"fishernet/rows/v1\0{dataset}\0{row}\0{what}"


def key_from_hex(text: object) -> bytes | None:
    """The data key as a job carries it: 64 hex digits, or null.

    Raises:
        RowsSealed: something else; the message does not repeat it.
    """
    if text is None:
        return None
    if not (isinstance(text, str) and _HEX_KEY.match(text)):
        raise RowsSealed("couldn't use the rows' key: it is not 64 hex digits")
    return bytes.fromhex(text)


def _derived(key: bytes, use: bytes) -> bytes:
    return hmac.new(key, _DOMAIN + use + b"/v1", hashlib.sha256).digest()
