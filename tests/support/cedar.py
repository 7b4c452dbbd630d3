"""The second opinion about grants: Cedar policies written from the signed events themselves, evaluated by Cedar.

Shares nothing with `ledger.access`: each link of a chain becomes one policy set (what the grant permits, a `forbid unless` for
each narrowing, a `forbid` for each revocation), and Cedar must allow every link to whoever holds it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cedarpy import Decision, Entities, PolicySet, is_authorized

from ledger import events
from ledger.events import AccessRequest, GrantIssued
from protocol.ids import EventId, MemberId


@dataclass
class Heard:
    """What the decider had heard: plain lists of who wrote what, in no order that matters."""

    roles: Mapping[MemberId, str]
    owners: set[tuple[MemberId, str]] = field(default_factory=set)
    issued: dict[EventId, tuple[MemberId, GrantIssued]] = field(default_factory=dict)
    narrowed: list[tuple[MemberId, EventId, GrantIssued]] = field(default_factory=list)
    revoked: list[tuple[MemberId, EventId]] = field(default_factory=list)
    allowed: list[tuple[MemberId, events.AccessDecided]] = field(default_factory=list)
    nonces: dict[tuple[MemberId, str], EventId] = field(default_factory=dict)

    def take(self, author: MemberId, id_: EventId, event: events.Event) -> None:
        if isinstance(event, events.DataCommitted):
            self.owners.add((author, event.dataset))
        elif isinstance(event, events.GrantIssued):
            self.issued[id_] = (author, event)
            self.nonces.setdefault((author, event.nonce), id_)
        elif isinstance(event, events.GrantNarrowed):
            self.narrowed.append((author, event.grant, event.terms))
        elif isinstance(event, events.GrantRevoked):
            self.revoked.append((author, event.grant))
        elif isinstance(event, events.AccessDecided) and event.verdict == "allow":
            self.allowed.append((author, event))


class Cedar:
    """Chains as policy sets; those of one chain are parsed once."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard
        people = [
            {"uid": _uid("Member", m), "attrs": {}, "parents": [_uid("Role", role)]} for m, role in heard.roles.items()
        ]
        roles = [{"uid": _uid("Role", role), "attrs": {}, "parents": []} for role in set(heard.roles.values())]
        self._entities = Entities.from_json_str(json.dumps(people + roles))
        self._parsed: dict[tuple[EventId, ...], list[PolicySet]] = {}

    def chains(self) -> list[tuple[EventId, ...]]:
        """Every chain that follows parents to a beginning."""
        found = []
        for id_ in self.heard.issued:
            chain = [id_]
            while (parent := self.heard.issued[chain[0]][1].parent) is not None:
                if parent not in self.heard.issued or parent in chain:
                    break
                chain.insert(0, parent)
            else:
                found.append(tuple(chain))
        return found

    def allows(
        self, chain: Sequence[EventId], request: AccessRequest, columns: Sequence[str], tags: Sequence[str]
    ) -> bool:
        """Whether every link lets its holder read such columns of a row with such tags, as the request says."""
        if not chain or not all(g in self.heard.issued for g in chain):
            return False
        issuers = [self.heard.issued[g][0] for g in chain]
        grants = [self.heard.issued[g][1] for g in chain]
        owner, slash, name = request.dataset.rpartition("/")
        wanted = (MemberId(owner) if slash else request.actor, name)
        if wanted not in self.heard.owners or issuers[0] != wanted[0] or grants[0].parent is not None:
            return False
        holders = [*issuers[1:], request.actor]
        linked = all(grants[i + 1].parent == chain[i] for i in range(len(chain) - 1))
        return linked and all(
            self._link(policies, holders[i], grants[i], request, [*columns, *request.columns], tags, chain, i)
            for i, policies in enumerate(self._policies(tuple(chain), issuers))
        )

    def _link(
        self,
        policies: PolicySet,
        holder: MemberId,
        grant: GrantIssued,
        request: AccessRequest,
        columns: Sequence[str],
        tags: Sequence[str],
        chain: Sequence[EventId],
        index: int,
    ) -> bool:
        used, spent = self._spent(chain[index], self.heard.issued[chain[0]][0])
        name = request.dataset.rpartition("/")[2]
        context: dict[str, Any] = {
            "action": request.action,
            "purpose": request.purpose,
            "columns": sorted(set(columns)),
            "tags": sorted(tags),
            "at": request.at,
            "used": used,
            "spent": spent,
            "below": len(chain) - 1 - index,
        }
        if request.epsilon_micro is not None:
            context["epsilon"] = request.epsilon_micro
        answer = is_authorized(
            {
                "principal": {"type": "Member", "id": holder},
                "action": {"type": "Action", "id": "use"},
                "resource": {"type": "DataSet", "id": name},
                "context": context,
            },
            policies,
            self._entities,
        )
        assert answer.decision != Decision.NoDecision, answer.diagnostics.errors
        assert not answer.diagnostics.errors, answer.diagnostics.errors
        return bool(answer.allowed)

    def _spent(self, grant: EventId, owner: MemberId) -> tuple[int, int]:
        counted = [
            decided.request.epsilon_micro or 0
            for writer, decided in self.heard.allowed
            if grant in decided.grants and (writer == owner or self._self_use(writer, decided))
        ]
        return len(counted), sum(counted)

    def _self_use(self, writer: MemberId, decided: events.AccessDecided) -> bool:
        actor = decided.request.actor
        leaf = self.heard.issued.get(decided.grants[-1])
        if leaf is None or writer != actor:
            return False
        return actor in leaf[1].audience.members or self.heard.roles.get(actor) in leaf[1].audience.roles

    def _policies(self, chain: tuple[EventId, ...], issuers: Sequence[MemberId]) -> list[PolicySet]:
        if chain not in self._parsed:
            self._parsed[chain] = [
                PolicySet.from_str(self._text(g, issuers[: i + 1], self.heard.issued[g][1]))
                for i, g in enumerate(chain)
            ]
        return self._parsed[chain]

    def _text(self, grant: EventId, entitled: Sequence[MemberId], terms: GrantIssued) -> str:
        resource = f"resource == DataSet::{json.dumps(terms.dataset)}"
        lines = [f"permit(principal, action, {resource}) when {{ {_condition(terms)} }};"]
        for author, narrowed, narrower in self.heard.narrowed:
            if narrowed == grant and author in entitled:
                lines.append(f"forbid(principal, action, resource) unless {{ {_condition(narrower)} }};")
        for author, revoked in self.heard.revoked:
            if revoked == grant and author in entitled:
                lines.append("forbid(principal, action, resource);")
        if self.heard.nonces[self.heard.issued[grant][0], terms.nonce] != grant:
            lines.append("forbid(principal, action, resource);")
        return "\n".join(lines)


def _condition(terms: GrantIssued) -> str:
    who = [f'principal == Member::"{m}"' for m in terms.audience.members]
    who += [f'principal in Role::"{r}"' for r in terms.audience.roles]
    selector = terms.selector
    parts = [
        f"({' || '.join(who)})" if who else "false",
        f"{_set(terms.actions)}.contains(context.action)",
        f"{_set(terms.purposes)}.contains(context.purpose)",
        f"context.at >= {terms.not_before}",
        f"context.below <= {terms.depth}",
        f"context.tags.containsAll({_set(selector.tags_all)})",
    ]
    parts += [f"!context.tags.contains({json.dumps(tag)})" for tag in selector.tags_none]
    if selector.columns is not None:
        parts.append(f"{_set(selector.columns)}.containsAll(context.columns)")
    if terms.expires is not None:
        parts.append(f"context.at < {terms.expires}")
    if terms.uses is not None:
        parts.append(f"context.used < {terms.uses}")
    if terms.epsilon_micro is not None:
        parts.append(f"context has epsilon && context.spent + context.epsilon <= {terms.epsilon_micro}")
    return " && ".join(parts)


def _set(words: Sequence[str]) -> str:
    return "[" + ", ".join(json.dumps(word) for word in words) + "]"


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}
