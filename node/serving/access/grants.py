"""Whether the grants that an API key rests on still hold: the ledger's own decision, asked at every use.

Knows no HTTP. Each grant must allow the action `serve` to this node, for the purpose of the request, on the data set the grant
is about. Invariant: another grant never stands in for one that the key names.
"""

from __future__ import annotations

from ledger.access.book import Book, Past
from ledger.access.decision import decide
from ledger.events import AccessRequest
from protocol.ids import EventId, MemberId

ACTION = "serve"


def against(book: Book, at: Past, me: MemberId, grants: tuple[str, ...], purpose: str, now: int) -> tuple[str, ...]:
    """The reasons why these grants do not let `me` serve for `purpose` now (ms), sorted; () when all of them do."""
    found: set[str] = set()
    for each in grants:
        grant = book.grants.get(EventId(each))
        if grant is None or not at.holds((grant.issuer, grant.seq)):
            found.add("no-grant")
            continue
        request = AccessRequest(
            actor=me,
            action=ACTION,
            dataset=f"{owner_of(book, grant.id)}/{grant.dataset}",
            purpose=purpose,
            columns=(),
            rows=0,
            epsilon_micro=None,
            at=now,
            run="",
        )
        found.update(decide(book, request, at, leaf=grant.id).reasons)
    return tuple(sorted(found))


def owner_of(book: Book, grant: EventId) -> MemberId:
    """The owner of the data set that a grant is about, as far as its chain is known here."""
    seen: set[EventId] = set()
    issued = book.grants[grant]
    while issued.parent is not None and issued.parent in book.grants and issued.id not in seen:
        seen.add(issued.id)
        issued = book.grants[issued.parent]
    return issued.issuer
