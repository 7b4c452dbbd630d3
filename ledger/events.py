"""The closed set of event types and their bodies, read strictly.

Knows nothing of feeds or of what follows from an event. A body that does not parse is `BadEvent`; a type that is not in
`TYPES` is kept in the feed and flagged, never dropped. Law: `parse(e.TYPE, e.to_json()) == e`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from protocol.canon import MAX_INT, Json
from protocol.ids import Digest, EventId, as_hex

MAX_ATTEMPT: Final = 1_000_000
MAX_LOSS: Final = 1000  # centinats: differences are clipped to +-10 nats
_CODE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,63}\Z")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,200}\Z")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCommitted:
    """Commits to both parts of a private data set without revealing a row: RFC 6962 roots over salted rows."""

    TYPE: ClassVar[str] = "data.committed"
    dataset: str
    train_rows: int
    held_out_rows: int
    train_root: Digest
    held_out_root: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "train_rows": self.train_rows,
            "held_out_rows": self.held_out_rows,
            "train_root": self.train_root,
            "held_out_root": self.held_out_root,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUsed:
    """One access to private rows: which committed part, for what, in which run."""

    TYPE: ClassVar[str] = "data.used"
    dataset: str
    root: Digest
    rows: int
    purpose: str
    run: str

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"dataset": self.dataset, "root": self.root, "rows": self.rows, "purpose": self.purpose, "run": self.run}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A contribution exists: its number in the member's epoch (1, 2, ...), the digest and size of its blob."""

    TYPE: ClassVar[str] = "contribution.published"
    epoch: Digest
    number: int
    blob: Digest
    size: int

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"epoch": self.epoch, "number": self.number, "blob": self.blob, "size": self.size}


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


Event = (
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
    return build(body)


Body = Mapping[str, Json]


def _int(body: Body, key: str, high: int = MAX_INT, low: int = 0) -> int:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadEvent(f"couldn't read event: {key} is an integer from {low} to {high}")
    return value


def _loss(body: Body, key: str) -> int | None:
    return None if body[key] is None else _int(body, key, MAX_LOSS, -MAX_LOSS)


def _maybe(body: Body, key: str) -> Digest | None:
    return None if body[key] is None else Digest(as_hex(body[key], key))


def _hex(body: Body, key: str) -> Digest:
    return Digest(as_hex(body[key], key))


def _dict(body: Body, key: str) -> dict[str, Json]:
    value = body[key]
    if not isinstance(value, dict):
        raise BadEvent(f"couldn't read event: {key} is an object")
    return value


def _code(value: Json, key: str) -> str:
    if not (isinstance(value, str) and _CODE.match(value)):
        raise BadEvent(f"couldn't read event: {key} is a code of small letters, digits, dots and dashes")
    return value


def _text(body: Body, key: str) -> str:
    value = body[key]
    if not (isinstance(value, str) and _TEXT.match(value)):
        raise BadEvent(f"couldn't read event: {key} is a text of at most 200 characters")
    return value


def _versions(body: Body) -> dict[str, str]:
    value = _dict(body, "versions")
    if len(value) > 32 or not all(isinstance(v, str) and _TEXT.match(v) for v in value.values()):
        raise BadEvent("couldn't read event: versions is a short table of texts")
    return {k: str(v) for k, v in value.items()}


def _flag(body: Body, key: str) -> bool:
    value = body[key]
    if not isinstance(value, bool):
        raise BadEvent(f"couldn't read event: {key} is true or false")
    return value


def _objections(body: Body) -> tuple[Objection, ...]:
    value = body["objections"]
    if not isinstance(value, list) or len(value) > 256:
        raise BadEvent("couldn't read event: objections is a list of at most 256")
    found = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2):
            raise BadEvent("couldn't read event: an objection is a pair of event and reason")
        found.append(Objection(event=EventId(as_hex(item[0], "event")), reason=_code(item[1], "reason")))
    return tuple(found)


_VOTE = {"height", "attempt", "digest"}
_READERS: Final[dict[str, tuple[set[str], Callable[[Body], Event]]]] = {
    Genesis.TYPE: ({"charter"}, lambda b: Genesis(charter=_dict(b, "charter"))),
    PeerBound.TYPE: ({"binding"}, lambda b: PeerBound(binding=_dict(b, "binding"))),
    NodeStarted.TYPE: (
        {"versions", "fork_risk_accepted"},
        lambda b: NodeStarted(versions=_versions(b), fork_risk_accepted=_flag(b, "fork_risk_accepted")),
    ),
    AmendmentProposed.TYPE: ({"change"}, lambda b: AmendmentProposed(change=_dict(b, "change"))),
    AmendmentApproved.TYPE: ({"proposal"}, lambda b: AmendmentApproved(proposal=EventId(_hex(b, "proposal")))),
    DataCommitted.TYPE: (
        {"dataset", "train_rows", "held_out_rows", "train_root", "held_out_root"},
        lambda b: DataCommitted(
            dataset=_text(b, "dataset"),
            train_rows=_int(b, "train_rows"),
            held_out_rows=_int(b, "held_out_rows"),
            train_root=_hex(b, "train_root"),
            held_out_root=_hex(b, "held_out_root"),
        ),
    ),
    DataUsed.TYPE: (
        {"dataset", "root", "rows", "purpose", "run"},
        lambda b: DataUsed(
            dataset=_text(b, "dataset"),
            root=_hex(b, "root"),
            rows=_int(b, "rows"),
            purpose=_code(b["purpose"], "purpose"),
            run=_text(b, "run"),
        ),
    ),
    Published.TYPE: (
        {"epoch", "number", "blob", "size"},
        lambda b: Published(
            epoch=_hex(b, "epoch"), number=_int(b, "number", low=1), blob=_hex(b, "blob"), size=_int(b, "size", low=1)
        ),
    ),
    Verdict.TYPE: (
        {"height", "candidate", "rows", "versus_base", "versus_parent", "objections"},
        lambda b: Verdict(
            height=_int(b, "height"),
            candidate=_hex(b, "candidate"),
            rows=_int(b, "rows"),
            versus_base=_loss(b, "versus_base"),
            versus_parent=_loss(b, "versus_parent"),
            objections=_objections(b),
        ),
    ),
    Proposed.TYPE: (
        {"height", "attempt", "valid_attempt", "value"},
        lambda b: Proposed(
            height=_int(b, "height"),
            attempt=_int(b, "attempt", MAX_ATTEMPT),
            valid_attempt=_int(b, "valid_attempt", MAX_ATTEMPT, -1),
            value=_dict(b, "value"),
        ),
    ),
    Accepted.TYPE: (
        _VOTE,
        lambda b: Accepted(height=_int(b, "height"), attempt=_int(b, "attempt", MAX_ATTEMPT), digest=_hex(b, "digest")),
    ),
    Objected.TYPE: (
        {*_VOTE, "reason"},
        lambda b: Objected(
            height=_int(b, "height"),
            attempt=_int(b, "attempt", MAX_ATTEMPT),
            digest=_maybe(b, "digest"),
            reason=_code(b["reason"], "reason"),
        ),
    ),
    Committed.TYPE: (
        _VOTE,
        lambda b: Committed(
            height=_int(b, "height"), attempt=_int(b, "attempt", MAX_ATTEMPT), digest=_maybe(b, "digest")
        ),
    ),
}
TYPES: Final = frozenset(_READERS)
