"""How many members sent each coordinate, and what of a merged vector one member alone decided.

Robust rules by coordinate need many senders of the same coordinate; these figures say where there are any. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contrib.errors import MergeRefused
from contrib.merging import Register
from contrib.recipes.recipe import Vector
from protocol.canon import Json
from protocol.ids import MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Senders:
    """How thinly a merged vector is covered."""

    coordinates: tuple[int, ...]  # how many of the P have 0, 1, 2, ... senders
    lone_ppm: int  # part of the merged vector's squared norm at coordinates with a single sender
    lone: Mapping[MemberId, int]  # of each member: at how many coordinates it is the single sender

    def to_json(self) -> dict[str, Json]:
        """For reports."""
        return {
            "coordinates": list(self.coordinates),
            "lone_ppm": self.lone_ppm,
            "lone": {str(m): n for m, n in self.lone.items()},
        }


def sender_counts(registers: Mapping[MemberId, Register] | Iterable[Register]) -> npt.NDArray[np.int32]:
    """How many of the registers hold each coordinate, int32 [P]; no register: [0]."""
    found = list(registers.values() if isinstance(registers, Mapping) else registers)
    out = np.zeros(len(found[0].units) if found else 0, dtype=np.int32)
    for register in found:
        out += register.counts > 0
    return out


def senders(registers: Mapping[MemberId, Register], merged: Vector) -> Senders:
    """What `sender_counts` adds up to, for a vector [P] merged from these registers.

    Raises:
        MergeRefused: the vector has another number of coordinates.
    """
    counts = sender_counts(registers) if registers else np.zeros(len(merged), dtype=np.int32)
    if len(counts) != len(merged):
        raise MergeRefused(f"couldn't count senders: {len(merged)} merged values of {len(counts)} coordinates")
    squares = merged.astype(np.float64) ** 2
    whole, alone = math.fsum(squares.tolist()), math.fsum(squares[counts == 1].tolist())  # exact: no order of additions
    return Senders(
        coordinates=tuple(int(n) for n in np.bincount(counts, minlength=len(registers) + 1)),
        lone_ppm=round(1_000_000 * alone / whole) if whole > 0 else 0,
        lone={m: int(np.count_nonzero((r.counts > 0) & (counts == 1))) for m, r in sorted(registers.items())},
    )
