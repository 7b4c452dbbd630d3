"""Ed25519 and ML-DSA-44 private keys in PEM: PKCS#8 (RFC 8410, RFC 9881), locked by scrypt (RFC 7914) and AES-256-CBC (PBES2).

`cryptography` reads such files but writes PBKDF2 with 2,048 rounds, too cheap to guess; so the locked form is written
here and read there. `openssl pkey -in FILE` reads both. Knows no paths. Law: `load(dump(seed, p), p) == seed`.
"""

from __future__ import annotations

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
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
    return lock(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase, salt=salt, iv=iv)


def lock(plain: bytes, passphrase: str, *, salt: bytes, iv: bytes) -> bytes:
    """PEM of any PKCS#8 key in DER (at most 200 bytes), locked as `dump` locks it."""
    secret = stretch(passphrase, salt)
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


def stretch(passphrase: str, salt: bytes) -> bytes:
    """The 32 bytes that a passphrase stands for under `salt` (scrypt, RFC 7914; each guess costs 16 MiB and 0.2 s)."""
    return hashlib.scrypt(
        passphrase.encode(), salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, dklen=32, maxmem=_COST * _BLOCK * 256
    )


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


def dump_post_quantum(seed: bytes, passphrase: str | None, *, salt: bytes, iv: bytes) -> bytes:
    """Like `dump`, for the 32-byte seed of an ML-DSA-44 key (FIPS 204, RFC 9881)."""
    key = MLDSA44PrivateKey.from_seed_bytes(seed)
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return lock(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase, salt=salt, iv=iv)


def load_post_quantum(pem: bytes, passphrase: str | None) -> MLDSA44PrivateKey:
    """The ML-DSA-44 key in `pem`. Raises as `load`."""
    password = passphrase.encode() if passphrase is not None and is_locked(pem) else None
    key = load_pem_private_key(pem, password)
    if not isinstance(key, MLDSA44PrivateKey):
        raise TypeError("not an ML-DSA-44 key")
    return key


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([0x81, size])
    return bytes([tag]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _der(_SEQUENCE, b"".join(parts))


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
