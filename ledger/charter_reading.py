"""Reads a charter strictly: closed key sets, ranges, valid keys of members, one canonical form.

Knows no state and no amendment: it is asked for the genesis, and again for what each decided change makes of a charter. Every
limit on what a charter may say stands here. Law: `parse(c.to_json()) == c` for every charter that was read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ledger.charter import VERSION, Adapter, Base, Charter, Former, Gate, Member, Release, Update, Witness
from ledger.errors import BadCharter
from protocol.addresses import split_relay
from protocol.canon import MAX_INT, Json, encode
from protocol.ids import Digest, MemberId, as_hex
from protocol.keys import admit

ROLES: Final = ("contributor", "endorser", "auditor")
# With one earlier key each these are as many feeds as a decision lists; its cut takes 0.4 KB of a body a seat.
MAX_MEMBERS: Final = 512
MAX_COORDINATES: Final = 1 << 28
MAX_WAS: Final = 64
MAX_RELAYS: Final = 8
VALUE_BITS: Final = (1, 2, 3, 4, 8)  # those of the sparse update, whose module needs numpy
LEFT: Final = ("rotation", "recovery")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}\Z")
_TARGET = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_KEYS: Final = {
    *("v", "name", "nonce", "base", "adapter", "update", "recipe", "gate", "release", "witness", "members", "faults"),
    "epoch",
}


def parse(value: Json) -> Charter:
    """Read a charter strictly: closed key sets, ranges, valid member keys, members sorted by id.

    Raises:
        BadCharter: anything else (Malformed or BadKey where a digest, a member's key or a relay is the cause).
    """
    named = (
        {"relays"} if isinstance(value, dict) and "relays" in value else set()
    )  # a charter without any has no such key
    whole = _object(value, "charter", _KEYS | named)
    if whole["v"] != VERSION or whole["v"] is True:
        raise BadCharter(f"couldn't read charter: version {whole['v']!r} is not {VERSION}")
    base = _object(whole["base"], "base", {"name", "digest"})
    adapter = _object(whole["adapter"], "adapter", {"rank", "alpha", "targets", "seed", "coordinates"})
    update = _object(whole["update"], "update", {"density_ppm", "value_bits", "block"})
    gate = _object(whole["gate"], "gate", {"max_blob_bytes", "norm_cap_micro", "tolerance_centinats", "held_out_min"})
    release = _object(whole["release"], "release", {"wait_for", "patience_ms", "timeout_ms"})
    witness = _object(whole["witness"], "witness", {"cosignatures"})
    targets = adapter["targets"]
    if not (isinstance(targets, list) and 1 <= len(targets) <= 64):
        raise BadCharter("couldn't read charter: adapter.targets is a list of 1 to 64 module names")
    names = tuple(_target(t) for t in targets)
    if len(set(names)) != len(names):
        raise BadCharter("couldn't read charter: adapter.targets names a module twice")
    bits = _int(update, "value_bits", min(VALUE_BITS), max(VALUE_BITS))
    block = _int(update, "block", 16, 4096)
    if bits not in VALUE_BITS or block & (block - 1):
        raise BadCharter("couldn't read charter: value_bits is 1, 2, 3, 4 or 8, block a power of two")
    members = _members(whole["members"])
    charter = Charter(
        name=_text(whole["name"], "name"),
        nonce=Digest(as_hex(whole["nonce"], "nonce")),
        base=Base(name=_text(base["name"], "base.name"), digest=Digest(as_hex(base["digest"], "base.digest"))),
        adapter=Adapter(
            rank=_int(adapter, "rank", 1, 1024),
            alpha=_int(adapter, "alpha", 1, 1 << 16),
            targets=names,
            seed=Digest(as_hex(adapter["seed"], "adapter.seed")),
            coordinates=_int(adapter, "coordinates", 1, MAX_COORDINATES),
        ),
        update=Update(density_ppm=_int(update, "density_ppm", 1, 1_000_000), value_bits=bits, block=block),
        recipe=_text(whole["recipe"], "recipe"),
        gate=Gate(
            max_blob_bytes=_int(gate, "max_blob_bytes", 1024, 1 << 30),
            norm_cap_micro=_int(gate, "norm_cap_micro", 1, 1 << 50),
            tolerance_centinats=_int(gate, "tolerance_centinats", 0, 10_000),
            held_out_min=_int(gate, "held_out_min", 0, 1_000_000),
        ),
        release=Release(
            wait_for=_int(release, "wait_for", 1, MAX_MEMBERS),
            patience_ms=_int(release, "patience_ms", 0, 1 << 40),
            timeout_ms=_int(release, "timeout_ms", 100, 1 << 40),
        ),
        members=members,
        faults=_int(whole, "faults", 0, MAX_MEMBERS),
        epoch=_int(whole, "epoch", 0, 1 << 40),
        witness=Witness(cosignatures=_int(witness, "cosignatures", 0, MAX_MEMBERS)),
        relays=_relays(whole["relays"]) if named else (),
    )
    voters = len(charter.voters)
    if voters == 0:
        raise BadCharter("couldn't read charter: nobody votes")
    if charter.quorum > voters:
        raise BadCharter(f"couldn't read charter: {voters} voters can't reach a quorum of {charter.quorum}")
    others = len({m.organisation for m in members}) - 1
    if charter.witness.cosignatures > others:
        raise BadCharter(
            f"couldn't read charter: {charter.witness.cosignatures} cosignatures can't come from {others} other organisations"
        )
    return charter


def _object(value: Json, what: str, keys: set[str]) -> dict[str, Json]:
    if not isinstance(value, dict) or set(value) != keys:
        got = sorted(set(value) ^ keys) if isinstance(value, dict) else type(value).__name__
        raise BadCharter(f"couldn't read charter: {what} has other keys than expected ({got})")
    return value


def _int(value: Mapping[str, Json], key: str, low: int, high: int) -> int:
    number = value[key]
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise BadCharter(f"couldn't read charter: {key} is an integer from {low} to {high}")
    return number


def _text(value: Json, what: str) -> str:
    if not (isinstance(value, str) and _NAME.match(value)):
        raise BadCharter(f"couldn't read charter: {what} is a text of 1 to 64 characters")
    encode(value)  # NFC, no lone surrogates: a charter that exists has a digest
    return value


def _target(value: Json) -> str:
    if not (isinstance(value, str) and _TARGET.match(value)):
        raise BadCharter("couldn't read charter: adapter.targets names modules")
    return value


def _relays(value: Json) -> tuple[str, ...]:
    if not (isinstance(value, list) and 1 <= len(value) <= MAX_RELAYS):
        raise BadCharter(f"couldn't read charter: relays is a list of 1 to {MAX_RELAYS} addresses, or left out")
    relays = tuple(str(relay) for relay in value)
    if len({split_relay(relay)[1] for relay in value}) != len(relays):
        raise BadCharter("couldn't read charter: relays names a peer twice")
    return relays


def read_member(value: Json) -> Member:
    """Read one seat as a charter states it (raises BadCharter, Malformed, BadKey)."""
    seat = _object(value, "member", {"id", "name", "organisation", "role", "weight", "was"})
    role = seat["role"]
    if role not in ROLES:
        raise BadCharter(f"couldn't read charter: role {role!r} is none of {', '.join(ROLES)}")
    id_ = MemberId(as_hex(seat["id"], "member id"))
    admit(id_)
    return Member(
        id=id_,
        name=_text(seat["name"], "member name"),
        role=str(role),
        weight=_int(seat, "weight", 1, 1000),
        organisation=_text(seat["organisation"], "organisation"),
        was=_was(seat["was"]),
    )


def _was(value: Json) -> tuple[Former, ...]:
    if not (isinstance(value, list) and len(value) <= MAX_WAS):
        raise BadCharter(f"couldn't read charter: `was` is a list of at most {MAX_WAS} earlier keys")
    found = []
    for row in value:
        if not (isinstance(row, list) and len(row) == 3 and row[2] in LEFT):
            raise BadCharter(
                "couldn't read charter: an earlier key is a row of member id, size and rotation or recovery"
            )
        id_ = MemberId(as_hex(row[0], "member id"))
        admit(id_)
        found.append(Former(id=id_, size=_int({"size": row[1]}, "size", 0, MAX_INT), left=str(row[2])))
    return tuple(found)


def _members(value: Json) -> tuple[Member, ...]:
    if not (isinstance(value, list) and 1 <= len(value) <= MAX_MEMBERS):
        raise BadCharter(f"couldn't read charter: 1 to {MAX_MEMBERS} members are expected")
    members = tuple(read_member(m) for m in value)
    ids = [m.id for m in members]
    if ids != sorted(set(ids)):
        raise BadCharter("couldn't read charter: members are sorted by id, each once")
    keys = [*ids, *(w.id for m in members for w in m.was)]
    if len(keys) != len(set(keys)):
        raise BadCharter("couldn't read charter: a key has, or had, one seat only")
    return members
