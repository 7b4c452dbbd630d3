"""Canonical JSON: one value, one byte string."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canon
from protocol.errors import Malformed, NotCanonical, TooLarge

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12).map(
    lambda s: unicodedata.normalize("NFC", s)
)
KEY = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=6)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-canon.MAX_INT, canon.MAX_INT), TEXT)
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEY, v, max_size=4), max_leaves=20)


@settings(max_examples=500, deadline=None)
@given(VALUE)
def test_every_value_of_the_profile_comes_back(value: canon.Json) -> None:
    assert canon.decode(canon.encode(value)) == value


@settings(max_examples=500, deadline=None)
@given(VALUE)
def test_no_other_spelling_of_a_value_is_read(value: canon.Json) -> None:
    for other in (
        json.dumps(value, ensure_ascii=False, sort_keys=True).encode(),
        json.dumps(value, separators=(",", ":"), sort_keys=True).encode(),
        json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(),
        canon.encode(value) + b"\n",
    ):
        if other != canon.encode(value):
            with pytest.raises(Malformed):
                canon.decode(other)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_read_canonically_or_refused(data: bytes) -> None:
    try:
        value = canon.decode(data)
    except Malformed:
        return
    assert canon.encode(value) == data


@settings(max_examples=200, deadline=None)
@given(VALUE, st.integers(0, 255), st.data())
def test_a_changed_byte_is_refused_or_is_another_value(value: canon.Json, byte: int, data: st.DataObject) -> None:
    raw = bytearray(canon.encode(value))
    place = data.draw(st.integers(0, len(raw) - 1))
    if raw[place] == byte:
        return
    raw[place] = byte
    try:
        changed = canon.decode(bytes(raw))
    except Malformed:
        return
    assert canon.encode(changed) == bytes(raw)
    assert canon.encode(changed) != canon.encode(value)


BAD = {
    "duplicate key": b'{"a":1,"a":2}',
    "space": b'{"a": 1}',
    "key order": b'{"b":1,"a":2}',
    "float": b'{"a":1.0}',
    "exponent": b'{"a":1e2}',
    "negative zero": b'{"a":-0}',
    "needless escape": b'{"a":"\\u0041"}',
    "upper-case escape": b'{"a":"\\u001F"}',
    "escaped slash": b'{"a":"\\/"}',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "over 2^53": b'{"a":9007199254740993}',
    "2^53": b'{"a":9007199254740992}',
    "under -2^53": b'{"a":-9007199254740992}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "newline at the end": b'{"a":1}\n',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\x80"}',
    "overlong UTF-8": b'{"a":"\xc1\x81"}',
    "lone surrogate escape": b'{"a":"\\ud800"}',
    "depth bomb": b"[" * 9000 + b"]" * 9000,
    "depth 17": b"[" * 18 + b"]" * 18,
    "not NFC": '{"a":"e\u0301"}'.encode(),
    "key not ASCII": '{"\u00e9":1}'.encode(),
    "key with a zero-width space": '{"a\u200b":1}'.encode(),
    "key with a control character": b'{"\\n":1}',
    "5000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "leading zero": b'{"a":01}',
    "plus sign": b'{"a":+1}',
    "40 KB": b'"' + b"x" * 40000 + b'"',
    "empty": b"",
    "two values": b"1 2",
    "cut short": b'{"a":1',
    "single quotes": b"{'a':1}",
    "raw control character": b'"\x01"',
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_outside_the_profile_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        canon.decode(BAD[name])


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), 2**53, -(2**53), "e\u0301", "\ud800", {"\u00e9": 1}, {1: 2}, {"\n": 1}, b"x", {1}, object()],
)
def test_values_outside_the_profile_are_not_written(value: object) -> None:
    with pytest.raises(Malformed):
        canon.encode([value])  # type: ignore[list-item]


def test_depth_and_size_limits_hold_on_both_sides() -> None:
    deep: canon.Json = 1
    for _ in range(canon.MAX_DEPTH):
        deep = [deep]
    assert canon.decode(canon.encode(deep)) == deep
    with pytest.raises(TooLarge):
        canon.encode([deep])
    with pytest.raises(TooLarge):
        canon.encode("x" * canon.MAX_BYTES)
    assert canon.decode(canon.encode("x" * (canon.MAX_BYTES - 2))) == "x" * (canon.MAX_BYTES - 2)
    assert canon.decode(b'"' + b"x" * 40000 + b'"', max_bytes=50000) == "x" * 40000


def test_a_second_spelling_is_told_apart_from_garbage() -> None:
    with pytest.raises(NotCanonical):
        canon.decode(b'{"a": 1}')
    with pytest.raises(Malformed, match="an object is expected"):
        canon.decode_object(b"[1]")


def test_published_vectors_inside_the_profile_are_met_and_the_others_refused(shared: Path) -> None:
    folder = shared / "jcs-rfc8785" / "testdata"
    outside = {"french", "structures", "unicode", "values", "weird"}  # non-ASCII or control keys, floats, not NFC
    names = {path.stem for path in (folder / "input").glob("*.json")}
    assert names == outside | {"arrays"}
    for name in names:
        value = json.loads((folder / "input" / f"{name}.json").read_text("utf-8"))
        expected = (folder / "output" / f"{name}.json").read_bytes()
        if name in outside:
            with pytest.raises(Malformed):
                canon.encode(value)
            with pytest.raises(Malformed):
                canon.decode(expected)
        else:
            assert canon.encode(value) == expected
            assert canon.decode(expected) == value


def test_published_strings_and_literals_are_spelled_alike(shared: Path) -> None:
    folder = shared / "jcs-rfc8785" / "testdata"
    value = json.loads((folder / "input" / "values.json").read_text("utf-8"))
    expected = (folder / "output" / "values.json").read_bytes()
    del value["numbers"]
    spelled = canon.encode(value)[1:-1].split(b',"string"')
    assert spelled[0] in expected
    assert b'"string"' + spelled[1] in expected
