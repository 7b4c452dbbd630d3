"""What is seen of a simulation while it runs: each release, who held it when, what members lose on it, who was left out.

Knows the network's counters, not its messages. Invariant: watching changes nothing but the access log of the members whose rows
are measured: a measurement is a permitted access like any other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger import rules
from ledger.charter import Charter
from ledger.collective import Collective
from ledger.cuts import Cut
from node.collective.measure import Loss
from node.collective.replay import Missing, Model
from node.simulation.clock import Clock
from node.simulation.hostile import HostileMember
from node.simulation.member import Member
from node.simulation.swarm import Swarm
from protocol.canon import Json
from protocol.ids import MemberId


@dataclass(slots=True, kw_only=True)
class Seen:
    """One release, as it was when the first honest member held it."""

    number: int
    height: int
    attempt: int
    model: str
    release: str
    decided_s: float  # simulated seconds
    losses: list[float]  # nats of the measured members
    base: list[float]
    contributions: int  # that the release is the sum of
    fresh: int  # new in it
    fates: dict[str, int]
    excluded: list[dict[str, Json]]
    messages: int
    bytes: int
    lost: int
    sent: list[int]  # bytes that each member has sent so far
    voters_measured: int = 0
    evaluations: int = 0
    held: dict[int, float] = field(default_factory=dict)  # member -> when it held the decision, simulated seconds


class Budget:
    """Which voters may measure a candidate of a height, and how often together."""

    def __init__(self, charter: Charter, members: Sequence[Member], per_release: int, seed: int) -> None:
        self._per_release, self._seed = per_release, seed
        self._members = len(members)
        # base, parent and candidate are three; the base is measured once and the parent was a candidate before.
        self.voters = self._members if not per_release else max(1, min(self._members, per_release // 3))
        self.needed = len(charter.voters) - charter.quorum + 1  # so many must object before anything is refused
        self._spent: Counter[int] = Counter()
        self.measured: dict[int, set[int]] = {}

    def allows(self, member: Member) -> bool:
        """Whether a voter measures at the height that it is at; counted when it does."""
        if not member.fold.known:
            return False
        height = member.fold.height
        if self._per_release:
            drawn = random.Random(f"{self._seed}/voters/{height}")  # noqa: S311 - repeatable on purpose
            if member.number not in drawn.sample(range(self._members), self.voters):
                return False
            if self._spent[height] >= self._per_release:
                return False
        self._spent[height] += 1
        self.measured.setdefault(height, set()).add(member.number)
        return True

    def spent(self, height: int) -> int:
        """Measurements of voters that were allowed at a height."""
        return self._spent[height]


class Watch:
    """Keeps what was seen."""

    def __init__(self, members: Sequence[Member], clock: Clock, swarm: Swarm, *, sample: int, seed: int) -> None:
        self.members, self.clock, self.swarm = members, clock, swarm
        self.honest = [m for m in members if not isinstance(m, HostileMember)]
        draw = random.Random(f"{seed}/curve")  # noqa: S311 - repeatable on purpose
        count = min(sample or len(self.honest), len(self.honest))
        self.sample = sorted(draw.sample(self.honest, count), key=lambda m: m.number)
        self.seen: list[Seen] = []
        self.watching = False  # whether what is measured now is for the curves, not for a vote
        self._base: dict[int, float] = {}

    async def look(self, member: Member) -> bool:
        """Note the releases that a member holds by now; whether there was a new one."""
        fold, news = member.fold, False
        releases = fold.releases
        for number, decision in enumerate(releases, 1):
            if number > len(self.seen):
                if isinstance(member, HostileMember) or not isinstance(decision.value, Cut):
                    break
                model = member.replay.of_cut(decision.charter, decision.value)
                if isinstance(model, Missing):
                    break
                self.seen.append(await self._noted(member, number, model))
            seen = self.seen[number - 1]
            if member.number not in seen.held and seen.release == decision.digest:
                seen.held[member.number] = self.clock.seconds()
                news = True
        return news

    async def _noted(self, member: Member, number: int, model: Model) -> Seen:
        fold, traffic = member.fold, self.swarm.traffic
        decision = fold.releases[number - 1]
        cut = decision.value
        if not isinstance(cut, Cut):
            raise TypeError("a release is a cut")
        covered = fold.in_cut(cut)
        before = fold.releases[number - 2].value if number > 1 else None
        held = sum(len(taken) for taken in fold.in_cut(before).values()) if isinstance(before, Cut) else 0
        contributions = sum(len(taken) for taken in covered.values())
        losses, base = await self._measured(model)
        return Seen(
            number=number,
            height=decision.height,
            attempt=decision.attempt,
            model=cut.model,
            release=decision.digest,
            decided_s=self.clock.seconds(),
            losses=losses,
            base=base,
            contributions=contributions,
            fresh=contributions - held,
            fates=fates(fold),
            excluded=exclusions(fold, before if isinstance(before, Cut) else None, cut, self.members),
            messages=sum(traffic.messages.values()),
            bytes=sum(traffic.bytes.values()),
            lost=traffic.lost,
            sent=[traffic.sent[m.number] for m in self.members],
        )

    async def _measured(self, model: Model) -> tuple[list[float], list[float]]:
        self.watching = True
        losses, base = list[float](), list[float]()
        try:
            for member in self.sample:
                wanted: dict[str, Model | None] = {"release": model}
                if member.number not in self._base:
                    wanted["base"] = None
                found: dict[str, Loss] = await member.scales.losses(wanted, diverging=True)
                if "base" in found:
                    self._base[member.number] = found["base"].nats
                if "release" in found:
                    losses.append(found["release"].nats)
                    base.append(self._base[member.number])
        finally:
            self.watching = False
        return losses, base


def fates(fold: Collective) -> dict[str, int]:
    """How many contributions are released, pending, refused and stale, as one member sees it."""
    cut = fold.current_cut() if fold.known else None
    released = {c.event for taken in fold.in_cut(cut).values() for c in taken} if cut else set()
    made = [c for published in fold.contributions.values() for c in published]
    found = Counter("released" if c.event in released else fold.fate(c) for c in made)
    return {fate: found[fate] for fate in ("released", "pending", "refused", "stale")}


def exclusions(fold: Collective, before: Cut | None, cut: Cut, members: Sequence[Member]) -> list[dict[str, Json]]:
    """What a cut newly leaves out: whose, why, and the entries that prove it with who wrote them."""
    old = {x.event for x in before.excluded} if before else set()
    by_id: dict[MemberId, Member] = {m.id: m for m in members}
    found: list[dict[str, Json]] = []
    for x in cut.excluded:
        if x.event in old:
            continue
        source = fold.sources[x.event]
        member = by_id[source.member]
        authors = sorted(by_id[fold.sources[e].member].name for e in x.evidence if e in fold.sources)
        found.append(
            {
                "member": member.name,
                "attack": member.plot.attack.name if isinstance(member, HostileMember) else None,
                "number": next(
                    (c.number for c in fold.contributions.get(source.member, ()) if c.event == x.event), None
                ),
                "event": x.event,
                "reason": x.reason,
                "evidence": list(x.evidence),
                "by": list(authors),
                "hard": x.reason != rules.REFUSED,
            }
        )
    return found
