"""The commands of `fishernet grant`: issue, narrow, revoke, accept, list, check. Each change is one event of our feed.

Knows no rows. What would have no effect is refused before it is written: a grant wider than the one above it, on a data set
that is not ours, a narrowing that widens. `check` only explains; it is no access and leaves no event.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from ledger import events
from ledger.access.chains import Chain, chain_to, effective
from ledger.access.decision import decide, target
from ledger.access.grants import Grant, Terms, handed_on_wider, issued, wider
from ledger.events import AccessRequest
from ledger.events.grants import ACTIONS, ROLES
from node.collective.seat import Seat, now_ms
from node.config import nearest
from node.data.permits import PURPOSE
from node.errors import NotAllowed
from node.session import Session
from protocol.canon import Json
from protocol.ids import Digest, MemberId

Args = Mapping[str, Json]
_MILLION: Final = 1_000_000
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_ALL: Final = Terms(
    columns=None,
    tags_all=frozenset(),
    tags_none=frozenset(),
    actions=frozenset(ACTIONS),
    purposes=frozenset(),
    members=frozenset(),
    roles=frozenset(),
    not_before=0,
    expires=None,
    uses=None,
    epsilon_micro=None,
    depth=0,
)


# -- commands ----------------------------------------------------------------------------------------------------------
async def issue(session: Session, args: Args) -> Json:
    """Write a new grant: on a data set of ours, or below a grant to us (`parent`)."""
    seat, now = session.need_seat(), now_ms()
    dataset = str(args.get("dataset") or "")
    parent = _one(seat, str(args["parent"])) if args.get("parent") else None
    if parent is None:
        if dataset not in seat.fold.data.get(seat.me, {}):
            raise _unknown(dataset, list(seat.fold.data.get(seat.me, {})), "grant")
        start = replace(_ALL, purposes=frozenset({_purpose(session)}), members=frozenset({seat.me}), not_before=now)
    else:
        above = chain_to(seat.book, parent, seat.past())
        _holds(seat, above, parent)
        if dataset not in {"", parent.dataset}:
            raise NotAllowed(f"couldn't grant {dataset}: the grant above it is on {parent.dataset}")
        dataset = parent.dataset
        start = replace(above.terms, members=frozenset(), roles=frozenset(), depth=0)
        start = replace(start, not_before=max(start.not_before, now))
    terms = _with(seat, start, args, now)
    if not (terms.members or terms.roles):
        raise NotAllowed("couldn't issue grant: nobody is named who may use it", hint="--member ID or --role ROLE")
    if parent is not None:
        wide = handed_on_wider(terms, chain_to(seat.book, parent, seat.past()).terms) or handed_on_wider(
            terms, parent.terms
        )
        if wide:
            raise NotAllowed(f"couldn't issue grant: it would be wider than the one above it in {', '.join(wide)}")
    event = issued(
        terms,
        dataset=dataset,
        parent=parent.id if parent else None,
        basis=str(args.get("basis") or ""),
        nonce=Digest(secrets.token_hex(32)),
    )
    events.parse(event.TYPE, event.to_json())  # what we sign, others can read
    written = seat.append(event).entry.event
    return {**_view(seat, seat.book.grants[written], now), "text": f"granted {dataset}: {written[:12]}"}


async def narrow(session: Session, args: Args) -> Json:
    """Take something away from a grant of ours, or from one below it, at once and for good."""
    seat, now = session.need_seat(), now_ms()
    grant = _one(seat, str(args.get("grant") or ""))
    chain = chain_to(seat.book, grant, seat.past())
    _ours(seat, chain, "narrow")
    before = _effective(seat, grant)
    terms = _with(seat, before, args, now)
    if wide := wider(terms, before):
        raise NotAllowed(
            f"couldn't narrow grant {grant.id[:12]}: it would be wider in {', '.join(wide)}", hint="issue another grant"
        )
    if terms == before:
        raise NotAllowed(f"couldn't narrow grant {grant.id[:12]}: nothing would change")
    body = issued(terms, dataset=grant.dataset, parent=grant.parent, basis=grant.basis, nonce=Digest(grant.nonce))
    event = events.GrantNarrowed(grant=grant.id, terms=body)
    events.parse(event.TYPE, event.to_json())
    seat.append(event)
    return {**_view(seat, grant, now), "text": f"narrowed {grant.id[:12]}"}


async def revoke(session: Session, args: Args) -> Json:
    """End a grant of ours, or one below it, and everything that hangs below."""
    seat = session.need_seat()
    grant = _one(seat, str(args.get("grant") or ""))
    _ours(seat, chain_to(seat.book, grant, seat.past()), "revoke")
    event = events.GrantRevoked(grant=grant.id, reason=str(args.get("reason") or "withdrawn"))
    events.parse(event.TYPE, event.to_json())
    seat.append(event)
    return {**_view(seat, grant, now_ms()), "text": f"revoked {grant.id[:12]}; the next run will not use it"}


async def accept(session: Session, args: Args) -> Json:
    """Write that we took note of a grant to us."""
    seat = session.need_seat()
    grant = _one(seat, str(args.get("grant") or ""))
    chain = chain_to(seat.book, grant, seat.past())
    if seat.me not in chain.members and seat.past().roles.get(seat.me) not in chain.roles:
        raise NotAllowed(f"couldn't accept grant {grant.id[:12]}: it is not for this node")
    if seat.me in seat.book.accepted.get(grant.id, {}):
        raise NotAllowed(f"couldn't accept grant {grant.id[:12]}: it was accepted already")
    seat.append(events.GrantAccepted(grant=grant.id))
    return {**_view(seat, grant, now_ms()), "text": f"accepted {grant.id[:12]}"}


async def list_(session: Session, args: Args) -> Json:
    """Every grant that is held here, of one data set or of all; those that end are listed with `all` only."""
    seat, now, wanted = session.need_seat(), now_ms(), args.get("dataset")
    grants = sorted(seat.book.grants.values(), key=lambda g: (g.dataset, g.issuer, g.seq))
    views = [_view(seat, g, now) for g in grants if wanted in (None, g.dataset)]
    shown: list[Json] = [v for v in views if args.get("all") or v["state"] in {"active", "not-yet"}]
    return {"grants": shown, "hidden": len(views) - len(shown)}


async def check(session: Session, args: Args) -> Json:
    """How a request would be decided now and why, with every chain on the data set."""
    seat, now = session.need_seat(), now_ms()
    actor = _member(seat, str(args["member"])) if args.get("member") else seat.me
    columns = args.get("columns")
    request = AccessRequest(
        actor=actor,
        action=str(args.get("action") or "train"),
        dataset=_qualified(seat, str(args.get("dataset") or ""), actor),
        purpose=str(args.get("purpose") or _purpose(session)),
        columns=tuple(sorted({str(c) for c in columns})) if isinstance(columns, list) else (),
        rows=0,
        epsilon_micro=_micro(args.get("epsilon")),
        at=now,
        run="",
    )
    events.parse("access.decided", _shape(request))
    answer = decide(seat.book, request, seat.past())
    if "unknown-dataset" in answer.reasons:
        owner, name = target(request)
        raise _unknown(name, list(seat.fold.data.get(owner, {})), "check")
    return {
        "verdict": answer.verdict,
        "reasons": list(answer.reasons),
        "grants": [_view(seat, seat.book.grants[g], now) for g in answer.grants],
        "selector": answer.selector.to_json() if answer.selector else None,
        "request": request.to_json(),
    }


# -- reading what was typed --------------------------------------------------------------------------------------------
def moment(text: str, now: int) -> int:
    """A time in ms: an ISO date or date with time (UTC unless it names a zone), or a duration from now (90m, 12h, 30d, 2w).

    Raises:
        NotAllowed: it is neither; a leap second does not exist in this calendar.
    """
    if found := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
        return now + int(found[1]) * _UNITS_MS[found[2]]
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        raise NotAllowed(
            f"couldn't read time {text[:40]!r}: an ISO date, date with time, or duration is expected",
            hint="2027-01-31, 2027-01-31T12:00+01:00, 90m, 12h, 30d, 2w",
        ) from None
    since = (then if then.tzinfo else then.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    ms = (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000
    if ms < 0:
        raise NotAllowed(f"couldn't take time {text[:40]!r}: it is before 1970")
    return ms


def _with(seat: Seat, terms: Terms, args: Args, now: int) -> Terms:
    """`terms` with everything that was given in its place; a further tag restricts further."""
    given: dict[str, Any] = {}
    for key in ("actions", "purposes", "columns"):
        if args.get(key) is not None:
            given[key] = frozenset(_texts(args.get(key)))
    for key in ("tags_all", "tags_none"):
        given[key] = getattr(terms, key) | frozenset(_texts(args.get(key)))
    if args.get("members") is not None or args.get("roles") is not None:
        given["members"] = frozenset(_member(seat, m) for m in _texts(args.get("members")))
        given["roles"] = frozenset(_texts(args.get("roles")))
    for key, name in (("from", "not_before"), ("until", "expires")):
        if args.get(key):
            given[name] = moment(str(args[key]), now)
    for key in ("uses", "depth"):
        if isinstance(number := args.get(key), int):
            given[key] = number
    if args.get("epsilon") is not None:
        given["epsilon_micro"] = _micro(args.get("epsilon"))
    return _sensible(replace(terms, **given))


def _sensible(terms: Terms) -> Terms:
    for what, words, known in (("role", terms.roles, ROLES), ("action", terms.actions, ACTIONS)):
        if unknown := words - set(known):
            raise NotAllowed(f"couldn't read {what} {min(unknown)!r}: {what}s are {', '.join(known)}")
    if terms.expires is not None and terms.expires <= terms.not_before:
        raise NotAllowed("couldn't take the time of the grant: it ends before it begins")
    return terms


def _micro(value: Json) -> int | None:
    return round(float(str(value)) * _MILLION) if value is not None else None


def _texts(value: Json) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _purpose(session: Session) -> str:
    return session.config.train.purpose or PURPOSE


def _member(seat: Seat, wanted: str) -> MemberId:
    """A member by id, by at least 8 digits of it, or by name."""
    members = seat.fold.charter.members if seat.fold.known else ()
    found = {m.id for m in members if wanted in {m.id, m.name} or (len(wanted) >= 8 and m.id.startswith(wanted))}
    if len(found) != 1:
        near = nearest(wanted, [m.name for m in members])
        raise NotAllowed(
            f"couldn't find member {wanted[:40]!r}: {len(found)} have this name or id",
            hint=f"did you mean {near}?" if near else "fishernet collective show",
        )
    return found.pop()


def _qualified(seat: Seat, dataset: str, actor: MemberId) -> str:
    """The name by which a request of `actor` names a data set: its own plainly, another's behind the owner's id."""
    owner, slash, name = dataset.rpartition("/")
    if slash:
        return f"{_member(seat, owner)}/{name}"
    return name if actor == seat.me else f"{seat.me}/{name}"


def _shape(request: AccessRequest) -> dict[str, Json]:
    """A decision about nothing, so that the strict reader looks at what was typed."""
    zero = Digest("0" * 64)
    return events.AccessDecided(request=request, grants=(), verdict="deny", reasons=(), policy=zero).to_json()


def _one(seat: Seat, wanted: str) -> Grant:
    found = [g for g in seat.book.grants if g.startswith(wanted)]
    if len(wanted) < 8 or len(found) != 1:
        raise NotAllowed(f"couldn't find grant {wanted[:12]!r}: {len(found)} have this id", hint="fishernet grant list")
    return seat.book.grants[found[0]]


def _unknown(dataset: str, known: list[str], verb: str) -> NotAllowed:
    near = nearest(dataset, known)
    return NotAllowed(
        f"couldn't {verb} data set {dataset[:64]!r}: it is not committed in the ledger",
        hint=f"did you mean {near}?" if near else f"known are: {', '.join(sorted(known)) or 'none'}",
    )


# -- what is true of a grant ---------------------------------------------------------------------------------------------
def _ours(seat: Seat, chain: Chain, verb: str) -> None:
    past = seat.past()
    if not any(past.who(seat.book.grants[g].issuer) == seat.me for g in chain.grants):
        raise NotAllowed(
            f"couldn't {verb} grant {chain.grants[-1][:12]}: neither it nor a grant above it was issued by this node"
        )


def _holds(seat: Seat, chain: Chain, grant: Grant) -> None:
    if chain.faults:
        raise NotAllowed(f"couldn't hand on grant {grant.id[:12]}: {', '.join(chain.faults)}")
    if seat.me not in chain.members and seat.past().roles.get(seat.me) not in chain.roles:
        raise NotAllowed(f"couldn't hand on grant {grant.id[:12]}: it is not for this node")


def _effective(seat: Seat, grant: Grant) -> Terms:
    links = [seat.book.grants[g] for g in chain_to(seat.book, grant, seat.past()).grants]
    return effective(seat.book, links, len(links) - 1, seat.past())


def _view(seat: Seat, grant: Grant, now: int) -> dict[str, Json]:
    """A grant for people and programs: its terms as they are now, and its state."""
    past = seat.past()
    chain, terms = chain_to(seat.book, grant, past), _effective(seat, grant)
    names = {m.id: m.name for c in seat.fold.charters for m in c.members}
    used, spent = seat.book.spent(grant.id, chain.owner, past)
    body = issued(terms, dataset=grant.dataset, parent=grant.parent, basis=grant.basis, nonce=Digest(grant.nonce))
    return {
        **body.to_json(),
        "grant": grant.id,
        "owner": chain.owner,
        "owner_name": names.get(chain.owner),
        "issuer": grant.issuer,
        "issuer_name": names.get(grant.issuer),
        "names": [names.get(m, m[:12]) for m in sorted(terms.members)],
        "state": _state(chain, used, now),
        "used": used,
        "spent_micro": spent,
        "accepted": sorted(seat.book.accepted.get(grant.id, {})),
    }


def _state(chain: Chain, used: int, now: int) -> str:
    if chain.faults:
        return "revoked" if "revoked" in chain.faults else chain.faults[0]
    if chain.terms.expires is not None and now >= chain.terms.expires:
        return "expired"
    if chain.terms.uses is not None and used >= chain.terms.uses:
        return "used-up"
    return "not-yet" if now < chain.terms.not_before else "active"


COMMANDS: Final = {
    "grant.issue": issue,
    "grant.narrow": narrow,
    "grant.revoke": revoke,
    "grant.accept": accept,
    "grant.list": list_,
    "grant.check": check,
}
READING: Final = frozenset({"grant.list", "grant.check"})
