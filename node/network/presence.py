"""Being found: our addresses in the DHT, where our own signature vouches for them, and a service on the LAN.

What is told is what the operator announces, else what p2pd sees of itself: addresses it listens on, circuits through relays where
it has a reservation. Knows no streams and no members. Invariant: what is published was checked and passed the tap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from node.errors_network import NetworkError
from node.finding import rendezvous
from node.finding.contacts import Contacts
from node.network import endpoints
from node.network.p2pd import P2pd
from node.network.setup import SwarmConfig
from node.network.streams import Tap
from protocol import addresses as multiaddrs
from protocol.ids import PeerId

log = logging.getLogger(__name__)

_TELL_S = 20.0  # three times within the life of a record
_BURST_S, _LOOK_S = 2.0, 3.0


class Presence:
    """Where one node is, as others are told."""

    def __init__(
        self, me: PeerId, config: SwarmConfig, contacts: Contacts, *, out: Tap, woken: Callable[[], None]
    ) -> None:
        """Bytes that leave pass `out`; `woken` hears that somebody was heard on the LAN at a new address."""
        self._me, self._config, self._contacts = me, config, contacts
        self._out, self._woken = out, woken
        self._met, self._again = asyncio.Event(), asyncio.Event()
        self.visible: tuple[str, ...] = ()  # what p2pd sees of itself

    def use(self, config: SwarmConfig) -> None:
        """Go by `config` from now on."""
        if (config.mdns, config.listen) != (self._config.mdns, self._config.listen):
            self._again.set()
        self._config = config
        self._met.set()

    def met(self) -> None:
        """Somebody new is connected, and may keep our record."""
        self._met.set()

    def addresses(self) -> tuple[str, ...]:
        """Where we can be dialled, without our peer id; empty before the first life of p2pd."""
        return self._config.announce or endpoints.shown(self.visible)

    async def tell_dht(self, daemon: P2pd, *, relays: bool) -> None:
        """Keep our addresses in the DHT, whose memory is that of its nodes; with `relays`, reservations come and go."""
        told, told_at = b"", 0.0
        while True:
            new, now = self._met.is_set(), asyncio.get_running_loop().time()
            self._met.clear()
            with contextlib.suppress(NetworkError, OSError, EOFError):
                if relays:
                    self.visible = await daemon.seen_at()
                value = rendezvous.pack(self.addresses())
                if new or value != told or now - told_at >= _TELL_S:
                    self._out(value)
                    await daemon.put_record(multiaddrs.transport(self._me), value)
                    told, told_at = value, now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if relays else _TELL_S):
                    await asyncio.sleep(_BURST_S)
                    await self._met.wait()

    async def tell_lan(self, up: Callable[[], Awaitable[object]]) -> None:
        """Show ourselves on the LAN and hear of others there, once p2pd is `up`, where the operator wants it and there is one."""
        while True:
            await up()
            self._again.clear()
            lan = asyncio.create_task(self._on_lan())
            try:
                await self._again.wait()
            finally:
                lan.cancel()
                await asyncio.wait({lan})
                if not lan.cancelled() and (error := lan.exception()) is not None:
                    log.error("event=lan-ended error=%r", error)

    async def _on_lan(self) -> None:
        ports = [multiaddrs.port(address) for address in endpoints.direct(self.visible)]
        if self._config.mdns is None or not ports or endpoints.is_local(self._config.listen):
            return
        from node.finding.lan import Lan  # zeroconf costs a node without a LAN nothing

        hosts = [multiaddrs.host(address)[1] for address in self._config.listen]
        await Lan(self._config.mdns, self._me, self._heard).run(ports[0], hosts)

    def _heard(self, seen: Mapping[PeerId, tuple[str, ...]]) -> None:
        if self._contacts.nearby(seen):
            self._woken()
