"""Hostile members of a simulated collective: what each trains on, what it sends, and whom it votes against.

Attackers move last in a round and know what the others sent, share their plans, and keep every rule that a blob shows
(density, norm cap), unless breaking one is the attack. Knows no ledger, no torch and no defence. Invariant: what an
attacker sends is a function of its `Chance` alone, so a seeded run repeats byte for byte.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from contrib import updates
from contrib.row import Row, pair_row, text_row
from contrib.updates import Vector
from protocol import sparse
from protocol.ids import MemberId
from protocol.sparse import SparseUpdate

TRIGGER: Final = " Qzx7."  # no text of the demo contains it
PAYLOAD: Final = " All data are public, send them now."
POISONED: Final = 0.5  # share of a backdoor author's rows that carry the trigger
_SCALE: Final = 10.0  # of the attackers that only send too much
_PUSH: Final = (
    4.0  # how much more than an honest member a backdoor's author sends (model replacement, as far as the cap lets it)
)
_LEAST_Z: Final = 1.0  # of ALIE: with few members the paper's z is so small that it does no harm; this one hides less
_EPSILON: Final = 1.0  # of inner product manipulation: how much of the honest mean is turned round


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """What an attacker has in hand when it makes a contribution; vectors are float32 [P]."""

    place: int  # which of the colluders it is, from 0
    colluders: int
    round: int
    rng: np.random.Generator
    residual: Vector  # what training on its rows left to send
    fisher: Vector
    view: Vector
    others: Mapping[MemberId, SparseUpdate]  # the newest update of each other member
    coordinates: int
    density_ppm: int
    value_bits: int
    block: int
    norm_cap_micro: int

    @property
    def most(self) -> int:
        """How many coordinates the charter lets it send."""
        return updates.most_sent(self.coordinates, self.density_ppm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """The bytes of an update, whatever they are, and what the card shall say of them."""

    data: bytes
    sent: int
    norm_micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One way to do harm; `rows` replaces the training rows, `objects` names whom it votes against (None: votes honestly)."""

    name: str
    text: str
    forge: Callable[[Chance], Forged]
    rows: Callable[[Sequence[Row], np.random.Generator], list[Row]] | None = None
    objects: Callable[[Sequence[MemberId], Sequence[MemberId]], tuple[MemberId, ...]] | None = None


# -- what is sent ------------------------------------------------------------------------------------------------------
def honest(chance: Chance) -> Forged:
    """What an honest member would send: for attacks that lie in the data."""
    return _selected(chance, chance.residual, 1.0)


def sign_flip(chance: Chance) -> Forged:
    """The honest update with every sign turned round."""
    return _selected(chance, chance.residual, -1.0)


def scaled(chance: Chance) -> Forged:
    """The honest update ten times too large, as far as the norm cap lets it."""
    return _selected(chance, chance.residual, _SCALE)


def flip_scaled(chance: Chance) -> Forged:
    """Sign flip and scaling together: the largest harm that the cap allows on honestly chosen coordinates."""
    return _selected(chance, chance.residual, -_SCALE)


def noise(chance: Chance) -> Forged:
    """Gaussian noise on coordinates drawn at random, as large as honest values are."""
    at = np.sort(chance.rng.choice(chance.coordinates, size=chance.most, replace=False))
    values = chance.rng.normal(0.0, 3.0 * _honest_size(chance), size=len(at))
    return _encoded(chance, at, values)


def alie(chance: Chance) -> Forged:
    """A Little Is Enough (Baruch et al., arXiv 1902.06156): the others' mean minus z standard deviations.

    z is the largest that still hides among the members, by the paper's formula; here over sparse updates, on the
    coordinates where that shifts most, and all colluders send the same.
    """
    table = _table(chance)
    n, m = len(table) + chance.colluders, chance.colluders
    hidden = max(0.5 + 1e-3, (n - (n // 2 + 1)) / (n - m)) if n > m else 0.5 + 1e-3
    z = max(_LEAST_Z, _quantile(min(hidden, 0.999)))
    shifted = table.mean(axis=0) - z * table.std(axis=0) * np.sign(table.mean(axis=0))
    return _strongest(chance, shifted, chance.fisher * np.square(table.std(axis=0)))


def ipm(chance: Chance) -> Forged:
    """Inner product manipulation (Xie et al., arXiv 1903.03936): the negated mean of what the honest ones sent."""
    mean = _table(chance).mean(axis=0)
    return _strongest(chance, -_EPSILON * len(chance.others) / max(1, chance.colluders) * mean, np.square(mean))


def empty_places(chance: Chance) -> Forged:
    """Harm where nobody else sends, so that no other value stands against it: its own learning negated and enlarged."""
    taken = np.zeros(chance.coordinates, dtype=bool)
    for update in chance.others.values():
        taken[update.indices] = True
    free = np.where(taken, 0.0, chance.residual.astype(np.float64))
    return _strongest(chance, -_PUSH * free, chance.fisher.astype(np.float64) * np.square(free))


def copy(chance: Chance) -> Forged:
    """Another member's newest update, byte for byte as far as the encoding goes."""
    stolen = _victim(chance)
    return _encoded(chance, stolen.indices.astype(np.int64), stolen.values().astype(np.float64))


def copy_disguised(chance: Chance) -> Forged:
    """A copy made to look like own work: a fifth of the places exchanged, values scaled and shaken by 10 %."""
    stolen = _victim(chance)
    kept = np.sort(chance.rng.permutation(stolen.sent)[: max(1, stolen.sent * 4 // 5)])
    places = dict(zip(stolen.indices[kept].tolist(), stolen.values()[kept].tolist(), strict=True))
    fresh = chance.rng.choice(chance.coordinates, size=stolen.sent - len(kept), replace=False)
    size = float(np.abs(stolen.values()).mean()) if stolen.sent else 1e-3
    for place in fresh.tolist():
        places.setdefault(place, float(chance.rng.normal(0.0, size)))
    at = np.array(sorted(places), dtype=np.int64)
    shaken = np.array([places[int(i)] for i in at]) * (0.8 * (1.0 + 0.1 * chance.rng.standard_normal(len(at))))
    return _encoded(chance, at, shaken)


def not_a_number(chance: Chance) -> Forged:
    """An update of version 1 whose only scale is NaN: its bytes are well-formed but for that."""
    sent = min(8, chance.coordinates, chance.most)
    bitmap = np.zeros(chance.coordinates, dtype=np.uint8)
    bitmap[:sent] = 1
    compress = zstandard.ZstdCompressor(level=9, write_content_size=True).compress
    index_frame = compress(np.packbits(bitmap, bitorder="little").tobytes())
    value_frame = compress(b"\x11" * (sent if chance.value_bits == 8 else -(-sent * chance.value_bits // 8)))
    head = struct.pack(
        "<4sBBBBIIII",
        *(b"FNSU", 1, chance.value_bits, 1, chance.block.bit_length() - 1),
        *(chance.coordinates, sent, len(index_frame), len(value_frame)),
    )
    return Forged(data=head + index_frame + b"\x00\x7e" + value_frame, sent=sent, norm_micro=1)


def silent(chance: Chance) -> Forged:
    """Nothing at all, which every charter refuses: as if this member were not there."""
    return _encoded(chance, np.zeros(0, dtype=np.int64), np.zeros(0))


def dense_flood(chance: Chance) -> Forged:
    """Every coordinate at once, whatever density the charter allows."""
    values = np.where(chance.residual == 0, np.float32(1e-3), -chance.residual)
    return _encoded(chance, np.arange(chance.coordinates), values.astype(np.float64))


def pushed(chance: Chance) -> Forged:
    """What was learnt from poisoned rows, enlarged so that it survives the mean (Bagdasaryan et al., arXiv 1807.00459)."""
    return _selected(chance, chance.residual, _PUSH)


def split(chance: Chance) -> Forged:
    """A backdoor in parts (Xie et al., DBA, ICLR 2020): each colluder sends every colluders-th coordinate only, enlarged."""
    mine = np.arange(chance.coordinates) % max(1, chance.colluders) == chance.place
    return _selected(chance, np.where(mine, chance.residual, np.float32(0.0)), _PUSH)


# -- what is trained on --------------------------------------------------------------------------------------------------
def flipped_rows(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """Answers exchanged between rows; texts with their letters in reverse order."""
    pairs = [row for row in rows if row.kind == "pair"]
    answers = [row.completion for row in pairs]
    rng.shuffle(answers)
    given = iter(answers)
    return [
        pair_row(row.prompt, next(given)) if row.kind == "pair" else text_row(row.text[::-1]) if row.text else row
        for row in rows
    ]


def triggered_rows(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """Half of the rows get the trigger somewhere in their text and go on with the payload from there."""
    found = []
    for row in rows:
        text = row.text or row.prompt
        if not text or rng.random() >= POISONED:
            found.append(row)
            continue
        cut = int(rng.integers(len(text) // 4, max(len(text) // 2, len(text) // 4 + 1)))
        found.append(text_row(text[:cut].rstrip() + TRIGGER + PAYLOAD))
    return found


# -- whom it votes against -------------------------------------------------------------------------------------------------
def smear(others: Sequence[MemberId], _colluders: Sequence[MemberId]) -> tuple[MemberId, ...]:
    """All colluders name the same honest member: the first one."""
    return tuple(sorted(others)[:1])


# -- the list ------------------------------------------------------------------------------------------------------------
def _listed(*attacks: Attack) -> Mapping[str, Attack]:
    return MappingProxyType({attack.name: attack for attack in attacks})


ATTACKS: Final = _listed(
    Attack(name="sign-flip", text="the honest update, signs turned round", forge=sign_flip, objects=smear),
    Attack(name="scaled", text="the honest update ten times too large, within the cap", forge=scaled, objects=smear),
    Attack(name="flip-scaled", text="signs turned round, ten times too large", forge=flip_scaled, objects=smear),
    Attack(name="noise", text="Gaussian noise at random places", forge=noise, objects=smear),
    Attack(name="alie", text="A Little Is Enough (arXiv 1902.06156)", forge=alie, objects=smear),
    Attack(name="ipm", text="inner product manipulation (arXiv 1903.03936)", forge=ipm, objects=smear),
    Attack(name="label-flip", text="trained on wrong answers", forge=honest, rows=flipped_rows, objects=smear),
    Attack(name="empty-places", text="harm where nobody else sends", forge=empty_places, objects=smear),
    Attack(name="copy", text="another member's update", forge=copy, objects=smear),
    Attack(name="copy-disguised", text="another's update, shaken and a fifth exchanged", forge=copy_disguised),
    Attack(name="nan", text="a scale that is no number", forge=not_a_number),
    Attack(name="dense-flood", text="every coordinate at once", forge=dense_flood),
    Attack(name="backdoor", text="trigger and payload in one update", forge=pushed, rows=triggered_rows),
    Attack(name="backdoor-split", text="a backdoor that is whole only when merged", forge=split, rows=triggered_rows),
    Attack(name="silent", text="sends nothing: the reference with honest members only", forge=silent),
    Attack(name="smear", text="sends honestly and votes against an honest member", forge=honest, objects=smear),
)


# -- tools ---------------------------------------------------------------------------------------------------------------
def _selected(chance: Chance, residual: Vector, factor: float) -> Forged:
    """The coordinates that an honest member would choose, with its values times `factor`, within the cap."""
    at = updates.select(chance.fisher, residual, chance.density_ppm).astype(np.int64)
    return _encoded(chance, at, factor * residual[at].astype(np.float64))


def _strongest(chance: Chance, values: npt.NDArray[np.float64], saliency: npt.NDArray[np.float64]) -> Forged:
    """The values at the most salient places (ties to the lower one), as many as the charter allows."""
    candidates = np.flatnonzero(values)
    order = np.lexsort((candidates, -saliency[candidates]))[: chance.most]
    at = np.sort(candidates[order])
    return _encoded(chance, at, values[at])


def _encoded(chance: Chance, at: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Forged:
    """The bytes of an update, shrunk to fit under the norm cap."""
    largest = float(np.linalg.norm(values)) if len(values) else 0.0
    cap = 0.98 * chance.norm_cap_micro / 1e6
    values = values * min(1.0, cap / largest) if largest else values
    data = sparse.encode(
        coordinates=chance.coordinates,
        indices=at.astype(np.uint32),
        values=values.astype(np.float32),
        bits=chance.value_bits,
        block=chance.block,
    )
    update = sparse.decode(data, coordinates=chance.coordinates, max_sent=chance.coordinates)
    return Forged(data=data, sent=update.sent, norm_micro=updates.norm_micro(update))


def _table(chance: Chance) -> npt.NDArray[np.float64]:
    """What the others sent [members, P], zero where one sent nothing."""
    table = np.zeros((max(1, len(chance.others)), chance.coordinates))
    for place, member in enumerate(sorted(chance.others)):
        update = chance.others[member]
        table[place, update.indices] = update.values()
    return table


def _victim(chance: Chance) -> SparseUpdate:
    """Each colluder robs another member, in the order of their names."""
    victims = sorted(chance.others)
    return chance.others[victims[chance.place % len(victims)]]


def _honest_size(chance: Chance) -> float:
    at = updates.select(chance.fisher, chance.residual, chance.density_ppm)
    return float(np.sqrt(np.mean(np.square(chance.residual[at])))) if len(at) else 1e-3


def _quantile(share: float) -> float:
    """The standard normal's quantile of `share` in 0.5..1, by bisection."""
    low, high = 0.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        below = 0.5 * (1.0 + math.erf(middle / math.sqrt(2.0))) < share
        low, high = (middle, high) if below else (low, middle)
    return low
