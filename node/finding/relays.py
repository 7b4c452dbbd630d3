"""Reaching peers behind NAT: which relays there are, what p2pd is told about them, and the ways through them to a peer.

Relays come from the charter (all members know the same ones) and from the operator. A node that nobody can dial keeps a
reservation at them (AutoRelay); since everybody knows the relays, a missing peer is also tried through each of them, whether it
said so or not (libp2p circuit relay v2). A relay sees who talks to whom and how much, never what. Knows no network, no process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from protocol.addresses import CIRCUIT, split_relay
from protocol.ids import PeerId

Reachability: TypeAlias = Literal["auto", "public", "private"]

MAX_RELAYS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Nat:
    """How this node is to be reached: `relays` it may use, whether it serves as one, and what it believes of itself."""

    relays: tuple[str, ...] = ()  # /ip4/.../tcp/.../p2p/...
    serve: bool = False
    autonat: bool = True
    reachability: Reachability = "auto"

    def flags(self, me: PeerId) -> dict[str, str | int]:
        """What p2pd is started with, by its own names. Without relays: nothing of all this.

        p2pd has one switch, `autonat`, for three things: finding out by peers' dials whether we can be reached, dialling others
        for the same, and punching holes (DCUtR). Its own relay service stays off: see `node.network.relaying`.
        """
        others = [relay for relay in self.relays if split_relay(relay)[1] != me]
        if not (others or self.serve):
            return {"relay": 0}
        flags: dict[str, str | int] = {"relay": 1, "relayService": 0, "autonat": int(self.autonat)}
        if others and not self.serve and self.reachability != "public":
            flags |= {"autoRelay": 1, "relayDiscovery": 0, "trustedRelays": ",".join(others)}
        if self.reachability != "auto":
            flags[f"forceReachability{self.reachability.title()}"] = 1
        return flags

    def through(self, me: PeerId, peer: PeerId) -> tuple[str, ...]:
        """The ways to `peer` through each relay that is neither end."""
        return tuple(relay + CIRCUIT for relay in self.relays if split_relay(relay)[1] not in {me, peer})


def merged(*lists: Iterable[str]) -> tuple[str, ...]:
    """Relays of several sources, earlier ones first, each peer once, at most `MAX_RELAYS`.

    Raises:
        Malformed: one of them is no address of a relay.
    """
    found: dict[PeerId, str] = {}
    for relay in (relay for one in lists for relay in one):
        found.setdefault(split_relay(relay)[1], relay)
    return tuple(found.values())[:MAX_RELAYS]
