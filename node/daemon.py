"""`fishernet up`: every part of the running node under one supervisor, on one event loop.

    swarm (p2pd) -> sync (feeds, blobs) -> seat (fold) -> council (votes) and rounds (training) -> shelf (serving) -> API
Starts the parts that need the charter once it is known, ends all of them within five seconds of SIGTERM, and leaves no
process. Knows no rule: the parts decide. Invariant: one daemon a home, one writer of its ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections import deque
from collections.abc import Mapping
from typing import Final

from contrib import adapters
from contrib.adapters import AdapterSpec
from contrib.models import Model as BaseModel
from ledger.cuts import Cut
from node import commands, control, http
from node.collective import succeeding
from node.collective.council import Council
from node.collective.joining import Joining
from node.collective.judging import Judge
from node.collective.measure import Scales
from node.collective.replay import Missing, Model, Replay
from node.collective.seat import now_ms
from node.collective.witnessing import Witnessing
from node.data import erasing
from node.data.egress import Egress, policy_of
from node.data.permits import Permits
from node.errors import NotAllowed
from node.network.streams import Tap
from node.network.swarm import Swarm, SwarmConfig
from node.serving.access import grants as key_grants
from node.serving.access.keyfile import KeyFile
from node.serving.access.log import AccessLog
from node.serving.api.app import Facts, Keys, create_app
from node.serving.models import Load, Serving
from node.serving.routing import configured
from node.serving.shelf import Holdings, Shelf
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.sync import Sync, SyncRules
from node.training.rounds import Rounds
from node.training.trainer import WorkerTrainer
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError, Retry
from protocol.ids import ZERO, Digest, MemberId

log = logging.getLogger("fishernet.daemon")
_TICK_S: Final = 0.5
_BURST_S: Final = 0.02
_STOP_S: Final = 4.0
_INSIST_S: Final = (1.5, 3.0)
_PARTS: Final = frozenset({"swarm", "sync", "control", "join", "watch", "api", "council", "train", "witness"})
_RETRY_RUN_S: Final = 15.0
_RETRY_SERVE_S: Final = 2.0


class Stop(Exception):
    """The operator asked the daemon to end."""


class RecentErrors(logging.Handler):
    """Keeps the last warnings for `status`."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.last: deque[dict[str, Json]] = deque(maxlen=20)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record."""
        self.last.append(
            {"time": int(record.created * 1000), "code": record.levelname.lower(), "text": record.getMessage()[:300]}
        )


class Daemon:
    """One running node: the wiring of its parts and the loops between them."""

    def __init__(
        self,
        session: Session,
        *,
        accept_fork_risk: bool = False,
        tap: Tap | None = None,
        errors: RecentErrors | None = None,
    ) -> None:
        """Build the parts; nothing runs before `run`. `tap` sees every byte this node authors before it leaves."""
        if session.identity is None:
            raise NotAllowed("couldn't start: the key is not open")
        seat, home, config = session.need_seat(), session.home, session.config
        self.session, self.seat, self.config = session, seat, config
        session.daemon = self
        self._errors = errors or RecentErrors()
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._settled = asyncio.Event()
        self._decided = len(seat.fold.decisions)
        self._epoch: Digest | None = None  # whose base and shape the trainer and the engine have
        self._jobs: asyncio.TaskGroup | None = None
        self.events = control.Events(now_ms)
        self.blobs = BlobStore(home.blobs)
        self.egress = Egress(seat, policy_of(config.egress))
        self.permits = Permits(seat, purpose=config.train.purpose, policy=self.egress.in_force)
        self.swarm = Swarm(
            SwarmConfig(
                identity=home.transport_key,
                listen=config.network.listen,
                run_dir=home.sockets(),
                known=config.network.peers,
                book=home.run / "addresses.json",
            ),
            tap=tap,
        )
        self.sync = Sync(
            store=session.store,
            blobs=self.blobs,
            network=self.swarm,
            collective=seat.collective,
            binding=session.identity.binding,
            rules=SyncRules(
                allowed=seat.may_read,
                on_records=seat.receive,
                wants=self._wants,
                farewell=seat.farewell,
                on_fork=seat.fork_found,
                serves=self.egress.serves,
                peers=lambda: seat.fold.peers,
                outdated=seat.fold.outdated,
            ),
        )
        self.joining = Joining(session, self.sync, self._next_change, accept_fork_risk=accept_fork_risk)
        self.holdings = Holdings(seat, self.blobs, self.sync, self._blob_arrived)
        self.replay = Replay(seat.fold, self.holdings.read)
        self.trainer = WorkerTrainer(
            threads=config.train.threads, length=config.train.length, rows_key=session.rows_key
        )
        self.scales = Scales(home, self.trainer, (), config.train.held_out_rows, permits=self.permits.evaluate)
        self.council = Council(seat, self.replay, Judge(seat, self.replay, self.scales, self.holdings.fetch))
        self.rounds = Rounds(
            seat,
            self.replay,
            self.blobs,
            self.trainer,
            self.scales,
            permits=self.permits,
            egress=self.egress,
        )
        self.witnessing = Witnessing(seat, session.identity, heartbeat_s=config.ledger.heartbeat_s)
        self.access = AccessLog(now_ms)
        self.access.take_up(home.served_counts)
        self.serving: Serving | None = None
        self.shelf: Shelf | None = None
        self.api_port: int | None = None
        seat.listen(lambda _member: self._changed.set())

    # -- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Run until a signal, a Fatal error, or cancellation."""
        if (warning := self.session.store.sqlite_warning()) is not None:
            log.info("event=sqlite warning=%s", warning)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            async with asyncio.TaskGroup() as jobs:
                self._jobs = self.holdings.jobs = jobs
                jobs.create_task(self.swarm.run(), name="swarm")
                jobs.create_task(self.sync.run(), name="sync")
                jobs.create_task(control.serve(self.session.home, self._dispatch, self.events), name="control")
                jobs.create_task(self._join(jobs), name="join")
                jobs.create_task(self._watch(), name="watch")
                await self._stop.wait()
                log.info("event=stopping")
                for after in _INSIST_S:
                    loop.call_later(after, self._insist)
                raise Stop
        except* Stop:
            log.info("event=stopped")
        finally:
            self._jobs = self.holdings.jobs = None
            stopping = [self.trainer.stop()]
            if self.serving:
                stopping.append(self.serving.stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*stopping, return_exceptions=True), _STOP_S)
            self._tell_served(ending=True)

    def stop(self) -> None:
        """Ask the daemon to end."""
        self._stop.set()

    @staticmethod
    def _insist() -> None:
        """Cancel again what is still there: a library may have swallowed the first time."""
        for task in asyncio.all_tasks():
            if task.get_name() in _PARTS:
                log.warning("event=cancelled-again task=%s", task.get_name())
                task.cancel()

    async def _join(self, jobs: asyncio.TaskGroup) -> None:
        """Become a working member; then vote and train until the end."""
        await self.joining.charter()
        self._epoch = self.seat.fold.charter.epoch_id
        model, adapter = await self._load_base()
        serve = self.config.serve
        load = Load(
            threads=self.config.train.threads,
            rows=serve.rows,
            max_active=serve.max_active,
            ram=serve.adapter_mib,
            dtype=None if serve.precision == "auto" else serve.precision,
        )
        experts = configured(serve.experts, self.session.home.path)
        self.serving = Serving(model=model.path, base=model.digest, adapter=adapter, load=load, experts=experts)
        self.shelf = Shelf(self.seat, self.replay, self.serving, self.holdings)
        jobs.create_task(self._serve(self.serving), name="api")
        await self.joining.seat()
        await self.joining.own_head()
        await self.joining.begin()
        self.use_data()
        self._settled.set()
        log.info("event=ready member=%s height=%s", self.seat.me[:12], self.seat.fold.height)
        jobs.create_task(self.witnessing.run(), name="witness")
        jobs.create_task(self.council.run(), name="council")
        jobs.create_task(self._train(), name="train")

    async def _load_base(self) -> tuple[BaseModel, dict[str, Json]]:
        """The charter's base and adapter shape, from now on those that runs are trained with and egress looks for."""
        model, spec = self.joining.base(), self.joining.spec().to_json()
        self.egress.layout = functools.cache(lambda: adapters.layout(model.path, AdapterSpec.parse(spec)))
        await self.trainer.load(model.path, spec)
        return model, {**spec, "coordinates": self.seat.fold.charter.adapter.coordinates}

    async def _follow_epoch(self) -> None:
        """Train, measure and serve with the base and shape that an amendment has named; answers under way end on the old one.

        Raises WrongBase, as at a start, when this node does not have the new base.
        """
        epoch = self.seat.fold.charter.epoch_id
        if self.serving is None or epoch == self._epoch:
            return
        model, adapter = await self._load_base()
        await self.serving.set_base(model=model.path, base=model.digest, adapter=adapter)
        self.shelf = Shelf(self.seat, self.replay, self.serving, self.holdings)
        self.use_data()  # what was measured, was measured on the old base
        self._epoch = epoch
        log.info("event=epoch base=%s", model.digest[:12])
        self.events.emit("epoch", base=model.digest)

    async def _serve(self, serving: Serving) -> None:
        serve, file = self.config.serve, KeyFile(self.session.home.api_keys)
        keys = Keys(file=file, judge=self._judge, log=self.access)
        app = create_app(serving, self._facts, api_keys=serve.api_keys, keys=keys)
        address = http.Address(host=serve.host, port=serve.port)
        async with asyncio.TaskGroup() as both:
            both.create_task(http.run_server(app, address, on_ready=self._api_up))
            if serve.preload:
                both.create_task(self._preload(serving))

    async def _preload(self, serving: Serving) -> None:
        """Load the model; meanwhile the API says at /ready that it is missing."""
        while not serving.running:
            try:
                await serving.start(preload=True)
            except Retry as e:
                log.warning("event=not-loaded code=%s cause=%s", e.code, e)
                await asyncio.sleep(_RETRY_SERVE_S)

    def _judge(self, grants: tuple[str, ...], purpose: str, now: int) -> tuple[str, ...]:
        """What the ledger says against the grants that an API key rests on."""
        return key_grants.against(self.seat.book, self.seat.past(), self.seat.me, grants, purpose, now)

    def _tell_served(self, *, ending: bool = False) -> None:
        """Write what was decided on API keys, when it is time; at the end keep what cannot be written."""
        if self._settled.is_set() and (self.access.due or ending):
            try:
                self.access.write(self.seat.append)
            except FishernetError as e:
                if isinstance(e, Fatal) and not ending:
                    raise
                log.log(logging.WARNING if ending else logging.DEBUG, "event=served-not-told code=%s", e.code)
        if ending:
            with contextlib.suppress(OSError):
                self.access.keep(self.session.home.served_counts)

    def _api_up(self, port: int) -> None:
        self.api_port = port
        log.info("event=api-up port=%s", port)

    async def _train(self) -> None:
        """First the run that was finished but not published when the node stopped, then runs of our own accord."""
        left = self.rounds.unpublished() is not None
        while True:
            loaded = self._epoch == self.seat.fold.charter.epoch_id  # else the base of a new epoch is on its way
            if loaded and (left or (self.config.train.auto and self.rounds.may_start(self.config.train))):
                try:
                    await self.rounds.contribute(self.config.train, self._progress)
                    left = False
                except FishernetError as e:
                    if isinstance(e, Fatal):
                        raise
                    log.warning("event=run-lost code=%s cause=%s", e.code, e)
                    left = self.rounds.unpublished() is not None  # it may have been refused for good
                    await asyncio.sleep(_RETRY_RUN_S)
            await asyncio.sleep(_TICK_S)

    async def _watch(self) -> None:
        """After every change: announce, erase what is asked, fetch blobs, tell what was decided, serve what is new."""
        while True:
            await self._next_change()
            self._tell_served()
            await self.sync.announce()  # first: nobody waits for a file that is written anew
            await erasing.tend(self.session)
            if self.seat.fold.known:
                self.holdings.fetch(self.seat.fold.pending())
            for decision in self.seat.fold.decisions[self._decided :]:
                number = decision.value.number if isinstance(decision.value, Cut) else None
                kind = "release" if number else "amendment"
                log.info("event=decided height=%s kind=%s digest=%s", decision.height, kind, decision.digest[:12])
                self.events.emit("decided", height=decision.height, what=kind, number=number, digest=decision.digest)
                self._decided += 1
                if (reason := succeeding.ended(self.seat)) is not None:
                    log.warning("event=succeeded cause=%s", reason)
                    self.seat.pause(reason)
            try:
                await self._follow_epoch()
                fresh = await self.shelf.update() if self.shelf is not None else []
            except FishernetError as e:  # the disk is full, the engine was lost: it is served later
                if isinstance(e, Fatal):
                    raise
                log.warning("event=not-served code=%s cause=%s", e.code, e)
                await asyncio.sleep(_RETRY_SERVE_S)
                continue
            for name, digest in fresh:
                self.events.emit("served", name=name, digest=digest)

    async def _next_change(self) -> None:
        with contextlib.suppress(TimeoutError):  # asyncio.wait_for may swallow a cancel before Python 3.12
            async with asyncio.timeout(_TICK_S):
                await self._changed.wait()
        await asyncio.sleep(_BURST_S)  # a burst of entries is one change
        self._changed.clear()

    def _blob_arrived(self) -> None:
        self._changed.set()
        self.council.poke()

    def _wants(self, member: MemberId) -> bool:
        """Whose feed we take: whoever has or had a seat; before the charter is here, whoever we were told to dial."""
        fold = self.seat.fold
        return not fold.known or member == self.seat.me or member in fold.ever_members()

    # -- answers -----------------------------------------------------------------------------------------------------
    async def _dispatch(self, name: str, args: Mapping[str, Json]) -> Json:
        result = await commands.dispatch(self.session, name, args)
        self._changed.set()
        return result

    def use_data(self) -> None:
        """Measure on the data sets that are committed now."""
        self.scales.use(self.rounds.datasets(self.config.train.datasets))

    def _facts(self) -> Facts:
        head = self.session.store.head(self.seat.collective, self.seat.me)
        releases = self.seat.fold.releases
        return Facts(
            node=self.config.node.name,
            head=head.root if head else ZERO,
            release=releases[-1].digest if releases else None,
            ready={"network": self.swarm.ready.is_set(), "member": self._settled.is_set(), **self._loaded()},
        )

    def _loaded(self) -> dict[str, bool]:
        """The engine, where it is to be loaded before requests come."""
        return {"engine": bool(self.serving and self.serving.running)} if self.config.serve.preload else {}

    def _progress(self, event: Mapping[str, Json]) -> None:
        if event.get("event") == "step":
            shown = {name: event.get(name) for name in ("step", "steps", "trial")}
            self.events.emit("train.step", **shown)

    async def train_now(self, steps: int | None) -> Json:
        """One run, now (raises NotAllowed before the node is a working member)."""
        if not self._settled.is_set():
            raise NotAllowed(f"couldn't train: {self.seat.paused or 'the node is not ready yet'}")
        if self._epoch != self.seat.fold.charter.epoch_id:
            raise NotAllowed("couldn't train: the base of the new epoch is being loaded; try again in a moment")
        return await self.rounds.contribute(self.config.train, self._progress, steps=steps)

    async def measure(self) -> Json:
        """Our held-out losses, exact and for the operator only: base, first own adapter alone, every release."""
        wanted: dict[str, Model | None] = {"base": None}
        own = self.rounds.first_own()
        if own is not None:
            wanted["own"] = own
        for decision in self.seat.fold.releases:
            if isinstance(decision.value, Cut) and decision.value.epoch == self._epoch:
                model = await asyncio.to_thread(self.replay.of_cut, decision.charter, decision.value)
                if not isinstance(model, Missing):
                    wanted[f"release-{decision.value.number}"] = model
        losses: dict[str, Json] = {}
        for name, loss in (await self.scales.losses(wanted)).items():
            accuracy = None if loss.accuracy is None else round(loss.accuracy * 10_000)
            losses[name] = {"micronats": round(loss.nats * 1_000_000), "rows": loss.rows, "accuracy_bp": accuracy}
        return {"losses": losses, "member": self.seat.me}

    def status(self) -> dict[str, Json]:
        """What only the running daemon knows."""
        fold, connected = self.seat.fold, self.swarm.peers()
        peers: list[Json] = []
        by_member = {m: p for p, m in fold.peers.items()}
        linked = {self.sync.member_of(p) for p in connected}
        for member in fold.charter.members if fold.known else ():
            if member.id != self.seat.me:
                peer = by_member.get(member.id)
                up = member.id in linked or peer in connected
                peers.append({"member": member.id, "name": member.name, "peer": peer, "connected": up})
        return {
            "running": True,
            "ready": self._settled.is_set(),
            "peer": self.swarm.peer,
            "addresses": list(self.swarm.addresses()),
            "peers": peers,
            "view": self.shelf.view if self.shelf else None,
            "attempt": self.council.attempt,
            "training": dict(self.rounds.progress),
            "serving": {
                "url": f"http://{self.config.serve.host}:{self.api_port}/v1" if self.api_port else None,
                "ready": bool(self.serving and self.serving.running),
                "models": [m.name for m in self.serving.models()] if self.serving else [],
            },
            "processes": {"p2pd": self.swarm.status().get("pid"), "trainer": self.trainer.pid},
            "sync": self.sync.status(),
            "errors": list(self._errors.last),
        }

    def asking(self) -> list[Json]:
        """Nodes without a seat that asked lately."""
        return [{"member": member, "peer": bound.peer} for member, bound in self.sync.asking().items()]
