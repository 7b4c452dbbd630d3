"""The parsers of `ledger`: entries, pages, checkpoints, cosignatures, forks, proofs, event bodies, charters, decisions, bundles.

And the fold and the grants' book over whatever a member may sign.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import random
from collections.abc import Iterator
from functools import cache

from paper import Paper, charter_of, key, witness_key

from ledger import (
    amending,
    bundle,
    charter_reading,
    checkpoint,
    cosignature,
    cuts,
    entry,
    events,
    forgetting,
    forks,
    pages,
    proofs,
    succession,
)
from ledger.access import egress
from ledger.access.book import Book
from ledger.charter import Charter
from ledger.entry import Body, Record
from ledger.forks import Fork
from node.syncing.exchange import from_wire, to_wire
from protocol import canon, keys, wire
from protocol.canon import Json
from protocol.errors import Malformed, Refused
from protocol.ids import EventId, digest
from protocol.merkle import leaf_hash, root_of
from protocol.text import to_base64
from tests.fuzz.harness import Target, mutated_json
from tests.ledger.test_events import ONE_OF_EACH

ADA, BOB = key("ada"), key("bob")
NOT_JSON = (Refused, KeyError, TypeError, AttributeError, ValueError, RecursionError)


@cache
def paper() -> Paper:
    """A collective of two with a decision behind it, and what two members say in one round."""
    made = Paper.found(["ada", "bob"])
    for member in made.members.values():
        member.bind_keys()
    made.release()
    made.cosign_all()
    return made


def ada_feed() -> list[Record]:
    return paper().members["ada"].feed


def head(size: int | None = None) -> checkpoint.Head:
    member = paper().members["ada"]
    lines = [record.entry.line for record in member.feed[:size]]
    root = root_of([leaf_hash(line) for line in lines]).hex()
    return checkpoint.make(ADA, member.collective, member.id, len(lines), root)


# -- entries and pages ---------------------------------------------------------------------------------------------------------
def entry_signed(_rng: random.Random, data: bytes) -> bytes:
    """An entry of any header under a good signature of ada."""
    try:
        header = canon.decode_object(data)["e"]
        signature = keys.sign(ADA, entry.DOMAIN, canon.encode(header))
        return canon.encode({"e": header, "s": to_base64(signature)})
    except NOT_JSON:
        return data


def page(data: bytes) -> None:
    """A page of a feed as it comes over the wire: the frame, the entries, the chain."""
    parsed = wire.parse_page(data)
    member = paper().members["ada"]
    pages.read(member.collective, member.id, from_wire(parsed.records))
    checkpoint.parse(parsed.note)


def wired() -> Iterator[bytes]:
    yield wire.page_of(head().note, to_wire(ada_feed())).to_bytes()
    yield wire.page_of(head(2).note, to_wire(ada_feed()[:2])).to_bytes()
    yield wire.page_of(head().note, to_wire(paper().members["bob"].feed)).to_bytes()


# -- signed texts --------------------------------------------------------------------------------------------------------------
def note_signed(_rng: random.Random, data: bytes) -> bytes:
    """A checkpoint of any three lines under a good signature of ada."""
    said, separator, rest = data.partition(b"\n\n")
    if not separator or b" " not in rest:
        return data
    with contextlib.suppress(UnicodeDecodeError, ValueError):
        member = paper().members["ada"]
        name = checkpoint.origin(member.collective, member.id)
        signature = bytes(ADA.sign(said + b"\n").signature)
        mark = to_base64(checkpoint.key_id(name, member.id) + signature)
        return said + b"\n\n" + f"\u2014 {name} {mark}\n".encode()
    return data


@cache
def witnesses() -> tuple[cosignature.WitnessKeys, ...]:
    public = bytes(witness_key("bob").verify_key).hex()
    bob = paper().members["bob"]
    return (cosignature.WitnessKeys(collective=bob.collective, witness=bob.id, public=public, post_quantum=None),)


def cosigned() -> Iterator[bytes]:
    yield head().note
    bob = paper().members["bob"]
    given = [
        w for r in bob.feed if r.entry.header.type == "head.witnessed" and r.body for w in [r.body.value()["heads"]]
    ]
    for rows in given:
        for row in rows:
            member, size, root, time, signature, _ = row
            made = cosignature.Cosignature(
                collective=bob.collective, witness=bob.id, member=member, size=size, root=root, time=time,
                signature=base64.b64decode(signature), post_quantum=None,
            )  # fmt: skip
            signed = checkpoint.make(ADA, bob.collective, member, size, root)
            yield cosignature.cosigned_note(signed, [(made, witnesses()[0])])


def forked(data: bytes) -> Fork:
    found = forks.decode(data)
    forks.verify(found, [bytes.fromhex(record.entry.leaf) for record in ada_feed()])
    return found


def fork_proofs() -> Iterator[bytes]:
    member = paper().members["ada"]
    first = ada_feed()[1]
    other = entry.make(
        ADA, collective=member.collective, seq=1, prev=first.entry.header.prev, ts=9, type="node.alive", seen=(), body={},
        salt=bytes(16),
    )  # fmt: skip
    torn = entry.make(
        ADA, collective=member.collective, seq=2, prev=digest(b"torn"), ts=9, type="node.alive", seen=(), body={},
        salt=bytes(16),
    )  # fmt: skip
    wrong = checkpoint.make(ADA, member.collective, member.id, 2, digest(b"wrong"))
    lines = tuple(record.entry.line for record in ada_feed()[:2])
    who = {"collective": member.collective, "member": member.id}
    for fork in (
        Fork(kind="entries", at=1, evidence=(first.entry.line, other.entry.line), **who),
        Fork(kind="chain", at=2, evidence=(first.entry.line, torn.entry.line), **who),
        Fork(kind="heads", at=2, evidence=(head(2).note, wrong.note), **who),
        Fork(kind="root", at=2, evidence=(wrong.note, *lines), **who),
        Fork(kind="root", at=2, evidence=(wrong.note, lines[1]), **who),
    ):
        yield forks.encode(fork)


def fork_signed(rng: random.Random, data: bytes) -> bytes:
    """Evidence mutated, then signed again by the accused."""
    try:
        value = canon.decode_object(data, max_bytes=1 << 20)
        evidence = [str(item).encode() for item in value["evidence"]]
        at = rng.randrange(len(evidence))
        line = evidence[at]
        bent = (
            note_signed(rng, line)
            if line.startswith(b"fishernet")
            else entry_signed(rng, mutated_json(rng, line, line))
        )
        evidence[at] = bent
        return canon.encode({**value, "evidence": [item.decode() for item in evidence]}, max_bytes=1 << 20)
    except NOT_JSON:
        return data


def proven(data: bytes) -> proofs.Proof:
    found = proofs.decode(data)
    with contextlib.suppress(Refused):
        proofs.verify(found)
    return found


def proof_files() -> Iterator[bytes]:
    lines = [record.entry.line for record in ada_feed()[:1]]
    yield proofs.encode(proofs.Proof(index=0, line=lines[0], path=(), note=head(1).note))
    yield proofs.encode(proofs.Proof(index=5, line=lines[0], path=(bytes(32), b"\1" * 32), note=head().note))


# -- bodies and objects --------------------------------------------------------------------------------------------------------
def body(data: bytes) -> list[Json]:
    """An event body of any type: [type, body]."""
    value = canon.decode(data)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        raise Malformed("couldn't read event: a type and a body are expected")
    found = events.parse(value[0], value[1])
    return [found.TYPE, found.to_json()]


def bodies() -> Iterator[bytes]:
    for event in ONE_OF_EACH:
        yield canon.encode([event.TYPE, event.to_json()], max_bytes=1 << 20)
    for member in paper().members.values():
        for record in member.feed:
            if record.body is not None:
                yield canon.encode([record.entry.header.type, record.body.value()], max_bytes=1 << 20)


def folded(data: bytes) -> None:
    """What a member may write into its feed, one event or a few: the folds, books and votes of others go on, whatever it says."""
    said = canon.decode(data)
    pairs = said if isinstance(said, list) and said and isinstance(said[0], list) else [said]
    if len(pairs) > 6:
        raise Malformed("couldn't read events: six at most")
    bob, book = copy.deepcopy(settled())
    prev, seq = ada_feed()[-1].entry.leaf, len(ada_feed())
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], dict)):
            raise Malformed("couldn't read event: a type and a body are expected")
        record = entry.make(
            ADA,
            collective=bob.collective,
            seq=seq,
            prev=prev,
            ts=5,
            type=pair[0],
            seen=(),
            body=pair[1],
            salt=bytes(16),
        )
        bob.fold.apply(record)
        book.apply(record)
        prev, seq = record.entry.leaf, seq + 1
    fold, ada = bob.fold, paper().members["ada"].id
    for contribution in fold.pending():
        fold.fate(contribution)
    fold.fork_known(ada)
    fold.doubted()
    assert fold.peers is not None
    for turn in range(4):
        bob.step(10_000 * turn)


@cache
def settled():
    """An honest member and a book that hold everything but what is tried."""
    book = Book()
    for member in paper().members.values():
        book.apply_all(member.feed)
    return paper().members["bob"], book


def turns() -> Iterator[bytes]:
    """Bodies one by one, and some that only matter together."""
    yield from bodies()
    fold = paper().members["ada"].fold
    last = [r for r in ada_feed() if r.entry.header.type == "release.proposed" and r.body is not None]
    for record in last or ada_feed():
        if record.body is not None:
            kind, value = record.entry.header.type, record.body.value()
            later: Json = {**value, "height": fold.height} if "height" in value else value
            vote: Json = ["vote.accept", {"height": fold.height, "attempt": 0, "digest": digest(b"x")}]
            yield canon.encode([[kind, later], vote, ["node.alive", {}]], max_bytes=1 << 20)
    published: Json = {
        "epoch": fold.charter.epoch_id, "number": 2, "blob": digest(b"b"), "size": 9, "run": "r",
    }  # fmt: skip
    verdict: Json = {
        "height": fold.height, "candidate": digest(b"c"), "rows": 1, "versus_base": 1, "versus_parent": None, "objections": [],
    }  # fmt: skip
    yield canon.encode([["contribution.published", published], ["gate.verdict", verdict]])


def changed(data: bytes) -> None:
    """A change of the charter as any member may ask for it."""
    amending.amended(charter_of(["ada", "bob"]), object_of(data))


def changes() -> Iterator[bytes]:
    member = charter_of(["ada", "bob"]).members[0].to_json()
    d = digest(b"x")
    for change in (
        {"op": "add", "member": {**member, "id": keys.member_id(key("cyd")), "name": "cyd"}},
        {"op": "role", "member": {**member, "role": "auditor"}},
        {"op": "remove", "id": member["id"]},
        {"op": "set", "field": "faults", "value": 0},
        {"op": "set", "field": "gate", "value": charter_of(["ada"]).to_json()["gate"]},
        {"op": "forget", "contributions": [d], "deadline": 5},
        {"op": "succeed", "old": member["id"], "new": d, "size": 1, "leaf": d, "statement": {}},
    ):
        yield canon.encode(change)


def chartered(data: bytes) -> Charter:
    return charter_reading.parse(canon.decode(data, max_bytes=1 << 20))


def decided(data: bytes) -> Json:
    return cuts.parse(canon.decode(data, max_bytes=1 << 20)).to_json()


def decisions() -> Iterator[bytes]:
    cut = paper().members["ada"].fold.cut
    assert cut is not None
    yield canon.encode(cut.to_json(), max_bytes=1 << 20)
    change = {"op": "remove", "id": digest(b"x")}
    yield canon.encode(cuts.Amendment(place=cut.place, proposal=EventId(digest(b"p")), change=change).to_json())


def object_of(data: bytes) -> dict[str, Json]:
    return canon.decode_object(data, max_bytes=1 << 20)


def succeeded(data: bytes) -> Json:
    said = succession.read(object_of(data))
    return {**succession._said(said), "by_new": to_base64(said.by_new), "by_owner": to_base64(said.by_owner)}


def successions() -> Iterator[bytes]:
    member, new = paper().members["ada"], key("ada's next")
    blank = {
        "collective": member.collective, "kind": "rotation", "leaf": ada_feed()[-1].entry.leaf, "new": keys.member_id(new),
        "old": member.id, "recovery": None, "size": len(ada_feed()), "by_new": "", "by_owner": "",
    }  # fmt: skip
    yield succession_signed(random.Random(0), canon.encode(blank))


def succession_signed(_rng: random.Random, data: bytes) -> bytes:
    try:
        value = canon.decode_object(data)
        bare = {name: content for name, content in value.items() if not name.startswith("by_")}
        message, new = canon.encode(bare), key("ada's next")
        by = {
            "by_new": keys.sign(new, succession.DOMAIN, message),
            "by_owner": keys.sign(ADA, succession.DOMAIN, message),
        }
        return canon.encode({**value, **{name: to_base64(signature) for name, signature in by.items()}})
    except NOT_JSON:
        return data


def policies() -> Iterator[bytes]:
    numbers = dict.fromkeys(("max_bytes", "max_norm_micro", "max_epsilon_micro"), 5)
    yield canon.encode({**numbers, "modules": ["*.q_proj"], "purposes": None, "members": [digest(b"x")]})


def bundles() -> Iterator[bytes]:
    cut = paper().members["ada"].fold.cut
    assert cut is not None
    d, member = digest(b"x"), paper().members["ada"].id
    edge = {"size": 1, "root": d, "path": [d]}
    yield canon.encode(
        {
            "v": bundle.VERSION, "kind": bundle.KIND, "collective": cut.place.collective, "made": {"member": member, "ts": 5},
            "genesis": d, "asked": [d], "decisions": [{"proposal": d, "commits": [d]}], "superseded": [cut.to_json()],
            "feeds": {member: {"note": head().note.decode(), "consistency": [d], "old": edge, "new": None}},
            "entries": {d: {"line": "x", "path": [d], "body": ["00" * 16, "{}"]}}, "logs": {"old": None, "new": {}},
            "releases": [{"number": 1, "release": d, "model": d, "without": None, "twice": True}],
            "descendants": [
                {"event": d, "member": member, "number": 1, "view": None, "certainty": "contains", "why": "view", "through": [d]}
            ],
            "statement": bundle.STATEMENT, "signature": to_base64(bytes(64)),
        },
        max_bytes=1 << 20,
    )  # fmt: skip


TARGETS = (
    Target(
        name="entry",
        read=entry.parse,
        write=lambda v: v.line,
        seeds=lambda: [record.entry.line for record in ada_feed()],
        fix=entry_signed,
        json=True,
        weight=3,
    ),
    Target(
        name="body-commitment",
        read=lambda data: entry.check_body(ada_feed()[0].entry, Body(salt=data[:16], data=data[16:])),
        seeds=lambda: [ada_feed()[0].body.salt + ada_feed()[0].body.data],
        weight=0.3,
    ),
    Target(name="feed-page", read=page, seeds=wired, weight=2),
    Target(
        name="checkpoint",
        read=checkpoint.parse,
        write=lambda v: v.note,
        seeds=lambda: [head().note, head(1).note],
        fix=note_signed,
    ),
    Target(name="cosigned-note", read=lambda data: cosignature.read_note(data, witnesses()), seeds=cosigned),
    Target(name="fork", read=forked, write=forks.encode, seeds=fork_proofs, fix=fork_signed, json=True),
    Target(name="proof-file", read=proven, write=proofs.encode, seeds=proof_files, weight=2),
    Target(
        name="event", read=body, write=lambda v: canon.encode(v, max_bytes=1 << 20), seeds=bodies, json=True, weight=4
    ),
    Target(name="fold", read=folded, seeds=turns, json=True, weight=0.5),
    Target(name="amendment", read=changed, seeds=changes, json=True),
    Target(
        name="charter",
        read=chartered,
        write=lambda v: canon.encode(v.to_json(), max_bytes=1 << 20),
        seeds=lambda: [canon.encode(charter_of(["ada", "bob"]).to_json())],
        json=True,
        weight=3,
    ),
    Target(
        name="decision",
        read=decided,
        write=lambda v: canon.encode(v, max_bytes=1 << 20),
        seeds=decisions,
        json=True,
        weight=2,
    ),
    Target(
        name="succession",
        read=succeeded,
        write=canon.encode,
        seeds=successions,
        fix=succession_signed,
        json=True,
    ),
    Target(
        name="forget-change",
        read=lambda data: forgetting.read_change(object_of(data)),
        seeds=lambda: [canon.encode({"op": "forget", "contributions": [digest(b"x")], "deadline": 5})],
        json=True,
    ),
    Target(name="egress-policy", read=lambda data: egress.parse(object_of(data)), seeds=policies, json=True),
    Target(name="proof-bundle", read=bundle.decode, seeds=bundles, json=True, weight=2),
)
