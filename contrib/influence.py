"""Which members' contributions do harm: whom to suspect by what everybody sees, and whom to name by one's own losses.

Pure: no keys, rows or models. Two kinds of evidence meet. The *bearing* of a member's register is public: how it points
against the registers of the others. The *harm* is a voter's own: how much its held-out loss falls when the member is left
out. Neither alone is enough: a foreign text costs an honest neighbour as much as a mild attack does (so harm alone
silences minorities), and a direction alone proves nothing (so nobody is named whom the voter does not feel).
Invariant: with `colluders` members sharing a plan, no bearing of an honest member depends on theirs alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from contrib.merging import Register
from protocol.ids import MemberId

# A bearing below it points against the others; honest ones lie above 0 (contrib/LOG.md, attackers).
OPPOSED: Final = -0.02
OVERSIZED: Final = 2.0  # times the median norm
# A bearing below it agrees with nobody; that of noise lies within 0.004 of 0 (contrib/LOG.md, attackers).
STRAY: Final = 0.01
# Nearer by this than the (colluders + 1)-th: kin. In what is new, members of like texts come to 0.08, flippers to 0.4.
KIN: Final = 0.25
OWN_SHARE: Final = 0.25  # of a voter's gain: what leaving out a member must give back before it is named
DISTRUST_SHARE: Final = 0.02  # the same, where the member is distrusted
LEAST_HARM: Final = 0.001  # nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearing:
    """How a register lies among the others: `cosine` as in `bearings`, `size` its norm over the median norm.

    `doubted`: what its author sent last was refused, and a second try is not given the benefit of the doubt.
    """

    cosine: float
    size: float
    doubted: bool = False

    @property
    def opposed(self) -> bool:
        """Whether it points against the others."""
        return self.cosine < OPPOSED

    @property
    def estranged(self) -> bool:
        """Whether it has no part in what the others learn: against them, or large and with nobody (noise, say)."""
        return self.opposed or (self.size > OVERSIZED and self.cosine < STRAY)

    @property
    def distrusted(self) -> bool:
        """Whether little harm is enough to name its author."""
        return self.estranged or self.doubted

    @property
    def suspect(self) -> bool:
        """Whether its harm is worth measuring when nothing else is wrong."""
        return self.opposed or self.size > OVERSIZED or self.doubted


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One voter's held-out losses in nats: the base, the candidate, and the candidate without one member or all `jointly`."""

    base: float
    candidate: float
    without: Mapping[MemberId, float]
    jointly: float | None = None  # without all distrusted members
    parent: float | None = None

    @property
    def gain(self) -> float:
        """What training together has won for this voter, by the best model it knows of; not negative."""
        known = [self.candidate, *self.without.values(), self.jointly, self.parent]
        return max(0.0, self.base - min(loss for loss in known if loss is not None))


def bearings(registers: Mapping[MemberId, Register], colluders: int, *, kin: bool = False) -> dict[MemberId, Bearing]:
    """The bearing of each member: the (colluders + 1)-th largest cosine between its register and another's.

    That many colluders can neither lend each other a good bearing (one of the largest is an honest one's view) nor spoil
    an honest one's alone. Of fewer others, the smallest cosine. Registers are taken as vectors [P]; an empty one has
    cosine 0 with all.

    With `kin`, a member that has kin (others nearer to it by `KIN` than that one) has the upper median of its cosines with
    those that are none: fewer colluders than there may be would else hide behind the one or two honest members that they
    are nearest to. For what is new alone: honest kin with a language of their own send what lies across the others' new
    updates, but those also mend what came before, and so point against all of it together.
    """
    members = sorted(registers)
    table = np.stack([registers[m].units.astype(np.float32) for m in members]) if members else np.zeros((0, 0))
    norms = np.linalg.norm(table, axis=1) if members else np.zeros(0)
    units = table / np.maximum(norms, 1e-30)[:, None]
    cosines = units @ units.T
    middle = float(np.median(norms[norms > 0])) if bool((norms > 0).any()) else 1.0
    return {
        member: Bearing(
            cosine=_among(np.delete(cosines[place], place), colluders, kin=kin), size=float(norms[place]) / middle
        )
        for place, member in enumerate(members)
    }


def worst(one: Mapping[MemberId, Bearing], other: Mapping[MemberId, Bearing]) -> dict[MemberId, Bearing]:
    """For each member the smaller cosine and the larger size that either gives it."""
    return {
        m: Bearing(
            cosine=min(b.cosine for b in (one.get(m), other.get(m)) if b is not None),
            size=max(b.size for b in (one.get(m), other.get(m)) if b is not None),
            doubted=any(b.doubted for b in (one.get(m), other.get(m)) if b is not None),
        )
        for m in sorted({*one, *other})
    }


def _among(others: npt.NDArray[np.floating], colluders: int, *, kin: bool) -> float:
    """The bearing of one that has these cosines with the others, an honest one's view if they are 3 * colluders or more."""
    if not len(others):
        return 0.0
    ranked = np.sort(others)[::-1]
    seen = float(ranked[min(colluders, len(ranked) - 1)])
    strangers = ranked[ranked <= seen + KIN]
    if not kin or len(strangers) == len(ranked):
        return seen
    return min(seen, float(strangers[(len(strangers) - 1) // 2]))


def suspects(found: Mapping[MemberId, Bearing], of: Iterable[MemberId], *, worse: bool) -> tuple[MemberId, ...]:
    """Whose harm to measure, most suspicious first: who points against the others, sends much or is doubted; all if `worse`."""
    chosen = [m for m in of if worse or found[m].suspect]
    return tuple(sorted(chosen, key=lambda m: (found[m].cosine, -found[m].size, m)))


def threshold(measured: Measured, bearing: Bearing, tolerance: float) -> float:
    """How much harm (nats) a voter bears from a member before it names it.

    Of one that points with the others: the charter's tolerance, or a quarter of the own gain if that is more, since so
    much an honest member with foreign texts may cost. Of one that is distrusted: what measuring leaves in doubt.
    """
    if bearing.distrusted:
        return max(LEAST_HARM, DISTRUST_SHARE * measured.gain)
    return max(tolerance, OWN_SHARE * measured.gain)


def named(measured: Measured, found: Mapping[MemberId, Bearing], tolerance: float) -> tuple[MemberId, ...]:
    """Who is named by this voter, worst first.

    Each whose harm is over its threshold; and, when leaving out all distrusted members together wins more than their
    thresholds, every one of them whose absence alone does not cost this voter more than that: colluders who send the
    same hide each other.
    """
    harm = {member: measured.candidate - loss for member, loss in measured.without.items()}
    limit = {member: threshold(measured, found[member], tolerance) for member in harm}
    guilty = {member for member in harm if harm[member] > limit[member]}
    distrusted = [member for member in harm if found[member].distrusted]
    if measured.jointly is not None and distrusted:
        together = measured.candidate - measured.jointly
        if together > sum(limit[member] for member in distrusted):
            guilty |= {member for member in distrusted if harm[member] > -limit[member]}
    return tuple(sorted(guilty, key=lambda member: (-harm[member], member)))
