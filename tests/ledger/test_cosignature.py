"""Cosignatures: one spelling, the right key, the right head; a note that signed-note tools take."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from nacl.signing import VerifyKey
from paper import key, witness_key

from ledger import checkpoint, cosignature, keyring
from ledger.cosignature import ED25519, ML_DSA_44, Cosignature, WitnessKeys
from ledger.errors import BadEvent
from ledger.events.keys import KeysBound
from protocol.errors import BadKey, BadSignature, Malformed, Refused, TooLarge
from protocol.ids import CollectiveId, Digest, digest
from protocol.keys import member_id, sign

COLLECTIVE = CollectiveId(digest(b"collective"))
ADA, BOB = member_id(key("ada")), member_id(key("bob"))
HEAD = checkpoint.make(key("ada"), COLLECTIVE, ADA, 7, digest(b"root"))
SECOND = MLDSA44PrivateKey.from_seed_bytes(bytes(32))
BOUND = keyring.make(
    witness_key("bob"),
    collective=COLLECTIVE,
    member=BOB,
    post_quantum=SECOND.public_key().public_bytes_raw(),
    recovery=digest(b"recovery"),
)
KEYS = keyring.read(BOUND, COLLECTIVE, BOB).witness
PLAIN = cosignature.make(witness_key("bob"), None, witness=BOB, head=HEAD, time=1_700_000_000)
HYBRID = cosignature.make(witness_key("bob"), SECOND, witness=BOB, head=HEAD, time=1_700_000_000)


# -- the bytes -------------------------------------------------------------------------------------------------------
def test_the_ed25519_message_is_that_of_the_specification() -> None:
    body = HEAD.note.split(b"\n\n")[0] + b"\n"
    message = b"cosignature/v1\ntime 1700000000\n" + body
    VerifyKey(bytes(witness_key("bob").verify_key)).verify(message, PLAIN.signature)


def test_the_ml_dsa_message_is_that_of_the_specification() -> None:
    name, origin = f"fishernet/{COLLECTIVE}/{BOB}/witness".encode(), f"fishernet/{COLLECTIVE}/{ADA}".encode()
    message = b"subtree/v1\n\0" + bytes([len(name)]) + name + (1_700_000_000).to_bytes(8, "big")
    message += bytes([len(origin)]) + origin + bytes(8) + (7).to_bytes(8, "big") + bytes.fromhex(HEAD.root)
    assert HYBRID.post_quantum is not None
    SECOND.public_key().verify(HYBRID.post_quantum, message)


def test_a_signature_line_names_its_key_as_the_specification_says() -> None:
    first, second = cosignature.lines(HYBRID, KEYS).splitlines()
    for line, type_, public, size in (
        (first, b"\x04", bytes(witness_key("bob").verify_key), 64),
        (second, b"\x06", SECOND.public_key().public_bytes_raw(), 2420),
    ):
        dash, name, mark = line.split(" ")
        raw = base64.b64decode(mark)
        assert (dash, name) == ("\u2014", f"fishernet/{COLLECTIVE}/{BOB}/witness")
        assert raw[:4] == hashlib.sha256(name.encode() + b"\n" + type_ + public).digest()[:4]
        assert int.from_bytes(raw[4:12], "big") == 1_700_000_000
        assert len(raw) == 12 + size


def test_a_cosigned_note_is_read_back() -> None:
    note = cosignature.cosigned_note(HEAD, [(HYBRID, KEYS)])
    assert note.startswith(HEAD.note)
    assert cosignature.read_note(note, [KEYS]) == (HEAD, [HYBRID])
    assert cosignature.read_note(note, []) == (HEAD, []), "lines of unknown keys are passed over"
    plain = cosignature.cosigned_note(HEAD, [(PLAIN, KEYS)])
    assert cosignature.read_note(plain, [replace(KEYS, post_quantum=None)]) == (HEAD, [PLAIN])


def test_a_witness_counts_once_in_a_note() -> None:
    note = cosignature.cosigned_note(HEAD, [(PLAIN, KEYS), (PLAIN, KEYS)])
    assert cosignature.read_note(note, [KEYS]) == (HEAD, [PLAIN])


def test_a_broken_note_is_refused() -> None:
    note = cosignature.cosigned_note(HEAD, [(PLAIN, KEYS)])
    for bad in (note[:-1], note + b"x\n", note + b"\xff\n", note.replace(b"/witness ", b"/witness\t"), note + note):
        with pytest.raises(Refused):
            cosignature.read_note(bad, [KEYS])
    with pytest.raises(TooLarge):
        cosignature.read_note(HEAD.note + cosignature.lines(PLAIN, KEYS).encode() * 100, [KEYS])
    other = checkpoint.make(key("ada"), COLLECTIVE, ADA, 8, digest(b"root"))
    with pytest.raises(Malformed):
        cosignature.cosigned_note(other, [(PLAIN, KEYS)])
    with pytest.raises(BadSignature):
        cosignature.read_note(other.note + cosignature.lines(PLAIN, KEYS).encode(), [KEYS])


# -- what does not verify --------------------------------------------------------------------------------------------
CHANGES = [
    replace(PLAIN, size=8), replace(PLAIN, root=digest(b"other")), replace(PLAIN, time=1_700_000_001),
    replace(PLAIN, member=member_id(key("cyd"))), replace(PLAIN, signature=bytes(64)), replace(PLAIN, signature=b""),
    replace(HYBRID, post_quantum=bytes(2420)), replace(HYBRID, post_quantum=b""),
    replace(PLAIN, post_quantum=HYBRID.signature),
]  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_a_cosignature_with_anything_changed_is_refused(changed: Cosignature) -> None:
    cosignature.verify(PLAIN, KEYS)
    cosignature.verify(HYBRID, KEYS)
    with pytest.raises(BadSignature):
        cosignature.verify(changed, KEYS)


def test_a_cosignature_for_another_origin_or_by_another_witness_is_refused() -> None:
    elsewhere = CollectiveId(digest(b"elsewhere"))
    head = checkpoint.make(key("ada"), elsewhere, ADA, 7, HEAD.root)
    foreign = cosignature.make(witness_key("bob"), None, witness=BOB, head=head, time=1)
    with pytest.raises(Malformed):
        cosignature.verify(foreign, KEYS)
    with pytest.raises(BadSignature):
        cosignature.verify(replace(foreign, collective=COLLECTIVE), KEYS)
    with pytest.raises(Malformed):
        cosignature.verify(replace(PLAIN, witness=ADA), KEYS)


def test_nobody_witnesses_its_own_feed() -> None:
    own = checkpoint.make(key("bob"), COLLECTIVE, BOB, 7, HEAD.root)
    with pytest.raises(Malformed, match="its own feed"):
        cosignature.verify(cosignature.make(witness_key("bob"), None, witness=BOB, head=own, time=1), KEYS)


@pytest.mark.parametrize("time", [0, -1, 2**53])
def test_a_time_outside_the_format_is_refused(time: int) -> None:
    with pytest.raises(Malformed):
        cosignature.make(witness_key("bob"), None, witness=BOB, head=HEAD, time=time)


def test_a_second_signature_needs_a_second_key() -> None:
    with pytest.raises(BadSignature, match="no ML-DSA-44 key"):
        cosignature.verify(HYBRID, replace(KEYS, post_quantum=None))


def test_a_log_signature_is_no_cosignature_and_the_other_way_round() -> None:
    with pytest.raises(BadSignature):
        cosignature.verify(replace(PLAIN, signature=HEAD.signature), KEYS)
    with pytest.raises(Refused):
        checkpoint.parse(checkpoint.assemble(COLLECTIVE, ADA, 7, HEAD.root, PLAIN.signature).note)


# -- bound keys ------------------------------------------------------------------------------------------------------
def forged(**fields: object) -> KeysBound:
    """Other keys, with a proof by the witness key for what is then said."""
    event = replace(BOUND, **fields)  # type: ignore[arg-type]
    message = keyring._message(event, COLLECTIVE, BOB)
    return replace(event, proof=sign(witness_key("bob"), keyring.DOMAIN, message))


def test_bound_keys_are_read_back() -> None:
    assert keyring.read(BOUND, COLLECTIVE, BOB).recovery == digest(b"recovery")
    assert WitnessKeys(collective=COLLECTIVE, witness=BOB, public=KEYS.public, post_quantum=KEYS.post_quantum) == KEYS
    keyring.read(forged(recovery=None), COLLECTIVE, BOB)


def vkey(public: bytes, type_: bytes = ED25519, name: str = "") -> str:
    made = cosignature.verifier_key(COLLECTIVE, BOB, type_, public)
    return made if not name else name + made[len(KEYS.name) :]


LOW_ORDER = bytes.fromhex("01" + "00" * 31)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"log": checkpoint.verifier_key(COLLECTIVE, ADA)}, BadEvent),
        ({"log": ""}, BadEvent),
        ({"witness": vkey(bytes.fromhex(BOB))}, BadEvent),
        ({"witness": vkey(LOW_ORDER)}, BadKey),
        ({"witness": vkey(b"\0" * 32)}, BadKey),
        (
            {"witness": vkey(bytes(witness_key("bob").verify_key), name=f"fishernet/{COLLECTIVE}/{ADA}/witness")},
            Malformed,
        ),
        ({"witness": BOUND.witness.replace("+", "-")}, Malformed),
        ({"witness": BOUND.witness[:-2] + "=="}, Malformed),
        ({"witness": BOUND.witness + "\n"}, Malformed),
        ({"witness": vkey(bytes(witness_key("bob").verify_key), ML_DSA_44)}, Malformed),
        ({"witness": vkey(bytes(witness_key("cyd").verify_key))}, BadSignature),
        ({"witness_pq": BOUND.witness}, Malformed),
        ({"witness_pq": vkey(bytes(32), ML_DSA_44)}, Malformed),
    ],
)
def test_keys_that_are_not_the_members_own_valid_and_distinct_are_refused(fields: dict[str, str], error: type) -> None:
    with pytest.raises(error):
        keyring.read(forged(**fields), COLLECTIVE, BOB)


def test_a_verifier_key_with_the_right_name_and_id_but_another_key_is_refused() -> None:
    name, id_, mark = BOUND.witness.rsplit("+", 2) if BOUND.witness.count("+") == 2 else BOUND.witness.split("+", 2)
    other = base64.b64encode(ED25519 + bytes(witness_key("cyd").verify_key)).decode()
    assert mark != other
    with pytest.raises(Malformed):
        keyring.read(forged(witness=f"{name}+{id_}+{other}"), COLLECTIVE, BOB)


def test_keys_cannot_be_taken_over_into_another_feed_or_collective() -> None:
    for collective, member in ((COLLECTIVE, ADA), (CollectiveId(digest(b"elsewhere")), BOB)):
        with pytest.raises(Refused):
            keyring.read(BOUND, collective, member)
    with pytest.raises(BadSignature):
        keyring.read(replace(BOUND, recovery=Digest(digest(b"the thief's"))), COLLECTIVE, BOB)
