"""Events about keys and the life of a feed: witness and recovery keys, rotation, the heartbeat, forks that were found.

Values and their strict readers only; `ledger.keyring`, `ledger.succession` and `ledger.forks` check what they carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import Body, Readers, hex_, maybe_hex, object_
from protocol.canon import Json
from protocol.ids import Digest, MemberId
from protocol.text import from_base64, to_base64

MAX_PROOF: Final = 200 * 1024
_MAX_KEY: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysBound:
    """The keys beside the ledger key: verifier keys of log and witness, and the digest of a recovery key kept offline."""

    TYPE: ClassVar[str] = "keys.bound"
    log: str
    witness: str
    witness_pq: str | None
    recovery: Digest | None
    proof: bytes

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "log": self.log,
            "witness": self.witness,
            "witness_pq": self.witness_pq,
            "recovery": self.recovery,
            "proof": to_base64(self.proof),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotated:
    """The last entry of a feed: its owner goes on under another key (`ledger.succession`)."""

    TYPE: ClassVar[str] = "key.rotated"
    statement: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"statement": dict(self.statement)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAlive:
    """Nothing else was written for a while, and the node is there: an old head is no news of it."""

    TYPE: ClassVar[str] = "node.alive"

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkFound:
    """A member signed two histories; `proof` is the text of the canonical proof (`ledger.forks`)."""

    TYPE: ClassVar[str] = "fork.found"
    member: MemberId
    proof: str

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"member": self.member, "proof": self.proof}


def _long(body: Body, key: str, limit: int) -> str:
    value = body[key]
    if not (isinstance(value, str) and 1 <= len(value) <= limit and min(value) >= " "):
        raise BadEvent(f"couldn't read event: {key} is a text of at most {limit} characters")
    return value


READERS: Final[Readers] = {
    KeysBound.TYPE: (
        {"log", "witness", "witness_pq", "recovery", "proof"},
        lambda b: KeysBound(
            log=_long(b, "log", _MAX_KEY),
            witness=_long(b, "witness", _MAX_KEY),
            witness_pq=None if b["witness_pq"] is None else _long(b, "witness_pq", _MAX_KEY),
            recovery=maybe_hex(b, "recovery"),
            proof=from_base64(b["proof"], 64, "proof"),
        ),
    ),
    KeyRotated.TYPE: ({"statement"}, lambda b: KeyRotated(statement=object_(b, "statement"))),
    NodeAlive.TYPE: (set(), lambda _b: NodeAlive()),
    ForkFound.TYPE: (
        {"member", "proof"},
        lambda b: ForkFound(member=MemberId(hex_(b, "member")), proof=_long(b, "proof", MAX_PROOF)),
    ),
}
