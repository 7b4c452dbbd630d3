"""What a height decides: a release cut or an amendment. Frozen values with one canonical form.

Knows their shape only; `ledger.rules` says when one is right. A release cut is self-contained: whoever has the blobs it
leads to recomputes it. Law: `parse(v.to_json()) == v`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ledger.errors import BadValue
from protocol.canon import MAX_INT, Json
from protocol.ids import CollectiveId, Digest, EventId, MemberId, as_hex, digest_of

VERSION: Final = 1
MAX_LIST: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedHead:
    """Entries [0, size) of a member's feed; `leaf` is the leaf hash of entry size-1."""

    member: MemberId
    size: int
    leaf: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """The last contribution of a member that the cut's head vector covers."""

    member: MemberId
    number: int
    event: EventId


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A contribution left out, why, and the entries that prove it (none where the blob itself does)."""

    event: EventId
    reason: str
    evidence: tuple[EventId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterDigest:
    """SHA-256 of one member's register under the cut."""

    member: MemberId
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a decision stands: collective, charter in force, height, the decision before, the head vector."""

    collective: CollectiveId
    charter: Digest
    height: int
    parent: Digest
    heads: tuple[FeedHead, ...]
    _sizes: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Look heads up by member: `size_of` is asked for every contribution of every feed."""
        object.__setattr__(self, "_sizes", {h.member: h.size for h in self.heads})

    def to_json(self) -> dict[str, Json]:
        """The keys shared by both kinds."""
        return {
            "v": VERSION,
            "collective": self.collective,
            "charter": self.charter,
            "height": self.height,
            "parent": self.parent,
            "heads": [[h.member, h.size, h.leaf] for h in self.heads],
        }

    def size_of(self, member: str) -> int:
        """How many entries of a member's feed lie in the causal past; 0 for a feed not named."""
        return self._sizes.get(member, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A release: everything its bytes are a function of."""

    place: Place
    number: int
    parent_release: Digest | None
    epoch: Digest
    last: tuple[Last, ...]
    excluded: tuple[Exclusion, ...]
    recipe: str
    registers: tuple[RegisterDigest, ...]
    model: Digest

    def to_json(self) -> dict[str, Json]:
        """The canonical object."""
        return {
            **self.place.to_json(),
            "kind": "release",
            "number": self.number,
            "parent_release": self.parent_release,
            "epoch": self.epoch,
            "last": [[x.member, x.number, x.event] for x in self.last],
            "excluded": [[x.event, x.reason, list(x.evidence)] for x in self.excluded],
            "recipe": self.recipe,
            "registers": [[x.member, x.digest] for x in self.registers],
            "model": self.model,
        }

    @property
    def digest(self) -> Digest:
        """The release digest."""
        return digest_of(self.to_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """A change of the charter that q voters approved; in force from the next height."""

    place: Place
    proposal: EventId
    change: Mapping[str, Json]

    def to_json(self) -> dict[str, Json]:
        """The canonical object."""
        return {**self.place.to_json(), "kind": "amendment", "proposal": self.proposal, "change": dict(self.change)}

    @property
    def digest(self) -> Digest:
        """The decision's digest."""
        return digest_of(self.to_json())


Value = Cut | Amendment


def parse(value: Json) -> Value:
    """Read a decision strictly: closed keys, sorted lists without repetition, bounded sizes.

    Raises:
        BadValue: anything else.
    """
    if not isinstance(value, dict):
        raise BadValue("couldn't read decision: an object is expected")
    kind = value.get("kind")
    keys = _CUT_KEYS if kind == "release" else _AMENDMENT_KEYS if kind == "amendment" else None
    if set(value) != keys or value["v"] != VERSION or value["v"] is True:
        raise BadValue(f"couldn't read decision: kind {str(kind)[:20]!r} has other keys than expected")
    place = Place(
        collective=CollectiveId(as_hex(value["collective"], "collective")),
        charter=_hex(value["charter"], "charter"),
        height=_int(value["height"], "height"),
        parent=_hex(value["parent"], "parent"),
        heads=tuple(
            FeedHead(member=MemberId(_hex(m, "member")), size=_int(s, "size", 1), leaf=_hex(leaf, "leaf"))
            for m, s, leaf in _rows(value["heads"], 3, "heads")
        ),
    )
    if kind == "amendment":
        change = value["change"]
        if not isinstance(change, dict):
            raise BadValue("couldn't read decision: change is an object")
        return Amendment(place=place, proposal=EventId(_hex(value["proposal"], "proposal")), change=change)
    recipe = value["recipe"]
    if not (isinstance(recipe, str) and 1 <= len(recipe) <= 64):
        raise BadValue("couldn't read decision: recipe is a short text")
    return Cut(
        place=place,
        number=_int(value["number"], "number", 1),
        parent_release=None if value["parent_release"] is None else _hex(value["parent_release"], "parent_release"),
        epoch=_hex(value["epoch"], "epoch"),
        last=tuple(
            Last(member=MemberId(_hex(m, "member")), number=_int(n, "number", 1), event=EventId(_hex(e, "event")))
            for m, n, e in _rows(value["last"], 3, "last")
        ),
        excluded=tuple(_exclusion(row) for row in _rows(value["excluded"], 3, "excluded")),
        recipe=recipe,
        registers=tuple(
            RegisterDigest(member=MemberId(_hex(m, "member")), digest=_hex(d, "digest"))
            for m, d in _rows(value["registers"], 2, "registers")
        ),
        model=_hex(value["model"], "model"),
    )


_PLACE_KEYS = {"v", "collective", "charter", "height", "parent", "heads", "kind"}
_CUT_KEYS = _PLACE_KEYS | {
    *("number", "parent_release", "epoch", "last", "excluded", "recipe", "registers", "model"),
}
_AMENDMENT_KEYS = _PLACE_KEYS | {"proposal", "change"}


def _hex(value: Json, what: str) -> Digest:
    return Digest(as_hex(value, what))


def _int(value: Json, what: str, low: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_INT:
        raise BadValue(f"couldn't read decision: {what} is an integer from {low}")
    return value


def _rows(value: Json, width: int, what: str) -> list[list[Json]]:
    if not isinstance(value, list) or len(value) > MAX_LIST:
        raise BadValue(f"couldn't read decision: {what} is a list of at most {MAX_LIST}")
    rows: list[list[Json]] = []
    for row in value:
        if not (isinstance(row, list) and len(row) == width):
            raise BadValue(f"couldn't read decision: {what} has rows of {width}")
        rows.append(list(row))
    first = [row[0] for row in rows]
    if any(not isinstance(x, str) for x in first) or first != sorted({str(x) for x in first}):
        raise BadValue(f"couldn't read decision: {what} is sorted, each once")
    return rows


def _exclusion(row: list[Json]) -> Exclusion:
    event, reason, evidence = row
    if not (isinstance(reason, str) and 1 <= len(reason) <= 64):
        raise BadValue("couldn't read decision: an exclusion has a reason code")
    if not isinstance(evidence, list) or len(evidence) > MAX_LIST:
        raise BadValue("couldn't read decision: evidence is a list of events")
    found = tuple(EventId(_hex(e, "evidence")) for e in evidence)
    if list(found) != sorted(set(found)):
        raise BadValue("couldn't read decision: evidence is sorted, each once")
    return Exclusion(event=EventId(_hex(event, "excluded event")), reason=reason, evidence=found)
