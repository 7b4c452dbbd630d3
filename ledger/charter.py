"""The charter of a collective: who decides, on which base, with which recipe. A frozen value, read strictly.

Knows nothing of feeds or storage. The collective id is the digest of the genesis charter; later charters are made from it
by decided amendments (`ledger.amending`), never edited. Invariant: a `Charter` that exists is valid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ledger.errors import BadCharter
from protocol.addresses import split_relay
from protocol.canon import MAX_INT, Json, encode
from protocol.ids import CollectiveId, Digest, MemberId, as_hex, digest_of
from protocol.keys import admit

VERSION: Final = 1
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
class Witness:
    """How many organisations besides the author's must have cosigned a feed before a release may cover what is new in it."""

    cosignatures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """An earlier key of a seat: what its feed says in its first `size` entries still counts for the seat.

    `left` says how the seat passed on: by `rotation` (its holder gave it away) or `recovery` (its owner took it back).
    """

    id: MemberId
    size: int
    left: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One seat. Contributors send and vote, endorsers vote, auditors read.

    `organisation` says who runs the node (the name unless given): cosignatures of one organisation count once. `was` are
    the keys that the seat had before, oldest first.
    """

    id: MemberId
    name: str
    role: str
    weight: int = 1
    organisation: str = ""
    was: tuple[Former, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the default organisation."""
        if not self.organisation:
            object.__setattr__(self, "organisation", self.name)

    def to_json(self) -> dict[str, Json]:
        """The canonical object."""
        return {
            "id": self.id,
            "name": self.name,
            "organisation": self.organisation,
            "role": self.role,
            "weight": self.weight,
            "was": [[w.id, w.size, w.left] for w in self.was],
        }

    def reach(self, feed: str) -> int | None:
        """How many entries of a feed speak for the seat; None means without end, 0 that the feed is not the seat's."""
        if feed == self.id:
            return None
        return next((w.size for w in self.was if w.id == feed), 0)

    @property
    def votes(self) -> bool:
        """Whether the seat counts towards the quorum."""
        return self.role != "auditor"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    """What is looked up in the seats of a charter."""

    voters: tuple[Member, ...]
    voter_ids: frozenset[MemberId]
    contributors: tuple[Member, ...]
    present: Mapping[str, Member]
    former: Mapping[str, Member]

    @classmethod
    def of(cls, members: tuple[Member, ...]) -> _Index:
        voters = tuple(m for m in members if m.votes)
        former: dict[str, Member] = {}
        for member in members:
            for earlier in member.was:
                former.setdefault(earlier.id, member)
        return cls(
            voters=voters,
            voter_ids=frozenset(m.id for m in voters),
            contributors=tuple(m for m in members if m.role == "contributor"),
            present={m.id: m for m in reversed(members)},
            former=former,
        )


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
    witness: Witness = Witness()
    relays: tuple[str, ...] = ()  # where members behind NAT can be reached: /ip4/.../tcp/.../p2p/...
    _known: dict[str, Digest] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # digests, once asked for
    _index: _Index = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look seats up once: with many members these are asked for with every entry that arrives."""
        object.__setattr__(self, "_index", _Index.of(self.members))

    @property
    def voters(self) -> tuple[Member, ...]:
        """Seats that vote, by id."""
        return self._index.voters

    @property
    def voter_ids(self) -> frozenset[MemberId]:
        """Ids of the seats that vote."""
        return self._index.voter_ids

    @property
    def quorum(self) -> int:
        """Quorum q = floor((n + f) / 2) + 1 of the voting seats: any two quorums share an honest one."""
        return (len(self.voters) + self.faults) // 2 + 1

    @property
    def contributors(self) -> tuple[Member, ...]:
        """Seats that may contribute."""
        return self._index.contributors

    def member(self, id_: str) -> Member | None:
        """The seat of `id_`, or None."""
        return self._index.present.get(id_)

    def seat_of(self, feed: str) -> Member | None:
        """The seat that a feed belongs, or belonged, to: by its present key, else by an earlier one."""
        return self._index.present.get(feed) or self._index.former.get(feed)

    def name_of(self, id_: str) -> str:
        """The member's name for people; the id's beginning for one who has no seat."""
        seat = self.member(id_)
        return seat.name if seat else id_[:12]

    @property
    def epoch_id(self) -> Digest:
        """Names the fixed base, adapter shape and frozen part within which registers grow."""
        if "epoch" not in self._known:
            whole = self.to_json()
            self._known["epoch"] = digest_of({"base": whole["base"], "adapter": whole["adapter"], "epoch": self.epoch})
        return self._known["epoch"]

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical charter."""
        if "charter" not in self._known:
            self._known["charter"] = digest_of(self.to_json())
        return self._known["charter"]

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
            "witness": {"cosignatures": self.witness.cosignatures},
            "members": [m.to_json() for m in self.members],
            "faults": self.faults,
            "epoch": self.epoch,
            **({"relays": list(self.relays)} if self.relays else {}),
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


_KEYS = {
    *("v", "name", "nonce", "base", "adapter", "update", "recipe", "gate", "release", "witness", "members", "faults"),
    "epoch",
}


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
