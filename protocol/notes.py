"""Signed notes of other programs: their verifier keys in text, and the Ed25519 signatures under a note.

Our own checkpoints have one spelling and are read by `ledger.checkpoint`; this is for what a person types or a tool hands
over. Knows no trees. Invariant: a `VerifierKey` was read from its one spelling, and its id is the one that its name and bytes
make. Format: c2sp.org/signed-note.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from nacl.exceptions import BadSignatureError

from protocol import keys
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.text import from_base64, to_base64

ED25519: Final = 1
COSIGNATURE: Final = 4
MAX_NOTE: Final = 1 << 20
_KEY = re.compile(r"([^\s+]{1,255})\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\Z")
_SIZES: Final = {ED25519: 32, COSIGNATURE: 32}
_MARK: Final = "\u2014 "


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """Whose signatures to accept: a key name, the kind of signature, and the public key."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return hashlib.sha256(self.name.encode("utf-8") + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{to_base64(bytes([self.kind]) + self.public)}"


def read_key(text: str) -> VerifierKey:
    """Read `name+key id+base64(kind || public key)`; Ed25519 keys of logs (1) and of witnesses (4).

    Raises:
        Malformed: another kind, length, key id or spelling. BadKey: no valid point.
    """
    match = _KEY.match(text)
    if match is None:
        raise Malformed("couldn't read verifier key: name+id+base64 is expected")
    raw = from_base64(match[3], 33, "verifier key")
    key = VerifierKey(name=match[1], kind=raw[0], public=raw[1:])
    if key.kind not in _SIZES or key.id.hex() != match[2]:
        raise Malformed(
            "couldn't read verifier key: its id is not the one that its name and bytes make, or its kind is unknown"
        )
    keys.admit(key.public.hex())
    return key


def read(note: bytes, key: VerifierKey) -> str:
    """The text of a note that carries a good signature of an Ed25519 log key; lines of other keys are passed over.

    Raises:
        TooLarge, Malformed: no note. BadSignature: no line of this key, or one that is wrong.
    """
    if len(note) > MAX_NOTE:
        raise TooLarge(f"couldn't read note: {len(note)} bytes, the limit is {MAX_NOTE}")
    try:
        text, separator, lines = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise Malformed("couldn't read note: not UTF-8") from None
    text += "\n"
    if not separator or not lines.endswith("\n") or any(ord(c) < 0x20 and c != "\n" for c in text + lines):
        raise Malformed("couldn't read note: text, an empty line and signature lines are expected")
    ours = []
    for line in lines[:-1].split("\n"):
        name, _, mark = line.removeprefix(_MARK).partition(" ")
        if not line.startswith(_MARK) or not name or not mark:
            raise Malformed("couldn't read note: a line is no signature line")
        if key.kind == ED25519 and name == key.name and len(mark) == 92:
            ours.append(from_base64(mark, 68, "signature line"))
    signature = next((blob[4:] for blob in ours if blob[:4] == key.id), None)
    if signature is None:
        raise BadSignature(f"couldn't verify note: it has no signature of {key.name[:60]}")
    try:
        keys.admit(key.public.hex()).verify(text.encode("utf-8"), signature)
    except BadSignatureError:
        raise BadSignature(f"couldn't verify note of {key.name[:60]}: the signature is wrong") from None
    return text
