"""Whom a voter names in its verdict: the members whose contributions make a candidate worse for its own rows.

    bearings of all registers (public, free) -> suspects -> their leave-one-out losses, all in one measurement
      -> named by `contrib.influence`; more members than the budget allows are left out in halves first

A member is left out with everything it has in the epoch, so harm that comes slowly adds up. What it has that was released
is named with the rest unless that costs this voter: the others have learnt on top of it. Knows no votes. Invariant: never
ourselves, and nobody whom our own losses do not speak against.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from contrib import influence
from contrib.influence import Bearing, Measured
from contrib.merging import registers_of
from ledger.collective import Contribution
from ledger.cuts import Cut
from ledger.events import Objection
from node.collective.gate import Accept
from node.collective.measure import Loss, Scales, difference
from node.collective.replay import Missing, Model, Replay
from node.collective.seat import Seat
from protocol.ids import MemberId

MAX_PROBES = 24  # models measured for one candidate besides base, parent and candidate
HARMS = "worse"  # reason of an objection

Without = frozenset[MemberId]


class Blame:
    """Finds out, for one seat, who does harm in a candidate."""

    def __init__(self, seat: Seat, replay: Replay, scales: Scales) -> None:
        self._seat = seat
        self._replay = replay
        self._scales = scales

    async def objections(self, cut: Cut, candidate: Model, losses: Mapping[str, Loss]) -> tuple[Objection, ...]:
        """The contributions to name, worst member first; `losses` are those of base, candidate and (if any) parent."""
        fold = self._seat.fold
        covered = fold.in_cut(cut)
        fresh = {fold.owner(c.member, cut.place.height) for c in fold.pending()} & set(covered)
        found = await asyncio.to_thread(self._bearings, covered, candidate)
        others = sorted(fresh - {fold.owner(self._seat.me, cut.place.height)})
        worse = self._worse(losses)
        suspects = influence.suspects(found, others, worse=worse)
        if not suspects:
            return ()
        measured = await self._measured(covered, suspects, found, losses)
        names = influence.named(measured, found, self._tolerance)
        if worse and not names:
            names = await self._alone(covered, suspects, losses)
        blamed = await self._blamed(covered, names)
        return tuple(Objection(event=c.event, reason=HARMS) for member in names for c in blamed[member])

    async def _blamed(
        self, covered: Mapping[MemberId, Sequence[Contribution]], names: Sequence[MemberId]
    ) -> Mapping[MemberId, Sequence[Contribution]]:
        """What to name of each member: everything, or only what is pending where our losses are lower with the rest left in."""
        pending = set(self._seat.fold.pending())
        fresh = {m: [c for c in covered[m] if c in pending] for m in names}
        old = {m: [c for c in covered[m] if c not in pending] for m in names}
        if not any(old.values()):
            return fresh
        others = {m: taken for m, taken in covered.items() if m not in fresh}
        nats = await self._losses({"none": self._merged(others), "old": self._merged(others | old)})
        return fresh if nats.get("old", math.inf) < nats.get("none", math.inf) else covered

    def _bearings(
        self, covered: Mapping[MemberId, Sequence[Contribution]], candidate: Model
    ) -> dict[MemberId, Bearing]:
        """The worse of two for each member: of its whole register, and (without its kin) of what is new among what is new."""
        fold = self._seat.fold
        pending, coordinates = set(fold.pending()), fold.charter.adapter.coordinates
        answers = {m: [self._replay.examine(c) for c in taken if c in pending] for m, taken in covered.items()}
        fresh = {
            member: registers_of([a.update for a in given if isinstance(a, Accept)], coordinates)
            for member, given in answers.items()
            if given
        }
        whole = influence.bearings(candidate.registers, fold.charter.faults)
        found = influence.worst(whole, influence.bearings(fresh, fold.charter.faults, kin=True))
        doubted = fold.doubted()
        return {member: replace(bearing, doubted=member in doubted) for member, bearing in found.items()}

    @property
    def _tolerance(self) -> float:
        return self._seat.fold.charter.gate.tolerance_centinats / 100

    def _worse(self, losses: Mapping[str, Loss]) -> bool:
        rise = difference(losses["candidate"], losses.get("parent", losses["base"]))
        return rise is not None and rise > self._seat.fold.charter.gate.tolerance_centinats

    async def _measured(
        self,
        covered: Mapping[MemberId, Sequence[Contribution]],
        suspects: Sequence[MemberId],
        found: Mapping[MemberId, Bearing],
        losses: Mapping[str, Loss],
    ) -> Measured:
        """Leave out each suspect, and all distrusted ones together."""
        distrusted = frozenset(m for m in suspects if found[m].distrusted)
        groups: list[Without] = [frozenset({m}) for m in suspects]
        if len(groups) >= MAX_PROBES:
            groups = await self._narrowed(covered, suspects, losses["candidate"])
        if len(distrusted) > 1:
            groups.append(distrusted)
        nats = await self._without(covered, groups)
        return Measured(
            base=losses["base"].nats,
            candidate=losses["candidate"].nats,
            parent=losses["parent"].nats if "parent" in losses else None,
            without={next(iter(group)): loss for group, loss in nats.items() if len(group) == 1},
            jointly=nats.get(distrusted),
        )

    async def _narrowed(
        self, covered: Mapping[MemberId, Sequence[Contribution]], suspects: Sequence[MemberId], candidate: Loss
    ) -> list[Without]:
        """Fewer than the budget of single members: groups are left out, and the worst of them halved until it is spent."""
        size = -(-len(suspects) // (MAX_PROBES // 3))
        groups = [frozenset(suspects[at : at + size]) for at in range(0, len(suspects), size)]
        spent, harm = 0, dict[Without, float]()
        while groups and spent + len(groups) <= MAX_PROBES // 2:
            spent += len(groups)
            harm |= {g: candidate.nats - nats for g, nats in (await self._without(covered, groups)).items()}
            worst = max((g for g in harm if len(g) > 1), key=lambda g: (harm[g], sorted(g)), default=None)
            if worst is None:
                break
            harm.pop(worst)
            ordered = [m for m in suspects if m in worst]
            half = len(ordered) // 2
            groups = [frozenset(ordered[:half]), frozenset(ordered[half:])]
        ranked = sorted((*harm, *(g for g in groups if g not in harm)), key=lambda g: -harm.get(g, 0.0))
        singles = [frozenset({m}) for group in ranked for m in suspects if m in group]
        return singles[: MAX_PROBES - spent]

    async def _alone(
        self,
        covered: Mapping[MemberId, Sequence[Contribution]],
        suspects: Sequence[MemberId],
        losses: Mapping[str, Loss],
    ) -> tuple[MemberId, ...]:
        """When leaving one out never helps (two send the same, and a mean hides either): who hurts alone, worst first."""
        pending = set(self._seat.fold.pending())
        everybody = {m: [c for c in taken if c not in pending] for m, taken in covered.items()}
        chosen = list(suspects[:MAX_PROBES])
        models = {f"only {n}": self._merged({**everybody, m: covered[m]}) for n, m in enumerate(chosen)}
        than = losses.get("parent", losses["base"]).nats
        nats = await self._losses(models)
        hurt = [(nats[f"only {n}"] - than, m) for n, m in enumerate(chosen) if f"only {n}" in nats]
        return tuple(member for cost, member in sorted(hurt, reverse=True) if cost > self._tolerance)

    async def _without(
        self, covered: Mapping[MemberId, Sequence[Contribution]], groups: Sequence[Without]
    ) -> dict[Without, float]:
        models = {
            f"without {n}": self._merged({m: taken for m, taken in covered.items() if m not in group})
            for n, group in enumerate(groups)
        }
        nats = await self._losses(models)
        return {group: nats[f"without {n}"] for n, group in enumerate(groups) if f"without {n}" in nats}

    def _merged(self, covered: Mapping[MemberId, Sequence[Contribution]]) -> Model | Missing:
        return self._replay.merge(self._seat.fold.charter, [c for taken in covered.values() for c in taken])

    async def _losses(self, models: Mapping[str, Model | Missing]) -> dict[str, float]:
        """All in one measurement."""
        known = {name: model for name, model in models.items() if isinstance(model, Model)}
        found = await self._scales.losses(known, diverging=True) if known else {}
        return {name: loss.nats for name, loss in found.items()}
