"""`fishernet up`: every part of the running node under one supervisor, on one event loop.

    swarm (p2pd) -> sync (feeds, blobs) -> seat (fold) -> council (votes) and rounds (training) -> serving -> API
Starts the parts that need the charter once it is known, ends all of them within five seconds of SIGTERM, and leaves no
process. Knows no rule: the parts decide. Invariant: the ledger is appended to by this process only, after peers were asked
how long our own feed is.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import sqlite3
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Final

from contrib import adapters, models
from ledger import events
from ledger.collective import Contribution
from ledger.cuts import Cut
from ledger.entry import Record
from ledger.store import Store
from node import commands, control, http
from node.api import Facts, create_app
from node.blobs import BlobStore
from node.council import Council
from node.errors import BlobMissing, NoCollective, NotAllowed, WrongBase
from node.home import Home, model_cache
from node.judging import Judge
from node.measure import Scales, save_view
from node.replay import Missing, Model, Replay
from node.rounds import Rounds
from node.seat import now_ms
from node.serving import Serving
from node.session import Session
from node.streams import Tap
from node.swarm import Swarm, SwarmConfig
from node.sync import Sync, SyncRules
from node.trainer import WorkerTrainer
from protocol.canon import Json
from protocol.errors import Fatal, FishernetError
from protocol.ids import ZERO, Digest, MemberId

log = logging.getLogger("fishernet.daemon")
_TICK_S: Final = 0.5
_HEAD_ANSWER_S: Final = 10.0
_STOP_S: Final = 4.0
_RETRY_RUN_S: Final = 15.0


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
    """One running node."""

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
        seat = session.need_seat()
        home, config = session.home, session.config
        self.session, self.seat, self.config = session, seat, config
        session.daemon = self
        self._fork_risk = accept_fork_risk
        self._errors = errors or RecentErrors()
        self.events = control.Events(now_ms)
        self.blobs = BlobStore(home.blobs)
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
            rules=SyncRules(allowed=seat.may_read, on_records=self._received, wants=self._wants),
        )
        self.replay = Replay(seat.fold, self._read_blob)
        self.trainer = WorkerTrainer(threads=config.train.threads)
        self.scales = Scales(home, self.trainer, (), config.train.held_out_rows)
        self.council = Council(seat, self.replay, Judge(seat, self.replay, self.scales, self._fetch))
        self.rounds = Rounds(seat, self.replay, self.blobs, self.trainer, self.scales)
        self.serving: Serving | None = None
        self.api_port: int | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._charter_here = asyncio.Event()
        self._settled = asyncio.Event()
        self._fetching: dict[Digest, asyncio.Task[None]] = {}
        self._served: set[int] = set()
        self._view: Digest | None = None
        self._decided = len(seat.fold.decisions)
        self._jobs: asyncio.TaskGroup | None = None
        seat.listen(self._on_change)

    # -- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Run until a signal, a Fatal error, or cancellation."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self.seat.pause("peers have not been asked yet how long our feed is")
        try:
            async with asyncio.TaskGroup() as jobs:
                self._jobs = jobs
                for job in (
                    self.swarm.run(),
                    self.sync.run(),
                    control.serve(self.session.home, self._dispatch, self.events),
                    self._settle(),
                    self._watch(),
                ):
                    jobs.create_task(job)
                await self._stop.wait()
                raise Stop
        except* Stop:
            log.info("event=stopping")
        finally:
            self._jobs = None
            stopping = [self.trainer.stop()]
            if self.serving:
                stopping.append(self.serving.stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*stopping, return_exceptions=True), _STOP_S)

    def stop(self) -> None:
        """Ask the daemon to end."""
        self._stop.set()

    # -- becoming a member -------------------------------------------------------------------------------------------
    async def _settle(self) -> None:
        """Before the first append: the charter is here and fits, we have a seat, and nobody holds more of our feed."""
        seat, jobs = self.seat, self._jobs
        if jobs is None:
            return
        if not seat.fold.known:
            log.info("event=waiting-for-charter collective=%s", seat.collective[:12])
        while not seat.fold.known:
            await self._next_change()
        self._check_base()
        jobs.create_task(self._serve())
        seat.pause("this node has no seat in the collective yet: a member must invite it")
        while seat.fold.charter.member(seat.me) is None:
            await self._next_change()
        await self._recover_head()
        self._introduce()
        self._settled.set()
        log.info("event=ready member=%s height=%s", seat.me[:12], seat.fold.height)
        for job in (self.council.run(), self._train()):
            jobs.create_task(job)

    def _check_base(self) -> None:
        """A node with another base stays out, and says so."""
        base, wanted = self.seat.fold.charter.base, self.config.node.model
        name = wanted or base.digest
        model = models.find(name, model_cache())
        if model.digest != base.digest:
            raise WrongBase(
                f"couldn't take part: the collective's base model is {base.name} ({base.digest[:12]}), "
                f"this node has {model.name} ({model.digest[:12]})",
                hint=f"fishernet model add {base.name}, then: fishernet config set node.model {base.digest[:12]}...",
            )
        self._model = model
        spec = adapters.AdapterSpec(
            rank=self.seat.fold.charter.adapter.rank,
            alpha=self.seat.fold.charter.adapter.alpha,
            targets=self.seat.fold.charter.adapter.targets,
            seed=self.seat.fold.charter.adapter.seed,
        )
        self._spec = spec

    async def _recover_head(self) -> None:
        """Ask peers for our own highest head; stay read-only while a mirror may know more and none answers."""
        seat = self.seat
        mirrored = any(m != seat.me and n > 0 for m, n in seat.fold.sizes.items())
        others = [m.id for m in seat.fold.charter.members if m.id != seat.me]
        seat.pause("no other member has said yet how long our feed is; this node trains and serves, but writes nothing")
        while mirrored and others and not self._fork_risk:
            answer = await self.sync.own_head_from_peers(_HEAD_ANSWER_S)
            if not answer.answered:
                log.warning("event=read-only cause=no member answered how long our feed is")
                continue
            ahead = answer.head.size if answer.head else 0
            while (held := self._own_size()) < ahead:
                log.warning("event=behind-own-feed held=%s known=%s", held, ahead)
                await self._next_change()
            break
        seat.pause(None)

    def _own_size(self) -> int:
        held = self.session.store.head(self.seat.collective, self.seat.me)
        return held.size if held else 0

    def _introduce(self) -> None:
        """The events every node writes when it begins: its binding when new, its versions, its data commitments."""
        seat, identity = self.seat, self.session.identity
        if identity is None:
            raise NotAllowed("couldn't start: the key is not open")
        if seat.fold.peers.get(identity.peer) != seat.me:
            seat.append(events.PeerBound(binding=dict(identity.binding)))
        seat.append(events.NodeStarted(versions=_versions(), fork_risk_accepted=self._fork_risk))
        self.session.commit_data()
        self.scales.use(self.rounds.datasets(self.config.train.datasets))

    # -- parts -------------------------------------------------------------------------------------------------------
    async def _serve(self) -> None:
        """The trainer's model, then the API until the end."""
        charter, serve = self.seat.fold.charter, self.config.serve
        spec = self._spec.to_json()
        await self.trainer.load(self._model.path, spec)
        self.serving = Serving(
            model=self._model.path,
            base=charter.base.digest,
            adapter={**spec, "coordinates": charter.adapter.coordinates},
            threads=self.config.train.threads,
        )
        self._charter_here.set()
        self._changed.set()
        app = create_app(self.serving, self._facts, api_keys=serve.api_keys)
        if serve.preload:
            await self.serving.start(preload=True)
        await http.run_server(app, http.Address(host=serve.host, port=serve.port), on_ready=self._api_up)

    def _api_up(self, port: int) -> None:
        self.api_port = port
        log.info("event=api-up port=%s", port)

    async def _train(self) -> None:
        """Runs of our own accord, one after the other."""
        while True:
            if self.config.train.auto and self.rounds.may_start(self.config.train):
                try:
                    await self.rounds.contribute(self.config.train, self._progress)
                except FishernetError as e:
                    if isinstance(e, Fatal):
                        raise
                    log.warning("event=run-lost code=%s cause=%s", e.code, e)
                    await asyncio.sleep(_RETRY_RUN_S)
            await self._next_change()

    async def _watch(self) -> None:
        """After every change: announce, fetch blobs, compute the view, serve what was released."""
        while True:
            await self._next_change()
            await self.sync.announce()
            if self.seat.fold.known:
                self._fetch(self.seat.fold.pending())
            await self._tell_decisions()
            if self._charter_here.is_set():
                await self._serve_releases()
                await self._serve_view()

    async def _next_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), _TICK_S)
        self._changed.clear()
        await asyncio.sleep(0.02)  # a burst of entries is one change

    async def _tell_decisions(self) -> None:
        for decision in self.seat.fold.decisions[self._decided :]:
            number = decision.value.number if isinstance(decision.value, Cut) else None
            kind = "release" if number else "amendment"
            log.info("event=decided height=%s kind=%s digest=%s", decision.height, kind, decision.digest[:12])
            self.events.emit("decided", height=decision.height, what=kind, number=number, digest=decision.digest)
        self._decided = len(self.seat.fold.decisions)

    async def _serve_releases(self) -> None:
        if self.serving is None:
            return
        for decision in self.seat.fold.releases:
            cut = decision.value
            if not isinstance(cut, Cut) or cut.number in self._served:
                continue
            if cut.epoch != self.seat.fold.charter.epoch_id:
                continue
            self._fetch(c for covered in self.seat.fold.in_cut(cut).values() for c in covered)
            model = await asyncio.to_thread(self.replay.of_cut, decision.charter, cut)
            if isinstance(model, Missing):
                continue
            if model.digest != cut.model:
                log.error("event=release-differs number=%s computed=%s", cut.number, model.digest[:12])
                continue
            path = await asyncio.to_thread(save_view, self.session.home, model)
            await self.serving.set_release(cut.number, decision.digest, path, model=cut.model)
            self._served.add(cut.number)
            self.events.emit("served", name=f"release-{cut.number}", digest=decision.digest)

    async def _serve_view(self) -> None:
        if self.serving is None:
            return
        objected = self._objected()
        model = await asyncio.to_thread(self.replay.view, lambda c: c.event not in objected)
        if isinstance(model, Missing) or model.digest == self._view or not model.registers:
            return
        path = await asyncio.to_thread(save_view, self.session.home, model)
        await self.serving.set_view(model.digest, path)
        self._view = model.digest
        self.events.emit("view", digest=model.digest)

    def _objected(self) -> set[str]:
        """Contributions we have objected to at this height."""
        mine = self.seat.fold.tally.verdicts.get(self.seat.me, {})
        return {o.event for _, verdict in mine.values() for o in verdict.objections}

    # -- news --------------------------------------------------------------------------------------------------------
    def _on_change(self, _member: MemberId) -> None:
        self._changed.set()

    def _received(self, member: MemberId, records: Sequence[Record]) -> None:
        self.seat.receive(member, records)

    def _wants(self, member: MemberId) -> bool:
        """Whose feed we take: everybody who has or had a seat; before the charter is here, whoever we were told to dial."""
        fold = self.seat.fold
        return not fold.known or member == self.seat.me or member in fold.ever_members()

    def _read_blob(self, digest: Digest) -> bytes | None:
        limit = self.seat.fold.charter.gate.max_blob_bytes if self.seat.fold.known else 0
        try:
            return self.blobs.read(digest, limit)
        except BlobMissing:
            return None
        except FishernetError as e:
            log.warning("event=blob-unusable blob=%s cause=%s", digest[:12], e)
            return None

    def _fetch(self, contributions: Iterable[Contribution]) -> None:
        """Fetch the blobs of these contributions, each once, from whoever has them."""
        if self._jobs is None:
            return
        for contribution in contributions:
            digest = contribution.blob
            if self.blobs.has(digest) or digest in self._fetching:
                continue
            if contribution.size > self.seat.fold.charter.gate.max_blob_bytes:
                continue
            task = self._jobs.create_task(self._fetch_one(digest, contribution.size, contribution.member))
            self._fetching[digest] = task
            task.add_done_callback(functools.partial(self._fetched, digest))

    def _fetched(self, digest: Digest, _task: asyncio.Task[None]) -> None:
        self._fetching.pop(digest, None)

    async def _fetch_one(self, digest: Digest, size: int, member: MemberId) -> None:
        try:
            await self.sync.want_blob(digest, size, prefer=[member])
        except FishernetError as e:
            log.warning("event=blob-not-fetched blob=%s code=%s cause=%s", digest[:12], e.code, e)
            return
        self._on_change(member)
        self.council.poke()

    # -- answers -----------------------------------------------------------------------------------------------------
    async def _dispatch(self, name: str, args: Mapping[str, Json]) -> Json:
        result = await commands.dispatch(self.session, name, args)
        self._changed.set()
        if name == "data.add":
            self.scales.use(self.rounds.datasets(self.config.train.datasets))
        return result

    def _facts(self) -> Facts:
        head = self.session.store.head(self.seat.collective, self.seat.me)
        releases = self.seat.fold.releases
        return Facts(
            node=self.config.node.name,
            head=head.root if head else ZERO,
            release=releases[-1].digest if releases else None,
            ready={"network": self.swarm.ready.is_set(), "member": self._settled.is_set()},
        )

    def asking(self) -> list[Json]:
        """Nodes without a seat that asked lately."""
        found: list[Json] = []
        for member, binding in self.sync.asking().items():
            found.append({"member": member, "peer": binding.peer})
        return found

    def _progress(self, event: Mapping[str, Json]) -> None:
        if event.get("event") == "step":
            self.events.emit("train.step", step=event.get("step"), steps=event.get("steps"))

    async def train_now(self, steps: int | None) -> Json:
        """One run, now."""
        if not self._settled.is_set():
            raise NotAllowed(f"couldn't train: {self.seat.paused or 'the node is not ready yet'}")
        config = self.config.train.model_copy(update={"steps": steps} if steps else {})
        return await self.rounds.contribute(config, self._progress)

    async def measure(self) -> Json:
        """Our held-out losses, exact and private to the operator: base, own adapter alone, every release."""
        found: dict[str, Json] = {}
        wanted: dict[str, Model | None] = {"base": None}
        own = self.rounds.first_own()
        if own is not None:
            wanted["own"] = own
        for decision in self.seat.fold.releases:
            if isinstance(decision.value, Cut):
                model = await asyncio.to_thread(self.replay.of_cut, decision.charter, decision.value)
                if not isinstance(model, Missing):
                    wanted[f"release-{decision.value.number}"] = model
        for name, loss in (await self.scales.losses(wanted)).items():
            accuracy = None if loss.accuracy is None else round(loss.accuracy * 10_000)
            found[name] = {"micronats": round(loss.nats * 1_000_000), "rows": loss.rows, "accuracy_bp": accuracy}
        return {"losses": found, "member": self.seat.me}

    def status(self) -> dict[str, Json]:
        """What only the running daemon knows."""
        fold = self.seat.fold
        connected = self.swarm.peers()
        peers: list[Json] = []
        if fold.known:
            by_member = {m: p for p, m in fold.peers.items()}
            for member in fold.charter.members:
                if member.id != self.seat.me:
                    peer = by_member.get(member.id)
                    linked = any(self.sync.member_of(p) == member.id for p in connected) or peer in connected
                    peers.append({"member": member.id, "name": member.name, "peer": peer, "connected": linked})
        running = self.serving is not None and self.api_port is not None
        return {
            "running": True,
            "peer": self.swarm.peer,
            "addresses": list(self.swarm.addresses()),
            "peers": peers,
            "view": self._view,
            "ready": self._settled.is_set(),
            "attempt": self.council.attempt,
            "training": dict(self.rounds.progress),
            "serving": {
                "url": f"http://{self.config.serve.host}:{self.api_port}/v1" if running else None,
                "ready": bool(self.serving and self.serving.running),
                "models": [m.name for m in self.serving.models()] if self.serving else [],
            },
            "processes": {"p2pd": self.swarm.status().get("pid"), "trainer": self.trainer.pid},
            "sync": self.sync.status(),
            "errors": list(self._errors.last),
        }


def main(home: Home, passphrase: str | None, *, accept_fork_risk: bool = False) -> None:
    """Run the node of `home` until SIGTERM or SIGINT.

    Raises:
        HomeBusy, StoreLocked: another process works on the home.
        Fatal kinds: what ended the daemon.
    """
    errors = RecentErrors()
    logging.basicConfig(
        level=logging.INFO,
        format="ts=%(asctime)s level=%(levelname)s log=%(name)s %(message)s",
        handlers=[logging.StreamHandler(sys.stderr), errors],
    )
    for noisy in ("httpx", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with home.lock(), Store.open(home.ledger_db) as store:
        identity = home.unlock(passphrase)
        session = Session(home=home, config=home.read_config(), store=store, member=identity.member, identity=identity)
        session.open_seat()
        if session.seat is None:
            raise NoCollective(
                "couldn't start: this node has no collective yet",
                hint="fishernet collective create --name NAME, or fishernet collective join ID MULTIADDR",
            )
        try:
            asyncio.run(_run(session, accept_fork_risk, errors))
        except BaseExceptionGroup as group:
            raise _first(group) from group


async def _run(session: Session, accept_fork_risk: bool, errors: RecentErrors) -> None:
    await Daemon(session, accept_fork_risk=accept_fork_risk, errors=errors).run()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the daemon, out of the groups that carried it."""
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return group


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version}
    for name in ("fishernet", "torch", "hivemind", "pynacl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
