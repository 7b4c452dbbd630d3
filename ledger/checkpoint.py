"""The signed head of a feed: a C2SP checkpoint (signed note) that says "this feed has `size` entries and this root".

The note bytes are the gossip announcement, and Go's sumdb tools verify them with `verifier_key`. One spelling only:
three text lines without extensions and one Ed25519 signature line of the member itself. Knows no stores, no networks.
Invariant: a `Head` made by `make` or `parse` carries a valid signature of its member.
Formats: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Final

from nacl.exceptions import BadSignatureError

from protocol import keys
from protocol.canon import MAX_INT
from protocol.errors import BadSignature, Malformed, TooLarge
from protocol.ids import CollectiveId, Digest, MemberId, as_hex

MAX_NOTE: Final = 1024
ALGORITHM: Final = b"\x01"  # Ed25519 in the key id and verifier key of a signed note

_NOTE = re.compile(
    r"fishernet/([0-9a-f]{64})/([0-9a-f]{64})\n"
    r"([1-9][0-9]{0,15})\n"
    r"([A-Za-z0-9+/]{43}=)\n"
    r"\n"
    r"\u2014 ([!-~]+) ([A-Za-z0-9+/]{91}=)\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first `size` entries of a feed have the RFC 6962 root `root`; `note` is the member's signed word for it."""

    collective: CollectiveId
    member: MemberId
    size: int
    root: Digest
    note: bytes

    @property
    def signature(self) -> bytes:
        """The 64 signature bytes inside the note."""
        return base64.b64decode(self.note.rsplit(b" ", 1)[1])[4:]


def make(key: keys.SigningKey, collective: CollectiveId, member: MemberId, size: int, root: Digest) -> Head:
    """Sign a head of one's own feed.

    Law: what is made parses back, `parse(head.note) == head`.

    Raises:
        Malformed: `member` is not the owner of `key`, or a field is outside the format.
    """
    if member != keys.member_id(key):
        raise Malformed(f"couldn't sign head: the key is not that of member {member[:12]}")
    signature = bytes(key.sign(text(collective, member, size, root)).signature)
    return assemble(collective, member, size, root, signature)


@functools.lru_cache(maxsize=2048)  # one head comes by gossip and from several peers; a refusal is not remembered
def parse(note: bytes) -> Head:
    """Read a head that another party relays, and check its member's signature.

    Raises:
        TooLarge, Malformed: not the one spelling of a head.
        BadKey, BadSignature: not signed by the member it names.
    """
    if len(note) > MAX_NOTE:
        raise TooLarge(f"couldn't read head: {len(note)} bytes, the limit is {MAX_NOTE}")
    try:
        match = _NOTE.fullmatch(note.decode("utf-8"))
    except UnicodeDecodeError:
        match = None
    if match is None:
        raise Malformed("couldn't read head: not a checkpoint of a feed")
    collective, member = CollectiveId(match[1]), MemberId(match[2])
    head = assemble(collective, member, int(match[3]), Digest(_unbase64(match[4]).hex()), _unbase64(match[6])[4:])
    if head.note != note:
        raise Malformed("couldn't read head: another key name, key id or spelling than its member's")
    try:
        keys.admit(member).verify(text(collective, member, head.size, head.root), head.signature)
    except BadSignatureError:
        raise BadSignature(f"couldn't verify head of {member[:12]}: the signature is wrong") from None
    return head


def assemble(collective: CollectiveId, member: MemberId, size: int, root: Digest, signature: bytes) -> Head:
    """Put a head together from its stored parts; nothing is verified.

    Raises:
        Malformed: a field is outside the format.
    """
    signed = text(collective, member, size, root)
    name = origin(collective, member)
    mark = base64.b64encode(key_id(name, member) + signature).decode("ascii")
    note = signed + f"\n\u2014 {name} {mark}\n".encode()
    return Head(collective=collective, member=member, size=size, root=root, note=note)


def origin(collective: CollectiveId, member: MemberId) -> str:
    """The origin line of a feed's checkpoints, and the name of the key that signs them."""
    return f"fishernet/{collective}/{member}"


def verifier_key(collective: CollectiveId, member: MemberId) -> str:
    """The verifier key of a feed in the form that signed-note tools take: `name+key id+base64(0x01 || public key)`."""
    name = origin(collective, member)
    public = base64.b64encode(ALGORITHM + bytes.fromhex(member)).decode("ascii")
    return f"{name}+{key_id(name, member).hex()}+{public}"


def key_id(name: str, member: MemberId) -> bytes:
    """The four bytes by which a signed note names the Ed25519 key `member` under the key name `name`."""
    return hashlib.sha256(name.encode("ascii") + b"\n" + ALGORITHM + bytes.fromhex(member)).digest()[:4]


def text(collective: CollectiveId, member: MemberId, size: int, root: Digest) -> bytes:
    """The three lines of a note that are signed (raises Malformed: a field is outside the format)."""
    as_hex(collective, "collective id")
    as_hex(member, "member id")
    if not 1 <= size <= MAX_INT:
        raise Malformed("couldn't write head: a size is from 1 to 2^53-1")
    encoded = base64.b64encode(bytes.fromhex(as_hex(root, "root"))).decode("ascii")
    return f"{origin(collective, member)}\n{size}\n{encoded}\n".encode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("couldn't read head: base64 is expected") from None
