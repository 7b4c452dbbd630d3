"""The quick ways say yes only where the careful ones do: lines, runs of lines, canonical bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger import entry, runs
from ledger.entry import Body, Seen
from ledger.runs import RawLine
from protocol import canon, keys
from protocol.errors import FishernetError, Refused
from protocol.ids import ZERO, CollectiveId, Digest, MemberId

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId("cc" * 32)
NAMES = sorted(MemberId(f"{n:02x}" * 32) for n in range(1, 9))


def honest(count: int, *, start_ts: int = 0) -> list[RawLine]:
    rows: list[RawLine] = []
    prev = ZERO
    for n in range(count):
        seen = [Seen(member=name, seq=n * 7, leaf=Digest("ab" * 32)) for name in NAMES[: n % 5]]
        made = entry.make(
            KEY, collective=COLLECTIVE, seq=n, prev=prev, ts=start_ts + n, type="test.event", seen=seen, body={"n": n},
            salt=bytes(16),
        )  # fmt: skip
        prev = made.entry.leaf
        rows.append((n, made.entry.line, bytes.fromhex(prev)))
    return rows


ROWS = honest(12)


@pytest.mark.parametrize("start", range(12))
def test_an_honest_run_passes_from_any_place(start: int) -> None:
    prev = ZERO if start == 0 else Digest(ROWS[start - 1][2].hex())
    assert runs.follow(COLLECTIVE, MEMBER, start, prev, ROWS[start:]) == [row[2] for row in ROWS[start:]]
    for wrong in (start + 1, start - 1):
        assert runs.follow(COLLECTIVE, MEMBER, wrong, prev, ROWS[start:]) is None
    assert runs.follow(COLLECTIVE, MEMBER, start, Digest("ab" * 32), ROWS[start:]) is None
    assert runs.follow(CollectiveId("dd" * 32), MEMBER, start, prev, ROWS[start:]) is None
    assert runs.follow(COLLECTIVE, NAMES[0], start, prev, ROWS[start:]) is None


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 11), st.integers(0, 5_000), st.integers(0, 255), st.booleans())
def test_a_run_with_a_changed_byte_passes_only_if_each_line_still_reads_as_its_entry(
    which: int, place: int, byte: int, fix_chain: bool
) -> None:
    rows = list(ROWS)
    seq, line, leaf = rows[which]
    at = place % len(line)
    changed = line[:at] + bytes([byte]) + line[at + 1 :]
    rows[which] = (seq, changed, entry.leaf_hash(changed) if fix_chain else leaf)
    found = runs.follow(COLLECTIVE, MEMBER, 0, ZERO, rows[: which + 1])
    if found is None:
        return
    assert found == [entry.leaf_hash(row[1]) for row in rows[: which + 1]] == [row[2] for row in rows[: which + 1]]
    header = entry.parse_stored(changed).header
    assert (header.collective, header.member, header.seq) == (COLLECTIVE, MEMBER, which)
    assert header.prev == (ZERO if which == 0 else rows[which - 1][2].hex())


@pytest.mark.parametrize("junk", [b"x", b"\n", b'","seen":[],"seq":4', b'{"e":'])
def test_a_run_with_bytes_too_many_anywhere_in_a_line_is_not_passed(junk: bytes) -> None:
    seq, line, _ = ROWS[4]
    for at in range(len(line) + 1):
        changed = line[:at] + junk + line[at:]
        rows = [*ROWS[:4], (seq, changed, entry.leaf_hash(changed))]
        if runs.follow(COLLECTIVE, MEMBER, 0, ZERO, rows) is not None:
            entry.parse_stored(changed)  # a longer name of the type, perhaps


def careful(line: bytes) -> object:
    try:
        return entry._read_json(line)
    except FishernetError as e:
        return type(e)


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(ROWS), st.integers(0, 5_000), st.binary(min_size=1, max_size=3), st.integers(0, 3))
def test_a_plain_line_reads_as_the_json_reader_reads_it(row: RawLine, place: int, data: bytes, drop: int) -> None:
    line = row[1]
    at = place % len(line)
    changed = line[:at] + data + line[at + drop :]
    quick = entry._plain(changed)
    if quick is not None:
        assert quick == careful(changed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":4', b'"seq":04'),
        (b'"seq":4', b'"seq":-4'),
        (b'"ts":4', b'"ts":9007199254740992'),
        (b'"type":"test.event"', b'"type":"Test.event"'),
        (b'"v":1', b'"v":2'),
        (b'"v":1', b'"v":1,"w":1'),
        (b"cc", b"CC"),
    ],
)
def test_what_the_json_reader_refuses_is_not_plain(old: bytes, new: bytes) -> None:
    line = ROWS[4][1].replace(old, new, 1)
    assert line != ROWS[4][1]
    assert entry._plain(line) is None
    with pytest.raises(Refused):
        entry.parse_stored(line)


def test_a_number_that_is_too_long_to_be_plain_is_still_an_entry() -> None:
    rows = honest(3, start_ts=canon.MAX_INT - 3)
    assert entry._plain(rows[0][1]) is None
    assert runs.follow(COLLECTIVE, MEMBER, 0, ZERO, rows) is None
    assert entry.parse(rows[0][1]).header.ts == canon.MAX_INT - 3


def test_seen_heads_out_of_order_or_of_the_author_are_not_passed() -> None:
    seen = [Seen(member=name, seq=1, leaf=Digest("ab" * 32)) for name in NAMES[:2]]
    made = entry.make(
        KEY, collective=COLLECTIVE, seq=0, prev=ZERO, ts=0, type="t", seen=seen, body={}, salt=bytes(16)
    ).entry.line
    first, second = (f'["{name}",1,"{"ab" * 32}"]'.encode() for name in NAMES[:2])
    own = f'["{MEMBER}",1,"{"ab" * 32}"]'.encode()
    for spoilt in (second + b"," + first, first + b"," + first, first + b"," + own):
        line = made.replace(first + b"," + second, spoilt)
        assert runs.follow(COLLECTIVE, MEMBER, 0, ZERO, [(0, line, entry.leaf_hash(line))]) is None
        with pytest.raises(Refused):
            entry.parse_stored(line)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 9))
def test_a_commitment_is_checked_with_the_body_s_own_form(salt: bytes, number: int) -> None:
    made = entry.make(
        KEY, collective=COLLECTIVE, seq=0, prev=ZERO, ts=0, type="t", seen=(), body={"n": number}, salt=salt
    )
    assert made.body is not None
    line = made.entry.line
    data = made.body.data
    assert runs.commits(line, salt, data)
    for other in ((salt, data + b" "), (salt + b"x", data), (bytes(15), data)):
        assert not runs.commits(line, *other)
    shifted = Body(salt=salt + made.body.data[:1], data=made.body.data[1:])
    assert entry.body_hash(shifted) == entry.body_hash(made.body)
    assert not runs.commits(line, shifted.salt, shifted.data)


# Canonical bytes

TEXTS = st.text(alphabet='ab"\\\u007f\u00e9e\u0301{}[],:0123456789-.eE ntu\ud800', max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXTS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def outcome(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except FishernetError as e:
        return type(e), str(e)


@settings(max_examples=800, deadline=None)
@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]":,0123456789-.eEatrufls\n ', max_size=40).map(str.encode)
    | VALUES.map(lambda value: canon._ENCODER.encode(value).encode("utf-8", "surrogatepass"))
)
@example(b'{"a":1,"a":2}')
@example(b'{"a":1,"a":1}')
@example(b'{"b":1,"a":2}')
@example(b"-0")
@example(b"1.0")
@example(b"1e2")
@example(b"NaN")
@example(b'{"a": 1}')
@example(b'"\x7f"')
@example(b'{"\x7f":1}')
@example(b'"\\u0041"')
@example(b"[" * 17 + b"]" * 17)
@example(b"9" * 5000)
@example(b"9007199254740992")
def test_the_quick_reader_of_canonical_bytes_agrees_with_the_careful_one(data: bytes) -> None:
    assert outcome(canon.decode, data) == outcome(canon._careful, data)
