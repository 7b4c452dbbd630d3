"""Cosignatures: a member that holds a feed signs its checkpoint too, so that a log can show no two histories unseen.

C2SP tlog-cosignature, both types: Ed25519 (`cosignature/v1`, key type 0x04) over the note's text with a time before it,
and beside it, if the witness has such a key, ML-DSA-44 (`subtree/v1`, key type 0x06, FIPS 204). Signed-note tools verify
both with the witness's verifier keys. Knows no feed, no clock and no charter: who counts is `ledger.witnesses`' matter.
Invariant: a `Cosignature` made by `make` carries valid signatures; one that was read must be checked with `verify`.
Formats: c2sp.org/tlog-cosignature, c2sp.org/signed-note.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nacl.exceptions import BadSignatureError

from ledger import checkpoint
from ledger.checkpoint import Head
from protocol import keys
from protocol.canon import MAX_INT
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import CollectiveId, Digest, MemberId, as_hex
from protocol.text import from_base64, to_base64

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

ED25519: Final = b"\x04"
ML_DSA_44: Final = b"\x06"
PUBLIC_BYTES: Final = {ED25519: 32, ML_DSA_44: 1312}
SIGNATURE_BYTES: Final = {ED25519: 64, ML_DSA_44: 2420}
MAX_LINES: Final = 64
_MARK: Final = "\u2014 "
_LINE: Final = re.compile(_MARK + r"([!-*,-~]+) ([A-Za-z0-9+/]{7,}={0,2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessKeys:
    """The public keys with which a member cosigns in a collective: Ed25519 in hex, and ML-DSA-44 if it has one."""

    collective: CollectiveId
    witness: MemberId
    public: str
    post_quantum: bytes | None = None

    @property
    def name(self) -> str:
        """The key name on its signature lines."""
        return key_name(self.collective, self.witness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosignature:
    """`witness` says: at `time` (s) the largest tree I had seen of `member`'s feed had `size` entries and this root."""

    collective: CollectiveId
    witness: MemberId
    member: MemberId
    size: int
    root: Digest
    time: int
    signature: bytes
    post_quantum: bytes | None = None


def make(
    key: keys.SigningKey, post_quantum: MLDSA44PrivateKey | None, *, witness: MemberId, head: Head, time: int
) -> Cosignature:
    """Cosign a head with the witness keys of `witness`; whether the head is consistent was checked before."""
    at = (head.collective, head.member, head.size, head.root)
    return Cosignature(
        collective=head.collective,
        witness=witness,
        member=head.member,
        size=head.size,
        root=head.root,
        time=time,
        signature=bytes(key.sign(_message(*at, time)).signature),
        post_quantum=None if post_quantum is None else post_quantum.sign(_subtree(witness, *at, time)),
    )


def verify(cosignature: Cosignature, by: WitnessKeys) -> None:
    """Check a cosignature with the keys of the witness that it names. A second signature that is there must be right.

    Raises:
        Malformed: a field is outside the format, or it names another witness or collective than the keys.
        BadKey, BadSignature: not signed by these keys.
    """
    c = cosignature
    if (c.collective, c.witness) != (by.collective, by.witness):
        raise Malformed(f"couldn't take cosignature of {c.witness[:12]}: the keys are another witness's")
    if c.witness == c.member:
        raise Malformed(f"couldn't take cosignature of {c.witness[:12]}: nobody witnesses its own feed")
    at = (c.collective, c.member, c.size, c.root)
    try:
        keys.admit(by.public).verify(_message(*at, c.time), c.signature)
    except (BadSignatureError, ValueError):  # ValueError: not 64 bytes
        raise BadSignature(f"couldn't verify cosignature of {c.witness[:12]}: the signature is wrong") from None
    if c.post_quantum is None:
        return
    if by.post_quantum is None:
        raise BadSignature(f"couldn't verify cosignature of {c.witness[:12]}: it bound no ML-DSA-44 key")
    _verify_post_quantum(by.post_quantum, c, _subtree(c.witness, *at, c.time))


def _verify_post_quantum(public: bytes, c: Cosignature, message: bytes) -> None:
    from cryptography.exceptions import InvalidSignature  # imported here: who checks Ed25519 alone needs PyNaCl alone
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

    try:
        MLDSA44PublicKey.from_public_bytes(public).verify(c.post_quantum or b"", message)
    except (InvalidSignature, ValueError):
        raise BadSignature(
            f"couldn't verify cosignature of {c.witness[:12]}: the ML-DSA-44 signature is wrong"
        ) from None


def lines(cosignature: Cosignature, by: WitnessKeys) -> str:
    """The signature lines of a cosignature as they stand under a note: Ed25519, then ML-DSA-44 if there is one."""
    parts = [(ED25519, bytes.fromhex(by.public), cosignature.signature)]
    if cosignature.post_quantum is not None and by.post_quantum is not None:
        parts.append((ML_DSA_44, by.post_quantum, cosignature.post_quantum))
    stamp = cosignature.time.to_bytes(8, "big")
    return "".join(
        f"{_MARK}{by.name} {to_base64(key_id(by.name, type_, public) + stamp + signature)}\n"
        for type_, public, signature in parts
    )


def cosigned_note(head: Head, cosignatures: Iterable[tuple[Cosignature, WitnessKeys]]) -> bytes:
    """The checkpoint of a feed with the lines of its witnesses: what signed-note and tlog-witness tools take.

    Raises:
        Malformed, BadSignature: a cosignature is not one of this head.
    """
    text = ""
    for cosignature, by in cosignatures:
        if (cosignature.member, cosignature.size, cosignature.root) != (head.member, head.size, head.root):
            raise Malformed("couldn't write note: a cosignature is of another head")
        verify(cosignature, by)
        text += lines(cosignature, by)
    return head.note + text.encode("utf-8")


def read_note(note: bytes, known: Sequence[WitnessKeys]) -> tuple[Head, list[Cosignature]]:
    """The head of a cosigned note and the verified cosignatures of the known witnesses, each witness once.

    Lines with a name or key id that is not known are passed over, as signed-note asks; a line of a known key must verify.

    Raises:
        TooLarge, Malformed, BadKey, BadSignature: the note, or a line of a known key, is not right.
    """
    parts = note.split(b"\n")
    if len(parts) > MAX_LINES + 6:
        raise TooLarge(f"couldn't read note: more than {MAX_LINES} signature lines")
    head = checkpoint.parse(b"\n".join(parts[:5]) + b"\n")
    try:
        rest = b"\n".join(parts[5:]).decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("couldn't read note: not UTF-8") from None
    if rest and not rest.endswith("\n"):
        raise Malformed("couldn't read note: the last line does not end")
    by_mark = {(k.name, key_id(k.name, t, p)): (k, t) for k in known for t, p in _publics(k)}
    found: dict[MemberId, tuple[WitnessKeys, dict[bytes, tuple[int, bytes]]]] = {}
    for line in rest.splitlines():
        name, mark = _line(line)
        if (match := by_mark.get((name, mark[:4]))) is not None:
            by, type_ = match
            if len(mark) != 12 + SIGNATURE_BYTES[type_]:
                raise Malformed("couldn't read note: a cosignature has another length")
            found.setdefault(by.witness, (by, {}))[1].setdefault(type_, (int.from_bytes(mark[4:12], "big"), mark[12:]))
    verified = []
    for by, signatures in found.values():
        if ED25519 not in signatures:
            continue  # the first type alone counts; the second stands beside it
        time, signature = signatures[ED25519]
        second = signatures.get(ML_DSA_44)
        cosignature = Cosignature(
            collective=head.collective,
            witness=by.witness,
            member=head.member,
            size=head.size,
            root=head.root,
            time=time,
            signature=signature,
            post_quantum=second[1] if second and second[0] == time else None,
        )
        verify(cosignature, by)
        verified.append(cosignature)
    return head, verified


def key_name(collective: CollectiveId, witness: MemberId) -> str:
    """The name of a member's witness key; another than that of its log key, as they make different statements."""
    return f"{checkpoint.origin(collective, witness)}/witness"


def key_id(name: str, type_: bytes, public: bytes) -> bytes:
    """The four bytes by which a signature line names a key (signed-note)."""
    return hashlib.sha256(name.encode("ascii") + b"\n" + type_ + public).digest()[:4]


def verifier_key(collective: CollectiveId, witness: MemberId, type_: bytes, public: bytes) -> str:
    """A witness key as signed-note tools take it: `name+key id+base64(type || public key)`."""
    name = key_name(collective, witness)
    return f"{name}+{key_id(name, type_, public).hex()}+{to_base64(type_ + public)}"


def read_verifier_key(value: object, collective: CollectiveId, witness: MemberId, type_: bytes) -> bytes:
    """The public key in a verifier key that must be this witness's, in its one spelling.

    Raises:
        Malformed: it is not. BadKey: an Ed25519 key that is no valid point.
    """
    start = len(key_name(collective, witness)) + 1 + 8 + 1  # name, plus, key id, plus
    raw = from_base64(value[start:] if isinstance(value, str) else None, 1 + PUBLIC_BYTES[type_], "verifier key")
    if raw[:1] != type_ or value != verifier_key(collective, witness, type_, raw[1:]):
        raise Malformed("couldn't read verifier key: another name, key id or key type is expected")
    if type_ == ED25519:
        keys.admit(raw[1:].hex())
    return raw[1:]


def _publics(known: WitnessKeys) -> list[tuple[bytes, bytes]]:
    first = [(ED25519, bytes.fromhex(known.public))]
    return first if known.post_quantum is None else [*first, (ML_DSA_44, known.post_quantum)]


def _line(line: str) -> tuple[str, bytes]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise Malformed("couldn't read note: a line is no signature line")
    name, mark = match.groups()
    for size in (4 + 8 + size for size in SIGNATURE_BYTES.values()):
        if len(mark) == 4 * ((size + 2) // 3):
            return name, from_base64(mark, size, "signature line")
    return name, b"\0" * 4  # another kind of signature than we know


def _message(collective: CollectiveId, member: MemberId, size: int, root: Digest, time: int) -> bytes:
    if not 1 <= time <= MAX_INT:
        raise Malformed("couldn't cosign: a time is from 1 to 2^53-1 seconds")
    return b"cosignature/v1\ntime %d\n" % time + checkpoint.text(collective, member, size, root)


def _subtree(
    witness: MemberId, collective: CollectiveId, member: MemberId, size: int, root: Digest, time: int
) -> bytes:
    """The `cosigned_message` struct of the ML-DSA-44 type."""
    name = key_name(collective, witness).encode("ascii")
    origin = checkpoint.origin(collective, member).encode("ascii")
    return b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(name)]) + name,
            struct.pack(">Q", time),
            bytes([len(origin)]) + origin,
            struct.pack(">QQ", 0, size),
            bytes.fromhex(as_hex(root, "root")),
        )
    )
