"""Repeats every decision on access that is on record, with what its author knew then; the answers become facts for rule C14.

Pure: the same decision function that the nodes use, over the book of all feeds, each time from where the decision stood.
A decision that rests on entries which are not here (erased, withheld, not received) cannot be repeated, and is left out.
"""

from __future__ import annotations

from ledger.access import egress
from ledger.access.book import Book
from ledger.access.decision import decide
from ledger.collective import Collective
from ledger.compliance.facts import Facts
from protocol.errors import Refused
from protocol.ids import Digest, MemberId


def repeat(facts: Facts, book: Book, fold: Collective) -> None:
    """Decide again on every recorded request."""
    partial = facts.partial()
    for (event, member, seq), decided in facts.decided:
        answer = decide(book, decided.request, book.past_of(fold, member, seq))
        same = (answer.verdict, answer.reasons) == (decided.verdict, decided.reasons)
        if same or not (partial or _rests_on_erased(facts, member, seq, {*answer.reasons, *decided.reasons})):
            facts.recomputed(event, answer.verdict, answer.reasons, _policy(book, member, seq))


def _policy(book: Book, member: MemberId, seq: int) -> Digest | None:
    """The digest of the egress policy that a member had set last; None when that does not read."""
    said = book.policy(member, before=seq)
    try:
        return egress.DEFAULT.digest if said is None else egress.parse(said).digest
    except Refused:
        return None


def _rests_on_erased(facts: Facts, member: str, seq: int, reasons: set[str]) -> bool:
    """Whether budgets decided, and uses that they counted were erased since."""
    if reasons.isdisjoint({"uses-exhausted", "epsilon-exhausted"}):
        return False
    sql = "SELECT 1 FROM entries WHERE type = 'access.decided' AND NOT held AND (member <> ? OR seq < ?) LIMIT 1"
    return facts.database.execute(sql, (member, seq)).fetchone() is not None
