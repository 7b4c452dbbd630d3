"""The data key of sealed rows: drawn once, locked by the node's passphrase in `keys/rows.key`, open in memory only.

    {"v":1,"salt":base64,"nonce":base64,"key":base64}     key: AES-256-GCM under scrypt(passphrase, salt), costs of `pkcs8`
Knows no rows. Trust: `rows.key` is trusted, mode 0600, useless without the passphrase; losing it loses the sealed rows.
Invariant: the key itself is never written to a file, a log, an argument list or an environment.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node.errors import IdentityError, NotAllowed, PassphraseNeeded, WrongPassphrase
from node.files import write_new
from node.keys import pkcs8

if TYPE_CHECKING:
    from node.home import Home

_PLACE: Final = b"fishernet/rows-key/v1"
_KEY_BYTES, _SALT_BYTES, _NONCE_BYTES = 32, 16, 12
_MOST: Final = 4096


class RowKey:
    """The data key of one home; the file is opened at first use and the key is remembered."""

    def __init__(self, home: Home, passphrase: str | None) -> None:
        """Read nothing yet."""
        self._home = home
        self._passphrase = passphrase
        self._known: bytes | None = None

    @property
    def exists(self) -> bool:
        """Whether this home has a data key."""
        return self._home.rows_key.exists()

    @property
    def can_create(self) -> bool:
        """Whether there is a passphrase to lock a new data key with."""
        return bool(self._passphrase)

    def get(self) -> bytes | None:
        """The data key; None in a home whose rows are plain.

        Raises:
            PassphraseNeeded: rows are sealed and nobody gave the passphrase.
            WrongPassphrase: it does not open the key.
            IdentityError: the file is damaged.
        """
        if self._known is None and self.exists:
            self._known = self._open()
        return self._known

    def try_get(self) -> bytes | None:
        """The data key when it can be had without asking: None for plain rows and where nobody gave a passphrase."""
        return self.get() if self._known or self._passphrase else None

    def create(self) -> bytes:
        """The data key, drawn and locked now when there is none.

        Raises:
            NotAllowed: the home has no passphrase that could lock it.
        """
        found = self.get()
        if found is not None:
            return found
        if not self._passphrase:
            raise NotAllowed(
                "couldn't seal rows: this node's key has no passphrase, so nothing could lock the rows' key",
                hint="only a node made with a passphrase (fishernet init --passphrase-file FILE) can seal its rows",
            )
        key, salt, nonce = os.urandom(_KEY_BYTES), os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        locked = AESGCM(pkcs8.stretch(self._passphrase, salt)).encrypt(nonce, key, _PLACE)
        parts = {"salt": salt, "nonce": nonce, "key": locked}
        text = json.dumps({"v": 1, **{name: base64.b64encode(part).decode() for name, part in parts.items()}})
        write_new(self._home.rows_key, text.encode() + b"\n", mode=0o600)
        self._known = key
        return key

    def _open(self) -> bytes:
        path = self._home.rows_key
        if not self._passphrase:
            raise PassphraseNeeded(
                f"couldn't unlock {path}: the rows are sealed and it needs the passphrase",
                hint="set FISHERNET_PASSPHRASE, pass --passphrase-file FILE, or run in a terminal and type it",
            )
        try:
            value = json.loads(path.read_bytes()[:_MOST])
            if not isinstance(value, dict) or value.get("v") != 1:
                raise ValueError("not a key file of this version")
            salt, nonce, locked = (base64.b64decode(value[name], validate=True) for name in ("salt", "nonce", "key"))
            cipher = AESGCM(pkcs8.stretch(self._passphrase, salt))
        except (ValueError, KeyError, TypeError) as e:
            raise IdentityError(f"couldn't read {path}: {e}", hint="restore it from your copy") from None
        try:
            return cipher.decrypt(nonce, locked, _PLACE)
        except (InvalidTag, ValueError):
            raise WrongPassphrase(f"couldn't unlock {path}: wrong passphrase") from None
