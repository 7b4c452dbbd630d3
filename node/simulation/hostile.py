"""A simulated member that means harm: an attack of `attackers` put in the place of honest rounds and votes.

It keeps its own feed like everybody and cannot sign for others; what it forges are its rows, its update's bytes, its card and its
votes. Invariant: before `from_release`, and wherever the attack says nothing, it does what an honest member does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from contrib import updates
from contrib.updates import Vector
from ledger.access import egress
from ledger.access.egress import Answer
from ledger.charter import Charter
from ledger.cuts import Cut
from ledger.events import Objection
from ledger.rules import WORSE
from ledger.tally import Proposal
from ledger.votes import Judgement
from node.collective.gate import Accept
from node.collective.judging import Finding, Judge
from node.collective.measure import Scales
from node.data.egress import Egress
from node.home import Home
from node.simulation.attackers import Attack, Chance, Forged
from node.simulation.learning import load_vector
from node.simulation.member import Kit, Member
from node.training.rounds import Rounds
from node.training.runs import Ran
from protocol import contribution as blobs
from protocol.card import Card
from protocol.ids import MemberId
from protocol.keys import SigningKey
from protocol.sparse import SparseUpdate


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Who does what together: the attack, its colluders by member id in their order, and when it begins."""

    attack: Attack
    colluders: tuple[MemberId, ...]
    place: int
    from_release: int


class HostileMember(Member):
    """One of the colluders of a plot."""

    def __init__(
        self, number: int, name: str, home: Home, key: SigningKey, kit: Kit, rng: random.Random, plot: Plot
    ) -> None:
        super().__init__(number, name, home, key, kit, rng)
        self.plot = plot

    @property
    def active(self) -> bool:
        """Whether the attack has begun."""
        return self.fold.known and len(self.fold.releases) + 1 >= self.plot.from_release

    def others(self) -> Mapping[MemberId, SparseUpdate]:
        """The newest update of every member that is no colluder, as far as it is held here."""
        found: dict[MemberId, SparseUpdate] = {}
        for member, published in self.fold.contributions.items():
            if member in self.plot.colluders or not published:
                continue
            answer = self.replay.examine(published[-1])
            if isinstance(answer, Accept):
                found[member] = answer.update
        return found

    def waits(self) -> bool:
        """Whether honest members have not sent anything in this round yet: an attacker moves last."""
        if not self.active:
            return False
        colluders = self.plot.colluders
        sent = {c.member for c in self.fold.pending() if c.member not in colluders and self.blobs.has(c.blob)}
        return len(sent) < len(self.fold.charter.contributors) - len(colluders)

    def chance(self, residual: Vector, fisher: Vector, view: Vector, charter: Charter) -> Chance:
        """What the attack has in hand now; its draws depend on seed, member and round alone."""
        turn = len(self.fold.contributions.get(self.id, ())) + 1
        return Chance(
            place=self.plot.place,
            colluders=len(self.plot.colluders),
            round=turn,
            rng=np.random.default_rng([self.random.getrandbits(32), turn]),
            residual=residual,
            fisher=fisher,
            view=view,
            others=self.others(),
            coordinates=charter.adapter.coordinates,
            density_ppm=charter.update.density_ppm,
            value_bits=charter.update.value_bits,
            block=charter.update.block,
            norm_cap_micro=charter.gate.norm_cap_micro,
        )

    def _door(self) -> Egress:
        return _OpenDoor(self.seat, egress.DEFAULT)

    def _rounds(self, scales: Scales) -> Rounds:
        return _ForgingRounds(self, scales)

    def _judge(self) -> Judge:
        return _SmearingJudge(self)


class _OpenDoor(Egress):
    """An attacker does not hold itself back."""

    def examine(self, blob: bytes, purposes: Sequence[str], *, coordinates: int) -> Answer:
        return egress.Accept()


class _ForgingRounds(Rounds):
    """Rounds whose update is what the attack makes of what was learnt."""

    def __init__(self, member: HostileMember, scales: Scales) -> None:
        super().__init__(
            member.seat,
            member.replay,
            member.blobs,
            member.kit.trainer,
            scales,
            permits=member.permits,
            egress=member.egress,
        )
        self._member = member
        self._forged: Forged | None = None

    def _make(self, ran: Ran, charter: Charter) -> tuple[Vector, Vector, updates.Made]:
        learnt, left, made = super()._make(ran, charter)
        self._forged = None
        if self._member.active:
            unsent = left.copy()  # what was left to send before this update
            unsent[made.update.indices] += made.update.values()
            fisher, view = load_vector(ran.fisher), load_vector(ran.view_vector)
            self._forged = self._member.plot.attack.forge(self._member.chance(unsent, fisher, view, charter))
        return learnt, left, made

    def _packed(self, ran: Ran, charter: Charter, number: int, made: updates.Made) -> tuple[Card, bytes]:
        card, blob = super()._packed(ran, charter, number, made)
        forged = self._forged
        if forged is None:
            return card, blob
        lying = replace(card, sent=forged.sent, norm_micro=forged.norm_micro)
        return lying, blobs.pack(lying, forged.data, self._member.key)


class _SmearingJudge(Judge):
    """Judges as an honest voter, then names whom the attack is against."""

    def __init__(self, member: HostileMember) -> None:
        super().__init__(member.seat, member.replay, member.scales, member._want)
        self._member = member

    async def judge(self, proposal: Proposal) -> Finding | None:
        """The honest finding, with the plot's objections in it."""
        finding, member = await super().judge(proposal), self._member
        objects, cut = member.plot.attack.objects, proposal.value
        if finding is None or not finding.judgement.sound or objects is None or not member.active:
            return finding
        if not isinstance(cut, Cut) or finding.verdict is None:
            return finding
        colluders, pending = member.plot.colluders, member.fold.pending()
        fresh = [c for taken in member.fold.in_cut(cut).values() for c in taken if c in pending]
        named = objects(sorted({c.member for c in fresh} - set(colluders)), colluders)
        objections = tuple(Objection(event=c.event, reason=WORSE) for c in fresh if c.member in named)
        if not objections:
            return finding
        return Finding(
            judgement=Judgement(sound=True, accept=False, reason=WORSE),
            verdict=replace(finding.verdict, objections=objections),
        )
