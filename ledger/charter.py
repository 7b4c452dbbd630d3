"""The charter of a collective: who decides, on which base, with which recipe. A frozen value.

Knows nothing of feeds or storage. The collective id is the digest of the genesis charter; later charters are made from it by
decided amendments (`ledger.amending`), never edited. Invariant: a `Charter` that was read (`ledger.charter_reading`) is valid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol.canon import Json
from protocol.ids import CollectiveId, Digest, MemberId, digest_of

VERSION: Final = 1


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
        """The canonical object. Law: `charter_reading.parse(c.to_json()) == c`."""
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
