"""The closed set of event types and their bodies, read strictly.

Knows nothing of feeds or of what follows from an event. A body that does not parse is `BadEvent`; a type that is not in
`TYPES` is kept in the feed and flagged, never dropped. One module for each matter. Law: `parse(e.TYPE, e.to_json()) == e`.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

from ledger.errors import BadEvent
from ledger.events import data, fields, members, releases
from ledger.events.data import DataCommitted, DataUsed
from ledger.events.members import AmendmentApproved, AmendmentProposed, Genesis, NodeStarted, PeerBound
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
from protocol.canon import Json

__all__ = [
    "MAX_ATTEMPT", "MAX_LOSS", "TYPES", "Accepted", "AmendmentApproved", "AmendmentProposed", "Committed",
    "DataCommitted", "DataUsed", "Event", "Genesis", "NodeStarted", "Objected", "Objection", "PeerBound",
    "Proposed", "Published", "Verdict", "parse",
]  # fmt: skip

Event: TypeAlias = (
    Genesis
    | PeerBound
    | NodeStarted
    | AmendmentProposed
    | AmendmentApproved
    | DataCommitted
    | DataUsed
    | Published
    | Verdict
    | Proposed
    | Accepted
    | Objected
    | Committed
)

_READERS: Final[fields.Readers] = {**members.READERS, **data.READERS, **releases.READERS}
TYPES: Final = frozenset(_READERS)


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
