"""The charter: one strict form, one digest, and changes that lead from one valid charter to another."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from paper import charter_of, key

from ledger import charter as charters
from ledger.amending import amended
from ledger.charter import Adapter, Base, Charter, Gate, Member, Release, Update, collective_id
from ledger.charter_reading import ROLES, VALUE_BITS, parse
from ledger.errors import BadCharter
from protocol.canon import decode, encode
from protocol.errors import BadKey, Malformed, Refused
from protocol.ids import digest, peer_id
from protocol.keys import member_id

CHARTER = charter_of(["ada", "bob", "cyd"])
WHOLE: dict[str, Any] = CHARTER.to_json()
PARTS = ("base", "adapter", "update", "gate", "release", "witness")
SEAT = {"id": member_id(key("dan")), "name": "dan", "role": "contributor", "weight": 1}
IDS = tuple(sorted(member_id(key(f"member {n}")) for n in range(12)))


def with_(path: str, value: object) -> dict[str, Any]:
    """The charter as JSON with one value replaced."""
    whole = copy.deepcopy(WHOLE)
    at: Any = whole
    *way, last = path.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return whole


def refused(value: Any) -> str:
    with pytest.raises(Refused) as caught:
        parse(value)
    return caught.value.code


# -- one form --------------------------------------------------------------------------------------------------------
def objects() -> list[str]:
    return ["", *PARTS, "members.0"]


@pytest.mark.parametrize("path", objects())
def test_a_charter_with_a_key_more_or_less_is_refused(path: str) -> None:
    part: Any = WHOLE
    for step in filter(None, path.split(".")):
        part = part[int(step)] if isinstance(part, list) else part[step]
    for gone in part:
        fewer = {k: v for k, v in part.items() if k != gone}
        assert refused(with_(path, fewer) if path else fewer) == "bad-charter"
    more = {**part, "colour": 1}
    assert refused(with_(path, more) if path else more) == "bad-charter"


@pytest.mark.parametrize(
    ("path", "low", "high"),
    [
        ("adapter.rank", 1, 1024), ("adapter.alpha", 1, 1 << 16), ("adapter.coordinates", 1, 1 << 28),
        ("update.density_ppm", 1, 1_000_000), ("gate.max_blob_bytes", 1024, 1 << 30),
        ("gate.norm_cap_micro", 1, 1 << 50), ("gate.tolerance_centinats", 0, 10_000),
        ("gate.held_out_min", 0, 1_000_000), ("release.wait_for", 1, 512), ("release.patience_ms", 0, 1 << 40),
        ("release.timeout_ms", 100, 1 << 40), ("epoch", 0, 1 << 40), ("members.0.weight", 1, 1000),
    ],
)  # fmt: skip
def test_integers_are_taken_from_end_to_end_of_their_range_and_not_beyond(path: str, low: int, high: int) -> None:
    for good in (low, high):
        assert parse(with_(path, good)).to_json() == with_(path, good)
    for bad in (low - 1, high + 1, None, True, "1", [1], 1.0):
        assert refused(with_(path, bad)) == "bad-charter"


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        ("v", [0, 2, True, "1", None]),
        ("name", ["", "x" * 65, "a\nb", "\x7f", 3, None]),
        ("base.name", ["", "x" * 65]),
        ("recipe", ["", "x" * 65, None]),
        ("members.0.name", ["", "x" * 65, "tab\t"]),
        ("members.0.organisation", ["", "x" * 65, "tab\t", None, 1]),
        (
            "members.0.was",
            [
                None,
                [[]],
                [[IDS[0], 1]],
                [[IDS[0], -1, "rotation"]],
                [["0" * 64, 1, "rotation"]],
                [[IDS[0], 1, "theft"]],
                [[IDS[0], 1, "rotation"]] * 2,
                [[WHOLE["members"][1]["id"], 1, "rotation"]],
                [[id_, 1, "rotation"] for id_ in IDS] * 6,
            ],
        ),
        ("witness", [None, 1, {}]),
        ("witness.cosignatures", [-1, 3, True, "1"]),
        ("nonce", ["", "AB" * 32, "ab" * 31, 7]),
        ("base.digest", ["ab" * 33, None]),
        ("adapter.seed", ["xyz", None]),
        ("adapter.targets", [[], ["q"] * 65, "q_proj", [1], ["q proj"], [""], ["q_proj", "q_proj"]]),
        ("update.value_bits", [0, 5, 6, 7, 16, True]),
        ("update.block", [8, 24, 8192]),
        ("members", [[], {}, None, WHOLE["members"][::-1], WHOLE["members"][:1] * 2, [[]]]),
        ("members.0.role", ["", "owner", None, ["contributor"]]),
        ("members.0.id", ["ab" * 31, "AB" * 32]),
        ("base", [None, [], "tiny"]),
        ("faults", [-1, 257, 4, True]),
    ],
)
def test_a_value_outside_the_form_is_refused(path: str, bad: list[object]) -> None:
    for value in bad:
        assert refused(with_(path, value)) in {"bad-charter", "malformed", "bad-key"}


def test_a_member_id_that_is_no_key_is_refused() -> None:
    with pytest.raises(BadKey):
        parse(with_("members.0.id", "0" * 63 + "1"))


@pytest.mark.parametrize("text", ["e\N{COMBINING ACUTE ACCENT}", "\ud800"])
@pytest.mark.parametrize("path", ["name", "base.name", "members.0.name"])
def test_a_text_that_has_no_canonical_bytes_is_refused(path: str, text: str) -> None:
    with pytest.raises(Malformed):
        parse(with_(path, text))


def test_a_charter_in_which_nobody_votes_is_refused() -> None:
    auditors = [{**seat, "role": "auditor"} for seat in WHOLE["members"]]
    assert refused({**WHOLE, "members": auditors}) == "bad-charter"


@pytest.mark.parametrize("value", [None, [], "charter", 1, True])
def test_what_is_no_object_is_refused(value: object) -> None:
    assert refused(value) == "bad-charter"


NAMES = st.text("abcXYZ 019-_'\u00e9\u4e2d\U0001f41f", min_size=1, max_size=20)
HEX = st.binary(min_size=32, max_size=32).map(digest)


@st.composite
def any_charter(draw: st.DrawFn) -> Charter:
    ids = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=len(IDS), unique=True))
    seats = tuple(
        Member(
            id=id_,
            name=draw(NAMES),
            role="contributor" if n == 0 else draw(st.sampled_from(ROLES)),
            weight=draw(st.integers(1, 1000)),
            organisation=draw(NAMES),
        )
        for n, id_ in enumerate(sorted(ids))
    )
    voters = sum(s.votes for s in seats)
    targets = draw(st.lists(st.from_regex(r"[a-z_.]{1,20}", fullmatch=True), min_size=1, max_size=4, unique=True))
    return Charter(
        name=draw(NAMES),
        nonce=draw(HEX),
        base=Base(name=draw(NAMES), digest=draw(HEX)),
        adapter=Adapter(
            rank=draw(st.integers(1, 1024)),
            alpha=draw(st.integers(1, 1 << 16)),
            targets=tuple(targets),
            seed=draw(HEX),
            coordinates=draw(st.integers(1, 1 << 28)),
        ),
        update=Update(
            density_ppm=draw(st.integers(1, 1_000_000)),
            value_bits=draw(st.sampled_from(VALUE_BITS)),
            block=draw(st.sampled_from([16, 256, 4096])),
        ),
        recipe=draw(NAMES),
        gate=Gate(max_blob_bytes=4096, norm_cap_micro=10**9, tolerance_centinats=2, held_out_min=200),
        release=Release(wait_for=draw(st.integers(1, 256)), patience_ms=0, timeout_ms=100),
        members=seats,
        faults=draw(st.integers(0, voters - 1)),
        epoch=draw(st.integers(0, 1 << 40)),
    )


@settings(max_examples=40, deadline=None)
@given(any_charter())
def test_a_charter_survives_its_bytes(charter: Charter) -> None:
    assert parse(charter.to_json()) == charter
    data = encode(charter.to_json(), max_bytes=1 << 20)
    assert parse(decode(data, max_bytes=1 << 20)).digest == charter.digest == digest(data)


@settings(max_examples=40, deadline=None)
@given(any_charter())
def test_two_quorums_share_more_voters_than_may_be_hostile(charter: Charter) -> None:
    voters = len(charter.voters)
    assert 2 * charter.quorum - voters > charter.faults
    assert charter.quorum <= voters


# -- the digest ------------------------------------------------------------------------------------------------------
CHANGES: list[tuple[str, object]] = [
    ("name", "other"), ("nonce", "0" * 64), ("base.name", "other"), ("base.digest", "0" * 64), ("adapter.rank", 3),
    ("adapter.alpha", 3), ("adapter.targets", ["v_proj"]), ("adapter.seed", "0" * 64), ("adapter.coordinates", 65),
    ("update.density_ppm", 1), ("update.value_bits", 4), ("update.block", 32), ("recipe", "member-mean/1"),
    ("gate.max_blob_bytes", 5000), ("gate.norm_cap_micro", 1), ("gate.tolerance_centinats", 3),
    ("gate.held_out_min", 1), ("release.wait_for", 1), ("release.patience_ms", 1), ("release.timeout_ms", 101),
    ("members.0.name", "other"), ("members.0.role", "endorser"), ("members.0.weight", 2), ("faults", 1), ("epoch", 1),
    ("members.0.organisation", "other"), ("members.0.was", [[IDS[0], 3, "rotation"]]), ("witness.cosignatures", 1),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), CHANGES)
def test_the_collective_id_changes_with_any_field(path: str, value: object) -> None:
    changed = parse(with_(path, value))
    assert collective_id(changed) != collective_id(CHARTER)
    same_epoch = not path.startswith(("base", "adapter", "epoch"))
    assert (changed.epoch_id == CHARTER.epoch_id) is same_epoch


def test_every_field_is_tried() -> None:
    paths = {path.split(".")[0] for path, _ in CHANGES}
    assert paths == set(WHOLE) - {"v"}
    for part in PARTS:
        assert {p.split(".")[1] for p, _ in CHANGES if p.startswith(part + ".")} == set(WHOLE[part])


# -- amendments ------------------------------------------------------------------------------------------------------
def test_a_seat_is_added_changed_and_taken() -> None:
    added = amended(CHARTER, {"op": "add", "member": SEAT})
    assert added.member(str(SEAT["id"])) == Member(id=member_id(key("dan")), name="dan", role="contributor", weight=1)
    assert [m.id for m in added.members] == sorted(m.id for m in added.members)
    changed = amended(added, {"op": "role", "member": {**SEAT, "role": "auditor", "weight": 5}})
    seat = changed.member(str(SEAT["id"]))
    assert (seat.role, seat.weight) == ("auditor", 5) if seat else False
    assert [m.name for m in changed.voters] == [m.name for m in CHARTER.voters]
    assert amended(changed, {"op": "remove", "id": SEAT["id"]}) == CHARTER


def test_default_faults_follow_the_number_of_voters_and_chosen_ones_do_not() -> None:
    now = charter_of(["m0", "m1", "m2"])
    chosen = charter_of(["m0", "m1", "m2"], faults=1)
    assert chosen.faults != charters.default_faults(3)
    for count in range(4, 11):
        seat = {"id": member_id(key(f"m{count}")), "name": f"m{count}", "role": "endorser", "weight": 1}
        now, chosen = (amended(c, {"op": "add", "member": seat}) for c in (now, chosen))
        assert now.faults == (count - 1) // 3
        assert chosen.faults == (1 if count < 7 else chosen.faults)
    assert now.quorum == 7


@pytest.mark.parametrize(("field", "value"), [("recipe", "sqrt-mean/1"), ("name", "other"), ("faults", 1)])
def test_a_rule_is_set_within_the_epoch(field: str, value: object) -> None:
    after = amended(CHARTER, {"op": "set", "field": field, "value": value})
    assert after.to_json() == with_(field, value)
    assert after.epoch_id == CHARTER.epoch_id


@pytest.mark.parametrize("field", ["base", "adapter"])
def test_another_base_or_adapter_starts_the_next_epoch(field: str) -> None:
    value = {**WHOLE[field], **({"digest": "0" * 64} if field == "base" else {"seed": "0" * 64})}
    after = amended(CHARTER, {"op": "set", "field": field, "value": value})
    assert after.epoch == CHARTER.epoch + 1
    assert after.epoch_id != CHARTER.epoch_id
    back = amended(after, {"op": "set", "field": field, "value": WHOLE[field]})
    assert back.epoch == 2
    assert back.epoch_id not in {CHARTER.epoch_id, after.epoch_id}, "an epoch never returns"


@pytest.mark.parametrize(
    "change",
    [
        {}, {"op": "rename"}, {"op": ["add"]}, {"op": None}, {"op": "add"}, {"op": "add", "member": WHOLE["members"][0]},
        {"op": "add", "member": SEAT, "why": "x"}, {"op": "add", "member": {**SEAT, "role": "owner"}},
        {"op": "role", "member": SEAT}, {"op": "remove", "id": SEAT["id"]}, {"op": "remove", "id": "x"},
        {"op": "remove"}, {"op": "set", "field": "nonce", "value": "0" * 64}, {"op": "set", "field": "members", "value": []},
        {"op": "set", "field": "epoch", "value": 9}, {"op": "set", "field": "v", "value": 1},
        {"op": "set", "field": [], "value": 1}, {"op": "set", "field": {"a": 1}, "value": 1},
        {"op": "set", "field": "recipe"}, {"op": "set", "field": "faults", "value": 9},
        {"op": "set", "field": "gate", "value": {}}, {"op": "set", "field": "recipe", "value": ""},
    ],
)  # fmt: skip
def test_a_change_that_is_unknown_or_leads_nowhere_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        amended(CHARTER, change)


def test_the_last_voter_cannot_be_removed() -> None:
    alone = charter_of(["ada", "bob"], bob="auditor")
    with pytest.raises(BadCharter):
        amended(alone, {"op": "remove", "id": alone.voters[0].id})


def test_names_are_found_by_id() -> None:
    seat = CHARTER.members[0]
    assert CHARTER.name_of(seat.id) == seat.name
    assert CHARTER.name_of("ab" * 32) == "abababababab"
    assert replace(CHARTER, members=()).member(seat.id) is None


# -- relays ------------------------------------------------------------------------------------------------------------
RELAYS = tuple(
    f"/ip4/192.0.2.{n}/tcp/4242/p2p/{peer_id(bytes(SigningKey(bytes([n]) * 32).verify_key))}" for n in range(1, 10)
)


def test_a_charter_without_relays_has_the_bytes_that_it_had_before_there_were_any() -> None:
    assert "relays" not in WHOLE
    assert replace(CHARTER, relays=()).digest == CHARTER.digest == digest(encode(WHOLE))


def test_relays_are_named_and_taken_back_by_amendment_and_start_no_epoch() -> None:
    named = amended(CHARTER, {"op": "set", "field": "relays", "value": list(RELAYS[:2])})
    assert named.relays == RELAYS[:2]
    assert parse(decode(encode(named.to_json()))) == named
    assert named.digest != CHARTER.digest
    assert named.epoch_id == CHARTER.epoch_id
    assert amended(named, {"op": "set", "field": "relays", "value": []}) == CHARTER


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        None,
        "x",
        [RELAYS[0], RELAYS[0].replace("4242", "4243")],
        list(RELAYS),
        [RELAYS[0].partition("/p2p/")[0]],
        [RELAYS[0].replace("4242", "0")],
        [RELAYS[0] + "/p2p-circuit" + "/p2p/" + RELAYS[1].rpartition("/")[2]],
        [RELAYS[0].replace("192.0.2.1", "192.0.2.256")],
        [7],
    ],
    ids=str,
)
def test_what_is_no_list_of_relays_is_refused(wrong: object) -> None:
    with pytest.raises(Refused):
        parse({**WHOLE, "relays": wrong})
