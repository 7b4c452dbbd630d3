"""F: access and compliance. Every member signs properly; what it signed breaks a rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from world import DAY, HOUR, PURPOSE, World

from ledger import events
from ledger.access import egress
from ledger.entry import Record
from ledger.events import Selector
from protocol.ids import digest
from tests.attacks.case import attack

OTHER = "advertising"


def first(w: World, name: str, kind: str) -> Record:
    return next(r for r in w.feeds[name] if r.entry.header.type == kind)


def forced(w: World, name: str, *grants: Record, **fields: Any) -> Record:
    """A use under a decision that says these grants allow it, whatever they say."""
    w.runs += 1
    return w.used(name, w.decided(name, f"run-{w.runs}", lie=w.allowed_by(*grants), **fields))


def adas(w: World) -> str:
    return w.ids["ada"] + "/rows"


def handed(w: World, **terms: Any) -> Record:
    """Ada grants bob the use of her rows, and he may hand it on once."""
    grant = w.grant("ada", **{"to": ["bob"], "depth": 1, **terms})
    w.say("bob", events.GrantAccepted(grant=grant.entry.event))
    return grant


# -- C1 --------------------------------------------------------------------------------------------------------------------
@attack("C1", "rows are used and no decision is on record", "C1", "no-decision")
def _(w: World, lie: bool) -> Record:
    decision = w.decided("ada", "run")
    return w.used("ada", decision, **({"decision": digest(b"none")} if lie else {}))


@attack("C1", "rows are used although it was denied", "C1", "denied")
def _(w: World, lie: bool) -> Record:
    decision = w.decided("ada", "run", **({"purpose": OTHER} if lie else {}))
    return w.used("ada", decision)


@attack(54, "a permission is replayed for another run", "C1", "other-act")
def _(w: World, lie: bool) -> Record:
    return w.used("ada", w.decided("ada", "run"), **({"run": "other"} if lie else {}))


@attack(54, "a permission is used twice", "C1", "decision-twice")
def _(w: World, lie: bool) -> Record:
    decision, used = w.read("ada")
    return w.used("ada", decision) if lie else used


@attack("C1", "a permission rests on no grant", "C1", "no-grant", also="C14")
def _(w: World, lie: bool) -> Record:
    decision = w.decided("ada", "run", **({"lie": {"grants": ()}} if lie else {}))
    return w.used("ada", decision)


@attack(24, "a grant is made after the use, and dated back", "C1", "unknown-grant", also="C14 ts-backwards")
def _(w: World, lie: bool) -> Record:
    if not lie:
        handed(w)
        return w.read("bob", dataset=adas(w))[1]
    w.apart = {"ada"}  # bob cannot have known
    grant = w.grant("ada", to=["bob"])
    w.say("ada", events.NodeAlive())
    used = forced(w, "bob", grant, dataset=adas(w))
    w.apart = set()
    w.say("bob", events.GrantAccepted(grant=grant.entry.event))
    return used


@attack(54, "a grant's number is used again", "C1", "replayed", also="C14")
def _(w: World, lie: bool) -> Record:
    nonce = digest(b"nonce")
    old = w.grant("ada", dataset="more", nonce=nonce) if lie else w.grant("ada", dataset="more")
    assert old
    w.open_data("ada", "other", nonce=nonce)
    grant = w.feeds["ada"][-1]
    return forced(w, "ada", grant, dataset="other") if lie else w.read("ada", dataset="other")[1]


@attack(54, "a grant on one's own data set is used for another member's", "C1", "not-owner", also="C14")
def _(w: World, lie: bool) -> Record:
    if lie:
        return forced(w, "bob", first(w, "bob", "grant.issued"), dataset=adas(w))
    handed(w)
    return w.read("bob", dataset=adas(w))[1]


@attack("C1", "a chain whose links do not belong together", "C1", "broken-chain", also="C14")
def _(w: World, lie: bool) -> Record:
    above = handed(w)
    below = w.grant("bob", to=["cyd"], parent=above.entry.event)
    w.say("cyd", events.GrantAccepted(grant=below.entry.event))
    if lie:
        return forced(w, "cyd", first(w, "ada", "grant.issued"), below, dataset=adas(w))
    return w.read("cyd", dataset=adas(w))[1]


@attack(54, "a grant is replayed to another member", "C1", "not-addressed", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = handed(w)
    return forced(w, "cyd", grant, dataset=adas(w)) if lie else w.read("bob", dataset=adas(w))[1]


# -- C2 --------------------------------------------------------------------------------------------------------------------
@attack(59, "the purpose is relabelled in the log of the use", "C2", "relabelled", also="C2")
def _(w: World, lie: bool) -> Record:
    decision = w.decided("ada", "run")
    return w.used("ada", decision, **({"action": "label"} if lie else {}))


@attack("C2", "more rows are read than were asked for", "C2", "more-rows")
def _(w: World, lie: bool) -> Record:
    return w.used("ada", w.decided("ada", "run", rows=10), rows=11 if lie else 10)


@attack("C2", "rows that may be measured on are trained on", "C2", "action", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "held", actions=("evaluate",))
    if lie:
        return forced(w, "ada", grant, dataset="held")
    return w.read("ada", dataset="held", action="evaluate", rows=10)[1]


@attack(66, "a contribution is made for a purpose that the grant never covered", "C2", "purpose", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = first(w, "ada", "grant.issued")
    used = forced(w, "ada", grant, purpose=OTHER) if lie else w.read("ada")[1]
    w.published("ada", f"run-{w.runs}")
    w.decide(w.draft())
    return used


@attack("C2", "a column is read that was not granted", "C2", "columns", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "forms", selector=Selector(columns=("text",)))
    columns = ("name", "text") if lie else ("text",)
    return (
        forced(w, "ada", grant, dataset="forms", columns=columns)
        if lie
        else w.read("ada", dataset="forms", columns=columns)[1]
    )


# -- C3 --------------------------------------------------------------------------------------------------------------------
@attack(56, "a grant that ended a millisecond ago", "C3", "expired", also="C14")
def _(w: World, lie: bool) -> Record:
    end = w.now + HOUR
    grant = w.open_data("ada", "brief", expires=end)
    w.now = end - 1000
    return forced(w, "ada", grant, dataset="brief", at=end) if lie else w.read("ada", dataset="brief", at=end - 1)[1]


@attack(56, "a grant that begins in a millisecond", "C3", "early", also="C14")
def _(w: World, lie: bool) -> Record:
    start = w.now + HOUR
    grant = w.open_data("ada", "later", not_before=start)
    w.now = start - 1000
    return (
        forced(w, "ada", grant, dataset="later", at=start - 1) if lie else w.read("ada", dataset="later", at=start)[1]
    )


@attack(23, "a decision claims another time than its entry", "C3", "clock")
def _(w: World, lie: bool) -> Record:
    return w.decided("ada", "run", at=w.now - HOUR if lie else w.now + 1000)


@attack(
    23,
    "an expired grant is used by somebody who dates back, and others' cosignatures tell",
    "C3",
    "expired",
    also="C14",
)
def _(w: World, lie: bool) -> Record:
    end = w.now + HOUR
    grant = w.open_data("ada", "brief", expires=end)
    if not lie:
        return w.read("ada", dataset="brief")[1]
    w.now = end + HOUR
    w.cosigned("bob", "cyd")
    w.alive("cyd")
    decision = w.decided("ada", "run-1", lie=w.allowed_by(grant), dataset="brief", at=end - HOUR + 9000)
    return w.used("ada", decision)


# -- C4 --------------------------------------------------------------------------------------------------------------------
@attack(57, "rows are used after their grant was revoked", "C4", "after", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "lent")
    if not lie:
        used = w.read("ada", dataset="lent")[1]
    w.say("ada", events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"))
    return forced(w, "ada", grant, dataset="lent") if lie else used


@attack(57, "rows are used under a grant whose parent was revoked", "C4", "after", also="C14")
def _(w: World, lie: bool) -> Record:
    above = handed(w)
    below = w.grant("bob", to=["cyd"], parent=above.entry.event)
    w.say("cyd", events.GrantAccepted(grant=below.entry.event))
    if not lie:
        used = w.read("cyd", dataset=adas(w))[1]
    w.say("ada", events.GrantRevoked(grant=above.entry.event, reason="withdrawn"))
    return forced(w, "cyd", above, below, dataset=adas(w)) if lie else used


def _raced(w: World, grant: Record) -> Record:
    """Bob uses a grant without having heard of its end."""
    w.apart = {"bob"}
    w.say("ada", events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"))
    used = w.read("bob", dataset=adas(w))[1]
    w.apart = set()
    return used


@attack(58, "a use races with a revocation", "C4", "concurrent", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = handed(w)
    return _raced(w, grant) if lie else w.read("bob", dataset=adas(w))[1]


@attack(58, "a use races with a narrowing", "C4", "narrowed", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = handed(w)
    value: Any = grant.body.value() if grant.body else {}
    terms = events.parse("grant.issued", {**value, "actions": ["evaluate"] if lie else value["actions"]})
    assert isinstance(terms, events.GrantIssued)
    w.apart = {"bob"}
    w.say("ada", events.GrantNarrowed(grant=grant.entry.event, terms=terms))
    used = w.read("bob", dataset=adas(w))[1]
    w.apart = set()
    return used


@attack(
    58,
    "a use after a revocation, by somebody who says he had not heard, and cosignatures tell",
    "C4",
    "late",
    also="C13",
    world=lambda: World.opened(("ada", "bob", "cyd", "dan")),
)
def _(w: World, lie: bool) -> Record:
    grant = handed(w)
    if not lie:
        return w.read("bob", dataset=adas(w))[1]
    w.apart = {"bob", "dan"}
    w.say("ada", events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"))
    w.cosigned("cyd", "ada")  # the revocation existed by now
    w.now += HOUR
    w.apart = {"ada", "cyd"}
    w.cosigned("dan", "bob")  # and this was later
    used = w.read("bob", dataset=adas(w))[1]
    w.apart = set()
    return used


# -- C5 --------------------------------------------------------------------------------------------------------------------
WIDER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "columns": ({"selector": Selector(columns=("text",))}, {"selector": Selector()}),
    "rows with any tag": ({"selector": Selector(tags_all=("consented",))}, {"selector": Selector()}),
    "rows with a forbidden tag": ({"selector": Selector(tags_none=("minor",))}, {"selector": Selector()}),
    "actions": ({"actions": ("evaluate",)}, {"actions": ("evaluate", "train")}),
    "purposes": ({"purposes": (PURPOSE,)}, {"purposes": (OTHER, PURPOSE)}),
    "beginning": ({"not_before": 1000}, {"not_before": 999}),
    "end": ({"expires": 2_000_000_000_000}, {"expires": 2_000_000_000_001}),
    "no end": ({"expires": 2_000_000_000_000}, {"expires": None}),
    "uses": ({"uses": 3}, {"uses": 4}),
    "budget": ({"epsilon_micro": 5}, {"epsilon_micro": None}),
    "data set": ({"dataset": "rows"}, {"dataset": "others"}),
}  # fmt: skip

for _name, (_narrow, _wide) in WIDER.items():

    def _widened(w: World, lie: bool, narrow: dict[str, Any] = _narrow, wide: dict[str, Any] = _wide) -> Record:
        above = handed(w, **narrow)
        below = w.grant("bob", to=["cyd"], **{**narrow, **(wide if lie else {})}, parent=above.entry.event)
        w.say("cyd", events.GrantAccepted(grant=below.entry.event))
        return below

    attack(55, f"a delegation wider in: {_name}", "C5", "wider")(_widened)


@attack(55, "a delegation too deep", "C5", "too-deep")
def _(w: World, lie: bool) -> Record:
    above = handed(w, depth=1)
    below = w.grant("bob", to=["cyd"], depth=1 if lie else 0, parent=above.entry.event)
    w.say("cyd", events.GrantAccepted(grant=below.entry.event))
    return below


@attack(55, "a delegation by somebody to whom nothing was given", "C5", "not-delegate")
def _(w: World, lie: bool) -> Record:
    above = handed(w)
    below = w.grant("cyd" if lie else "bob", to=["ada", "cyd"], parent=above.entry.event)
    w.say("ada", events.GrantAccepted(grant=below.entry.event))
    return below


@attack(55, "a delegation of nothing", "C5", "unknown-parent")
def _(w: World, lie: bool) -> Record:
    above = handed(w)
    below = w.grant("bob", to=["cyd"], parent=digest(b"none") if lie else above.entry.event)
    w.say("cyd", events.GrantAccepted(grant=below.entry.event))
    return below


@attack("C5", "a grant is revoked by somebody who did not give it", "C5", "not-issuer", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = handed(w)
    return w.say("cyd" if lie else "ada", events.GrantRevoked(grant=grant.entry.event, reason="withdrawn"))


# -- C6, C7 ----------------------------------------------------------------------------------------------------------------
@attack("C6", "a training run whose reading is not on record", "C6", "not-logged")
def _(w: World, lie: bool) -> Record:
    decision = w.decided("ada", "run")
    if not lie:
        w.used("ada", decision)
    return w.published("ada", "run")


@attack("C7", "a contribution of no run", "C7", "no-run")
def _(w: World, lie: bool) -> Record:
    return w.published("ada", "never" if lie else None)


@attack("C7", "one run is contributed twice", "C7", "run-twice")
def _(w: World, lie: bool) -> Record:
    w.published("ada")
    return w.published("ada", f"run-{w.runs}" if lie else None)


@attack("C7", "a contribution that the node's own policy had kept back", "C7", "kept-back")
def _(w: World, lie: bool) -> Record:
    w.read("ada")
    w.say("ada", events.EgressRefused(run=f"run-{w.runs}", code="norm", policy=egress.DEFAULT.digest))
    if not lie:
        policy = egress.Policy(max_bytes=1 << 20)
        w.say("ada", events.EgressSet(policy=policy.to_json()))
    return w.published("ada", f"run-{w.runs}")


# -- C8, C9 ----------------------------------------------------------------------------------------------------------------
@attack("C8", "a release over a contribution that too many spoke against", "C8", "objected")
def _(w: World, lie: bool) -> Record:
    w.published("bob")
    bad = w.published("ada")
    if lie:
        w.objected(bad, "bob", "cyd")
    cut = w.draft()
    if lie:
        cut = w.completed(replace(cut, excluded=()))
    return w.decide(cut)


def _two_houses() -> World:
    return World.opened(cosignatures=1, organisations={"ada": "house", "bob": "house", "cyd": "clinic"})


@attack(
    35,
    "a cosignature of the author's own organisation is counted",
    "C8",
    "unwitnessed",
    also="bad-decision",
    world=_two_houses,
)
def _(w: World, lie: bool) -> Record:
    w.published("ada")
    w.cosigned("bob" if lie else "cyd", "ada")
    if not lie:
        return w.decide(w.draft())
    return w.decide(w.draft(reach=False))


@attack(65, "a release whose model is not what its contributions give", "C9", "differs")
def _(w: World, lie: bool) -> Record:
    return w.release(**({"model": digest(b"another")} if lie else {}))


@attack(64, "another model is served under a release's name", "C9", "served-other")
def _(w: World, lie: bool) -> Record:
    w.release()
    return w.served("ada", **({"model": digest(b"another")} if lie else {}))


@attack(64, "a model is served that was never released", "C9", "unreleased")
def _(w: World, lie: bool) -> Record:
    w.release()
    return w.served("ada", **({"release": digest(b"none")} if lie else {}))


# -- C10, C15 --------------------------------------------------------------------------------------------------------------
def _forget(w: World) -> tuple[Record, Record]:
    """Ada contributes, all release, and a row behind it is forgotten and confirmed."""
    w.published("ada")
    mine = w.feeds["ada"][-1]
    w.release("bob", "cyd")
    request = w.forgotten("ada", contributions=[mine])
    for name in w.feeds:
        w.erased(name, request)
    return mine, request


@attack(63, "a model is served with a contribution that had to go", "C10", "served")
def _(w: World, lie: bool) -> Record:
    _forget(w)
    served = w.served("bob")
    if not lie:
        w.published("bob")
        w.say("bob", events.ModelWithdrawn(release=w.fold.releases[-1].digest))
    w.now += 32 * DAY
    w.alive()
    return served


@attack(63, "a release two merges later still contains it", "C10", "released", also="bad-decision")
def _(w: World, lie: bool) -> Record:
    _forget(w)
    w.now += 32 * DAY
    w.alive()
    return w.release(forget=not lie)


@attack(63, "a release passes over a request, before its deadline", "bad-decision")
def _(w: World, lie: bool) -> Record:
    _forget(w)
    return w.release(forget=not lie)


@attack(63, "a contribution is left out by a request that another member made", "bad-decision")
def _(w: World, lie: bool) -> Record:
    mine, request = _forget(w)
    other = w.forgotten("cyd", contributions=[mine])
    cut = w.draft()
    (honest,) = cut.excluded
    assert honest.evidence == (request.entry.event,)
    return w.decide(replace(cut, excluded=(replace(honest, evidence=(other.entry.event,)) if lie else honest,)))


@attack(63, "a model learnt from what had to go", "C10", "learnt", severity="notice")
def _(w: World, lie: bool) -> Record:
    mine, _request = _forget(w) if lie else (None, None)
    if not lie:
        w.release()
    else:
        assert mine
        w.decide(w.draft())
    served = w.served("bob")
    if lie:
        w.now += 32 * DAY
        w.alive()
    return served


@attack("C15", "a holder does not confirm an erasure", "C15", "unconfirmed")
def _(w: World, lie: bool) -> Record:
    _decision, used = w.read("ada")
    request = w.forgotten("ada", entries=[used])
    w.without_body(used)
    for name in ("ada", "bob") if lie else ("ada", "bob", "cyd"):
        w.erased(name, request)
    w.now += 32 * DAY
    w.alive()
    return w.feeds["cyd"][-1]


@attack("C15", "a holder that is gone does not confirm an erasure", "C15", "silent", severity="warning", also="C13")
def _(w: World, lie: bool) -> Record:
    _decision, used = w.read("ada")
    request = w.forgotten("ada", entries=[used])
    w.without_body(used)
    for name in ("ada", "bob") if lie else ("ada", "bob", "cyd"):
        w.erased(name, request)
    w.now += 32 * DAY
    w.alive(*(("ada", "bob") if lie else ()))
    return w.feeds["cyd"][-1]


@attack("C15", "a holder confirms an erasure too late", "C15", "late", severity="warning")
def _(w: World, lie: bool) -> Record:
    _decision, used = w.read("ada")
    request = w.forgotten("ada", entries=[used])
    w.without_body(used)
    for name in ("ada", "bob"):
        w.erased(name, request)
    if lie:
        w.now += 32 * DAY
    done = w.erased("cyd", request)
    w.alive()
    return done


@attack(70, "a content that had to be erased is still held", "C15", "still-held")
def _(w: World, lie: bool) -> Record:
    _decision, used = w.read("ada")
    request = w.forgotten("ada", entries=[used])
    for name in w.feeds:
        w.erased(name, request)
    if not lie:
        w.without_body(used)
    w.now += 32 * DAY
    w.alive()
    return used


# -- C11, C16 --------------------------------------------------------------------------------------------------------------
@attack(60, "many small uses exceed a privacy budget", "C11", "spent", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "counted", epsilon_micro=1_000_000)
    for _ in range(4):
        used = w.read("ada", dataset="counted", epsilon_micro=250_000)[1]
    return forced(w, "ada", grant, dataset="counted", epsilon_micro=250_000) if lie else used


@attack(60, "a use without a stated budget under a grant that has one", "C11", "unbounded", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "counted", epsilon_micro=1_000_000)
    return forced(w, "ada", grant, dataset="counted") if lie else w.read("ada", dataset="counted", epsilon_micro=1)[1]


@attack(60, "a grant is used more often than it allows", "C16", "exceeded", also="C14")
def _(w: World, lie: bool) -> Record:
    grant = w.open_data("ada", "counted", uses=3)
    for _ in range(3):
        used = w.read("ada", dataset="counted")[1]
    return forced(w, "ada", grant, dataset="counted") if lie else used


@attack(60, "two members use up one grant without hearing of each other", "C16", "together", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = w.grant("ada", to=["bob", "cyd"], uses=1 if lie else 2)
    for name in ("bob", "cyd"):
        w.say(name, events.GrantAccepted(grant=grant.entry.event))
    w.apart = {"bob", "cyd"}
    for name in ("bob", "cyd"):
        used = w.read(name, dataset=adas(w))[1]
    w.apart = set()
    return used


# -- C12, C13 --------------------------------------------------------------------------------------------------------------
@attack(21, "a grant that its audience never confirms", "C12", "not-accepted", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = w.grant("ada", to=["bob"])
    if not lie:
        w.say("bob", events.GrantAccepted(grant=grant.entry.event))
    w.now += 8 * DAY
    w.alive()
    return grant


@attack(21, "a grant is confirmed that nobody gave", "C12", "accepted-unknown", severity="warning")
def _(w: World, lie: bool) -> Record:
    grant = w.grant("ada", to=["bob"])
    return w.say("bob", events.GrantAccepted(grant=digest(b"none") if lie else grant.entry.event))


@attack(21, "a contribution of which nobody else has a record", "C12", "not-recorded", severity="warning")
def _(w: World, lie: bool) -> Record:
    w.apart = {"ada"} if lie else set()
    mine = w.published("ada")
    w.now += 2 * DAY
    w.alive()
    return mine


@attack(21, "an erasure is confirmed that nobody asked for", "C12", "done-unknown", severity="warning")
def _(w: World, lie: bool) -> Record:
    request = w.forgotten("ada")
    w.erased("ada", request)
    return w.say("bob", events.ErasureDone(request=digest(b"none") if lie else request.entry.event, bodies=0))


@attack(20, "a member shows an old head for ever", "C13", "silent", severity="warning")
def _(w: World, lie: bool) -> Record:
    w.alive()
    last = w.feeds["cyd"][-1]
    for _ in range(4):
        w.now += HOUR // 6
        w.alive(*(("ada", "bob") if lie else ()))
    return last


# -- C14 -------------------------------------------------------------------------------------------------------------------
@attack(62, "a decision says allow where the rules say deny", "C14", "verdict")
def _(w: World, lie: bool) -> Record:
    grant = first(w, "ada", "grant.issued")
    return (
        w.decided("ada", "run", purpose=OTHER, lie=w.allowed_by(grant))
        if lie
        else w.decided("ada", "run", purpose=OTHER)
    )


@attack(62, "a decision says deny where the rules say allow", "C14", "verdict")
def _(w: World, lie: bool) -> Record:
    denial = {"verdict": "deny", "reasons": ("time-out",), "grants": ()}
    return w.decided("ada", "run", **({"lie": denial} if lie else {}))


@attack(62, "a decision gives other reasons than the rules", "C14", "reasons", severity="warning")
def _(w: World, lie: bool) -> Record:
    return w.decided("ada", "run", purpose=OTHER, **({"lie": {"reasons": ("expired",)}} if lie else {}))


@attack(67, "the policy changes and no entry says so", "C14", "policy")
def _(w: World, lie: bool) -> Record:
    policy = egress.Policy(max_bytes=1 << 20)
    if not lie:
        w.say("ada", events.EgressSet(policy=policy.to_json()))
    return w.decided("ada", "run", lie={"policy": policy.digest})
