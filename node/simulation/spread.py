"""How news spreads in a simulated swarm as it grows: bytes, messages, hops and time, per size and topology.

One swarm after the other: everybody holds everybody's first entry and connects; a time without news; one entry of one member; a
burst of many, and what neighbours tell each other of it afterwards; a node that holds nothing joins. Knows no file and no plot.
Invariants: what is compared is what the nodes' own sync did; all but `cost` is a function of the configuration, so one seed gives
one trace.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from node.simulation import virtual
from node.simulation.ether import Ether, Medium
from node.simulation.gossip import GossipRules
from node.simulation.spread_config import SpreadConfig, Topology
from node.simulation.spread_node import Chosen, Everyone, Identity, SwarmNode, everyone
from node.syncing.neighbours import Neighbours
from protocol.ids import MemberId

VERSION = 1
SETTLE_S = 12.0  # until connections and meshes stand
LOOK_S = 0.25
WEIGHED = 16  # nodes whose memory is looked at
Report: TypeAlias = dict[str, Any]
Progress = Callable[[str, float], None]
Entry = tuple[MemberId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """Counters of all nodes at one moment."""

    at: float
    cpu: float
    bytes: Counter[str]
    messages: Counter[str]
    most: int  # bytes sent so far by the node that sent most

    def since(self, before: Meter, nodes: int) -> Report:
        """What went over the network between two moments, per node."""
        seconds = self.at - before.at
        spent, told = self.bytes - before.bytes, self.messages - before.messages
        return {
            "seconds": round(seconds, 3),
            "bytes_per_node": round(sum(spent.values()) / nodes, 1),
            "bytes_by_kind": {kind: round(n / nodes, 1) for kind, n in sorted(spent.items())},
            "messages_per_node": round(sum(told.values()) / nodes, 2),
            "messages_by_kind": {kind: round(n / nodes, 2) for kind, n in sorted(told.items())},
            "most_bytes_of_a_node": self.most,
        }


class Spread:
    """One swarm of one size and topology."""

    def __init__(self, config: SpreadConfig, count: int, topology: Topology) -> None:
        self._config, self._count, self._topology = config, count, topology
        self._seed = f"{config.swarm.seed}/{topology}/{count}"
        self._random = self._drawn("swarm")
        self.nodes: list[SwarmNode] = []
        self.cpu: dict[str, float] = {}  # microseconds a node, by phase
        self.memory = 0.0  # bytes of a node's sync at the end, mean

    async def run(self) -> Report:
        """All phases."""
        config, wanted = self._config, self._config.swarm
        net, gossip = config.network, config.gossip
        medium = Medium(delay_ms=net.delay_ms, uplink_kbit=net.uplink_kbit, loss=net.loss)
        rules = GossipRules(
            degree=gossip.degree, low=gossip.low, high=gossip.high, lazy=gossip.lazy, heartbeat_s=gossip.heartbeat_s
        )
        self._ether = Ether(medium, rules, self._drawn("ether"))
        self._all = everyone(self._count, wanted.seed)
        ring = self._ring()
        newcomer = self._all.identities[-1] if wanted.joins else None
        for identity in self._all.identities[: None if newcomer is None else -1]:
            self.nodes.append(self._node(identity, ring))
        count = len(self.nodes)
        began = self._meter()
        for node in self.nodes:
            node.start()
        self._ether.quiet = True  # everybody holds everything already: nobody announces it again
        await self._settle()
        self._ether.quiet = False
        connected = self._counted("start", began)
        await asyncio.sleep(wanted.idle_s)
        idle = self._counted("idle", connected)
        one = await self._phase(1, 0.0)
        await asyncio.sleep(config.gossip.heartbeat_s * (rules.window + 1))
        burst = await self._phase(wanted.burst, wanted.burst_s)
        spread = self._meter()
        await asyncio.sleep(wanted.idle_s)
        after = self._counted("after", spread)
        report = {
            "topology": self._topology,
            "members": self._count,
            "connections": self._spread([float(len(n.port.links)) for n in self.nodes]),
            "mesh_degree": self._spread([float(len(n.port.gossip.mesh)) for n in self.nodes]),
            "start": connected.since(began, count),
            "idle": idle.since(connected, count),
            "one": one,
            "burst": burst,
            "after": after.since(spread, count),
            "most_streams_served_at_once": max(n.port.most_served for n in self.nodes),
            "streams_turned_away": sum(n.port.turned_away for n in self.nodes),
            "join": await self._join(newcomer, ring) if newcomer is not None else None,
            "trace": self._trace(),
        }
        self.memory = fmean(node.footprint() for node in self.nodes[:: max(1, count // WEIGHED)])
        for node in self.nodes:
            await node.stop()
        return report

    # -- phases ------------------------------------------------------------------------------------------------------
    async def _settle(self) -> None:
        """Connections and meshes, then until nothing has been asked for that is not answered."""
        for _ in range(3):
            await asyncio.sleep(SETTLE_S / 3)
            for node in self.nodes:
                node.port.tidy()

    async def _phase(self, entries: int, over_s: float) -> Report:
        """So many entries of different members, and how they spread."""
        for node in self.nodes:
            node.port.gossip.forget()
        before, loop = self._meter(), asyncio.get_running_loop()
        authors = [self._random.choice(self.nodes) for _ in range(entries)]
        if entries <= len(self.nodes):
            authors = self._random.sample(self.nodes, entries)
        written: list[Entry] = []
        for number, author in enumerate(authors):
            written.append((author.identity.member, await author.write(f"{self._seed}/{loop.time():.6f}/{number}")))
            if over_s and entries > 1:
                await asyncio.sleep(over_s / (entries - 1))
        limit = loop.time() + self._config.swarm.limit_s
        while loop.time() < limit and not self._everywhere(self.nodes, written):
            await asyncio.sleep(LOOK_S)
        spent = self._counted("one" if entries == 1 else "burst", before).since(before, len(self.nodes))
        return {**self._arrived(written), **self._gossiped(), "spent": spent, "entries": entries}

    async def _join(self, newcomer: Identity, ring: Sequence[MemberId]) -> Report:
        """A node that holds nothing comes; everybody else holds everything."""
        node = self._node(newcomer, ring, empty=True)
        self.nodes.append(node)
        began, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        node.start()
        wanted = self.nodes[0].store.sizes()
        while loop.time() < began + self._config.swarm.limit_s and node.store.sizes() != wanted:
            await asyncio.sleep(LOOK_S)
        return {
            "seconds": round(loop.time() - began, 3),
            "whole": node.store.sizes() == wanted,
            "bytes_sent": dict(sorted(node.port.sent.items())),
            "bytes_got": dict(sorted(node.port.got.items())),
            "messages_sent": dict(sorted(node.port.messages.items())),
            "connections": len(node.port.links),
            "entries": sum(wanted.values()),
        }

    # -- what was seen -----------------------------------------------------------------------------------------------
    def _everywhere(self, nodes: Iterable[SwarmNode], written: Sequence[Entry]) -> bool:
        return all(node.store.size(member) > seq for node in nodes for member, seq in written)

    def _arrived(self, written: Sequence[Entry]) -> Report:
        """Times from writing to holding, over nodes and entries, and over how many nodes the pages came."""
        waits, last, depths = list[float](), list[float](), list[int]()
        missing = 0
        by_peer = {node.port.peer: node for node in self.nodes}
        for member, seq in written:
            author = next(n for n in self.nodes if n.identity.member == member)
            began = author.log.arrivals[member, seq].at
            here = [n.log.arrivals[member, seq].at - began for n in self.nodes if (member, seq) in n.log.arrivals]
            missing += len(self.nodes) - len(here)
            waits += [wait for wait in here if wait > 0]
            last.append(max(here))
            depths += [self._depth(node, by_peer, member, seq) for node in self.nodes if node is not author]
        return {
            "missing": missing,
            "seconds": {"p50": _part(waits, 0.5), "p95": _part(waits, 0.95), "all": round(max(last), 3)},
            "page_hops": {"mean": round(fmean(depths), 2), "max": max(depths)} if depths else None,
        }

    @staticmethod
    def _depth(node: SwarmNode, by_peer: dict[Any, SwarmNode], member: MemberId, seq: int) -> int:
        depth = 0
        while True:
            arrival = node.log.arrivals.get((member, seq))
            if arrival is None or arrival.source is None or arrival.source not in by_peer:
                return depth
            depth, node = depth + 1, by_peer[arrival.source]

    def _gossiped(self) -> Report:
        """Announcements: over how many nodes they came, how many came again."""
        hops = [hop for node in self.nodes for hop in node.port.gossip.hops.values() if hop]
        heard = sum(node.port.gossip.heard for node in self.nodes)
        repeated = sum(node.port.gossip.repeated for node in self.nodes)
        return {
            "announcement_hops": {"mean": round(fmean(hops), 2), "max": max(hops)} if hops else None,
            "copies_of_an_announcement": round((heard + repeated) / heard, 2) if heard else None,
            "theory": theory(self._topology, len(self.nodes), self._config.gossip.degree),
        }

    def _trace(self) -> str:
        """One digest over what every node got when, and from whom."""
        state = hashlib.sha256()
        for node in self.nodes:
            for (member, seq), got in sorted(node.log.arrivals.items()):
                state.update(f"{node.identity.number} {member} {seq} {got.at:.9f} {got.source}\n".encode())
            state.update(repr(sorted(node.port.sent.items())).encode())
        return state.hexdigest()

    def _counted(self, phase: str, before: Meter) -> Meter:
        """The counters now; the processor time since `before` is kept under the name of the phase."""
        now = self._meter()
        self.cpu[phase] = round((now.cpu - before.cpu) / max(1, len(self.nodes)) * 1e6, 1)
        return now

    def _meter(self) -> Meter:
        total, told = Counter[str](), Counter[str]()
        for node in self.nodes:
            total.update(node.port.sent)
            told.update(node.port.messages)
        return Meter(
            at=asyncio.get_running_loop().time(),
            cpu=time.process_time(),
            bytes=total,
            messages=told,
            most=max((sum(n.port.sent.values()) for n in self.nodes), default=0),
        )

    # -- making it ---------------------------------------------------------------------------------------------------
    def _node(self, identity: Identity, ring: Sequence[MemberId], *, empty: bool = False) -> SwarmNode:
        all_: Everyone = self._all
        rng = self._drawn(f"node/{identity.number}")
        chosen: Neighbours
        if self._topology == "neighbours":
            chosen = Neighbours(all_.collective, identity.member, rng)
        elif self._topology == "full":
            chosen = Chosen(all_.collective, identity.member, rng, None)
        else:
            at = ring.index(identity.member)
            beside = [ring[(at + 1) % len(ring)], ring[at - 1]]
            chosen = Chosen(all_.collective, identity.member, rng, beside)
        return SwarmNode(
            identity, all_, self._ether, chosen, rng, heads_every_s=self._config.sync.heads_every_s, empty=empty
        )

    def _ring(self) -> list[MemberId]:
        """Members in an order that says nothing; the newcomer is not in it before it comes, so it stands at the end."""
        ids = [one.member for one in self._all.identities]
        last = ids.pop()
        self._drawn("ring").shuffle(ids)
        return [*ids, last]

    def _drawn(self, what: str) -> random.Random:
        return random.Random(f"{self._seed}/{what}")  # noqa: S311 - repeatable on purpose

    @staticmethod
    def _spread(values: Sequence[float]) -> Report:
        return {"mean": round(fmean(values), 2), "min": min(values), "max": max(values)}


def theory(topology: Topology, nodes: int, degree: int) -> Report:
    """What is known of flooding a graph: hops until all have heard, and copies that each gets.

    A random D-regular graph has diameter log_{D-1} N + log_{D-1} ln N + O(1) (Bollobas and Fernandez de la Vega 1982) and
    mean distance log_{D-1} N + O(1); pushing to one random node a round needs log2 N + ln N + O(1) rounds (Pittel 1987), pushing
    and pulling log3 N + O(ln ln N) (Karp, Schindelhauer, Shenker, Voecking 2000). On a ring it is N/2. A message passed on to all
    of D neighbours but the one it came from arrives (D-1) + 2/N times at each.
    """
    base = math.log(max(2, degree - 1))
    if topology == "ring":
        return {"hops_mean": round(nodes / 4, 2), "hops_max": nodes // 2, "copies": round(1 + 1 / nodes, 2)}
    mean = math.log(nodes) / base
    return {
        "hops_mean": round(mean, 2),
        "hops_max": round(mean + math.log(max(1.0, math.log(nodes))) / base, 2),
        "push_rounds": round(math.log2(nodes) + math.log(nodes), 2),
        "push_pull_rounds": round(math.log(nodes, 3), 2),
        "copies": round(degree - 1 + 2 / nodes, 2),
    }


def _part(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def simulate(config: SpreadConfig, progress: Progress = lambda _text, _part: None) -> Report:
    """All swarms of the configuration; losses are nobody's, times in simulated seconds, sizes in bytes."""
    wanted = config.swarm
    plan = [
        (topology, size)
        for topology in wanted.topologies
        for size in wanted.sizes
        if size <= {"full": wanted.full_up_to, "ring": wanted.ring_up_to}.get(topology, size)
    ]
    work, swarms, costs, began = (
        float(sum(size for _, size in plan)),
        list[Report](),
        list[Report](),
        time.process_time(),
    )
    for topology, size in plan:
        progress(f"{size} members, {topology}", sum(s["members"] for s in swarms) / work)
        one, since = Spread(config, size, topology), time.process_time()
        swarms.append(virtual.run(one.run()))
        costs.append(
            {
                "topology": topology,
                "members": size,
                "cpu_s": round(time.process_time() - since, 1),
                "cpu_us_per_node": one.cpu,
                "sync_kb_per_node": round(one.memory / 1e3, 1),
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            }
        )
    return {
        "v": VERSION,
        "config": config.model_dump(mode="json"),
        "swarms": swarms,
        "notes": list(NOTES),
        "cost": {"cpu_s": round(time.process_time() - began, 1), "swarms": costs},
    }


NOTES = (
    "p2pd, TCP windows and disks are not simulated; handshakes and headers are counted with round figures",
    "an entry's signature and a head's are verified once in the process for the same bytes, so the processor time of a node is"
    " without these: about 0.1 ms for each new entry and head",
    "sync_kb_per_node is the memory of a node's sync without entries and heads, which a real node has on its disk; peak_mb is the"
    " process's, over all swarms so far",
)
