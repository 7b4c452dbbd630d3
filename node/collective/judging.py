"""What this node thinks of a proposed decision: the ledger's rules, the recomputed registers, then our own losses.

Knows no votes and no clock. The answer is a `Judgement` (and the verdict to write down), or None while something is still
missing here: entries, blobs. Invariant: `sound` is what every honest node finds; only `accept` depends on our rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from contrib import recipes
from ledger import forgetting, rules
from ledger.collective import Collective, Contribution
from ledger.cuts import Amendment, Cut, Exclusion
from ledger.events import Verdict
from ledger.tally import Proposal
from ledger.votes import Judgement
from node.collective import copying
from node.collective.allowance import Allowance
from node.collective.blaming import Blame
from node.collective.gate import Reject
from node.collective.measure import Scales, difference
from node.collective.replay import Missing, Model, Replay, matches
from node.collective.seat import Seat
from protocol.ids import ZERO, EventId, MemberId

Wanted = Callable[[Iterable[Contribution]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A judgement and, for a release that was measured, the verdict that goes into our feed before the vote."""

    judgement: Judgement
    verdict: Verdict | None = None


class Judge:
    """Judges proposals of one collective."""

    def __init__(self, seat: Seat, replay: Replay, scales: Scales, wanted: Wanted) -> None:
        self._seat = seat
        self._replay = replay
        self._scales = scales
        self._wanted = wanted
        self._blame = Blame(seat, replay, scales)

    async def judge(self, proposal: Proposal) -> Finding | None:
        """Judge one proposal; None while entries or blobs it builds on are not here yet."""
        fold, value = self._seat.fold, proposal.value
        check = rules.check(fold, value)
        if isinstance(check, rules.Lacking):
            return None
        if isinstance(check, rules.Unfit):
            return _unsound(check.reason)
        if isinstance(value, Amendment):
            return self._amendment(value)
        covered = [c for published in fold.in_cut(value).values() for c in published]
        excluded = {x.event: x.reason for x in check.hard if x.reason != rules.COPIED}
        copied = {x.event for x in check.hard if x.reason == rules.COPIED}
        questioned = [c for published in fold.contributions.values() for c in published if c.event in excluded]
        copies = [c for published in fold.contributions.values() for c in published if c.event in copied]
        lacking = [c for c in (*covered, *questioned, *copies) if self._replay.examine(c) is None]
        if lacking:
            self._wanted(lacking)
            return None
        if any(isinstance(self._replay.examine(c), Reject) for c in covered):
            return _unsound("covers-rejected")
        for contribution in questioned:
            answer = self._replay.examine(contribution)
            if not (isinstance(answer, Reject) and answer.code == excluded[contribution.event]):
                return _unsound("exclusion-without-fault")
        wrong = await asyncio.to_thread(copying.wrong, fold, self._replay, value)
        if wrong:
            return _unsound(wrong)
        charter = fold.charter
        model = await asyncio.to_thread(self._replay.of_cut, charter, value)
        if isinstance(model, Missing):
            return None
        if not matches(value, model):
            return _unsound("wrong-model")
        here = {c.blob for c in eligible(self._seat, self._replay)}
        if rules.omitted(fold, self._seat.me, value, here):
            return Finding(judgement=Judgement(sound=True, accept=False, reason="omitted"))
        return await self._measure(proposal, value, model)

    def _amendment(self, value: Amendment) -> Finding | None:
        """What a quorum asked for is right, as far as this version can do it, and its head vector must be had here.

        The cut after it may not shrink below this head vector, so a blob that nobody has must not lie inside it.
        """
        fold, change = self._seat.fold, value.change
        inside = [c for c in fold.pending() if c.source.seq < value.place.size_of(c.member)]
        lacking = [c for c in inside if self._replay.examine(c) is None]
        if lacking:
            self._wanted(lacking)
            return None
        reach = held(self._seat, self._replay)
        if any(head.size > reach.get(head.member, 0) for head in value.place.heads if not fold.fork_known(head.member)):
            return _unsound("too-many-rejected")
        if change.get("field") == "recipe" and not recipes.fits_charters(change.get("value")):
            return Finding(judgement=Judgement(sound=True, accept=False, reason="unknown-recipe"))
        return Finding(judgement=Judgement(sound=True, accept=True))

    async def _measure(self, proposal: Proposal, cut: Cut, candidate: Model) -> Finding:
        fold, charter = self._seat.fold, self._seat.fold.charter
        before, parent = fold.current_cut(), None
        if before:
            parent = await asyncio.to_thread(self._comparable, before, cut)
        models: dict[str, Model | None] = {"base": None, "candidate": candidate}
        if isinstance(parent, Model):
            models["parent"] = parent
        losses = await self._scales.losses(models, diverging=True)
        mine, base = losses.get("candidate"), losses.get("base")
        than = losses.get("parent", base)
        worse = difference(mine, than)
        bad = worse is not None and worse > charter.gate.tolerance_centinats
        objections = await self._blame.objections(cut, candidate, losses) if losses else ()
        against = bad or bool(objections)
        tell = self._held_out() >= charter.gate.held_out_min
        verdict = Verdict(
            height=cut.place.height,
            candidate=proposal.digest,
            rows=mine.rows if mine else 0,
            versus_base=difference(mine, base) if tell else None,
            versus_parent=worse if tell else None,
            objections=objections,
        )
        return Finding(
            judgement=Judgement(sound=True, accept=not against, reason=rules.WORSE if against else ""),
            verdict=verdict if self._scales.active else None,
        )

    def _comparable(self, before: Cut, cut: Cut) -> Model | Missing:
        """The release before, without what `cut` leaves out of it: what that costs is no fault of who is new in `cut`."""
        fold = self._seat.fold
        gone = {x.event for x in cut.excluded}
        kept = [c for taken in fold.in_cut(before).values() for c in taken if c.event not in gone]
        return self._replay.merge(fold.charter_at(before.place.height), kept, before.place.height)

    def _held_out(self) -> int:
        """How many held-out rows we have committed to: with few of them a loss would say too much about each."""
        committed = self._seat.fold.data.get(self._seat.me, {})
        return sum(committed[d].held_out_rows for d in self._scales.datasets if d in committed)


def _unsound(reason: str) -> Finding:
    return Finding(judgement=Judgement(sound=False, accept=False, reason=reason))


def eligible(seat: Seat, replay: Replay) -> list[Contribution]:
    """Pending contributions that a cut of ours would take: blob here, hard checks passed, nothing missing before them."""
    reach = sizes(seat, replay)
    gone = rules.owed(seat.fold, rules.place(seat.fold, reach))
    pending = [c for c in seat.fold.pending() if c.source.seq < reach[c.member] and c.event not in gone]
    fit = [c for c in pending if not isinstance(replay.examine(c), Reject | None)]
    return [c for c in fit if not copying.repeated(seat.fold, replay, c)]


def overdue(seat: Seat, replay: Replay) -> set[EventId]:
    """Contributions in the newest release that a cut of ours would leave out on request, of an author or of a quorum."""
    fold = seat.fold
    cut = fold.current_cut()
    if cut is None or not (fold.forgotten or forgetting.decided(fold, fold.height)):
        return set()
    asked = rules.owed(fold, rules.place(fold, sizes(seat, replay)))
    return {c.event for taken in fold.in_cut(cut).values() for c in taken if c.event in asked}


def sizes(seat: Seat, replay: Replay) -> dict[MemberId, int]:
    """How far each feed can be covered by a cut of ours: what is `held`, as far as enough organisations cosigned it."""
    return rules.within_reach(seat.fold, held(seat, replay))


def held(seat: Seat, replay: Replay) -> dict[MemberId, int]:
    """How far each feed can be covered by a decision of ours: up to the first contribution contested or not here.

    Nor does it go beyond a member's share of the exclusions a cut can list, or one member could fill them all: a cut that
    does not fit into an entry is none. It never stays behind the decision before, whatever is missing.
    """
    fold = seat.fold
    found = {m: n for m, n in fold.sizes.items() if m in fold.ever_members()}
    before = fold.decisions[-1].value.place if fold.decisions else None
    found |= {m: before.size_of(m) if before else 0 for m in found if fold.fork_known(m)}
    allowance = Allowance(fold)
    refused = {x.event: x for x in rules.refused(fold, found)}
    contested = rules.contested(fold) - refused.keys()
    for contribution in fold.pending():
        member, seq = contribution.member, contribution.source.seq
        if seq >= found[member]:
            continue
        waits = replay.examine(contribution) is None or contribution.event in contested
        if not waits:
            out = refused.get(contribution.event) or _fault(fold, replay, contribution)
            waits = out is not None and not allowance.admits(member, out)
        if waits and not (before and seq < before.size_of(member)):
            found[member] = seq
    return found


def _fault(fold: Collective, replay: Replay, contribution: Contribution) -> Exclusion | None:
    """The exclusion that a contribution's own bytes lead to, or None."""
    answer = replay.examine(contribution)
    if isinstance(answer, Reject):
        return Exclusion(event=contribution.event, reason=answer.code, evidence=())
    if copying.repeated(fold, replay, contribution):
        return Exclusion(event=contribution.event, reason=rules.COPIED, evidence=())
    return None


def draft(seat: Seat, replay: Replay) -> Cut | Amendment:
    """The value we would propose now: a ripe amendment first, else a cut of all that is eligible. Pure but for blobs."""
    fold = seat.fold
    whole = rules.place(fold, held(seat, replay))
    for asked in fold.ripe_amendments():
        value = Amendment(place=whole, proposal=asked.source.event, change=asked.change)
        if isinstance(rules.check(fold, value), rules.Fits):
            return value
    covered = sizes(seat, replay)
    place = rules.place(fold, covered)
    previous = fold.current_cut()
    excluded = {x.event: x for x in (rules.carried(previous) if previous else ())}
    fresh, allowance = {c.event for c in fold.pending()}, Allowance(fold)
    for refusal in sorted(rules.refused(fold, covered), key=lambda x: x.event not in fresh):
        # What is new was admitted when it was `held`; what was released before has its own room, and what is left of the other.
        if allowance.admits(fold.sources[refusal.event].member, refusal, released=refusal.event not in fresh):
            excluded[refusal.event] = refusal
    for event, exclusion in rules.owed(fold, place).items():
        excluded.setdefault(event, exclusion)
    for contribution in fold.pending():
        answer = replay.examine(contribution)
        inside = contribution.source.seq < covered[contribution.member]
        if inside and isinstance(answer, Reject) and contribution.event not in excluded:
            excluded[contribution.event] = Exclusion(event=contribution.event, reason=answer.code, evidence=())
    excluded |= copying.found(fold, replay, place, excluded)
    releases = fold.releases
    return Cut(
        place=place,
        number=len(releases) + 1,
        parent_release=releases[-1].digest if releases else None,
        epoch=fold.charter.epoch_id,
        last=rules.last_of(fold, place),
        excluded=tuple(excluded[e] for e in sorted(excluded)),
        recipe=fold.charter.recipe,
        registers=(),
        model=ZERO,
    )
