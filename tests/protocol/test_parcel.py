"""Bundles byte for byte, read twice: by the product and by a reader written from FORMAT.md, section 23, alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import nacl.bindings as sodium
import pytest
from nacl.public import PrivateKey, SealedBox
from nacl.signing import SigningKey, VerifyKey

from node.syncing.parcels import Reader, Writer
from protocol import envelope, parcel, wire
from protocol.errors import BadEnvelope, Refused
from protocol.ids import digest
from protocol.keys import member_id
from protocol.parcel import Blob, Page

VECTOR = Path(__file__).parents[1] / "vectors" / "bundle.json"
MAKER, READER = SigningKey(bytes([1]) * 32), SigningKey(bytes([2]) * 32)
BLOB = b"a blob of some bytes" * 9000  # more than one chunk of a sealed bundle


def written(*, sealed: bool) -> bytes:
    """A bundle of one page and one blob; what it says of a feed is not looked at here."""
    key = envelope.fresh_key() if sealed else None
    readers = {member_id(READER): envelope.seal_key(key, member_id(READER))} if key else {}
    member = member_id(MAKER)
    header = parcel.signed(
        MAKER, collective=digest(b"c"), made=1_760_000_000_000, since={member: 1}, heads={member: 2}, readers=readers
    )
    out = io.BytesIO()
    writer = Writer(out, header, key)
    record = wire.WireRecord(line=b'{"a":1}', salt=bytes(16), data=b"{}")
    writer.item(Page(member=member, page=wire.FeedPage(note=b"a note", records=(record,))))
    writer.blob(Blob(digest=digest(BLOB), size=len(BLOB)), [BLOB])
    writer.end()
    return out.getvalue()


# -- the second reader ---------------------------------------------------------------------------------------------------
def framed(file: io.BytesIO) -> bytes:
    return file.read(int.from_bytes(file.read(4), "big"))


def second_reader(data: bytes, key: SigningKey | None = None) -> tuple[dict[str, Any], list[tuple[str, str, bytes]]]:
    """Header and items (kind, name, rest and raw bytes) as the page says."""
    file = io.BytesIO(data)
    assert file.read(19) == b"fishernet-bundle/1\n"
    head = framed(file)
    header = json.loads(head)
    bare = {k: v for k, v in header.items() if k != "signature"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()
    maker = VerifyKey(bytes.fromhex(header["maker"]))
    maker.verify(b"fishernet/feed-bundle/v1\0" + text, base64.b64decode(header["signature"]))
    body = file
    if header["readers"]:
        assert key is not None
        curve = sodium.crypto_sign_ed25519_sk_to_curve25519(bytes(key) + bytes(key.verify_key))
        sealed = base64.b64decode(header["readers"][bytes(key.verify_key).hex()])
        secret = SealedBox(PrivateKey(curve)).decrypt(sealed)
        state = sodium.crypto_secretstream_xchacha20poly1305_state()
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, file.read(24), secret)
        opened, tag = b"", 0
        while tag != 3:
            chunk, tag = sodium.crypto_secretstream_xchacha20poly1305_pull(
                state, framed(file), hashlib.sha256(head).digest()
            )
            assert len(chunk) <= 65_536
            opened += chunk
        assert file.read() == b""
        body = io.BytesIO(opened)
    items, start = [], body.tell()
    while True:
        before = body.tell()
        item = framed(body)
        kind, name, rest = item[:1].decode(), item[1:33].hex(), item[33:]
        raw = body.read(int.from_bytes(rest, "big")) if kind == "b" else b""
        items.append((kind, name, raw or rest))
        if kind == "e":
            whole = body.getvalue()[start:before]
            assert hashlib.sha256(whole).hexdigest() == name
            assert body.read() == b""
            return header, items


@pytest.mark.parametrize("sealed", [False, True])
def test_a_reader_written_from_the_page_reads_what_we_write(sealed: bool) -> None:
    header, items = second_reader(written(sealed=sealed), READER)
    assert header["heads"] == {member_id(MAKER): 2}
    assert [kind for kind, _, _ in items] == ["p", "b", "e"]
    assert items[0][1] == member_id(MAKER)
    assert items[1][1:] == (hashlib.sha256(BLOB).hexdigest(), BLOB)


def test_a_bundle_in_the_open_is_the_published_one(update_golden: bool) -> None:
    found = written(sealed=False)
    if update_golden:
        VECTOR.write_text(
            json.dumps({"sha256": hashlib.sha256(found).hexdigest(), "head": found[:900].hex()}, indent=1) + "\n"
        )
    golden = json.loads(VECTOR.read_text())
    assert found[:900].hex() == golden["head"]
    assert hashlib.sha256(found).hexdigest() == golden["sha256"]


def test_chunks_of_a_sealed_bundle_cannot_be_swapped_repeated_left_out_or_moved_to_another() -> None:
    data = written(sealed=True)
    file = io.BytesIO(data)
    file.read(19)
    framed(file)
    start = file.tell() + 24
    file.seek(start)
    chunks = []
    while file.tell() < len(data):
        chunks.append(framed(file))
    assert len(chunks) >= 3
    other = written(sealed=True)

    def joined(parts: list[bytes], front: bytes = data[:start]) -> bytes:
        return front + b"".join(len(p).to_bytes(4, "big") + p for p in parts)

    assert joined(chunks) == data
    for parts in ([chunks[1], chunks[0], *chunks[2:]], [chunks[0], *chunks], chunks[1:], chunks[:-1]):
        with pytest.raises(Refused):
            list(Reader(io.BytesIO(joined(parts)), READER).items())
    with pytest.raises(BadEnvelope):
        list(Reader(io.BytesIO(joined(chunks, other[:start])), READER).items())
