"""Chains of grants: from the owner's own grant down to the one that names an audience, with everything wrong about them.

Knows no request. Invariant: the terms of a chain are the meet of its links' terms with all their narrowings, so a link never
allows what one above it does not; a chain with a fault allows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Literal

from ledger.access.grants import Grant, Terms, handed_on_wider, meet
from ledger.events import Selector
from ledger.events.grants import MAX_LINKS
from protocol.ids import EventId, MemberId

if TYPE_CHECKING:
    from ledger.access.book import Book, Past


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer: an allowing chain (the owner's grant first) and what it lets through, or the reasons against."""

    verdict: Literal["allow", "deny"]
    reasons: tuple[str, ...]
    grants: tuple[EventId, ...]
    selector: Selector | None = None  # of an allowed request
    expires: int | None = None

    @property
    def allowed(self) -> bool:
        """Whether it may be done."""
        return self.verdict == "allow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A budget of one link, shared by everything below it."""

    grant: EventId
    uses: int | None
    epsilon_micro: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One way to be allowed: grants from the owner's on, for `members` and `roles`."""

    grants: tuple[EventId, ...]
    owner: MemberId
    members: frozenset[MemberId]
    roles: frozenset[str]
    terms: Terms
    limits: tuple[Limit, ...]
    faults: tuple[str, ...]
    answer: Decision  # when nothing speaks against it


class Ways:
    """The chains on one data set, and those for one actor, found once for as long as nothing changes."""

    __slots__ = ("_to", "at", "chains", "version")

    def __init__(self, chains: tuple[Chain, ...], version: int, at: Past) -> None:
        self.chains = chains
        self.version = version
        self.at = at
        self._to: dict[tuple[MemberId, str | None], tuple[Chain, ...]] = {}

    def to(self, actor: MemberId, role: str | None) -> tuple[Chain, ...]:
        """The chains whose audience an actor belongs to, the preferred ones first."""
        found = self._to.get((actor, role))
        if found is None:
            found = tuple(c for c in self.chains if actor in c.members or role in c.roles)
            if role is not None or found:  # strangers are not remembered
                self._to[actor, role] = found
        return found


def ways_of(book: Book, owner: MemberId, dataset: str, at: Past) -> Ways:
    """Every chain on a data set of `owner` as this past knows it."""
    if at.sizes is not None:
        return Ways(_find(book, owner, dataset, at), book.version, at)
    kept = book.kept.get((owner, dataset))
    if kept is None or kept.version != book.version or not (kept.at is at or kept.at.same_seats(at)):
        kept = book.kept[owner, dataset] = Ways(_find(book, owner, dataset, at), book.version, at)
    return kept


def _find(book: Book, owner: MemberId, dataset: str, at: Past) -> tuple[Chain, ...]:
    found = []
    for id_ in book.named.get(dataset, ()):
        grant = book.grants[id_]
        if at.holds((grant.issuer, grant.seq)):
            chain = chain_to(book, grant, at)
            if chain.owner == owner:
                found.append(chain)
    return tuple(sorted(found, key=_preference))


def chain_to(book: Book, leaf: Grant, at: Past) -> Chain:
    """The chain that ends in `leaf`, whatever is wrong about it."""
    links, faults = _links(book, leaf, at)
    owner = at.who(links[0].issuer)
    terms = [effective(book, links, i, at) for i in range(len(links))]
    if not book.commits(owner, leaf.dataset, at):
        faults.append("unknown-dataset")
    for i, link in enumerate(links):
        if book.replayed(link):
            faults.append("replayed")
        if any(at.holds(place) and _may_end(links, i, place[0], at) for place in book.revoked.get(link.id, ())):
            faults.append("revoked")
        if len(links) - 1 - i > terms[i].depth:
            faults.append("delegation-too-deep")
        if i:
            faults += _handing_on(links[i - 1], terms[i - 1], link, at)
    whole = reduce(meet, terms)
    if whole.tags_all & whole.tags_none:
        faults.append("tags")
    limits = [
        Limit(grant=link.id, uses=t.uses, epsilon_micro=t.epsilon_micro)
        for link, t in zip(links, terms, strict=True)
        if t.uses is not None or t.epsilon_micro is not None
    ]
    ids = tuple(link.id for link in links)
    return Chain(
        grants=ids,
        owner=owner,
        members=frozenset(map(at.who, terms[-1].members)),
        roles=terms[-1].roles,
        terms=whole,
        limits=tuple(limits),
        faults=tuple(sorted(set(faults))),
        answer=Decision(verdict="allow", reasons=(), grants=ids, selector=_selector(whole), expires=whole.expires),
    )


def effective(book: Book, links: list[Grant], index: int, at: Past) -> Terms:
    """The terms of a link with every narrowing by its issuer, or by an issuer above it, that this past knows."""
    link = links[index]
    narrowed = book.narrowed.get(link.id)
    if not narrowed:
        return link.terms
    counted = [t for place, t in narrowed.items() if at.holds(place) and _may_end(links, index, place[0], at)]
    return reduce(meet, counted, link.terms)


def _links(book: Book, leaf: Grant, at: Past) -> tuple[list[Grant], list[str]]:
    links, seen = [leaf], {leaf.id}
    while (parent := links[0].parent) is not None:
        above = book.grants.get(parent)
        if above is None or not at.holds((above.issuer, above.seq)):
            return links, ["unknown-parent"]
        if parent in seen:
            return links, ["cycle"]
        if len(links) == MAX_LINKS:
            return links, ["delegation-too-deep"]
        links.insert(0, above)
        seen.add(parent)
    return links, []


def _selector(terms: Terms) -> Selector:
    return Selector(
        columns=None if terms.columns is None else tuple(sorted(terms.columns)),
        tags_all=tuple(sorted(terms.tags_all)),
        tags_none=tuple(sorted(terms.tags_none)),
    )


def _may_end(links: list[Grant], index: int, author: MemberId, at: Past) -> bool:
    """A grant may be narrowed or revoked by its issuer and by every issuer above it."""
    return at.who(author) in {at.who(link.issuer) for link in links[: index + 1]}


def _handing_on(parent: Grant, now: Terms, child: Grant, at: Past) -> list[str]:
    faults = []
    issuer = at.who(child.issuer)
    if issuer not in map(at.who, now.members) and at.roles.get(issuer) not in now.roles:
        faults.append("wrong-issuer")
    wide = set(handed_on_wider(child.terms, parent.terms))
    if child.dataset != parent.dataset or wide - {"depth"}:
        faults.append("delegation-widened")
    if "depth" in wide:
        faults.append("delegation-too-deep")
    return faults


def _preference(chain: Chain) -> tuple[bool, bool, bool, int, int, EventId]:
    """Fewest restrictions first, so that budgets are kept for what needs them."""
    terms = chain.terms
    tags = len(terms.tags_all) + len(terms.tags_none)
    return bool(chain.faults), bool(chain.limits), terms.columns is not None, tags, len(chain.grants), chain.grants[-1]
