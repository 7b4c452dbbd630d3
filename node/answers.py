"""What commands ask of the running daemon: its status, a training run, a measurement (the `Running` port).

Looks at the parts and changes none but by their own methods. Invariant: nothing here waits for a peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Final

from ledger.cuts import Cut
from node import control
from node.collective.replay import Missing, Model
from node.errors import NotAllowed
from node.guarding.bans import Ban
from node.logs import Logs
from node.parts import Parts
from node.reloading import Reloading
from node.serving.front import Front
from protocol import addresses
from protocol.canon import Json
from protocol.errors import FishernetError
from protocol.ids import MemberId, PeerId

_LOOK_S: Final = 3.0
_MOST_LOOKS: Final = 8


class Answers:
    """Answers for one daemon; `settled` is set once the node is a working member."""

    def __init__(
        self,
        parts: Parts,
        front: Front,
        events: control.Events,
        logs: Logs,
        *,
        spawn: Callable[[Coroutine[None, None, None]], None],
        restart: Callable[[], None],
    ) -> None:
        """`spawn` lets work go on beside an answer, as long as the node runs; `restart` ends it and starts it anew."""
        self.restart = restart
        self._parts, self._front, self._events, self._logs = parts, front, events, logs
        self._reloading = Reloading(parts, front, logs, use_data=self.use_data, spawn=spawn)
        self.settled = asyncio.Event()

    # -- work --------------------------------------------------------------------------------------------------------
    def use_data(self) -> None:
        """Measure on the data sets that are committed now."""
        wanted = self._parts.session.config.train
        self._parts.scales.use(self._parts.rounds.datasets(wanted.datasets), wanted.held_out_rows)

    def progress(self, event: Mapping[str, Json]) -> None:
        """Tell listeners how a run goes."""
        if event.get("event") == "step":
            shown = {name: event.get(name) for name in ("step", "steps", "trial")}
            self._events.emit("train.step", **shown)

    async def train_now(self, steps: int | None) -> Json:
        """One run, now (raises NotAllowed before the node is a working member)."""
        parts = self._parts
        if not self.settled.is_set():
            raise NotAllowed(f"couldn't train: {parts.seat.paused or 'the node is not ready yet'}")
        if self._front.epoch != parts.seat.fold.charter.epoch_id:
            raise NotAllowed("couldn't train: the base of the new epoch is being loaded; try again in a moment")
        return await parts.rounds.contribute(parts.session.config.train, self.progress, steps=steps)

    async def measure(self) -> Json:
        """Our held-out losses, exact and for the operator only: base, first own adapter alone, every release."""
        parts = self._parts
        wanted: dict[str, Model | None] = {"base": None}
        own = parts.rounds.first_own()
        if own is not None:
            wanted["own"] = own
        for decision in parts.seat.fold.releases:
            if isinstance(decision.value, Cut) and decision.value.epoch == self._front.epoch:
                model = await asyncio.to_thread(parts.replay.of_cut, decision.charter, decision.value)
                if not isinstance(model, Missing):
                    wanted[f"release-{decision.value.number}"] = model
        losses: dict[str, Json] = {}
        for name, loss in (await parts.scales.losses(wanted)).items():
            accuracy = None if loss.accuracy is None else round(loss.accuracy * 10_000)
            losses[name] = {"micronats": round(loss.nats * 1_000_000), "rows": loss.rows, "accuracy_bp": accuracy}
        return {"losses": losses, "member": parts.seat.me}

    # -- operation ---------------------------------------------------------------------------------------------------
    def reload(self) -> dict[str, Json]:
        """Go on with node.toml as it is now (raises ConfigError, and nothing has changed then)."""
        return self._reloading.reload()

    def add_peer(self, full: str) -> None:
        """Dial `/ip4/.../tcp/.../p2p/...` now and keep the connection (raises Malformed)."""
        self._parts.swarm.add_peer(full)

    async def drop_peer(self, peer: PeerId) -> None:
        """Hang up on a peer, and dial it no more unless it is a member."""
        await self._parts.swarm.forget_peer(peer)

    def ban(self, who: str, seconds: float | None, why: str) -> Ban:
        """Have nothing to do with a peer or member (all its peers) for so long, None: until told otherwise."""
        return self._parts.guard.ban(who, seconds, why)

    def unban(self, who: str) -> bool:
        """Lift a ban; whether there was one."""
        return self._parts.guard.unban(who)

    def bans(self) -> list[Ban]:
        """All bans that stand."""
        return self._parts.guard.bans()

    async def storage(self) -> dict[str, Json]:
        """What lies in the blob folder, why, and what would go for want of room."""
        return await self._parts.keeper.shown()

    async def prune(self, *, rare: bool, dry: bool) -> dict[str, Json]:
        """Drop blobs that may go, after asking who else holds them; `rare`: those that only this node holds, too."""
        plan = await self._parts.keeper.prune(rare=rare, dry=dry)
        return {**plan.to_json(), "dropped": not dry, "asked": bool(self._parts.swarm.peers())}

    def linked(self) -> dict[PeerId, MemberId | None]:
        """Who is connected now, and which member each speaks for, as far as it showed."""
        return {peer: self._parts.sync.member_of(peer) for peer in sorted(self._parts.swarm.peers())}

    async def look(self) -> dict[str, Json]:
        """What `fishernet doctor` needs to know: how this node stands, and what up to eight members see of it now."""
        parts = self._parts
        swarm, sync = parts.swarm.status(), parts.sync.status()
        ports = [address.rsplit("/", 1)[1] for address in parts.session.config.network.listen]
        numbers = [p for p in dict.fromkeys(int(port) for port in ports) if p] or _ports(parts.swarm.addresses())
        return {
            "ready": self.settled.is_set(),
            "network": parts.swarm.ready.is_set(),
            "network_error": swarm["last_error"],
            "relays": swarm["relays"],
            "paused": parts.seat.paused,
            "full": parts.seat.full,
            "peers": self._peers(),
            "feeds": sync["feeds"],
            "quarantined": sync["quarantined"],
            "sync_error": sync["last_error"],
            "bans": [{"who": ban.who, "why": ban.why} for ban in parts.guard.bans()],
            "attempt": parts.council.attempt,
            "lines_lost": self._logs.status()["lines_lost"],
            "ports": list(numbers),
            "looks": await self._looks(numbers),
        }

    async def _looks(self, ports: Sequence[int]) -> list[Json]:
        """Each asked member's answer; who gives none in time is left out."""
        fold = self._parts.seat.fold
        names = {member.id: member.name for member in fold.charter.members} if fold.known else {}

        async def one(peer: PeerId, name: str) -> Json:
            try:
                async with asyncio.timeout(_LOOK_S):
                    seen = await self._parts.looking.ask(peer, ports)
            except (FishernetError, OSError):  # a TimeoutError is an OSError
                return None
            return {
                "name": name,
                "offset_ms": seen.offset_ms,
                "rtt_ms": seen.rtt_ms,
                "address": seen.address,
                "opens": list(seen.opens),
            }

        asked = [(peer, names[who]) for peer, who in self.linked().items() if who in names][:_MOST_LOOKS]
        return [each for each in await asyncio.gather(*(one(peer, name) for peer, name in asked)) if each is not None]

    # -- what is -----------------------------------------------------------------------------------------------------
    def status(self) -> dict[str, Json]:
        """What only the running daemon knows."""
        parts, front = self._parts, self._front
        return {
            "running": True,
            "ready": self.settled.is_set(),
            "peer": parts.swarm.peer,
            "addresses": list(parts.swarm.addresses()),
            "peers": self._peers(),
            "view": front.shelf.view if front.shelf else None,
            "attempt": parts.council.attempt,
            "training": dict(parts.rounds.progress),
            "serving": front.status(),
            "processes": {"p2pd": parts.swarm.status().get("pid"), "trainer": parts.trainer.pid},
            "sync": parts.sync.status(),
            "errors": list(self._logs.errors.last),
        }

    def _peers(self) -> list[Json]:
        """Every other seat, and whether somebody who speaks for it is connected."""
        seat, sync, connected = self._parts.seat, self._parts.sync, self._parts.swarm.peers()
        fold, peers = seat.fold, list[Json]()
        by_member = {m: p for p, m in fold.peers.items()}
        linked = {sync.member_of(p) for p in connected}
        for member in fold.charter.members if fold.known else ():
            if member.id != seat.me:
                peer = by_member.get(member.id)
                up = member.id in linked or peer in connected
                peers.append({"member": member.id, "name": member.name, "peer": peer, "connected": up})
        return peers

    def asking(self) -> list[Json]:
        """Nodes without a seat that asked lately."""
        return [{"member": member, "peer": bound.peer} for member, bound in self._parts.sync.asking().items()]


def _ports(full: Sequence[str]) -> list[int]:
    """The ports of our own addresses, where the system chose them."""
    return list(dict.fromkeys(addresses.port(addresses.split(each)[0]) for each in full))
