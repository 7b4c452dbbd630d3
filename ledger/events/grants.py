"""Events about data sets and grants: what a data set is, who may use it for what, and what was taken away again.

Values and their strict readers only; what a grant allows is decided in `ledger.access`. Lists are sorted, each item once.
Invariant: no event names a row, a person or the value of a row; tags, columns and purposes are codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

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
from protocol.canon import Json
from protocol.ids import Digest, EventId, MemberId, as_hex

ACTIONS: Final = ("evaluate", "label", "serve", "train")
ROLES: Final = ("auditor", "contributor", "endorser")
MAX_LINKS: Final = 8  # grants in a chain, the owner's own included


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDescribed:
    """What a data set is, for whoever decides on it: tags and columns of its rows, purposes, retention, licence, legal basis."""

    TYPE: ClassVar[str] = "data.described"
    dataset: str
    tags: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    retention_days: int | None = None
    licence: str = ""
    basis: str = ""

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "tags": list(self.tags),
            "columns": list(self.columns),
            "purposes": list(self.purposes),
            "retention_days": self.retention_days,
            "licence": self.licence,
            "basis": self.basis,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which part of a data set: columns (None: all), and rows that carry all of some tags and none of others."""

    columns: tuple[str, ...] | None = None
    tags_all: tuple[str, ...] = ()
    tags_none: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The form in a grant."""
        columns: Json = None if self.columns is None else list(self.columns)
        return {"columns": columns, "tags_all": list(self.tags_all), "tags_none": list(self.tags_none)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Who may use a grant: these members, and whoever has one of these roles."""

    members: tuple[MemberId, ...] = ()
    roles: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The form in a grant."""
        return {"members": list(self.members), "roles": list(self.roles)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantIssued:
    """The right to use a data set: `selector` and `actions` for `purposes`, by `audience`, within time and budgets.

    Without a parent it is about the author's own data set; with one, about the parent's, and never wider than that.
    `depth` is how many further grants may hang below it. Times in ms; `expires` is the first moment it no longer holds.
    """

    TYPE: ClassVar[str] = "grant.issued"
    dataset: str
    selector: Selector
    actions: tuple[str, ...]
    purposes: tuple[str, ...]
    audience: Audience
    not_before: int
    expires: int | None
    uses: int | None
    epsilon_micro: int | None
    depth: int
    parent: EventId | None
    basis: str
    nonce: Digest

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {
            "dataset": self.dataset,
            "selector": self.selector.to_json(),
            "actions": list(self.actions),
            "purposes": list(self.purposes),
            "audience": self.audience.to_json(),
            "not_before": self.not_before,
            "expires": self.expires,
            "uses": self.uses,
            "epsilon_micro": self.epsilon_micro,
            "depth": self.depth,
            "parent": self.parent,
            "basis": self.basis,
            "nonce": self.nonce,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantNarrowed:
    """From here on a grant allows only what its terms and these have in common."""

    TYPE: ClassVar[str] = "grant.narrowed"
    grant: EventId
    terms: GrantIssued

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"grant": self.grant, "terms": self.terms.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRevoked:
    """A grant, and everything below it, ends."""

    TYPE: ClassVar[str] = "grant.revoked"
    grant: EventId
    reason: str

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"grant": self.grant, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantAccepted:
    """A member of the audience took note of a grant: the other half of its double entry."""

    TYPE: ClassVar[str] = "grant.accepted"
    grant: EventId

    def to_json(self) -> dict[str, Json]:
        """The body."""
        return {"grant": self.grant}


def _selector(body: Body) -> Selector:
    value = closed(object_(body, "selector"), {"columns", "tags_all", "tags_none"}, "selector")
    return Selector(
        columns=None if value["columns"] is None else sorted_(value, "columns", word),
        tags_all=sorted_(value, "tags_all", word),
        tags_none=sorted_(value, "tags_none", word),
    )


def _audience(body: Body) -> Audience:
    value = closed(object_(body, "audience"), {"members", "roles"}, "audience")
    return Audience(members=sorted_(value, "members", as_hex), roles=sorted_(value, "roles", one_of(ROLES)))


def _grant(body: Body) -> GrantIssued:
    return GrantIssued(
        dataset=name(body),
        selector=_selector(body),
        actions=sorted_(body, "actions", one_of(ACTIONS)),
        purposes=sorted_(body, "purposes", code),
        audience=_audience(body),
        not_before=integer(body, "not_before"),
        expires=maybe_integer(body, "expires"),
        uses=maybe_integer(body, "uses"),
        epsilon_micro=maybe_integer(body, "epsilon_micro"),
        depth=integer(body, "depth", MAX_LINKS),
        parent=None if body["parent"] is None else EventId(hex_(body, "parent")),
        basis=text(body, "basis"),
        nonce=hex_(body, "nonce"),
    )


_TERMS: Final = {
    "dataset", "selector", "actions", "purposes", "audience", "not_before", "expires", "uses", "epsilon_micro", "depth",
    "parent", "basis", "nonce",
}  # fmt: skip


READERS: Final[Readers] = {
    DataDescribed.TYPE: (
        {"dataset", "tags", "columns", "purposes", "retention_days", "licence", "basis"},
        lambda b: DataDescribed(
            dataset=name(b),
            tags=sorted_(b, "tags", word),
            columns=sorted_(b, "columns", word),
            purposes=sorted_(b, "purposes", code),
            retention_days=maybe_integer(b, "retention_days"),
            licence=text(b, "licence"),
            basis=text(b, "basis"),
        ),
    ),
    GrantIssued.TYPE: (_TERMS, _grant),
    GrantNarrowed.TYPE: (
        {"grant", "terms"},
        lambda b: GrantNarrowed(
            grant=EventId(hex_(b, "grant")), terms=_grant(closed(object_(b, "terms"), _TERMS, "terms"))
        ),
    ),
    GrantRevoked.TYPE: (
        {"grant", "reason"},
        lambda b: GrantRevoked(grant=EventId(hex_(b, "grant")), reason=code(b["reason"], "reason")),
    ),
    GrantAccepted.TYPE: ({"grant"}, lambda b: GrantAccepted(grant=EventId(hex_(b, "grant")))),
}
