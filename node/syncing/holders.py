"""Who is known to hold which blob: what members answered when they were asked, and what they gave or refused to give.

Members are asked for up to 1,024 digests at once (`/fishernet/have/1`), several callers' questions in one. Knows nothing of
what blobs mean. Invariants: at most `MAX_DIGESTS` digests are remembered, the longest unused one is forgotten first; of each
at most `MAX_PEERS` peers; an answer is a hint, never proof.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final, TypeAlias

from protocol import wire
from protocol.errors import FishernetError
from protocol.ids import Digest, PeerId

MAX_DIGESTS: Final = 4096
MAX_PEERS: Final = 16
YES_S: Final = 300.0  # how long an answer is believed
NO_S: Final = 5.0
GATHER_S: Final = 0.01  # questions of this time go out together
ANSWER_S: Final = 5.0  # who does not answer in time is not waited for
_AT_ONCE: Final = 8

Ask: TypeAlias = Callable[[PeerId, Sequence[Digest]], Awaitable[Sequence[bool]]]


class Holders:
    """What is known about who holds what."""

    def __init__(self, ask: Ask, clock: Callable[[], float]) -> None:
        """`ask` puts one question to one peer; `clock` is in seconds."""
        self._ask, self._clock = ask, clock
        self._said: OrderedDict[Digest, dict[PeerId, tuple[bool, float]]] = OrderedDict()
        self._rarity: dict[Digest, int] = {}
        self._gathering: dict[PeerId, dict[Digest, None]] = {}
        self._round: asyncio.Task[None] | None = None  # the next one, while it gathers questions
        self._rounds: set[asyncio.Task[None]] = set()
        self.asked = 0  # requests sent

    # -- what is known -----------------------------------------------------------------------------------------------
    def note(self, peer: PeerId, digest: Digest, *, has: bool) -> None:
        """Remember that a peer has a blob, or has it not."""
        known = self._said.setdefault(digest, {})
        self._said.move_to_end(digest)
        known.pop(peer, None)
        known[peer] = (has, self._clock())
        while len(known) > MAX_PEERS:
            del known[next(iter(known))]
        self._rarity[digest] = sum(yes for yes, _ in known.values())
        while len(self._said) > MAX_DIGESTS:
            del self._rarity[self._said.popitem(last=False)[0]]

    def has(self, peer: PeerId, digest: Digest) -> bool | None:
        """Whether a peer has a blob; None: not known, or too long ago."""
        said, at = self._said.get(digest, {}).get(peer, (None, 0.0))
        if said is None or self._clock() - at > (YES_S if said else NO_S):
            return None
        return said

    def rarity(self, digest: Digest) -> int | None:
        """How many peers have a blob by the last word of each, however old; quick, for putting many in order."""
        return self._rarity.get(digest)

    def count(self, digest: Digest, among: Collection[PeerId] | None = None) -> int | None:
        """How many peers (of these, if given) have a blob; None: nobody has said anything lately."""
        said = self._said.get(digest, ())
        answers = [self.has(peer, digest) for peer in said if among is None or peer in among]
        return sum(map(bool, answers)) if any(a is not None for a in answers) else None

    # -- asking ------------------------------------------------------------------------------------------------------
    async def survey(self, digests: Iterable[Digest], peers: Collection[PeerId]) -> None:
        """Have each of these peers asked for what it has not told lately; returns when all have answered, or given up."""
        wanted = False
        for digest in digests:
            for peer in peers:
                if self.has(peer, digest) is None:
                    self._gathering.setdefault(peer, {})[digest] = None
                    wanted = True
        if not wanted:
            return
        if self._round is None:
            self._round = asyncio.create_task(self._turn())
            self._rounds.add(self._round)
            self._round.add_done_callback(self._rounds.discard)
        turn = self._round
        await asyncio.wait([turn])  # who gives up, or the end of all questions, ends only this wait
        if not turn.cancelled() and (error := turn.exception()) is not None:
            raise error

    async def close(self) -> None:
        """End all questions."""
        for each in self._rounds:
            each.cancel()
        self._round = None
        if self._rounds:
            await asyncio.wait(set(self._rounds))

    async def _turn(self) -> None:
        """Wait a moment for more questions, then ask every peer what is to be asked of it."""
        await asyncio.sleep(GATHER_S)
        (questions, self._gathering), self._round = (self._gathering, {}), None
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as jobs:
            for peer, wanted in questions.items():
                jobs.create_task(self._question(slots, peer, list(wanted)))

    async def _question(self, slots: asyncio.Semaphore, peer: PeerId, digests: list[Digest]) -> None:
        for start in range(0, len(digests), wire.MAX_DIGESTS):
            some = digests[start : start + wire.MAX_DIGESTS]
            try:
                async with slots, asyncio.timeout(ANSWER_S):
                    self.asked += 1
                    answer = await self._ask(peer, some)
            except (FishernetError, TimeoutError):
                return  # no answer is no news
            for digest, has in zip(some, answer, strict=True):
                self.note(peer, digest, has=has)
