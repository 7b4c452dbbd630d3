"""Verifier keys and signed notes of other programs: the published ones are read, and no mangled one is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import keys, notes
from protocol.errors import BadKey, BadSignature, Malformed, Refused, TooLarge
from protocol.notes import VerifierKey

KEY = keys.SigningKey(b"\x01" * 32)
MINE = VerifierKey(name="example.com/log", kind=notes.ED25519, public=bytes(KEY.verify_key))


def signed(text: str, key: VerifierKey = MINE) -> bytes:
    mark = notes.to_base64(key.id + KEY.sign(text.encode()).signature)
    return f"{text}\n\u2014 {key.name} {mark}\n".encode()


@pytest.fixture
def published(shared: Path) -> dict:
    return json.loads((shared / "golang-mod" / "note_tlog_vectors.json").read_text("utf-8"))


def test_published_notes_verify_under_their_keys_and_no_other(published: dict) -> None:
    for number, case in enumerate(published["notes"]):
        for text in case["vkeys"]:
            key = notes.read_key(text)
            assert str(key) == text
            assert notes.read(case["note"].encode(), key) == case["note"].rpartition("\n\n")[0] + "\n"
            other = published["notes"][1 - number]["note"].encode()
            with pytest.raises(BadSignature):
                notes.read(other, key)
            for place in range(0, len(case["note"].encode()), 3):
                changed = bytearray(case["note"].encode())
                changed[place] ^= 1
                with pytest.raises(Refused):
                    notes.read(bytes(changed), key)


def test_published_bad_keys_and_every_mangling_of_a_good_one_are_refused(published: dict) -> None:
    """The loop of the Go tests: every proper substring, every byte one higher."""
    for text in published["bad_vkeys"]:
        with pytest.raises(Malformed):
            notes.read_key(text)
    good = published["notes"][0]["vkeys"][0]
    manglings = {good[a:b] for a in range(len(good) + 1) for b in range(a + 1, len(good) + 1)} - {good}
    manglings |= {good[:n] + chr(ord(good[n]) + 1) + good[n + 1 :] for n in range(len(good))}
    manglings |= {good + "\n", " " + good, good.upper(), good.replace("+", " + "), good + "="}
    for text in manglings:
        with pytest.raises((Malformed, BadKey)):
            notes.read_key(text)
    assert len(manglings) > 2_000


def test_the_published_signing_key_makes_the_published_note(published: dict) -> None:
    _, _, name, _, key = published["test_skey"].split("+", 4)
    raw = notes.from_base64(key, 33, "key")
    signer = keys.SigningKey(raw[1:])
    case = published["notes"][0]
    text = case["note"].rpartition("\n\n")[0] + "\n"
    known = VerifierKey(name=name, kind=raw[0], public=bytes(signer.verify_key))
    assert str(known) == case["vkeys"][0]
    mark = notes.to_base64(known.id + signer.sign(text.encode()).signature)
    assert f"{text}\n\u2014 {name} {mark}\n" == case["note"]


@given(
    st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="+"), min_size=1, max_size=40
    )
)
def test_a_key_comes_back_from_its_text(name: str) -> None:
    key = VerifierKey(name=name, kind=notes.COSIGNATURE, public=bytes(KEY.verify_key))
    if not any(c.isspace() for c in name):
        assert notes.read_key(str(key)) == key


def test_lines_of_unknown_keys_are_passed_over_and_other_notes_refused() -> None:
    text = "one\n\ntwo\n"
    note = signed(text)
    stranger = "\u2014 example.com/other AAAAAAAA\n".encode()
    assert notes.read(note, MINE) == notes.read(note + stranger, MINE) == text
    for bad in (
        note[:-1], text.encode(), b"", b"\n\n", note.replace(b"\n\n\xe2", b"\n\xe2"), note + b"no line\n", note + b"\xff\n",
        note.replace(b"one", b"on\x01"), note.replace("\u2014 ".encode(), b"- "),
    ):  # fmt: skip
        with pytest.raises(Refused):
            notes.read(bad, MINE)
    with pytest.raises(TooLarge):
        notes.read(bytes(notes.MAX_NOTE + 1), MINE)


def test_a_key_that_is_no_point_is_refused() -> None:
    low = VerifierKey(name="x", kind=notes.ED25519, public=b"\x01" + bytes(31))
    with pytest.raises(BadKey):
        notes.read_key(str(low))
