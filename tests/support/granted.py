"""A data set, its owner and whoever was granted something: real signed entries in a real book, nothing on disk."""

from __future__ import annotations

import hashlib
from typing import Any

from paper import PaperMember, charter_of

from ledger import charter as charters
from ledger import events
from ledger.access.book import Book, Past, roles_in
from ledger.access.decision import Decision, decide
from ledger.entry import Record
from ledger.events import AccessRequest, Audience, GrantIssued, Selector
from protocol.ids import Digest, EventId, MemberId, digest

NOW = 1_000_000


class Village:
    """Members of one collective who hear everything at once, unless `deaf`."""

    def __init__(self, names: tuple[str, ...] = ("ada", "bob", "cyd", "dan"), **roles: str) -> None:
        charter = charter_of(list(names), **roles)
        collective = charters.collective_id(charter)
        self.members = {name: PaperMember(name, collective) for name in names}
        self.books = {name: Book() for name in names}
        self.deaf: set[str] = set()
        self.records: list[Record] = []
        self._nonce = 0
        self.say(names[0], events.Genesis(charter=charter.to_json()))

    def id(self, name: str) -> MemberId:
        return self.members[name].id

    def say(self, name: str, event: events.Event, now: int = NOW) -> EventId:
        """Write an event into a feed; everybody who is not deaf hears it and what was missed before."""
        record = self.members[name].say(event, now)
        self.records.append(record)
        self.books[name].apply(record)
        self.hear()
        return record.entry.event

    def hear(self) -> None:
        for name in self.members.keys() - self.deaf:
            self.listen(name)

    def listen(self, name: str) -> None:
        for record in self.records:
            self.members[name].fold.apply(record)
            self.books[name].apply(record)

    def commit(self, name: str, dataset: str = "notes") -> EventId:
        root = digest(f"{name}/{dataset}".encode())
        return self.say(
            name,
            events.DataCommitted(
                dataset=dataset, train_rows=90, held_out_rows=10, train_root=root, held_out_root=digest(root.encode())
            ),
        )

    def terms(self, *members: str, **fields: Any) -> GrantIssued:
        """The body of a grant: train and evaluate on `notes` for research by these members, unless told otherwise."""
        self._nonce += 1
        selector = {k: fields.pop(k) for k in ("columns", "tags_all", "tags_none") if k in fields}
        fields["selector"] = Selector(**{k: None if v is None else tuple(sorted(v)) for k, v in selector.items()})
        fields["audience"] = Audience(
            members=tuple(sorted(self.id(m) for m in members)), roles=tuple(sorted(fields.pop("roles", ())))
        )
        honest: dict[str, Any] = {
            "dataset": "notes",
            "actions": ("evaluate", "train"),
            "purposes": ("research",),
            "not_before": 0,
            "expires": None,
            "uses": None,
            "epsilon_micro": None,
            "depth": 0,
            "parent": None,
            "basis": "",
            "nonce": Digest(hashlib.sha256(str(self._nonce).encode()).hexdigest()),
        }
        return GrantIssued(**{**honest, **fields})

    def grant(self, by: str, *members: str, **fields: Any) -> EventId:
        return self.say(by, self.terms(*members, **fields))

    def narrow(self, by: str, grant: EventId, *members: str, **fields: Any) -> EventId:
        return self.say(by, events.GrantNarrowed(grant=grant, terms=self.terms(*members, **fields)))

    def revoke(self, by: str, grant: EventId) -> EventId:
        return self.say(by, events.GrantRevoked(grant=grant, reason="withdrawn"))

    def request(self, name: str, **fields: Any) -> AccessRequest:
        """`name` wants to train on the data set of ada, or as told."""
        owner = fields.pop("owner", "ada")
        dataset = fields.pop("dataset", "notes")
        honest: dict[str, Any] = {
            "actor": self.id(name),
            "action": "train",
            "dataset": dataset if name == owner else f"{self.id(owner)}/{dataset}",
            "purpose": "research",
            "columns": (),
            "rows": 90,
            "epsilon_micro": None,
            "at": NOW,
            "run": "r",
        }
        return AccessRequest(**{**honest, **fields})

    def past(self, name: str) -> Past:
        return Past(roles=roles_in(self.members[name].fold))

    def decide(self, name: str, *, knowing: str = "ada", **fields: Any) -> Decision:
        """How `knowing` decides on a request of `name` now."""
        return decide(self.books[knowing], self.request(name, **fields), self.past(knowing))

    def use(self, name: str, *, by: str | None = None, **fields: Any) -> Record:
        """`name` asks, and whoever has the data (else `by`) writes the answer down."""
        writer = by or name
        request = self.request(name, **fields)
        answer = decide(self.books[writer], request, self.past(writer))
        return self.decided(writer, request, answer)

    def decided(self, writer: str, request: AccessRequest, answer: Decision) -> Record:
        self.say(
            writer,
            events.AccessDecided(
                request=request,
                grants=answer.grants,
                verdict=answer.verdict,
                reasons=answer.reasons,
                policy=digest(b"policy"),
            ),
        )
        return self.records[-1]
