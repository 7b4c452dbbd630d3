"""Two nodes with one key: a restored backup or a copied home beside the one that still runs.

They would fork the feed they share. Each node leaves eight bytes of its own with the members it is connected with; who starts
asks them whether another home speaks as its peer and is connected now, and writes nothing until it is gone. Knows no wire.
Invariant: the bytes are the same for every life of a home and differ for its copies (they name machine, device and inode too).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from node.collective.seat import Seat
from node.files import write_new
from node.home import Home
from node.network.looking import Looking
from protocol.errors import FishernetError
from protocol.ids import MemberId, PeerId

log = logging.getLogger("fishernet.twins")
_EVERY_S: Final = 60.0
_AGAIN_S: Final = 3.0
_LATELY_S: Final = 150  # two looks and a slow machine
_ASK_S: Final = 4.0
_MOST: Final = 8
_LOOKING: Final = "it is being asked whether another node has this node's key"
_WAITS: Final = (
    "another node with this node's key is connected with {} now (a restored backup, a copied home): stop one of the two; "
    "until then this one writes nothing"
)


def mark_of(home: Home) -> bytes:
    """The eight bytes of this home; made at its first start."""
    file = home.run / "home.id"
    try:
        kept = file.read_bytes()
    except OSError:
        kept = os.urandom(16)
        with contextlib.suppress(OSError):
            write_new(file, kept, mode=0o600)
    place, machine = home.path.stat(), b""
    with contextlib.suppress(OSError):
        machine = Path("/etc/machine-id").read_bytes()
    return hashlib.sha256(kept + f"{place.st_dev} {place.st_ino}".encode() + machine).digest()[:8]


class Twins:
    """Looks out for another home with our key."""

    def __init__(self, seat: Seat, looking: Looking, linked: Callable[[], Mapping[PeerId, MemberId | None]]) -> None:
        """`linked` tells who is connected, and for which member each speaks."""
        self._seat, self._looking, self._linked = seat, looking, linked

    async def be_alone(self) -> bool:
        """Wait until no other home with our key is connected with a member; call it before the first entry of a start.

        False: there was one, and it is gone. What it has written is not known here then: nothing may be written before the
        members were asked anew, and the seat stays paused.
        """
        self._seat.pause(_LOOKING)
        alone = True
        while (peer := await self._seen_by()) is not None:
            names = {member.id: member.name for member in self._seat.fold.charter.members}
            self._seat.pause(_WAITS.format(names.get(self._linked().get(peer) or self._seat.me, "a member")))
            log.error("event=twin-waits seen_by=%s", peer[-6:])
            alone = False
            await asyncio.sleep(_AGAIN_S)
        if alone:
            self._seat.pause(None)
        return alone

    async def run(self) -> None:
        """Let members know from time to time which home speaks as this peer, so that a copy of it finds out at its start."""
        while True:
            await self._seen_by()
            await asyncio.sleep(_EVERY_S)

    async def _seen_by(self) -> PeerId | None:
        """The first of up to eight members' peers that sees another home speak as us and has a connection with it."""
        peers = sorted(peer for peer, member in self._linked().items() if member not in (None, self._seat.me))
        found = await asyncio.gather(*(self._ask(peer) for peer in peers[:_MOST]))
        return next((peer for peer, seen in zip(peers, found, strict=False) if seen), None)

    async def _ask(self, peer: PeerId) -> bool:
        try:
            async with asyncio.timeout(_ASK_S):
                seen = await self._looking.ask(peer, ())
        except (FishernetError, OSError):  # who gives no answer tells nothing; a TimeoutError is an OSError
            return False
        return seen.connections > 1 and seen.other_s is not None and seen.other_s < _LATELY_S
