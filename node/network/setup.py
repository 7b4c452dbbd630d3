"""What the operator lets a swarm be: a frozen value, checked as a whole before anything starts or changes.

Knows no p2pd. Invariant: a configuration that was checked can be run, as far as addresses tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from node.errors_network import BadTransport
from node.finding.relays import Nat, Reachability, merged
from node.guarding.guard import Guard
from node.network import endpoints
from protocol import addresses
from protocol.ids import CollectiveId

_SOCKET_ROOM = 104 - 30  # for "p2pclient-", 11 random characters and ".sock"
_FIXED = ("identity", "run_dir", "book", "guard")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmConfig:
    """Where p2pd finds its identity, listens, keeps its sockets (a private, short path), whom it knows, how it is reached."""

    identity: Path
    listen: tuple[str, ...]
    run_dir: Path
    known: tuple[str, ...] = ()  # /ip4/.../tcp/.../p2p/...
    announce: tuple[str, ...] = ()  # published instead of the listening addresses
    relays: tuple[str, ...] = ()  # besides those of the charter; /ip4/.../tcp/.../p2p/...
    serve_relay: bool = False  # for anybody who reaches us
    autonat: bool = True  # with relays only: find out whether we can be reached, and punch holes
    reachability: Reachability = "auto"
    mdns: CollectiveId | None = None  # whose nodes to look for on the LAN; None: nobody's
    book: Path | None = None
    guard: Guard | None = None  # what each peer may cost us; None: one with the usual limits, whose bans nobody keeps

    def check(self) -> None:
        """See that every address is one.

        Raises:
            Malformed: one is not.
            BadTransport: the path of the sockets is too long.
        """
        endpoints.check_listen(self.listen)
        merged(self.relays)
        for address in self.announce:
            addresses.check_address(address)
        for full in self.known:
            addresses.split(full)
        if len(str(self.run_dir.absolute())) > _SOCKET_ROOM:
            raise BadTransport(f"couldn't use {self.run_dir} for sockets: the path is too long")

    def nat(self, charter: Iterable[str]) -> Nat:
        """How this node is reached, with the relays that the charter names."""
        relays = merged(self.relays, charter)
        return Nat(relays=relays, serve=self.serve_relay, autonat=self.autonat, reachability=self.reachability)

    def live(self, old: SwarmConfig) -> tuple[SwarmConfig, frozenset[str]]:
        """This configuration as far as a swarm that runs with `old` can take it, and the fields that it cannot."""
        kept = {name: getattr(old, name) for name in _FIXED}
        later = frozenset(name for name, value in kept.items() if getattr(self, name) != value)
        return replace(self, **kept), later
