"""What a peer sees of us: its clock, the address our connection comes from, and whether our ports open from there.

Protocol `/fishernet/look/1`. Asked: one byte n <= 4, then n ports of 2 bytes, big-endian. Answered: 8 bytes, the answerer's
clock in ms since 1970; one byte and so many bytes of text, the address it sees us at; then n bytes, 1 where a libp2p node greets
at that host and port, 0 where none does, 2 where it did not try. Only the host that it sees us at is tried, as in libp2p's
AutoNAT (so nobody can have another machine probed), for members alone, and seldom. Knows no member: its maker says who is one.
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
_CLOSED, _OPEN, _UNTRIED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one peer said. Times in ms; `opens` is None for a port that it did not try."""

    offset_ms: int
    rtt_ms: int
    address: str
    opens: tuple[bool | None, ...]


class Looking:
    """Asks and answers for one node."""

    def __init__(
        self,
        network: Network,
        *,
        where: Callable[[PeerId], Awaitable[Sequence[str]]],
        allowed: Callable[[PeerId], bool],
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`where` tells the addresses that a peer's connections come from, `allowed` who gets an answer."""
        self._network, self._where, self._allowed = network, where, allowed
        self._wall_ms, self._clock = wall_ms, clock
        self._tried: dict[PeerId, float] = {}
        network.add_handler(LOOK, self._answer)

    async def ask(self, peer: PeerId, ports: Sequence[int]) -> Seen:
        """What `peer` sees of us (raises NetworkError kinds, Refused: not an answer)."""
        asked = tuple(ports)[:MAX_PORTS]
        async with self._network.open(peer, LOOK) as stream:
            began, start = self._wall_ms(), self._clock()
            await stream.write(bytes([len(asked)]) + b"".join(port.to_bytes(2, "big") for port in asked))
            theirs = int.from_bytes(await stream.read(8), "big")
            rtt = max(0, round(1000 * (self._clock() - start)))
            text = await stream.read((await stream.read(1))[0])
            codes = await stream.read(len(asked)) if asked else b""
        if theirs >= 1 << 53 or any(code > _UNTRIED for code in codes):
            raise Malformed("couldn't read what a peer sees: not an answer of this protocol")
        shown = text.decode("ascii", "replace")
        opens = tuple(None if code == _UNTRIED else code == _OPEN for code in codes)
        return Seen(offset_ms=theirs - (began + rtt // 2), rtt_ms=rtt, address=shown, opens=opens)

    async def _answer(self, stream: Stream) -> None:
        if not self._allowed(stream.peer):
            return
        count = (await stream.read(1))[0]
        if count > MAX_PORTS:
            raise Malformed(f"couldn't look: at most {MAX_PORTS} ports")
        raw = await stream.read(2 * count) if count else b""
        ports = [int.from_bytes(raw[i : i + 2], "big") for i in range(0, len(raw), 2)]
        await stream.write(self._wall_ms().to_bytes(8, "big"))
        seen = [address for address in await self._where(stream.peer) if not addresses.is_circuit(address)]
        shown = seen[0].encode("ascii", "replace")[:_MAX_ADDRESS] if seen else b""
        await stream.write(bytes([len(shown)]) + shown)
        if count:
            await stream.write(bytes(await self._try(stream.peer, seen, ports)))

    async def _try(self, peer: PeerId, seen: Sequence[str], ports: Sequence[int]) -> list[int]:
        now = self._clock()
        if not seen or now - self._tried.get(peer, -_AGAIN_S) < _AGAIN_S:
            return [_UNTRIED] * len(ports)
        self._tried[peer] = now
        while len(self._tried) > 1024:
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
