"""The contribution blob: a complete card and an update, signed by the member it names."""

import dataclasses
import functools
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import canon, contribution, keys, sparse
from protocol.card import MAX_LIBRARIES, Card
from protocol.errors import BadSignature, FishernetError, Malformed, Refused, TooLarge
from protocol.ids import digest

KEY = keys.SigningKey(bytes(range(32)))
OTHER = keys.SigningKey(bytes(32))
LIMIT = 1 << 20


def card(**changes):
    values = {
        "collective": digest(b"collective"),
        "member": keys.member_id(KEY),
        "epoch": digest(b"epoch"),
        "base": digest(b"base"),
        "number": 1,
        "view": digest(b"view"),
        "train_root": digest(b"train"),
        "held_out_root": digest(b"held out"),
        "train_rows": 900,
        "steps": 10,
        "tokens": 2560,
        "epsilon_micro": None,
        "selection": "fisher-r2",
        "density_ppm": 200_000,
        "value_bits": 8,
        "coordinates": 1000,
        "sent": 200,
        "norm_micro": 1_414_213,
        "loss_before": 423,
        "loss_after": 378,
        "libraries": {"torch": "2.13.0", "fishernet": "0.1.0"},
    }
    return Card(**(values | changes))


@functools.cache
def update(sent=200):
    return sparse.encode(
        coordinates=1000,
        indices=np.arange(sent, dtype=np.uint32),
        values=np.linspace(0.1, 0.2, sent, dtype=np.float32),
        bits=8,
        block=256,
    )


def signed(text, body, key=KEY):
    """A blob of any bytes at all under a good signature."""
    head = struct.pack("<4sBII", b"FNCB", 1, len(text), len(body)) + text + body
    return head + keys.sign(key, "contribution", hashlib.sha256(head).digest())


def test_a_contribution_round_trips_and_is_named_by_its_bytes():
    blob = contribution.pack(card(), update(), KEY)
    got = contribution.unpack(blob, max_bytes=LIMIT)
    assert got.card == card()
    assert got.update == update()
    assert got.digest == hashlib.sha256(blob).hexdigest()


def test_the_same_contribution_has_the_same_bytes():
    assert contribution.pack(card(), update(), KEY) == contribution.pack(card(), update(), KEY)


def test_nobody_signs_for_another_member():
    with pytest.raises(BadSignature):
        contribution.pack(card(), update(), OTHER)
    with pytest.raises(BadSignature):
        contribution.unpack(signed(canon.encode(card().to_json()), update(), OTHER), max_bytes=LIMIT)


def test_a_signature_of_another_kind_is_not_one_of_a_contribution():
    head = signed(canon.encode(card().to_json()), update())[:-64]
    blob = head + keys.sign(KEY, "entry", hashlib.sha256(head).digest())
    with pytest.raises(BadSignature):
        contribution.unpack(blob, max_bytes=LIMIT)


@given(at=st.integers(0, 5000), flip=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_is_refused(at, flip):
    blob = bytearray(contribution.pack(card(), update(), KEY))
    blob[at % len(blob)] ^= flip
    with pytest.raises(Refused):
        contribution.unpack(bytes(blob), max_bytes=LIMIT)


@given(cut=st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_any_cut_off_blob_is_refused(cut):
    blob = contribution.pack(card(), update(), KEY)
    with pytest.raises(Malformed):
        contribution.unpack(blob[: cut % len(blob)], max_bytes=LIMIT)


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_garbage_is_refused(data):
    for blob in (data, b"FNCB\x01" + data):
        with pytest.raises(Malformed):
            contribution.unpack(blob, max_bytes=LIMIT)


def test_trailing_bytes_are_refused():
    with pytest.raises(Malformed):
        contribution.unpack(contribution.pack(card(), update(), KEY) + b"\0", max_bytes=LIMIT)


def test_a_blob_over_the_limit_is_refused_before_it_is_read():
    blob = contribution.pack(card(), update(), KEY)
    with pytest.raises(TooLarge):
        contribution.unpack(blob, max_bytes=len(blob) - 1)


def test_a_huge_card_is_refused():
    with pytest.raises(TooLarge):
        contribution.unpack(signed(b" " * 10_000, b""), max_bytes=LIMIT)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Card)] + ["v"])
def test_a_card_without_a_field_is_refused(name):
    value = card().to_json()
    del value[name]
    with pytest.raises(Malformed):
        contribution.unpack(signed(canon.encode(value), update()), max_bytes=LIMIT)


def test_a_card_with_an_unknown_field_is_refused():
    with pytest.raises(Malformed):
        Card.parse(card().to_json() | {"extra": 1})


@pytest.mark.parametrize("value", [None, [], "card", 1, {}])
def test_what_is_no_card_is_refused(value):
    with pytest.raises(Malformed):
        Card.parse(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("v", True),
        ("collective", "00"),
        ("member", "A" * 64),
        ("epoch", None),
        ("number", 0),
        ("number", True),
        ("train_rows", 0),
        ("steps", 0),
        ("tokens", "10"),
        ("epsilon_micro", -1),
        ("epsilon_micro", "none"),
        ("selection", "best"),
        ("selection", ["fisher-r2"]),
        ("density_ppm", 0),
        ("density_ppm", 1_000_001),
        ("value_bits", 5),
        ("value_bits", 16),
        ("coordinates", 0),
        ("coordinates", 2**28 + 1),
        ("sent", 1001),
        ("norm_micro", -1),
        ("loss_before", -1),
        ("loss_after", 1_000_001),
        ("libraries", []),
        ("libraries", {"torch": 2}),
        ("libraries", {"a name": "1"}),
        ("libraries", {"torch": "x" * 65}),
        ("libraries", {f"l{i}": "1" for i in range(MAX_LIBRARIES + 1)}),
    ],
)
def test_a_field_out_of_range_is_refused(name, value):
    with pytest.raises(Malformed, match="couldn't read "):
        Card.parse(card().to_json() | {name: value})


def test_a_spent_epsilon_stands_on_the_card():
    assert Card.parse(card(epsilon_micro=8_000_000).to_json()).epsilon_micro == 8_000_000


def test_a_card_is_not_read_from_a_second_spelling():
    text = canon.encode(card().to_json()).replace(b'"v":1', b'"v": 1')
    with pytest.raises(FishernetError) as caught:
        contribution.unpack(signed(text, update()), max_bytes=LIMIT)
    assert caught.value.code == "not-canonical"
