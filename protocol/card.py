"""What a contribution says about itself: the card, and the contribution as a value.

Knows no keys (so `contrib` may import it) and no update bytes. Invariant: a card that exists is complete and in range;
`Card.parse(card.to_json()) == card`, and an object with a field more or less is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from protocol.canon import MAX_INT, Json
from protocol.errors import Malformed
from protocol.ids import CollectiveId, Digest, MemberId, as_hex
from protocol.sparse import LEVELS, MAX_COORDINATES

VERSION = 1
SELECTIONS = ("fisher-r2", "fisher-r2-rows", "root-fisher-rows", "magnitude", "fisher", "random")
MAX_LIBRARIES = 16
MAX_LOSS_CENTINATS = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_HEX = ("collective", "member", "epoch", "base", "view", "train_root", "held_out_root")
_RANGES = {
    "number": (1, MAX_INT),
    "train_rows": (1, MAX_INT),
    "steps": (1, MAX_INT),
    "tokens": (1, MAX_INT),
    "density_ppm": (1, 1_000_000),
    "coordinates": (1, MAX_COORDINATES),
    "sent": (0, MAX_COORDINATES),
    "norm_micro": (0, MAX_INT),
    "loss_before": (0, MAX_LOSS_CENTINATS),
    "loss_after": (0, MAX_LOSS_CENTINATS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A member's signed statement about one contribution; losses in centinats, the norm in millionths.

    Raises:
        Malformed: a field is out of range.
    """

    collective: CollectiveId
    member: MemberId
    epoch: Digest
    base: Digest
    number: int  # of this member in this epoch, from 1
    view: Digest  # model digest of the view it was trained from
    train_root: Digest
    held_out_root: Digest
    train_rows: int
    steps: int
    tokens: int
    epsilon_micro: int | None  # None: no differential privacy, and the card says so
    selection: str
    density_ppm: int
    value_bits: int
    coordinates: int
    sent: int
    norm_micro: int
    loss_before: int
    loss_after: int
    libraries: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuse a card that is out of range."""
        for name in _HEX:
            as_hex(getattr(self, name), name)
        for name, (low, high) in _RANGES.items():
            _integer(name, getattr(self, name), low, high)
        if self.epsilon_micro is not None:
            _integer("epsilon_micro", self.epsilon_micro, 0, MAX_INT)
        _integer("value_bits", self.value_bits, min(LEVELS), max(LEVELS))
        _require(self.value_bits in LEVELS, "value_bits")
        _require(self.selection in SELECTIONS, "selection")
        _require(self.sent <= self.coordinates, "sent")
        _require(isinstance(self.libraries, Mapping) and len(self.libraries) <= MAX_LIBRARIES, "libraries")
        for library, version in self.libraries.items():
            _require(_is_name(library) and _is_name(version), "libraries")

    def to_json(self) -> dict[str, Json]:
        """The card as a JSON object."""
        value: dict[str, Json] = {name: getattr(self, name) for name in _FIELDS}
        value["libraries"] = dict(self.libraries)
        value["v"] = VERSION
        return value

    @classmethod
    def parse(cls, value: Json) -> Card:
        """Return the card whose JSON object is `value`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        if not isinstance(value, dict) or value.keys() != _KEYS or value["v"] != VERSION or value["v"] is True:
            raise Malformed("couldn't read card: not exactly the fields of a card of version 1")
        return cls.of(value)

    @classmethod
    def of(cls, fields: Mapping[str, Json]) -> Card:
        """Return the card with these values, whatever their types are (raises Malformed when they are not right)."""
        values: dict[str, Any] = {name: fields[name] for name in _FIELDS}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One contribution as received: its card, the bytes of its sparse update, the digest of the whole blob."""

    card: Card
    update: bytes
    digest: Digest


def _require(holds: bool, name: str) -> None:
    if not holds:
        raise Malformed(f"couldn't read card: {name} is out of range")


def _integer(name: str, value: object, low: int, high: int) -> None:
    _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, name)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.match(value) is not None


_FIELDS = tuple(field.name for field in fields(Card))
_KEYS = frozenset(_FIELDS) | {"v"}
