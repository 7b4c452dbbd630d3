"""The closed set of event types and their bodies, read strictly.

Knows nothing of feeds or of what follows from an event. A body that does not parse is `BadEvent`; a type that is not in
`TYPES` is kept in the feed and flagged, never dropped. One module for each matter. Law: `parse(e.TYPE, e.to_json()) == e`.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

from ledger.entry import Record
from ledger.errors import BadEvent
from ledger.events import access, data, erasure, fields, grants, keys, members, network, releases, serving, witness
from ledger.events.access import (
    AccessDecided,
    AccessRequest,
    EgressRefused,
    EgressSet,
    ModelServed,
    ModelWithdrawn,
)
from ledger.events.data import DataCommitted, DataUsed
from ledger.events.erasure import DESTROYED, ERASABLE, WITHDRAWN, ErasureDone, ErasureRequested
from ledger.events.grants import (
    Audience,
    DataDescribed,
    GrantAccepted,
    GrantIssued,
    GrantNarrowed,
    GrantRevoked,
    Selector,
)
from ledger.events.keys import MAX_PROOF, ForkFound, KeyRotated, KeysBound, NodeAlive
from ledger.events.members import AmendmentApproved, AmendmentProposed, Genesis, NodeStarted, PeerBound
from ledger.events.network import PeerBanned
from ledger.events.releases import (
    MAX_ATTEMPT,
    MAX_LOSS,
    Accepted,
    Committed,
    Objected,
    Objection,
    Proposed,
    Published,
    Verdict,
)
from ledger.events.serving import MAX_SERVED, AccessServed, Served
from ledger.events.witness import MAX_HEADS, HeadWitnessed, Witnessed
from protocol.canon import Json

__all__ = [
    "DESTROYED", "ERASABLE", "MAX_ATTEMPT", "MAX_HEADS", "MAX_LOSS", "MAX_PROOF", "MAX_SERVED", "TYPES", "WITHDRAWN",
    "Accepted", "AccessDecided", "AccessRequest", "AccessServed", "AmendmentApproved", "AmendmentProposed", "Audience",
    "Committed", "DataCommitted", "DataDescribed", "DataUsed", "EgressRefused", "EgressSet", "ErasureDone",
    "ErasureRequested", "Event", "ForkFound", "Genesis", "GrantAccepted", "GrantIssued", "GrantNarrowed",
    "GrantRevoked", "HeadWitnessed", "KeyRotated", "KeysBound", "ModelServed", "ModelWithdrawn", "NodeAlive",
    "NodeStarted", "Objected", "Objection", "PeerBanned", "PeerBound", "Proposed", "Published", "Selector", "Served", "Verdict",
    "Witnessed", "parse", "read",
]  # fmt: skip

Event: TypeAlias = (
    Genesis
    | PeerBound
    | NodeStarted
    | AmendmentProposed
    | AmendmentApproved
    | DataCommitted
    | DataUsed
    | DataDescribed
    | GrantIssued
    | GrantNarrowed
    | GrantRevoked
    | GrantAccepted
    | AccessDecided
    | AccessServed
    | ErasureRequested
    | ErasureDone
    | EgressSet
    | EgressRefused
    | ModelServed
    | ModelWithdrawn
    | Published
    | Verdict
    | Proposed
    | Accepted
    | Objected
    | Committed
    | KeysBound
    | KeyRotated
    | NodeAlive
    | ForkFound
    | HeadWitnessed
    | PeerBanned
)

_READERS: Final[fields.Readers] = {
    **members.READERS,
    **data.READERS,
    **grants.READERS,
    **access.READERS,
    **serving.READERS,
    **erasure.READERS,
    **releases.READERS,
    **keys.READERS,
    **witness.READERS,
    **network.READERS,
}
TYPES: Final = frozenset(_READERS)


def read(record: Record) -> Event | None:
    """The event of an entry, read once however many look at it; None when its body is not here.

    Raises:
        BadEvent, Malformed: as `parse`, and for a body that is not an object.
    """
    body, type_ = record.body, record.entry.header.type
    if body is None:
        return None
    known = body.remembered(type_)
    if known is None:
        known = parse(type_, body.value())
        body.remember(type_, known)
    return cast("Event", known)


def parse(type_: str, body: Json) -> Event:
    """Read the body of a known type.

    Raises:
        BadEvent: unknown type, other keys, values out of range.
    """
    reader = _READERS.get(type_)
    if reader is None:
        raise BadEvent(f"couldn't read event: unknown type {type_[:40]!r}")
    keys, build = reader
    if not isinstance(body, dict) or set(body) != keys:
        raise BadEvent(f"couldn't read {type_}: the keys are not {', '.join(sorted(keys))}")
    return cast("Event", build(body))
