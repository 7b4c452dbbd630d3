"""The event with which a node says that it serves a member no longer for a time.

A value and a strict reader only. It is one node's own opinion: nothing in the fold follows from it; members and auditors read it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import Body, Readers, code, hex_, maybe_integer
from protocol.canon import Json
from protocol.ids import MemberId, PeerId

_PEER: Final = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBanned:
    """This node serves a member's peer no longer: since the entry's time, until `until` (ms since 1970; None: until told).

    `peer` is None when every peer of the member is meant. At most one a day and member is written, so later bans of a day are
    in the node's log only.
    """

    TYPE: ClassVar[str] = "peer.banned"
    member: MemberId
    peer: PeerId | None
    reason: str
    until: int | None

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"member": self.member, "peer": self.peer, "reason": self.reason, "until": self.until}


def _peer(body: Body) -> PeerId | None:
    value = body["peer"]
    if value is None:
        return None
    if not (isinstance(value, str) and _PEER.match(value)):
        raise BadEvent("couldn't read event: peer is an Ed25519 peer id or null")
    return PeerId(value)


READERS: Final[Readers] = {
    PeerBanned.TYPE: (
        {"member", "peer", "reason", "until"},
        lambda b: PeerBanned(
            member=MemberId(hex_(b, "member")),
            peer=_peer(b),
            reason=code(b["reason"], "reason"),
            until=maybe_integer(b, "until"),
        ),
    )
}
