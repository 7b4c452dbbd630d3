"""Events that found and change a collective: charter, peer bindings, node starts, amendments.

Values and their strict readers only; what follows from them is the fold's matter. Law: `READERS[e.TYPE]` reads `e.to_json()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import TEXT, Body, Readers, flag, hex_, object_
from protocol.canon import Json
from protocol.ids import EventId


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """The founder writes the charter whose digest is the collective id."""

    TYPE: ClassVar[str] = "charter.genesis"
    charter: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"charter": dict(self.charter)}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBound:
    """Binds a transport key to the member, signed by both (`protocol.binding`)."""

    TYPE: ClassVar[str] = "peer.bound"
    binding: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"binding": dict(self.binding)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStarted:
    """A node began to write: versions of what it runs on, and whether it accepted a fork risk."""

    TYPE: ClassVar[str] = "node.started"
    versions: Mapping[str, str]
    fork_risk_accepted: bool

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"versions": dict(self.versions), "fork_risk_accepted": self.fork_risk_accepted}


@dataclass(frozen=True, slots=True, kw_only=True)
class AmendmentProposed:
    """A change of the charter, asked for; the author approves it by asking."""

    TYPE: ClassVar[str] = "amendment.proposed"
    change: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"change": dict(self.change)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AmendmentApproved:
    """The operator of a voting member agrees with a proposed change."""

    TYPE: ClassVar[str] = "amendment.approved"
    proposal: EventId

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"proposal": self.proposal}


def _versions(body: Body) -> dict[str, str]:
    value = object_(body, "versions")
    if len(value) > 32 or not all(isinstance(v, str) and TEXT.match(v) for v in value.values()):
        raise BadEvent("couldn't read event: versions is a short table of texts")
    return {k: str(v) for k, v in value.items()}


READERS: Final[Readers] = {
    Genesis.TYPE: ({"charter"}, lambda b: Genesis(charter=object_(b, "charter"))),
    PeerBound.TYPE: ({"binding"}, lambda b: PeerBound(binding=object_(b, "binding"))),
    NodeStarted.TYPE: (
        {"versions", "fork_risk_accepted"},
        lambda b: NodeStarted(versions=_versions(b), fork_risk_accepted=flag(b, "fork_risk_accepted")),
    ),
    AmendmentProposed.TYPE: ({"change"}, lambda b: AmendmentProposed(change=object_(b, "change"))),
    AmendmentApproved.TYPE: ({"proposal"}, lambda b: AmendmentApproved(proposal=EventId(hex_(b, "proposal")))),
}
