"""Proof files: what one node hands out, a stranger verifies offline; no changed file passes."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import checkpoint, cosignature, entry, proofs
from ledger.cosignature import WitnessKeys
from ledger.proofs import Proof
from ledger.store import Draft, Store
from protocol import keys, notes
from protocol.errors import BadKey, BadProof, Malformed, Refused, TooLarge
from protocol.ids import CollectiveId
from protocol.merkle import Nodes, leaf_hash

KEY, OTHER = keys.SigningKey(b"\x01" * 32), keys.SigningKey(b"\x02" * 32)
WITNESS = keys.SigningKey(b"\x03" * 32)
MEMBER, NEIGHBOUR = keys.member_id(KEY), keys.member_id(OTHER)
COLLECTIVE = CollectiveId("cc" * 32)
LOG_KEY = checkpoint.verifier_key(COLLECTIVE, MEMBER)
BY = WitnessKeys(collective=COLLECTIVE, witness=NEIGHBOUR, public=bytes(WITNESS.verify_key).hex())
WITNESS_KEY = cosignature.verifier_key(COLLECTIVE, NEIGHBOUR, cosignature.ED25519, bytes.fromhex(BY.public))
SIZE = 23
GOLDEN = Path(__file__).parents[1] / "vectors" / "proof.json"
BEYOND_PYNACL = ("torch", "numpy", "sqlite3", "_sqlite3", "sqlite_utils", "cryptography", "click", "rich", "pydantic")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("proofs") / "ledger.db") as opened:
        for key in (KEY, OTHER):
            drafts = [Draft(type="test.event", body={"n": n}, salt=bytes(16)) for n in range(SIZE)]
            opened.append_all(key, COLLECTIVE, drafts, now_ms=5)
        yield opened


def proof_of(store: Store, seq: int, *, cosigned: bool = False) -> Proof:
    head = checkpoint.parse(store.heads(COLLECTIVE, MEMBER)[0].note)
    note = None
    if cosigned:
        said = cosignature.make(WITNESS, None, witness=NEIGHBOUR, head=head, time=1_800_000_000)
        note = cosignature.cosigned_note(head, [(said, BY)])
    line = store.line(COLLECTIVE, MEMBER, seq)
    return proofs.make(line, seq, head, store.tree(COLLECTIVE, MEMBER).nodes, note=note)


def second_reader(data: bytes) -> tuple[int, bytes]:
    """c2sp.org/tlog-proof and signed-note, from their pages and nothing of ours: (index, entry) when it holds."""
    lines = data.decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1].startswith("extra ")
    assert lines[2].startswith("index ")
    extra, index, end = base64.b64decode(lines[1][6:]), int(lines[2][6:]), lines.index("")
    path = [base64.b64decode(line) for line in lines[3:end]]
    note = "\n".join(lines[end + 1 :])
    text = notes.read(note.encode(), notes.read_key(LOG_KEY))
    _, size, root = text.splitlines()
    found, place, last = leaf_hash(extra), index, int(size) - 1
    for item in path:
        if place & 1 or place == last:
            found = hashlib.sha256(b"\x01" + item + found).digest()
            while not place & 1:
                place, last = place >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\x01" + found + item).digest()
        place, last = place >> 1, last >> 1
    assert last == 0
    assert found == base64.b64decode(root)
    return index, extra


@pytest.mark.parametrize("seq", range(SIZE))
def test_a_proof_holds_for_us_and_for_a_reader_of_the_published_format(store: Store, seq: int) -> None:
    proof = proof_of(store, seq)
    data = proofs.encode(proof)
    assert proofs.decode(data) == proof
    proven = proofs.verify(proofs.decode(data), [LOG_KEY])
    record = store.records(COLLECTIVE, MEMBER, seq, 1)[0]
    assert proven.entry == record.entry
    assert (proven.head.size, proven.cosignatures, proven.signature_lines) == (SIZE, (), 1)
    assert second_reader(data) == (seq, record.entry.line)


def test_a_named_witness_must_have_cosigned(store: Store) -> None:
    plain, cosigned = proof_of(store, 5), proof_of(store, 5, cosigned=True)
    proven = proofs.verify(proofs.decode(proofs.encode(cosigned)), [LOG_KEY, WITNESS_KEY])
    assert [c.witness for c in proven.cosignatures] == [NEIGHBOUR]
    assert proofs.verify(cosigned).cosignatures == ()  # nobody was named, so nobody counts
    assert proofs.verify(cosigned).signature_lines == 2
    assert second_reader(proofs.encode(cosigned))[0] == 5
    with pytest.raises(BadProof, match="has not cosigned"):
        proofs.verify(plain, [WITNESS_KEY])
    forged = cosigned.note[:-10] + b"AAAA" + cosigned.note[-6:]
    with pytest.raises(Refused):
        proofs.verify(replace(cosigned, note=forged), [WITNESS_KEY])


def test_a_proof_of_another_feed_than_was_named_is_refused(store: Store) -> None:
    proof = proof_of(store, 5)
    with pytest.raises(BadProof, match="not signed by the key that was named"):
        proofs.verify(proof, [checkpoint.verifier_key(COLLECTIVE, NEIGHBOUR)])
    with pytest.raises(BadProof, match="not signed by the key that was named"):
        proofs.verify(proof, [checkpoint.verifier_key(CollectiveId("dd" * 32), MEMBER)])
    with pytest.raises(Malformed):
        proofs.verify(proof, [LOG_KEY[:-2]])
    stranger = notes.VerifierKey(name="witness.example", kind=notes.COSIGNATURE, public=bytes(WITNESS.verify_key))
    with pytest.raises(BadKey):
        proofs.verify(proof, [str(stranger)])


def test_parts_that_do_not_belong_together_are_refused(store: Store) -> None:
    proof, other = proof_of(store, 5), proof_of(store, 6)
    foreign = store.line(COLLECTIVE, NEIGHBOUR, 5)
    again = entry.make(
        KEY, collective=COLLECTIVE, seq=5, prev=entry.parse(proof.line).header.prev, ts=9, type="test.event", seen=(),
        body={"n": 5}, salt=bytes(16),
    ).entry.line  # fmt: skip
    bad = [
        replace(proof, index=6),
        replace(proof, index=SIZE),
        replace(proof, line=other.line),
        replace(proof, line=foreign),
        replace(proof, line=again),
        replace(proof, path=other.path),
        replace(proof, path=proof.path[:-1]),
        replace(proof, path=(*proof.path, proof.path[0])),
        replace(proof, path=()),
        replace(proof, note=checkpoint.make(KEY, COLLECTIVE, MEMBER, SIZE, "ab" * 32).note),  # type: ignore[arg-type]
        replace(proof, note=checkpoint.make(KEY, COLLECTIVE, MEMBER, SIZE + 1, "ab" * 32).note),  # type: ignore[arg-type]
        replace(proof, note=store.heads(COLLECTIVE, NEIGHBOUR)[0].note),
    ]
    for changed in bad:
        with pytest.raises(BadProof):
            proofs.verify(changed)


def test_the_proof_file_is_the_golden_one(tmp_path: Path, update_golden: bool) -> None:
    """Fixed keys, salts and times make fixed bytes; tools that read the format can be tried on them."""
    with Store.open(tmp_path / "ledger.db") as golden:
        golden.append_all(
            KEY, COLLECTIVE, [Draft(type="test.event", body={"n": n}, salt=bytes([n]) * 16) for n in range(7)], now_ms=7
        )
        data = proofs.encode(proof_of(golden, 4, cosigned=True))
    found = {
        "log_key": LOG_KEY,
        "witness_key": WITNESS_KEY,
        "leaf": leaf_hash(proofs.decode(data).line).hex(),
        "file": data.decode(),
    }
    if update_golden:
        GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert found == json.loads(GOLDEN.read_text("utf-8"))
    proven = proofs.verify(proofs.decode(data), [LOG_KEY, WITNESS_KEY])
    assert (proven.entry.leaf, proven.head.size) == (found["leaf"], 7)


DATA: dict[str, bytes] = {}


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255), st.sampled_from(["flip", "drop", "double"]))
def test_no_file_with_a_changed_byte_shows_another_event(store: Store, place: int, change: int, how: str) -> None:
    data = DATA.setdefault("file", proofs.encode(proof_of(store, 9)))
    at = place % len(data)
    changed = {
        "flip": data[:at] + bytes([data[at] ^ change]) + data[at + 1 :],
        "drop": data[:at] + data[at + 1 :],
        "double": data[:at] + data[at : at + 1] + data[at:],
    }[how]
    if changed != data:
        with pytest.raises(Refused):
            proofs.verify(proofs.decode(changed), [LOG_KEY])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(alphabet="extraindex 0123=\nA", max_size=200).map(str.encode))
def test_garbage_is_refused_and_never_a_crash(data: bytes) -> None:
    for text in (data, proofs.HEADER.encode() + b"\n" + data):
        with pytest.raises(Refused):
            proofs.verify(proofs.decode(text))


def test_a_file_over_the_limit_is_refused_before_it_is_read(store: Store) -> None:
    with pytest.raises(TooLarge):
        proofs.decode(bytes(proofs.MAX_FILE + 1))
    data = proofs.encode(replace(proof_of(store, 1), line=bytes(entry.MAX_LINE + 3)))
    with pytest.raises(TooLarge):
        proofs.decode(data)


def test_a_head_that_is_too_small_proves_nothing(store: Store) -> None:
    small = checkpoint.make(KEY, COLLECTIVE, MEMBER, 5, "ab" * 32)  # type: ignore[arg-type]
    nodes: Nodes = store.tree(COLLECTIVE, MEMBER).nodes
    with pytest.raises(BadProof):
        proofs.make(store.line(COLLECTIVE, MEMBER, 5), 5, small, nodes)


def test_verifying_needs_pynacl_alone(store: Store) -> None:
    """In a process that refuses every other library, and the store's too."""
    code = (
        "import sys\n"
        "class Only:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in sys.argv[1:]:\n"
        "            raise ImportError(name + ' is not allowed here')\n"
        "sys.meta_path.insert(0, Only())\n"
        "from ledger import proofs\n"
        "print(proofs.verify(proofs.decode(sys.stdin.buffer.read())).entry.header.seq)\n"
    )
    root = Path(__file__).parents[2]
    data = proofs.encode(proof_of(store, 9))
    done = subprocess.run([sys.executable, "-c", code, *BEYOND_PYNACL], input=data, capture_output=True, cwd=root)
    assert done.stdout.strip() == b"9", done.stderr.decode()
