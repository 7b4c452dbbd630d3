"""Taking part in the votes: drives `ledger.votes` with a clock, our judgement and our own feed.

Knows no network: what others say arrives in the fold. Invariant: a vote is durable in our feed before anybody hears of
it, and what we said is read back from there, so a restart continues and never contradicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ledger import events, votes
from ledger.cuts import Cut
from ledger.votes import Accept, Commit, Enter, Judgement, Moment, Object, Propose
from node.collective import judging
from node.collective.judging import Judge
from node.collective.replay import Missing, Replay, completed
from node.collective.seat import Seat
from node.errors import ChildError
from node.lasting import lasting
from protocol.ids import Digest

log = logging.getLogger("fishernet.council")
_TICK_S, _QUIET_S = 0.2, 1.0  # between two looks at the clock, while something is being decided and while nothing is


@dataclass(slots=True)
class _Attempt:
    """Where we are: height and attempt, since when its clock runs, and what we found out at this height."""

    height: int
    attempt: int
    since: float
    judged: dict[Digest, Judgement] = field(default_factory=dict)


class Council:
    """One voter's part in the decisions of its collective."""

    def __init__(
        self, seat: Seat, replay: Replay, judge: Judge, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seat = seat
        self._replay = replay
        self._judge = judge
        self._clock = clock
        self._wake = asyncio.Event()
        self._waiting_since: float | None = None
        self._at: _Attempt | None = None
        seat.listen(lambda _member: self._wake.set())

    async def run(self) -> None:
        """Act whenever something arrived or time passed; never returns, whatever but Fatal goes wrong."""
        await lasting(self._acts, log=log, event="vote-postponed")

    async def _acts(self) -> None:
        while True:
            self._wake.clear()  # what comes during a step is looked at after it
            if not await self.step():
                with contextlib.suppress(TimeoutError):  # asyncio.wait_for may swallow a cancel before Python 3.12
                    async with asyncio.timeout(_QUIET_S if self._quiet() else _TICK_S):
                        await self._wake.wait()

    def _quiet(self) -> bool:
        """Whether nothing waits for a decision, so that no time has to be kept."""
        fold = self._seat.fold
        return not fold.known or not (fold.pending() or votes.started(fold, self.attempt, due=False))

    def poke(self) -> None:
        """Look again: something outside the feeds has changed (a blob came)."""
        self._wake.set()

    @property
    def attempt(self) -> int:
        """The attempt we are in."""
        return self._at.attempt if self._at else 0

    def due(self) -> bool:
        """Whether there is something to decide: a ripe amendment, an erasure, enough contributions, or patience is over."""
        fold = self._seat.fold
        if fold.ripe_amendments() or judging.overdue(self._seat, self._replay):
            return True
        rules = fold.charter.release
        seats = {m.id for m in fold.charter.contributors}
        pacing = seats - fold.doubted() or seats  # an offender neither hurries a release nor is waited for
        since, enough = self._waiting_since, min(rules.wait_for, len(pacing))
        waits = since is not None and (self._clock() - since) * 1000 < rules.patience_ms
        if waits and len({fold.owner(c.member) for c in fold.pending()} & pacing) < enough:
            return False  # not enough even if all of it is eligible, which is dear to find out
        sent = {fold.owner(c.member) for c in judging.eligible(self._seat, self._replay)} & pacing
        if not sent:
            self._waiting_since = None
            return False
        self._waiting_since = self._waiting_since or self._clock()
        patient = (self._clock() - self._waiting_since) * 1000 < rules.patience_ms
        return len(sent) >= enough or not patient

    async def step(self) -> bool:
        """Do one act if there is one to do now; whether something was done."""
        fold = self._seat.fold
        if self._seat.paused or not fold.known or self._seat.me not in {m.id for m in fold.charter.voters}:
            return False
        at, now = self._here(), self._clock()
        leads = votes.proposer(fold.charter, fold.id, at.height, at.attempt) == self._seat.me
        # Once somebody has spoken, only whoever may propose has to know whether there is something to decide.
        due = (leads or not votes.started(fold, at.attempt, due=False)) and self.due()
        if not votes.started(fold, at.attempt, due=due):
            at.since = now
        moment = Moment(attempt=at.attempt, elapsed_ms=int((now - at.since) * 1000), due=due, judged=at.judged)
        act = votes.act(fold, self._seat.me, moment)
        match act:
            case Propose():
                return await self._propose(at, act)
            case votes.Judge():
                return await self._find_out(at, act)
            case Accept():
                self._say(events.Accepted(height=at.height, attempt=act.attempt, digest=act.digest))
            case Object():
                self._say(events.Objected(height=at.height, attempt=act.attempt, digest=act.digest, reason=act.reason))
            case Commit():
                self._say(events.Committed(height=at.height, attempt=act.attempt, digest=act.digest))
            case Enter():
                at.attempt, at.since = act.attempt, now
            case _:
                return False
        return True

    def _here(self) -> _Attempt:
        fold = self._seat.fold
        if self._at is None or self._at.height != fold.height:
            attempt = votes.starting_attempt(fold.tally, self._seat.me)
            self._at = _Attempt(height=fold.height, attempt=attempt, since=self._clock())
            self._waiting_since = None
        return self._at

    async def _propose(self, at: _Attempt, act: Propose) -> bool:
        fold = self._seat.fold
        value = fold.tally.values[act.digest] if act.digest else judging.draft(self._seat, self._replay)
        if isinstance(value, Cut) and not act.digest:
            model = await asyncio.to_thread(self._replay.of_cut, fold.charter, value)
            if isinstance(model, Missing) or fold.height != at.height:
                return False
            value = completed(value, model)
        self._say(
            events.Proposed(
                height=at.height, attempt=act.attempt, valid_attempt=act.valid_attempt, value=value.to_json()
            )
        )
        return True

    async def _find_out(self, at: _Attempt, act: votes.Judge) -> bool:
        try:
            finding = await self._judge.judge(act.proposal)
        except ChildError as e:
            log.warning("event=judging-failed code=%s cause=%s", e.code, e)
            await asyncio.sleep(1.0)
            return False
        if finding is None:
            return False
        said = self._seat.fold.tally_of(at.height).verdicts.get(self._seat.me, {})
        if finding.verdict is not None and act.proposal.digest not in said:
            self._say(finding.verdict)
        at.judged[act.proposal.digest] = finding.judgement
        return True

    def _say(self, event: events.Event) -> None:
        self._seat.append(event)
        log.info("event=%s height=%s", event.TYPE, getattr(event, "height", "-"))
