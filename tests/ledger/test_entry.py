"""Entries: one spelling, signed by their member, with a body that can be erased."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import entry
from ledger.entry import Body, Record, Seen
from ledger.errors import BadCommitment
from protocol import canon, keys
from protocol.errors import BadKey, BadSignature, Malformed, NotCanonical, Refused, TooLarge
from protocol.ids import ZERO, CollectiveId, Digest, MemberId, digest
from protocol.merkle import leaf_hash

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
OTHERS = [keys.member_id(keys.SigningKey(bytes([n]) * 32)) for n in range(2, 6)]
COLLECTIVE = CollectiveId(digest(b"collective"))
SALT = bytes(range(16))
GOLDEN = Path(__file__).parents[1] / "vectors" / "entry.json"

HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNT = st.integers(0, canon.MAX_INT)
SEEN = st.lists(
    st.builds(lambda m, n, h: Seen(member=m, seq=n, leaf=Digest(h)), st.sampled_from(OTHERS), COUNT, HEX),
    unique_by=lambda s: s.member,
    max_size=4,
)
TYPE = st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True)


def made(**changes: object) -> Record:
    values: dict[str, object] = {
        "collective": COLLECTIVE,
        "seq": 0,
        "prev": ZERO,
        "ts": 1_795_300_000_123,
        "type": "peer.bound",
        "seen": (),
        "body": {"text": "héllo", "n": 1},
        "salt": SALT,
    }
    return entry.make(KEY, **(values | changes))  # type: ignore[arg-type]


def forged(change: dict[str, canon.Json], key: keys.SigningKey = KEY, **envelope: canon.Json) -> bytes:
    """A correctly signed line whose header was changed before signing."""
    line = canon.decode_object(made(seen=[Seen(member=OTHERS[0], seq=3, leaf=Digest("aa" * 32))]).entry.line)
    event = line["e"]
    assert isinstance(event, dict)
    event = {name: value for name, value in {**event, **change}.items() if value != "absent"}
    signature = base64.b64encode(keys.sign(key, "entry", canon.encode(event))).decode()
    return canon.encode({"e": event, "s": signature, **envelope})


@settings(max_examples=100, deadline=None)
@given(
    HEX,
    st.integers(1, canon.MAX_INT),
    HEX.filter(lambda h: h != ZERO),
    COUNT,
    TYPE,
    SEEN,
    st.dictionaries(TYPE, COUNT, max_size=3),
)
def test_an_entry_comes_back_from_its_line(
    collective: str, seq: int, prev: str, ts: int, kind: str, seen: list[Seen], body: dict[str, int]
) -> None:
    record = made(collective=collective, seq=seq, prev=prev, ts=ts, type=kind, seen=seen, body=body)
    assert entry.parse(record.entry.line) == record.entry == entry.parse_stored(record.entry.line)
    assert record.body is not None
    assert record.body.value() == body
    entry.check_body(record.entry, record.body)


def test_hashes_are_what_the_format_says() -> None:
    record = made()
    assert record.body is not None
    line = json.loads(record.entry.line)
    header = canon.encode(line["e"])
    assert record.entry.event == hashlib.sha256(header).hexdigest()
    assert record.entry.leaf == hashlib.sha256(b"\0" + record.entry.line).hexdigest()
    assert record.entry.header.body_hash == hashlib.sha256(SALT + record.body.data).hexdigest()
    keys.SigningKey(b"\x01" * 32).verify_key.verify(b"fishernet/entry/v1\0" + header, base64.b64decode(line["s"]))


def test_lines_are_the_golden_ones(update_golden: bool) -> None:
    first = made()
    second = made(
        seq=1, prev=first.entry.leaf, ts=0, type="contribution.published", body={},
        seen=[Seen(member=m, seq=n, leaf=Digest(leaf_hash(bytes([n])).hex())) for n, m in enumerate(OTHERS)],
    )  # fmt: skip
    found = {
        "signing_seed": "01" * 32,
        "entries": [
            {
                "line": record.entry.line.decode(),
                "leaf": record.entry.leaf,
                "event": record.entry.event,
                "salt": record.body.salt.hex(),
                "body": record.body.data.decode(),
            }
            for record in (first, second)
            if record.body is not None
        ],
    }
    if update_golden:
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert found == json.loads(GOLDEN.read_text("utf-8"))


def test_seen_heads_are_written_in_order() -> None:
    seen = [Seen(member=m, seq=1, leaf=Digest("cc" * 32)) for m in OTHERS]
    assert made(seen=seen).entry.line == made(seen=reversed(seen)).entry.line


SEEN_OK = [OTHERS[0], 3, "aa" * 32]
BAD_HEADERS: dict[str, dict[str, canon.Json]] = {
    "another version": {"v": 2},
    "version as boolean": {"v": True},
    "a missing field": {"ts": "absent"},
    "an unknown field": {"extra": 1},
    "a short collective id": {"collective": "ab"},
    "upper-case hex": {"prev": "A" * 64},
    "a negative number": {"seq": -1},
    "a number as text": {"ts": "1"},
    "a boolean as number": {"seq": False},
    "a first entry with a previous leaf": {"seq": 0, "prev": "aa" * 32},
    "a later entry without one": {"seq": 1, "prev": ZERO},
    "a type in capitals": {"type": "Peer.Bound"},
    "a type with a newline": {"type": "peer.bound\n"},
    "a type that is too long": {"type": "a" * 65},
    "no type": {"type": ""},
    "seen as object": {"seen": {}},
    "a seen head without leaf": {"seen": [[OTHERS[0], 3]]},
    "a seen head twice": {"seen": [SEEN_OK, SEEN_OK]},
    "its own feed as seen": {"seen": [[MEMBER, 3, "aa" * 32]]},
    "a seen sequence over the limit": {"seen": [[OTHERS[0], -1, "aa" * 32]]},
    "65 seen heads": {"seen": [[digest(bytes([n])), 3, "aa" * 32] for n in range(65)]},
    "a null body commitment": {"body": None},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_signed_header_outside_the_format_is_refused(name: str) -> None:
    entry.parse(forged({}))
    with pytest.raises(Malformed):
        entry.parse(forged(BAD_HEADERS[name]))


def test_seen_heads_out_of_order_are_another_spelling() -> None:
    two: list[canon.Json] = [[member, 3, "aa" * 32] for member in sorted(OTHERS, reverse=True)[:2]]
    with pytest.raises(NotCanonical):
        entry.parse(forged({"seen": two}))
    entry.parse(forged({"seen": two[::-1]}))


def test_the_envelope_has_two_fields_and_one_spelling() -> None:
    good = made().entry.line
    line = json.loads(good)
    for other in (
        b"[]",
        b'{"e":1,"s":""}',
        canon.encode({**line, "x": 1}),
        canon.encode({"e": line["e"]}),
        canon.encode({**line, "s": 1}),
        canon.encode({**line, "s": "****"}),
        canon.encode({**line, "s": line["s"][:-2]}),
        canon.encode({**line, "s": line["s"] + "\n"}),
        canon.encode({**line, "s": base64.b64encode(bytes(63)).decode()}),
        good + b"\n",
        good.replace(b',"s"', b', "s"'),
        b" " + good,
    ):
        with pytest.raises(Malformed):
            entry.parse(other)
    # the last base64 digit before the padding has unused bits: only zeros are the right spelling
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twisted = line["s"][:-3] + digits[digits.index(line["s"][-3]) + 1] + "=="
    with pytest.raises(NotCanonical):
        entry.parse(canon.encode({**line, "s": twisted}))


def test_only_the_named_member_can_sign() -> None:
    with pytest.raises(BadSignature):
        entry.parse(forged({}, keys.SigningKey(b"\x09" * 32)))
    with pytest.raises(BadSignature):
        entry.parse(forged({"member": OTHERS[1]}))
    with pytest.raises(BadKey):
        entry.parse(forged({"member": MemberId("01" + "00" * 31)}))
    note = json.loads(made().entry.line)
    other_domain = keys.sign(KEY, "contribution", canon.encode(note["e"]))
    with pytest.raises(BadSignature):
        entry.parse(canon.encode({**note, "s": base64.b64encode(other_domain).decode()}))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    line = bytearray(made().entry.line)
    line[data.draw(st.integers(0, len(line) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused):
        entry.parse(bytes(line))


def test_bodies_are_bound_by_the_commitment() -> None:
    record = made()
    body = record.body
    assert body is not None
    with pytest.raises(BadCommitment):
        entry.check_body(record.entry, Body(salt=bytes(16), data=body.data))
    with pytest.raises(BadCommitment):
        entry.check_body(record.entry, Body(salt=SALT, data=body.data[:-1] + b" }"))
    with pytest.raises(Malformed):  # salt and data are told apart by the salt's fixed length
        entry.check_body(record.entry, Body(salt=SALT + body.data[:1], data=body.data[1:]))
    with pytest.raises(TooLarge):
        entry.check_body(record.entry, Body(salt=SALT, data=bytes(entry.MAX_BODY + 1)))


def test_a_committed_body_that_is_not_canonical_is_refused() -> None:
    data = b'{"a": 1}'
    parsed = entry.parse(forged({"body": hashlib.sha256(SALT + data).hexdigest()}))
    with pytest.raises(NotCanonical):
        entry.check_body(parsed, Body(salt=SALT, data=data))


@pytest.mark.parametrize(
    "change",
    [
        {"body": [1]},
        {"body": {"a": 1.5}},
        {"salt": b"short"},
        {"seq": 1},
        {"prev": Digest("aa" * 32)},
        {"type": "No Type"},
        {"ts": -1},
        {"collective": "x"},
        {"seen": [Seen(member=MEMBER, seq=1, leaf=ZERO)]},
    ],
)
def test_what_nobody_could_read_is_not_signed(change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        made(**change)


def test_a_line_is_small_and_a_body_may_be_larger() -> None:
    assert made(body={"x": "y" * 200_000}).body is not None
    with pytest.raises(TooLarge):
        made(body={"x": "y" * entry.MAX_BODY})
    seen = [Seen(member=MemberId(digest(bytes([n]))), seq=canon.MAX_INT, leaf=Digest("aa" * 32)) for n in range(64)]
    assert len(made(seen=seen).entry.line) < entry.MAX_LINE
    with pytest.raises(TooLarge):
        entry.parse(b'{"e":' + b" " * entry.MAX_LINE)
