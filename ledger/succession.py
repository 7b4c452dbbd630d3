"""Whoever owns a seat gives it to another key: the statement, who may sign it, and its place in an amendment.

A **rotation** is signed by the old ledger key and the new one; a **recovery** by the new key and the recovery key whose
SHA-256 the old feed committed to (`ledger.keyring`), so that it works without the old key and against its thief.
Knows no feed and no charter. Invariant: a `Statement` made by `read` carries both signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ledger.errors import BadCharter
from protocol import keys
from protocol.canon import MAX_INT, Json, encode
from protocol.errors import Malformed
from protocol.ids import ZERO, CollectiveId, Digest, MemberId, as_hex, digest
from protocol.keys import SigningKey, member_id
from protocol.text import from_base64, to_base64

DOMAIN: Final = "succession"
ROTATION: Final = "rotation"
RECOVERY: Final = "recovery"
CHANGE: Final = {"op", "old", "new", "size", "leaf", "statement"}
_FIELDS: Final = frozenset({"kind", "collective", "old", "new", "size", "leaf", "recovery", "by_new", "by_owner"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """`new` follows `old`, whose first `size` entries (the last has leaf `leaf`) stay trusted.

    `recovery` is the public recovery key that signed as the owner, None for a rotation (the old ledger key signed).
    """

    kind: str
    collective: CollectiveId
    old: MemberId
    new: MemberId
    size: int
    leaf: Digest
    recovery: str | None
    by_new: bytes
    by_owner: bytes

    def to_json(self) -> dict[str, Json]:
        """The canonical object. Law: `read(s.to_json()) == s`."""
        return {**_said(self), "by_new": to_base64(self.by_new), "by_owner": to_base64(self.by_owner)}

    def change(self) -> dict[str, Json]:
        """The amendment that this statement asks for."""
        return {
            "op": "succeed",
            "old": self.old,
            "new": self.new,
            "size": self.size,
            "leaf": self.leaf,
            "statement": self.to_json(),
        }

    @property
    def commitment(self) -> Digest | None:
        """SHA-256 of the recovery key that signed; None for a rotation."""
        return None if self.recovery is None else digest(bytes.fromhex(self.recovery))


def make(
    owner: SigningKey,
    new: SigningKey,
    *,
    collective: CollectiveId,
    old: MemberId,
    size: int,
    leaf: Digest,
) -> Statement:
    """Sign a succession; `owner` is the old ledger key, or else it is taken for the recovery key."""
    recovery = None if member_id(owner) == old else bytes(owner.verify_key).hex()
    blank = Statement(
        kind=ROTATION if recovery is None else RECOVERY,
        collective=collective,
        old=old,
        new=member_id(new),
        size=size,
        leaf=leaf,
        recovery=recovery,
        by_new=b"",
        by_owner=b"",
    )
    message = encode(_said(blank))
    signed = {**_said(blank), "by_new": to_base64(keys.sign(new, DOMAIN, message))}
    return read({**signed, "by_owner": to_base64(keys.sign(owner, DOMAIN, message))})


def read(value: Json | Mapping[str, Json]) -> Statement:
    """Read a statement and check both signatures.

    Raises:
        Malformed: not the fields of a statement, or one key in two parts.
        BadKey, BadSignature: a key is not acceptable, or did not sign.
    """
    if not isinstance(value, Mapping) or value.keys() != _FIELDS:
        raise Malformed("couldn't read succession: the fields are not those of a statement")
    kind, size, recovery = value["kind"], value["size"], value["recovery"]
    if not isinstance(kind, str) or kind not in {ROTATION, RECOVERY} or (recovery is None) != (kind == ROTATION):
        raise Malformed("couldn't read succession: a rotation, or a recovery with its key, is expected")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_INT:
        raise Malformed("couldn't read succession: size is an integer from 0")
    said = Statement(
        kind=str(kind),
        collective=CollectiveId(as_hex(value["collective"], "collective id")),
        old=MemberId(as_hex(value["old"], "old member id")),
        new=MemberId(as_hex(value["new"], "new member id")),
        size=size,
        leaf=Digest(as_hex(value["leaf"], "leaf")),
        recovery=None if recovery is None else as_hex(recovery, "recovery key"),
        by_new=from_base64(value["by_new"], 64, "signature"),
        by_owner=from_base64(value["by_owner"], 64, "signature"),
    )
    if (said.size == 0) != (said.leaf == ZERO):
        raise Malformed("couldn't read succession: the leaf of an empty feed, and of no other, is zero")
    if len({said.old, said.new, said.recovery}) != 3:
        raise Malformed("couldn't read succession: one key stands in two places")
    message = encode(_said(said))
    keys.verify(said.new, DOMAIN, message, said.by_new)
    keys.verify(said.recovery or said.old, DOMAIN, message, said.by_owner)
    return said


def read_change(change: Mapping[str, Json]) -> Statement:
    """The statement inside a `succeed` change.

    Raises:
        BadCharter: the change says something else than its statement.
        Malformed, BadKey, BadSignature: it is no statement.
    """
    said = read(change.get("statement"))
    if said.change() != dict(change):
        raise BadCharter("couldn't amend charter: the change and its statement differ")
    return said


def _said(statement: Statement) -> dict[str, Json]:
    return {
        "kind": statement.kind,
        "collective": statement.collective,
        "old": statement.old,
        "new": statement.new,
        "size": statement.size,
        "leaf": statement.leaf,
        "recovery": statement.recovery,
    }
