"""Finding the peers that are missing: where they were seen, what they signed in the DHT, what neighbours know, through relays.

Before p2pd is asked to dial a machine we knock: a TCP connection of our own. p2pd leaves an address alone for up to five minutes
after failures, and would not notice that somebody came back there; who does not open is not worth its memory. Knows nothing of
streams. Invariant: at most `_AT_ONCE` peers are dialled at the same time, and one that hangs holds up nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from node.errors_network import PeerUnreachable
from node.finding import rendezvous
from node.finding.addresses import MAX_ADDRESSES
from node.finding.contacts import Contacts
from node.finding.relays import Nat
from node.network.p2pd import P2pd
from protocol import addresses as multiaddrs
from protocol.errors import FishernetError, Malformed
from protocol.ids import PeerId

_TROUBLE = (FishernetError, OSError, EOFError)  # a TimeoutError is an OSError
_TICK_S, _CALM_S, _AT_ONCE, _KNOCK_S, _RUMOUR_S = 1.0, 1.5, 8, 3.0, 60.0


class Redialling:
    """Dials for one node, life after life of p2pd."""

    def __init__(self, me: PeerId, contacts: Contacts, look: Callable[[P2pd], Awaitable[frozenset[PeerId]]]) -> None:
        """`look` asks who is connected now, and tells the others who want to know."""
        self._me, self._contacts, self._look = me, contacts, look
        self.nat = Nat()
        self._wake = asyncio.Event()
        self._dialling: set[PeerId] = set()
        self._rumours: dict[PeerId, float] = {}  # when neighbours were asked for whom

    def wake(self) -> None:
        """Something is new: look for whom to dial."""
        self._wake.set()

    async def run(self, daemon: P2pd) -> None:
        """Dial whoever is missing, for as long as this p2pd lives."""
        self._dialling.clear()
        self._rumours.clear()
        self._contacts.begin()
        async with asyncio.TaskGroup() as dials:
            while True:
                connected = await self._look(daemon)
                for peer in self._contacts.due(connected):
                    if len(self._dialling) >= _AT_ONCE:
                        break
                    if peer not in self._dialling:
                        self._dialling.add(peer)
                        dials.create_task(self._reach(daemon, peer))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S if self._contacts.missing(connected) else _CALM_S):
                        await self._wake.wait()
                self._wake.clear()

    async def _reach(self, daemon: P2pd, peer: PeerId) -> None:
        self._contacts.trying(peer)
        try:
            if await self._anywhere(daemon, peer):
                self._contacts.reached(peer)
                self._rumours.pop(peer, None)
            else:
                self._contacts.failed(peer)
        finally:
            self._dialling.discard(peer)
            self._wake.set()

    async def _anywhere(self, daemon: P2pd, peer: PeerId) -> bool:
        """Try one source of addresses after the other, the cheapest first."""
        tried: set[str] = set()
        for source in (self._remembered, self._signed, self._rumoured, self._relayed):
            with contextlib.suppress(*_TROUBLE):
                found = [address for address in await source(daemon, peer) if address not in tried]
                tried.update(found)
                await self.dial(daemon, peer, found)
                self._contacts.learn(peer, found)
                return True
        return False

    async def dial(self, daemon: P2pd, peer: PeerId, addresses: Iterable[str]) -> None:
        """Connect to `peer` at whichever of these addresses opens.

        Raises:
            PeerUnreachable: nobody of that name is there.
        """
        opened = [found for found in await asyncio.gather(*map(_knock, addresses)) if found is not None]
        if not opened:
            raise PeerUnreachable(f"couldn't reach {peer[-6:]}: nobody answers there")
        await daemon.connect(peer, opened)

    # -- where a peer may be -------------------------------------------------------------------------------------------
    async def _remembered(self, daemon: P2pd, peer: PeerId) -> tuple[str, ...]:
        return self._contacts.addresses(peer)

    async def _signed(self, daemon: P2pd, peer: PeerId) -> tuple[str, ...]:
        """What the peer itself says in the DHT."""
        record = await daemon.get_record(multiaddrs.transport(peer))
        said = rendezvous.unpack(record) if record is not None else ()
        self._contacts.learn(peer, said)
        return said

    async def _rumoured(self, daemon: P2pd, peer: PeerId) -> tuple[str, ...]:
        """Where our neighbours are connected with it, by p2pd's own routing.

        Asked for a peer of whom we know nothing, else seldom: on the way p2pd dials it, and does so in vain where it is down.
        What they say is not signed, so it is not remembered before it was true.
        """
        now = asyncio.get_running_loop().time()
        if self._contacts.addresses(peer) and now - self._rumours.get(peer, now) < _RUMOUR_S:
            self._rumours.setdefault(peer, now)
            return ()
        self._rumours[peer] = now
        return _checked(await daemon.find(peer))

    async def _relayed(self, daemon: P2pd, peer: PeerId) -> tuple[str, ...]:
        """A peer that nobody can dial waits at the relays that all members know."""
        return self.nat.through(self._me, peer)


def _checked(addresses: Iterable[str]) -> tuple[str, ...]:
    """Those that are ours to dial, at most eight."""
    found = []
    for address in addresses:
        with contextlib.suppress(Malformed):
            found.append(multiaddrs.check_address(address))
    return tuple(found[:MAX_ADDRESSES])


async def _knock(address: str) -> str | None:
    """`address` when something accepts connections there; a circuit is not knocked at."""
    if multiaddrs.is_circuit(address):
        return address
    _, host = multiaddrs.host(address)
    try:
        async with asyncio.timeout(_KNOCK_S):
            _, writer = await asyncio.open_connection(host, multiaddrs.port(address))
    except (OSError, ValueError):  # a name that no IDNA encodes is a ValueError
        return None
    writer.close()
    return address
