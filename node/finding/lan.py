"""Finding each other on a LAN without any address: multicast DNS service discovery (RFC 6762, RFC 6763) by zeroconf.

What a node shows to everybody on the link: that it is a fishernet node, its peer id, its port (and the address that its packets
come from anyway). Its collective is shown as a tag only: SHA-256 over a fresh salt, the collective's id and the peer id. Who
knows the id can tell; nobody else can, nor make the tag for another peer. What is heard is a hint: at most `MAX_PEERS` peers,
with addresses of this link only, and whoever answers there is authenticated by the transport. Knows no swarm.
Invariant: nothing is asked of or taken from a service whose tag is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from protocol.addresses import check_address, check_peer
from protocol.errors import Malformed
from protocol.ids import CollectiveId, PeerId

log = logging.getLogger(__name__)

SERVICE: Final = "_fishernet._tcp.local."
MAX_PEERS: Final = 64
_MAX_ADDRESSES = 4
_MAX_WAITING = 256  # names heard of and not looked at yet; a flood of more is dropped
_LOOKING, _ASK_MS = 8, 3000
_SALT, _TAG = 8, 16  # bytes
_AGAIN_S = 30.0

Network: TypeAlias = ipaddress.IPv4Interface
Seen: TypeAlias = Mapping[PeerId, tuple[str, ...]]


def tag(salt: bytes, collective: CollectiveId, peer: PeerId) -> bytes:
    """What `peer` shows of its collective: 16 bytes that only who knows the collective's id can make or check."""
    return hashlib.sha256(b"fishernet/lan/1" + salt + f"{collective}{peer}".encode("ascii")).digest()[:_TAG]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a service says of itself, as zeroconf read it: every field is a stranger's."""

    name: str  # <peer id>._fishernet._tcp.local.
    port: int | None
    salt: bytes
    tag: bytes
    hosts: tuple[str, ...]


def judge(shown: Shown, collective: CollectiveId, links: Iterable[Network]) -> tuple[PeerId, tuple[str, ...]] | None:
    """The peer and where to dial it, when it is of our collective and on a link of ours; else None."""
    try:
        peer = check_peer(shown.name.removesuffix("." + SERVICE))
    except Malformed:
        return None
    whole = len(shown.salt) == _SALT and shown.port is not None and 0 < shown.port < 1 << 16
    if not whole or not secrets.compare_digest(shown.tag, tag(shown.salt, collective, peer)):
        return None
    near = []
    for host in shown.hosts[: 4 * _MAX_ADDRESSES]:
        with contextlib.suppress(ValueError, Malformed):
            if any(ipaddress.IPv4Address(host) in link.network for link in links):
                near.append(check_address(f"/ip4/{host}/tcp/{shown.port}"))
    return (peer, tuple(near[:_MAX_ADDRESSES])) if near else None


def links(hosts: Iterable[str]) -> tuple[Network, ...]:
    """The IPv4 networks we listen in at `hosts`; 0.0.0.0 means all of this machine but loopback."""
    listened = {ipaddress.ip_address(host) for host in hosts}
    found = []
    for adapter in ifaddr.get_adapters():
        for own in adapter.ips:
            if isinstance(own.ip, str):
                link = Network(f"{own.ip}/{own.network_prefix}")
                everywhere = ipaddress.IPv4Address(0) in listened and not link.ip.is_loopback
                if everywhere or link.ip in listened:
                    found.append(link)
    return tuple(found)


class Lan:
    """Shows one node on its links and tells who else of its collective is there."""

    def __init__(self, collective: CollectiveId, peer: PeerId, tell: Callable[[Seen], None]) -> None:
        """`tell` hears of everybody who is there whenever that changes."""
        self._collective, self._peer, self._tell = collective, peer, tell
        self._seen: dict[PeerId, tuple[str, ...]] = {}
        self._heard: asyncio.Queue[tuple[PeerId, bool]] = asyncio.Queue(_MAX_WAITING)
        self.dropped = 0

    async def run(self, port: int, hosts: Iterable[str]) -> None:
        """Show `port` and listen until cancelled. Trouble with a link is told in the log, and tried again."""
        hosts = tuple(hosts)
        while True:
            try:
                if found := links(hosts):
                    await self._live(port, found)
            except (OSError, ZeroconfError) as e:
                log.info("event=lan-off error=%s", str(e)[:200] or type(e).__name__)
            self._seen.clear()
            self._tell({})
            await asyncio.sleep(_AGAIN_S)

    async def _live(self, port: int, where: tuple[Network, ...]) -> None:
        own = [str(link.ip) for link in where]
        async with AsyncZeroconf(interfaces=own, ip_version=IPVersion.V4Only) as service:
            browser = AsyncServiceBrowser(service.zeroconf, SERVICE, handlers=[self._hear])
            try:
                await (await service.async_register_service(self._info(port, own), allow_name_change=False))
                async with asyncio.TaskGroup() as looking:  # a name that nobody stands behind holds up one of them
                    for _ in range(_LOOKING):
                        looking.create_task(self._look(service.zeroconf, where))
            finally:
                await browser.async_cancel()

    def _info(self, port: int, own: list[str]) -> AsyncServiceInfo:
        salt = secrets.token_bytes(_SALT)
        shown = {b"s": salt.hex(), b"t": tag(salt, self._collective, self._peer).hex()}
        return AsyncServiceInfo(
            SERVICE,
            f"{self._peer}.{SERVICE}",
            port=port,
            properties=shown,
            server=f"{self._peer}.local.",  # the machine's own name stays out
            parsed_addresses=own,
        )

    def _hear(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        try:
            peer = check_peer(name.removesuffix("." + SERVICE))
            if peer != self._peer:
                self._heard.put_nowait((peer, state_change is not ServiceStateChange.Removed))
        except (Malformed, asyncio.QueueFull):
            self.dropped += 1

    async def _look(self, zeroconf: Zeroconf, where: tuple[Network, ...]) -> None:
        while True:
            peer, there = await self._heard.get()
            info = AsyncServiceInfo(SERVICE, f"{peer}.{SERVICE}")
            found = None
            room = peer in self._seen or len(self._seen) < MAX_PEERS
            if there and room and await info.async_request(zeroconf, _ASK_MS):
                found = judge(_shown(info), self._collective, where)
            before = dict(self._seen)
            if found is not None:
                self._seen[peer] = found[1]
            elif not there:
                self._seen.pop(peer, None)
            if self._seen != before:
                self._tell(dict(self._seen))


def _shown(info: AsyncServiceInfo) -> Shown:
    def bytes_of(key: bytes) -> bytes:
        value = info.properties.get(key) or b""
        try:
            return bytes.fromhex(value.decode("ascii"))
        except ValueError:
            return b""

    hosts = tuple(info.parsed_addresses(IPVersion.V4Only))
    return Shown(name=info.name, port=info.port, salt=bytes_of(b"s"), tag=bytes_of(b"t"), hosts=hosts)
