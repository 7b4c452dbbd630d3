"""Signed heads: C2SP notes that foreign tools verify, in one spelling."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from ledger import checkpoint
from protocol import canon, keys
from protocol.errors import BadKey, BadSignature, Malformed, Refused, TooLarge
from protocol.ids import CollectiveId, Digest, MemberId, digest

KEY = keys.SigningKey(b"\x01" * 32)
MEMBER = keys.member_id(KEY)
COLLECTIVE = CollectiveId(digest(b"collective"))
ROOT = digest(b"root")
HEAD = checkpoint.make(KEY, COLLECTIVE, MEMBER, 7, ROOT)
GOLDEN = Path(__file__).parents[1] / "vectors" / "checkpoint.json"


def open_note(note: str, verifier: str) -> str:
    """The text of a signed note, by c2sp.org/signed-note and nothing of ours. Raises when no signature verifies."""
    name, key_id, key = verifier.split("+", 2)
    raw = base64.b64decode(key, validate=True)
    if raw[0] != 1 or len(raw) != 33:
        raise ValueError("not an Ed25519 key")
    if hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4].hex() != key_id:
        raise ValueError("wrong key id")
    text, signatures = note.rsplit("\n\n", 1)
    for line in signatures.splitlines():
        dash, signer, mark = line.split(" ")
        blob = base64.b64decode(mark)
        if dash == "\u2014" and signer == name and blob[:4].hex() == key_id:
            VerifyKey(raw[1:]).verify((text + "\n").encode(), blob[4:])
            return text + "\n"
    raise ValueError("no signature by this key")


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, canon.MAX_INT), st.binary(min_size=32, max_size=32))
def test_a_head_comes_back_from_its_note(seed: bytes, size: int, root: bytes) -> None:
    key = keys.SigningKey(seed)
    head = checkpoint.make(key, COLLECTIVE, keys.member_id(key), size, Digest(root.hex()))
    assert checkpoint.parse(head.note) == head
    assert len(head.note) <= checkpoint.MAX_NOTE


def test_a_foreign_note_reader_verifies_our_note() -> None:
    text = open_note(HEAD.note.decode(), checkpoint.verifier_key(COLLECTIVE, MEMBER))
    name, size, root = text.splitlines()
    assert (name, size) == (f"fishernet/{COLLECTIVE}/{MEMBER}", "7")
    assert base64.b64decode(root).hex() == ROOT


def test_published_notes_have_the_key_ids_we_compute(shared: Path) -> None:
    vectors = json.loads((shared / "golang-mod" / "note_tlog_vectors.json").read_text("utf-8"))
    for case in vectors["notes"]:
        for verifier in case["vkeys"]:
            name, key_id, key = verifier.split("+", 2)
            assert checkpoint.key_id(name, MemberId(base64.b64decode(key)[1:].hex())).hex() == key_id
            assert open_note(case["note"], verifier)
    for verifier in vectors["bad_vkeys"]:
        with pytest.raises(ValueError, match=r"not an Ed25519 key|wrong key id"):
            open_note(vectors["notes"][0]["note"], verifier)


def test_notes_are_the_golden_ones(update_golden: bool) -> None:
    found = {
        "signing_seed": "01" * 32,
        "verifier_key": checkpoint.verifier_key(COLLECTIVE, MEMBER),
        "size": HEAD.size,
        "root": HEAD.root,
        "note": HEAD.note.decode(),
    }
    if update_golden:
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert found == json.loads(GOLDEN.read_text("utf-8"))


def test_a_head_is_put_together_from_its_parts() -> None:
    assert checkpoint.assemble(COLLECTIVE, MEMBER, 7, ROOT, HEAD.signature) == HEAD


def resigned(old: str, new: str) -> bytes:
    text, mark = HEAD.note.decode().split("\n\n")
    text = (text + "\n").replace(old, new)
    name = mark.split(" ")[1]
    blob = checkpoint.key_id(name, MEMBER) + KEY.sign(text.encode()).signature
    return f"{text}\n\u2014 {name} {base64.b64encode(blob).decode()}\n".encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n7\n", "\n07\n"),
        ("\n7\n", "\n0\n"),
        ("\n7\n", "\n-7\n"),
        ("\n7\n", "\n7 \n"),
        ("\n7\n", "\n9007199254740992\n"),
        ("\n7\n", "\n77777777777777777\n"),
        ("=\n", "=\nextension line\n"),
        ("fishernet/", "fishernot/"),
        (COLLECTIVE, COLLECTIVE.upper()),
        (COLLECTIVE, COLLECTIVE[1:]),
    ],
)
def test_a_signed_text_outside_the_format_is_refused(old: str, new: str) -> None:
    assert checkpoint.parse(resigned("\n7\n", "\n8\n")).size == 8
    with pytest.raises(Malformed):
        checkpoint.parse(resigned(old, new))


def test_another_signer_name_key_or_spelling_is_refused() -> None:
    note = HEAD.note.decode()
    text, mark = note.split("\n\n")
    name = mark.split(" ")[1]
    stranger = keys.SigningKey(b"\x02" * 32)
    blob = checkpoint.key_id(name, MEMBER) + stranger.sign((text + "\n").encode()).signature
    with pytest.raises(BadSignature):
        checkpoint.parse(f"{text}\n\n\u2014 {name} {base64.b64encode(blob).decode()}\n".encode())
    for other in (
        note + mark,  # a second signature line: witnesses answer elsewhere
        note.rstrip("\n"),
        note + "\n",
        note.replace("\n", "\r\n"),
        note.replace("\u2014", "-"),
        note.replace(f"\u2014 {name}", f"\u2014 x{name}"),
        note.replace(mark.split(" ")[2][:4], "AAAA"),
        "\ufeff" + note,
        "",
    ):
        with pytest.raises(Malformed):
            checkpoint.parse(other.encode())
    with pytest.raises(Malformed):
        checkpoint.parse(b"\xff" + HEAD.note)
    with pytest.raises(TooLarge):
        checkpoint.parse(HEAD.note + b" " * 1024)


def test_a_note_of_a_low_order_key_is_refused() -> None:
    weak = MemberId("01" + "00" * 31)
    with pytest.raises(BadKey):
        checkpoint.parse(checkpoint.assemble(COLLECTIVE, weak, 7, ROOT, bytes.fromhex("01" + "00" * 63)).note)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    note = bytearray(HEAD.note)
    note[data.draw(st.integers(0, len(note) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Refused):
        checkpoint.parse(bytes(note))


def test_nobody_signs_the_head_of_another_member_or_of_nothing() -> None:
    with pytest.raises(Malformed):
        checkpoint.make(keys.SigningKey(b"\x02" * 32), COLLECTIVE, MEMBER, 7, ROOT)
    with pytest.raises(Malformed):
        checkpoint.make(KEY, COLLECTIVE, MEMBER, 0, ROOT)
