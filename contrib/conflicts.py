"""How the members of a release agree and disagree, module by module: signs, places, directions, sizes, sender counts.

Pure numpy over registers; knows no names of members, no ledger and no torch. The registers hold what was sent, so where the
choice of places is Fisher-based, the overlap of places is the overlap of what matters to both (where one sends and the
other does not, nothing is known of the other's Fisher). Invariant: every figure of a module depends on its coordinates alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contrib.merging import Register
from contrib.recipes.senders import sender_counts
from protocol.canon import Json
from protocol.ids import MemberId

Module = tuple[str, int, int]  # name, first coordinate, coordinate after the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """One module (or the whole adapter); shares in permille, `None` where nothing is shared."""

    module: str
    coordinates: int
    senders: tuple[int, ...]  # how many coordinates have 0, 1, 2, ... senders
    contested_permille: int | None  # of the coordinates with several senders: those whose signs differ
    lost_permille: int | None  # of the sum of magnitudes there: what opposite signs cancel
    cosine: tuple[tuple[int | None, ...], ...]  # [member, member] in permille
    overlap: tuple[tuple[int | None, ...], ...]  # [member, member] shared places over all places (Jaccard), permille
    norm_micro: tuple[int, ...]  # of each member

    def to_json(self) -> dict[str, Json]:
        """For reports."""
        return {
            "module": self.module,
            "coordinates": self.coordinates,
            "senders": list(self.senders),
            "contested_permille": self.contested_permille,
            "lost_permille": self.lost_permille,
            "cosine_permille": [list(row) for row in self.cosine],
            "overlap_permille": [list(row) for row in self.overlap],
            "norm_micro": list(self.norm_micro),
        }


def report(registers: Mapping[MemberId, Register], modules: Sequence[Module]) -> list[Conflict]:
    """The figures of the whole adapter ("all"), then of each module; members in the order of their ids."""
    ordered = [registers[member] for member in sorted(registers)]
    size = len(ordered[0].units) if ordered else 0
    return [_conflict(ordered, part) for part in (("all", 0, size), *modules)]


def _conflict(registers: Sequence[Register], module: Module) -> Conflict:
    name, start, end = module
    values = np.array([r.units[start:end] for r in registers], dtype=np.float64).reshape(len(registers), end - start)
    sent = np.array([r.counts[start:end] > 0 for r in registers], dtype=bool).reshape(values.shape)
    several = sent.sum(0) > 1
    magnitude, total = np.abs(values).sum(0)[several], np.abs(values.sum(0))[several]
    differ = (values > 0).any(0) & (values < 0).any(0) & several
    counts = sender_counts([Register(units=r.units[start:end], counts=r.counts[start:end]) for r in registers])
    return Conflict(
        module=name,
        coordinates=end - start,
        senders=tuple(int(n) for n in np.bincount(counts, minlength=len(registers) + 1)),
        contested_permille=_share(float(differ.sum()), float(several.sum())),
        lost_permille=_share(float((magnitude - total).sum()), float(magnitude.sum())),
        cosine=_cosines(values),
        overlap=_overlaps(sent),
        norm_micro=tuple(round(float(n) / 2**24 * 1e6) for n in np.linalg.norm(values, axis=1)),
    )


def _cosines(values: npt.NDArray[np.float64]) -> tuple[tuple[int | None, ...], ...]:
    norms = np.linalg.norm(values, axis=1)
    products = values @ values.T
    return tuple(
        tuple(_share(float(products[i, j]), float(norms[i] * norms[j])) for j in range(len(values)))
        for i in range(len(values))
    )


def _overlaps(sent: npt.NDArray[np.bool_]) -> tuple[tuple[int | None, ...], ...]:
    places = sent.astype(np.float64)
    shared, sizes = places @ places.T, places.sum(1)
    return tuple(
        tuple(_share(float(shared[i, j]), float(sizes[i] + sizes[j] - shared[i, j])) for j in range(len(sent)))
        for i in range(len(sent))
    )


def _share(part: float, whole: float) -> int | None:
    return round(1000 * part / whole) if whole > 0 else None
