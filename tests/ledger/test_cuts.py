"""Decisions as values: one form, one digest, nothing else is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import cuts
from ledger.cuts import Amendment, Cut, Exclusion, FeedHead, Last, Place, RegisterDigest
from ledger.errors import BadValue
from protocol.canon import decode, encode
from protocol.errors import Refused
from protocol.ids import CollectiveId, EventId, MemberId, digest

D = [digest(bytes([n])) for n in range(16)]
A, B = sorted(MemberId(d) for d in D[:2])
PLACE = Place(
    collective=CollectiveId(D[2]),
    charter=D[3],
    height=3,
    parent=D[4],
    heads=(FeedHead(member=A, size=7, leaf=D[5]), FeedHead(member=B, size=2, leaf=D[6])),
)
EVIDENCE = tuple(sorted(EventId(d) for d in D[7:9]))
CUT = Cut(
    place=PLACE,
    number=2,
    parent_release=D[9],
    epoch=D[10],
    last=(Last(member=A, number=3, event=EventId(D[11])), Last(member=B, number=1, event=EventId(D[12]))),
    excluded=(Exclusion(event=EventId(D[11]), reason="refused", evidence=EVIDENCE),),
    recipe="contributor-mean/1",
    registers=(RegisterDigest(member=B, digest=D[13]),),
    model=D[14],
)
AMENDMENT = Amendment(place=PLACE, proposal=EventId(D[15]), change={"op": "remove", "id": A})

HEX = st.binary(max_size=4).map(digest)


def rows(*parts: Any, size: int = 4) -> Any:
    """Tuples whose first parts ascend and are unique."""
    return st.lists(st.tuples(*parts), max_size=size, unique_by=lambda r: r[0]).map(sorted)


PLACES = st.builds(
    Place,
    collective=HEX.map(CollectiveId),
    charter=HEX,
    height=st.integers(0, 2**53 - 1),
    parent=HEX,
    heads=rows(HEX, st.integers(1, 9), HEX).map(
        lambda found: tuple(FeedHead(member=MemberId(m), size=n, leaf=leaf) for m, n, leaf in found)
    ),
)
CUTS = st.builds(
    Cut,
    place=PLACES,
    number=st.integers(1, 9),
    parent_release=st.none() | HEX,
    epoch=HEX,
    last=rows(HEX, st.integers(1, 9), HEX).map(
        lambda found: tuple(Last(member=MemberId(m), number=n, event=EventId(e)) for m, n, e in found)
    ),
    excluded=rows(HEX, st.sampled_from(["refused", "norm"]), st.sets(HEX, max_size=3)).map(
        lambda found: tuple(
            Exclusion(event=EventId(e), reason=r, evidence=tuple(sorted(map(EventId, x)))) for e, r, x in found
        )
    ),
    recipe=st.sampled_from(["contributor-mean/1", "x" * 64]),
    registers=rows(HEX, HEX).map(lambda found: tuple(RegisterDigest(member=MemberId(m), digest=d) for m, d in found)),
    model=HEX,
)
ODD: list[Any] = [None, True, -1, 0, 1, 2**53 - 1, "", "release", "\n", D[0], "AB" * 32, [], [[]], [D[0]], {}, {"v": 1}]


@settings(max_examples=60)
@given(CUTS | st.builds(Amendment, place=PLACES, proposal=HEX.map(EventId), change=st.just({"op": "remove"})))
def test_a_decision_survives_its_bytes(value: cuts.Value) -> None:
    data = encode(value.to_json(), max_bytes=1 << 20)
    again = cuts.parse(decode(data, max_bytes=1 << 20))
    assert again == value
    assert again.digest == value.digest == digest(data)


def spots(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON value, the whole first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(spot for key, item in inside for spot in spots(item, (*way, key)))]


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    value = copy.deepcopy(value)
    at = value
    for step in way[:-1]:
        at = at[step]
    at[way[-1]] = new
    return value


@pytest.mark.parametrize("value", [CUT, AMENDMENT], ids=["cut", "amendment"])
def test_whatever_is_written_in_a_place_is_refused_or_is_the_one_form_of_another_decision(value: cuts.Value) -> None:
    whole = value.to_json()
    for way in spots(whole):
        for odd in ODD:
            found = changed(whole, way, odd)
            try:
                taken = cuts.parse(found)
            except Refused:
                continue
            assert encode(taken.to_json()) == encode(found), way
            assert (taken == value) is (encode(found) == encode(whole)), way


@pytest.mark.parametrize("value", [CUT, AMENDMENT], ids=["cut", "amendment"])
def test_a_key_more_or_less_is_refused(value: cuts.Value) -> None:
    whole = value.to_json()
    for gone in whole:
        with pytest.raises(Refused):
            cuts.parse({k: v for k, v in whole.items() if k != gone})
    with pytest.raises(BadValue):
        cuts.parse({**whole, "more": 1})
    for bad in (None, [], {}, "release", {"kind": ["release"]}):
        with pytest.raises(BadValue):
            cuts.parse(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["heads", "last", "excluded", "registers"])
def test_a_list_is_sorted_without_repetition_and_bounded(name: str) -> None:
    row = CUT.to_json()[name][0]  # type: ignore[index]
    low, high = ([digest(bytes([n])), *row[1:]] for n in (3, 4))  # type: ignore[index, misc]
    low, high = sorted([low, high])
    assert cuts.parse({**CUT.to_json(), name: [low, high]})
    many = [[f"{n:064x}", *row[1:]] for n in range(cuts.MAX_LIST + 1)]  # type: ignore[index, misc]
    for bad in ([high, low], [low, low], many, [low[:-1]], [[*low, 1]], {"0": low}):
        with pytest.raises(Refused):
            cuts.parse({**CUT.to_json(), name: bad})
    assert cuts.parse({**CUT.to_json(), name: many[:-1]})


def test_evidence_is_sorted_without_repetition() -> None:
    for evidence in (EVIDENCE[::-1], (EVIDENCE[0],) * 2):
        bad = replace(CUT, excluded=(replace(CUT.excluded[0], evidence=evidence),))
        with pytest.raises(BadValue):
            cuts.parse(bad.to_json())


def test_the_digest_changes_with_everything_in_it() -> None:
    others: list[Cut] = [
        replace(CUT, number=3), replace(CUT, parent_release=None), replace(CUT, epoch=D[0]), replace(CUT, last=()),
        replace(CUT, excluded=()), replace(CUT, recipe="sqrt-mean/1"), replace(CUT, registers=()),
        replace(CUT, model=D[0]), replace(CUT, place=replace(PLACE, height=4)),
        replace(CUT, place=replace(PLACE, heads=PLACE.heads[:1])), replace(CUT, place=replace(PLACE, parent=D[0])),
    ]  # fmt: skip
    assert len({CUT.digest, AMENDMENT.digest, *(c.digest for c in others)}) == len(others) + 2


def test_a_place_knows_how_much_of_each_feed_it_covers() -> None:
    assert (PLACE.size_of(A), PLACE.size_of(B), PLACE.size_of(D[3])) == (7, 2, 0)
