"""The formats of protocol/FORMAT.md, byte for byte, read twice: by the product and by a reader written from the page.

The vectors in tests/vectors are made from fixed inputs by the functions below; `--update-golden` writes them anew. Contributions
of version 1 (contributions.json) are kept as they were made once: nothing writes that version any more.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import second_reader

from contrib import adapters, merging, recipes, row, splitting, updates
from ledger import charter as charters
from ledger import charter_reading, checkpoint, entry, events
from protocol import binding, canon, contribution, fingerprints, keys, merkle, sparse, wire
from protocol.card import Card
from protocol.errors import FishernetError
from protocol.ids import ZERO, digest, digest_of, peer_id

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
NAMES = ("ada", "bea", "cyd")
KEYS = {name: keys.SigningKey(digest(name.encode()).encode()[:32]) for name in NAMES}
MEMBERS = {name: keys.member_id(KEYS[name]) for name in NAMES}
SALT = bytes(range(16))
P = 40


def charter():
    members = [charters.Member(id=MEMBERS[name], name=name, role="contributor") for name in NAMES]
    return charter_reading.parse(
        charters.Charter(
            name="Vectors",
            nonce=digest(b"nonce"),
            base=charters.Base(name="tiny", digest=digest(b"base")),
            adapter=charters.Adapter(
                rank=16, alpha=16, targets=("q_proj", "v_proj"), seed=digest(b"seed"), coordinates=P
            ),
            update=charters.Update(density_ppm=250_000, value_bits=8, block=256),
            recipe="contributor-mean/1",
            gate=charters.Gate(
                max_blob_bytes=4194304, norm_cap_micro=10_000_000, tolerance_centinats=2, held_out_min=200
            ),
            release=charters.Release(wait_for=3, patience_ms=60_000, timeout_ms=20_000),
            members=tuple(sorted(members, key=lambda member: member.id)),
            faults=0,
        ).to_json()
    )


COLLECTIVE = charters.collective_id(charter())


def stored_frame(data):
    """A zstd frame of one raw block (RFC 8878): the same bytes whatever zstd is installed."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(data)]) + (len(data) << 3 | 1).to_bytes(3, "little") + data


def stored_update(*, sent, index, values, scales, bits=8, encoding=0, exponent=8, coordinates=P):
    frames = stored_frame(index), stored_frame(values)
    head = struct.pack(
        "<4sBBBBIIII", b"FNSU", 1, bits, encoding, exponent, coordinates, sent, len(frames[0]), len(frames[1])
    )
    return head + frames[0] + scales + frames[1]


ONE = b"\x00\x3c"
STORED_UPDATES = {
    "nothing": stored_update(sent=0, index=b"", values=b"", scales=b""),
    "int8, delta varints": stored_update(sent=3, index=b"\x00\x04\x21", values=b"\x01\x7f\x81", scales=ONE),
    "int8, bitmap": stored_update(sent=2, index=b"\x01\x00\x00\x00\x80", values=b"\x02\xfe", scales=ONE, encoding=1),
    "int4, odd": stored_update(sent=3, index=b"\x00\x00\x00", values=b"\x97\x01", scales=ONE, bits=4),
    "two blocks, smallest and largest scale": stored_update(
        sent=3, index=b"\x05\x05\x05", values=b"\x01\x02\x03", scales=b"\x01\x00\xff\x7b", exponent=1
    ),
    "long gap": stored_update(sent=2, index=b"\x80\x01\x80\x80\x01", values=b"\x01\x01", scales=ONE, coordinates=20000),
}
GOOD = {"sent": 1, "index": b"\x05", "values": b"\x01", "scales": ONE}
REFUSED_UPDATES = {
    "a value of zero": stored_update(**GOOD | {"values": b"\x00"}),
    "-128": stored_update(**GOOD | {"values": b"\x80"}),
    "-8 in four bits": stored_update(**GOOD | {"values": b"\x08", "bits": 4}),
    "padding in four bits": stored_update(**GOOD | {"values": b"\x11", "bits": 4}),
    "a varint longer than needed": stored_update(**GOOD | {"index": b"\x85\x00"}),
    "an index beyond the coordinates": stored_update(**GOOD | {"index": b"\x28"}),
    "a bit beyond the coordinates": stored_update(
        **GOOD | {"index": b"\x00\x00\x00\x00\x80", "encoding": 1, "coordinates": 39}
    ),
    "an infinite scale": stored_update(**GOOD | {"scales": b"\x00\x7c"}),
    "a scale of zero": stored_update(**GOOD | {"scales": b"\x00\x00"}),
    "a trailing byte": stored_update(**GOOD) + b"\x00",
    "a block of 2^16": stored_update(**GOOD | {"exponent": 16}),
    "more sent than allowed": stored_update(sent=11, index=bytes(11), values=b"\x01" * 11, scales=ONE),
}


def small_update(seed):
    rng = np.random.default_rng(seed)
    residual = np.round(rng.standard_normal(P), 3).astype(np.float32)
    return updates.make(np.ones(P, dtype=np.float32), residual, density_ppm=250_000, value_bits=8, block=256)


def card(update, member):
    return Card(
        collective=COLLECTIVE,
        member=MEMBERS[member],
        epoch=charter().epoch_id,
        base=digest(b"base"),
        number=1,
        view=merging.model_digest(np.zeros(P, dtype=np.float32)),
        train_root=digest(b"train"),
        held_out_root=digest(b"held out"),
        train_rows=900,
        steps=10,
        tokens=2560,
        epsilon_micro=None,
        selection="fisher-r2",
        density_ppm=250_000,
        value_bits=8,
        coordinates=P,
        sent=update.sent,
        norm_micro=updates.norm_micro(update),
        loss_before=423,
        loss_after=378,
        libraries={"fishernet": "0.1.0", "torch": "2.13.0"},
    )


def make_names():
    return {
        "canonical": [
            {"value": value, "hex": canon.encode(value).hex()}
            for value in (None, True, -9007199254740991, 'é\u2028\u0001"\\', [], {}, {"b": [1, {}], "a": "雪"})
        ],
        "members": [
            {
                "name": name,
                "seed": bytes(KEYS[name]).hex(),
                "member": MEMBERS[name],
                "peer": peer_id(bytes.fromhex(MEMBERS[name])),
            }
            for name in NAMES
        ],
        "signature": {
            "domain": "entry",
            "message": "hello",
            "hex": keys.sign(KEYS["ada"], "entry", b"hello").hex(),
        },
        "trees": [
            {"leaves": n, "root": merkle.root_of([merkle.leaf_hash(bytes([i])) for i in range(n)]).hex()}
            for n in (0, 1, 2, 3, 5, 8)
        ],
    }


def make_charter():
    return {"charter": charter().to_json(), "collective": COLLECTIVE, "epoch": charter().epoch_id}


def make_feed():
    bodies = [
        events.Genesis(charter=charter().to_json()),
        events.PeerBound(binding=binding.make(KEYS["ada"], KEYS["bea"])),
        events.Published(epoch=charter().epoch_id, number=1, blob=digest(b"blob"), size=4, run="r"),
    ]
    prev, leaves, out = ZERO, [], []
    for seq, body in enumerate(bodies):
        seen = [entry.Seen(member=MEMBERS["cyd"], seq=3, leaf=digest(b"leaf"))] if seq == 2 else []
        record = entry.make(
            KEYS["ada"],
            collective=COLLECTIVE,
            seq=seq,
            prev=prev,
            ts=1_700_000_000_000 + seq,
            type=body.TYPE,
            seen=seen,
            body=body.to_json(),
            salt=SALT,
        )
        prev = record.entry.leaf
        leaves.append(merkle.leaf_hash(record.entry.line))
        head = checkpoint.make(KEYS["ada"], COLLECTIVE, MEMBERS["ada"], seq + 1, digest_root(leaves))
        out.append(
            {
                "line": record.entry.line.decode(),
                "salt": SALT.hex(),
                "body": record.body.data.decode(),
                "leaf": record.entry.leaf,
                "event": record.entry.event,
                "note": head.note.decode(),
            }
        )
    return out


def digest_root(leaves):
    return merkle.root_of(leaves).hex()


def make_stored_updates():
    return {
        "max_sent": 10,
        "read": [
            {"name": name, "hex": data.hex(), **read_update(data, struct.unpack_from("<I", data, 8)[0])}
            for name, data in STORED_UPDATES.items()
        ],
        "refused": [
            {"name": name, "hex": data.hex(), "coordinates": struct.unpack_from("<I", data, 8)[0]}
            for name, data in REFUSED_UPDATES.items()
        ],
    }


def read_update(data, coordinates, max_sent=10):
    update = sparse.decode(data, coordinates=coordinates, max_sent=max_sent)
    return {
        "coordinates": coordinates,
        "bits": update.bits,
        "block": update.block,
        "indices": update.indices.tolist(),
        "units": update.units.tolist(),
    }


SHAPES = {  # name: (coordinates, sent, bits, block, how clustered)
    "one bit": (900, 70, 1, 16, 2.0),
    "two bits": (900, 70, 2, 32, 2.0),
    "three bits, the last row cut": (905, 60, 3, 8, 1.0),
    "four bits, scattered": (1500, 40, 4, 16, 0.0),
    "eight bits, several groups": (6000, 80, 8, 64, 2.0),
    "every coordinate": (100, 100, 1, 256, 0.0),
    "several pages": (12000, 1500, 1, 1024, 0.3),
    "nothing": (40, 0, 8, 256, 0.0),
}


def shaped(seed, coordinates, sent, bits, block, cluster):
    """An update whose rows and columns cluster the more the higher `cluster` is."""
    rng = np.random.default_rng(seed)
    rows = -(-coordinates // 16)
    heavy = np.exp(cluster * (rng.standard_normal((rows, 1)) + rng.standard_normal((1, 16)))) * rng.random((rows, 16))
    indices = np.sort(np.argsort(-heavy.ravel()[:coordinates], kind="stable")[:sent])
    signs = (
        rng.choice([-1, 1], (rows, 1)) * rng.choice([-1, 1], (1, 16)) * np.where(rng.random((rows, 16)) < 0.06, -1, 1)
    )
    if not cluster:
        signs = rng.choice([-1, 1], (rows, 16))
    values = np.round(signs.ravel()[indices] * rng.uniform(0.6 if bits in {2, 3} else 0.1, 1, sent), 4)
    return sparse.in_grid(
        coordinates=coordinates,
        indices=indices.astype(np.uint32),
        values=values.astype(np.float32),
        bits=bits,
        block=block,
    )


def make_updates_2():
    made = {name: shaped(seed, *shape) for seed, (name, shape) in enumerate(SHAPES.items())}
    return [
        {"name": name, "hex": data.hex(), **read_update(data, SHAPES[name][0], max_sent=2000)}
        for name, data in made.items()
    ]


def make_contributions_2():
    out = []
    for seed, name in enumerate(NAMES):
        one = small_update(seed)
        blob = contribution.pack(card(one.update, name), one.data, KEYS[name])
        read = read_update(one.data, P)
        out.append(
            {"name": name, "hex": blob.hex(), "digest": digest(blob), "card": card(one.update, name).to_json(), **read}
        )
    return out


def make_merges():
    """From the stored contributions: registers and every recipe, with equal and with other weights."""
    registers = {
        MEMBERS[one["name"]]: merging.registers_of([sent_update(one)], P) for one in read_vector("contributions")
    }
    out = {"registers": {m: merging.register_digest(r) for m, r in registers.items()}, "merges": []}
    for recipe in ["contributor-mean/1", "member-mean/1", "sqrt-mean/1"]:
        for weights in ((1, 1, 1), (5, 2, 1)):
            by_member = dict(zip(registers, weights, strict=True))
            view = recipes.merge(recipe, registers, by_member, 3, P)
            out["merges"].append(
                {
                    "recipe": recipe,
                    "weights": by_member,
                    "values": view.astype("<f4").tobytes().hex(),
                    "model": merging.model_digest(view),
                }
            )
    return out


def sent_update(one):
    return sparse.SparseUpdate(
        coordinates=P,
        indices=np.array(one["indices"], dtype=np.uint32),
        units=np.array(one["units"]),
        bits=8,
        block=256,
    )


def make_adapter():
    return [
        {
            "seed": digest(b"seed"),
            "module": name,
            "rank": rank,
            "width": width,
            "values": adapters.frozen_a(digest(b"seed"), name, rank, width).astype("<f4").tobytes().hex(),
        }
        for name, rank, width in (("model.layers.0.self_attn.q_proj", 2, 16), ("model.é", 3, 5))
    ]


def make_rows():
    rows = [
        row.text_row("Snow in March.\n"),
        row.pair_row("2 + 2 =", " 4"),
        row.chat_row([row.Message(role="user", content="Grüß dich"), row.Message(role="assistant", content="Hallo")]),
    ]
    leaves = [splitting.commitment_leaf(SALT, one.canonical()) for one in rows]
    return {
        "salt": SALT.hex(),
        "root": digest_root(leaves),
        "rows": [
            {
                "canonical": one.canonical().decode(),
                "digest": one.digest(),
                "split_key": one.split_key(),
                "held_out_from_ppm": next(p for p in range(0, 10**6, 500) if part(one, p) == "held_out"),
            }
            for one in rows
        ],
    }


def part(one, ppm):
    return splitting.part_of(one.split_key(), ppm)


def prints_of(feed):
    head = checkpoint.parse(feed[0]["note"].encode())
    return fingerprints.fingerprints(SALT[:8], [(head.member, head.size, head.root)])


def make_wire():
    bound = binding.verify(binding.make(KEYS["ada"], KEYS["bea"]))
    feed = read_vector("feed")
    page = wire.page_of(
        feed[2]["note"].encode(),
        [
            wire.WireRecord(line=feed[0]["line"].encode(), salt=SALT, data=feed[0]["body"].encode()),
            wire.WireRecord(line=feed[1]["line"].encode(), salt=None, data=None),
        ],
    )
    requests = [
        wire.HeadsRequest(collective=COLLECTIVE, binding=bound),
        wire.FeedRequest(collective=COLLECTIVE, binding=bound, member=MEMBERS["ada"], start=7),
        wire.BlobRequest(collective=COLLECTIVE, binding=bound, digest=digest(b"blob"), offset=1024),
        wire.ChangesRequest(collective=COLLECTIVE, binding=bound, since="t-1", have=prints_of(feed)),
        wire.PartRequest(collective=COLLECTIVE, binding=bound, digest=digest(b"blob"), offset=1024, length=512),
        wire.HaveRequest(collective=COLLECTIVE, binding=bound, digests=(digest(b"blob"), digest(b"another"))),
        wire.RangeRequest(collective=COLLECTIVE, binding=bound, member=MEMBERS["ada"], start=7, attach=4096),
        wire.FollowRequest(collective=COLLECTIVE, binding=bound, start=7, attach=4096),
    ]
    heads = wire.HeadsAnswer(binding=bound, notes=(feed[0]["note"].encode(),))
    changes = wire.ChangesAnswer(binding=bound, token="t-2", notes=(feed[1]["note"].encode(),))
    return {
        "topic": wire.topic(COLLECTIVE),
        "protocols": [wire.HEADS, wire.FEED, wire.BLOB, wire.CHANGES, wire.PART, wire.HAVE, wire.RANGE, wire.FOLLOW],
        "binding": bound.to_json(),
        "requests": [wire.frame(request.to_bytes()).hex() for request in requests],
        "heads": wire.answer(heads.to_bytes()).hex(),
        "changes": wire.answer(changes.to_bytes()).hex(),
        "have": wire.answer(wire.bitmap([i % 3 == 0 for i in range(10)])).hex(),
        "page": wire.answer(page.to_bytes()).hex(),
        "attached": wire.attached([b"blob", b""]).hex(),
        "go_on": wire.go_on(9).hex(),
        "blob": wire.answer(wire.blob_size(123456)).hex(),
        "refusal": wire.refusal("not-a-member").hex(),
    }


MADE_ANEW = {
    "names": make_names,
    "charter": make_charter,
    "feed": make_feed,
    "updates": make_stored_updates,
    "updates2": make_updates_2,
    "contributions2": make_contributions_2,
    "merges": make_merges,
    "adapter": make_adapter,
    "rows": make_rows,
    "wire": make_wire,
}


def read_vector(name):
    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"))


@pytest.fixture(autouse=True)
def written(update_golden, request):
    """With `--update-golden`, the vectors are written before the first test looks at them."""
    if update_golden and not getattr(request.config, "_vectors_written", False):
        for name, make in MADE_ANEW.items():
            text = json.dumps(make(), indent=1, sort_keys=True, ensure_ascii=False)
            (VECTORS / f"{name}.json").write_text(text + "\n", "utf-8")
        request.config._vectors_written = True


@pytest.mark.parametrize("name", MADE_ANEW)
def test_the_code_still_makes_the_same_bytes(name):
    assert json.loads(json.dumps(MADE_ANEW[name]())) == read_vector(name)


def test_every_stored_update_is_read_the_same_by_a_second_reader():
    vector = read_vector("updates")
    for one in vector["read"]:
        data = bytes.fromhex(one["hex"])
        assert second_reader.sparse(data) == (one["indices"], one["units"]), one["name"]
        assert read_update(data, one["coordinates"]).items() <= one.items(), one["name"]


def test_every_update_of_version_2_is_read_the_same_by_a_second_reader():
    for one in read_vector("updates2"):
        assert second_reader.sparse(bytes.fromhex(one["hex"])) == (one["indices"], one["units"]), one["name"]


def test_the_vectors_of_version_2_show_every_choice_a_writer_has():
    """Both codings of signs, every number of bits, more than one group, more than one page."""
    found = [
        sparse.read(bytes.fromhex(v["hex"]), coordinates=v["coordinates"], max_sent=2000)
        for v in read_vector("updates2")
    ]
    assert {p.grid.signs for p in found} == {True, False}
    assert {p.values.bits for p in found} == set(sparse.BITS)
    assert len({p.grid.group for p in found}) > 1
    assert any(len(np.unique(p.positions // 16)) > p.grid.page for p in found)
    assert any(p.values.base > 1 for p in found)
    assert any(p.values.rice for p in found)


def test_every_wrong_update_is_refused():
    for one in read_vector("updates")["refused"]:
        with pytest.raises(FishernetError):
            sparse.decode(bytes.fromhex(one["hex"]), coordinates=one["coordinates"], max_sent=10)


@pytest.mark.parametrize("name", ["contributions", "contributions2"])
def test_stored_contributions_are_read_the_same_by_a_second_reader(name):
    for one in read_vector(name):
        blob = bytes.fromhex(one["hex"])
        got = contribution.unpack(blob, max_bytes=1 << 20)
        assert (got.card.to_json(), got.update) == second_reader.contribution(blob)
        assert got.card.to_json() == one["card"]
        assert got.digest == one["digest"] == second_reader.sha256(blob)
        assert second_reader.sparse(got.update) == (one["indices"], one["units"])
        gate = charter().gate.norm_cap_micro
        verdict = updates.check(got, coordinates=P, value_bits=8, density_ppm=250_000, norm_cap_micro=gate)
        assert isinstance(verdict, updates.Accept)


def test_packing_a_stored_contribution_again_gives_its_bytes():
    for one in read_vector("contributions2"):
        got = contribution.unpack(bytes.fromhex(one["hex"]), max_bytes=1 << 20)
        assert contribution.pack(got.card, got.update, KEYS[one["name"]]).hex() == one["hex"]
        changed = dataclasses.replace(got.card, number=2)
        assert contribution.pack(changed, got.update, KEYS[one["name"]]).hex() != one["hex"]


def test_merges_are_computed_the_same_by_a_second_reader():
    vector = read_vector("merges")
    sent = {MEMBERS[one["name"]]: [(one["indices"], one["units"])] for one in read_vector("contributions")}
    for member, many in sent.items():
        assert second_reader.register_digest(many, P) == vector["registers"][member]
    for one in vector["merges"]:
        values = second_reader.merge(one["recipe"], sent, one["weights"], P)
        assert b"".join(struct.pack("<f", value) for value in values).hex() == one["values"]
        assert second_reader.model_digest(values) == one["model"]


def test_names_are_read_the_same_by_a_second_reader():
    vector = read_vector("names")
    for one in vector["canonical"]:
        assert second_reader.canonical(one["value"]).hex() == one["hex"]
    for one in vector["members"]:
        assert second_reader.peer_id(one["member"]) == one["peer"]
        assert bytes(keys.SigningKey(bytes.fromhex(one["seed"])).verify_key).hex() == one["member"]
    sign = vector["signature"]
    second_reader.check(MEMBERS["ada"], sign["domain"], sign["message"].encode(), bytes.fromhex(sign["hex"]))
    for one in vector["trees"]:
        leaves = [second_reader.leaf(bytes([i])) for i in range(one["leaves"])]
        assert second_reader.tree(leaves).hex() == one["root"]


def test_charter_names_are_computed_the_same_by_a_second_reader():
    vector = read_vector("charter")
    whole = vector["charter"]
    assert second_reader.sha256(second_reader.canonical(whole)) == vector["collective"] == digest_of(whole)
    epoch = {key: whole[key] for key in ("adapter", "base", "epoch")}
    assert second_reader.sha256(second_reader.canonical(epoch)) == vector["epoch"]


def test_a_feed_is_verified_by_a_second_reader():
    prev, leaves = "0" * 64, []
    for seq, one in enumerate(read_vector("feed")):
        line = json.loads(one["line"])
        header = second_reader.canonical(line["e"])
        assert second_reader.canonical(line).decode() == one["line"]
        second_reader.check(line["e"]["member"], "entry", header, base64.b64decode(line["s"]))
        assert (line["e"]["seq"], line["e"]["prev"]) == (seq, prev)
        assert line["e"]["body"] == second_reader.sha256(bytes.fromhex(one["salt"]) + one["body"].encode())
        assert one["event"] == second_reader.sha256(header)
        prev = second_reader.leaf(one["line"].encode()).hex()
        leaves.append(bytes.fromhex(prev))
        assert prev == one["leaf"]
        text, signature = one["note"].split("\n\n")
        origin, size, root = text.split("\n")
        assert origin == f"fishernet/{COLLECTIVE}/{MEMBERS['ada']}"
        assert (int(size), base64.b64decode(root)) == (seq + 1, second_reader.tree(leaves))
        mark = base64.b64decode(signature.split(" ")[2])
        public = bytes.fromhex(MEMBERS["ada"])
        assert mark[:4].hex() == second_reader.sha256(origin.encode() + b"\n\x01" + public)[:8]
        second_reader.VerifyKey(public).verify(text.encode() + b"\n", mark[4:])
        assert checkpoint.parse(one["note"].encode()).size == seq + 1
        assert entry.parse(one["line"].encode()).event == one["event"]


def test_the_frozen_a_is_drawn_the_same_by_a_second_reader():
    for one in read_vector("adapter"):
        values = second_reader.frozen_a(one["seed"], one["module"], one["rank"], one["width"])
        assert b"".join(struct.pack("<f", value) for value in values).hex() == one["values"]


def test_rows_are_committed_to_the_same_by_a_second_reader():
    vector = read_vector("rows")
    leaves = [second_reader.leaf(bytes.fromhex(vector["salt"]) + one["canonical"].encode()) for one in vector["rows"]]
    assert second_reader.tree(leaves).hex() == vector["root"]
    openings = [
        vector["rows"][0]["digest"],
        *(second_reader.sha256(second_reader.canonical(opening)) for opening in ("2 + 2 =", [["user", "Grüß dich"]])),
    ]
    for one, key in zip(vector["rows"], openings, strict=True):
        assert one["digest"] == second_reader.sha256(one["canonical"].encode())
        assert one["split_key"] == key
        drawn = bytes.fromhex(second_reader.sha256(b"fishernet/held-out/v1\x00" + bytes.fromhex(key)))[:8]
        needed = int.from_bytes(drawn, "big") * 10**6 // 2**64 + 1
        assert one["held_out_from_ppm"] - 500 < needed <= one["held_out_from_ppm"]


def test_frames_are_read_the_same_by_a_second_reader():
    vector = read_vector("wire")
    bound = vector["binding"]
    statement = second_reader.canonical({key: bound[key] for key in ("member", "peer", "transport")})
    second_reader.check(bound["member"], "peer-binding", statement, base64.b64decode(bound["by_member"]))
    second_reader.check(bound["transport"], "peer-binding", statement, base64.b64decode(bound["by_transport"]))
    assert bound["peer"] == second_reader.peer_id(bound["transport"])
    for data, ask in zip(
        vector["requests"], ("heads", "feed", "blob", "changes", "part", "have", "range", "follow"), strict=True
    ):
        (payload,) = second_reader.frames(bytes.fromhex(data))
        request = json.loads(payload)
        assert second_reader.canonical(request) == payload
        assert (request["v"], request["ask"], request["binding"]) == (1, ask, bound)
        assert wire.parse_request(payload).to_bytes() == payload
    feed = read_vector("feed")
    (heads,) = second_reader.frames(bytes.fromhex(vector["heads"]))
    assert (heads[0], second_reader.frames(heads[1:])) == (
        0,
        [second_reader.canonical(bound), feed[0]["note"].encode()],
    )
    (changes,) = second_reader.frames(bytes.fromhex(vector["changes"]))
    assert second_reader.frames(changes[1:]) == [second_reader.canonical(bound), b"t-2", feed[1]["note"].encode()]
    assert second_reader.frames(bytes.fromhex(vector["have"])) == [b"\x00" + bytes([0b01001001, 0b10])]
    asked = [json.loads(second_reader.frames(bytes.fromhex(data))[0]) for data in vector["requests"]]
    assert base64.b64decode(asked[5]["digests"]) == b"".join(
        bytes.fromhex(second_reader.sha256(name)) for name in (b"blob", b"another")
    )
    origin, size, root, *_ = feed[0]["note"].split("\n")
    assert base64.b64decode(asked[3]["have"]) == second_reader.fingerprints(
        SALT[:8], [(origin.rpartition("/")[2], int(size), base64.b64decode(root))]
    )
    (page,) = second_reader.frames(bytes.fromhex(vector["page"]))
    note, whole, erased = second_reader.frames(page[1:])
    lines = [one["line"].encode() for one in feed]
    assert note == feed[2]["note"].encode()
    assert whole == b"\x01" + struct.pack(">I", len(lines[0])) + lines[0] + SALT + feed[0]["body"].encode()
    assert erased == b"\x00" + struct.pack(">I", len(lines[1])) + lines[1]
    (attached,) = second_reader.frames(bytes.fromhex(vector["attached"]))
    assert second_reader.frames(attached) == [b"blob", b""]
    assert bytes.fromhex(vector["go_on"]) == struct.pack(">Q", 9)
    assert second_reader.frames(bytes.fromhex(vector["blob"])) == [b"\x00" + struct.pack(">Q", 123456)]
    assert second_reader.frames(bytes.fromhex(vector["refusal"])) == [b"\x01not-a-member"]
