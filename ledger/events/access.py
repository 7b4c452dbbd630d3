"""Events about access: decisions, what may leave a node and what was kept back, and which releases are served.

Values and their strict readers only; decisions are taken in `ledger.access`. Lists are sorted, each item once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ledger.errors import BadEvent
from ledger.events.fields import (
    Body,
    Readers,
    closed,
    code,
    hex_,
    integer,
    maybe_integer,
    name,
    object_,
    one_of,
    sorted_,
    text,
    word,
)
from ledger.events.grants import ACTIONS, MAX_LINKS
from protocol.canon import Json
from protocol.ids import Digest, EventId, MemberId, as_hex


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """Who wants to do what with which data set.

    `dataset` is the name of the actor's own data set, or `<owner>/<name>` for that of another member; `columns` are those
    that must be readable, none for whatever the grant covers; `epsilon_micro` None: no differential privacy.
    """

    actor: MemberId
    action: str
    dataset: str
    purpose: str
    columns: tuple[str, ...]
    rows: int
    epsilon_micro: int | None
    at: int
    run: str

    def to_json(self) -> dict[str, Json]:
        """The form in a decision."""
        return {
            "actor": self.actor,
            "action": self.action,
            "dataset": self.dataset,
            "purpose": self.purpose,
            "columns": list(self.columns),
            "rows": self.rows,
            "epsilon_micro": self.epsilon_micro,
            "at": self.at,
            "run": self.run,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessDecided:
    """A request was decided on: by which chain of grants (the owner's first), why not, under which egress policy."""

    TYPE: ClassVar[str] = "access.decided"
    request: AccessRequest
    grants: tuple[EventId, ...]
    verdict: str  # "allow" | "deny"
    reasons: tuple[str, ...]
    policy: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "request": self.request.to_json(),
            "grants": list(self.grants),
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "policy": self.policy,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressSet:
    """What may leave the author's node from here on (`ledger.access.egress` reads it)."""

    TYPE: ClassVar[str] = "egress.set"
    policy: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"policy": dict(self.policy)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRefused:
    """Something was kept back: `run` is what would have been published, or empty for a blob that a member asked for."""

    TYPE: ClassVar[str] = "egress.refused"
    run: str
    code: str
    policy: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"run": self.run, "code": self.code, "policy": self.policy}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelServed:
    """The author's node began to serve a release; `model` is the digest of the vector."""

    TYPE: ClassVar[str] = "model.served"
    release: Digest
    model: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"release": self.release, "model": self.model}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWithdrawn:
    """The author's node stopped to serve a release for good."""

    TYPE: ClassVar[str] = "model.withdrawn"
    release: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"release": self.release}


def _request(body: Body) -> AccessRequest:
    keys = {"actor", "action", "dataset", "purpose", "columns", "rows", "epsilon_micro", "at", "run"}
    value = closed(object_(body, "request"), keys, "request")
    return AccessRequest(
        actor=MemberId(hex_(value, "actor")),
        action=one_of(ACTIONS)(value["action"], "action"),
        dataset=name(value),
        purpose=code(value["purpose"], "purpose"),
        columns=sorted_(value, "columns", word),
        rows=integer(value, "rows"),
        epsilon_micro=maybe_integer(value, "epsilon_micro"),
        at=integer(value, "at"),
        run=text(value, "run"),
    )


def _chain(body: Body) -> tuple[EventId, ...]:
    value = body["grants"]
    if not isinstance(value, list) or len(value) > MAX_LINKS:
        raise BadEvent(f"couldn't read event: grants is a chain of at most {MAX_LINKS}")
    return tuple(EventId(as_hex(each, "grant")) for each in value)


READERS: Final[Readers] = {
    AccessDecided.TYPE: (
        {"request", "grants", "verdict", "reasons", "policy"},
        lambda b: AccessDecided(
            request=_request(b),
            grants=_chain(b),
            verdict=one_of(("allow", "deny"))(b["verdict"], "verdict"),
            reasons=sorted_(b, "reasons", code),
            policy=hex_(b, "policy"),
        ),
    ),
    EgressSet.TYPE: ({"policy"}, lambda b: EgressSet(policy=object_(b, "policy"))),
    EgressRefused.TYPE: (
        {"run", "code", "policy"},
        lambda b: EgressRefused(run=text(b, "run"), code=code(b["code"], "code"), policy=hex_(b, "policy")),
    ),
    ModelServed.TYPE: (
        {"release", "model"},
        lambda b: ModelServed(release=hex_(b, "release"), model=hex_(b, "model")),
    ),
    ModelWithdrawn.TYPE: ({"release"}, lambda b: ModelWithdrawn(release=hex_(b, "release"))),
}
