"""Hostile blobs at a real table: the member is named in the draft of the next release, and every node goes on unharmed."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zstandard
from paper import key
from seats import Sitter, Table

from protocol import keys, sparse

GOOD = {3: 0.5, 9: -0.25, 40: 1.0}
HEADER = 26


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    found = Table(tmp_path)
    yield found
    found.close()


def signed(cyd: Sitter, bend: Callable[[bytes], bytes]) -> bytes:
    """A contribution of cyd under its good signature whose update is another one than its card was made for."""
    honest = cyd.blob(GOOD)
    card_bytes, update_bytes = struct.unpack_from("<HI", honest, 5)
    start = 11 + card_bytes
    whole = sparse.decode(honest[start : start + update_bytes], coordinates=64, max_sent=64)
    update = bend(in_version_2(whole))
    head = honest[:7] + struct.pack("<I", len(update)) + honest[11:start] + update
    return head + keys.sign(key("cyd"), "contribution", hashlib.sha256(head).digest())


def in_version_2(update: sparse.SparseUpdate) -> bytes:
    return sparse.in_grid(
        coordinates=update.coordinates, indices=update.indices, values=update.values(), bits=8, block=update.block
    )


def at(place: int, piece: bytes) -> Callable[[bytes], bytes]:
    return lambda update: update[:place] + piece + update[place + len(piece) :]


def flood(_update: bytes) -> bytes:
    every = np.arange(64, dtype=np.uint32)
    return sparse.encode(coordinates=64, indices=every, values=np.ones(64, dtype=np.float32), bits=8, block=16)


def bomb(_update: bytes) -> bytes:
    parts = [zstandard.ZstdCompressor().compress(bytes(1 << 22))] * 2
    return struct.pack("<4sBBBBIIII", b"FNSU", 1, 8, 0, 4, 64, 3, *map(len, parts)) + parts[0] + b"\x00\x3c" + parts[1]


ATTACKS = {
    "cut off": (lambda update: update[:-1], "malformed"),
    "a byte too many": (lambda update: update + b"\0", "malformed"),
    "another magic": (at(0, b"X"), "malformed"),
    "version 9": (at(4, b"\x09"), "malformed"),
    "another block": (at(6, b"\xff"), "too-large"),
    "2^32-1 sent": (at(12, b"\xff" * 4), "too-large"),
    "pages of 2^255 rows": (at(17, b"\xff"), "too-large"),
    "an infinite scale": (at(21, b"\x00\x7c"), "malformed"),
    "padding": (lambda update: update[:-1] + bytes([update[-1] | 1]), "not-canonical"),
    "ones all over": (lambda update: update[:HEADER] + b"\xff" * (len(update) - HEADER), "malformed"),
    "zeros all over": (lambda update: update[:HEADER] + bytes(len(update) - HEADER), "malformed"),
    "a dense flood": (flood, "too-large"),
    "a bomb of version 1": (bomb, "too-large"),
}


def test_each_hostile_blob_names_its_member_in_the_draft_and_harms_nobody(table: Table) -> None:
    ada, bob, cyd = table
    sent = {name: cyd.publish(blob=signed(cyd, bend)) for name, (bend, _) in ATTACKS.items()}
    forged = cyd.publish(blob=cyd.blob(GOOD)[:-1] + b"\0")
    other = cyd.publish(blob=ada.blob(GOOD))
    ada.publish(GOOD)
    table.deliver()
    cut = ada.cut()

    named = {exclusion.event: exclusion for exclusion in cut.excluded}
    for name, (_, code) in ATTACKS.items():
        contribution = sent[name]
        assert contribution.member == cyd.id
        exclusion = named[contribution.source.event]
        assert (exclusion.reason, exclusion.evidence) == (code, ()), name
    assert named[forged.source.event].reason == "bad-signature"
    assert named[other.source.event].reason == "wrong-member"
    assert len(named) == len(ATTACKS) + 2
    assert [register.member for register in cut.registers] == [ada.id]

    found = bob.judged(cut)
    assert found is not None
    assert found.judgement.accept, "another node recomputes the same codes"
    table.decide(cut)
    ada.publish({1: 0.5})
    table.deliver()
    assert bob.cut().excluded == cut.excluded, "the release is made, and what it leaves out stays out"
