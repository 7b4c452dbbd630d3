"""Events that make releases: contributions, what each member measured, proposals and the two votes.

Values and their strict readers only; `ledger.tally` counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import Body, Readers, code, hex_, integer, maybe_hex, object_, text
from protocol.canon import Json
from protocol.ids import Digest, EventId, as_hex

MAX_ATTEMPT: Final = 1_000_000
MAX_LOSS: Final = 1000  # centinats: differences are clipped to +-10 nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A contribution exists: its number in the member's epoch (1, 2, ...), digest and size of its blob, the run that made it."""

    TYPE: ClassVar[str] = "contribution.published"
    epoch: Digest
    number: int
    blob: Digest
    size: int
    run: str

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"epoch": self.epoch, "number": self.number, "blob": self.blob, "size": self.size, "run": self.run}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One contribution a member speaks against, with the code of its reason."""

    event: EventId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a member measured of one candidate, once per height and candidate.

    `versus_base` and `versus_parent` are the member's held-out loss of the candidate minus that of the base model and of
    the release before, in 0.01 nats, clipped; None without held-out rows. `objections` names contributions, worst first.
    """

    TYPE: ClassVar[str] = "gate.verdict"
    height: int
    candidate: Digest
    rows: int
    versus_base: int | None
    versus_parent: int | None
    objections: tuple[Objection, ...]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "height": self.height,
            "candidate": self.candidate,
            "rows": self.rows,
            "versus_base": self.versus_base,
            "versus_parent": self.versus_parent,
            "objections": [[o.event, o.reason] for o in self.objections],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """The proposer of (height, attempt) proposes a value; `valid_attempt` >= 0 names an earlier attempt with q accepts."""

    TYPE: ClassVar[str] = "release.proposed"
    height: int
    attempt: int
    valid_attempt: int
    value: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "height": self.height,
            "attempt": self.attempt,
            "valid_attempt": self.valid_attempt,
            "value": dict(self.value),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """First vote: for the value."""

    TYPE: ClassVar[str] = "vote.accept"
    height: int
    attempt: int
    digest: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"height": self.height, "attempt": self.attempt, "digest": self.digest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objected:
    """First vote: against, with a reason code; digest None when no proposal came in time."""

    TYPE: ClassVar[str] = "vote.object"
    height: int
    attempt: int
    digest: Digest | None
    reason: str

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"height": self.height, "attempt": self.attempt, "digest": self.digest, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Second vote: locks the value; digest None gives the attempt up."""

    TYPE: ClassVar[str] = "vote.commit"
    height: int
    attempt: int
    digest: Digest | None

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"height": self.height, "attempt": self.attempt, "digest": self.digest}


def _loss(body: Body, key: str) -> int | None:
    return None if body[key] is None else integer(body, key, MAX_LOSS, -MAX_LOSS)


def _objections(body: Body) -> tuple[Objection, ...]:
    value = body["objections"]
    if not isinstance(value, list) or len(value) > 256:
        raise BadEvent("couldn't read event: objections is a list of at most 256")
    found = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2):
            raise BadEvent("couldn't read event: an objection is a pair of event and reason")
        found.append(Objection(event=EventId(as_hex(item[0], "event")), reason=code(item[1], "reason")))
    return tuple(found)


_VOTE: Final = frozenset({"height", "attempt", "digest"})

READERS: Final[Readers] = {
    Published.TYPE: (
        {"epoch", "number", "blob", "size", "run"},
        lambda b: Published(
            epoch=hex_(b, "epoch"),
            number=integer(b, "number", low=1),
            blob=hex_(b, "blob"),
            size=integer(b, "size", low=1),
            run=text(b, "run"),
        ),
    ),
    Verdict.TYPE: (
        {"height", "candidate", "rows", "versus_base", "versus_parent", "objections"},
        lambda b: Verdict(
            height=integer(b, "height"),
            candidate=hex_(b, "candidate"),
            rows=integer(b, "rows"),
            versus_base=_loss(b, "versus_base"),
            versus_parent=_loss(b, "versus_parent"),
            objections=_objections(b),
        ),
    ),
    Proposed.TYPE: (
        {"height", "attempt", "valid_attempt", "value"},
        lambda b: Proposed(
            height=integer(b, "height"),
            attempt=integer(b, "attempt", MAX_ATTEMPT),
            valid_attempt=integer(b, "valid_attempt", MAX_ATTEMPT, -1),
            value=object_(b, "value"),
        ),
    ),
    Accepted.TYPE: (
        {*_VOTE},
        lambda b: Accepted(
            height=integer(b, "height"),
            attempt=integer(b, "attempt", MAX_ATTEMPT),
            digest=hex_(b, "digest"),
        ),
    ),
    Objected.TYPE: (
        {*_VOTE, "reason"},
        lambda b: Objected(
            height=integer(b, "height"),
            attempt=integer(b, "attempt", MAX_ATTEMPT),
            digest=maybe_hex(b, "digest"),
            reason=code(b["reason"], "reason"),
        ),
    ),
    Committed.TYPE: (
        {*_VOTE},
        lambda b: Committed(
            height=integer(b, "height"),
            attempt=integer(b, "attempt", MAX_ATTEMPT),
            digest=maybe_hex(b, "digest"),
        ),
    ),
}
