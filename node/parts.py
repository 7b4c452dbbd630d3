"""The parts of a running node, made from its session and wired to each other; nothing runs here.

    swarm (p2pd) -> sync (feeds, blobs) -> seat (fold) -> council (votes) and rounds (training)
Who wants a part to know another one says so in `build`. Knows no life (see `node.daemon`) and no rule: the parts decide.
Invariant: `build` opens no socket, starts no process and writes nothing into the ledger.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from node.collective.banning import Banning
from node.collective.council import Council
from node.collective.holdings import Holdings
from node.collective.judging import Judge
from node.collective.keeping import Keeper
from node.collective.measure import Scales
from node.collective.replay import Replay
from node.collective.seat import Seat
from node.collective.witnessing import Witnessing
from node.data import recovering
from node.data.egress import Egress, policy_of
from node.data.permits import Permits
from node.errors import NotAllowed
from node.guarding.growth import FeedRates, Growth, rates_of
from node.guarding.guard import Guard
from node.guarding.limits import Limits, limits_of
from node.network.looking import Looking
from node.network.streams import Tap
from node.network.swarm import Swarm, SwarmConfig
from node.sections import Limits as LimitsSection
from node.sections import NodeConfig
from node.session import Session
from node.syncing.blobs import BlobStore
from node.syncing.sync import Sync, SyncRules
from node.training.rounds import Rounds
from node.training.trainer import WorkerTrainer
from node.twins import mark_of
from protocol.ids import MemberId

_AT_ONCE: Final = 4  # new contributions of one member that are fetched out of turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a running node is made of; one of each."""

    session: Session
    seat: Seat
    blobs: BlobStore
    egress: Egress
    permits: Permits
    guard: Guard
    growth: Growth
    banning: Banning
    swarm: Swarm
    sync: Sync
    looking: Looking
    holdings: Holdings
    keeper: Keeper
    replay: Replay
    trainer: WorkerTrainer
    scales: Scales
    council: Council
    rounds: Rounds
    witnessing: Witnessing


def swarm_config(session: Session, config: NodeConfig, guard: Guard | None = None) -> SwarmConfig:
    """What `config` says of the network (raises NoCollective)."""
    home, network = session.home, config.network
    return SwarmConfig(
        identity=home.transport_key,
        listen=network.listen,
        run_dir=home.sockets(),
        known=network.peers,
        announce=network.announce,
        relays=network.relays,
        serve_relay=network.serve_relay,
        autonat=network.autonat,
        reachability=network.reachability,
        mdns=session.need_seat().collective if network.mdns else None,
        book=home.run / "addresses.json",
        guard=guard,
    )


def guard_limits(limits: LimitsSection) -> Limits:
    """What node.toml says a peer may cost."""
    return limits_of(
        streams=limits.streams,
        requests_per_s=limits.requests_per_s,
        member_mib_per_s=limits.member_mib_per_s,
        stranger_requests_per_s=limits.stranger_requests_per_s,
        first_ban_s=limits.first_ban_s,
    )


def feed_rates(limits: LimitsSection) -> FeedRates:
    """What node.toml says a feed may grow by."""
    return rates_of(feed_entries_per_day=limits.feed_entries_per_day, feed_mib_per_day=limits.feed_mib_per_day)


def build(session: Session, *, changed: Callable[[], None], tap: Tap | None = None) -> Parts:
    """Make the parts; `changed` hears of every entry and blob that arrived. `tap` sees each byte before it leaves.

    Raises:
        NotAllowed: the key is not open.
        NoCollective: there is none.
    """
    identity = session.identity
    if identity is None:
        raise NotAllowed("couldn't start: the key is not open")
    seat, home, config = session.need_seat(), session.home, session.config

    def wants(member: MemberId) -> bool:
        """Whose feed we take: whoever has or had a seat; before the charter is here, whoever we were told to dial."""
        return not seat.fold.known or member == seat.me or member in seat.fold.ever_members()

    def blob_arrived() -> None:
        changed()
        council.poke()

    blobs = BlobStore(home.blobs)
    egress = Egress(seat, policy_of(config.egress))
    permits = Permits(seat, purpose=config.train.purpose, policy=egress.in_force)
    guard = Guard(guard_limits(config.limits), book=home.bans)
    growth = Growth(
        feed_rates(config.limits),
        now_ms=seat.now_ms,
        founded_ms=seat.founded_ms,
        held=lambda member: (seat.size(member), session.store.stored_bytes(seat.collective, member)),
    )
    swarm = Swarm(swarm_config(session, config, guard), tap=tap)

    looked = {member: len(made) for member, made in seat.fold.contributions.items()}

    def grown(member: MemberId) -> None:
        if seat.fold.known:
            swarm.use_relays(seat.fold.charter.relays)
            fetch(member)
        changed()

    def fetch(member: MemberId) -> None:
        """What a member has just published is fetched at once; what comes in bulk waits for its turn in `Holdings`."""
        made = seat.fold.contributions.get(member, [])
        fresh, looked[member] = made[looked.get(member, 0) :], len(made)
        if member != seat.me and len(fresh) <= _AT_ONCE:
            holdings.fetch(each for each in fresh if seat.fold.fate(each) == "pending")

    sync = Sync(
        store=session.store,
        blobs=blobs,
        network=swarm,
        collective=seat.collective,
        binding=identity.binding,
        rules=SyncRules(
            allowed=seat.may_read,
            on_records=functools.partial(recovering.receive, session),
            wants=wants,
            farewell=seat.farewell,
            on_fork=seat.fork_found,
            serves=egress.serves,
            peers=lambda: seat.fold.peers,
            outdated=seat.fold.outdated,
            fault=guard.fault,
            faulty=guard.blame,
            banned=lambda peer, member: guard.banned(peer) or (member is not None and guard.banned_member(member)),
            spend=guard.spend,
            hold=guard.hold,
            room=growth.room,
            took=growth.took,
            attached=seat.attached,
            follows=True,
        ),
    )
    guard.member_of = sync.member_of
    looking = Looking(
        swarm,
        home=mark_of(home),
        where=swarm.where,
        allowed=lambda peer: (who := sync.member_of(peer)) is not None and seat.may_read(who),
    )
    keeper = Keeper(seat, blobs, lambda: session.config.storage, sync.survey, now_ms=seat.now_ms)
    holdings = Holdings(seat, blobs, sync, blob_arrived, admits=keeper.admits)
    replay = Replay(seat.fold, holdings.read)
    trainer = WorkerTrainer(threads=config.train.threads, length=config.train.length, rows_key=session.rows_key)
    scales = Scales(home, trainer, (), config.train.held_out_rows, permits=permits.evaluate)
    council = Council(seat, replay, Judge(seat, replay, scales, holdings.fetch))
    rounds = Rounds(seat, replay, blobs, trainer, scales, permits=permits, egress=egress)
    witnessing = Witnessing(seat, identity, heartbeat_s=config.ledger.heartbeat_s)
    seat.listen(grown)
    grown(seat.me)
    return Parts(
        session=session,
        seat=seat,
        blobs=blobs,
        egress=egress,
        permits=permits,
        guard=guard,
        growth=growth,
        banning=Banning(seat),
        swarm=swarm,
        sync=sync,
        looking=looking,
        holdings=holdings,
        keeper=keeper,
        replay=replay,
        trainer=trainer,
        scales=scales,
        council=council,
        rounds=rounds,
        witnessing=witnessing,
    )
