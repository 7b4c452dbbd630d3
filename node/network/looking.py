"""What a peer sees of us: its clock, the address our connection comes from, and whether our ports open from there.

Protocol `/fishernet/look/1`, numbers big-endian. Asked: 8 bytes, the same for every life of one home and others for its copies;
one byte n <= 4, then n ports of 2 bytes. Answered: 8 bytes, the answerer's clock in ms since 1970; one byte, the connections it
has with our peer id; 4 bytes, the seconds since another home spoke as this peer (2^32-1: none did); one byte and so many bytes of
text, the address it sees us at; then n bytes, 1 where a libp2p node greets at that host and port, 0 where none does, 2 where it
did not try. Only the host that it sees us at is tried, as in libp2p's AutoNAT (so nobody can have another machine probed), for
members alone, and seldom. Knows no member: its maker says who is one.
The offset follows NTP (RFC 5905): the answerer's clock minus the middle of our asking; its error is at most half the round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from node.ports import Network, Stream
from protocol import addresses
from protocol.errors import Malformed, Refused
from protocol.ids import PeerId

LOOK: Final = "/fishernet/look/1"
MAX_PORTS: Final = 4
_MAX_ADDRESS: Final = 255
_GREETING: Final = b"\x13/multistream/1.0.0\n"
_DIAL_S: Final = 1.5
_AGAIN_S: Final = 5.0  # ports of one peer are tried at most so often
_HOME: Final = 8
_HOMES: Final = 4
_MOST_PEERS: Final = 1024
_NOBODY: Final = (1 << 32) - 1
_CLOSED, _OPEN, _UNTRIED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one peer said. Times in ms; `opens` is None for a port that it did not try."""

    offset_ms: int
    rtt_ms: int
    connections: int  # of our peer id; two homes with one key have one each
    other_s: int | None  # since another home spoke as this peer
    address: str
    opens: tuple[bool | None, ...]


class Looking:
    """Asks and answers for one node."""

    def __init__(
        self,
        network: Network,
        *,
        home: bytes,
        where: Callable[[PeerId], Awaitable[Sequence[str]]],
        allowed: Callable[[PeerId], bool],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`home` are 8 bytes that tell this home from copies of it.

        `where` tells the addresses that a peer's connections come from, `allowed` who gets an answer.
        """
        self._network, self._where, self._allowed = network, where, allowed
        self._wall_ms, self._clock = wall_ms, clock
        self._home = home[:_HOME].ljust(_HOME, b"\0")
        self._tried: dict[PeerId, float] = {}
        self._homes: dict[PeerId, dict[bytes, float]] = {}  # who spoke as a peer, and when
        network.add_handler(LOOK, self._answer)

    async def ask(self, peer: PeerId, ports: Sequence[int]) -> Seen:
        """What `peer` sees of us (raises NetworkError kinds, Refused: not an answer)."""
        asked = tuple(ports)[:MAX_PORTS]
        async with self._network.open(peer, LOOK) as stream:
            began, start = self._wall_ms(), self._clock()
            await stream.write(self._home + bytes([len(asked)]) + b"".join(port.to_bytes(2, "big") for port in asked))
            theirs = int.from_bytes(await stream.read(8), "big")
            rtt = max(0, round(1000 * (self._clock() - start)))
            connections = (await stream.read(1))[0]
            other = int.from_bytes(await stream.read(4), "big")
            text = await stream.read((await stream.read(1))[0])
            codes = await stream.read(len(asked)) if asked else b""
        if theirs >= 1 << 53 or any(code > _UNTRIED for code in codes):
            raise Malformed("couldn't read what a peer sees: not an answer of this protocol")
        shown = text.decode("ascii", "replace")
        opens = tuple(None if code == _UNTRIED else code == _OPEN for code in codes)
        return Seen(
            offset_ms=theirs - (began + rtt // 2),
            rtt_ms=rtt,
            connections=connections,
            other_s=None if other == _NOBODY else other,
            address=shown,
            opens=opens,
        )

    async def _answer(self, stream: Stream) -> None:
        if not self._allowed(stream.peer):
            return
        home = await stream.read(_HOME)
        count = (await stream.read(1))[0]
        if count > MAX_PORTS:
            raise Malformed(f"couldn't look: at most {MAX_PORTS} ports")
        raw = await stream.read(2 * count) if count else b""
        ports = [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]
        await stream.write(self._wall_ms().to_bytes(8, "big"))
        where = await self._where(stream.peer)
        await stream.write(bytes([min(len(where), 255)]) + self._other(stream.peer, home).to_bytes(4, "big"))
        seen = [address for address in where if not addresses.is_circuit(address)]
        shown = seen[0].encode("ascii", "replace")[:_MAX_ADDRESS] if seen else b""
        await stream.write(bytes([len(shown)]) + shown)
        if count:
            await stream.write(bytes(await self._try(stream.peer, seen, ports)))

    def _other(self, peer: PeerId, home: bytes) -> int:
        """Note who spoke; the seconds since another home did as the same peer."""
        now, mine = self._clock(), self._homes.pop(peer, {})
        others = [at for each, at in mine.items() if each != home]
        self._homes[peer] = dict(list(({k: v for k, v in mine.items() if k != home} | {home: now}).items())[-_HOMES:])
        while len(self._homes) > _MOST_PEERS:
            del self._homes[next(iter(self._homes))]
        return min(int(now - max(others)), _NOBODY - 1) if others else _NOBODY

    async def _try(self, peer: PeerId, seen: Sequence[str], ports: Sequence[int]) -> list[int]:
        now = self._clock()
        if not seen or now - self._tried.get(peer, -_AGAIN_S) < _AGAIN_S:
            return [_UNTRIED] * len(ports)
        self._tried[peer] = now
        while len(self._tried) > _MOST_PEERS:
            del self._tried[next(iter(self._tried))]
        with contextlib.suppress(Refused):
            _, host = addresses.host(seen[0])
            found = await asyncio.gather(*(greets(host, port) for port in ports))
            return [_OPEN if each else _CLOSED for each in found]
        return [_UNTRIED] * len(ports)


async def greets(host: str, port: int, *, within_s: float = _DIAL_S) -> bool:
    """Whether a libp2p node answers there (multistream-select: each side says its version first)."""
    writer = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(_GREETING)
            return await reader.readexactly(len(_GREETING)) == _GREETING
    except (OSError, EOFError, ValueError, OverflowError):
        return False
    finally:
        if writer is not None:
            writer.close()
