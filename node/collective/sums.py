"""Registers that were summed before, kept so that the next one is made out of what differs.

A view changes by one contribution, a release by a few, and a late node computes fifty releases of the same members: each from
its neighbour costs what is new in it, each from nothing costs all of it again. Integers are added and taken away exactly, so
which way a register was reached leaves no trace in it. Knows no blob and no ledger; keys are whatever names a contribution under
the checks that it passed. Threads may share it. Invariant: at most `KEPT_BYTES` of registers are held.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from contrib import merging
from contrib.merging import Register
from protocol.ids import MemberId
from protocol.sparse import SparseUpdate

KEPT_BYTES: Final = 64 << 20
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum(Generic[Part]):
    """A register, and what was looked at for it: by key, those that were left out for a fault too."""

    parts: Mapping[Hashable, Part]
    taken: int  # how many of them are in the register
    register: Register

    def changed(
        self, parts: Mapping[Hashable, Part], fresh: Sequence[SparseUpdate], gone: Sequence[SparseUpdate]
    ) -> Sum[Part]:
        """The sum with these parts: `fresh` are the updates that came to it, `gone` those that left it.

        Raises:
            MergeRefused: as `merging.add`.
        """
        register = merging.shift(self.register, fresh, gone) if fresh or gone else self.register
        return Sum(parts=parts, taken=self.taken + len(fresh) - len(gone), register=register)


class Sums(Generic[Part]):
    """The newest sum of each member, as far as memory allows."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes, self._bytes = kept_bytes, 0
        self._sums: dict[tuple[MemberId, int], Sum[Part]] = {}
        self._lock = threading.Lock()

    def nearest(self, member: MemberId, coordinates: int, parts: Mapping[Hashable, Part]) -> Sum[Part]:
        """The sum to start from: the kept one when less differs from it than is in `parts`, else an empty one."""
        with self._lock:
            known = self._sums.get((member, coordinates))
        if known is not None and len(known.parts.keys() ^ parts.keys()) < len(parts):
            return known
        return Sum(parts={}, taken=0, register=merging.empty(coordinates))

    def keep(self, member: MemberId, coordinates: int, found: Sum[Part]) -> None:
        """Remember a sum in place of the one before; who was asked for longest ago is forgotten first."""
        with self._lock:
            before = self._sums.pop((member, coordinates), None)
            self._sums[member, coordinates] = found
            self._bytes += _weight(found) - (_weight(before) if before is not None else 0)
            while self._bytes > self._kept_bytes and self._sums:
                self._bytes -= _weight(self._sums.pop(next(iter(self._sums))))


def _weight(found: Sum[Part]) -> int:
    return found.register.units.nbytes + found.register.counts.nbytes
