"""What a grant allows, as a value: how two of them meet, and in which dimension one is wider than another.

Knows no feed, no causality and no request. A narrowing is a meet, so it cannot widen and its order does not matter.
Laws: `meet` is associative, commutative and idempotent; `wider(meet(a, b), a) == ()`; `wider(a, a) == ()`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.events import Audience, GrantIssued, Selector
from protocol.ids import Digest, EventId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The dimensions in which a grant can shrink; None is "all columns", "for ever" and "no limit"."""

    columns: frozenset[str] | None
    tags_all: frozenset[str]
    tags_none: frozenset[str]
    actions: frozenset[str]
    purposes: frozenset[str]
    members: frozenset[MemberId]
    roles: frozenset[str]
    not_before: int
    expires: int | None
    uses: int | None
    epsilon_micro: int | None
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An issued grant: entry `seq` of its issuer's feed."""

    id: EventId
    issuer: MemberId
    seq: int
    dataset: str
    parent: EventId | None
    nonce: str
    basis: str
    terms: Terms


def terms_of(issued: GrantIssued) -> Terms:
    """The terms as their issuer wrote them."""
    columns = issued.selector.columns
    return Terms(
        columns=None if columns is None else frozenset(columns),
        tags_all=frozenset(issued.selector.tags_all),
        tags_none=frozenset(issued.selector.tags_none),
        actions=frozenset(issued.actions),
        purposes=frozenset(issued.purposes),
        members=frozenset(issued.audience.members),
        roles=frozenset(issued.audience.roles),
        not_before=issued.not_before,
        expires=issued.expires,
        uses=issued.uses,
        epsilon_micro=issued.epsilon_micro,
        depth=issued.depth,
    )


def meet(a: Terms, b: Terms) -> Terms:
    """What both allow."""
    return Terms(
        columns=a.columns if b.columns is None else b.columns if a.columns is None else a.columns & b.columns,
        tags_all=a.tags_all | b.tags_all,
        tags_none=a.tags_none | b.tags_none,
        actions=a.actions & b.actions,
        purposes=a.purposes & b.purposes,
        members=a.members & b.members,
        roles=a.roles & b.roles,
        not_before=max(a.not_before, b.not_before),
        expires=_least(a.expires, b.expires),
        uses=_least(a.uses, b.uses),
        epsilon_micro=_least(a.epsilon_micro, b.epsilon_micro),
        depth=min(a.depth, b.depth),
    )


def wider(terms: Terms, than: Terms) -> tuple[str, ...]:
    """The names of the dimensions in which `terms` allow something that `than` does not; () when they are a subset."""
    checks = (
        ("columns", than.columns is not None and (terms.columns is None or not terms.columns <= than.columns)),
        ("tags", not (than.tags_all <= terms.tags_all and than.tags_none <= terms.tags_none)),
        ("actions", not terms.actions <= than.actions),
        ("purposes", not terms.purposes <= than.purposes),
        ("audience", not (terms.members <= than.members and terms.roles <= than.roles)),
        ("not-before", terms.not_before < than.not_before),
        ("expires", _above(terms.expires, than.expires)),
        ("uses", _above(terms.uses, than.uses)),
        ("epsilon", _above(terms.epsilon_micro, than.epsilon_micro)),
        ("depth", terms.depth > than.depth),
    )
    return tuple(name for name, wide in checks if wide)


def handed_on_wider(child: Terms, parent: Terms) -> tuple[str, ...]:
    """As `wider`, for a grant below another: its audience is its own, its depth is less than the parent's."""
    found = [name for name in wider(child, parent) if name not in {"audience", "depth"}]
    return (*found, "depth") if child.depth >= parent.depth else tuple(found)


def issued(terms: Terms, *, dataset: str, parent: EventId | None, basis: str, nonce: Digest) -> GrantIssued:
    """The event that states these terms. Law: `terms_of(issued(t, ...)) == t`."""
    return GrantIssued(
        dataset=dataset,
        selector=Selector(
            columns=None if terms.columns is None else tuple(sorted(terms.columns)),
            tags_all=tuple(sorted(terms.tags_all)),
            tags_none=tuple(sorted(terms.tags_none)),
        ),
        actions=tuple(sorted(terms.actions)),
        purposes=tuple(sorted(terms.purposes)),
        audience=Audience(members=tuple(sorted(terms.members)), roles=tuple(sorted(terms.roles))),
        not_before=terms.not_before,
        expires=terms.expires,
        uses=terms.uses,
        epsilon_micro=terms.epsilon_micro,
        depth=terms.depth,
        parent=parent,
        basis=basis,
        nonce=nonce,
    )


def _least(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _above(value: int | None, limit: int | None) -> bool:
    return limit is not None and (value is None or value > limit)
