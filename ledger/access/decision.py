"""May this member do this with this data set now? One total, pure function with reasons.

Knows no clock, store or key: time stands in the request, causality in the `Past`. Invariant: what is allowed is allowed by
every grant of one chain, from the data set's owner down to the actor; the same book, request and past give the same answer
on every machine. Borrowed from UCAN 1.0: subject, audience, attenuation, expiry, nonce; unlike there the grants are events.

| reason | meaning |
|---|---|
| `unknown-dataset` | its owner has not committed to a data set of this name |
| `no-grant` | nobody has granted anything on it |
| `not-audience` | no grant on it is for this member |
| `no-seat` | the actor has no seat in the collective, and the data is not its own; or its seat has another key now |
| `action`, `purpose`, `columns`, `tags` | the grant does not cover it (`tags`: no row can carry what it asks for) |
| `not-yet`, `expired` | outside the time of the grant |
| `revoked` | a grant of the chain was revoked in the causal past |
| `uses-exhausted`, `epsilon-exhausted`, `epsilon-unstated` | a budget of the chain is used up, or cannot be counted |
| `wrong-issuer` | the chain begins with somebody who is not the owner, or somebody outside an audience handed it on |
| `delegation-widened`, `delegation-too-deep` | a grant allows more than the one above it, or hangs too far below |
| `unknown-parent`, `cycle`, `replayed` | the chain has no beginning, or a grant's nonce was used before |
"""

from __future__ import annotations

from typing import Final

from ledger.access.book import Book, Past
from ledger.access.chains import Chain, Decision, Limit, ways_of
from ledger.events import AccessRequest
from protocol.ids import EventId, MemberId

__all__ = ["REASONS", "Decision", "decide", "target"]

REASONS: Final = frozenset({
    "unknown-dataset", "no-grant", "not-audience", "no-seat", "action", "purpose", "columns", "tags", "not-yet", "expired",
    "revoked", "uses-exhausted", "epsilon-exhausted", "epsilon-unstated", "wrong-issuer", "delegation-widened",
    "delegation-too-deep", "unknown-parent", "cycle", "replayed",
})  # fmt: skip


def decide(book: Book, request: AccessRequest, at: Past, *, leaf: EventId | None = None) -> Decision:
    """Decide on a request as somebody with this past must; never raises.

    Of several chains that allow it the one with the fewest limits counts, then the shortest, then the lowest event id; of
    several that do not, the one with the fewest reasons against it is reported. With `leaf` only the chain that ends in
    this grant counts.
    """
    owner, name = target(request)
    owner, actor = at.who(owner), at.who(request.actor)
    ways = ways_of(book, owner, name, at)
    if not ways.chains:
        return _deny(("no-grant",) if book.commits(owner, name, at) else ("unknown-dataset",))
    role = at.roles.get(actor)
    if request.actor in at.now or (role is None and actor != owner):
        return _deny(("no-seat",))
    best: tuple[str, ...] = ()
    of: tuple[EventId, ...] = ()
    for chain in ways.to(actor, role):
        if leaf is not None and chain.grants[-1] != leaf:
            continue
        against = _against(chain, request, book, at)
        if not against:
            return chain.answer
        if not best or len(against) < len(best):
            best, of = against, chain.grants
    return _deny(best or ("not-audience",), of)


def target(request: AccessRequest) -> tuple[MemberId, str]:
    """Owner and name of the data set that a request is about."""
    owner, slash, name = request.dataset.rpartition("/")
    return (MemberId(owner), name) if slash else (request.actor, name)


def _deny(reasons: tuple[str, ...], grants: tuple[EventId, ...] = ()) -> Decision:
    return Decision(verdict="deny", reasons=reasons, grants=grants)


def _against(chain: Chain, request: AccessRequest, book: Book, at: Past) -> tuple[str, ...]:
    """Why this chain does not allow it, sorted; () when it does."""
    terms = chain.terms
    found = list(chain.faults)
    if request.action not in terms.actions:
        found.append("action")
    if request.purpose not in terms.purposes:
        found.append("purpose")
    if terms.columns is not None and not (terms.columns and terms.columns.issuperset(request.columns)):
        found.append("columns")
    if request.at < terms.not_before:
        found.append("not-yet")
    if terms.expires is not None and request.at >= terms.expires:
        found.append("expired")
    for limit in chain.limits:
        found += _overdrawn(limit, chain, request, book, at)
    return tuple(sorted(set(found))) if found else ()


def _overdrawn(limit: Limit, chain: Chain, request: AccessRequest, book: Book, at: Past) -> list[str]:
    """Which budgets are used up.

    A decision whose body was erased may have been under this grant: it counts as one use, and no epsilon is left after it.
    """
    uses, epsilon = book.spent(limit.grant, chain.owner, at)
    erased = book.erased_by({chain.owner, at.who(request.actor)}, at) if book.erased else 0
    found = []
    if limit.uses is not None and uses + erased >= limit.uses:
        found.append("uses-exhausted")
    if limit.epsilon_micro is not None:
        if request.epsilon_micro is None:
            found.append("epsilon-unstated")
        elif erased or epsilon + request.epsilon_micro > limit.epsilon_micro:
            found.append("epsilon-exhausted")
    return found
