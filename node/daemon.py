"""`fishernet up`: every part of the running node under one supervisor, on one event loop.

Starts the parts (made in `node.parts`) that need the charter once it is known, ends all of them within five seconds of
SIGTERM, and leaves no process. Knows no rule: the parts decide. Invariant: one daemon a home, one writer of its ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Coroutine, Mapping
from typing import Final

from contrib import adapters
from contrib.adapters import AdapterSpec
from contrib.models import Model as BaseModel
from ledger.cuts import Cut
from node import commands, control, meters
from node.answers import Answers
from node.collective import succeeding
from node.collective.joining import Joining
from node.collective.seat import now_ms
from node.data import erasing, recovering
from node.guarding.bans import Ban
from node.lasting import lasting
from node.logs import Logs
from node.network.streams import Tap
from node.parts import build
from node.serving.front import Front
from node.session import Session
from node.twins import Twins
from protocol.canon import Json
from protocol.errors import FishernetError

log = logging.getLogger("fishernet.daemon")
_TICK_S: Final = 1.0
_BURST_S: Final = 0.02
_ANSWERED_S: Final = 0.2
_STOP_S: Final = 4.0
_INSIST_S: Final = (1.5, 3.0)
_JOBS: Final = frozenset(
    {"swarm", "sync", "control", "join", "watch", "announce", "twins", "keep", "api", "council", "train", "witness"}
)
_RETRY_RUN_S: Final = 15.0
_KEEP_S: Final = 5.0
_RETRY_SERVE_S: Final = 2.0
_SETTLING: Final = "what the feed says of a restored copy is not seen to yet: its log says why"


class Stop(Exception):
    """The operator asked the daemon to end."""


class Daemon:
    """One running node: the life of its parts and the loops between them."""

    def __init__(
        self,
        session: Session,
        *,
        accept_fork_risk: bool = False,
        tap: Tap | None = None,
        logs: Logs | None = None,
    ) -> None:
        """Build the parts; nothing runs before `run`. `tap` sees every byte this node authors before it leaves."""
        self._stop, self._changed, self._wrote = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.session = session
        self.logs = logs or Logs(session.home.path)
        self.parts = build(session, changed=self._changed.set, tap=tap)
        self.seat, session.growth = self.parts.seat, self.parts.growth
        self.events = control.Events(now_ms)
        self.front = Front(
            session,
            self.parts.replay,
            self.parts.holdings,
            ready=self._working,
            meters=lambda: meters.read(self.parts, self.logs),
        )
        self._jobs: asyncio.TaskGroup | None = None
        self.answers = Answers(self.parts, self.front, self.events, self.logs, spawn=self._spawn, restart=self._restart)
        self.parts.guard.told = self._banned
        self.parts.keeper.told = lambda found: self.events.emit("storage", code=found.code, text=found.text)
        session.daemon = self.answers
        self.joining = Joining(session, self.parts.sync, self._next_change, accept_fork_risk=accept_fork_risk)
        self.again = False  # whether to start anew after the end
        self.twins = Twins(self.seat, self.parts.looking, self.answers.linked)
        self._fork_risk, self._held = accept_fork_risk, self.seat.fold.sizes.get(self.seat.me, 0)
        self._decided = len(self.seat.fold.decisions)
        self.seat.listen(lambda member: self._wrote.set() if member == self.seat.me else None)

    # -- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Run until a signal, a Fatal error, or cancellation."""
        if (warning := self.session.store.sqlite_warning()) is not None:
            log.info("event=sqlite warning=%s", warning)
        loop, parts = asyncio.get_running_loop(), self.parts
        self.session.told = lambda stage, part: loop.call_soon_threadsafe(self._told, stage, part)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            async with asyncio.TaskGroup() as jobs:
                self._jobs = parts.holdings.jobs = jobs
                jobs.create_task(parts.swarm.run(), name="swarm")
                jobs.create_task(parts.sync.run(), name="sync")
                jobs.create_task(control.serve(self.session.home, self._dispatch, self.events), name="control")
                jobs.create_task(self._join(jobs), name="join")
                jobs.create_task(lasting(self._watch, log=log, event="not-served", rest_s=_RETRY_SERVE_S), name="watch")
                jobs.create_task(lasting(self._announce, log=log, event="not-announced"), name="announce")
                jobs.create_task(lasting(self._keep, log=log, event="not-kept", rest_s=_KEEP_S), name="keep")
                try:
                    await self._stop.wait()
                    log.info("event=stopping")
                finally:  # asked to, or a part has failed
                    for after in _INSIST_S:
                        loop.call_later(after, self._insist)
                raise Stop
        except* Stop:
            log.info("event=stopped")
        finally:
            self._jobs = parts.holdings.jobs = None
            stopping = asyncio.gather(parts.trainer.stop(), self.front.stop(), return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping, _STOP_S)
            if self.answers.settled.is_set():
                self.front.tell(ending=True)
            self.front.keep()
            parts.guard.save()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let `work`, which raises nothing, go on as long as the node runs."""
        if self._jobs is not None:
            self._jobs.create_task(work)
        else:
            work.close()

    def _hang_up(self) -> None:
        """SIGHUP: read node.toml again; a file that is not acceptable is said and changes nothing."""
        try:
            self.answers.reload()
        except FishernetError as e:
            log.warning("event=not-reloaded code=%s cause=%s", e.code, e)

    def stop(self, *, again: bool = False) -> None:
        """Ask the daemon to end; `again`: and to start anew."""
        self.again = again
        self._stop.set()

    def _restart(self) -> None:
        """Start anew once the answer to this command is out."""
        asyncio.get_running_loop().call_later(_ANSWERED_S, functools.partial(self.stop, again=True))

    def _banned(self, ban: Ban) -> None:
        until = None if ban.until is None else int(ban.until * 1000)
        self.events.emit("ban", peer=ban.peer, member=ban.member, by=ban.by, reason=ban.code, until=until)
        if self.answers.settled.is_set():
            self.parts.banning.tell(ban)

    def _told(self, stage: str, part: float) -> None:
        self.events.emit("progress", stage=stage, part=round(part * 1000))

    @staticmethod
    def _insist() -> None:
        """Cancel again what is still there: a library may have swallowed the first time."""
        for task in asyncio.all_tasks():
            if task.get_name() in _JOBS:
                log.warning("event=cancelled-again task=%s", task.get_name())
                task.cancel()

    def _working(self) -> dict[str, bool]:
        return {"network": self.parts.swarm.ready.is_set(), "member": self.answers.settled.is_set()}

    async def _dispatch(self, name: str, args: Mapping[str, Json]) -> Json:
        result = await commands.dispatch(self.session, name, args)
        self._changed.set()
        return result

    # -- becoming a working member -----------------------------------------------------------------------------------
    async def _join(self, jobs: asyncio.TaskGroup) -> None:
        """Become a working member; then vote and train until the end."""
        await self.joining.charter()
        epoch = self.seat.fold.charter.epoch_id
        model, adapter = await lasting(self._load_base, log=log, event="not-loaded", rest_s=_RETRY_SERVE_S)
        self.front.open(epoch, model, adapter)
        jobs.create_task(self.front.run(), name="api")
        await self.joining.seat()
        await self.joining.own_head()
        await lasting(self._settle, log=log, event="not-recovered")
        if not (self._fork_risk or await self.twins.be_alone()):
            log.warning("event=twin-gone")
            return self.stop(again=True)  # and ask everybody anew how long our feed has become
        await self.joining.caught_up(self.parts.rounds.readiness.lacking)
        await self.joining.begin()
        self.answers.use_data()
        self.answers.settled.set()
        log.info("event=ready member=%s height=%s", self.seat.me[:12], self.seat.fold.height)
        jobs.create_task(lasting(self.twins.run, log=log, event="twins-not-asked"), name="twins")
        jobs.create_task(self.parts.witnessing.run(), name="witness")
        jobs.create_task(self.parts.council.run(), name="council")
        jobs.create_task(lasting(self._train, log=log, event="run-lost", rest_s=_RETRY_RUN_S), name="train")

    async def _settle(self) -> None:
        """Take back what a restored copy lacks; until that went through nothing is written."""
        self.seat.pause(_SETTLING)
        recovering.settle(self.session, self._held)
        self.seat.pause(None)

    async def _load_base(self) -> tuple[BaseModel, dict[str, Json]]:
        """The charter's base and adapter shape, from now on those that runs are trained with and egress looks for."""
        model, spec = self.joining.base(), self.joining.spec().to_json()
        layout = functools.cache(lambda: adapters.layout(model.path, AdapterSpec.parse(spec)))
        self.parts.egress.layout = layout
        await self.parts.trainer.load(model.path, spec)
        return model, {**spec, "coordinates": self.seat.fold.charter.adapter.coordinates}

    async def _follow_epoch(self) -> None:
        """Train, measure and serve with the base and shape that an amendment has named; answers under way end on the old one.

        Raises WrongBase, as at a start, when this node does not have the new base.
        """
        epoch = self.seat.fold.charter.epoch_id
        if self.front.serving is None or epoch == self.front.epoch:
            return
        model, adapter = await self._load_base()
        await self.front.turn(epoch, model, adapter)
        self.answers.use_data()  # what was measured, was measured on the old base
        log.info("event=epoch base=%s", model.digest[:12])
        self.events.emit("epoch", base=model.digest)

    # -- loops -------------------------------------------------------------------------------------------------------
    async def _train(self) -> None:
        """First the run that was finished but not published when the node stopped, then runs of our own accord."""
        rounds = self.parts.rounds
        left = rounds.unpublished() is not None
        while True:
            wanted = self.session.config.train
            loaded = self.front.epoch == self.seat.fold.charter.epoch_id  # else the base of a new epoch is on its way
            if loaded and (left or (wanted.auto and rounds.may_start(wanted))):
                await rounds.contribute(wanted, self.answers.progress)
                left = False
            await asyncio.sleep(_TICK_S)

    async def _watch(self) -> None:
        """After every change: erase what is asked, fetch blobs, tell what was decided, serve what is new."""
        while True:
            await self._next_change()
            if self.answers.settled.is_set():
                self.front.tell()
            await erasing.tend(self.session)
            self._tell_decisions()
            if self.joining.catching_up():
                continue  # the newest release first: the one that is newest now will not be for long
            if self.seat.fold.known:
                self.parts.holdings.fetch(self.seat.fold.pending())
            await self._follow_epoch()
            for name, digest in await self.front.update():
                self.events.emit("served", name=name, digest=digest)
            if self.front.shelf is not None and self.front.shelf.behind:
                self._changed.set()  # go on with history, after whatever else has come meanwhile

    async def _announce(self) -> None:
        """Tell the others of each entry of ours as soon as it is written; what is written meanwhile goes with the next."""
        while True:
            await self._wrote.wait()
            self._wrote.clear()
            await self.parts.sync.announce()

    async def _keep(self) -> None:
        """Keep blobs within their room, and fetch history into what is left of it."""
        while True:
            await self.parts.keeper.tend()
            if not self.joining.catching_up():
                self.parts.holdings.tend()
            await asyncio.sleep(_KEEP_S)

    def _tell_decisions(self) -> None:
        for decision in self.seat.fold.decisions[self._decided :]:
            number = decision.value.number if isinstance(decision.value, Cut) else None
            kind = "release" if number else "amendment"
            log.info("event=decided height=%s kind=%s digest=%s", decision.height, kind, decision.digest[:12])
            self.events.emit("decided", height=decision.height, what=kind, number=number, digest=decision.digest)
            self._decided += 1
            if (reason := succeeding.ended(self.seat)) is not None:
                log.warning("event=succeeded cause=%s", reason)
                self.seat.pause(reason)

    async def _next_change(self) -> None:
        with contextlib.suppress(TimeoutError):  # asyncio.wait_for may swallow a cancel before Python 3.12
            async with asyncio.timeout(_TICK_S):
                await self._changed.wait()
        await asyncio.sleep(_BURST_S)  # a burst of entries is one change
        self._changed.clear()
