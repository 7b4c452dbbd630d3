"""A forget bundle shows to anybody, offline, that something was forgotten; whatever is changed in it is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from paper import key
from seats import Sitter, Table, salted

from ledger import bundle, bundle_check, events
from ledger.collective import Contribution
from ledger.errors import BadBundle
from node.audits import bundle_blobs, bundling
from node.errors import NotAllowed
from protocol import canon
from protocol.errors import Malformed, Refused, TooLarge
from protocol.ids import EventId, digest
from protocol.keys import SigningKey
from protocol.text import to_base64

DAY = 86_400_000


def trained(sitter: Sitter, name: str) -> Contribution:
    return sitter.publish(blob=sitter.blob(salted(name), view=sitter.fold.cut.model))


def first(sitter: Sitter) -> Contribution:
    found: Contribution = sitter.fold.contributions[sitter.id][0]
    return found


def take_back(sitter: Sitter, *contributions: Contribution) -> EventId:
    request = events.ErasureRequested(
        dataset="contributions", scope="contribution", rows=0, request=digest(b"act"),
        contributions=tuple(sorted(c.event for c in contributions)), entries=(), deadline=DAY,
    )  # fmt: skip
    return sitter.seat.append(request).entry.event


@dataclass
class Told:
    """What happened: ada's first was in two releases, a quorum had it forgotten; bob's second, its own word, was in one."""

    table: Table
    asked: tuple[Contribution, ...]
    data: bytes


def happened(folder: Path) -> Told:
    table = Table(folder)
    ada, bob, cyd = table
    for sitter in table:
        sitter.publish(salted(sitter.name))
    table.deliver()
    table.decide(ada.cut())
    second = trained(bob, "bob two")
    table.deliver()
    table.decide(ada.cut())
    trained(cyd, "cyd two")
    take_back(bob, second)
    table.amend({"op": "forget", "contributions": [first(ada).event], "deadline": DAY})
    table.decide(cyd.cut())
    ada.publish(salted("later"))
    table.deliver()
    asked = (first(ada), second)
    data, _ = made(cyd, *asked)
    return Told(table, asked, data)


def made(sitter: Sitter, *asked: Contribution) -> tuple[bytes, bundle_check.Checked]:
    sitter.store.heads(sitter.collective)
    return bundling.make(
        sitter.home.ledger_db, sitter.home.blobs, sitter.collective, [c.event for c in asked], key=sitter.key, ts=9
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    found = happened(tmp_path_factory.mktemp("told"))
    yield found
    found.table.close()


def signed(value: dict[str, Any], by: SigningKey) -> bytes:
    """The file as its maker would sign it, whatever stands in it."""
    from ledger.bundle import DOMAIN
    from protocol import keys

    rest = {k: v for k, v in value.items() if k != "signature"}
    data = canon.encode(rest, max_bytes=bundle.MAX_FILE)
    mark = to_base64(keys.sign(by, DOMAIN, bytes.fromhex(digest(data))))
    return canon.encode({**rest, "signature": mark}, max_bytes=bundle.MAX_FILE)


def check(data: bytes) -> bundle_check.Checked:
    return bundle_check.check(bundle.decode(data))


def test_a_bundle_shows_what_was_in_which_release_and_that_the_new_one_is_without_it(told: Told) -> None:
    fold = told.table["cyd"].fold
    shown = check(told.data)
    assert (shown.name, shown.bundle.collective) == ("paper", told.table.collective)
    ada, bob = (c.event for c in told.asked)
    assert shown.was_in == {ada: (1, 2), bob: (2,)}
    assert {event: reason for event, (reason, _) in shown.by.items()} == {ada: "forgotten", bob: "erased"}
    assert shown.new.value == fold.releases[2].value
    assert shown.old is not None
    assert shown.old.value == fold.releases[1].value
    assert [(a.number, a.twice) for a in shown.bundle.releases] == [(1, True), (2, True)]
    names = {
        (d.certainty, told.table["ada"].fold.charter.name_of(d.member), d.number) for d in shown.bundle.descendants
    }
    assert names == {("contains", "cyd", 2), ("may-contain", "ada", 2)}


def test_what_any_member_makes_holds_and_says_the_same(told: Told) -> None:
    values = [json.loads(made(sitter, *told.asked)[0]) for sitter in told.table]
    for value in values:
        del value["made"], value["signature"], value["feeds"], value["entries"]
    assert values[0]["logs"] == values[1]["logs"] == values[2]["logs"]
    assert values[0]["descendants"] == values[1]["descendants"]


def test_what_is_still_in_the_newest_release_cannot_be_proven_forgotten(told: Told) -> None:
    with pytest.raises(NotAllowed, match="no release is without it yet"):
        made(told.table["ada"], first(told.table["bob"]))


def test_seats_that_changed_weigh_in_the_logs_what_the_ledger_says(tmp_path: Path) -> None:
    """Cyd's seat weighed seven and is gone; its register is in every later release with that weight."""
    table = Table(tmp_path)
    ada, bob, cyd = table
    table.amend({"op": "role", "member": {"id": cyd.id, "name": "cyd", "role": "contributor", "weight": 7}})
    for sitter in table:
        sitter.publish(salted(sitter.name))
    table.deliver()
    table.decide(ada.cut())
    table.amend({"op": "remove", "id": cyd.id})
    table.amend({"op": "forget", "contributions": [first(ada).event], "deadline": DAY})
    table.decide(bob.cut())
    shown = made(bob, first(ada))[1]
    for log in shown.bundle.logs.values():
        assert log is not None
        assert [cyd.id, 7] in log["weights"]  # type: ignore[operator]
    assert bundle_blobs.repeat(shown, bob.read).releases == (1, 2)
    table.close()


# -- tampering -----------------------------------------------------------------------------------------------------------
def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a JSON value, itself included."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*at, name))


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        at = len(value) // 2
        swap = {"a": "b", "0": "1", "A": "B"}.get(value[at : at + 1], "a" if value[at : at + 1].islower() else "0")
        return value[:at] + swap + value[at + 1 :] if value else "x"
    if isinstance(value, list):
        return value[:-1] if value else ["0" * 64]
    if isinstance(value, dict):
        return dict(list(value.items())[:-1])
    return "0" * 64


def changed(whole: dict[str, Any], at: tuple[Any, ...]) -> dict[str, Any]:
    copy = deepcopy(whole)
    spot: Any = copy
    for name in at[:-1]:
        spot = spot[name]
    spot[at[-1]] = other(spot[at[-1]])
    return copy


def sampled(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One of the places that differ only in which row or entry they are in: the code that reads them is the same."""
    kinds: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for at in found:
        kinds.setdefault(tuple("#" if isinstance(n, int) or len(str(n)) == 64 else str(n) for n in at), at)
    return list(kinds.values())


def is_word(at: tuple[Any, ...]) -> bool:
    """What the maker alone vouches for: one who lies there is found only by whoever has the blobs."""
    named = at[0] == "descendants" and (len(at) < 3 or at[2] in {"view", "certainty", "why", "through"})
    named = named or (at[0] == "logs" and at[-1] == "recomputed")
    return named or (at[0] == "releases" and len(at) == 3 and at[2] in {"without", "twice"}) or at[:2] == ("made", "ts")


def test_no_part_can_be_changed_by_somebody_who_is_not_its_maker(told: Told) -> None:
    whole = json.loads(told.data)
    for at in [p for p in places(whole) if 1 <= len(p) <= 2]:
        forged = changed(whole, at)
        with pytest.raises(Refused):
            check(canon.encode(forged, max_bytes=bundle.MAX_FILE))


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_maker_who_lies_is_found_in_every_part_that_is_not_marked_as_its_word(told: Told, every: int) -> None:
    """A part of each third kind by default; with the slow tests every single one."""
    whole = json.loads(told.data)
    del whole["signature"]
    passed, found = [], [p for p in places(whole) if p]
    for at in found if every == 1 else sampled(found)[::every]:
        if is_word(at):
            continue
        try:
            check(signed(changed(whole, at), told.table["cyd"].key))
        except Refused:
            continue
        passed.append(at)
    assert passed == []


def test_nobody_without_a_seat_makes_one(told: Told) -> None:
    whole = json.loads(told.data)
    whole["made"]["member"] = bytes(key("stranger").verify_key).hex()
    with pytest.raises(BadBundle, match="its maker has no seat"):
        check(signed(whole, key("stranger")))


# -- hostile files -------------------------------------------------------------------------------------------------------
def test_a_file_that_is_too_large_or_not_in_its_one_spelling_is_refused_before_it_is_read(told: Told) -> None:
    whole = json.loads(told.data)
    with pytest.raises(TooLarge):
        bundle.decode(b" " * (bundle.MAX_FILE + 1))
    with pytest.raises(TooLarge, match="lists and objects"):
        bundle.decode(b"[" + b"[]," * bundle.MAX_PARTS + b"[]]")
    with pytest.raises(Malformed):
        bundle.decode(json.dumps(whole).encode())
    for wrong in (b"", b"{}", b"[]", b"null", b"\xff", told.data[:-1], told.data + b"\n", b"[" * 100_000):
        with pytest.raises(Refused):
            bundle.decode(wrong)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(v=2),
        lambda v: v.update(v=True),
        lambda v: v.update(more=1),
        lambda v: v.update(statement="it was unlearnt"),
        lambda v: v.update(asked=[]),
        lambda v: v.update(asked=["0" * 64] * 2),
        lambda v: v.update(asked=["0" * 64 for _ in range(2000)]),
        lambda v: v["logs"].update(new={"v": 1}),
        lambda v: v["logs"].update(new=None),
        lambda v: v["decisions"].reverse(),
        lambda v: v["entries"].update({"0" * 64: {"line": "x" * 40_000, "path": [], "body": None}}),
        lambda v: next(iter(v["feeds"].values())).update(consistency=["0" * 64] * 65),
        lambda v: next(iter(v["feeds"].values())).update(note="n" * 2000),
        lambda v: v["superseded"].append({"kind": "release"}),
        lambda v: v.update(signature="x"),
    ],
)
def test_parts_of_another_shape_are_refused_as_ours_whoever_signed_them(told: Told, change: Any) -> None:
    whole = json.loads(told.data)
    change(whole)
    with pytest.raises(Refused):
        check(
            signed(whole, told.table["cyd"].key)
            if whole["signature"] != "x"
            else canon.encode(whole, max_bytes=1 << 23)
        )


def test_what_only_the_maker_says_is_repeated_from_the_blobs(told: Told) -> None:
    cyd = told.table["cyd"]
    again = bundle_blobs.repeat(check(told.data), cyd.read)
    assert (again.releases, again.without, again.views, again.missing) == ((1, 2, 3), (1, 2), 2, ())
    for change, cause in (
        (lambda v: v["releases"][0].update(without="0" * 64), "is not what the bundle says"),
        (lambda v: v["descendants"][0].update(view="0" * 64), "names another view"),
    ):
        whole = json.loads(told.data)
        change(whole)
        with pytest.raises(BadBundle, match=cause):
            bundle_blobs.repeat(check(signed(whole, cyd.key)), cyd.read)
    none = bundle_blobs.repeat(check(told.data), lambda _: None)
    assert (none.releases, none.views, len(none.missing)) == ((), 0, 6)
