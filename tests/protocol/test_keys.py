"""Signatures: one strict verifier, domains apart, and no key that could sign for everybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from protocol import keys
from protocol.errors import BadKey, BadSignature, Malformed

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
P = 2**255 - 19
LOW_ORDER = {
    "identity": "01" + "00" * 31,
    "order 2": (P - 1).to_bytes(32, "little").hex(),
    "order 4": "00" * 32,
    "order 4, sign bit": "00" * 31 + "80",
    "order 8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "order 8, sign bit": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "order 8, other": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "order 8, other, sign bit": "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "identity, not canonical": (P + 1).to_bytes(32, "little").hex(),
    "identity, sign bit": "01" + "00" * 30 + "80",
    "zero, not canonical": P.to_bytes(32, "little").hex(),
    "all ones": "ff" * 32,
    "off the curve": "02" + "00" * 31,
}


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.sampled_from(["entry", "peer-binding"]))
def test_what_is_signed_verifies(seed: bytes, message: bytes, domain: str) -> None:
    key = keys.SigningKey(seed)
    keys.verify(keys.member_id(key), domain, message, keys.sign(key, domain, message))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 511))
def test_a_signature_with_a_flipped_bit_is_refused(bit: int) -> None:
    signature = bytearray(keys.sign(KEY, "entry", b"message"))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature):
        keys.verify(MEMBER, "entry", b"message", bytes(signature))


def test_a_signature_of_one_domain_is_worth_nothing_in_another() -> None:
    signature = keys.sign(KEY, "entry", b"message")
    with pytest.raises(BadSignature):
        keys.verify(MEMBER, "contribution", b"message", signature)
    with pytest.raises(BadSignature):
        keys.verify(MEMBER, "entry", b"another message", signature)
    with pytest.raises(BadSignature):
        keys.verify(MEMBER, "entry", b"message", signature[:-1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 6)), max_size=8), st.sampled_from(["entry", None]))
def test_many_signatures_at_once_are_judged_as_one_by_one(cases: list[tuple[bytes, int]], domain: str | None) -> None:
    messages, signatures, wrong = [], [], []
    for place, (said, kind) in enumerate(cases):
        signature = KEY.sign(said).signature if domain is None else keys.sign(KEY, domain, said)
        message = said + b"x" if kind == 0 else said
        if kind == 1:
            signature = bytes([signature[0] ^ 1]) + signature[1:]
        if kind == 2:
            signature = keys.sign(KEY, "peer-binding", said)
        messages.append(message)
        signatures.append(signature)
        if kind < 3:
            wrong.append(place)
        if domain is not None:
            try:
                keys.verify(MEMBER, domain, message, signature)
            except BadSignature:
                assert kind < 3
            else:
                assert kind >= 3
    assert keys.wrong_signatures(MEMBER, keys.signed_messages(domain, messages, signatures)) == wrong


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_among_many_a_signature_of_another_length_is_refused_as_it_could_be_read_in_two_ways(length: int) -> None:
    whole = keys.sign(KEY, "entry", b"b" * 64) + b"b" * 64
    signed = [keys.sign(KEY, "entry", b"a"), whole[:length]]
    with pytest.raises(BadSignature):
        keys.signed_messages("entry", [b"a", whole[length:]], signed)


def test_many_signatures_under_a_key_that_is_no_point_are_refused() -> None:
    with pytest.raises(BadKey):
        keys.wrong_signatures(LOW_ORDER["order 8"], keys.signed_messages("entry", [b"a"], [bytes(64)]))


def test_a_second_spelling_of_a_signature_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = keys.sign(KEY, "entry", b"message")
    shifted = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(BadSignature):
        keys.verify(MEMBER, "entry", b"message", signature[:32] + shifted.to_bytes(32, "little"))


@pytest.mark.parametrize("name", LOW_ORDER)
def test_a_key_that_is_no_point_of_the_prime_order_group_is_refused(name: str) -> None:
    with pytest.raises(BadKey):
        keys.admit(LOW_ORDER[name])
    with pytest.raises(BadKey):
        keys.verify(LOW_ORDER[name], "entry", b"anything", bytes.fromhex("01" + "00" * 63))


@pytest.mark.parametrize("text", ["", "00", MEMBER.upper(), MEMBER + "\n", MEMBER[:-1], "g" * 64, " " + MEMBER[1:]])
def test_a_key_in_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        keys.admit(text)


def test_published_vectors_of_wycheproof_verify_as_they_say(shared: Path) -> None:
    suite = json.loads((shared / "wycheproof" / "ed25519_test.json").read_text("utf-8"))
    seen = 0
    for group in suite["testGroups"]:
        public = group["publicKey"]["pk"]
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            try:
                VerifyKey(bytes.fromhex(public)).verify(message, signature)
                verdict = "valid"
            except (CryptoError, ValueError):
                verdict = "invalid"
            assert verdict == case["result"], case
            if verdict == "valid":
                keys.admit(public)
            seen += 1
    assert seen == suite["numberOfTests"] == 151
