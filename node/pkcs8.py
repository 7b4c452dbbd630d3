"""Ed25519 private keys in PEM: PKCS#8 (RFC 8410), locked by scrypt (RFC 7914) and AES-256-CBC (PBES2).

`cryptography` reads such files but writes PBKDF2 with 2,048 rounds, too cheap to guess; so the locked form is written
here and read there. `openssl pkey -in FILE` reads both. Knows no paths. Law: `load(dump(seed, p), p) == seed`.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

_LOCKED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_COST, _BLOCK, _PARALLEL = 1 << 14, 8, 5  # 16 MiB, about 0.2 s a guess; openssl refuses to read over 32 MiB

_INTEGER, _OCTETS, _OID, _SEQUENCE = 0x02, 0x04, 0x06, 0x30
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_SCRYPT = bytes.fromhex("2b06010401da47040b")
_AES_256_CBC = bytes.fromhex("60864801650304012a")


def is_locked(pem: bytes) -> bool:
    """Whether the file needs a passphrase."""
    return pem.lstrip().startswith(_LOCKED)


def dump(seed: bytes, passphrase: str | None, *, salt: bytes, iv: bytes) -> bytes:
    """PEM of the 32-byte `seed`; with a passphrase the locked form under `salt` (16 bytes) and `iv` (16 bytes)."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    secret = hashlib.scrypt(
        passphrase.encode(), salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, dklen=32, maxmem=_COST * _BLOCK * 256
    )
    pad = 16 - len(plain) % 16
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(plain + bytes([pad]) * pad) + encryptor.finalize()
    kdf_params = _sequence(_der(_OCTETS, salt), _integer(_COST), _integer(_BLOCK), _integer(_PARALLEL))
    kdf = _sequence(_der(_OID, _SCRYPT), kdf_params)
    cipher = _sequence(_der(_OID, _AES_256_CBC), _der(_OCTETS, iv))
    der = _sequence(_sequence(_der(_OID, _PBES2), _sequence(kdf, cipher)), _der(_OCTETS, sealed))
    body = base64.encodebytes(der).replace(b"\n", b"")
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    return b"\n".join([_LOCKED, *lines, b"-----END ENCRYPTED PRIVATE KEY-----", b""])


def load(pem: bytes, passphrase: str | None) -> bytes:
    """The 32-byte seed in `pem`.

    Raises:
        ValueError: not such a file, or the wrong passphrase.
        TypeError: not an Ed25519 key, or a locked one without a passphrase.
    """
    password = passphrase.encode() if passphrase is not None and is_locked(pem) else None
    key = load_pem_private_key(pem, password)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("not an Ed25519 key")
    return key.private_bytes_raw()


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x81, size])
    return bytes([tag]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _der(_SEQUENCE, b"".join(parts))


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
