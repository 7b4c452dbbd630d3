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
from protocol import binding
from protocol.canon import MAX_INT, decode, encode
from protocol.errors import Refused
from protocol.ids import EventId, digest
from protocol.keys import SigningKey

HEX = st.binary(max_size=8).map(digest)
COUNT = st.integers(0, MAX_INT)
CODE = st.from_regex(r"[a-z0-9][a-z0-9.\-]{0,63}", fullmatch=True)
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=200)
ATTEMPT = st.integers(0, events.MAX_ATTEMPT)
LOSS = st.none() | st.integers(-events.MAX_LOSS, events.MAX_LOSS)
OBJECTION = st.builds(events.Objection, event=HEX.map(EventId), reason=CODE)
OBJECT = st.dictionaries(st.text("abc", max_size=3), COUNT | TEXT | st.booleans() | st.none(), max_size=3)
ANY = st.one_of(
    st.builds(events.Genesis, charter=OBJECT),
    st.builds(events.PeerBound, binding=OBJECT),
    st.builds(events.NodeStarted, versions=st.dictionaries(CODE, TEXT, max_size=4), fork_risk_accepted=st.booleans()),
    st.builds(events.AmendmentProposed, change=OBJECT),
    st.builds(events.AmendmentApproved, proposal=HEX.map(EventId)),
    st.builds(
        events.DataCommitted, dataset=TEXT, train_rows=COUNT, held_out_rows=COUNT, train_root=HEX, held_out_root=HEX
    ),
    st.builds(events.DataUsed, dataset=TEXT, root=HEX, rows=COUNT, purpose=CODE, run=TEXT),
    st.builds(events.Published, epoch=HEX, number=st.integers(1, MAX_INT), blob=HEX, size=st.integers(1, MAX_INT)),
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
    st.builds(events.Accepted, height=COUNT, attempt=ATTEMPT, digest=HEX),
    st.builds(events.Objected, height=COUNT, attempt=ATTEMPT, digest=st.none() | HEX, reason=CODE),
    st.builds(events.Committed, height=COUNT, attempt=ATTEMPT, digest=st.none() | HEX),
)

D = digest(b"x")
ONE_OF_EACH: list[events.Event] = [
    events.Genesis(charter=charter_of(["ada"]).to_json()),
    events.PeerBound(binding=binding.make(key("ada"), SigningKey(b"\x01" * 32))),
    events.NodeStarted(versions={"python": "3.11"}, fork_risk_accepted=False),
    events.AmendmentProposed(change={"op": "remove", "id": D}),
    events.AmendmentApproved(proposal=EventId(D)),
    events.DataCommitted(dataset="d", train_rows=1, held_out_rows=1, train_root=D, held_out_root=D),
    events.DataUsed(dataset="d", root=D, rows=1, purpose="train", run="r"),
    events.Published(epoch=D, number=1, blob=D, size=1),
    events.Verdict(
        height=1,
        candidate=D,
        rows=1,
        versus_base=1,
        versus_parent=-1,
        objections=(events.Objection(event=EventId(D), reason="worse"),),
    ),
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
