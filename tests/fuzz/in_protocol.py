"""The parsers of `protocol`: frames, requests, answers, bindings, notes, updates, cards, contributions, tree proofs, parcels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from paper import key

from protocol import (
    addresses,
    binding,
    canon,
    compact,
    contribution,
    fingerprints,
    frames,
    keys,
    merkle,
    notes,
    parcel,
    requests,
    sparse,
    text,
    varints,
    wire,
)  # fmt: skip
from protocol.card import Card
from protocol.errors import Malformed, Refused
from protocol.ids import CollectiveId, Digest, MemberId, digest, peer_id
from tests.fuzz.harness import Target, mutated, mutated_json

ADA = key("ada")
ADA_ID = keys.member_id(ADA)
TRANSPORT = keys.SigningKey(b"\x07" * 32)
BOUND = binding.verify(binding.make(ADA, TRANSPORT))
COLLECTIVE = CollectiveId(digest(b"collective"))
D = digest(b"x")
P = 400
NOT_JSON = (Refused, KeyError, TypeError, AttributeError, ValueError, RecursionError)


# -- requests and answers ------------------------------------------------------------------------------------------------------
def asked() -> Iterator[bytes]:
    who = {"collective": COLLECTIVE, "binding": BOUND}
    have = fingerprints.fingerprints(bytes(8), [(ADA_ID, 3, D)])
    for request in (
        requests.HeadsRequest(**who),
        requests.ChangesRequest(**who, since="", have=have),
        requests.ChangesRequest(**who, since="0123-7", have=b""),
        requests.FeedRequest(**who, member=ADA_ID, start=7),
        requests.RangeRequest(**who, member=ADA_ID, start=7, attach=1000),
        requests.FollowRequest(**who, start=7, attach=1000),
        requests.BlobRequest(**who, digest=D, offset=2**40),
        requests.PartRequest(**who, digest=D, offset=1, length=262_144),
        requests.HaveRequest(**who, digests=(D, digest(b"y"))),
    ):
        yield request.to_bytes()


def rebound(rng: random.Random, data: bytes) -> bytes:
    """The same request with a binding that verifies (mostly), and canonical."""
    try:
        value = canon.decode_object(data, max_bytes=1 << 17)
    except NOT_JSON:
        return data
    if "binding" in value and rng.random() < 0.9:
        value["binding"] = BOUND.to_json()
    return canon.encode(value, max_bytes=1 << 17)


def records() -> list[wire.WireRecord]:
    return [
        wire.WireRecord(line=b'{"e":{},"s":"x"}', salt=bytes(16), data=b'{"n":1}'),
        wire.WireRecord(line=b'{"e":{},"s":"y"}', salt=None, data=None),
    ]


def answered() -> Iterator[bytes]:
    yield wire.HeadsAnswer(binding=BOUND, notes=(b"a note", b"another")).to_bytes()
    yield wire.HeadsAnswer(binding=BOUND, notes=()).to_bytes()


def changed() -> Iterator[bytes]:
    yield wire.ChangesAnswer(binding=BOUND, token="abc-12", notes=(b"a note",)).to_bytes()
    yield wire.ChangesAnswer(binding=BOUND, token="", notes=()).to_bytes()


def unframed(data: bytes) -> list[bytes]:
    return frames.unpack(data, max_items=100, max_item=5000)


def bitmap(data: bytes) -> tuple[bool, ...]:
    return wire.parse_bitmap(data, 21)


# -- bindings, notes, proofs ---------------------------------------------------------------------------------------------------
def bound(data: bytes) -> binding.Binding:
    return binding.verify(canon.decode(data))


def resigned(_rng: random.Random, data: bytes) -> bytes:
    """A binding signed by both keys, whatever it says."""
    try:
        value = canon.decode_object(data)
        message = canon.encode({name: value[name] for name in ("member", "peer", "transport")})
    except NOT_JSON:
        return data
    value["by_member"] = text.to_base64(keys.sign(ADA, binding.DOMAIN, message))
    value["by_transport"] = text.to_base64(keys.sign(TRANSPORT, binding.DOMAIN, message))
    return canon.encode(value)


LOG = notes.VerifierKey(name="log.example/x", kind=1, public=bytes(ADA.verify_key))


def note() -> Iterator[bytes]:
    said = "log.example/x\n3\nroot\n"
    mark = text.to_base64(LOG.id + bytes(ADA.sign(said.encode()).signature))
    yield f"{said}\n\u2014 log.example/x {mark}\n".encode()
    yield f"{said}\n\u2014 other.example AAAA\n\u2014 log.example/x {mark}\n".encode()


def tree_proof(data: bytes) -> None:
    """An inclusion and a consistency proof whose numbers and hashes are all drawn from the bytes."""
    if len(data) < 80:
        raise Malformed("couldn't read proof: short")
    index, size = struct.unpack(">QQ", data[:16])
    leaf, root, rest = data[16:48], data[48:80], data[80:]
    hashes = [rest[at : at + 32] for at in range(0, len(rest), 32)]
    for proven in (
        lambda: merkle.verify_inclusion(index, size, leaf, hashes, root),
        lambda: merkle.verify_consistency(index, size, leaf, root, hashes),
    ):
        try:
            proven()
        except merkle.BadProof:
            continue


def tree_proofs() -> Iterator[bytes]:
    leaves = [merkle.leaf_hash(bytes([n])) for n in range(7)]
    nodes = {(0, n): leaf for n, leaf in enumerate(leaves)}
    root = merkle.root_of(leaves)
    for level in range(1, 3):
        for n in range(7 >> level):
            nodes[level, n] = merkle.node_hash(nodes[level - 1, 2 * n], nodes[level - 1, 2 * n + 1])

    def get(places):
        return [nodes[place] for place in places]

    try:
        path = merkle.inclusion(3, 7, get)
        yield struct.pack(">QQ", 3, 7) + leaves[3] + root + b"".join(path)
        between = merkle.consistency(4, 7, get)
        yield struct.pack(">QQ", 4, 7) + nodes[2, 0] + root + b"".join(between)
    except (TypeError, KeyError):
        pass
    yield struct.pack(">QQ", 0, 1) + leaves[0] + leaves[0]
    yield struct.pack(">QQ", 2**63, 2**64 - 1) + bytes(64 + 32 * 64)


def addressed(data: bytes) -> tuple[Any, ...]:
    said = data.decode("utf-8", "replace")
    return addresses.split(said)


def read_key(data: bytes) -> notes.VerifierKey:
    return notes.read_key(data.decode("utf-8", "replace"))


# -- updates and contributions -------------------------------------------------------------------------------------------------
@cache
def updates() -> tuple[bytes, ...]:
    rng = np.random.default_rng(3)
    made = []
    for bits, block, sent in ((8, 16, 80), (4, 64, 80), (1, 64, 50), (2, 16, 120), (3, 16, 3), (8, 256, 1)):
        indices = np.sort(rng.choice(P, sent, replace=False)).astype(np.uint32)
        values = rng.normal(0, 0.1, sent).astype(np.float32)
        values[values == 0] = 0.1
        made.append(sparse.encode(coordinates=P, indices=indices, values=values, bits=bits, block=block))
    return tuple(made)


def update(data: bytes) -> Any:
    return sparse.decode(data, coordinates=P, max_sent=P // 2)


@cache
def card() -> Card:
    return Card(
        collective=COLLECTIVE, member=ADA_ID, epoch=digest(b"epoch"), base=digest(b"base"), number=1, view=digest(b"view"),
        train_root=digest(b"train"), held_out_root=digest(b"held out"), train_rows=900, steps=10, tokens=2560,
        epsilon_micro=None, selection="fisher-r2", density_ppm=200_000, value_bits=8, coordinates=P, sent=80,
        norm_micro=500_000, loss_before=423, loss_after=378, libraries={"torch": "2.13.0", "numpy": "2.4.6"},
    )  # fmt: skip


def sealed(card_bytes: bytes, data: bytes, version: int = 2) -> bytes:
    """A contribution of any card and update bytes under a good signature."""
    head = struct.pack("<4sBHI" if version != 1 else "<4sBII", b"FNCB", version, len(card_bytes), len(data))
    return (whole := head + card_bytes + data) + keys.sign(ADA, contribution.DOMAIN, hashlib.sha256(whole).digest())


def contributions() -> Iterator[bytes]:
    yield contribution.pack(card(), updates()[0], ADA)
    yield contribution.pack(card(), b"", ADA)
    yield sealed(canon.encode(card().to_json()), updates()[1], version=1)


def resealed(rng: random.Random, data: bytes) -> bytes:
    """Card and update of a contribution mutated apart from each other, then signed again."""
    first = data[4:5] == b"\x01"
    size = 13 if first else 11
    if len(data) < size:
        return data
    card_bytes, update_bytes = struct.unpack("<II" if first else "<HI", data[5:size])
    short, rest = data[size : size + card_bytes], data[size + card_bytes : size + card_bytes + update_bytes]
    if rng.random() < 0.5:
        short = (mutated_json if first else mutated)(rng, short, short)
    if len(short) > 60_000 or len(rest) > 60_000:
        return data
    return sealed(short, rest, 1 if first else 2)


def contributed(data: bytes) -> contribution.Contribution:
    """The envelope, and the update inside as the gate reads it."""
    found = contribution.unpack(data, max_bytes=1 << 17)
    with contextlib.suppress(Malformed):
        sparse.decode(found.update, coordinates=P, max_sent=P)
    return found


def carded(data: bytes) -> Card:
    return Card.parse(canon.decode(data))


# -- parcels -------------------------------------------------------------------------------------------------------------------
def parcels() -> Iterator[bytes]:
    yield parcel.signed(
        ADA, collective=COLLECTIVE, made=5, since={ADA_ID: 1}, heads={ADA_ID: 3}, readers={ADA_ID: bytes(80)}
    ).to_bytes()
    yield parcel.signed(ADA, collective=COLLECTIVE, made=0, since={}, heads={}, readers={}).to_bytes()


def parcel_resigned(_rng: random.Random, data: bytes) -> bytes:
    try:
        value = canon.decode_object(data, max_bytes=parcel.MAX_HEADER)
        bare = {name: content for name, content in value.items() if name != "signature"}
        signature = keys.sign(ADA, parcel.DOMAIN, canon.encode(bare, max_bytes=parcel.MAX_HEADER))
        return canon.encode({**bare, "signature": text.to_base64(signature)}, max_bytes=parcel.MAX_HEADER)
    except NOT_JSON:
        return data


def items() -> Iterator[bytes]:
    yield parcel.Page(member=MemberId(ADA_ID), page=wire.page_of(b"note", records())).to_bytes()
    yield parcel.Blob(digest=Digest(D), size=1000).to_bytes()
    yield parcel.End(digest=Digest(D)).to_bytes()


def tree() -> Iterator[bytes]:
    yield canon.encode({"a": [1, -2, True, None, "é", {"b": {}}], "z": "x" * 50})
    yield b"[" * 40 + b"]" * 40
    yield json.dumps({"a": 1.5, "b": "\\u0000"}).encode()
    yield b'{"a":9007199254740991,"\\ud83d":"e"}'


TARGETS = (
    Target(name="canon", read=canon.decode, write=canon.encode, seeds=tree, json=True, weight=2),
    Target(name="frames", read=unframed, write=frames.pack, seeds=lambda: [frames.pack([b"", b"abc", b"x" * 300])]),
    Target(
        name="answer",
        read=frames.open_answer,
        seeds=lambda: [b"\0payload", b"\1not-a-member", b"\1X", b""],
        write=lambda v: b"\1" + v.code.encode() if isinstance(v, frames.Refusal) else b"\0" + v,
        weight=0.3,
    ),
    Target(
        name="request",
        read=lambda data: requests.parse_request(data, max_bytes=requests.MAX_HAVE_REQUEST),
        write=lambda v: v.to_bytes(),
        seeds=asked,
        fix=rebound,
        json=True,
        weight=3,
    ),
    Target(name="heads", read=wire.parse_heads, write=lambda v: v.to_bytes(), seeds=answered),
    Target(name="changes", read=wire.parse_changes, write=lambda v: v.to_bytes(), seeds=changed),
    Target(
        name="page",
        read=wire.parse_page,
        write=lambda v: v.to_bytes(),
        seeds=lambda: [wire.page_of(b"note", records()).to_bytes(), wire.page_of(b"", []).to_bytes()],
        weight=2,
    ),
    Target(
        name="attached", read=lambda data: wire.parse_attached(data, 2), seeds=lambda: [frames.pack([b"a", b""]), b""]
    ),
    Target(name="bitmap", read=bitmap, write=wire.bitmap, seeds=lambda: [wire.bitmap([True] * 21)], weight=0.3),
    Target(name="blob-size", read=wire.parse_blob_size, write=wire.blob_size, seeds=lambda: [bytes(8)], weight=0.2),
    Target(
        name="fingerprints",
        read=lambda data: fingerprints.differing(data, [(ADA_ID, 1, D)]),
        seeds=lambda: [bytes(264), fingerprints.fingerprints(bytes(8), [(ADA_ID, 1, D)])],
        weight=0.2,
    ),
    Target(
        name="binding",
        read=bound,
        write=lambda v: canon.encode(v.to_json()),
        seeds=lambda: [canon.encode(BOUND.to_json())],
        fix=resigned,
        json=True,
    ),
    Target(name="note", read=lambda data: notes.read(data, LOG), seeds=note),
    Target(name="verifier-key", read=read_key, write=lambda v: str(v).encode(), seeds=lambda: [str(LOG).encode()]),
    Target(name="tree-proof", read=tree_proof, seeds=tree_proofs),
    Target(
        name="address",
        read=addressed,
        seeds=lambda: [
            f"/ip4/127.0.0.1/tcp/4001/p2p/{peer_id(bytes(32))}".encode(),
            f"/dns/a.example/tcp/1/p2p/{peer_id(bytes(TRANSPORT.verify_key))}".encode(),
            f"/ip6/::1/tcp/0/p2p/{peer_id(bytes(32))}".encode(),
        ],
    ),
    Target(
        name="varints",
        read=lambda data: varints.decode(data, 5),
        write=varints.encode,
        seeds=lambda: [varints.encode(np.array([0, 127, 128, 2**28 - 1, 5]))],
    ),
    Target(name="update", read=update, seeds=updates, weight=3),
    Target(
        name="card",
        read=carded,
        write=lambda v: canon.encode(v.to_json()),
        seeds=lambda: [canon.encode(card().to_json())],
        json=True,
    ),
    Target(name="compact", read=compact.decode, write=compact.encode, seeds=lambda: [compact.encode(card())]),
    Target(name="contribution", read=contributed, seeds=contributions, fix=resealed, weight=3),
    Target(
        name="parcel",
        read=parcel.parse_header,
        write=lambda v: v.to_bytes(),
        seeds=parcels,
        fix=parcel_resigned,
        json=True,
    ),
    Target(name="parcel-item", read=parcel.parse_item, write=lambda v: v.to_bytes(), seeds=items),
)
