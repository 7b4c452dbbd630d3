"""Events about erasure: that rows were forgotten and whose bodies must go, and each holder's word that they are gone.

Values and their strict readers only. No event names a row, a person or a value of a row: `request` is a random number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Literal, TypeAlias, get_args

from ledger.errors import BadEvent
from ledger.events.access import AccessDecided
from ledger.events.data import DataUsed
from ledger.events.fields import Body, Readers, hex_, integer, text
from protocol.canon import Json
from protocol.ids import Digest, EventId

Scope: TypeAlias = Literal["row", "subject", "contribution", "blob"]

WITHDRAWN: Final = "contribution"
"""Scope of a request that erases no rows: its author takes contributions back."""
DESTROYED: Final = "blob"
"""Scope of one that takes contributions back and has every holder delete their blobs, once a release is without them."""

MAX_LISTED: Final = (
    200  # event ids in one request; a larger erasure is several requests, so that each stays under 32 KiB
)

ERASABLE: Final = frozenset({DataUsed.TYPE, AccessDecided.TYPE})
"""Types whose bodies may be erased; a body of any other type that is missing is withheld."""

_SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureRequested:
    """Rows of a data set were deleted: contributions that were trained on them, and bodies of this feed that must go.

    With scope `contribution` or `blob` no row was: the author takes the listed contributions back.
    """

    TYPE: ClassVar[str] = "erasure.requested"
    dataset: str
    scope: Scope
    rows: int
    request: Digest  # random: the same in all events of one act, tells nothing else
    contributions: tuple[EventId, ...]  # ascending
    entries: tuple[EventId, ...]  # ascending; of the author's own feed
    deadline: int  # ms: when every holder should have confirmed

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "scope": self.scope,
            "rows": self.rows,
            "request": self.request,
            "contributions": list(self.contributions),
            "entries": list(self.entries),
            "deadline": self.deadline,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureDone:
    """A holder's word that it keeps none of the bodies that a request names; `bodies` is how many it deleted."""

    TYPE: ClassVar[str] = "erasure.done"
    request: EventId
    bodies: int

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"request": self.request, "bodies": self.bodies}


def _scope(value: Json) -> Scope:
    if value not in _SCOPES:
        raise BadEvent(f"couldn't read event: scope is one of {', '.join(_SCOPES)}")
    return value


def _events(body: Body, key: str) -> tuple[EventId, ...]:
    value = body[key]
    if not (isinstance(value, list) and len(value) <= MAX_LISTED):
        raise BadEvent(f"couldn't read event: {key} is a list of at most {MAX_LISTED} event ids")
    if not all(isinstance(each, str) and _HEX.match(each) for each in value):
        raise BadEvent(f"couldn't read event: {key} is a list of event ids")
    found = [EventId(str(each)) for each in value]
    if any(first >= second for first, second in pairwise(found)):
        raise BadEvent(f"couldn't read event: {key} is not in ascending order")
    return tuple(found)


READERS: Final[Readers] = {
    ErasureRequested.TYPE: (
        {"dataset", "scope", "rows", "request", "contributions", "entries", "deadline"},
        lambda b: ErasureRequested(
            dataset=text(b, "dataset"),
            scope=_scope(b["scope"]),
            rows=integer(b, "rows"),
            request=hex_(b, "request"),
            contributions=_events(b, "contributions"),
            entries=_events(b, "entries"),
            deadline=integer(b, "deadline"),
        ),
    ),
    ErasureDone.TYPE: (
        {"request", "bodies"},
        lambda b: ErasureDone(request=EventId(hex_(b, "request")), bodies=integer(b, "bodies")),
    ),
}
