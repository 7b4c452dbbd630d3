"""Event bodies: every type has one form that survives its bytes, and no other is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper import Paper, charter_of, key

from ledger import events
from ledger.entry import make
from ledger.errors import BadEvent
from ledger.events import grants
from protocol import binding
from protocol.canon import MAX_INT, Json, decode, encode
from protocol.errors import Refused
from protocol.ids import EventId, MemberId, digest, peer_id
from protocol.keys import SigningKey

HEX = st.binary(max_size=8).map(digest)
COUNT = st.integers(0, MAX_INT)
CODE = st.from_regex(r"[a-z0-9][a-z0-9.\-]{0,63}", fullmatch=True)
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
ATTEMPT = st.integers(0, events.MAX_ATTEMPT)
LOSS = st.none() | st.integers(-events.MAX_LOSS, events.MAX_LOSS)
OBJECTION = st.builds(events.Objection, event=HEX.map(EventId), reason=CODE)
OBJECT = st.dictionaries(st.text("abc", max_size=3), COUNT | TEXT | st.booleans() | st.none(), max_size=3)
NAME = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=200)
ACTION = st.sampled_from(grants.ACTIONS)
WORDS = st.lists(st.from_regex(r"[a-z0-9._-]{1,8}", fullmatch=True), max_size=4, unique=True).map(sorted).map(tuple)
CODES = st.lists(CODE, max_size=4, unique=True).map(sorted).map(tuple)
GRANT = st.builds(
    events.GrantIssued,
    dataset=NAME,
    selector=st.builds(events.Selector, columns=st.none() | WORDS, tags_all=WORDS, tags_none=WORDS),
    actions=st.lists(ACTION, unique=True).map(sorted).map(tuple),
    purposes=CODES,
    audience=st.builds(
        events.Audience,
        members=st.lists(HEX.map(MemberId), max_size=3, unique=True).map(sorted).map(tuple),
        roles=st.lists(st.sampled_from(grants.ROLES), unique=True).map(sorted).map(tuple),
    ),
    not_before=COUNT,
    expires=st.none() | COUNT,
    uses=st.none() | COUNT,
    epsilon_micro=st.none() | COUNT,
    depth=st.integers(0, grants.MAX_LINKS),
    parent=st.none() | HEX.map(EventId),
    basis=TEXT,
    nonce=HEX,
)
ANY = st.one_of(
    st.builds(events.Genesis, charter=OBJECT),
    st.builds(events.PeerBound, binding=OBJECT),
    st.builds(events.NodeStarted, versions=st.dictionaries(CODE, TEXT, max_size=4), fork_risk_accepted=st.booleans()),
    st.builds(events.AmendmentProposed, change=OBJECT),
    st.builds(events.AmendmentApproved, proposal=HEX.map(EventId)),
    st.builds(
        events.DataCommitted, dataset=TEXT, train_rows=COUNT, held_out_rows=COUNT, train_root=HEX, held_out_root=HEX
    ),
    st.builds(
        events.DataUsed,
        dataset=TEXT,
        root=HEX,
        rows=COUNT,
        action=CODE,
        purpose=CODE,
        run=TEXT,
        decision=HEX.map(EventId),
    ),
    st.builds(
        events.DataDescribed,
        dataset=NAME,
        tags=WORDS,
        columns=WORDS,
        purposes=CODES,
        retention_days=st.none() | COUNT,
        licence=TEXT,
        basis=TEXT,
    ),
    GRANT,
    st.builds(events.GrantNarrowed, grant=HEX.map(EventId), terms=GRANT),
    st.builds(events.GrantRevoked, grant=HEX.map(EventId), reason=CODE),
    st.builds(events.GrantAccepted, grant=HEX.map(EventId)),
    st.builds(
        events.AccessDecided,
        request=st.builds(
            events.AccessRequest,
            actor=HEX.map(MemberId),
            action=ACTION,
            dataset=NAME,
            purpose=CODE,
            columns=WORDS,
            rows=COUNT,
            epsilon_micro=st.none() | COUNT,
            at=COUNT,
            run=TEXT,
        ),
        grants=st.lists(HEX.map(EventId), max_size=3).map(tuple),
        verdict=st.sampled_from(["allow", "deny"]),
        reasons=CODES,
        policy=HEX,
    ),
    st.builds(
        events.ErasureRequested,
        dataset=TEXT,
        scope=st.sampled_from(["row", "subject"]),
        rows=COUNT,
        request=HEX,
        contributions=st.lists(HEX.map(EventId), max_size=3, unique=True).map(sorted).map(tuple),
        entries=st.lists(HEX.map(EventId), max_size=3, unique=True).map(sorted).map(tuple),
        deadline=COUNT,
    ),
    st.builds(events.ErasureDone, request=HEX.map(EventId), bodies=COUNT),
    st.builds(
        events.AccessServed,
        since=st.just(5),
        until=st.integers(5, MAX_INT),
        served=st.lists(
            st.builds(
                events.Served,
                key=CODE,
                purpose=CODE,
                model=HEX,
                reason=st.just("") | CODE,
                grants=st.lists(HEX.map(EventId), max_size=3, unique=True).map(sorted).map(tuple),
                requests=st.integers(1, MAX_INT),
                prompt_tokens=COUNT,
                answer_tokens=COUNT,
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda each: each.kind,
        )
        .map(lambda found: sorted(found, key=lambda each: each.kind))
        .map(tuple),
    ),
    st.builds(events.EgressSet, policy=OBJECT),
    st.builds(events.EgressRefused, run=TEXT, code=CODE, policy=HEX),
    st.builds(events.ModelServed, release=HEX, model=HEX),
    st.builds(events.ModelWithdrawn, release=HEX),
    st.builds(
        events.Published,
        epoch=HEX,
        number=st.integers(1, MAX_INT),
        blob=HEX,
        size=st.integers(1, MAX_INT),
        run=TEXT,
    ),
    st.builds(
        events.Verdict,
        height=COUNT,
        candidate=HEX,
        rows=COUNT,
        versus_base=LOSS,
        versus_parent=LOSS,
        objections=st.lists(OBJECTION, max_size=4).map(tuple),
    ),
    st.builds(
        events.Proposed,
        height=COUNT,
        attempt=ATTEMPT,
        valid_attempt=st.integers(-1, events.MAX_ATTEMPT),
        value=OBJECT,
    ),
    st.builds(
        events.KeysBound,
        log=NAME,
        witness=NAME,
        witness_pq=st.none() | NAME,
        recovery=st.none() | HEX,
        proof=st.binary(min_size=64, max_size=64),
    ),
    st.builds(events.KeyRotated, statement=OBJECT),
    st.builds(events.NodeAlive),
    st.builds(events.ForkFound, member=HEX.map(MemberId), proof=NAME),
    st.builds(
        events.HeadWitnessed,
        heads=st.lists(
            st.builds(
                events.Witnessed,
                member=HEX.map(MemberId),
                size=st.integers(1, MAX_INT),
                root=HEX,
                time=st.integers(1, MAX_INT),
                signature=st.binary(min_size=64, max_size=64),
                post_quantum=st.none() | st.just(bytes(2420)),
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda h: (h.member, h.size),
        )
        .map(lambda heads: sorted(heads, key=lambda h: (h.member, h.size)))
        .map(tuple),
    ),
    st.builds(
        events.PeerBanned,
        member=HEX.map(MemberId),
        peer=st.none() | st.binary(min_size=32, max_size=32).map(peer_id),
        reason=CODE,
        until=st.none() | COUNT,
    ),
    st.builds(events.Accepted, height=COUNT, attempt=ATTEMPT, digest=HEX),
    st.builds(events.Objected, height=COUNT, attempt=ATTEMPT, digest=st.none() | HEX, reason=CODE),
    st.builds(events.Committed, height=COUNT, attempt=ATTEMPT, digest=st.none() | HEX),
)

D = digest(b"x")
GRANTED = events.GrantIssued(
    dataset="d",
    selector=events.Selector(columns=("text",), tags_all=("consented",), tags_none=("minor",)),
    actions=("train",),
    purposes=("research",),
    audience=events.Audience(members=(MemberId(D),), roles=("auditor",)),
    not_before=1,
    expires=2,
    uses=3,
    epsilon_micro=4,
    depth=1,
    parent=EventId(D),
    basis="consent",
    nonce=D,
)
ONE_OF_EACH: list[events.Event] = [
    events.Genesis(charter=charter_of(["ada"]).to_json()),
    events.PeerBound(binding=binding.make(key("ada"), SigningKey(b"\x01" * 32))),
    events.NodeStarted(versions={"python": "3.11"}, fork_risk_accepted=False),
    events.AmendmentProposed(change={"op": "remove", "id": D}),
    events.AmendmentApproved(proposal=EventId(D)),
    events.DataCommitted(dataset="d", train_rows=1, held_out_rows=1, train_root=D, held_out_root=D),
    events.DataUsed(dataset="d", root=D, rows=1, action="train", purpose="x", run="r", decision=EventId(D)),
    events.DataDescribed(dataset="d", tags=("a",), retention_days=30),
    GRANTED,
    events.GrantNarrowed(grant=EventId(D), terms=GRANTED),
    events.GrantRevoked(grant=EventId(D), reason="withdrawn"),
    events.GrantAccepted(grant=EventId(D)),
    events.AccessDecided(
        request=events.AccessRequest(
            actor=MemberId(D),
            action="train",
            dataset="d",
            purpose="x",
            columns=("text",),
            rows=1,
            epsilon_micro=None,
            at=1,
            run="r",
        ),
        grants=(EventId(D),),
        verdict="deny",
        reasons=("purpose",),
        policy=D,
    ),
    events.AccessServed(
        since=1,
        until=2,
        served=(
            events.Served(
                key="k1",
                purpose="x",
                model=D,
                reason="",
                grants=(EventId(D),),
                requests=1,
                prompt_tokens=0,
                answer_tokens=0,
            ),
        ),
    ),
    events.EgressSet(policy={}),
    events.EgressRefused(run="r", code="norm", policy=D),
    events.ModelServed(release=D, model=D),
    events.ModelWithdrawn(release=D),
    events.Published(epoch=D, number=1, blob=D, size=1, run="r"),
    events.Verdict(
        height=1,
        candidate=D,
        rows=1,
        versus_base=1,
        versus_parent=-1,
        objections=(events.Objection(event=EventId(D), reason="worse"),),
    ),
    events.ErasureRequested(
        dataset="d", scope="row", rows=1, request=D, contributions=(EventId(D),), entries=(), deadline=0
    ),
    events.ErasureDone(request=EventId(D), bodies=0),
    events.KeysBound(log="l", witness="w", witness_pq="p", recovery=D, proof=bytes(64)),
    events.KeyRotated(statement={"kind": "rotation"}),
    events.NodeAlive(),
    events.ForkFound(member=MemberId(D), proof="{}"),
    events.HeadWitnessed(
        heads=(
            events.Witnessed(member=MemberId(D), size=1, root=D, time=1, signature=bytes(64), post_quantum=bytes(2420)),
        )
    ),
    events.PeerBanned(member=MemberId(D), peer=None, reason="flood", until=1),
    events.Proposed(height=1, attempt=0, valid_attempt=-1, value={}),
    events.Accepted(height=1, attempt=0, digest=D),
    events.Objected(height=1, attempt=0, digest=None, reason="timeout"),
    events.Committed(height=1, attempt=0, digest=D),
]


@given(ANY)
def test_an_event_survives_its_bytes(event: events.Event) -> None:
    data = encode(event.to_json(), max_bytes=1 << 20)
    assert events.parse(event.TYPE, decode(data, max_bytes=1 << 20)) == event


def test_every_type_is_tried() -> None:
    assert {e.TYPE for e in ONE_OF_EACH} == events.TYPES


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda e: e.TYPE)
def test_a_key_more_or_less_is_refused(event: events.Event) -> None:
    body = event.to_json()
    assert events.parse(event.TYPE, body) == event
    for gone in body:
        with pytest.raises(BadEvent):
            events.parse(event.TYPE, {k: v for k, v in body.items() if k != gone})
    with pytest.raises(BadEvent):
        events.parse(event.TYPE, {**body, "more": 1})
    for other in (None, [], "x", 1):
        with pytest.raises(BadEvent):
            events.parse(event.TYPE, other)


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda e: e.TYPE)
def test_a_value_of_another_kind_is_refused(event: events.Event) -> None:
    for name, right in event.to_json().items():
        wrong: list[Any] = [True, -2000, "\n", [[]], 2**53] if not isinstance(right, bool) else [0, 1, "true", None]
        for value in wrong:
            with pytest.raises(Refused):
                events.parse(event.TYPE, {**event.to_json(), name: value})


@pytest.mark.parametrize(
    ("event", "name", "bad"),
    [
        (ONE_OF_EACH[2], "versions", [{"x": 1}, {"x": "\n"}, {f"k{n}": "" for n in range(33)}]),
        (ONE_OF_EACH[6], "purpose", ["", "Train", "a" * 65, "a b"]),
        (ONE_OF_EACH[6], "run", ["x" * 201, "a\x00b"]),
        (ONE_OF_EACH[7], "number", [0]),
        (ONE_OF_EACH[7], "size", [0]),
        (ONE_OF_EACH[8], "versus_base", [1001, -1001, 0.5]),
        (ONE_OF_EACH[8], "objections", [[[D]], [[D, "worse", 1]], [["x", "worse"]], [[D, "Worse"]], [[D, "w"]] * 257]),
        (ONE_OF_EACH[9], "attempt", [events.MAX_ATTEMPT + 1]),
        (ONE_OF_EACH[9], "valid_attempt", [-2, None]),
        (ONE_OF_EACH[10], "digest", [None, "AB" * 32]),
    ],
)
def test_a_value_out_of_range_is_refused(event: events.Event, name: str, bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(Refused):
            events.parse(event.TYPE, {**event.to_json(), name: value})


SERVED: dict[str, Any] = next(e for e in ONE_OF_EACH if isinstance(e, events.AccessServed)).to_json()["served"][0]


@pytest.mark.parametrize(
    "served",
    [
        [],
        [{**SERVED, "requests": 0}],
        [{**SERVED, "key": "Two Words"}],
        [{**SERVED, "prompt": "text"}],
        [SERVED, SERVED],
        [{**SERVED, "key": "k2"}, SERVED],
        [{**SERVED, "grants": [D, D]}],
        [{**SERVED, "key": f"k{n:03}"} for n in range(events.MAX_SERVED + 1)],
    ],
)
def test_counted_requests_are_sorted_bounded_and_say_no_more_than_their_kind(served: list[Any]) -> None:
    good = {"since": 1, "until": 2, "served": [SERVED, {**SERVED, "key": "k2"}]}
    assert events.parse(events.AccessServed.TYPE, good).to_json() == good
    with pytest.raises(Refused):
        events.parse(events.AccessServed.TYPE, {**good, "served": served})
    with pytest.raises(BadEvent):
        events.parse(events.AccessServed.TYPE, {**good, "until": 0})


def test_an_unknown_type_is_no_event() -> None:
    with pytest.raises(BadEvent):
        events.parse("grant.given", {})


# -- in a feed -------------------------------------------------------------------------------------------------------
def write(paper: Paper, name: str, type_: str, body: Any) -> Any:
    member = paper.members[name]
    prev = member.feed[-1].entry.leaf if member.feed else "0" * 64
    record = make(
        key(name),
        collective=member.collective,
        seq=len(member.feed),
        prev=prev,
        ts=0,
        type=type_,
        seen=(),
        body=body,
        salt=bytes(16),
    )
    member.feed.append(record)
    paper.deliver_all()
    return record


def test_an_unknown_type_is_kept_and_counted_not_dropped() -> None:
    paper = Paper.found(["ada", "bob", "cyd"])
    write(paper, "bob", "grant.given", {"to": "ada"})
    write(paper, "bob", "grant.given", {"to": "cyd"})
    paper.members["bob"].publish()
    paper.deliver_all()
    for member in paper.members.values():
        fold, bob = member.fold, paper.members["bob"].id
        assert fold.unknown_types == {"grant.given": 2}
        assert fold.sizes[bob] == len(fold.leaves[bob]) == 3
        assert not fold.flaws
        assert len(fold.contributions[bob]) == 1


@pytest.mark.parametrize(
    ("type_", "body"),
    [
        (events.Published.TYPE, {}),
        (events.Published.TYPE, {"epoch": "x", "number": 1, "blob": D, "size": 1}),
        (events.Proposed.TYPE, {"height": 1, "attempt": 0, "valid_attempt": -1, "value": {"kind": ["release"]}}),
        (events.Proposed.TYPE, {"height": 1, "attempt": 0, "valid_attempt": -1, "value": {}}),
        (events.PeerBound.TYPE, {"binding": {"member": D}}),
        (events.PeerBound.TYPE, {"binding": binding.make(key("ada"), SigningKey(b"\x01" * 32))}),
        (events.Genesis.TYPE, {"charter": charter_of(["bob"]).to_json()}),
        (events.Genesis.TYPE, {"charter": {}}),
        (events.Committed.TYPE, {"height": 0, "attempt": 0, "digest": None}),
    ],
)
def test_a_malformed_body_is_a_flaw_of_its_entry_and_not_an_exception(type_: str, body: Any) -> None:
    paper = Paper.found(["ada", "bob", "cyd"])
    record = write(paper, "bob", type_, body)
    after = paper.members["bob"].publish()
    paper.deliver_all()
    fold = paper.members["ada"].fold
    assert [(f.source.event, f.source.seq) for f in fold.flaws] == [(record.entry.event, 0)]
    assert fold.flaws[0].code in {"bad-event", "malformed", "bad-value", "bad-charter"}
    assert [c.event for c in fold.contributions[paper.members["bob"].id]] == [after.entry.event]


@pytest.mark.parametrize("key", ["contributions", "entries"])
@pytest.mark.parametrize(
    "value",
    [
        "a",
        [1],
        ["ab"],
        ["B" * 64],
        ["b" * 64, "a" * 64],
        ["a" * 64, "a" * 64],
        [f"{n:064x}" for n in range(201)],
    ],
)
def test_an_erasure_lists_event_ids_each_once_in_order_and_not_without_end(key: str, value: Json) -> None:
    good = events.ErasureRequested(
        dataset="d", scope="row", rows=1, request=D, contributions=(), entries=(), deadline=0
    ).to_json()
    with pytest.raises(BadEvent):
        events.parse("erasure.requested", {**good, key: value})
    full: list[Json] = [f"{n:064x}" for n in range(200)]
    whole = {**good, "contributions": full, "entries": full}
    assert len(encode(whole, max_bytes=32 * 1024)) < 32 * 1024
    assert events.parse("erasure.requested", whole).to_json() == whole
