"""The event with which a member cosigns the heads of feeds that it holds.

Values and a strict reader only; `ledger.cosignature` checks the signatures and `ledger.witnesses` counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import Body, Readers
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, MemberId, as_hex
from protocol.text import from_base64, to_base64

MAX_HEADS: Final = 64
_SIGNATURE, _POST_QUANTUM = 64, 2420


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessed:
    """One cosigned head: feed, size, root, time in seconds, Ed25519 cosignature, and ML-DSA-44 cosignature or None."""

    member: MemberId
    size: int
    root: Digest
    time: int
    signature: bytes
    post_quantum: bytes | None = None

    def to_json(self) -> list[Json]:
        """The row."""
        second = None if self.post_quantum is None else to_base64(self.post_quantum)
        return [self.member, self.size, self.root, self.time, to_base64(self.signature), second]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWitnessed:
    """This node holds these feeds and their consistent history; at most 64, by member and size."""

    TYPE: ClassVar[str] = "head.witnessed"
    heads: tuple[Witnessed, ...]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"heads": [h.to_json() for h in self.heads]}


def _heads(body: Body) -> tuple[Witnessed, ...]:
    value = body["heads"]
    if not (isinstance(value, list) and 1 <= len(value) <= MAX_HEADS):
        raise BadEvent(f"couldn't read event: heads is a list of 1 to {MAX_HEADS}")
    found = tuple(_head(row) for row in value)
    places = [(h.member, h.size) for h in found]
    if places != sorted(set(places)):
        raise BadEvent("couldn't read event: heads are sorted by member and size, each once")
    return found


def _head(row: Json) -> Witnessed:
    if not (isinstance(row, list) and len(row) == 6):
        raise BadEvent("couldn't read event: a cosigned head has six parts")
    for number in (row[1], row[3]):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_INT:
            raise BadEvent("couldn't read event: size and time are integers from 1")
    return Witnessed(
        member=MemberId(as_hex(row[0], "member")),
        size=row[1],
        root=Digest(as_hex(row[2], "root")),
        time=row[3],
        signature=from_base64(row[4], _SIGNATURE, "cosignature"),
        post_quantum=None if row[5] is None else from_base64(row[5], _POST_QUANTUM, "cosignature"),
    )


READERS: Final[Readers] = {HeadWitnessed.TYPE: ({"heads"}, lambda b: HeadWitnessed(heads=_heads(b)))}
