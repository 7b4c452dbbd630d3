"""Runs a simulated collective from its genesis to its last release: the loop, and who comes, goes, trains and votes when.

Members act in ticks: after something arrived, and from time to time. Knows no bytes of a message and no rule of a vote.
Invariant: one event at a time, all draws seeded, so the same configuration gives the same feeds; a member that is away does
nothing, and starts anew from its store when it comes back.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ledger import events
from ledger.charter import Charter
from node.simulation import founding
from node.simulation.clock import Clock
from node.simulation.config import SimulationConfig
from node.simulation.hostile import HostileMember
from node.simulation.learning import Counted
from node.simulation.mail import Habits, Mail
from node.simulation.member import Member, view_of
from node.simulation.swarm import Links, Split, Swarm
from node.simulation.watching import Budget, Watch
from protocol.ids import Digest

Progress = Callable[[str, float], None]
_TICK_MS = 100  # what arrives within this time is looked at together
_SETTLE_MS = 600_000
_POLL_MS = 1000
_PATIENT = 0.6  # of the charter's patience: how long an attacker waits to be the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A simulation that has ended."""

    config: SimulationConfig
    charter: Charter
    members: tuple[Member, ...]
    watch: Watch
    budget: Budget
    swarm: Swarm
    trainer: Counted
    finished: bool  # whether every member that was there got all releases in time
    ended_s: float  # simulated seconds at the last release, before settling
    settled_s: float | None  # how long feeds took to become equal afterwards; None: they did not
    views: tuple[Digest | None, ...]  # of each member at the end
    kills: int
    lost_runs: int
    events: int
    seconds: float  # of this machine, all of it
    cpu_s: float


class World:
    """One simulation; `run` may be called once."""

    def __init__(self, config: SimulationConfig, folder: Path, *, cache: Path, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self._began, self._cpu = time.monotonic(), time.process_time()
        made = founding.found(config, folder, cache=cache, progress=progress)
        self.charter, self.members, self.trainer = made.charter, made.members, made.trainer
        self.clock: Clock = made.clock
        seed = config.simulation.seed
        self.swarm = Swarm(self.clock, _links(config), len(self.members), _drawn(seed, "network"))
        self.budget = Budget(self.charter, self.members, config.evaluation.per_release, seed)
        self.watch = Watch(self.members, self.clock, self.swarm, sample=config.evaluation.members, seed=seed)
        self.mail = [Mail(m, self.swarm, _habits(config), self._waker(m)) for m in self.members]
        self._ticking: set[int] = set()
        self._frozen = False  # after the last release: nobody votes or trains any more
        self._churn = _drawn(seed, "churn")
        self._speed = [
            math.exp(config.training.spread * _drawn(seed, f"speed/{m.number}").gauss()) for m in self.members
        ]
        self.kills = 0

    async def run(self) -> Outcome:
        """Everything; simulated time is in the outcome."""
        config, clock = self.config, self.clock
        for member in self.members:
            member.may_measure = lambda m: self.watch.watching or self.budget.allows(m)
            member.open()
        for mail in self.mail:
            mail.meet(self.mail)
        self.members[0].seat.append(events.Genesis(charter=self.charter.to_json()))
        for member in self.members:
            self._wake(member)
            self._patrol(member)
        self._plan_churn()
        end = round(config.simulation.hours * 3_600_000)
        finished = await clock.run(self._complete, end_ms=end)
        ended = clock.seconds()
        settled = await self._settle()
        return Outcome(
            config=config,
            charter=self.charter,
            members=self.members,
            watch=self.watch,
            budget=self.budget,
            swarm=self.swarm,
            trainer=self.trainer,
            finished=finished,
            ended_s=ended,
            settled_s=settled,
            views=tuple(view_of(m) for m in self.members),
            kills=self.kills,
            lost_runs=sum(m.lost_runs for m in self.members),
            events=clock.done,
            seconds=time.monotonic() - self._began,
            cpu_s=time.process_time() - self._cpu,
        )

    # -- a member's turn -----------------------------------------------------------------------------------------------
    def _waker(self, member: Member) -> Callable[[], None]:
        return lambda: self._wake(member)

    def _wake(self, member: Member) -> None:
        if member.number not in self._ticking:
            self._ticking.add(member.number)
            self.clock.after(_TICK_MS, lambda: self._tick(member))

    def _patrol(self, member: Member) -> None:
        """Look again from time to time: attempts and patience end by time alone."""
        every = min(5000.0, self.config.collective.timeout_s * 250)

        def again() -> None:
            self._wake(member)
            self.clock.after(every * member.random.uniform(0.9, 1.1), again)

        again()

    async def _tick(self, member: Member) -> None:
        self._ticking.discard(member.number)
        if member.number in self.swarm.away or self._frozen:
            return
        if member.fold.known and member.seat.dataset_root("rows") is None:
            founding.commit(member)
        acted = await member.step()
        mail = self.mail[member.number]
        if member.wanted:
            mail.want(member.wanted)
            member.wanted = []
        if await self.watch.look(member):
            done = len(self.watch.seen)
            self.progress(
                f"release {done} of {self.config.simulation.releases}", done / self.config.simulation.releases
            )
        if len(member.fold.releases) < self.config.simulation.releases and await member.begin():
            self._under_way(member)
        mail.announce()
        if acted:
            self._wake(member)

    def _under_way(self, member: Member) -> None:
        life = member.life
        took = self.config.training.run_s * self._speed[member.number] * 1000 * member.random.uniform(0.95, 1.05)
        last = self.clock.elapsed + took + self.charter.release.patience_ms * _PATIENT

        async def end() -> None:
            if member.life != life or member.number in self.swarm.away or self._frozen:
                return
            if isinstance(member, HostileMember) and member.waits() and self.clock.elapsed < last:
                self.clock.after(_POLL_MS, end)
                return
            await member.end()
            self._wake(member)

        self.clock.after(took, end)

    # -- coming and going --------------------------------------------------------------------------------------------------
    def _plan_churn(self) -> None:
        churn = self.config.churn
        count = round(churn.share * len(self.members))
        for number in sorted(self._churn.sample(range(len(self.members)), count)):
            self.clock.after(self._churn.expovariate(1 / churn.stay_s) * 1000, self._leaver(self.members[number]))

    def _leaver(self, member: Member) -> Callable[[], None]:
        def leave() -> None:
            if self._frozen:
                return
            self.kills += 1
            self.swarm.away.add(member.number)
            member.kill()
            self.clock.after(self._churn.expovariate(1 / self.config.churn.away_s) * 1000, self._comer(member))

        return leave

    def _comer(self, member: Member) -> Callable[[], None]:
        def come() -> None:
            if member.number not in self.swarm.away:
                return
            self._return(member)
            self.clock.after(self._churn.expovariate(1 / self.config.churn.stay_s) * 1000, self._leaver(member))

        return come

    def _return(self, member: Member) -> None:
        """A start of the node: it asks around at once, as one who comes back does."""
        self.swarm.away.discard(member.number)
        member.open()
        mail = self.mail[member.number]
        mail.reset()
        mail.fetch_missing()
        mail.announce()
        mail.look_around()
        self._wake(member)

    # -- the end -------------------------------------------------------------------------------------------------------
    def _complete(self) -> bool:
        wanted = self.config.simulation.releases
        if len(self.watch.seen) < wanted:
            return False
        here = [m.number for m in self.watch.honest if m.number not in self.swarm.away]
        return all(number in self.watch.seen[wanted - 1].held for number in here)

    async def _settle(self) -> float | None:
        """Everybody comes back, nobody acts: how long (s) until all hold the same entries and blobs."""
        self._frozen = True
        for number in sorted(self.swarm.away):
            self._return(self.members[number])
        self.progress("settling", 1.0)
        began = self.clock.elapsed
        for mail in self.mail:
            mail.announce()
        equal = await self.clock.run(self._equal, end_ms=began + _SETTLE_MS)
        return (self.clock.elapsed - began) / 1000 if equal else None

    def _equal(self) -> bool:
        if self.clock.done % 50:  # comparing everybody costs more than an event
            return False
        first, *others = self.members
        sizes = first.store.sizes()
        if any(other.store.sizes() != sizes for other in others):
            return False
        blobs = set(first.blobs.digests())
        return all(set(other.blobs.digests()) == blobs for other in others)


def _links(config: SimulationConfig) -> Links:
    return Links(
        delay_ms=config.network.delay_ms,
        bytes_per_ms=config.network.bandwidth_kbit / 8,
        loss=config.network.loss,
        splits=[
            Split(
                start=round(each.start_s * 1000),
                end=round(each.end_s * 1000),
                group=dict.fromkeys(range(each.members), 1),
            )
            for each in config.splits
        ],
    )


def _habits(config: SimulationConfig) -> Habits:
    net = config.network
    return Habits(heads_every=net.heads_every_s * 1000, retry=net.retry_s * 1000, announce_to=net.announce_to)


def _drawn(seed: int, what: str) -> random.Random:
    return random.Random(f"{seed}/{what}")  # noqa: S311 - repeatable on purpose


def simulate(
    config: SimulationConfig, folder: Path, *, cache: Path, progress: Progress = lambda _text, _part: None
) -> Outcome:
    """Run a whole simulation; `folder` is empty and gets rows, runs and vectors.

    Raises:
        ConfigError, BadCharter, BadAdapter, DownloadFailed: it cannot begin.
    """
    import asyncio

    return asyncio.run(World(config, folder, cache=cache, progress=progress).run())
