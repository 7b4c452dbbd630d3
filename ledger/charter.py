"""The charter of a collective: who decides, on which base, with which recipe. A frozen value, read strictly.

Knows nothing of feeds or storage. The collective id is the digest of the genesis charter; later charters are made from it
by decided amendments (`amended`), never edited. Invariant: a `Charter` that exists is valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from ledger.errors import BadCharter
from protocol.canon import Json, encode
from protocol.ids import CollectiveId, Digest, MemberId, as_hex, digest_of
from protocol.keys import admit

VERSION: Final = 1
ROLES: Final = ("contributor", "endorser", "auditor")
MAX_MEMBERS: Final = 256
MAX_COORDINATES: Final = 1 << 28
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}\Z")
_TARGET = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model everybody starts from: a name for people, a digest for programs."""

    name: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The shape every contribution has: LoRA rank and alpha, target modules, the seed of the frozen A, B's coordinates."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    seed: Digest
    coordinates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one contribution may send: density in ppm of the coordinates, bits a value, values a scale block."""

    density_ppm: int
    value_bits: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Limits of a contribution: blob bytes, L2 norm in 1e-6, tolerated loss rise in 0.01 nats, least held-out rows."""

    max_blob_bytes: int
    norm_cap_micro: int
    tolerance_centinats: int
    held_out_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """When a proposer proposes: members waited for, patience once one contribution is pending, attempt timeout (ms)."""

    wait_for: int
    patience_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One seat. Contributors send and vote, endorsers vote, auditors read."""

    id: MemberId
    name: str
    role: str
    weight: int = 1

    @property
    def votes(self) -> bool:
        """Whether the seat counts towards the quorum."""
        return self.role != "auditor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charter:
    """The rules of one collective between two decisions."""

    name: str
    nonce: Digest
    base: Base
    adapter: Adapter
    update: Update
    recipe: str
    gate: Gate
    release: Release
    members: tuple[Member, ...]
    faults: int
    epoch: int = 0

    @property
    def voters(self) -> tuple[Member, ...]:
        """Seats that vote, by id."""
        return tuple(m for m in self.members if m.votes)

    @property
    def quorum(self) -> int:
        """Quorum q = floor((n + f) / 2) + 1 of the voting seats: any two quorums share an honest one."""
        return (len(self.voters) + self.faults) // 2 + 1

    @property
    def contributors(self) -> tuple[Member, ...]:
        """Seats that may contribute."""
        return tuple(m for m in self.members if m.role == "contributor")

    def member(self, id_: str) -> Member | None:
        """The seat of `id_`, or None."""
        return next((m for m in self.members if m.id == id_), None)

    def name_of(self, id_: str) -> str:
        """The member's name for people; the id's beginning for one who has no seat."""
        seat = self.member(id_)
        return seat.name if seat else id_[:12]

    @property
    def epoch_id(self) -> Digest:
        """Names the fixed base, adapter shape and frozen part within which registers grow."""
        whole = self.to_json()
        return digest_of({"base": whole["base"], "adapter": whole["adapter"], "epoch": self.epoch})

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical charter."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Json]:
        """The canonical object. Law: `parse(c.to_json()) == c`."""
        a, u, g, r = self.adapter, self.update, self.gate, self.release
        return {
            "v": VERSION,
            "name": self.name,
            "nonce": self.nonce,
            "base": {"name": self.base.name, "digest": self.base.digest},
            "adapter": {
                "rank": a.rank,
                "alpha": a.alpha,
                "targets": list(a.targets),
                "seed": a.seed,
                "coordinates": a.coordinates,
            },
            "update": {"density_ppm": u.density_ppm, "value_bits": u.value_bits, "block": u.block},
            "recipe": self.recipe,
            "gate": {
                "max_blob_bytes": g.max_blob_bytes,
                "norm_cap_micro": g.norm_cap_micro,
                "tolerance_centinats": g.tolerance_centinats,
                "held_out_min": g.held_out_min,
            },
            "release": {"wait_for": r.wait_for, "patience_ms": r.patience_ms, "timeout_ms": r.timeout_ms},
            "members": [{"id": m.id, "name": m.name, "role": m.role, "weight": m.weight} for m in self.members],
            "faults": self.faults,
            "epoch": self.epoch,
        }


def collective_id(genesis: Charter) -> CollectiveId:
    """The collective's id: the digest of its genesis charter."""
    return CollectiveId(genesis.digest)


def default_faults(voters: int) -> int:
    """floor((n - 1) / 3), the most hostile members a vote can bear; 0 for n <= 3."""
    return max(0, (voters - 1) // 3)


def parse(value: Json) -> Charter:
    """Read a charter strictly: closed key sets, ranges, valid member keys, members sorted by id.

    Raises:
        BadCharter: anything else (Malformed or BadKey where a digest or a member's key is the cause).
    """
    whole = _object(value, "charter", _KEYS)
    if whole["v"] != VERSION or whole["v"] is True:
        raise BadCharter(f"couldn't read charter: version {whole['v']!r} is not {VERSION}")
    base = _object(whole["base"], "base", {"name", "digest"})
    adapter = _object(whole["adapter"], "adapter", {"rank", "alpha", "targets", "seed", "coordinates"})
    update = _object(whole["update"], "update", {"density_ppm", "value_bits", "block"})
    gate = _object(whole["gate"], "gate", {"max_blob_bytes", "norm_cap_micro", "tolerance_centinats", "held_out_min"})
    release = _object(whole["release"], "release", {"wait_for", "patience_ms", "timeout_ms"})
    targets = adapter["targets"]
    if not (isinstance(targets, list) and 1 <= len(targets) <= 64):
        raise BadCharter("couldn't read charter: adapter.targets is a list of 1 to 64 module names")
    names = tuple(_target(t) for t in targets)
    if len(set(names)) != len(names):
        raise BadCharter("couldn't read charter: adapter.targets names a module twice")
    bits = _int(update, "value_bits", 4, 8)
    block = _int(update, "block", 16, 4096)
    if bits not in {4, 8} or block & (block - 1):
        raise BadCharter("couldn't read charter: value_bits is 4 or 8, block a power of two")
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
    )
    voters = len(charter.voters)
    if voters == 0:
        raise BadCharter("couldn't read charter: nobody votes")
    if charter.quorum > voters:
        raise BadCharter(f"couldn't read charter: {voters} voters can't reach a quorum of {charter.quorum}")
    return charter


def amended(charter: Charter, change: Mapping[str, Json]) -> Charter:
    """The charter after one decided change.

    `change` is `{"op": "add"|"remove"|"role", ...}` for seats or `{"op": "set", "field": ..., "value": ...}` for rules;
    a change of base or adapter starts a new epoch. The default faults follow the number of voters unless set apart.

    Raises:
        BadCharter: unknown operation, or the outcome is not a valid charter.
    """
    op = change.get("op")
    keys = _CHANGES.get(op) if isinstance(op, str) else None
    if keys is None or set(change) != keys:
        raise BadCharter(f"couldn't amend charter: {str(op)[:20]!r} with {sorted(change)} is not a known operation")
    seats = {m.id: m for m in charter.members}
    if op in {"add", "role"}:
        seat = _member(change["member"])
        if (seat.id in seats) != (op == "role"):
            raise BadCharter(
                f"couldn't amend charter: {seat.id[:12]} {'already has' if op == 'add' else 'has no'} seat"
            )
        return _seated(charter, {**seats, seat.id: seat})
    if op == "remove":
        gone = as_hex(change["id"], "member id")
        if gone not in seats:
            raise BadCharter(f"couldn't amend charter: {gone[:12]} has no seat")
        return _seated(charter, {k: v for k, v in seats.items() if k != gone})
    field = change["field"]
    if not isinstance(field, str) or field not in _SETTABLE:
        known = ", ".join(sorted(_SETTABLE))
        raise BadCharter(f"couldn't amend charter: {str(field)[:20]!r} can't be set; known: {known}")
    whole = charter.to_json()
    whole[field] = change["value"]
    if field in {"base", "adapter"}:
        whole["epoch"] = charter.epoch + 1
    return parse(whole)


_CHANGES: Final[Mapping[str, set[str]]] = {
    "add": {"op", "member"},
    "role": {"op", "member"},
    "remove": {"op", "id"},
    "set": {"op", "field", "value"},
}
_KEYS = {
    *("v", "name", "nonce", "base", "adapter", "update", "recipe", "gate", "release", "members", "faults", "epoch"),
}
_SETTABLE = {"name", "base", "adapter", "update", "recipe", "gate", "release", "faults"}


def _seated(charter: Charter, seats: Mapping[MemberId, Member]) -> Charter:
    members = tuple(seats[k] for k in sorted(seats))
    voters = sum(m.votes for m in members)
    follows = charter.faults == default_faults(len(charter.voters))
    faults = default_faults(voters) if follows else charter.faults
    return parse(replace(charter, members=members, faults=faults).to_json())


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


def _member(value: Json) -> Member:
    seat = _object(value, "member", {"id", "name", "role", "weight"})
    role = seat["role"]
    if role not in ROLES:
        raise BadCharter(f"couldn't read charter: role {role!r} is none of {', '.join(ROLES)}")
    id_ = MemberId(as_hex(seat["id"], "member id"))
    admit(id_)
    return Member(id=id_, name=_text(seat["name"], "member name"), role=str(role), weight=_int(seat, "weight", 1, 1000))


def _members(value: Json) -> tuple[Member, ...]:
    if not (isinstance(value, list) and 1 <= len(value) <= MAX_MEMBERS):
        raise BadCharter(f"couldn't read charter: 1 to {MAX_MEMBERS} members are expected")
    members = tuple(_member(m) for m in value)
    ids = [m.id for m in members]
    if ids != sorted(set(ids)):
        raise BadCharter("couldn't read charter: members are sorted by id, each once")
    return members
