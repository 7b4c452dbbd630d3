"""Repeats every decision on access that is on record, with what its author knew then; the answers become facts for rule C14.

Pure: the same decision function that the nodes use, over the book of all feeds, each time from where the decision stood.
A decision that rests on entries which are not here (erased, withheld, not received) cannot be repeated, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.access import egress
from ledger.access.book import Book, Past
from ledger.access.decision import Decision, decide
from ledger.collective import Collective
from ledger.compliance.facts import Facts
from ledger.events import AccessDecided
from protocol.errors import Refused
from protocol.ids import Digest, MemberId


def repeat(facts: Facts, book: Book, fold: Collective) -> None:
    """Decide again on every recorded request."""
    partial = facts.partial()
    for (event, member, seq), decided in facts.decided:
        past = book.past_of(fold, member, seq)
        answer = decide(book, decided.request, past)
        same = _said(answer) == (decided.verdict, decided.reasons)
        if same or not (partial or _rests_on_erased(book, decided, past)):
            facts.recomputed(event, answer.verdict, answer.reasons, _policy(book, member, seq))


def _policy(book: Book, member: MemberId, seq: int) -> Digest | None:
    """The digest of the egress policy that a member had set last; None when that does not read."""
    said = book.policy(member, before=seq)
    try:
        return egress.DEFAULT.digest if said is None else egress.parse(said).digest
    except Refused:
        return None


class _Spent(Book):
    """A book in which every decision without a body was a use of every limited grant."""

    def erased_by(self, writers: Iterable[MemberId], past: Past) -> int:
        return super().erased_by({*writers, *self.erased}, past)


def _rests_on_erased(book: Book, decided: AccessDecided, past: Past) -> bool:
    """Whether uses that were erased since may explain what was recorded: it lies between counting none of them and all.

    More uses only add reasons against a grant. Where both ends give one answer, everything between gives it too.
    """
    if not book.erased:
        return False
    none, every = Book(), _Spent()
    vars(none).update({**vars(book), "erased": {}})
    vars(every).update(vars(book))
    most, least = decide(none, decided.request, past), decide(every, decided.request, past)
    return _said(most) != _said(least) and (decided.verdict == "deny" or most.verdict == "allow")


def _said(answer: Decision) -> tuple[str, tuple[str, ...]]:
    return answer.verdict, answer.reasons
