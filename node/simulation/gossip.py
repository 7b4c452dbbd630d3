"""Announcements between simulated nodes: a mesh of degree D in the manner of GossipSub v1.1, with heartbeats.

After the libp2p specification (pubsub/gossipsub v1.0 and v1.1) and go-libp2p-pubsub's defaults: a message goes on to the mesh of
each that hears it first; at each heartbeat the mesh is kept between `low` and `high` and some peers outside it are told which
messages there are (IHAVE), to ask for what they lack (IWANT). Not simulated: scores, pruned peers' waiting time, fan-out.
Knows no ledger. Invariant: a node delivers a message once, and mesh edges have two ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from node.ports import Announced
from protocol.ids import PeerId

if TYPE_CHECKING:
    from node.simulation.ether import Port

SIGNED_BYTES: Final = 230  # author, number, topic, signature and framing around the data
CONTROL_BYTES: Final = 120  # IHAVE, IWANT, GRAFT or PRUNE for one topic
ID_BYTES: Final = 46
Id = tuple[PeerId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipRules:
    """D and its bounds, how many outside the mesh are told at a heartbeat, its period, and how many heartbeats are told of."""

    degree: int = 6
    low: int = 5
    high: int = 12
    lazy: int = 6
    heartbeat_s: float = 1.0
    window: int = 3


class Gossip:
    """The announcements of one node."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self.listeners: list[Announced] = []
        self.mesh: dict[PeerId, None] = {}  # ordered: a set of texts has another order in another process
        self.heard = self.repeated = 0
        self.hops: dict[Id, int] = {}  # message -> over how many nodes it came
        self._kept: dict[Id, bytes] = {}
        self._recent: deque[list[Id]] = deque([[]], maxlen=port.ether.rules.window)
        self._number = 0
        self._beating = False

    # -- the product's side ------------------------------------------------------------------------------------------
    def publish(self, data: bytes) -> bool:
        """Send to the mesh; False when nobody is connected."""
        self._number += 1
        name = (self._port.peer, self._number)
        self._keep(name, data, 0)
        for peer in self.mesh:
            self._send(peer, name)
        return bool(self._port.links)

    # -- the mesh ----------------------------------------------------------------------------------------------------
    def joined(self, peer: PeerId) -> None:
        """A connection was made."""
        if not self._beating:
            self._beating = True
            rules = self._port.ether.rules
            self._port.loop.call_later(rules.heartbeat_s * self._port.ether.random.random(), self._beat)

    def parted(self, peer: PeerId) -> None:
        """A connection is gone."""
        self.mesh.pop(peer, None)

    def forget(self) -> None:
        """Drop what was heard, between two measurements."""
        self.hops.clear()
        self._kept.clear()
        self._recent.clear()
        self._recent.append([])
        self.heard = self.repeated = 0

    def _beat(self) -> None:
        port, rules, drawn = self._port, self._port.ether.rules, self._port.ether.random
        if port.away:
            self._beating = False
            return
        if len(self.mesh) < rules.low:
            others = [peer for peer in port.links if peer not in self.mesh]
            for peer in drawn.sample(others, min(len(others), rules.degree - len(self.mesh))):
                self._graft(peer)
        elif len(self.mesh) > rules.high:
            for peer in drawn.sample(list(self.mesh), len(self.mesh) - rules.degree):
                self._prune(peer)
        told = [name for names in self._recent for name in names]
        others = [peer for peer in port.links if peer not in self.mesh] if told else []
        for peer in drawn.sample(others, min(len(others), rules.lazy)):
            self._tell(peer, told)
        self._recent.append([])
        port.loop.call_later(rules.heartbeat_s, self._beat)

    def _graft(self, peer: PeerId) -> None:
        self._control(CONTROL_BYTES)
        other = self._port.ether.ports[peer]
        self.mesh[peer] = None
        other.gossip.mesh[self._port.peer] = None

    def _prune(self, peer: PeerId) -> None:
        self._control(CONTROL_BYTES)
        self.mesh.pop(peer, None)
        self._port.ether.ports[peer].gossip.mesh.pop(self._port.peer, None)

    def _control(self, size: int) -> None:
        self._port.ether.arrival(self._port, size, "gossip-control", reliable=True)

    # -- messages ----------------------------------------------------------------------------------------------------
    def _keep(self, name: Id, data: bytes, hops: int) -> None:
        self._kept[name] = data
        self.hops[name] = hops
        self._recent[-1].append(name)

    def _send(self, peer: PeerId, name: Id) -> None:
        port, data = self._port, self._kept[name]
        at = port.ether.arrival(port, len(data) + SIGNED_BYTES, "announce", reliable=False)
        if at is not None:
            there = port.ether.ports[peer].gossip
            port.loop.call_at(at, there._receive, port.peer, name, data, self.hops[name] + 1)

    def _receive(self, source: PeerId, name: Id, data: bytes, hops: int) -> None:
        if self._port.away:
            return
        self._port.got["announce"] += len(data) + SIGNED_BYTES
        if name in self.hops:
            self.repeated += 1
            return
        self.heard += 1
        self._keep(name, data, hops)
        for listener in self.listeners:
            listener(data)
        for peer in self.mesh:
            if peer not in (source, name[0]):
                self._send(peer, name)

    def _tell(self, peer: PeerId, names: list[Id]) -> None:
        """IHAVE, and what follows from it."""
        port = self._port
        at = port.ether.arrival(port, CONTROL_BYTES + ID_BYTES * len(names), "gossip-control", reliable=False)
        if at is not None:
            there = port.ether.ports[peer].gossip
            port.loop.call_at(at, there._told, port.peer, names)

    def _told(self, source: PeerId, names: list[Id]) -> None:
        lacking = [name for name in names if name not in self.hops]
        if self._port.away or not lacking:
            return
        size = CONTROL_BYTES + ID_BYTES * len(lacking)
        at = self._port.ether.arrival(self._port, size, "gossip-control", reliable=False)
        if at is not None:
            there = self._port.ether.ports[source].gossip
            self._port.loop.call_at(at, there._asked, self._port.peer, lacking)

    def _asked(self, source: PeerId, names: list[Id]) -> None:
        if not self._port.away:
            for name in names:
                if name in self._kept:
                    self._send(source, name)
