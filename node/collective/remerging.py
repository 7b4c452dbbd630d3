"""A release as it would be if some contributions had never been in it: computed twice, and both must agree to the byte.

Once by taking their updates out of the registers (exact integer subtraction), once by merging the others alone. Knows no
store and no votes: what comes out is a value beside a release, never a release. Law: for every set of contributions and every
part of it, `merge` then `remove` has the bytes of a merge without the part. What others learnt from a view that had them in it
stays in their contributions: this is no unlearning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from contrib import merging, recipes
from contrib.merging import Register
from ledger.charter import Charter
from ledger.collective import Collective, Contribution, Decision
from ledger.cuts import Cut
from node.collective.gate import Accept
from node.collective.replay import Missing, Model, Replay
from node.errors_serving import NotRecomputable
from protocol.ids import Digest, EventId, MemberId


@dataclass(frozen=True, slots=True, kw_only=True)
class Remerged:
    """One release that contained them: its model as decided, and the model without them (None: blobs are missing)."""

    decision: Decision
    cut: Cut
    gone: tuple[EventId, ...]  # of the asked ones, those that were in it, ascending
    later: tuple[EventId, ...]  # of the other ones in it, those that no release before the first with them had
    model: Digest | None
    twice: bool  # computed both ways; False where the blobs of those that are left out are gone
    missing: tuple[Digest, ...] = ()


def containing(fold: Collective, events: Collection[EventId]) -> Iterator[tuple[Decision, Cut, list[Contribution]]]:
    """Releases of every epoch with one of these contributions in them, oldest first, with all that is in each."""
    for decision in fold.releases:
        cut = decision.value
        if isinstance(cut, Cut):
            inside = [c for taken in fold.in_cut(cut).values() for c in taken]
            if any(c.event in events for c in inside):
                yield decision, cut, inside


def remerge(fold: Collective, replay: Replay, events: Collection[EventId]) -> list[Remerged]:
    """Every release that contained one of `events`, without them.

    Raises:
        NotRecomputable: the two ways disagree, so the arithmetic of this machine cannot be trusted.
    """
    found: list[Remerged] = []
    before: set[EventId] | None = None
    for decision, cut, inside in containing(fold, events):
        if before is None:
            parents = [d.value for d in fold.releases if d.height < decision.height]
            parent = parents[-1] if parents else None
            had = fold.in_cut(parent).values() if isinstance(parent, Cut) else ()
            before = {c.event for taken in had for c in taken}
        model, twice = without(fold, replay, decision, [c for c in inside if c.event in events])
        found.append(
            Remerged(
                decision=decision,
                cut=cut,
                gone=tuple(sorted(c.event for c in inside if c.event in events)),
                later=tuple(sorted(c.event for c in inside if c.event not in events and c.event not in before)),
                model=None if isinstance(model, Missing) else model.digest,
                twice=twice,
                missing=model.blobs if isinstance(model, Missing) else (),
            )
        )
    return found


def without(
    fold: Collective, replay: Replay, decision: Decision, gone: Collection[Contribution]
) -> tuple[Model | Missing, bool]:
    """The model of a release without these contributions, and whether both ways could be gone.

    Raises:
        NotRecomputable: they disagree.
        MergeRefused: a recipe that this version does not know.
    """
    cut = decision.value
    if not isinstance(cut, Cut):
        raise NotRecomputable(f"couldn't merge again: decision {decision.height} is no release")
    inside = [c for taken in fold.in_cut(cut).values() for c in taken]
    events = {c.event for c in gone}
    rest = replay.merge(decision.charter, [c for c in inside if c.event not in events], cut.place.height)
    whole = replay.merge(decision.charter, inside, cut.place.height)
    if isinstance(rest, Missing) or isinstance(whole, Missing):
        return rest, False
    registers = dict(whole.registers)
    for contribution in gone:
        answer = replay.examine(contribution)
        owner = fold.owner(contribution.member, cut.place.height)
        if isinstance(answer, Accept) and owner in registers:
            registers[owner] = merging.remove(registers[owner], answer.update)
    kept = {m: r for m, r in registers.items() if m in rest.registers or r.counts.any()}
    if _digests(kept) != _digests(rest.registers) or _merged(fold, decision.charter, cut, kept) != rest.digest:
        raise NotRecomputable(
            f"couldn't merge release {cut.number} again: taking out and never having had it differ",
            hint="run: fishernet audit",
        )
    return rest, True


def _merged(fold: Collective, charter: Charter, cut: Cut, registers: Mapping[MemberId, Register]) -> Digest:
    weights = fold.weights(charter, registers, cut.place.height)
    vector = recipes.merge(charter.recipe, registers, weights, len(weights), charter.adapter.coordinates)
    return merging.model_digest(vector)


def _digests(registers: Mapping[MemberId, Register]) -> dict[MemberId, Digest]:
    return {member: merging.register_digest(register) for member, register in sorted(registers.items())}
