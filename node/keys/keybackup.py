"""All keys of a home in one encrypted file: AES-256-GCM under a key stretched from a passphrase (scrypt, RFC 7914).

One JSON object of texts: what was used, salt, nonce and the sealed files. Whoever has the file and the passphrase is the
member. Knows no feed: a restored key must ask peers for the head of its feed before it writes, which every start does.
Law: `restore(home, backup(home, p), p)` gives the same key files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.errors import IdentityError, WrongPassphrase
from node.files import write_new
from node.home import Home
from node.keys import pkcs8
from protocol.text import to_base64

_KIND: Final = "fishernet-key-backup/1"
_FIELDS: Final = frozenset({"kind", "kdf", "cipher", "salt", "nonce", "sealed"})
_SUITE: Final = {"kind": _KIND, "kdf": "scrypt-16384-8-5", "cipher": "aes-256-gcm"}
_MAX: Final = 256 * 1024


def seal(home: Home, passphrase: str) -> bytes:
    """Every key file of `home` (also keys that wait or were put away, and the recovery key if it is still there).

    Raises:
        IdentityError: the passphrase is empty, or a file is not there to read.
    """
    if not passphrase:
        raise IdentityError("couldn't back up keys: an empty passphrase protects nothing")
    files = {str(f.relative_to(home.path)): f for f in sorted(home.keys.rglob("*")) if f.is_file()}
    if home.recovery_file.exists():
        files[home.recovery_file.name] = home.recovery_file
    content = json.dumps({name: to_base64(path.read_bytes()) for name, path in files.items()}).encode()
    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = AESGCM(pkcs8.stretch(passphrase, salt)).encrypt(nonce, content, _KIND.encode())
    texts = {**_SUITE, "salt": salt.hex(), "nonce": nonce.hex(), "sealed": to_base64(sealed)}
    return json.dumps(texts, indent=1).encode() + b"\n"


def open_(data: bytes, passphrase: str) -> dict[str, bytes]:
    """The key files inside a backup, by their path in the home.

    Raises:
        IdentityError: not a backup, or a damaged one.
        WrongPassphrase: it does not open the backup.
    """
    try:
        texts = json.loads(data[:_MAX])
        known = texts.keys() == _FIELDS and all(texts[k] == v for k, v in _SUITE.items())
        salt, nonce = bytes.fromhex(texts["salt"]), bytes.fromhex(texts["nonce"])
        sealed = _bytes(texts["sealed"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IdentityError("couldn't read backup: not a key backup") from None
    if not known or (len(salt), len(nonce)) != (16, 12):
        raise IdentityError("couldn't read backup: made by another version")
    try:
        content = json.loads(AESGCM(pkcs8.stretch(passphrase, salt)).decrypt(nonce, sealed, _KIND.encode()))
    except InvalidTag:
        raise WrongPassphrase("couldn't open backup: wrong passphrase, or the file is damaged") from None
    return {_inside(name): _bytes(text) for name, text in content.items()}


def restore(home: Home, files: Mapping[str, bytes]) -> None:
    """Write the files of a backup into a home that has no ledger key.

    Raises:
        IdentityError: a ledger key is there; it is never overwritten.
    """
    if home.ledger_key.exists():
        raise IdentityError(
            f"couldn't restore keys: {home.ledger_key} exists and is never overwritten",
            hint="restore into another directory with --home, or move that file away first",
        )
    last = "keys/ledger.pem"
    if last not in files:
        raise IdentityError("couldn't restore keys: the backup has no ledger key")
    for name in sorted(files, key=lambda n: n == last):
        path = home.path / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(path, files[name], mode=0o600)


def _bytes(text: str) -> bytes:
    import base64

    return base64.b64decode(text, validate=True)


def _inside(name: str) -> str:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] not in {("keys",), ("recovery.pem",)}:
        raise IdentityError(f"couldn't restore keys: the backup names {name[:40]!r}, which is no key file")
    return name
